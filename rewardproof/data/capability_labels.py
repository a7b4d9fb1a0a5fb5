"""What an expert by capability learns from: the category of a prompt, and which answer is the better one at each capability point.

They are the embedded world's own, columns of the data, or the verdicts of a language model that is asked twice, the answers exchanged, and
is believed where it says the same both times.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from rewardproof.artifacts import Progress, silent, writing
from rewardproof.config import Section, Strings
from rewardproof.data.capability_judges import ChatJudge, Judge, both_ways, named_judge
from rewardproof.data.group import Group
from rewardproof.data.pairs import Pair, ordered_pairs
from rewardproof.errors import ConfigError, DataError

CHECKABLE = "embedded:checkable"


class Labels(Section):
    """Where the category of a prompt and the capabilities of its answers come from."""

    category: str = "category"
    """Column that holds a prompt's category: the one that every format shares, or any other."""
    capabilities: str = CHECKABLE
    """Who says which answer is better at a point: `embedded:checkable`, that world's program; a column, whose value gives points by name
    one score an answer (null where nobody judged) or the index of the best answer; `http://…` or `https://…`, a chat endpoint; or
    `module:function`, which is asked as the endpoint is."""
    ranks: bool = False
    """Numbers in that column are ranks, 1 the best, instead of scores."""
    points: dict[str, Strings] = Field(default_factory=dict)
    """Capability points by category; where left out, those that the data has. Whoever is asked has to be told."""
    unlabelled: Literal["fail", "drop", "route"] = "fail"
    """Training prompts without a category: stop, leave them out, or give them the one that the trained router chooses."""
    judge_model: str = ""
    """Name of the model at the endpoint."""
    judge_requests: Annotated[int, Field(ge=1)] = 8
    """Requests to the endpoint at a time."""


class Points(NamedTuple):
    """The pairs of one group by capability point, and what is to be reported of them: ties, questions, verdicts that contradict."""

    pairs: Mapping[str, tuple[Pair, ...]]
    counts: Mapping[str, int]


def category_of(group: Group, column: str) -> str:
    """The category of a group's prompt; empty where it has none. In the embedded world it is the family of the first constraint."""
    value = group.category if column == "category" else group.meta.get(column)
    return "" if value is None else str(value)


def point_pairs(
    groups: Sequence[Group],
    categories: Sequence[str],
    settings: Labels,
    *,
    limit: int = 0,
    kept: Path | None = None,
    progress: Progress = silent,
) -> tuple[list[Points], Counter[str]]:
    """Which answers are better at the capability points of their prompt's category.

    Args:
        groups: The groups.
        categories: Category of each.
        settings: Who says so.
        limit: At most so many pairs a group and point, chosen by a hash of the texts; 0 is all.
        kept: File of verdicts already given, appended to; an interrupted run does not ask for them again.
        progress: Receives how far whoever is asked has come.

    Returns:
        One entry a group; and what is to be reported: pairs left out by reason, questions asked, requests repeated.

    Raises:
        DataError: A group lacks what the settings name, or it is no judgement of its answers.
        ConfigError: There is nobody to ask, or no points to ask about.
        EvaluationError: The endpoint gives no verdicts.
    """
    source = settings.capabilities
    if ":" in source and source != CHECKABLE:
        return _asked(groups, categories, settings, limit=limit, kept=kept, progress=progress)
    found: list[Points] = []
    counts: Counter[str] = Counter()
    for group, category in zip(groups, categories, strict=True):
        by_point = program_scores(group, category) if source == CHECKABLE else column_scores(group, source, ranks=settings.ranks)
        if settings.points:
            wanted = settings.points.get(category) or ()
            counts["other_points"] += sum(point not in wanted for point in by_point)
            by_point = {point: scores for point, scores in by_point.items() if point in wanted}
        pairs = {point: judged_pairs(group, scores, limit=limit) for point, scores in by_point.items()}
        tied = sum(map(_ties, by_point.values()))
        counts["tied_pairs"] += tied
        found.append(Points({point: some for point, some in pairs.items() if some}, {"tied_pairs": tied}))
    return found, +counts


def program_scores(group: Group, category: str) -> dict[str, tuple[float, ...]]:
    """How far each answer satisfies the constraints of one family that its prompt of the embedded world makes, by their kind.

    Raises:
        DataError: The group is not of that world.
    """
    from rewardproof.data.world import constraint_scores

    if "constraints" not in group.meta:
        raise DataError(
            f"{group.origin or group.id}: got a prompt without constraints, expected one of the embedded world, whose program "
            "labels.capabilities=embedded:checkable asks. Name a column, an endpoint or module:function that knows the capabilities of "
            "this data."
        )
    own = [constraint for constraint in group.meta["constraints"] if constraint["family"] == category]
    satisfied = [constraint_scores(text, own) for text in group.answer_texts]
    kinds = [constraint["kind"] for constraint in own]
    return {
        kind: tuple(
            sum(one for one, name in zip(row, kinds, strict=True) if name == kind) / kinds.count(kind) for row in satisfied
        )
        for kind in dict.fromkeys(kinds)
    }  # fmt: skip


