"""Rewards that learn in a policy run: who learns and how, what judges them as they were given, what is saved and what the report says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rewardproof.artifacts import RunDirectory
from rewardproof.config import Strings
from rewardproof.data.assistants import breaking
from rewardproof.data.references import Referenced, with_references
from rewardproof.data.rules import Rule, checker_of
from rewardproof.errors import ConfigError
from rewardproof.evaluation import Evaluation
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.cooper import CooperLearner
from rewardproof.policy.feedback import FeedbackLearner, check_feedback
from rewardproof.policy.learning import Learner, LearningRewards
from rewardproof.policy.meta_learning import MetaLearner, check_meta
from rewardproof.policy.rewards import RewardSource, ScoredAnswers
from rewardproof.policy.trained_reward import RewardLearning, TrainedReward, Turns
from rewardproof.report import Section, Table
from rewardproof.scoring import AsProbability, PolicyFeedbackReward, Scorer
from rewardproof.stages.align_feedback import feedback_results, feedback_sections, following
from rewardproof.training.preparation import Prepared, Sources, prepare

if TYPE_CHECKING:
    from rewardproof.data import Group
    from rewardproof.stages.align import Align

ROWS = 12
"""Updates that the page's table shows, evenly over the run."""
Made = Callable[[str, ScoredAnswers], Learner]


@dataclass(frozen=True, slots=True)
class Learning:
    """The rewards of a run.

    Attributes:
        scorers: Who rewards, by stream; some may change as the run goes on.
        given: Those that change, as they were given: evaluations need one yardstick for the whole run.
        saved: What learns and is a reward model afterwards.
        kind: How they learn; nothing where none does.
        make: Makes the learner of a stream, once the units of the rewards are known.
    """

    scorers: Mapping[str, Scorer]
    given: Mapping[str, Scorer] = field(default_factory=dict)
    saved: Mapping[str, TrainedReward | PolicyFeedbackReward] = field(default_factory=dict)
    kind: type[FeedbackLearner | CooperLearner | MetaLearner] | None = None
    make: Made | None = None

    def source(self, scored: ScoredAnswers) -> RewardSource:
        """Where the loop's rewards come from."""
        if self.make is None:
            return scored
        return LearningRewards(scored, {name: self.make(name, scored) for name in self.given})

    def judges(self) -> dict[str, Scorer]:
        """Who judges an evaluation, by column: scorers as they were given, and those that change also as they are (`followed/…`)."""
        found: dict[str, Scorer] = {}
        for name, scorer in self.scorers.items():
            found[f"proxy/{name}"] = self.given.get(name, scorer)
            if name in self.given:
                found[f"followed/{name}"] = scorer
        return found

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the reward models that have learned beside the policy: `reward`, or `rewards/NUMBER` where they are several."""
        for number, one in enumerate(self.saved.values()):
            one.save(folder / ("reward" if len(self.saved) == 1 else f"rewards/{number}"), dtype=dtype)


def check_learning(config: Align) -> None:
    """Refuse combinations that cannot mean anything.

    Raises:
        ConfigError: Names the keys.
    """
    several = [name for name in ("feedback", "cooper", "metarm") if getattr(config, name) is not None]
    if len(several) > 1:
        raise ConfigError(
            f"Got {' and '.join(several)}, expected one of them: each is a way for the reward model to learn, and the steps of one would "
            "undo the other's. Drop one."
        )
    if config.feedback is not None:
        check_feedback(config.feedback, config.optimise)
    if config.metarm is not None:
        check_meta(config.metarm, config.optimise)
    if config.rule is not None:
        checker_of(config.rule)
    if config.cooper is None:
        return
    if config.rule is None:
        raise ConfigError(
            "Got cooper without rule, expected one: the verifier learns from answers that a rule has certified. Write rule.name=checkable "
            "or numbers, or module:function of your own."
        )
    if config.rule.name not in ("checkable", "numbers") and config.cooper.trains and config.cooper.assistant.by == "program":
        raise ConfigError(
            f"Got rule.name={config.rule.name} with cooper.assistant.by=program, expected an assistant that can break what this rule "
            "certifies: there is no program for it. Name a chat endpoint or module:function of your own."
        )


def learned_from(config: Align) -> Strings:
    """Sources of data that rewards learn from, beside the policy's answers."""
    return (*(config.cooper.replay.data if config.cooper else ()), *(config.metarm.data if config.metarm else ()))


def rewards_that_learn(config: Align, scorers: Mapping[str, Scorer], *, policy_width: int) -> Learning:
    """The rewards of a run, ready to learn where its settings say so.

    Raises:
        ConfigError: A reward that cannot learn in that way.
        DataError: What it learns from cannot be read.
    """
    if config.feedback is not None:
        return _following(config, scorers, policy_width)
    if config.cooper is not None:
        return _cooper(config, scorers)
    if config.metarm is not None:
        return _metarm(config, scorers)
    return Learning(scorers)


def _following(config: Align, scorers: Mapping[str, Scorer], policy_width: int) -> Learning:
    feedback = config.feedback
    assert feedback is not None
    followers = following(scorers, feedback, policy_width=policy_width, seed=config.seed)

    def make(name: str, scored: ScoredAnswers) -> Learner:
        unit = scored.scales[name].std
        return FeedbackLearner(name, followers[name], feedback.learning, answers=config.optimise.answers, unit=unit)

    return Learning(followers, {name: one.as_given for name, one in followers.items()}, followers, FeedbackLearner, make)


