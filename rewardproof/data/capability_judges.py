"""Who is asked which of two answers is better at a capability point: a language model behind an endpoint, or a function of the user's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from rewardproof.config import named_function
from rewardproof.data.endpoint import Endpoint
from rewardproof.data.group import Group, as_chat
from rewardproof.data.pairs import Pair

Judge = Callable[[Sequence[Mapping[str, str]], str, str, str], int]
"""Conversation, first answer, second answer and capability point to 1 or 2, the better answer, or 0 where it cannot say."""


def both_ways(judge: Judge, group: Group, answers: tuple[int, int], point: str) -> Pair | Literal["undecided", "inconsistent"]:
    """The better of two answers at a point, by a judge that is asked in both orders and has to say the same."""
    conversation, texts = as_chat(group.prompt), group.answer_texts
    first, second = answers
    straight = judge(conversation, texts[first], texts[second], point)
    swapped = judge(conversation, texts[second], texts[first], point)
    if straight not in (1, 2) or swapped not in (1, 2):
        return "undecided"
    if straight == swapped:
        return "inconsistent"
    return Pair(first, second, None) if straight == 1 else Pair(second, first, None)


def named_judge(name: str) -> Judge:
    """A judge of the user's own, by `module:function`; raises as `named_function`."""
    return named_function(name, key="labels.capabilities", purpose="which is asked for verdicts")


QUESTION = """Two replies to the same conversation follow. Compare them by one criterion and by nothing else: {point}.

[Conversation]
{conversation}

[Reply 1]
{first}

[Reply 2]
{second}

Which reply is better by that criterion? Answer with the digit 1 or 2 alone."""


class ChatJudge:
    """A judge behind a chat endpoint: `POST {"model", "messages", "temperature": 0}`, answered by `choices[0].message.content`."""

    def __init__(self, address: str, model: str = "", *, timeout: float = 180.0, attempts: int = 5, wait: float = 1.0) -> None:
        """Name the endpoint, its whole path included, and the model there; waits double from one attempt to the next."""
        self.endpoint, self.model = Endpoint(address, timeout=timeout, attempts=attempts, wait=wait), model

    @property
    def retries(self) -> int:
        """Requests repeated so far."""
        return self.endpoint.retries

    def __call__(self, conversation: Sequence[Mapping[str, str]], first: str, second: str, point: str) -> int:
        """1 or 2, the better reply, or 0 where the reply names neither or both.

        Raises:
            EvaluationError: No attempt brought a reply; the message has the last one's reason.
        """
        told = "\n".join(f"{message['role']}: {message['content']}" for message in conversation)
        question = QUESTION.format(point=point, conversation=told, first=first, second=second)
        reply = self.endpoint.chat(
            self.model,
            question,
            temperature=0,
            wanted="no verdict",
            advice="Expected a chat completion's reply, because a pair that nobody judged cannot be learned from. See to the "
            "endpoint, then run again with --resume: verdicts already given are kept.",
        )
        named = set(re.findall(r"(?<!\d)[12](?!\d)", reply))
        return int(named.pop()) if len(named) == 1 else 0
