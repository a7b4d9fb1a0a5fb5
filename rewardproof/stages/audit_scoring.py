"""An audit's texts and their rewards: changed answers made prompt by prompt, scored in chunks, and kept as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewardproof.artifacts import Progress, silent, writing
from rewardproof.data import Group
from rewardproof.errors import ConfigError, EvaluationError
from rewardproof.evaluation.audit import Case, CaseScores, make_case
from rewardproof.evaluation.audit.variants import Measure
from rewardproof.scoring import ActivationRewardModel, Scorer
from rewardproof.scoring.sources import Judge
from rewardproof.stages.stress_pools import whole_rows

CHUNK = 8
"""Prompts whose answers are made, scored and kept together; memory and what an interruption can lose are bounded by it."""


@dataclass(frozen=True, slots=True)
class Casebook:
    """Prompts whose answers are changed, in order; a case is made when it is asked for.

    Attributes:
        groups: The prompts.
        names: The perturbations.
        measure: A text's size, for controls of the same length.
        seed: Of the perturbations.
    """

    groups: Sequence[Group]
    names: Sequence[str]
    measure: Measure
    seed: int = 0

    def case(self, number: int) -> Case:
        """A prompt's answers and their changed forms."""
        return make_case(number, self.groups[number], self._other(number), self.names, measure=self.measure, seed=self.seed)

    def _other(self, number: int) -> str:
        """The best answer to the next other prompt; empty where there is none."""
        own, total = self.groups[number].prompt_key, len(self.groups)
        following = (self.groups[(number + step) % total] for step in range(1, total))
        other = next((group for group in following if group.prompt_key != own), None)
        return "" if other is None else other.answers[int(np.argmax(other.scores)) if other.scores else 0][-1].content


def check_absolute(scorer: Scorer, spec: str) -> None:
    """Refuse a scorer whose rewards of an answer and of its changed forms cannot be compared.

    Raises:
        ConfigError: It scores an answer by those beside it.
    """
    if isinstance(scorer, ActivationRewardModel) and scorer.relative:
        raise ConfigError(
            f"{spec} asks ranked questions, expected a scorer that judges an answer by itself: an answer and its changed forms are scored "
            "beside different others, so their rewards do not compare. Make it again with activation.question.form=scalar."
        )


def measure_of(scorer: Scorer) -> Measure:
    """How a scorer sizes texts: by its tokens, or by words where it has no tokenizer here."""
    tokenizer = getattr(scorer, "tokenizer", None)
    if tokenizer is None:
        return lambda text: len(text.split())
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def score_cases(scorer: Scorer, book: Casebook, file: Path, *, progress: Progress = silent) -> list[CaseScores]:
    """Rewards of all cases, written to a file as they come; those that an interrupted run wrote there are taken as they are.

    A prompt with a text that is longer than the model can read is left out as a whole: the rows are fewer than the prompts.

    Raises:
        EvaluationError: The file has scores of other cases.
    """
    total = len(book.groups)
    rows = _kept(file, total)
    found = [_read(book.case(number), row["scores"], file) for number, row in enumerate(rows) if _is_of(row, book.groups[number], file)]
    with writing(file), file.open("a") as stream:
        for start in range(len(rows), total, CHUNK):
            cases = [book.case(number) for number in range(start, min(start + CHUNK, total))]
            for case, scores in zip(cases, scored_cases(scorer, cases), strict=True):
                stream.write(json.dumps({"prompt": case.group.prompt_key, "scores": scores}) + "\n")
                found.append(_read(case, scores, file))
            stream.flush()
            progress("scoring", start + len(cases), total)
    return [case for case in found if case is not None]


def scored_cases(scorer: Scorer, cases: Sequence[Case]) -> list[list[tuple[float, ...]] | None]:
    """Rows of each case's groups, all cases in one call; nothing for a case that does not fit."""
    groups = [case.groups() for case in cases]
    fits = [_fits(scorer, some) for some in groups]
    made = iter(scorer.score([group for some, fit in zip(groups, fits, strict=True) if fit for group in some]) if any(fits) else [])
    return [[tuple(next(made)) for _ in some] if fit else None for some, fit in zip(groups, fits, strict=True)]


def _fits(scorer: Scorer, groups: Sequence[Group]) -> bool:
    if not isinstance(scorer, Judge) or scorer.longest is None:
        return True
    return not scorer.encode(groups, overlong="drop")[1]


def _kept(file: Path, total: int) -> list[dict[str, object]]:
    """Rows of whole chunks that an interrupted run wrote, so that the rest is scored in the same company, to the same last bit."""
    rows = whole_rows(file)
    if len(rows) < total and len(rows) % CHUNK:
        rows = rows[: -(len(rows) % CHUNK)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if len(rows) > total:
        raise _of_others(file)
    return rows


def _is_of(row: dict[str, object], group: Group, file: Path) -> bool:
    if row["prompt"] != group.prompt_key:
        raise _of_others(file)
    return True


def _read(case: Case, scores: object, file: Path) -> CaseScores | None:
    if scores is None:
        return None
    assert isinstance(scores, list)
    if [len(row) for row in scores] != [len(group.answers) for group in case.groups()]:
        raise _of_others(file)
    return case.scores(scores)


def _of_others(file: Path) -> EvaluationError:
    return EvaluationError(
        f"{file} holds scores of other answers than those made now, expected the same: the data or the program has changed since. Restore "
        "it, or pass --overwrite to start again."
    )
