"""Who breaks answers: a program, a chat endpoint, a function of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from rewardproof.data import Group, Message
from rewardproof.data.assistants import Assistant, ChatAssistant, breaking
from rewardproof.data.endpoint import KEY
from rewardproof.data.rules import Rule, checker_of
from rewardproof.errors import ConfigError, EvaluationError

ONE = Group((Message("user", "2 + 2?"),), (), reference="4")
CHECKER = checker_of(Rule(name="numbers"))


def adds_one(conversation: Sequence[Mapping[str, str]], reference: str, answer: str, attempt: int) -> str | None:
    return None if attempt else f"{conversation[0]['content']} {reference} {answer} 5"


def test_the_rules_own_program() -> None:
    breaks = breaking(Assistant(), CHECKER)
    tried = [breaks(ONE, "it is 4", attempt) for attempt in range(3)]
    assert tried == [CHECKER.broken(ONE, "it is 4", attempt) for attempt in range(3)]
    assert [CHECKER.verdict(ONE, text) for text in tried] == [False] * 3


def test_a_function_of_ones_own() -> None:
    breaks = breaking(Assistant(by="tests.data.test_assistants:adds_one"), CHECKER)
    assert breaks(ONE, "so 4", 0) == "2 + 2? 4 so 4 5"
    assert breaks(ONE, "so 4", 1) == ""
    with pytest.raises(ConfigError, match=r"cooper.assistant.by=nowhere:none"):
        breaking(Assistant(by="nowhere:none"), CHECKER)


def test_a_chat_endpoint_is_told_all_three_and_each_try_is_another(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        seen.append(body)
        return 200, json.dumps({"choices": [{"message": {"content": "  it is {5}  "}}]})

    breaks = breaking(Assistant(by=serve(answer), model="m", temperature=0.7), CHECKER)
    assert [breaks(ONE, "{question} is 4", attempt) for attempt in range(2)] == ["it is {5}"] * 2
    assert [one["seed"] for one in seen] == [0, 1]
    assert seen[0]["temperature"] == 0.7
    told = seen[0]["messages"][0]["content"]
    assert all(text in told for text in ("2 + 2?", "[Reference answer]\n4", "{question} is 4"))


def test_an_endpoint_that_gives_nothing_stops_the_run(serve: Callable[..., str]) -> None:
    failing = ChatAssistant(Assistant(by=serve(lambda _: (200, "{}"))), attempts=2, wait=0)
    with pytest.raises(EvaluationError, match=r"gave no rewritten answer: no choices\[0\].message.content"):
        failing(ONE, "4", 0)
    assert failing.endpoint.retries == 1


def test_an_instruction_without_the_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cooper.assistant.instruction without \{answer\}, expected it there"):
        breaking(Assistant(by="http://nowhere", instruction="Break it."), CHECKER)
