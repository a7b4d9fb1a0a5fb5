"""A verifier that learns with the policy (Cooper): each update, from answers certified as right and copies of them that have been broken.

    L = −log σ(R(q, a, o⁺) − R(q, a, o⁻))

o⁺ is one of the policy's answers that a rule calls right, o⁻ the same after an assistant has broken it and the rule has called that wrong.
Rules miss many right answers, so what they call wrong among the policy's own answers is never learned from.

Reference:
    Cooper, arXiv:2508.05613.
"""

# P pairs.
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rewardproof.artifacts import n_processes
from rewardproof.config import Section, Strings
from rewardproof.data import Group, Message
from rewardproof.data.assistants import Assistant, Break
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.rules import Checker
from rewardproof.losses import bradley_terry, verdict
from rewardproof.policy.rewards import Moment
from rewardproof.policy.rollouts import Rollouts
from rewardproof.policy.settings import Count, NotNegative
from rewardproof.policy.trained_reward import RewardLearning, TrainedReward, Turns, summed
from rewardproof.training.preparation import Read


class Replay(Section):
    """Answers with a rule's verdicts, which keep the verifier from forgetting what it was trained on."""

    data: Strings = ()
    """Where they come from, in any format; empty replays nothing."""
    weight: NotNegative = 1.0
    """Of their binary cross-entropy beside the pairs' loss."""
    groups: Count = 8
    """Prompts with their answers in a step, over all processes."""
    read: Read = Read()
    """How they are read."""
    max_length: Count = 2048
    """Longest conversation, in tokens."""


class Cooper(RewardLearning):
    """A verifier that learns with the policy."""

    trains: bool = True
    """Whether it learns; without, the verifier stays as it was given (the frozen ablation)."""
    loss: Literal["logit", "probability"] = "logit"
    """What the pairs' loss takes the difference of. Probabilities differ by less than 1, so that it cannot fall below 0.313."""
    score: Literal["probability", "logit"] = "probability"
    """What the policy is rewarded by: σ(logit), the verifier's score, or the logit itself."""
    assistant: Assistant = Assistant()
    """Who breaks right answers."""
    replay: Replay = Replay()
    """What it was trained on before."""
    anchor: NotNegative = 0.0
    """Weight of half the squared distance of what learns from where it began."""


@dataclass(slots=True)
class BrokenPairs:
    """Right answers beside their broken copies, and how they were come by.

    Attributes:
        groups: Prompt, reference and the two answers, the right one first.
        counts: `pairs`, prompts `without_positive`, `retries` after a first try, tries whose answer the rule did not certify as wrong
            (`refusals`), and right answers that no try broke (`given_up`).
        places: Where in the right answer the break begins, in [0, 1]: were it always the same, the place alone would tell.
        lengths: Length of the broken answer over the right one's.
    """

    groups: list[Group] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    places: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def add(self, group: Group, right: str, wrong: str) -> None:
        """Take up a pair."""
        answers = tuple((Message("assistant", text),) for text in (right, wrong))
        self.groups.append(replace(group, answers=answers, scores=None))
        self.places.append(first_difference(right, wrong) / max(len(right), 1))
        self.lengths.append(len(wrong) / max(len(right), 1))

    def told(self, device: torch.device) -> dict[str, float]:
        """For the log, over all processes: the counts, and of the pairs the mean place of the break, its spread, and the mean length."""
        sums = {"place": sum(self.places), "squared": sum(place**2 for place in self.places), "length": sum(self.lengths)}
        told = summed({**self.counts, **sums}, device)
        place, squared, length = (told.pop(name) / max(told["pairs"], 1) for name in sums)
        spread = max(squared - place**2, 0.0) ** 0.5
        return told | ({"break_place": place, "break_place_sd": spread, "broken_length": length} if told["pairs"] else {})


COUNTS: tuple[str, ...] = ("pairs", "without_positive", "retries", "refusals", "given_up")


def find_pairs(groups: Sequence[Group], checker: Checker, breaks: Break, *, attempts: int, seed: Sequence[int]) -> BrokenPairs:
    """For each prompt one of its right answers, drawn by chance, and that answer broken.

    Args:
        groups: Prompts with their references and the policy's answers.
        checker: The rule.
        breaks: The assistant.
        attempts: Tries for an answer, after which the prompt is given up.
        seed: Of which answer is drawn.
    """
    found = BrokenPairs(counts=Counter(dict.fromkeys(COUNTS, 0)))
    for group in groups:
        right = [text for text in group.answer_texts if checker.verdict(group, text) is True]
        if not right:
            found.counts["without_positive"] += 1
            continue
        dice = np.random.default_rng([*seed, int(group.prompt_key[:8], 16)])
        answer = right[int(dice.integers(len(right)))]
        for attempt in range(attempts):
            found.counts["retries"] += attempt > 0
            broken = breaks(group, answer, attempt)
            if broken.strip() and checker.verdict(group, broken) is False:
                found.add(group, answer, broken)
                break
            found.counts["refusals"] += 1
        else:
            found.counts["given_up"] += 1
    found.counts["pairs"] = len(found.groups)
    return found


