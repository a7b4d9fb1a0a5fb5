"""Reward redistribution (RED): a token's reward is what the reward model's score gains by it.

Scores of an answer as it is read are a potential; its differences are added along the answer without changing what is optimal. They are
laid onto the tokens of the policy, whose tokenizer may be another, by the characters of the text that both have in common.

Reference:
    Li et al., RED: Unleashing Token-Level Rewards from Holistic Feedback via Reward Redistribution, arXiv:2411.08302.
"""

# B answers, T tokens of the longest, N tokens of one answer by the policy, A by the reward model.
from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewardproof.config import Section
from rewardproof.data.offsets import Places, characters_written, words_of
from rewardproof.errors import ConfigError
from rewardproof.models.token_scores import TokenScores
from rewardproof.policy.rollouts import Rollouts
from rewardproof.scoring import Scale, Scorer, reads_tokens
from rewardproof.scoring.combination import Floats
from rewardproof.training.processes import gathered

Initial = Literal["keep", "drop", "zero"]
PREFIX = "redistribution/"
"""Of its numbers in the log."""
COUNTS = ("tokens", "unmapped", "unlocated")
"""Those of them that add up over a run."""


class Redistribution(Section):
    """A token's reward is what the reward model's score gains by it (RED)."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much of the reward is spread over the tokens (the paper's b_c, 1 there almost everywhere); the rest stays at the last one. 0 is
    the usual reward."""
    initial: Initial = "keep"
    """From where the first token gains: `keep`, from the prompt's own score, which the answer's return is then less by (equation 6);
    `drop`, from the reward's zero, which leaves the return what it is; `zero`, from its own score: it earns nothing (the paper's code),
    unless no token of the answer could be told apart."""
    smooth: Literal["token", "word"] = "token"
    """`word`: the tokens of a word earn alike, its sum stays. The head was trained on whole answers, and says little inside a word."""
    advantage: Literal["centred", "token_minus_baseline"] = "centred"
    """RLOO and GRPO: `centred` adds `token_weight` times a token's reward, less the mean over its answer, to the answer's advantage. The
    published token reward less an answer's baseline is refused: it collapses."""


def refuse_unsafe(settings: Redistribution, *, estimator: str, discount: float) -> None:
    """Refuse what does not learn what it seems to.

    Raises:
        ConfigError: Names the keys.
    """
    if settings.advantage == "token_minus_baseline" and estimator != "ppo":
        raise ConfigError(
            f"redistribute.advantage=token_minus_baseline with estimator={estimator}, expected centred: one token's reward less a baseline "
            "of whole answers has the baseline's sign at nearly every token, so where rewards are below 0 all is reinforced and length "
            "runs away; a reproduction collapsed. Drop it; optimise.token_weight sets how much tokens count beside their answer."
        )
    if settings.share and estimator == "ppo" and discount != 1:
        raise ConfigError(
            f"optimise.discount={discount:g} with redistribute.share={settings.share:g}, expected discount=1: only undiscounted are "
            "differences of scores those of a potential, and the optimal policy what it was. Set optimise.discount=1."
        )


def refuse_others(settings: Redistribution, scorers: Mapping[str, Scorer]) -> None:
    """Refuse rewards that cannot be redistributed.

    Raises:
        ConfigError: Names them.
    """
    others = [name for name, scorer in scorers.items() if not reads_tokens(scorer)]
    if settings.share and others:
        raise ConfigError(
            f"redistribute.share={settings.share:g} with the reward {', '.join(others)}, expected reward models or ensembles of them, with "
            "fast tokenizers: only they say how a score grows token by token. Leave it out, or set optimise.redistribute.share=0."
        )


def potentials(tokens: TokenScores, scale: Scale, *, initial: Initial = "keep", limit: float = 0.0) -> Floats:
    """From where an answer's gains count, the score at each token, and the whole answer's, shape `(A + 2,)`, in units of the reward.

    The differences' sum is the last less the first. The reward's zero is in every entry, so it is in no difference; under `drop` the path
    begins at that zero, so it is in the first difference, once, and the sum is the reward that would stand at the last token.

    Args:
        tokens: The answer as it is read.
        scale: Zero and unit of the reward.
        initial: As the setting.
        limit: Largest absolute score; 0 for any.
    """
    path = scale.standardised([tokens.before, *tokens.reached_A, tokens.score])
    if limit:
        path = path.clip(-limit, limit)
    path[:1] = {"keep": path[0], "drop": 0.0, "zero": path[min(1, len(tokens.reached_A))]}[initial]
    return path


