"""The prompts of a policy run: those it learns on, those it is judged on, and how long they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import n_processes
from rewardproof.data import Group, read_groups
from rewardproof.data.splitting import prompt_overlap, split_by_prompt, split_salt, without_prompts_of
from rewardproof.errors import ConfigError, DataError
from rewardproof.policy.rollouts import Prompt
from rewardproof.policy.row_cache import longest_row
from rewardproof.stages.align_learning import referenced

if TYPE_CHECKING:
    from rewardproof.stages.align import Align


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts to learn from, to be judged on, and to seek thresholds on where they are sought; and what became of the rows."""

    training: list[Prompt]
    judged: list[Prompt]
    validation: list[Prompt]
    rows: dict[str, Any]


def refuse_too_long(config: Align, model: PreTrainedModel) -> None:
    """Refuse lengths that the policy has no positions for.

    Raises:
        ConfigError: Names the limit.
    """
    longest = config.max_prompt_tokens + config.way.max_new_tokens
    limit = longest_row(model)
    if limit is not None and longest > limit[0]:
        raise ConfigError(
            f"max_prompt_tokens={config.max_prompt_tokens} and {config.way.section}.max_new_tokens={config.way.max_new_tokens}: "
            f"expected at most {limit[0]} together, since {config.policy} has {limit[0]} {limit[1]}. Lower one of them."
        )


def read_prompts(config: Align, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """Read, split, and leave out what is too long.

    Raises:
        DataError: Prompts that cannot be read, or too few to be judged on.
    """
    rows: dict[str, Any] = {}
    training = _distinct(config, config.prompts, rows, "train")
    if config.eval_prompts:
        judged = _distinct(config, config.eval_prompts, rows, "eval")
    else:
        training, judged = split_by_prompt(training, fraction=config.split, salt=split_salt(config.split_seed))
    rows["prompts_shared_by_train_and_eval"] = prompt_overlap(training, judged)
    search = None if config.constrained is None else config.constrained.search
    validation: list[Group] = []
    if search is not None:
        salt = split_salt(config.split_seed, "validation")
        training, validation = split_by_prompt(without_prompts_of(training, judged), fraction=search.validation, salt=salt)
    judged, validation = (sorted(part, key=lambda group: group.prompt_key) for part in (judged, validation))
    encoded = [[Prompt.of(group, tokenizer) for group in part] for part in (training, judged, validation)]
    fitting = [[prompt for prompt in part if len(prompt.token_ids) <= config.max_prompt_tokens] for part in encoded]
    rows["overlong"] = sum(map(len, encoded)) - sum(map(len, fitting))
    kept = fitting[1][: config.evaluate.prompts]
    rows |= {"training_prompts": len(fitting[0]), "evaluation_prompts": len(kept)}
    least = max(2, n_processes())
    if len(kept) < least:
        raise DataError(
            f"Got {len(kept)} prompts to judge the policy on, expected {least} or more; raise split, give eval_prompts, or raise "
            f"max_prompt_tokens ({rows['overlong']} were longer than {config.max_prompt_tokens} tokens)."
        )
    sought = fitting[2][: search.prompts] if search is not None else []
    if search is not None and len(sought) < least:
        raise DataError(
            f"Got {len(sought)} prompts to seek thresholds on, expected {least} or more of the training prompts; raise "
            "constrained.search.validation, or give more prompts."
        )
    return Prompts(fitting[0], kept, sought, rows | ({"validation_prompts": len(sought)} if search is not None else {}))


def _distinct(config: Align, sources: Sequence[str], rows: dict[str, Any], name: str) -> list[Group]:
    """Groups of different prompts, the first of each."""
    found = read_groups(sources, format=config.format, on_bad=config.on_bad, purpose="answer", text=config.text)
    known = referenced(found.groups, config.rule)
    groups = {group.prompt_key: group for group in reversed(known.groups)}
    dropped = {**found.counts.bad, **known.counts}
    rows[f"{name}_sources"] = {"read": found.counts.read, "used": len(groups), "dropped": dropped}
    return list(reversed(groups.values()))
