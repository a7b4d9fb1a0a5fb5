"""Who makes a right answer wrong: the rule's own program, a language model behind a chat endpoint, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from rewardproof.config import Section, named_function
from rewardproof.data.endpoint import Endpoint
from rewardproof.data.group import Group, as_chat
from rewardproof.data.rules import Checker
from rewardproof.errors import ConfigError

Break = Callable[[Group, str, int], str]
"""Prompt and reference, a right answer, and the number of the try, to the answer made wrong; empty where that failed."""

INSTRUCTION = """Below are a question, its reference answer and a correct solution. Rewrite the solution so that its reasoning goes wrong \
somewhere and its final answer is therefore incorrect. Keep its style, form and length. Reply with the rewritten solution alone, and say \
nothing of its being wrong.

[Question]
{question}

[Reference answer]
{reference}

[Correct solution]
{answer}"""


class Assistant(Section):
    """Who breaks answers that the rule has certified as right."""

    by: str = "program"
    """`program`: the rule's own (`checkable` and `numbers` have one); `http…`: a chat endpoint, its whole path included; or
    `module:function` of your own, given conversation, reference, answer and the number of the try, which gives the broken answer."""
    model: str = ""
    """Its name at the endpoint."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Of the endpoint's model; at 0 every try is the first again."""
    instruction: str = ""
    """What the endpoint is told, with `{question}`, `{reference}` and `{answer}` in it; empty takes the one of `data/assistants.py`."""
    attempts: Annotated[int, Field(ge=1)] = 3
    """Tries to break an answer, after which it is left alone."""


class ChatAssistant:
    """A language model behind a chat endpoint."""

    def __init__(self, settings: Assistant, *, attempts: int = 5, wait: float = 1.0) -> None:
        """Name it; `attempts` and `wait` are the requests' own, for failures that may pass."""
        self.endpoint, self.settings = Endpoint(settings.by, attempts=attempts, wait=wait), settings

    def __call__(self, group: Group, answer: str, attempt: int) -> str:
        """The answer as the model has rewritten it.

        Raises:
            EvaluationError: No request brought a reply.
        """
        question = self.settings.instruction or INSTRUCTION
        for name, text in (("question", group.prompt_text), ("reference", group.reference or ""), ("answer", answer)):
            question = question.replace(f"{{{name}}}", text)
        return self.endpoint.chat(
            self.settings.model,
            question,
            temperature=self.settings.temperature,
            seed=attempt,
            wanted="no rewritten answer",
            advice="Expected a chat completion's reply, because the reward model learns from answers that it breaks. See to the endpoint, "
            "then run again with --resume.",
        ).strip()


def breaking(settings: Assistant, checker: Checker) -> Break:
    """The assistant that the settings name.

    Raises:
        ConfigError: There is no such function, or the instruction leaves the answer out.
    """
    if settings.instruction and "{answer}" not in settings.instruction:
        raise ConfigError(
            "Got cooper.assistant.instruction without {answer}, expected it there: without the answer nothing can be rewritten. Add it, "
            "and {question} and {reference} where they should stand."
        )
    if settings.by == "program":
        return checker.broken
    if settings.by.startswith(("http://", "https://")):
        return ChatAssistant(settings)
    function = named_function(settings.by, key="cooper.assistant.by", purpose="which breaks answers")
    return lambda group, answer, attempt: str(function(as_chat(group.prompt), group.reference, answer, attempt) or "")
