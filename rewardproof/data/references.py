"""What a rule makes of groups: each gets the reference that is read beside its answers, and answers their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rewardproof.data.group import Group
from rewardproof.data.rules import Checker, Rule


@dataclass(frozen=True, slots=True)
class Referenced:
    """Groups with their references, and how many of what there was."""

    groups: list[Group]
    counts: Counter[str] = field(default_factory=Counter)


def with_references(groups: Iterable[Group], rule: Rule, checker: Checker) -> Referenced:
    """Give every group its reference; those without one are left out and counted as `without_reference`.

    Args:
        groups: With answers and, where there are several right ones, scores that say which is best.
        rule: What to take as the reference.
        checker: The rule at work.
    """
    found = Referenced([])
    for group in groups:
        reference = checker.text(group) if rule.reference == "text" else group.reference or _best_right(group, checker)
        if reference:
            found.groups.append(replace(group, reference=reference))
        else:
            found.counts["without_reference"] += 1
    return found


def labelled(groups: Iterable[Group], checker: Checker) -> Referenced:
    """Answers with 1 where the rule certifies them as right and 0 where as wrong; those that it cannot tell are left out and counted.

    An answer that is the reference itself is left out as well: a copy of what is read beside it says nothing of right and wrong.
    """
    found = Referenced([])
    for group in groups:
        verdicts = [None if text == group.reference else checker.verdict(group, text) for text in group.answer_texts]
        copies = sum(text == group.reference for text in group.answer_texts)
        told = [place for place, verdict in enumerate(verdicts) if verdict is not None]
        found.counts["answers_that_are_the_reference"] += copies
        found.counts["answers_not_told"] += len(verdicts) - len(told) - copies
        found.counts["answers_right"] += sum(verdicts[place] is True for place in told)
        found.counts["answers_wrong"] += sum(verdicts[place] is False for place in told)
        if told:
            answers, scores = tuple(group.answers[place] for place in told), tuple(float(bool(verdicts[place])) for place in told)
            found.groups.append(replace(group, answers=answers, scores=scores, margin=None))
        else:
            found.counts["groups_not_told"] += 1
    return found


def _best_right(group: Group, checker: Checker) -> str:
    """The best of the group's answers that the rule calls right, the first where nobody scored them; empty where there is none."""
    scores = group.scores or (0.0,) * len(group.answers)
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return next((group.answer_texts[place] for place in order if checker.verdict(group, group.answer_texts[place])), "")
