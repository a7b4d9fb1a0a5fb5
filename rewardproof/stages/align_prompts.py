"""The prompts of a policy run: those it learns on, those it is judged on, and how long they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import n_processes
from rewardproof.data import Group, read_groups
from rewardproof.data.splitting import prompt_overlap, split_by_prompt, split_salt
from rewardproof.errors import ConfigError, DataError
from rewardproof.models.packed import position_table
from rewardproof.policy.rollouts import Prompt

if TYPE_CHECKING:
    from rewardproof.stages.align import Align


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts to learn from and to be judged on, and what became of the rows."""

    training: list[Prompt]
    judged: list[Prompt]
    rows: dict[str, Any]


def refuse_too_long(config: Align, model: PreTrainedModel) -> None:
    """Refuse lengths that the policy has no positions for.

    Raises:
        ConfigError: Names the limit.
    """
    longest = config.max_prompt_tokens + config.way.max_new_tokens
    window = getattr(model.config, "sliding_window", None) if getattr(model.config, "use_sliding_window", True) else None
    for limit, what in ((position_table(model), "positions"), (window, "tokens in its sliding window, which the sampler does not slide")):
        if limit is not None and longest > limit:
            raise ConfigError(
                f"max_prompt_tokens={config.max_prompt_tokens} and {config.way.section}.max_new_tokens={config.way.max_new_tokens}: "
                f"expected at most {limit} together, since {config.policy} has {limit} {what}. Lower one of them."
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
    judged = sorted(judged, key=lambda group: group.prompt_key)
    encoded = [[Prompt.of(group, tokenizer) for group in part] for part in (training, judged)]
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
    return Prompts(fitting[0], kept, rows)


def _distinct(config: Align, sources: Sequence[str], rows: dict[str, Any], name: str) -> list[Group]:
    """Groups of different prompts, the first of each."""
    found = read_groups(sources, format=config.format, on_bad=config.on_bad, purpose="answer", text=config.text)
    groups = {group.prompt_key: group for group in reversed(found.groups)}
    rows[f"{name}_sources"] = {"read": found.counts.read, "used": len(groups), "dropped": dict(found.counts.bad)}
    return list(reversed(groups.values()))