def first_difference(left: str, right: str) -> int:
    """Characters that two texts share at their beginning."""
    return next((place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), min(len(left), len(right)))


def contrast(right_P: Tensor, wrong_P: Tensor, form: Literal["logit", "probability"]) -> Tensor:
    """The loss of each pair, shape `(P,)`."""
    if form == "probability":
        right_P, wrong_P = right_P.sigmoid(), wrong_P.sigmoid()
    return bradley_terry(right_P, wrong_P, reduction="none")


class CooperLearner:
    """A verifier that learns from broken answers; a `Learner`."""

    key: str = "cooper"
    counts: tuple[str, ...] = COUNTS
    reads_states = False

    def __init__(
        self, trained: TrainedReward, settings: Cooper, checker: Checker, breaks: Break, replay: Turns | None = None, *, seed: int = 0
    ) -> None:
        """Let a verifier learn.

        Args:
            trained: The verifier.
            settings: How.
            checker: Certifies answers.
            breaks: Breaks them.
            replay: Labelled answers that it is taken back to, or nothing.
            seed: Of which right answers are drawn.
        """
        self.trained, self.settings, self.checker, self.breaks, self.replay, self.seed = trained, settings, checker, breaks, replay, seed
        self._start = [parameter.detach().clone() for parameter in trained.parameters] if settings.anchor else []

    def before(self, rollouts: Rollouts, moment: Moment) -> None:
        """Nothing: it learns from what has been judged."""

    def learn(self, rollouts: Rollouts, moment: Moment) -> Mapping[str, float]:
        """One step on this update's pairs; without one, on any process, nothing of the verifier changes.

        Raises:
            TrainingError: A gradient is not finite.
        """
        attempts = self.settings.assistant.attempts
        found = find_pairs(rollouts.groups, self.checker, self._broken, attempts=attempts, seed=(self.seed, moment.step))
        told = found.told(self.trained.model.model.device)
        if not told["pairs"]:
            return told
        return told | self._step(self.trained.model.encode(found.groups)[0], int(told["pairs"]), moment.step)

    def _broken(self, group: Group, answer: str, attempt: int) -> str:
        """What the assistant makes of an answer; nothing where that is longer than the verifier can read."""
        text, limit = self.breaks(group, answer, attempt), self.trained.model.longest
        if limit is None:
            return text
        one = replace(group, answers=((Message("assistant", text),),), scores=None)
        return text if len(self.trained.model.encode([one])[0][0].conversations[0]) <= limit else ""

    def _step(self, pairs: Sequence[EncodedGroup], count: int, step: int) -> dict[str, float]:
        """Pairs, replay and anchor as one gradient, and a step along it."""
        trained, totals = self.trained, Counter[str]()
        trained.steps.clear()
        for one in trained.passes(pairs):
            right_P, wrong_P = one.rewards_C.view(-1, 2).unbind(dim=1)
            loss = contrast(right_P, wrong_P, self.settings.loss).sum() / count
            loss.backward()
            gap_P = (right_P - wrong_P).detach()
            ordered = float((gap_P > 0).sum() + 0.5 * (gap_P == 0).sum()) / count
            totals.update({"loss": float(loss.detach()), "gap": float(gap_P.sum()) / count, "accuracy": ordered})
        totals.update({"replay_loss": self._replay(step)} if self.replay else {})
        told = summed({"loss": 0.0, "gap": 0.0, "accuracy": 0.0, **totals}, trained.model.model.device)
        trained.fill_in()
        if self.settings.anchor:
            told["distance"] = self._pull()
        return {**told, "gradient_norm": trained.steps.take()}

    def _replay(self, step: int) -> float:
        """Adds the gradient of the labelled answers; gives their mean loss, this process's part of it."""
        assert self.replay is not None
        groups = [entry.group for entry in self.replay.take(step)]
        total = 0.0
        for one in self.trained.passes(groups):
            labels = [(label, 1 / len(group.labels)) for group in one.groups for label in group.labels]
            labels_C, weight_C = one.rewards_C.new_tensor(labels).unbind(dim=1)
            loss = (weight_C * verdict(one.rewards_C, labels_C, reduction="none")).sum() / self.replay.size
            (self.settings.replay.weight * loss).backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def _pull(self) -> float:
        """Adds the gradient of the anchor, each process its share of the sum; gives the distance from the start."""
        squared = 0.0
        for parameter, start in zip(self.trained.parameters, self._start, strict=True):
            away = parameter - start
            assert parameter.grad is not None
            parameter.grad.add_(away, alpha=self.settings.anchor / n_processes())
            squared += float((away.double() ** 2).sum())
        return squared**0.5

    def state(self) -> Mapping[str, Any]:
        """The verifier's."""
        return self.trained.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.trained.load_state(state)
