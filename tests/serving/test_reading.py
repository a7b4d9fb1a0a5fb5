"""Texts that a template has written become the tokens of the same conversation as messages."""

from __future__ import annotations

from types import ModuleType

import pytest

from rewardproof.data import Group, Message
from rewardproof.data.encoding import encode_group, render
from rewardproof.errors import DataError
from rewardproof.models.checkpoints import READS_KEY
from rewardproof.models.reward_model import RewardModel
from rewardproof.serving.reading import WrittenTexts
from rewardproof.serving.served import Served
from rewardproof.serving.settings import Limits

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


@pytest.mark.parametrize("answer", ["if a <", "see <|", "x <|im_end|", "a\n"])
def test_an_answer_that_ends_like_a_part_of_the_closing_keeps_its_end(tiny: ModuleType, answer: str) -> None:
    tokenizer = tiny.byte_tokenizer()
    wanted = encode_group(Group((Message("user", "Hi there"),), ((Message("assistant", answer),),)), tokenizer)
    (found,) = WrittenTexts(tokenizer).groups([f"{OPEN}{answer}"], None, close=True)
    assert found.conversations == wanted.conversations


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + LLAMA.partition("in messages %}")[2]
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + LLAMA.partition("}}")[2]


@pytest.mark.parametrize("template", ["", LLAMA, NO_SYSTEM, DEFAULT_SYSTEM], ids=["chatml", "with a BOS", "no system", "a default system"])
@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("end", ["<|im_end|>\n", ""], ids=["whole", "cut"])
def test_turns_are_those_that_a_text_was_written_of(tiny: ModuleType, template: str, system: str, turns: int, end: str) -> None:
    tokenizer = tiny.byte_tokenizer(template) if template else tiny.byte_tokenizer()
    if template == LLAMA:
        tokenizer.bos_token = "<bos>"
    before = (Message("system", system),) if system else ()
    said = tuple(Message(role, f"{role} {turn} <|im_start|>") for turn in range(turns) for role in ("user", "assistant"))
    group = Group((*before, *said[:-1]), ((Message("assistant", "Good < day"),),))
    if system and template == NO_SYSTEM:
        return
    text = render(group, group.answers[0], tokenizer).removesuffix("<|im_end|>\n").removeprefix("<bos>") + end
    found = WrittenTexts(tokenizer).conversation(text, 0)
    assert (found.prompt, found.answers) == (group.prompt, group.answers)


def test_a_text_of_another_template_has_no_turns(tiny: ModuleType) -> None:
    texts = WrittenTexts(tiny.byte_tokenizer())
    for text in ("Human: Hi\n\nAssistant: Hello", OPEN.replace("user", "tool") + "Hello"):
        with pytest.raises(DataError, match="Text 3: got a text that the reward model's own chat template does not write"):
            texts.conversation(text, 3)


def test_a_model_of_the_last_query_reads_it_of_written_texts_too(tiny: ModuleType) -> None:
    tokenizer = tiny.byte_tokenizer()
    classifier = tiny.classifier("llama")
    setattr(classifier.config, READS_KEY, "last_query")
    model = RewardModel(classifier, tokenizer)
    served = Served.of("it", model, Limits())
    said = (Message("user", "One"), Message("assistant", "Two"), Message("user", "Three"))
    group = Group(said, ((Message("assistant", "Four"),),))
    (written,) = served.written([render(group, group.answers[0], tokenizer)], None, close=True)
    assert written.conversations == model.encode([group])[0][0].conversations
    assert written.conversations != encode_group(group, tokenizer).conversations


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
