"""`rewardproof evaluate` on the benchmarks' own files: detected, streamed, resumed, in one table, with result files to submit."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rewardproof.data import read_groups
from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import ConfigError, DataError, EvaluationError
from rewardproof.models.reward_model import RewardModel
from rewardproof.stages import judging
from rewardproof.stages.evaluate import Evaluate, run
from rewardproof.stages.evaluate_settings import Evaluate as Settings

USER, ASSISTANT = "user", "assistant"
Rows = list[dict[str, Any]]


def words(draw: random.Random, count: int) -> str:
    return " ".join(f"w{draw.randrange(4, 90)}" for _ in range(count))


def first_version(count: int = 6, *, seed: int = 0) -> Rows:
    draw = random.Random(seed)
    names = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm", "hep-cpp", "hep-go"]
    return [
        {
            "prompt": words(draw, 4), "chosen": words(draw, 3), "chosen_model": "a", "rejected": words(draw, 4), "rejected_model": "b",
            "subset": names[place % len(names)], "id": place,
        }
        for place in range(count)
    ]  # fmt: skip


def answers(*rewards: float) -> list[str]:
    return [f"w{int(reward * 10)}" for reward in rewards]


SECOND_VERSION: Rows = [
    {"id": "30", "prompt": "w40 w41", "chosen": answers(2), "rejected": answers(1, 0, 0), "num_correct": 1, "subset": "Factuality"},
    {"id": "30", "prompt": "w42 w41", "chosen": answers(1), "rejected": answers(1, 1, 1), "num_correct": 1, "subset": "Factuality"},
    {"id": "1", "prompt": "w43", "chosen": answers(1), "rejected": answers(2, 0, 0), "num_correct": 1, "subset": "Precise IF"},
    {"id": "2", "prompt": "w44", "chosen": answers(3), "rejected": answers(2, 0, 0), "num_correct": 1, "subset": "Math"},
    {"id": "3", "prompt": "w45", "chosen": answers(3), "rejected": answers(3, 0, 0), "num_correct": 1, "subset": "Safety"},
    {"id": "4", "prompt": "w46", "chosen": answers(4), "rejected": answers(3, 0, 0), "num_correct": 1, "subset": "Focus"},
    {"id": "ref:0", "prompt": "w47", "chosen": answers(3), "rejected": answers(1), "num_correct": 1, "subset": "Ties"},
    {"id": "tied:0", "prompt": "w47", "chosen": answers(3, 2.9), "rejected": answers(1), "num_correct": 2, "subset": "Ties"},
]
"""By hand: Factuality (1 + 1/4) / 2, Precise IF 0, Math 1, Safety 1/2, Focus 1, Ties 1 + .01 tanh(18)."""
BY_HAND = (0.625 + 0 + 1 + 0.5 + 1 + 1.01) / 6


class Reader(RewardModel):
    """A judge whose reward is a tenth of the number of the answer's last word, as its tokens say."""

    def score_encoded(self, groups: Iterable[EncodedGroup], *, origins: Sequence[str] = ()) -> list[tuple[float, ...]]:
        return [tuple(self._number(tokens) for tokens in group.conversations) for group in groups]

    def _number(self, tokens: tuple[int, ...]) -> float:
        return int(re.findall(r"w(\d+)", str(self.tokenizer.decode(list(tokens))))[-1]) / 10


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, reward_dir: Path) -> None:
    model = RewardModel.load(reward_dir)
    monkeypatch.setattr(Settings, "load", lambda _: Reader(model.model, model.tokenizer))


