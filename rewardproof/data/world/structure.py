"""Constraints on the shape of an answer: lists, JSON, lines, repetition."""

from __future__ import annotations

import json
import re

from rewardproof.data.world.kind import Kind, nothing, pick, slots
from rewardproof.data.world.text import lines, lower_words, sentences, words

BULLET = re.compile(r"[-*•]\s+\S")
NUMBERED = re.compile(r"(\d+)[.)]\s*\S")
BOLD = re.compile(r"\*\*[^*\n]*[A-Za-z][^*\n]*\*\*")


def bullets(answer: str, n: int) -> float:
    """1 for exactly n bullet lines and nothing else; what other lines and the wrong number cost is shared."""
    return _list_score([BULLET.match(line) is not None for line in lines(answer)], n)


def numbered(answer: str, n: int) -> float:
    """1 for exactly n lines numbered 1 to n and nothing else; graded like `bullets`."""
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
    except ValueError:
        return 0.2 if text.startswith("{") and text.endswith("}") and len(words(text)) > 2 else 0.0
    if not isinstance(value, dict):
        return 0.0
    return 1.0 if set(value) == {first, second} and all(words(str(v)) for v in value.values()) else 0.5


def comma_list(answer: str, n: int) -> float:
    """1 for n items of at most three words between commas, on one line; falling by one half for each item too many or too few."""
    items = [item.strip(" .") for item in answer.strip().split(",")]
    if len(lines(answer)) != 1 or len(items) < 2 or any(not 1 <= len(words(item)) <= 3 for item in items):
        return 0.0
    return max(0.0, 1 - abs(len({item.lower() for item in items}) - n) / 2)


def line_count(answer: str, n: int) -> float:
    """1 for exactly n lines, one half for one too many or too few."""
    count = len(lines(answer))
    return 0.0 if not count else max(0.0, 1 - abs(count - n) / 2)


def one_line(answer: str) -> float:
    """1 if there is no line break."""
    return float(bool(words(answer)) and len(lines(answer)) == 1)


def title(answer: str) -> float:
    """1 if the first line is `Title: …` and text follows on other lines."""
    found = lines(answer)
    return float(len(found) > 1 and re.match(r"\W*title\W*:\W*\w", found[0], re.IGNORECASE) is not None)


def unique_words(answer: str) -> float:
    """1 if no word of four letters or more comes twice in an answer of at least four words; each repeat costs a quarter."""
    found = lower_words(answer)
    long = [word for word in found if len(word) > 3]
    return 0.0 if len(found) < 4 else max(0.0, 1 - (len(long) - len(set(long))) / 4)


def varied_starts(answer: str) -> float:
    """1 if there are two sentences or more and they begin with different words."""
    starts = [lower_words(sentence)[0] for sentence in sentences(answer)]
    return float(len(starts) > 1 and len(set(starts)) == len(starts))


def bold(answer: str) -> float:
    """1 if something, but not everything, is in **bold**."""
    match = BOLD.search(answer)
    return float(match is not None and len(words(match.group())) < len(words(answer)))


def _list_score(flags: list[bool], n: int) -> float:
    """Share of lines that are items, times how near their number is to n."""
    items = sum(flags)
    return 0.0 if not items else items / len(flags) * max(0.0, 1 - abs(items - n) / n)


KINDS = (
    Kind(
        "bullets", "structure",
        ("Answer as a list of {n} bullet points, each starting with '- '.", "Write {n} short bullet points, each on its own line after a '-'."),
        lambda generator, topic: {"n": pick(generator, (2, 3))}, bullets, slots("format start end marks items_only"),
    ),
    Kind(
        "numbered", "structure",
        ("Answer as a numbered list of {n} short items.", "Write a list of {n} short items, numbered 1 to {n}."),
        lambda generator, topic: {"n": pick(generator, (2, 3))}, numbered, slots("format start end marks items_only"),
    ),
    Kind(
        "json_object", "structure",
        ('Answer with JSON: {{"{first}": "...", "{second}": "..."}}', 'Reply only with a JSON object with the keys "{first}" and "{second}".'),
        lambda generator, topic: dict(zip(("first", "second"), pick(generator, (("name", "fact"), ("topic", "note"), ("title", "text"))), strict=True)),
        json_object, slots("format start end case commas quotes marks items length unique"),
    ),
    Kind(
        "comma_list", "structure",
        ("Answer only with {n} words separated by commas.", "List {n} related words on one line, separated by commas."),
        lambda generator, topic: {"n": pick(generator, (3, 4, 5))},
        comma_list, slots("format end marks commas items length quotes avoid brackets start include"),
    ),
    Kind(
        "line_count", "structure",
        ("Write exactly {n} lines.", "Put your answer on {n} separate lines, like a short poem."),
        lambda generator, topic: {"n": pick(generator, (2, 3, 4))}, line_count, slots("format"),
    ),
    Kind(
        "one_line", "structure",
        ("Write one paragraph without line breaks.", "Do not use line breaks or lists."),
        nothing, one_line, slots("format"),
    ),
    Kind(
        "title", "structure",
        ("Begin with a first line 'Title: ...', then write the text below it.", "Give it a title: the first line must begin with 'Title:'."),
        nothing, title, slots("format start"),
    ),
    Kind(
        "unique_words", "structure",
        ("Do not repeat any word of four or more letters.", "Use each longer word only once."),
        nothing, unique_words, slots("unique"),
    ),
    Kind(
        "varied_starts", "structure",
        ("Write two or more sentences that each begin with a different word.", "Use several sentences and start each with a different word."),
        nothing, varied_starts, slots("format length items"), shifted=True,
    ),
    Kind(
        "bold", "structure",
        ("Put one important word in **bold**.", "Mark one word with **two asterisks** on each side."),
        nothing, bold, slots("bold quotes"), shifted=True,
    ),
)
