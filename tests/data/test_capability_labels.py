"""Categories and capability pairs: the embedded world's, columns, and verdicts of whoever is asked, in both orders."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rewardproof.config import load_recipe, parse
from rewardproof.data import read_groups, split_by_prompt
from rewardproof.data.capability_judges import ChatJudge, both_ways
from rewardproof.data.capability_labels import Labels, category_of, column_scores, judged_pairs, point_pairs, program_scores
from rewardproof.data.endpoint import KEY
from rewardproof.data.group import Group, Message
from rewardproof.data.pairs import Pair
from rewardproof.data.world import load_world
from rewardproof.data.world.constraints import KINDS, satisfaction
from rewardproof.errors import ConfigError, DataError, EvaluationError
from rewardproof.training.double_mixture import Capabilities, part_of


def group(*answers: str, scores: tuple[float, ...] | None = None, **columns) -> Group:
    texts = tuple((Message("assistant", text),) for text in answers)
    return Group(prompt=(Message("user", "ask"),), answers=texts, scores=scores, id="g", **columns)


def test_the_worlds_category_is_the_family_of_the_first_constraint_and_its_points_are_kinds_of_that_family() -> None:
    groups = load_world("train")[:60]
    categories = [category_of(one, "category") for one in groups]
    found, counts = point_pairs(groups, categories, Labels())
    tied = 0
    for one, category, points in zip(groups, categories, found, strict=True):
        constraints = one.meta["constraints"]
        assert category == constraints[0]["family"]
        kinds = {entry["kind"] for entry in constraints if entry["family"] == category}
        assert set(points.pairs) <= kinds
        for kind in kinds:
            asked = [entry for entry in constraints if entry["kind"] == kind]
            told = [sum(satisfaction(text, entry) for entry in asked) / len(asked) for text in one.answer_texts]
            expected = {(i, j) for i, j in itertools.permutations(range(len(told)), 2) if told[i] > told[j]}
            assert {pair[:2] for pair in points.pairs.get(kind, ())} == expected
            tied += sum(told[i] == told[j] for i, j in itertools.combinations(range(len(told)), 2))
    assert counts["tied_pairs"] == tied > 0
    assert any(len({entry["family"] for entry in one.meta["constraints"]}) > 1 for one in groups), "some prompts are of several families"
    assert {KINDS[point].family for points in found for point in points.pairs} == set(categories)


def test_a_category_is_any_column() -> None:
    labelled = group("a", "b", category="chat", meta={"task": 3, "none": None})
    assert [category_of(labelled, name) for name in ("category", "task", "none", "absent")] == ["chat", "3", "", ""]


def test_ranks_are_better_when_lower_and_scores_when_higher() -> None:
    ranked = group("best", "worst", meta={"caps": {"logic": [1, 2]}})
    for ranks, winner in ((True, 0), (False, 1)):
        (found,), _ = point_pairs([ranked], ["chat"], Labels(capabilities="caps", ranks=ranks))
        assert [pair.winner for pair in found.pairs["logic"]] == [winner]


def test_columns_hold_scores_with_gaps_or_the_index_of_the_best() -> None:
    one = group("a", "b", "c", meta={"caps": {"humour": [0.5, None, 2.0], "care": 1, "left": None, "even": [1, 1, 1]}})
    assert column_scores(one, "caps") == {"humour": (0.5, None, 2.0), "care": (0.0, 1.0, 0.0), "even": (1.0, 1.0, 1.0)}
    (found,), counts = point_pairs([one], ["chat"], Labels(capabilities="caps"))
    assert {point: {pair[:2] for pair in pairs} for point, pairs in found.pairs.items()} == {"humour": {(2, 0)}, "care": {(1, 0), (1, 2)}}
    assert counts["tied_pairs"] == 3 + 1
    assert column_scores(group("a", "b"), "caps") == {}


def test_named_points_are_the_only_ones_and_the_others_are_counted() -> None:
    one = group("a", "b", meta={"caps": {"humour": [0, 1], "care": [1, 0]}})
    (found,), counts = point_pairs([one], ["chat"], parse(Labels, {"capabilities": "caps", "points": {"chat": "humour,logic"}}))
    assert set(found.pairs) == {"humour"}
    assert counts == {"other_points": 1}


def test_pairs_are_bounded_by_a_hash_of_the_texts() -> None:
    one = group("a", "b", "c", "d")
    whole = judged_pairs(one, (3.0, None, 2.0, 1.0))
    assert {pair[:2] for pair in whole} == {(0, 2), (0, 3), (2, 3)}
    assert set(judged_pairs(one, (3.0, None, 2.0, 1.0), limit=2)) < set(whole)


@pytest.mark.parametrize(
    "given", ["good", {"humour": "good"}, {"humour": [1.0]}, {"humour": [1.0, float("nan")]}, {"humour": True}, {"humour": 2}]
)
def test_what_is_no_judgement_names_its_row(given) -> None:
    with pytest.raises(DataError, match=r"g: caps(\.humour)? is .*, expected points by name, each with one number or null an answer"):
        column_scores(group("a", "b", meta={"caps": given}), "caps")


def test_a_prompt_of_another_world_has_no_program() -> None:
    with pytest.raises(DataError, match="got a prompt without constraints, expected one of the embedded world"):
        program_scores(group("a", "b"), "length")


VERDICTS = {
    "consistent": ((1, 2), Pair(0, 1, None)),
    "consistent the other way": ((2, 1), Pair(1, 0, None)),
    "always the first": ((1, 1), "inconsistent"),
    "always the second": ((2, 2), "inconsistent"),
    "no verdict": ((0, 2), "undecided"),
    "something else": ((1, 7), "undecided"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_acceptance_8_verdicts_that_change_with_the_order_drop_the_pair(case: str) -> None:
    (straight, exchanged), expected = VERDICTS[case]
    seen: list[tuple[str, str]] = []

    def judge(conversation, first, second, point):
        assert conversation == [{"role": "user", "content": "ask"}]
        assert point == "humour"
        seen.append((first, second))
        return straight if first == "a" else exchanged

    assert both_ways(judge, group("a", "b"), (0, 1), "humour") == expected
    assert seen == [("a", "b"), ("b", "a")]


def longer(conversation, first: str, second: str, point: str) -> int:
    """A judge of the user's own: the longer answer has more humour; at care it always says the first."""
    return 1 if point == "care" or len(first) > len(second) else 2


