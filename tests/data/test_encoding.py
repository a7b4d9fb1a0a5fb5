"""Text to tokens: the template once, BOS and EOS once, the shared prefix on tokens, over-long groups by the rule that was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rewardproof.data import encoding
from rewardproof.data.encoding import (
    PLAIN_TEMPLATE,
    EncodedGroup,
    as_read,
    encode_group,
    encode_groups,
    encode_queries,
    encode_text,
    prepare_tokenizer,
    render,
    shared_prefix,
    with_queries,
)
from rewardproof.data.group import Group, Message
from rewardproof.errors import DataError

BOS, EOS, BAR = 1, 2, 4
SPECIAL = {"<pad>": 0, "<bos>": BOS, "<eos>": EOS, "<unk>": 3, "<bar>": BAR}
TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}{% if message['role'] == 'system' %}{{ 'sys ' }}{% endif %}"
    "{{ '<bar> ' + message['content'] + ' <eos> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<bar> ' }}{% endif %}"
)


def tokenizer(*, adds: str = "<bos> $A", template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Word-level, with a post-processor that writes special tokens, as Llama's does, beside a template that writes them too."""
    words = Tokenizer(models.WordLevel({**SPECIAL, "sys": 5, **{f"w{n}": 10 + n for n in range(60)}}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = TemplateProcessing(single=adds, special_tokens=[("<bos>", BOS), ("<eos>", EOS)])
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    made.chat_template = template
    return made


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, as byte-level tokenizers fall back to on rare characters."""
    vocabulary = {
        "<pad>": 0,
        "<eos>": 1,
        **{symbol: number + 2 for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
    }
    pieces = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<eos>", pad_token="<pad>")
    made.chat_template = "{% for message in messages %}{{ message['content'] + '|' }}{% endfor %}"
    return made


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, of which `a` and `b` side by side become one token."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4, "ab": 5}
    pieces = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<eos>", pad_token="<pad>")


def chat(prompt: str, *answers: str, **others: object) -> Group:
    """A group of one user turn and single-message answers."""
    return Group((Message("user", prompt),), tuple((Message("assistant", answer),) for answer in answers), **others)  # type: ignore[arg-type]


def w(*numbers: int) -> tuple[int, ...]:
    """Ids of the words w0, w1 …"""
    return tuple(10 + number for number in numbers)


def test_a_template_is_applied_once_and_writes_the_only_bos() -> None:
    encoded = encode_group(chat("w1 w2", "w3", "w3 w4"), tokenizer(), index=7)
    opening = (BOS, BAR, *w(1, 2), EOS, BAR)
    assert encoded.conversations == ((*opening, *w(3), EOS), (*opening, *w(3, 4), EOS))
    assert encoded.answer_starts == (6, 6)
    assert encoded.shared == 7, "the answers' own common beginning is shared as well"
    assert encoded.index == 7


def test_a_template_that_writes_bos_twice_gives_one() -> None:
    twice = tokenizer(template="{{ bos_token }} " + TEMPLATE)
    assert encode_group(chat("w1", "w2"), twice) == encode_group(chat("w1", "w2"), tokenizer())


def test_raw_text_gets_what_the_tokenizer_adds_and_one_eos() -> None:
    group = Group((Message("user", "w1 w2 "),), ((Message("assistant", "w3"),), (Message("assistant", "w4 w5"),)), raw=True)
    expected = ((BOS, *w(1, 2, 3), EOS), (BOS, *w(1, 2, 4, 5), EOS))
    for adds in ("<bos> $A", "<bos> $A <eos>"):
        encoded = encode_group(group, tokenizer(adds=adds))
        assert encoded.conversations == expected
        assert encoded.answer_starts == (3, 3), "a tokenizer that ends every text with EOS does not end the prompt"
    without = encode_group(group, tokenizer(adds="$A"))
    assert without.conversations == tuple(tokens[1:] for tokens in expected), "no BOS where the tokenizer adds none"


def test_raw_text_that_ends_with_eos_keeps_one() -> None:
    assert encode_text("w1 <eos>", tokenizer(), raw=True) == (BOS, *w(1), EOS)


def test_raw_text_ignores_the_template_and_needs_no_prompt() -> None:
    group = Group((), ((Message("assistant", "w1 w2"),),), raw=True)
    assert render(group, group.answers[0], tokenizer()) == "w1 w2"
    encoded = encode_group(group, tokenizer())
    assert encoded.conversations == ((BOS, *w(1, 2), EOS),)
    assert encoded.answer_starts == (0,)


def test_answers_of_several_turns_start_where_the_first_one_does() -> None:
    turns = (Message("assistant", "w3"), Message("user", "w4"), Message("assistant", "w5"))
    encoded = encode_group(Group((Message("user", "w1"),), (turns, (Message("assistant", "w9"),))), tokenizer())
    assert encoded.conversations[0] == (BOS, BAR, *w(1), EOS, BAR, *w(3), EOS, BAR, *w(4), EOS, BAR, *w(5), EOS)
    assert encoded.answer_starts == (5, 5)


def test_a_prompt_and_an_answer_that_tokenise_differently_together() -> None:
    group = Group((Message("user", "ca"),), ((Message("assistant", "bc"),), (Message("assistant", "cc"),)), raw=True)
    encoded = encode_group(group, merging_tokenizer())
    assert encoded.conversations == ((4, 5, 4, 1), (4, 2, 4, 4, 1)), "c ab c and c a c c: whole texts, not pieces joined"
    assert encoded.shared == 1
    assert encoded.answer_starts == (1, 2), "the merged token belongs to the answer"


@pytest.mark.parametrize(
    ("conversations", "shared"),
    [
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2), (1, 2)], 1),
        ([(1,), (1, 2)], 0),
        ([(1, 2, 3), (1, 2)], 1),
        ([(5,), (6,)], 0),
        ([(1, 2, 3)], 0),
        ([(1, 2, 3), (1, 2, 3), (1, 9)], 1),
    ],
)
def test_the_shared_prefix_leaves_every_conversation_a_token(conversations: list[tuple[int, ...]], shared: int) -> None:
    assert shared_prefix(conversations) == shared


def test_selecting_answers_finds_the_shared_part_anew() -> None:
    group = EncodedGroup(((1, 2, 3, 4), (1, 9), (1, 2, 3, 5)), 1, (1, 1, 2), 6)
    assert group.n_tokens == 1 + 3 + 1 + 3
    assert group.select([2, 0]) == EncodedGroup(((1, 2, 3, 5), (1, 2, 3, 4)), 3, (2, 1), 6)
    assert group.select([1]) == EncodedGroup(((1, 9),), 0, (1,), 6)


texts = st.lists(st.sampled_from("w1 w2 w3 w4".split()), max_size=6).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(prompt=texts, answers=st.lists(texts, min_size=1, max_size=5), raw=st.booleans())
def test_encoded_groups_are_well_formed(prompt: str, answers: list[str], raw: bool) -> None:
    group = Group((Message("user", prompt + " "),), tuple((Message("assistant", answer),) for answer in answers), raw=raw)
    made = TOKENIZER
    encoded = encode_group(group, made)
    for answer, tokens, start in zip(answers, encoded.conversations, encoded.answer_starts, strict=True):
        assert tokens.count(BOS) == 1
        assert tokens[0] == BOS
        assert tokens[-1] == EOS
        assert made.decode(tokens[start:]).split() == [*answer.split(), "<eos>"]
        assert tokens[: encoded.shared] == encoded.conversations[0][: encoded.shared]
        assert encoded.shared < len(tokens)
    if len(answers) > 1 and all(len(tokens) > encoded.shared + 1 for tokens in encoded.conversations):
        assert len({tokens[encoded.shared] for tokens in encoded.conversations}) > 1, "no longer prefix is shared"


TOKENIZER = tokenizer()

LONG = Group(
    (Message("system", "w50"), Message("user", "w1 w2"), Message("assistant", "w3"), Message("user", "w4 w5 w6 w7")),
    ((Message("assistant", "w8"),), (Message("assistant", "w8 w9 w10"),)),
    origin="prefs.jsonl:12",
)


def lengths(encoded: EncodedGroup) -> list[int]:
    return [len(tokens) for tokens in encoded.conversations]


def test_an_overlong_group_stops_with_its_line() -> None:
    assert lengths(encode_group(LONG, TOKENIZER)) == [21, 23]
    assert encode_groups([LONG], TOKENIZER, max_length=23)[1] == {}
    with pytest.raises(
        DataError, match=r"prefs\.jsonl:12: got a conversation of 23 tokens, expected at most max_length=22; raise max_length, or pass"
    ):
        encode_groups([LONG], TOKENIZER, max_length=22)


def test_overlong_groups_are_dropped_and_counted() -> None:
    kept, counts = encode_groups([LONG, chat("w1", "w2"), LONG], TOKENIZER, max_length=22, overlong="drop")
    assert [group.index for group in kept] == [1]
    assert counts == {"overlong_dropped": 2}


@pytest.mark.parametrize(
    ("max_length", "system_and_turns"),
    [
        (22, [("system", "w50"), ("user", "w4 w5 w6 w7")]),
        (16, [("system", "w50"), ("user", "w4 w5 w6 w7")]),
        (15, [("system", "w50"), ("user", "w5 w6 w7")]),
        (13, [("system", "w50"), ("user", "w7")]),
    ],
)
def test_the_oldest_turns_go_first_then_the_head_of_the_last(max_length: int, system_and_turns: list[tuple[str, str]]) -> None:
    (encoded,), counts = encode_groups([LONG], TOKENIZER, max_length=max_length, overlong="truncate_prompt")
    expected = encode_group(Group(tuple(Message(*turn) for turn in system_and_turns), LONG.answers), TOKENIZER)
    assert encoded == expected, "the system message stays, and all answers have the same shortened prompt"
    assert max(lengths(encoded)) <= max_length
    assert counts == {"overlong_prompt_truncated": 1}


def test_an_answer_that_leaves_no_room_stops() -> None:
    with pytest.raises(DataError, match=r"prefs\.jsonl:12: an answer leaves no room for its prompt within max_length=12 tokens"):
        encode_groups([LONG], TOKENIZER, max_length=12, overlong="truncate_prompt")
    with pytest.raises(DataError, match="an answer leaves no room"):
        encode_groups([Group((), ((Message("assistant", "w1 w2 w3"),),), raw=True)], TOKENIZER, max_length=3, overlong="truncate_prompt")


@pytest.mark.parametrize("max_length", range(12, 30))
@pytest.mark.parametrize("text", ["日本語日本語日本", "🙂🙃🙂🙃🙂🙃", "naïve café über", "x�y�z�x�y�z"])
def test_a_cut_inside_a_character_ends(text: str, max_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter(range(60))

    def counting(*arguments: object, **options: object) -> EncodedGroup:
        assert next(rounds, None) is not None, "truncation goes round in circles"
        return encode_group(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "encode_group", counting)
    made = byte_tokenizer()
    (encoded,), _ = encode_groups([chat(text, "xy", "xyz")], made, max_length=max_length, overlong="truncate_prompt")
    assert max(lengths(encoded)) <= max_length
    prompt = made.decode(encoded.conversations[0][: encoded.shared]).split("|")[0]
    assert text.endswith(prompt), "what is left of the prompt is its own end"


def test_a_pad_token_equal_to_eos_is_replaced() -> None:
    made = tokenizer()
    made.pad_token = made.eos_token
    assert prepare_tokenizer(made) == ["pad token set to '<pad>': the tokenizer had none apart from eos"]
    assert made.pad_token_id == 0


def test_a_pad_token_is_made_where_none_can_be_found() -> None:
    pieces = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    made = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<eos>", unk_token="<eos>", bos_token="<eos>")
    changes = prepare_tokenizer(made)
    assert changes[0] == "pad token set to '<|pad|>': the tokenizer had none apart from eos"
    assert changes[1].startswith("no chat template came with the tokenizer; a plain Human/Assistant template was set")
    assert made.pad_token_id == 2 != made.eos_token_id
    assert made.chat_template == PLAIN_TEMPLATE


def test_a_tokenizer_that_meets_the_contract_is_left_alone() -> None:
    made = tokenizer()
    assert prepare_tokenizer(made) == []
    assert (made.pad_token, made.chat_template) == ("<pad>", TEMPLATE)


def test_the_plain_template_ends_with_eos_and_marks_where_the_answer_starts() -> None:
    made = tokenizer(template=PLAIN_TEMPLATE)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    opening = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert opening == "S\n\nHuman: U\n\nAssistant: "
    whole = made.apply_chat_template([*messages, {"role": "assistant", "content": "A"}], tokenize=False)
    assert whole == opening + "A<eos>"


def test_queries_are_the_users_turns_alone_and_stay_with_the_group(tiny) -> None:
    tokenizer = tiny.word_tokenizer()
    turns = [("system", "w1"), ("user", "w2 w3"), ("assistant", "w4"), ("user", "w5")]
    group = Group(tuple(Message(*turn) for turn in turns), tuple((Message("assistant", f"w{number}"),) for number in (6, 7, 8)))
    assert encode_queries(group, tokenizer) == encode_text("w2 w3 w5", tokenizer, raw=True)
    (entry,) = with_queries([group], encode_groups([group], tokenizer, max_length=99)[0], tokenizer)
    assert entry.queries == encode_queries(group, tokenizer)
    assert entry.select([0, 2]).queries == entry.queries
    assert encode_queries(Group((Message("system", "w9"),), group.answers), tokenizer) == encode_text("w9", tokenizer, raw=True)
    assert encode_queries(Group((), group.answers), tokenizer) == ()


def test_what_reads_the_last_query_is_shown_nothing_else() -> None:
    group = Group(tuple(Message(*turn) for turn in [("user", "a"), ("assistant", "b"), ("user", "c")]), ())
    assert as_read(group, "conversation") == group
    assert as_read(group, "last_query").prompt == (Message("user", "c"),)
    bare = Group((Message("system", "a"),), ())
    assert as_read(bare, "last_query") == bare
