"""Changes after which an answer is no longer the answer: cut, exchanged, refused, its numbers, its statements or its order wrong."""

from __future__ import annotations

import random
import re

from rewardproof.evaluation.audit.passages import CODE, FENCED, WORD, Passage, outside, sentences

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I am not able to answer this request.",
    "I apologize, but I cannot assist with this.",
)
_NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?!\w)")
_LIST_NUMBER = re.compile(r"^[ \t]*$")
_NEGATABLE = re.compile(
    r"\b(is|are|was|were|can|could|will|would|should|must|has|have|had|does|do|did)\b(?!\s+not\b)(?!n['’]t)", re.IGNORECASE
)
_NEGATED = re.compile(
    r"\b(is|are|was|were|could|would|should|must|has|have|had|does|do|did)(?:\s+not|n['’]t)\b|\b(can)(?:not|\s+not|['’]t)\b", re.IGNORECASE
)
SHORTEST = 4
"""Words that an answer has at least for a cut to be one."""


def truncated(passage: Passage, dice: random.Random) -> str | None:
    """The first half of the words, what closes the last of them left out."""
    words = list(WORD.finditer(passage.answer))
    return passage.answer[: words[len(words) // 2 - 1].end()] if len(words) >= SHORTEST else None


def exchanged(passage: Passage, dice: random.Random) -> str | None:
    """What was answered to another prompt."""
    return passage.other if passage.other.strip() else None


def refused(passage: Passage, dice: random.Random) -> str | None:
    """A refusal in place of the answer; not where the answer is one."""
    return None if passage.answer.strip() in REFUSALS else dice.choice(REFUSALS)


def echoed(passage: Passage, dice: random.Random) -> str | None:
    """The prompt in place of the answer."""
    return passage.prompt.strip() or None


def miscounted(passage: Passage, dice: random.Random) -> str:
    """Every number another one of as many digits; numbers that count a list's items stay."""

    def other(found: re.Match[str]) -> str:
        begins_line = _LIST_NUMBER.match(found.string[found.string.rfind("\n", 0, found.start()) + 1 : found.start()])
        if begins_line and found.string[found.end() : found.end() + 1] in {".", ")"}:
            return found.group()
        digits = [character for character in found.group() if character.isdecimal()]
        while True:
            drawn = iter([str(dice.randint(int(place == 0 and len(digits) > 1), 9)) for place in range(len(digits))])
            made = "".join(next(drawn) if character.isdecimal() else character for character in found.group())
            if made != found.group():
                return made

    return outside(passage.answer, CODE, lambda prose: _NUMBER.sub(other, prose))


def negated(passage: Passage, dice: random.Random) -> str:
    """The first statement of every sentence turned round: `is` becomes `is not`, `cannot` becomes `can`."""

    def turn(sentence: str) -> str:
        negative, positive = _NEGATED.search(sentence), _NEGATABLE.search(sentence)
        if negative is not None and (positive is None or negative.start() <= positive.start()):
            return sentence[: negative.start()] + (negative.group(1) or negative.group(2)) + sentence[negative.end() :]
        if positive is None:
            return sentence
        end = positive.end()
        return f"{sentence[:end]}{'not' if positive.group().lower() == 'can' else ' not'}{sentence[end:]}"

    return outside(passage.answer, CODE, lambda prose: "".join(map(turn, sentences(prose))))


def shuffled(passage: Passage, dice: random.Random) -> str:
    """The sentences in another order; what stands between them stays where it is."""

    def prose(part: str) -> str:
        pieces = sentences(part)
        bare = [piece.rstrip() for piece in pieces]
        ends = [piece[len(one) :] for piece, one in zip(pieces, bare, strict=True)]
        if len({one for one in bare if one}) < 2:
            return part
        while (order := dice.sample(bare, len(bare))) == bare:
            pass
        return "".join(one + (end or " ") for one, end in zip(order, ends, strict=True)).rstrip() + ends[-1]

    return outside(passage.answer, FENCED, prose)
