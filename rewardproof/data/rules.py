"""Rules: programs that certify answers as right or wrong. Precise but incomplete: what a rule cannot tell is `None`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from rewardproof.config import Section, named_function, nearest_hint
from rewardproof.data.formats.gsm8k import MARK
from rewardproof.data.group import Group, as_chat
from rewardproof.data.world.breaking import broken
from rewardproof.data.world.constraints import KINDS
from rewardproof.data.world.gold import gold_score
from rewardproof.errors import ConfigError, DataError

NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?")
BEFORE, AFTER = re.compile(r"(?:[/^×÷_A-Za-z]|\d:|(?<!\*)\*)$"), re.compile(r"[/^×÷]|:\d|e[-+]?\d|\*(?!\*)")
"""What makes a number that it touches a part of something else: 3/4, 2^8, 7:30, x2, 1e3."""
STEPS = (1, -1, 2, -2, 5, -5, 10, -10)
"""What a broken number is off by, in an order that prompt and answer decide: one that never changes would be learned instead."""


class Rule(Section):
    """A program that certifies answers, and the reference that is read beside them."""

    name: str = "checkable"
    """`checkable`: the embedded world's gold program; `numbers`: the answer's last number against the reference's, as in GSM8K; or
    `module:function` of your own, given conversation, reference (or an empty text) and answer, which says true, false, or null where it
    cannot tell."""
    correct: Annotated[float, Field(gt=0, le=1)] = 0.9
    """`checkable`: gold from which on an answer is right."""
    wrong: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """`checkable`: gold up to which it is wrong; what lies between is not told."""
    reference: Literal["answer", "text"] = "answer"
    """What is read as the reference: `answer`, the data's own or else the best of its answers that the rule calls right; `text`, what the
    rule asks for in words (`checkable`)."""


class Checker(Protocol):
    """A rule at work."""

    def verdict(self, group: Group, answer: str) -> bool | None:
        """Whether an answer to the group's prompt is right; `None` where the rule cannot tell."""
        ...

    def text(self, group: Group) -> str | None:
        """What it asks for, in words; `None` where it has none."""
        ...

    def broken(self, group: Group, answer: str, attempt: int) -> str:
        """A right answer made wrong without a language model; empty where that failed."""
        ...


class CheckableWorld:
    """The embedded world's gold, cut at two places."""

    def __init__(self, rule: Rule) -> None:
        """Take the places where gold is cut."""
        self.rule = rule

    def verdict(self, group: Group, answer: str) -> bool | None:
        """By the gold of the answer.

        Raises:
            DataError: The group is not of this world.
        """
        constraints, topic = _asked(group)
        gold = gold_score(answer, constraints, topic, group.prompt_text)
        return True if gold >= self.rule.correct else False if gold <= self.rule.wrong else None

    def text(self, group: Group) -> str | None:
        """Topic and constraints, each in its first wording."""
        constraints, topic = _asked(group)
        asked = [KINDS[one["kind"]].phrasings[0].format(**(one["args"] or {})) for one in constraints]
        return " ".join([f"About {topic}.", *asked])

    def broken(self, group: Group, answer: str, attempt: int) -> str:
        """By small edits at places that prompt and try decide."""
        constraints, topic = _asked(group)
        seed = (attempt, int(group.prompt_key[:8], 16))
        return broken(answer, constraints, topic, group.prompt_text, wrong=self.rule.wrong, seed=seed)