def test_a_function_of_the_users_is_asked_and_contradictions_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    module = ModuleType("my_judges")
    module.longer = longer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "my_judges", module)
    settings = Labels(capabilities="my_judges:longer", points={"chat": ("humour", "care")})
    groups = [group("aaa", "a", scores=(0.0, 1.0)), group("a", "aa", "aaa", scores=(2.0, 1.0, 1.0)), group("a", "bb", scores=(0.0, 1.0))]
    found, counts = point_pairs(groups, ["chat", "chat", "other"], settings)
    assert [points.pairs for points in found] == [{"humour": (Pair(0, 1, None),)}, {"humour": (Pair(1, 0, None), Pair(2, 0, None))}, {}]
    assert counts == {"questions": 6, "inconsistent": 3}


def chat(text: str):
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


def truthful(body):
    """A model that prefers the reply with more exclamation marks, and says so in words."""
    text = body["messages"][0]["content"]
    first, second = text.partition("[Reply 1]")[2].partition("[Reply 2]")[::2]
    second = second.partition("Which reply")[0]
    return chat(f"Reply {1 if first.count('!') > second.count('!') else 2}.")


def test_an_endpoint_is_asked_with_its_key_and_its_faults_are_tried_again(serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    bodies: list[dict] = []

    def answer(body):
        bodies.append(body)
        return truthful(body)

    address = serve(lambda body: (503, ""), lambda body: (200, "{}"), answer)
    settings = Labels(capabilities=address, judge_model="judge-7b", judge_requests=1, points={"chat": ("humour",)})
    groups = [group("a !", "b ! !", scores=(1.0, 0.0)), group("c !", "d", scores=(0.0, 1.0))]
    file = tmp_path / "labels" / "kept.jsonl"
    found, counts = point_pairs(groups, ["chat", "chat"], settings, kept=file)
    assert [points.pairs["humour"] for points in found] == [(Pair(1, 0, None),), (Pair(0, 1, None),)]
    assert counts == {"questions": 2, "retries": 2}
    assert {(body["model"], body["temperature"]) for body in bodies} == {("judge-7b", 0)}
    assert "humour" in bodies[0]["messages"][0]["content"]
    asked = len(bodies)
    file.write_text(file.read_text()[:-5])  # the run was stopped while it wrote the second verdict
    again, counts = point_pairs(groups, ["chat", "chat"], settings, kept=file)
    assert [points.pairs for points in again] == [points.pairs for points in found]
    assert len(bodies) == asked + 2, "the first group's verdict was kept, the second's was cut off"


def test_the_endpoints_key_travels_in_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            keys.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(chat("1")[1].encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    judge = ChatJudge(f"http://127.0.0.1:{server.server_address[1]}/v1/chat/completions")
    for key in ("", "secret"):
        monkeypatch.setenv(KEY, key)
        assert judge([], "a", "b", "humour") == 1
    server.shutdown()
    server.server_close()
    assert keys == [None, "Bearer secret"]


REPLIES = {"1": 1, "**2**": 2, "Reply 1, because 1 is clear": 1, "1 or 2": 0, "12": 0, "": 0}


@pytest.mark.parametrize(("reply", "verdict"), REPLIES.items())
def test_a_reply_has_to_name_one_of_the_two(serve, reply: str, verdict: int) -> None:
    assert ChatJudge(serve(lambda body: chat(reply)))([], "a", "b", "humour") == verdict


def test_an_endpoint_that_gives_no_verdicts_ends_with_its_reason(serve) -> None:
    for answer, reason, repeated in (
        (lambda body: (404, ""), "HTTP status 404", 0),
        (lambda body: (500, ""), "HTTP status 500", 2),
        (lambda body: (200, "[]"), r"no choices\[0\]", 2),
    ):
        judge = ChatJudge(serve(answer), attempts=3, wait=0.0)
        with pytest.raises(EvaluationError, match=f"gave no verdict: {reason}"):
            judge([], "a", "b", "humour")
        assert judge.retries == repeated


def test_nobody_is_asked_without_points_and_a_judge_has_to_exist() -> None:
    with pytest.raises(ConfigError, match=r"labels.capabilities=judges:best without labels.points"):
        point_pairs([group("a", "b")], ["chat"], Labels(capabilities="judges:best"))
    with pytest.raises(ConfigError, match=r"labels.capabilities=no_such_module:best: No module named"):
        point_pairs([group("a", "b")], ["chat"], Labels(capabilities="no_such_module:best", points={"chat": ("humour",)}))


def test_every_category_of_the_embedded_world_has_points_that_the_recipe_learns() -> None:
    recipe = load_recipe("dmoerm")
    labels, wanted = parse(Labels, recipe["labels"]), parse(Capabilities, recipe["capabilities"])
    training, _ = split_by_prompt(read_groups("embedded:checkable/train", on_bad="drop_unfit").groups, fraction=0.2)
    base = [group for group in training if part_of(group, wanted, split_seed=0) == "base"]
    categories = [category_of(group, labels.category) for group in base]
    pairs: Counter[tuple[str, str]] = Counter()
    for category, points in zip(categories, point_pairs(base, categories, labels)[0], strict=True):
        pairs.update({(category, point): len(own) for point, own in points.pairs.items()})
    large = {category for (category, _), count in pairs.items() if count >= wanted.min_pairs}
    assert large == set(categories)
    assert len(large) == 5