def parquet(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def second_version(tmp_path: Path) -> Path:
    return parquet(tmp_path / "reward-bench-2" / "data" / "test-00000-of-00001.parquet", SECOND_VERSION)


def test_rewardbench_2_by_hand(reading: None, reward_dir: Path, second_version: Path, tmp_path: Path) -> None:
    report, table = run(Evaluate(model=str(reward_dir), data=(str(second_version.parents[1]),)), tmp_path / "e")
    found = report.results["benchmarks"]["rewardbench_2"]
    assert found["score"]["estimate"] == pytest.approx(BY_HAND, abs=1e-6)
    assert found["parts"]["Factuality"]["estimate"] == 0.625
    assert found["parts"]["Ties"]["estimate"] == pytest.approx(1.01, abs=1e-6)
    assert not found["complete"]
    assert "Focus: 1 of 495 rows" in found["differences"]
    assert table.rows[0][0] == "RewardBench 2, unweighted mean of the six subsets (of a part of it)"
    assert "RewardBench 2 " in report.headline


def test_rewardbench_2_result_files_keep_duplicate_ids_by_position_and_the_ties_own_results(
    reading: None, reward_dir: Path, second_version: Path, tmp_path: Path
) -> None:
    settings = Evaluate(model=str(reward_dir), data=(str(second_version),), as_published={"name": "org/mine"})
    report, _ = run(settings, tmp_path / "e")
    assert report.results["result_files"] == ["rewardbench-2/eval-set/org/mine.json", "rewardbench-2/eval-set-scores/org/mine.json"]
    numbers, scores = (json.loads((tmp_path / "e" / file).read_text()) for file in report.results["result_files"])
    assert numbers["model"] == "org/mine"
    assert {"model_type": "Seq. Classifier", "chat_template": "tokenizer"}.items() <= numbers.items()
    assert numbers["Factuality"] == 0.625
    assert numbers["Ties"] == pytest.approx(1.01, abs=1e-6)
    assert set(scores) == {"text", "results", "subset", "id", "scores", "num_correct", "model", "model_type", "chat_template"}
    assert scores["id"] == [row["id"] for row in SECOND_VERSION]
    assert scores["results"] == [1.0, 0.25, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0]
    assert scores["scores"][-1] == pytest.approx([3.0, 2.9, 1.0])
    assert scores["num_correct"] == [1] * 7 + [2]
    assert [len(texts) for texts in scores["text"]] == [4] * 6 + [2, 3]
    assert "w40 w41" in scores["text"][0][0]


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
def test_rewardbench_1_is_what_the_model_says_in_any_file(
    kind: str, reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    rows = first_version(24)
    file = tmp_path / "reward-bench" / f"filtered.{kind}"
    file.parent.mkdir()
    if kind == "parquet":
        parquet(file, rows)
    else:
        file.write_text(json.dumps(rows)) if kind == "json" else write_jsonl(file, rows)
    report, _ = run(Evaluate(model=str(reward_dir), data=(str(file),), precision="fp32"), tmp_path / "e")
    rewards = RewardModel.load(reward_dir).score(read_groups(str(file), purpose="score").groups)
    scores = json.loads((tmp_path / "e" / report.results["result_files"][1]).read_text())
    assert set(scores) == {
        "text_chosen", "text_rejected", "results", "subset", "id", "scores_chosen", "scores_rejected", "model", "model_type",
        "chat_template",
    }  # fmt: skip
    assert scores["scores_chosen"] == pytest.approx([row[0] for row in rewards], abs=1e-5)
    assert scores["results"] == [int(chosen > rejected) for chosen, rejected in rewards]
    assert scores["id"] == list(range(24))
    right = {name: [r for r, row in zip(scores["results"], rows, strict=True) if row["subset"] == name] for name in set(scores["subset"])}
    accuracy = {name: sum(values) / len(values) for name, values in right.items()}
    reasoning = (984 * accuracy["math-prm"] + 164 * accuracy["hep-cpp"] + 164 * accuracy["hep-go"]) / (984 + 328)
    expected = (accuracy["alpacaeval-easy"] + accuracy["llmbar-natural"] + accuracy["donotanswer"] + reasoning) / 4
    assert report.results["benchmarks"]["rewardbench"]["score"]["estimate"] == pytest.approx(expected)


def test_prompts_of_messages_keep_their_roles_and_have_to_end_with_the_user(
    reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    turns = [{"role": USER, "content": "w5"}, {"role": ASSISTANT, "content": "w6"}, {"role": USER, "content": "w7"}]
    rows = [{**row, "prompt": turns} for row in first_version(2)]
    good = write_jsonl(tmp_path / "good.jsonl", rows)
    run(Evaluate(model=str(reward_dir), data=(str(good),)), tmp_path / "e")
    texts = json.loads(next((tmp_path / "e").rglob("eval-set-scores/*.json")).read_text())["text_chosen"]
    template = RewardModel.load(reward_dir).tokenizer.apply_chat_template(
        [*turns, {"role": ASSISTANT, "content": rows[0]["chosen"]}], tokenize=False
    )
    assert texts[0] == template
    bad = write_jsonl(tmp_path / "bad.jsonl", [{**row, "prompt": turns[:2]} for row in rows])
    with pytest.raises(DataError, match=r"two turns in a row by 'assistant'"):
        run(Evaluate(model=str(reward_dir), data=(str(bad),), on_bad="fail"))


def test_ties_and_empty_answers_of_a_benchmark_are_judged_and_not_dropped(
    reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    rows = first_version(3)
    rows[0]["rejected"], rows[1]["rejected"] = rows[0]["chosen"], ""
    file = write_jsonl(tmp_path / "rb.jsonl", rows)
    report, _ = run(Evaluate(model=str(reward_dir), data=(str(file),)))
    assert report.results["rows"][str(file)] == {"read": 3, "used": 3, "dropped": {}, "prompt_truncated": 0}
    assert report.results["benchmarks"]["rewardbench"]["parts"]["alpacaeval-easy"]["estimate"] == 0.0


def test_long_rows_are_cut_as_the_official_code_cuts_them_and_counted(
    reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    rows = first_version(6)
    rows[2]["prompt"] = " ".join(["w30"] * 50)
    file = write_jsonl(tmp_path / "rb.jsonl", rows)
    model = RewardModel.load(reward_dir, precision="fp32")
    group = read_groups(str(file)).groups[2]
    whole = model.encode([group])[0][0].conversations
    for side, kept in (("cut_left", [tokens[-20:] for tokens in whole]), ("cut_right", [tokens[:20] for tokens in whole])):
        report, _ = run(Evaluate(model=str(reward_dir), data=(str(file),), max_length=20, overlong=side, precision="fp32"), tmp_path / side)
        assert report.results["rows"][str(file)]["cut"] == 1
        encoded = model.encode([group], max_length=20, overlong=side)[0][0]  # pyright: ignore[reportArgumentType]
        assert list(encoded.conversations) == kept
        assert all(0 <= start < len(tokens) for start, tokens in zip(encoded.answer_starts, encoded.conversations, strict=True))
        scores = json.loads(next((tmp_path / side).rglob("eval-set-scores/*.json")).read_text())
        assert scores["scores_chosen"][2] == pytest.approx(model.score_encoded([encoded])[0][0], abs=1e-5)
    with pytest.raises(DataError, match=r"rb.jsonl:3: got a conversation of \d+ tokens, expected at most max_length=20"):
        run(Evaluate(model=str(reward_dir), data=(str(file),), max_length=20))


def test_scores_depend_on_neither_batch_size_nor_padding_side(reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    groups = read_groups(str(write_jsonl(tmp_path / "rb.jsonl", first_version(18)))).groups
    found = []
    for budget, side in ((1, "left"), (64, "right"), (100000, "left")):
        model = RewardModel.load(reward_dir)
        model.tokens_per_batch, model.tokenizer.padding_side = budget, side
        found.append([score for row in model.score(groups) for score in row])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def several(tmp_path: Path, write_jsonl: Callable[..., Path], toy_rows: Callable[..., Rows]) -> list[str]:
    """A file of each benchmark, and preferences of nobody's."""
    draw = random.Random(3)

    def side(count: int) -> list[str]:
        return [words(draw, 3) for _ in range(count)]

    def transcript(answer: str) -> str:
        return f"\n\nHuman: w4 w5\n\nAssistant: {answer}"

    files: dict[str, Rows] = {
        "rb/filtered.jsonl": first_version(12),
        "rb2/test.jsonl": SECOND_VERSION,
        "rm/chat_filtered.jsonl": [{"id": n, "prompt": words(draw, 3), "chosen": side(3), "rejected": side(3)} for n in range(4)],
        "rm/math_filtered.jsonl": [{"id": n, "prompt": words(draw, 3), "chosen": side(3), "rejected": side(3)} for n in range(4)],
        "rmb/pairs.jsonl": [
            {"conversation_input": [{"role": USER, "content": words(draw, 3)}], "chosen": {"answer": a}, "reject": {"answer": b},
             "category_path": "Pairwise_set/Helpfulness/Chat/Any"}
            for a, b in (side(2) for _ in range(4))
        ],
        "llmbar/LLMBar_Natural.jsonl": [
            {"input": words(draw, 3), "output_1": a, "output_2": b, "label": 1 + n % 2}
            for n, (a, b) in enumerate(side(2) for _ in range(4))
        ],
        "hh/helpful-base/test.jsonl": [{"chosen": transcript(a), "rejected": transcript(b)} for a, b in (side(2) for _ in range(4))],
        "webgpt/c.jsonl": [
            {"question": words(draw, 3), "answer_0": a, "answer_1": b, "score_0": n - 1, "score_1": 1 - n}
            for n, (a, b) in enumerate(side(2) for _ in range(3))
        ],
        "alpaca/a.jsonl": [
            {"instruction": words(draw, 3), "output_1": a, "output_2": b, "preference": 2} for a, b in (side(2) for _ in range(4))
        ],
        "mine.jsonl": toy_rows(8),
    }  # fmt: skip
    for name, rows in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / name, rows)
    return [str(tmp_path / name) for name in files]


def test_several_benchmarks_at_once_make_one_table(
    reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path], toy_rows: Callable[..., Rows]
) -> None:
    sources = several(tmp_path / "data", write_jsonl, toy_rows)
    report, table = run(Evaluate(model=str(reward_dir), data=tuple(sources), precision="fp32"), tmp_path / "e")
    assert list(report.results["benchmarks"]) == [
        "rewardbench",
        "rewardbench_2",
        "rm_bench",
        "rmb",
        "llmbar",
        "hh",
        "webgpt",
        "alpaca_eval",
    ]
    assert report.results["benchmarks"]["rm_bench"]["rows"] == 8, "two files are one benchmark"
    assert report.results["rows"][sources[7]]["dropped"] == {"tie": 1}
    tops = [row[0] for row in table.rows if not str(row[0]).startswith("·")]
    assert len(tops) == 9
    assert tops[-1] == f"{sources[-1]}, pair accuracy"
    assert table.columns == ("data", "score", "longest wins", "shortest wins", "rows")
    for source in sources:
        groups = read_groups(source, purpose="score").groups
        assert report.results["rows"][source]["used"] in (len(groups), len(groups) - 1)
    assert "Benchmarks" in (tmp_path / "e" / "report.html").read_text()
    folder, _ = run(Evaluate(model=str(reward_dir), data=(str(tmp_path / "data"),), precision="fp32"))
    for name, score in report.results["benchmarks"].items():
        assert folder.results["benchmarks"][name]["score"]["estimate"] == pytest.approx(score["score"]["estimate"]), name


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Callable[..., None]]:
    monkeypatch.setattr(judging, "CHUNK", 5)

    def after(chunks: int) -> Callable[..., None]:
        seen: list[int] = []

        def stop(_what: str, done: int, _total: int) -> None:
            seen.append(done)
            if len(seen) == chunks:
                raise KeyboardInterrupt

        return stop

    return after


@pytest.mark.parametrize("chunks", [1, 3, 5])
def test_an_interrupted_run_goes_on_after_its_last_whole_chunk(
    chunks: int, interrupted: Callable[[int], Any], reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    files = [str(write_jsonl(tmp_path / f"{name}.jsonl", first_version(17, seed=name))) for name in (0, 1)]
    settings = Evaluate(model=str(reward_dir), data=tuple(files), precision="fp32", max_length=30, overlong="drop")
    whole, _ = run(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "e", progress=interrupted(chunks))
    kept = sorted((tmp_path / "e" / "judged").iterdir())[-1]
    with kept.open("a") as stream:
        stream.write('{"groups": 5, "rows": [{"rew')
    done: list[int] = []
    report, _ = run(settings, tmp_path / "e", resume=True, progress=lambda _, found, __: done.append(found))
    assert len(done) == 8 - chunks, "what was judged is not judged again"
    for name in ("headline", "rows", "accuracy", "benchmarks", "result_files"):
        assert report.results[name] == whole.results[name]
    for file in [*report.results["result_files"], "judged/0.jsonl", "judged/1.jsonl"]:
        assert (tmp_path / "e" / file).read_text() == (tmp_path / "whole" / file).read_text()


def test_rewards_of_other_rows_are_not_gone_on_with(
    reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = first_version(6)
    file, settings = write_jsonl(tmp_path / "rb.jsonl", rows), Evaluate(model=str(reward_dir), data=(str(tmp_path / "rb.jsonl"),))
    monkeypatch.setattr("rewardproof.stages.evaluate.judge_benchmarks", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "e")
    for changed in ([*rows[:3], {**rows[3], "prompt": "w9 w9 w9"}, *rows[4:]], rows[:4]):
        write_jsonl(file, changed)
        with pytest.raises(EvaluationError, match=r"row [45] is another than the interrupted run judged there"):
            run(settings, tmp_path / "e", resume=True)


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_what_settings_leave_out_makes_a_part_of_any_benchmark(reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    rows = [{"question": f"w{n}", "answer_0": "w1 w2", "answer_1": "w3", "score_0": 1.0, "score_1": -1.0} for n in range(12)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    whole, _ = run(Evaluate(model=str(reward_dir), data=(str(file),)))
    half, table = run(Evaluate(model=str(reward_dir), data=(str(file),), split=0.5))
    assert whole.results["benchmarks"]["webgpt"]["complete"]
    assert half.results["benchmarks"]["webgpt"]["differences"] == ["only the prompts that split=0.5 holds out"]
    assert "(of a part of it)" in table.rows[0][0]


def test_prior_sets_are_judged_as_a_benchmarks_rows_are(reading: None, reward_dir: Path, tmp_path: Path) -> None:
    turns = [{"role": USER, "content": "w5"}]
    rows = [{"prompt": turns, "chosen": "w9", "rejected": text, "id": n} for n, text in enumerate(("w2", "w9", "w3"))]
    parquet(tmp_path / "pref-test-sets" / "data" / "shp-00000-of-00001.parquet", rows)
    report, _ = run(Evaluate(model=str(reward_dir), data=(str(tmp_path / "pref-test-sets"),)), tmp_path / "e")
    (counts,) = report.results["rows"].values()
    assert (counts["used"], counts["dropped"]) == (3, {}), "a tie is judged, and wrong"
    kinds = {Path(file).parts[1] for file in report.results["result_files"]}
    assert kinds == {"pref-sets", "pref-sets-scores"}
    scores = json.loads(next((tmp_path / "e").rglob("pref-sets-scores/*.json")).read_text())
    assert (scores["results"], scores["subset"]) == ([1, 0, 1], ["shp"] * 3)


def test_resume_needs_a_directory(reward_dir: Path, toy_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"Got --resume without --out, expected the run directory to go on with"):
        run(Evaluate(model=str(reward_dir), data=(str(toy_file),)), resume=True)


def test_no_text_or_tensor_is_kept_of_a_row(reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    rows = first_version(3)
    run(Evaluate(model=str(reward_dir), data=(str(write_jsonl(tmp_path / "rb.jsonl", rows)),)), tmp_path / "e")
    kept = (tmp_path / "e" / "judged" / "0.jsonl").read_text()
    assert not any(row[part] in kept for row in rows for part in ("prompt", "chosen", "rejected"))


def test_memory_does_not_grow_with_the_texts_of_the_rows(
    reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "CHUNK", 8)
    model = RewardModel.load(reward_dir)
    long = [{**row, "chosen": f"{row['chosen']} {'x' * 20_000}"} for row in first_version(72)]

    def peak(count: int) -> int:
        file = str(write_jsonl(tmp_path / f"{count}.jsonl", long[:count]))
        config = Evaluate(model=str(reward_dir), data=(file,))
        tracemalloc.start()
        try:
            judging.judged_source(model, config, file, judging.KeptRows(), lambda *_: None)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(8)  # what the first run imports and keeps
    of_a_chunk, of_nine = peak(8), peak(72)
    assert of_nine - of_a_chunk < 64 * 20_000 / 4


def test_a_system_prompt_and_a_template_of_ones_own(reward_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    file = str(write_jsonl(tmp_path / "rb.jsonl", first_version(4)))
    template = tmp_path / "mine.jinja"
    template.write_text("{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} ;{% endfor %}")
    published = {"system": "w8 w9", "chat_template": str(template)}
    run(Evaluate(model=str(reward_dir), data=(file,), as_published=published), tmp_path / "e")
    scores = json.loads(next((tmp_path / "e").rglob("eval-set-scores/*.json")).read_text())
    assert scores["text_chosen"][0].startswith("system : w8 w9 ;user : w")
    assert scores["chat_template"] == str(template)
    with pytest.raises(ConfigError, match=r"as_published.chat_template=.*none.jinja is no file, expected one with a Jinja chat template"):
        run(Evaluate(model=str(reward_dir), data=(file,), as_published={"chat_template": str(tmp_path / "none.jinja")}))
    with pytest.raises(ConfigError, match=r"Got text=raw and a system prompt, expected one of them"):
        run(Evaluate(model=str(reward_dir), data=(file,), text="raw", as_published={"system": "w8"}))


def test_a_policy_is_judged_by_the_reward_that_it_implies(
    base_dir: Path, tied_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    from rewardproof.scoring import Implicit, ImplicitReward

    file = str(write_jsonl(tmp_path / "rb.jsonl", first_version(6)))
    how = {"reference": str(tied_dir), "beta": 0.5}
    run(Evaluate(model=str(base_dir), data=(file,), precision="fp32", implicit=how), tmp_path / "e")
    scores = json.loads(next((tmp_path / "e").rglob("eval-set-scores/*.json")).read_text())
    judge = ImplicitReward.load(str(base_dir), Implicit(**how))
    expected = judge.score(read_groups(file).groups)
    assert scores["model_type"] == "DPO"
    assert scores["scores_chosen"] == pytest.approx([row[0] for row in expected], abs=1e-5)
    assert scores["scores_rejected"] == pytest.approx([row[1] for row in expected], abs=1e-5)