class FinalNumbers:
    """The last number of an answer against that of the reference; behind `####` where the answer has that mark."""

    def verdict(self, group: Group, answer: str) -> bool | None:
        """Whether the numbers are equal; not told where one of them has none."""
        found, wanted = final_number(answer), final_number(group.reference or "")
        return None if found is None or wanted is None else found == wanted

    def text(self, group: Group) -> str | None:
        """Nothing."""
        return None

    def broken(self, group: Group, answer: str, attempt: int) -> str:
        """The last number replaced, wherever it stands, by one that is off by a little: of the same sign, written in the same way."""
        right = final_number(answer)
        if right is None:
            return ""
        steps = random.Random(f"{group.prompt_key} {answer}").sample(STEPS, len(STEPS))
        off = steps[attempt % len(STEPS)] * (1 + attempt // len(STEPS))
        off = -off if right and right * (right + off) <= 0 else off

        def changed(found: re.Match[str]) -> str:
            number = _as_number(found.group())
            return found.group() if number != right else f"{number + off:{',' if ',' in found.group() else ''}f}"

        return NUMBER.sub(changed, answer)


class OwnRule:
    """A function of the user's own."""

    def __init__(self, name: str) -> None:
        """Find it; raises as `named_function`."""
        self.name = name
        self.function: Callable[..., Any] = named_function(name, key="rule.name", purpose="which is asked whether answers are right")

    def verdict(self, group: Group, answer: str) -> bool | None:
        """What the function says.

        Raises:
            DataError: Neither true, false nor none.
        """
        found = self.function(as_chat(group.prompt), group.reference or "", answer)
        if found is None or isinstance(found, bool):
            return found
        raise DataError(
            f"rule.name={self.name} said {found!r} of an answer, expected True, False, or None where it cannot tell: a certificate is not "
            "guessed from another value. Correct the function."
        )

    def text(self, group: Group) -> str | None:
        """Nothing."""
        return None

    def broken(self, group: Group, answer: str, attempt: int) -> str:
        """Refused: only an assistant can break what a rule of one's own certifies."""
        raise ConfigError(
            f"rule.name={self.name} with no assistant, expected one that breaks answers: of a rule of your own nothing is known by which a "
            "program could. Name an endpoint, or module:function of your own, as assistant."
        )


RULES: dict[str, Callable[[Rule], Checker]] = {"checkable": CheckableWorld, "numbers": lambda _: FinalNumbers()}


def checker_of(rule: Rule) -> Checker:
    """The rule of that name, or one of the user's own.

    Raises:
        ConfigError: There is none, its cuts leave no room between them, or it has no text and that is asked for.
    """
    if rule.wrong >= rule.correct:
        raise ConfigError(
            f"Got rule.wrong={rule.wrong:g} with rule.correct={rule.correct:g}, expected it below: no answer may be right and wrong at "
            "once. Correct one of them."
        )
    if rule.reference == "text" and rule.name != "checkable":
        raise ConfigError(
            f"Got rule.reference=text with rule.name={rule.name}, expected rule.name=checkable: no other rule can say in words what it "
            "asks for. Write rule.reference=answer."
        )
    if rule.name in RULES:
        return RULES[rule.name](rule)
    if ":" not in rule.name:
        raise ConfigError(
            f"Unknown rule.name={rule.name!r}{nearest_hint(rule.name, RULES)}; expected one of {', '.join(RULES)}, or module:function of "
            "your own. Correct it."
        )
    return OwnRule(rule.name)


def final_number(text: str) -> Decimal | None:
    """The first number behind a text's last `####`, or its last number where it has no such mark; commas for thousands are left out.

    A number that is a part of a fraction, a power or a word tells nothing.

    Example:
        >>> final_number("4 boxes of 250 are 1,000 pens. #### 1,000"), final_number("no idea"), final_number("It is 3/4")
        (Decimal('1000'), None, None)
    """
    after = text.rpartition(MARK)[2]
    found = list(NUMBER.finditer(after))
    if not found:
        return None
    chosen = found[0 if MARK in text else -1]
    within = BEFORE.search(after[: chosen.start()]) or AFTER.match(after, chosen.end())
    return None if within else _as_number(chosen.group())


def _as_number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def _asked(group: Group) -> tuple[Any, str]:
    if "constraints" not in group.meta or "topic" not in group.meta:
        raise DataError(
            f"{group.origin or group.id}: got a prompt without 'constraints' and 'topic' in its meta, expected one of embedded:checkable: "
            "rule.name=checkable judges by them. Name another rule (numbers, or module:function), or other data."
        )
    return group.meta["constraints"], group.meta["topic"]
