"""The question that is put to a language model about answers: its words, the words that reply to it, and both as tokens. Text only.

A question is one user's turn of the model's own chat template, and the reply begins the assistant's. Labelled examples stand before it as
turns of the same form, so that they and the question are read alike.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from rewardproof.config import Section, Strings
from rewardproof.data.encoding import EncodedGroup, encode_text, shared_prefix
from rewardproof.data.group import Group, Message
from rewardproof.data.pairs import Pair
from rewardproof.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["scalar", "ranked"]
TEMPLATES: dict[Form, str] = {
    "scalar": (
        "Prompt:\n{prompt}\n\nResponse:\n{response}\n\nCriterion: {criterion}\n"
        "Does this response meet the specified criterion? Answer with Yes or No."
    ),
    "ranked": (
        "Prompt:\n{prompt}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\nCriterion: {criterion}\n"
        "Which response meets the specified criterion better? Answer with A or B."
    ),
}
OPTIONS: dict[Form, tuple[str, str]] = {"scalar": ("Yes", "No"), "ranked": ("A", "B")}
_FIELDS: dict[Form, set[str]] = {"scalar": {"prompt", "response"}, "ranked": {"prompt", "first", "second"}}


class Question(Section):
    """What a language model is asked about answers."""

    form: Form = "scalar"
    """`scalar` asks of one answer whether it meets the criterion; `ranked` of two which does better, in both orders, so that an answer's
    score depends on those that it stands beside."""
    criterion: str = "The response is correct, helpful and honest, and says no more than it has to."
    """What a good answer is."""
    template: str = ""
    """The question's words, with `{prompt}`, `{criterion}` and `{response}`, or `{first}` and `{second}`; empty is the form's own."""
    options: Strings = ()
    """The two words that reply, the good one (or the first answer's) first; empty is the form's own."""

    @property
    def resolved(self) -> Question:
        """The same with the form's own words written out, so that it stays what it is."""
        return self.model_copy(update={"template": self.template or TEMPLATES[self.form], "options": self.words})

    @property
    def words(self) -> tuple[str, str]:
        """The two words that reply."""
        good, bad = self.options or OPTIONS[self.form]
        return good, bad


class LabelledQuestion(NamedTuple):
    """A question with the reply that is right: 0 for the first option, 1 for the second."""

    text: str
    right: int
    group: Group


def check_question(question: Question) -> None:
    """Refuse a question that cannot be asked.

    Raises:
        ConfigError: The template lacks a field or has an unknown one, or the options are not two words.
    """
    needed, known = _FIELDS[question.form], _FIELDS[question.form] | {"criterion"}
    template = question.template or TEMPLATES[question.form]
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ConfigError(
            f"Bad question.template ({error}), expected fields such as {{prompt}}; write {{{{ for a brace. Correct it."
        ) from error
    if not needed <= found <= known:
        raise ConfigError(
            f"Got a question.template with the fields {', '.join(sorted(found)) or 'none'}, expected {', '.join(sorted(needed))} and, if "
            f"wanted, criterion: a {question.form} question shows what it asks about. Correct it."
        )
    if question.options and (len(question.options) != 2 or question.options[0] == question.options[1]):
        raise ConfigError(
            f"Got question.options={','.join(question.options)}, expected two different words: the reward is one's share of both. Write "
            "question.options=Yes,No, for instance."
        )


def asked(group: Group, places: Sequence[int], question: Question) -> str:
    """The question about one answer of a group, or about two in the order of `places`."""
    texts = [group.answer_texts[place] for place in places]
    answers = {"response": texts[0]} if question.form == "scalar" else {"first": texts[0], "second": texts[1]}
    template = question.template or TEMPLATES[question.form]
    return template.format(prompt=_conversation(group.prompt), criterion=question.criterion, **answers)


def labelled_questions(group: Group, pair: Pair, question: Question) -> list[LabelledQuestion]:
    """Two questions that a preference answers, one for each option: about either answer, or about both in either order."""
    order = [(pair.winner,), (pair.loser,)] if question.form == "scalar" else [(pair.winner, pair.loser), (pair.loser, pair.winner)]
    return [LabelledQuestion(asked(group, places, question), right, group) for right, places in enumerate(order)]


def question_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, *, shots: Sequence[tuple[str, str]] = (), reply: str = ""
) -> tuple[int, ...]:
    """Token ids of a question up to where the reply begins, or to the end of a reply.

    Args:
        text: The question.
        tokenizer: The model's, with a chat template.
        shots: Questions and replies that stand before it.
        reply: The reply, or nothing.
    """
    turns = [turn for asks, says in shots for turn in ({"role": "user", "content": asks}, {"role": "assistant", "content": says})]
    turns.append({"role": "user", "content": text})
    return encode_text(str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)) + reply, tokenizer, raw=False)


def encode_questions(group: Group, tokenizer: PreTrainedTokenizerBase, *, question: Question, index: int = 0) -> EncodedGroup:
    """The questions about a group's answers as conversations: one an answer, or one an ordered pair of two, by first and then second.

    Raises:
        DataError: A ranked question has only one answer to ask about.
    """
    places = list(itertools.permutations(range(len(group.answers)), 1 if question.form == "scalar" else 2))
    if not places:
        raise DataError(
            f"{group.origin or group.id or repr(group.prompt_text[:60])}: got one answer for a ranked question, expected two or more: an "
            "answer is scored beside others. Score pools, or make the scorer with activation.question.form=scalar."
        )
    conversations = tuple(question_tokens(asked(group, entry, question), tokenizer) for entry in places)
    starts = tuple(len(tokens) - 1 for tokens in conversations)
    return EncodedGroup(conversations, shared_prefix(conversations), starts, index)


def option_tokens(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], ...]:
    """For each word the tokens that begin it, written as it is and behind a space; a token that may begin another word is left out.

    Raises:
        ConfigError: Nothing is left for a word.
    """
    firsts = []
    for word in words:
        written = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in (word, f" {word}")]
        firsts.append({int(ids[0]) for ids in written if ids and ids[0] != tokenizer.unk_token_id})
    found = tuple(
        tuple(sorted(own - set().union(*(other for place, other in enumerate(firsts) if place != number))))
        for number, own in enumerate(firsts)
    )
    for word, tokens in zip(words, found, strict=True):
        if not tokens:
            raise ConfigError(
                f"The tokenizer writes {word!r} with no first token of its own, expected one that {' and '.join(map(repr, words))} do not "
                "share: the reply is read from it. Choose other words as question.options."
            )
    return found


def _conversation(messages: Sequence[Message]) -> str:
    """A prompt's text; several turns say whose each is."""
    if len(messages) < 2:
        return "".join(message.content for message in messages)
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)
