"""Constraints on the shape of an answer: lists, JSON, lines, repetition."""

from __future__ import annotations

import json
import re

from rewardproof.data.world.kind import Kind, nothing, pick, slots
from rewardproof.data.world.text import lines, lower_words, sentences, words

BULLET = re.compile(r"[-*•]\s+\S")
NUMBERED = re.compile(r"(\d+)[.)]\s*\S")


def any_list(answer: str) -> float:
    """1 for two lines or more that all begin with a number, dash, star or bullet; graded by the share of such lines."""
    flags = [BULLET.match(line) is not None or NUMBERED.match(line) is not None for line in lines(answer)]
    return sum(flags) / len(flags) if sum(flags) >= 2 else 0.0


def numbered(answer: str, n: int) -> float:
    """1 for exactly n lines numbered 1 to n and nothing else; what other lines and a wrong number cost is shared."""
    expected, flags = 1, []
    for line in lines(answer):
        match = NUMBERED.match(line)
        good = match is not None and int(match.group(1)) == expected
        expected += good
        flags.append(good)
    return _list_score(flags, n)


def json_object(answer: str, first: str, second: str) -> float:
    """1 for a JSON object with exactly these keys, one half with others, .2 for braces around something else."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip())
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return 0.2 if text.startswith("{") and text.endswith("}") and len(words(text)) > 2 else 0.0
    if not isinstance(value, dict):
        return 0.0
    return 1.0 if set(value) == {first, second} and all(words(str(v)) for v in value.values()) else 0.5


def several_lines(answer: str, n: int) -> float:
    """1 for n lines or more that are not empty, 0 for one line."""
    return max(0.0, min(1.0, (len(lines(answer)) - 1) / (n - 1)))


def title(answer: str) -> float:
    """1 if the first line is `Title: …` and text follows on other lines."""
    found = lines(answer)
    return float(len(found) > 1 and re.match(r"\W*title\W*:\W*\w", found[0], re.IGNORECASE) is not None)


def unique_words(answer: str) -> float:
    """1 if no word of four letters or more comes twice in an answer of at least four different words; each repeat costs a quarter."""
    found = lower_words(answer)
    long = [word for word in found if len(word) > 3]
    return 0.0 if len(set(found)) < 4 else max(0.0, 1 - (len(long) - len(set(long))) / 4)


def varied_starts(answer: str) -> float:
    """1 if there are two sentences or more and they begin with different words."""
    starts = [lower_words(sentence)[0] for sentence in sentences(answer)]
    return float(len(starts) > 1 and len(set(starts)) == len(starts))


def _list_score(flags: list[bool], n: int) -> float:
    """Share of lines that are items, times how near their number is to n."""
    items = sum(flags)
    return 0.0 if not items else items / len(flags) * max(0.0, 1 - abs(items - n) / n)


KINDS = (
    Kind(
        "any_list",
        "structure",
        ("Make it a numbered list.", "Write a list with numbers or dashes."),
        nothing,
        any_list,
        slots("format start digits"),
    ),
    Kind(
        "numbered",
        "structure",
        ("Answer as a numbered list of {n} short items.", "Write a list of {n} short items, numbered 1 to {n}."),
        lambda generator, topic: {"n": pick(generator, (2, 3))},
        numbered,
        slots("format start digits"),
    ),
    Kind(
        "json_object",
        "structure",
        ('Answer with JSON: {{"{first}": "...", "{second}": "..."}}', 'Fill in this JSON: {{"{first}": "", "{second}": ""}}'),
        lambda generator, topic: dict(
            zip(("first", "second"), pick(generator, (("name", "fact"), ("topic", "note"), ("title", "text"))), strict=True)
        ),
        json_object,
        slots("format start end case commas quotes marks length unique last colon"),
    ),
    Kind(
        "several_lines",
        "structure",
        ("Write at least {n} separate lines.", "Put your answer on {n} or more lines, like a short poem."),
        lambda generator, topic: {"n": pick(generator, (2, 3))},
        several_lines,
        slots("format"),
    ),
    Kind(
        "title",
        "structure",
        (
            "Begin with a first line 'Title: ...', then write the text below it.",
            "Give it a title: the first line must begin with 'Title:'.",
        ),
        nothing,
        title,
        slots("format start"),
    ),
    Kind(
        "unique_words",
        "structure",
        ("Do not repeat any word of four or more letters.", "Use each longer word only once."),
        nothing,
        unique_words,
        slots("unique"),
    ),
    Kind(
        "varied_starts",
        "structure",
        (
            "Write two or more sentences that each begin with a different word.",
            "Use several sentences and start each with a different word.",
        ),
        nothing,
        varied_starts,
        slots("format length"),
        shifted=True,
    ),
)
