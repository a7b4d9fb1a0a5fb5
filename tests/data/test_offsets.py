"""Characters behind tokens: against decoding every prefix, through templates that trim, in turns that follow, and where none can tell."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from rewardproof.data.encoding import PLAIN_TEMPLATE, encode_group
from rewardproof.data.group import Group, Message
from rewardproof.data.offsets import characters_read, characters_written, words_of
from rewardproof.errors import ModelError
from tests.models.tiny import CHATML, byte_tokenizer

TEXTS = ["the cat sat on the mat", "thé  cät,\n sat 🙂 on", "a 🙂🙂 b", "naïve ünïcode — dash", " two  spaces ", "x"]


def group_of(*turns: str, prompt: str = "say the cat", raw: bool = False) -> Group:
    roles = ("assistant", "user")
    answer = tuple(Message(roles[place % 2], content) for place, content in enumerate(turns))
    return Group(prompt=(Message("user", prompt),) if prompt else (), answers=(answer,), raw=raw)


def read_of(group: Group, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], np.ndarray | None]:
    tokens = list(encode_group(group, tokenizer).conversations[0])
    found = characters_read(group, group.answers[0], tokens, tokenizer)
    return tokens, None if found is None else found.after_N


@pytest.mark.parametrize("template", [CHATML, PLAIN_TEMPLATE, CHATML.replace("}}<|im_end|>", "| trim }}<|im_end|>")])
@pytest.mark.parametrize("text", TEXTS)
def test_what_has_been_read_is_what_the_tokens_so_far_spell(text: str, template: str) -> None:
    tokenizer = byte_tokenizer(template)
    group = group_of(text)
    tokens, read = read_of(group, tokenizer)
    assert read is not None
    assert (np.diff(read) >= 0).all()
    assert (read[0], read[-1]) == (0, len(text))
    whole = str(tokenizer.decode(tokens))
    for place, count in enumerate(read.tolist()):
        now = str(tokenizer.decode(tokens[: place + 1]))
        if now.endswith("\ufffd") or not 0 < count < len(text.rstrip()):
            continue
        assert now.endswith(text[:count].lstrip()), (now, text[:count])
        assert whole.startswith(now)


def test_each_token_of_a_character_of_several_bytes_has_read_all_of_it() -> None:
    tokens, read = read_of(group_of("a🙂b"), byte_tokenizer())
    assert read is not None
    own = read[(read > 0)].tolist()
    assert len(tokens) == len(read)
    assert own[:6] == [1, 2, 2, 2, 2, 3]
    assert set(own[6:]) == {3}


@pytest.mark.parametrize("text", [*TEXTS, "🙂 b 🙂", "🙂"])
@pytest.mark.parametrize("raw", [False, True])
def test_the_tokens_that_have_characters_of_an_answer_spell_it(text: str, raw: bool) -> None:
    """Every byte of its first and last character, and nothing of what stands around it."""
    tokenizer = byte_tokenizer()
    group = group_of(text, raw=raw)
    tokens = list(encode_group(group, tokenizer).conversations[0])
    found = characters_read(group, group.answers[0], tokens, tokenizer)
    assert found is not None
    own = np.flatnonzero(found.before_N < found.after_N)
    assert own.tolist() == list(range(own[0], own[-1] + 1))
    assert str(tokenizer.decode([tokens[place] for place in own])) == text


def test_turns_that_follow_are_read_one_after_the_other() -> None:
    group = group_of("the cat", "why the mat", "sat  ")
    tokenizer = byte_tokenizer()
    tokens, read = read_of(group, tokenizer)
    (text,) = group.answer_texts
    assert read is not None
    assert set(read.tolist()) >= {0, len("the cat"), len("the cat\nwhy the mat"), len(text)}
    inside = next(place for place, count in enumerate(read.tolist()) if count == len("the cat\nwhy"))
    assert str(tokenizer.decode(tokens[: inside + 1])).endswith("<|im_start|>user\nwhy")


def test_raw_text_and_an_answer_without_a_prompt() -> None:
    tokenizer = byte_tokenizer()
    for prompt in ("say ", ""):
        tokens, read = read_of(group_of("the cat", prompt=prompt, raw=True), tokenizer)
        assert read is not None
        assert tokens[-1] == tokenizer.eos_token_id
        assert (read[-1], read[-2]) == (7, 7), "the end that is added to raw text has read all of it"
        assert (read == 0).sum() == len(tokenizer(prompt)["input_ids"])


def test_a_second_bos_that_the_encoding_leaves_out_is_left_out() -> None:
    tokenizer = byte_tokenizer("<bos><bos>" + CHATML)
    tokenizer.bos_token = "<bos>"
    tokens, read = read_of(group_of("the cat"), tokenizer)
    assert read is not None
    assert tokens[1] != tokenizer.bos_token_id
    assert len(read) == len(tokens)
    assert str(tokenizer.decode(tokens[: int(np.searchsorted(read, 3)) + 1])).endswith("assistant\nthe")


@pytest.mark.parametrize("change", ["{{ m['content'] | upper }}", "{{ m['content'] | replace('cat', 'dog') }}", "{{ m['role'] }}"])
def test_an_answer_that_its_template_rewrites_cannot_be_followed(change: str) -> None:
    _, read = read_of(group_of("the cat"), byte_tokenizer(CHATML.replace("{{ m['content'] }}", change)))
    assert read is None


class Slow(PreTrainedTokenizer):
    """Words, one by one, in Python."""

    vocabulary = ("<unk>", "the", "cat")

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def get_vocab(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.vocabulary)}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self.vocabulary[index]


def test_a_tokenizer_that_does_not_tell_is_refused() -> None:
    slow = Slow(unk_token="<unk>", chat_template=CHATML)
    group = group_of("the cat")
    with pytest.raises(ModelError, match="Got a Slow, expected a fast tokenizer: scores of single tokens"):
        characters_read(group, group.answers[0], encode_group(group, slow).conversations[0], slow)


@pytest.mark.parametrize("text", [*TEXTS, "", "   ", "\n the cat \n"])
@pytest.mark.parametrize("seed", range(3))
def test_what_has_been_written_is_what_every_prefix_decodes_to(text: str, seed: int) -> None:
    """Also where the tokens are not those that the text would be cut into, as a sampled answer's may be."""
    tokenizer, dice = byte_tokenizer(), np.random.default_rng(seed)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    letters = tokenizer.convert_tokens_to_ids(["t", "h", "e", "Ġ", "c", "<bos>"])
    ids[1:1] = [letters[place] for place in dice.integers(6, size=4)] if seed and ids else []
    written, stripped = characters_written(ids, tokenizer)
    whole = str(tokenizer.decode(ids, skip_special_tokens=True))
    assert stripped == whole.strip()
    assert len(written) == len(ids)
    leading = len(whole) - len(whole.lstrip()) if stripped else 0
    for place in range(len(ids)):
        now = str(tokenizer.decode(ids[: place + 1], skip_special_tokens=True)).rstrip("\ufffd")
        expected = len(stripped) if place == len(ids) - 1 else min(max(len(now) - leading, 0), len(stripped))
        assert written[place] == expected


def test_bytes_that_never_become_a_character_count_at_the_last_token() -> None:
    tokenizer = byte_tokenizer()
    broken = [*tokenizer("a🙂", add_special_tokens=False)["input_ids"]][:-1]
    written, text = characters_written(broken, tokenizer)
    assert text == "a\ufffd"
    assert written.tolist() == [1] * (len(broken) - 1) + [2]


def test_words_end_where_whitespace_ends() -> None:
    text = " the cat  sat"
    ends = np.array([0, 1, 2, 4, 5, 8, 9, 10, 13])
    assert words_of(text, ends).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2]


def test_word_level_tokenizers_too(tiny: ModuleType, tmp_path: Path) -> None:
    tokenizer = tiny.word_tokenizer()
    group = Group(prompt=(Message("user", "w1 w2"),), answers=((Message("assistant", "w3  w44 w5"),),))
    tokens = encode_group(group, tokenizer).conversations[0]
    read = characters_read(group, group.answers[0], tokens, tokenizer)
    assert read is not None
    assert read.after_N.tolist() == [0, 0, 0, 0, 0, 2, 7, 10, 10]
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"] == "WordLevel"
