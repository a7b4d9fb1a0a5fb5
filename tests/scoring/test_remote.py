from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from rewardproof.data.group import Group, Message
from rewardproof.errors import EvaluationError
from rewardproof.scoring import RemoteScorer

GROUPS = [
    Group(prompt=(Message("user", f"p{n}"),), answers=tuple((Message("assistant", "a" * k),) for k in range(1, n + 2)), id=str(n))
    for n in range(5)
]
Answer = Callable[[dict], tuple[int, str]]


def lengths(body: dict) -> tuple[int, str]:
    rows = [[len(answer[0]["content"]) for answer in group["answers"]] for group in body["groups"]]
    return 200, json.dumps({"rewards": rows})


def test_groups_go_out_in_batches_and_scores_come_back_in_order(serve) -> None:
    scorer = RemoteScorer(serve(lengths), batch=2)
    assert scorer.score(GROUPS) == [tuple(float(k) for k in range(1, n + 2)) for n in range(5)]
    assert scorer.retries == 0
    assert scorer.score([]) == []


def test_a_request_has_no_more_answers_than_servers_take(serve) -> None:
    asked: list[int] = []

    def counted(body: dict) -> tuple[int, str]:
        asked.append(sum(len(group["answers"]) for group in body["groups"]))
        return lengths(body)

    many = [Group((Message("user", "p"),), ((Message("assistant", "a"),),) * count) for count in (300, 200, 100, 600, 5, 5)]
    assert [len(row) for row in RemoteScorer(serve(counted)).score(many)] == [300, 200, 100, 600, 5, 5]
    assert asked == [500, 100, 600, 10]


def test_what_the_server_says_is_passed_on(serve) -> None:
    with pytest.raises(EvaluationError, match=r"HTTP status 422, .*expected an answer that says something"):
        RemoteScorer(serve(lambda body: (422, "expected an answer that says something")), wait=0.0).score(GROUPS)


FAULTS: dict[str, Answer] = {
    "HTTP status 503": lambda body: (503, ""),
    "HTTP status 429": lambda body: (429, ""),
    "15 scores in 4 groups|10 scores in 4 groups": lambda body: (
        200,
        json.dumps({"rewards": json.loads(lengths(body)[1])["rewards"][:-1]}),
    ),
    "a score that is no finite number": lambda body: (200, lengths(body)[1].replace("1", "NaN")),
    "Expecting value": lambda body: (200, "<html>"),
    "no list of rewards": lambda body: (200, json.dumps({"error": "busy"})),
    "no list of rewards at all": lambda body: (200, json.dumps({"rewards": 5})),
    "0 scores in 0 groups for 15": lambda body: (200, json.dumps({"rewards": []})),
    "a score that is no finite number, but true": lambda body: (200, lengths(body)[1].replace("1", "true")),
    "a score that is no finite number, but too large": lambda body: (200, lengths(body)[1].replace("1", "1" + "0" * 400)),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_fault_is_tried_again_and_counted(serve, reason) -> None:
    scorer = RemoteScorer(serve(FAULTS[reason], FAULTS[reason], lengths), wait=0.0)
    assert scorer.score(GROUPS)[0] == (1.0,)
    assert scorer.retries == 2


@pytest.mark.parametrize("reason", FAULTS)
def test_a_fault_that_stays_ends_with_its_reason(serve, reason) -> None:
    scorer = RemoteScorer(serve(FAULTS[reason]), wait=0.0, attempts=3)
    with pytest.raises(EvaluationError, match=f"gave no scores for 5 groups: .*({reason.partition(', but')[0].removesuffix(' at all')})"):
        scorer.score(GROUPS)
    assert scorer.retries == 2


def test_what_no_repetition_can_mend_is_not_repeated(serve) -> None:
    scorer = RemoteScorer(serve(lambda body: (404, "")), wait=0.0)
    with pytest.raises(EvaluationError, match="HTTP status 404"):
        scorer.score(GROUPS)
    assert scorer.retries == 0


def test_a_server_that_keeps_silent_or_is_not_there(serve) -> None:
    release = threading.Event()

    def silent(body: dict) -> tuple[int, str]:
        release.wait(5)
        return lengths(body)

    scorer = RemoteScorer(serve(silent, lengths), wait=0.0, timeout=0.2)
    assert scorer.score(GROUPS)[4] == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert scorer.retries == 1
    release.set()
    with pytest.raises(EvaluationError, match="gave no scores for 5 groups"):
        RemoteScorer("http://127.0.0.1:1/score", wait=0.0, attempts=2).score(GROUPS)
