"""Texts that a template has written become the tokens of the same conversation as messages."""

from __future__ import annotations

from types import ModuleType

import pytest

from rewardproof.data import Group, Message
from rewardproof.data.encoding import encode_group
from rewardproof.errors import DataError
from rewardproof.serving.reading import WrittenTexts

LLAMA = (
    "{{ '<bos>' }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPEN = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", ["", LLAMA], ids=["chatml", "with a BOS"])
@pytest.mark.parametrize("end", ["<|im_end|>\n", "<|im_end|>", "", "<|im_end|>\n<pad><pad>"], ids=["whole", "eos", "cut", "padded"])
@pytest.mark.parametrize("bos", ["", "<bos>"], ids=["stripped", "kept"])
def test_ends_are_put_back(tiny: ModuleType, template: str, end: str, bos: str) -> None:
    tokenizer = tiny.byte_tokenizer(template) if template else tiny.byte_tokenizer()
    if template:
        tokenizer.bos_token = "<bos>"
    group = Group((Message("user", "Hi there"),), ((Message("assistant", "Good day"),),))
    wanted = encode_group(group, tokenizer)
    text = (bos if template else "") + f"{OPEN}Good day{end}"
    (found,) = WrittenTexts(tokenizer).groups([text], [text.partition("Good")[0]], close=True)
    assert found.conversations == wanted.conversations
    assert found.answer_starts == wanted.answer_starts


def test_without_closing_the_text_ends_where_it_ends(tiny: ModuleType) -> None:
    tokenizer = tiny.byte_tokenizer()
    texts = WrittenTexts(tokenizer)
    (found,) = texts.groups([f"{OPEN}Good"], None, close=False)
    assert tokenizer.decode(found.conversations[0]) == f"{OPEN}Good"
    assert (texts.closing, found.answer_starts) == ("<|im_end|>\n", (0,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "Text 1: got an empty text, expected a prompt and an answer"),
        ("a \ud800", r"got invalid text .*at character 2.*UTF-8 can hold"),
    ],
    ids=["empty", "surrogate"],
)
def test_texts_that_cannot_be_read(tiny: ModuleType, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        WrittenTexts(tiny.byte_tokenizer()).groups(["fine", text], None, close=True)


@pytest.mark.parametrize("row", [[], [3, -1], [3, 10**9]])
def test_ids_are_of_the_vocabulary(tiny: ModuleType, row: list[int]) -> None:
    with pytest.raises(DataError, match=r"Text 0: got \d token ids, expected at least one, each from 0 to \d+"):
        WrittenTexts(tiny.byte_tokenizer()).of_ids([row])