def _cooper(config: Align, scorers: Mapping[str, Scorer]) -> Learning:
    settings, rule = config.cooper, config.rule
    assert settings is not None
    assert rule is not None
    checker = checker_of(rule)
    verifiers = _single_models(scorers, "cooper")
    for name, model in verifiers.items():
        if model.reads != "reference":
            raise ConfigError(
                f"Got {name} as reward with `cooper`, expected a verifier, which reads the reference beside the prompt: without it nothing "
                "that it reads tells a broken answer from a right one. Train one: rewardproof train verifier OUT."
            )
    shown: dict[str, Scorer] = {name: AsProbability(one) if settings.score == "probability" else one for name, one in verifiers.items()}
    if not settings.trains:
        return Learning(shown)
    trained = _trained(verifiers, settings, key="cooper")
    given: dict[str, Scorer] = {
        name: AsProbability(one.given) if settings.score == "probability" else one.given for name, one in trained.items()
    }
    breaks, replay = breaking(settings.assistant, checker), settings.replay

    def make(name: str, scored: ScoredAnswers) -> Learner:
        turns = None
        if replay.data:
            sources = Sources(replay.data, (), 0.0, 0.0, replay.read, replay.max_length, reads="reference", rule=rule)
            turns = _turns(sources, verifiers[name], size=replay.groups, seed=config.seed)
        return CooperLearner(trained[name], settings, checker, breaks, turns, seed=config.seed)

    return Learning(shown, given, trained, CooperLearner, make)


def _metarm(config: Align, scorers: Mapping[str, Scorer]) -> Learning:
    settings = config.metarm
    assert settings is not None
    models = _single_models(scorers, "metarm")
    trained = _trained(models, settings, key="metarm")

    def make(name: str, scored: ScoredAnswers) -> Learner:
        sources = Sources(settings.data, (), 0.0, 0.0, settings.read, settings.max_length, reads=models[name].reads)
        turns = _turns(sources, models[name], size=settings.groups, seed=config.seed)
        return MetaLearner(trained[name], settings, turns, answers=config.optimise.answers)

    return Learning(models, {name: one.given for name, one in trained.items()}, trained, MetaLearner, make)


def _turns(sources: Sources, model: RewardModel, *, size: int, seed: int) -> Turns:
    prepared: Prepared = prepare(sources, model.tokenizer)
    return Turns(prepared.train, size=size, seed=seed)


def _trained(models: Mapping[str, RewardModel], settings: RewardLearning, *, key: str) -> dict[str, TrainedReward]:
    return {name: TrainedReward(model, settings, name=name, key=key) for name, model in models.items()}


def _single_models(scorers: Mapping[str, Scorer], key: str) -> dict[str, RewardModel]:
    found: dict[str, RewardModel] = {}
    for name, scorer in scorers.items():
        if not isinstance(scorer, RewardModel):
            raise ConfigError(
                f"Got {name} ({type(scorer).__name__}) as reward with `{key}`, expected a single reward model: its weights are what "
                f"learns, and an ensemble, a program or a server has none to offer. Name a reward model, or drop {key}."
            )
        found[name] = scorer
    return found


def referenced(groups: Sequence[Group], rule: Rule | None) -> Referenced:
    """Prompts with the references that a verifier reads; as they are where the run has no rule."""
    return Referenced(list(groups)) if rule is None else with_references(groups, rule, checker_of(rule))


def learning_results(log: Path, learning: Learning, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """For `report.json`, under the learners' key: where each number came to at last, and the sums of those that are counted."""
    found = _records(log, learning)
    if not found.key:
        return {}
    at_last: dict[str, float] = {}
    sums = dict.fromkeys(found.counts, 0.0)
    for record in found.records:
        for name, value in record.items():
            counted = next((count for count in found.counts if name.split("/")[-1] == count), None)
            if counted is None:
                at_last[name] = value
            else:
                sums[counted] += value
    return {found.key: {"at_last": at_last, **sums, **feedback_results(learning.scorers, evaluations)}}


def learning_sections(directory: RunDirectory, learning: Learning, evaluations: Sequence[Evaluation]) -> list[Section]:
    """What the reward model learned from, update by update, where one did."""
    found = _records(directory.path / "log.jsonl", learning)
    rows = [(step, record) for step, record in zip(found.steps, found.records, strict=True) if len(record) > len(found.counts)]
    if not rows:
        return feedback_sections(directory, evaluations)
    kept = rows[:: -(-len(rows) // ROWS)]
    names = list(dict.fromkeys(name for _, record in kept for name in record))
    cells = tuple((step, *(f"{record[name]:.4g}" if name in record else "–" for name in names)) for step, record in kept)
    columns = ("update", *(name.replace("_", " ") for name in names))
    told = ["What it found at some of the updates; log.jsonl has all of them."]
    if learning.saved:
        told.append("The reward model as it stands at the end lies beside the policy; curves above are by the one that was given.")
    table = Section("What the reward model learned", tuple(told), table=Table(columns, cells))
    return [table, *feedback_sections(directory, evaluations)]


@dataclass(frozen=True, slots=True)
class _Records:
    """The learners' numbers in a log, without their key, an entry an update."""

    key: str = ""
    counts: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    records: tuple[dict[str, float], ...] = ()


def _records(log: Path, learning: Learning) -> _Records:
    if learning.kind is None:
        return _Records()
    prefix = f"{learning.kind.key}/"
    found = [record for record in map(json.loads, log.read_text().splitlines()) if record["phase"] == "optimising"]
    return _Records(
        learning.kind.key,
        learning.kind.counts,
        tuple(record["step"] for record in found),
        tuple({name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)} for record in found),
    )
