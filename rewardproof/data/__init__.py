"""Preference data: one noun (`Group`), readers of the field's formats, checks, splits, pairs, label noise and the embedded world.

Tokens are another matter: `rewardproof.data.encoding` and `rewardproof.data.packing` are imported by their own names, because they load
torch and transformers.
"""

from rewardproof.data.checks import REASONS, BadRow, check_group
from rewardproof.data.formats import FORMATS, Format, detect, find_format, to_row
from rewardproof.data.group import ROLES, Group, Message
from rewardproof.data.pairs import Pair, merge_single_answers, ordered_pairs, with_label_noise
from rewardproof.data.reading import GroupSet, ReadCounts, Row, iter_rows, read_groups, require_used
from rewardproof.data.scenarios import SCENARIOS, ScenarioCut, Scenarios, cut_scenarios
from rewardproof.data.splitting import (
    key_position,
    prompt_overlap,
    split_by_prompt,
    split_key,
    split_position,
    split_salt,
    without_prompts_of,
)
from rewardproof.data.strength import StrengthTreatment, Treated, strengths_of

__all__ = [
    "FORMATS",
    "REASONS",
    "ROLES",
    "SCENARIOS",
    "BadRow",
    "Format",
    "Group",
    "GroupSet",
    "Message",
    "Pair",
    "ReadCounts",
    "Row",
    "ScenarioCut",
    "Scenarios",
    "StrengthTreatment",
    "Treated",
    "check_group",
    "cut_scenarios",
    "detect",
    "find_format",
    "iter_rows",
    "key_position",
    "merge_single_answers",
    "ordered_pairs",
    "prompt_overlap",
    "read_groups",
    "require_used",
    "split_by_prompt",
    "split_key",
    "split_position",
    "split_salt",
    "strengths_of",
    "to_row",
    "with_label_noise",
    "without_prompts_of",
]