def spread(gains: Floats, ends_A: Places, written_N: Places) -> tuple[Floats, int]:
    """The reward model's gains on the policy's tokens: each goes to the token that writes the last character which it has read.

    Args:
        gains: One a token of the reward model.
        ends_A: Characters up to each of those tokens' ends.
        written_N: Characters up to the end of each of the policy's.

    Returns:
        The policy's token rewards, shape `(N,)`, of the same sum; and on how many of them no gain lies.

    Example:
        >>> spread(np.array([0.5, -1.0, 2.0]), np.array([2, 5, 9]), np.array([1, 5, 9]))
        (array([ 0. , -0.5,  2. ]), 1)
    """
    places = np.searchsorted(written_N, ends_A)
    rewards_N = np.zeros(len(written_N))
    np.add.at(rewards_N, places, gains)
    return rewards_N, len(written_N) - len(np.unique(places))


def by_word(rewards_N: Floats, words_N: Places) -> Floats:
    """Each token's reward made the mean over the tokens of its word.

    Example:
        >>> by_word(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]))
        array([2., 2., 5.])
    """
    if not len(words_N):
        return rewards_N
    return (np.bincount(words_N, weights=rewards_N) / np.maximum(np.bincount(words_N), 1))[words_N]


class Redistributor:
    """Lays scores of answers as they are read onto the tokens of the policy that wrote them."""

    def __init__(self, settings: Redistribution, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the settings, and the policy's tokenizer."""
        self.settings = settings
        self.tokenizer = tokenizer
        self._told: defaultdict[str, float] = defaultdict(float)

    def rewards(self, tokens: Sequence[TokenScores], rollouts: Rollouts, scale: Scale, *, limit: float) -> Tensor:
        """Token rewards of every answer, shape `(B, T)`: `share` of them redistributed, the rest at the last token.

        Args:
            tokens: Every answer as it is read.
            rollouts: The answers.
            scale: Zero and unit of the reward.
            limit: Largest absolute score, in units; 0 for any.
        """
        table_BT = np.zeros(rollouts.mask_BT.shape)
        written = (
            conversation[start:]
            for group in rollouts.encoded
            for conversation, start in zip(group.conversations, group.answer_starts, strict=True)
        )
        for row_T, one, token_ids, finished in zip(table_BT, tokens, written, rollouts.finished_B.tolist(), strict=True):
            path = potentials(one, scale, initial=self.settings.initial, limit=limit)
            closing, share = path[-1] - path[-2], self.settings.share
            own = token_ids[: len(token_ids) - finished]
            row_T[: len(own)] = share * self._spread(one, path, own)
            row_T[len(token_ids) - 1] += share * closing + (1 - share) * path[-1]
            before = scale.standardised([one.before])[0]
            self._note(answers=1, tokens=len(token_ids), largest=np.abs(row_T).max(), closing=abs(closing), initial=before)
        return torch.from_numpy(table_BT).float()

    def _spread(self, one: TokenScores, path: Floats, token_ids: Sequence[int]) -> Floats:
        """Gains on the answer's own tokens, the one that ends it apart."""
        written_N, text = characters_written(token_ids, self.tokenizer)
        row, unmapped = spread(np.diff(path[:-1]), one.ends_A, written_N)
        self._note(unmapped=unmapped, unlocated=not one.located)
        return by_word(row, words_of(text, written_N)) if self.settings.smooth == "word" else row

    def _note(self, **found: float) -> None:
        for name, value in found.items():
            self._told[name] += float(value)

    def told(self) -> dict[str, float]:
        """Numbers for the log on the rewards made since it was asked last, over all processes.

        Of the policy's tokens, how many there were and on how many no token of the reward model ends; answers whose template rewrites them,
        so that all they earn lies at their end; and means over answers, in units: the largest absolute reward of a token, the absolute gain
        by what the template writes after an answer, and the prompt's score.
        """
        parts = gathered(dict(self._told))
        self._told.clear()
        whole = {name: sum(part.get(name, 0.0) for part in parts) for name in parts[0]}
        counts = {f"{PREFIX}{name}": int(whole[name]) for name in COUNTS}
        return {**counts, **{f"{PREFIX}{name}": whole[name] / whole["answers"] for name in ("largest", "closing", "initial")}}
