"""A scorer as one of TRL's reward functions, for GRPO, RLOO and online DPO.

TRL adds several reward functions up and knows no worst case: an ensemble has to be one function, which this is.

    trainer = GRPOTrainer(model=..., reward_funcs=TrlReward.load("runs/ensemble/model"), ...)
    trl grpo --reward_funcs rewardproof.serving.trl.reward ...           # with REWARDPROOF_REWARD=runs/ensemble/model
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rewardproof.data.group import Group, Message
from rewardproof.errors import DataError
from rewardproof.policy.rewards import DISAGREEMENT
from rewardproof.scoring import Scorer, load_scorer, score_and_disagreement, stream_names
from rewardproof.serving.configured import configured

_OF_TRL = frozenset({"completion_ids", "trainer_state", "log_extra", "log_metric", "environments"})
Text = str | Sequence[Mapping[str, Any]]


class TrlReward:
    """A scorer that TRL calls: prompts and completions in, one number a completion out."""

    def __init__(self, scorer: Scorer, *, name: str = "rewardproof") -> None:
        """Wrap a scorer.

        Args:
            scorer: A reward model, an ensemble, a program, a server.
            name: What TRL's log calls it.
        """
        self.scorer = scorer
        self.__name__ = name

    @classmethod
    def load(cls, spec: str) -> TrlReward:
        """Wrap the scorer that a word names, as on the command line."""
        return cls(load_scorer(spec), name=stream_names([spec])[0])

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
        """Score completions in the caller's order; those of one prompt that follow each other are scored together.

        Args:
            prompts: Texts, which are joined with their completions as they are, or messages, which take the reward model's template.
            completions: As many, of the same kind.
            columns: The data's other columns; programs find them in a group's `meta`. Where TRL hands over its log, it gains how far an
                ensemble's members are apart, which `HackingCallback` watches.
        """
        known = {name: values for name, values in columns.items() if name not in _OF_TRL and isinstance(values, Sequence)}
        groups = [_group([completions[place] for place in run], prompts[run[0]], run[0], known) for run in _runs(prompts)]
        scores, apart = score_and_disagreement(self.scorer, groups)
        if apart is not None and (log := columns.get("log_metric")) is not None:
            log(DISAGREEMENT, apart)
        return [score for row in scores for score in row]


def _runs(prompts: Sequence[Text]) -> list[list[int]]:
    """Places of prompts that are the same and follow each other."""
    return [list(run) for _, run in groupby(range(len(prompts)), key=lambda place: prompts[place])]


def _group(completions: Sequence[Text], prompt: Text, first: int, columns: Mapping[str, Sequence[Any]]) -> Group:
    return Group(
        prompt=_messages(prompt, "user"),
        answers=tuple(_messages(completion, "assistant") for completion in completions),
        raw=isinstance(prompt, str),
        id=f"completion {first}",
        meta={name: values[first] for name, values in columns.items()},
    )


def _messages(text: Text, role: str) -> tuple[Message, ...]:
    if isinstance(text, str):
        return (Message(role, text),)
    return tuple(Message(message["role"], _content(message["content"])) for message in text)


def _content(said: Any) -> str:
    """What a turn says; of a content in parts the texts, and parts of another kind are refused."""
    if isinstance(said, str):
        return said
    parts = [part if isinstance(part, Mapping) else {} for part in said]
    if not all(isinstance(part.get("text"), str) for part in parts):
        raise DataError("Got a message with a part that is no text, expected texts: the reward model reads nothing else. Leave it out.")
    return "".join(part["text"] for part in parts)


@functools.cache
def _configured() -> TrlReward:
    return TrlReward.load(configured("rewardproof.serving.trl.reward"))


def reward(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
    """The scorer that `REWARDPROOF_REWARD` names, for TRL's command line.

    Raises:
        ConfigError: It names none.
    """
    return _configured()(prompts, completions, **columns)