def column_scores(group: Group, column: str, *, ranks: bool = False) -> dict[str, tuple[float | None, ...]]:
    """Scores of a group's answers by point, higher is better, out of a column; empty where the row has none.

    Raises:
        DataError: The column holds something else.
    """
    found: dict[str, tuple[float | None, ...]] = {}
    value = group.meta.get(column)
    if value is not None and not isinstance(value, Mapping):
        raise _no_judgement(group, column, value)
    for point, given in (value or {}).items():
        if given is None:
            continue
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(group.answers):
            found[point] = tuple(float(place == given) for place in range(len(group.answers)))
        elif isinstance(given, (list, tuple)) and len(given) == len(group.answers) and all(map(_is_number, given)):
            found[point] = tuple(None if one is None else -float(one) if ranks else float(one) for one in given)
        else:
            raise _no_judgement(group, f"{column}.{point}", given)
    return found


def _is_number(value: object) -> bool:
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    return value is None or finite


def _no_judgement(group: Group, what: str, got: object) -> DataError:
    return DataError(
        f"{group.origin or group.id}: {what} is {got!r:.80}, expected points by name, each with one number or null an answer (here "
        f"{len(group.answers)}), or the index of the best answer: pairs are made of them. Correct the row, or name another column."
    )


def judged_pairs(group: Group, scores: Sequence[float | None], *, limit: int = 0) -> tuple[Pair, ...]:
    """Every pair of judged answers whose scores differ, as `ordered_pairs`."""
    judged = [place for place, score in enumerate(scores) if score is not None]
    part = replace(
        group,
        answers=tuple(group.answers[place] for place in judged),
        scores=tuple(score for score in scores if score is not None),
        margin=None,
    )
    return tuple(
        pair._replace(winner=judged[pair.winner], loser=judged[pair.loser]) for pair in ordered_pairs(part, limit=limit)
    )  # fmt: skip


def _ties(scores: Sequence[float | None]) -> int:
    times = Counter(score for score in scores if score is not None).values()
    return sum(count * (count - 1) // 2 for count in times)


def _asked(
    groups: Sequence[Group], categories: Sequence[str], settings: Labels, *, limit: int, kept: Path | None, progress: Progress
) -> tuple[list[Points], Counter[str]]:
    if not settings.points:
        raise ConfigError(
            f"labels.capabilities={settings.capabilities} without labels.points, expected the capability points of every category: whoever "
            "is asked has to be told what about. Write for instance labels.points={chat: [empathy, humour]}."
        )
    source = settings.capabilities
    judge = ChatJudge(source, settings.judge_model) if source.startswith(("http://", "https://")) else named_judge(source)
    asker = _Asker(judge, settings, limit, _known(kept))
    found: list[Points] = []
    workers = settings.judge_requests if isinstance(judge, ChatJudge) else 1  # the user's own function may not bear several threads
    with ThreadPoolExecutor(workers) as pool:
        for key, points in pool.map(asker.ask, groups, categories):
            if kept is not None and key not in asker.known:
                asker.known[key] = points
                _keep(kept, key, points)
            found.append(points)
            progress("judging capabilities", len(found), len(groups))
    counts = Counter({"retries": judge.retries} if isinstance(judge, ChatJudge) else {})
    for points in found:
        counts.update(points.counts)
    return found, +counts


class _Asker(NamedTuple):
    """Puts the questions about one group after the other."""

    judge: Judge
    settings: Labels
    limit: int
    known: dict[str, Points]

    def ask(self, group: Group, category: str) -> tuple[str, Points]:
        points = self.settings.points.get(category, ())
        pairs = sorted({tuple(sorted(pair[:2])) for pair in ordered_pairs(group, limit=self.limit)})
        asked = [self.settings.capabilities, self.settings.judge_model, group.prompt_text, group.answer_texts, points, pairs]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
        if key in self.known:
            return key, self.known[key]
        found: dict[str, list[Pair]] = {}
        counts: Counter[str] = Counter()
        for point in points:
            for first, second in pairs:
                verdict = both_ways(self.judge, group, (first, second), point)
                counts["questions"] += 1
                if isinstance(verdict, str):
                    counts[verdict] += 1
                else:
                    found.setdefault(point, []).append(verdict)
        return key, Points({point: tuple(some) for point, some in found.items()}, counts)


def _known(file: Path | None) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for line in file.read_text().splitlines() if file is not None and file.exists() else []:
        with suppress(ValueError):  # a last line that was cut off
            row = json.loads(line)
            pairs = {point: tuple(Pair(winner, loser, None) for winner, loser in some) for point, some in row["pairs"].items()}
            found[row["key"]] = Points(pairs, row["counts"])
    return found


def _keep(file: Path, key: str, points: Points) -> None:
    row = {"key": key, "pairs": {point: [pair[:2] for pair in some] for point, some in points.pairs.items()}, "counts": points.counts}
    file.parent.mkdir(parents=True, exist_ok=True)
    with writing(file), file.open("a") as stream:
        stream.write("\n" + json.dumps(row))
