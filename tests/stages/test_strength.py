"""`strength` on a tiny model: what it measures, by training the same judges with `train`; what it refuses; that it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewardproof.artifacts import Report
from rewardproof.config import apply_overrides, load_recipe, parse
from rewardproof.data import read_groups
from rewardproof.data.pairs import ordered_pairs, with_label_noise
from rewardproof.data.splitting import split_by_prompt, split_position
from rewardproof.data.strength import StrengthTreatment
from rewardproof.errors import CheckpointError, ConfigError, DataError, EvaluationError
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.trunk import group_key
from rewardproof.scoring import Scale
from rewardproof.stages.strength import Strength, run, settings_of
from rewardproof.stages.train import Train
from rewardproof.stages.train import check_settings as check_train
from rewardproof.stages.train import run as train

Rows = list[dict[str, Any]]
Settings = Callable[..., Strength]
COMMON = (
    "compute.precision=fp32", "trainer.learning_rate=5e-3", "head.learning_rate=1e-2", "trainer.num_train_epochs=1",
    "trainer.per_device_train_batch_size=8", "trainer.save_strategy=no",
)  # fmt: skip


def rows_in(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text().splitlines()]


def wrong_labels(rows: Rows, every: int) -> Rows:
    """Every so-manyth row with its answers exchanged; `truth` says which answer is better."""
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"], "truth": [0, 1]} if number % every == 0 else {**row, "truth": [1, 0]}
        for number, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def noisy_file(tmp_path_factory: pytest.TempPathFactory, toy_rows: Callable[..., Rows], write_jsonl: Callable[..., Path]) -> Path:
    """160 rows of a separable task, every fifth label wrong."""
    return write_jsonl(tmp_path_factory.mktemp("noisy") / "noisy.jsonl", wrong_labels(toy_rows(160, seed=5), 5))


@pytest.fixture(scope="module")
def few_file(tmp_path_factory: pytest.TempPathFactory, toy_rows: Callable[..., Rows], write_jsonl: Callable[..., Path]) -> Path:
    """40 separable preferences."""
    return write_jsonl(tmp_path_factory.mktemp("few") / "few.jsonl", toy_rows(40, seed=6))


@pytest.fixture(scope="module")
def settings(base_dir: Path, few_file: Path) -> Settings:
    """`settings("key=value", …, data=…)`: the verb at the size of a test."""

    def make(*overrides: str, data: Path | None = None) -> Strength:
        return settings_of(str(data or few_file), [f"model={base_dir}", "members=4", *COMMON, *overrides])

    return make


@pytest.fixture(scope="module")
def measured(settings: Settings, noisy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Strengths of the noisy rows, measured once."""
    return run(
        settings("trainer.num_train_epochs=2", "gold=truth", data=noisy_file), tmp_path_factory.mktemp("measured") / "out" / "strong.jsonl"
    )


def test_strength_is_the_mean_gap_of_models_that_did_not_see_the_prompt(
    settings: Settings, few_file: Path, base_dir: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    """The same judges by the verb `train`, each on a file of its own; their scores, units and gaps by hand."""
    run(settings(), tmp_path / "out.jsonl")
    groups, rows = read_groups(str(few_file)).groups, rows_in(few_file)
    kept, held_out = split_by_prompt(groups, fraction=0.2)
    row_of = {group.origin: row for group, row in zip(groups, rows, strict=True)}
    evaluation = write_jsonl(tmp_path / "held_out.jsonl", [row_of[group.origin] for group in held_out])
    gaps: dict[str, list[float]] = {group.origin: [] for group in groups}
    for number in range(4):
        cut, fold = divmod(number, 2)
        inside = {group.origin for group in groups if int(2 * split_position(group, f"strength {cut}")) == fold}
        assert 10 < len(inside) < 30
        data = write_jsonl(tmp_path / f"{number}.jsonl", [row_of[group.origin] for group in kept if group.origin not in inside])
        overrides = [f"model={base_dir}", f"data={data}", f"eval_data={evaluation}", f"seed={number}", *COMMON]
        report = train(parse(Train, apply_overrides(load_recipe("dense"), overrides)), tmp_path / f"judge-{number}")
        model = RewardModel.load(report.path / "model")
        unit = Scale.of(model.score_encoded(sorted(model.encode(held_out)[0], key=group_key)), name="judge")
        for group, (chosen, rejected) in zip(groups, model.score(groups), strict=True):
            if group.origin in inside:
                gaps[group.origin].append((chosen - rejected) / unit.std)
    found = rows_in(tmp_path / "out.jsonl")
    assert [len(values) for values in gaps.values()] == [2] * 40, "every pair is judged once a round"
    assert [row["strength"] for row in found] == pytest.approx([float(np.mean(values)) for values in gaps.values()], abs=1e-4)
    assert [row["strength_std"] for row in found] == pytest.approx([float(np.std(values)) for values in gaps.values()], abs=1e-4)


def test_rows_go_out_as_they_came_and_wrong_labels_are_weak(measured: Report, noisy_file: Path) -> None:
    found, source = rows_in(measured.path), rows_in(noisy_file)
    assert [{key: value for key, value in row.items() if not key.startswith("strength")} for row in found] == source
    wrong = [row["strength"] for row in found if row["truth"] == [0, 1]]
    right = [row["strength"] for row in found if row["truth"] == [1, 0]]
    above = np.mean([low < high for low in wrong for high in right])
    assert above > 0.97, "a right label is stronger than a wrong one"
    assert np.mean(np.array(wrong) < 0) > 0.8
    assert all(row["strength_std"] >= 0 for row in found)


def test_its_report(measured: Report) -> None:
    folder = Path(f"{measured.path}.report")
    report = json.loads((folder / "report.json").read_text())
    assert report == measured.results
    found = rows_in(measured.path)
    strengths = np.array([row["strength"] for row in found])
    assert report["rows"] == {"read": 160, "written": 160, "dropped": {}, "replaced": 0}
    assert (report["pairs"], report["models_a_pair"]) == (160, 2)
    assert report["negative"]["estimate"] == pytest.approx(np.mean(strengths < 0))
    assert report["negative"]["low"] < report["negative"]["estimate"] < report["negative"]["high"]
    assert report["headline"].startswith(f"negative strength {100 * report['negative']['estimate']:.1f} % [")
    assert report["headline"].endswith("of 160 pairs, each judged by 2 models of 4")
    assert report["strength"]["mean"] == pytest.approx(strengths.mean())
    assert report["strength"]["std"] == pytest.approx(strengths.std())
    assert report["strength"]["spread"] == pytest.approx(np.mean([row["strength_std"] for row in found]))
    assert report["gold"]["estimate"] == pytest.approx(0.8)
    deciles = report["deciles"]
    ordered = sorted(found, key=lambda row: row["strength"])
    assert [part["pairs"] for part in deciles] == [16] * 10
    assert [part["from"] for part in deciles] == [row["strength"] for row in ordered[::16]]
    assert deciles[0]["gold"] == pytest.approx(np.mean([row["truth"] == [1, 0] for row in ordered[:16]]))
    assert deciles[0]["gold"] < 0.1 < 0.9 < deciles[-1]["gold"]
    assert report["label_noise"] is None
    judges = report["judges"]
    assert sum(judge["judged"] for judge in judges) == 2 * 160
    assert all(0.6 < judge["accuracy"] < 0.95 and judge["trained_on"] < 90 and judge["scale"][1] > 0 for judge in judges)
    assert all(judge["summary"]["dense"]["steps"] > 0 for judge in judges)
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "report.json", "provenance.json", "log.jsonl", "report.html", "figures", "judges",
    }  # fmt: skip
    assert {path.name for path in (folder / "figures").iterdir()} == {"strength.svg", "strength.png"}
    page = (folder / "report.html").read_text()
    assert "gold agrees" in page
    assert f"rewardproof train secrets_flip_margin OUT model=… data={measured.path}" in page


def test_a_flip_recovers_wrong_labels(measured: Report, base_dir: Path, tmp_path: Path) -> None:
    overrides = [f"model={base_dir}", f"data={measured.path}", *COMMON, "read.strength.flip_share=0.2", "trainer.num_train_epochs=3"]
    report = train(parse(Train, apply_overrides(load_recipe("secrets_flip"), overrides)), tmp_path / "flip")
    counts = report.results["rows"]["strength"]
    assert counts["flipped"] == pytest.approx(0.2 * counts["pairs"], abs=1)
    model = RewardModel.load(report.path / "model")
    rows, groups = rows_in(measured.path), read_groups(str(measured.path)).groups
    true = np.mean([(one > other) == (row["truth"] == [1, 0]) for row, (one, other) in zip(rows, model.score(groups), strict=True)])
    assert true > 0.97


def test_strengths_that_held_out_prompts_had_a_part_in_are_said(
    measured: Report, settings: Settings, base_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judges = settings().train
    run = judges.model_copy(
        update={"data": (str(measured.path),), "read": judges.read.model_copy(update={"strength": StrengthTreatment(treatment="flip")})}
    )
    check_train(run)
    check_train(run.model_copy(update={"split": run.split / 2}))
    check_train(run.model_copy(update={"split": 0.9, "eval_data": ("elsewhere.jsonl",)}))
    check_train(run.model_copy(update={"split": 0.9, "read": judges.read}))
    assert not caplog.records
    for changed in ({"split": run.split + 0.1}, {"split_seed": 1}):
        caplog.clear()
        check_train(run.model_copy(update=changed))
        assert "held-out prompts have trained the models that judge the training rows" in caplog.text


def test_noise_in_training_is_measured_as_its_rows_record_it(settings: Settings, toy_file: Path, tmp_path: Path) -> None:
    """The judges learn from noisy labels; what is written belongs to the recorded ones, so that the noise of a later run negates it."""
    config = settings("read.label_noise=0.2", "read.noise_seed=3", "trainer.num_train_epochs=2", data=toy_file)
    report = run(config, tmp_path / "out.jsonl").results
    groups, rows = read_groups(str(toy_file)).groups, rows_in(tmp_path / "out.jsonl")
    flipped = [with_label_noise(group, ordered_pairs(group), rate=0.2, seed=3)[0].winner == 1 for group in groups]
    assert 15 < sum(flipped) < 50
    assert np.mean([row["strength"] > 0 for row in rows]) > 0.9, "the recorded labels are right"
    noise = report["label_noise"]
    assert noise["flipped"]["pairs"] == sum(flipped)
    assert noise["flipped"]["negative"] == pytest.approx(
        np.mean([row["strength"] > 0 for row, flip in zip(rows, flipped, strict=True) if flip])
    )
    assert noise["flipped"]["negative"] > 0.8 > 0.2 > noise["kept"]["negative"]


def test_rankings_have_a_strength_for_each_ordered_pair(
    settings: Settings, pool_file: Path, tmp_path: Path, toy_rows: Callable[..., Rows], write_jsonl: Callable[..., Path]
) -> None:
    pools = [{**row, "answers": row["answers"][:3], "scores": [2.0, 1.0, 2.0]} for row in rows_in(pool_file)]
    pairs = [{"prompt": row["prompt"], "answers": [row["chosen"], row["rejected"]], "scores": [1, 0]} for row in toy_rows(30)]
    lone = {"prompt": "w1 w2", "answers": ["w3"], "scores": [1.0]}
    source = write_jsonl(tmp_path / "in.jsonl", [*pools, lone, *pairs])
    report = run(settings("trainer.max_steps=2", data=source), tmp_path / "out.jsonl").results
    found = rows_in(tmp_path / "out.jsonl")
    assert report["rows"] == {"read": 51, "written": 50, "dropped": {}, "without_an_order": 1, "replaced": 0}
    assert report["pairs"] == 2 * 20 + 30
    judges = [json.loads((tmp_path / f"out.jsonl.report/judges/{number}.json").read_text()) for number in range(4)]
    groups = [group for group in read_groups(str(source)).groups if len(group.answers) > 1]
    gaps: dict[str, list[list[float]]] = {group.origin: [] for group in groups}
    for number, judge in enumerate(judges):
        own = [group for group in groups if int(2 * split_position(group, f"strength {number // 2}")) == number % 2]
        for group, (first, second, *third) in zip(own, judge["rewards"], strict=True):
            unit = judge["scale"][1]
            gaps[group.origin].append([(first - second) / unit, *((last - second) / unit for last in third)])
    for group, row in zip(groups[:20], found, strict=False):
        assert row["strength"] == pytest.approx(np.mean(gaps[group.origin], axis=0).tolist())
        assert row["strength_std"] == pytest.approx(np.std(gaps[group.origin], axis=0).tolist())
    assert all(isinstance(row["strength"], float) for row in found[20:])
    assert [len(group.meta["strength"]) for group in read_groups(str(tmp_path / "out.jsonl")).groups[:20]] == [2] * 20


class Stopped(Exception):
    """Stands for the machine going down."""


@pytest.fixture(scope="module")
def uninterrupted(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Strength, Path]:
    """A run whose models keep checkpoints."""
    config = settings("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.max_steps=5", "layers=top:1")
    return config, run(config, tmp_path_factory.mktemp("whole") / "whole.jsonl").path


def close(one: Any, other: Any) -> bool:
    """Whether two parts of a report agree to the digits that are meant."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == other or (isinstance(one, float) and one == pytest.approx(other, rel=1e-5, abs=1e-6))


@pytest.mark.parametrize(
    ("what", "step", "kept"),
    [
        ("model 3 of 4: training", 4, 2),
        pytest.param("model 1 of 4: training", 3, 0, marks=pytest.mark.slow),
        pytest.param("model 4 of 4: scoring", 1, 3, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_at_the_same_numbers(
    what: str, step: int, kept: int, uninterrupted: tuple[Strength, Path], tmp_path: Path
) -> None:
    (config, whole), out = uninterrupted, tmp_path / "out.jsonl"

    def stop(found: str, done: int, total: int) -> None:
        if found == what and done >= step:
            raise Stopped

    with pytest.raises(Stopped):
        run(config, out, progress=stop)
    assert not out.exists()
    assert len(list(Path(f"{out}.report").glob("judges/*.json"))) == kept
    seen: list[tuple[str, int]] = []
    run(config, out, resume=True, progress=lambda what, done, total: seen.append((what, done)))
    trained = [done for name, done in seen if name == f"model {kept + 1} of 4: training" and done]
    assert trained[:1] == ([] if "scoring" in what else [(step - 1) // 2 * 2 + 1]), "from its last checkpoint; a trained model is scored"
    assert not any(name.startswith(f"model {number} of 4") for name, _ in seen for number in range(1, kept + 1)), "finished models stay"
    written = [[json.loads(line) for line in file.read_text().splitlines()] for file in (whole, out)]
    assert close(written[1], written[0]), "a model that was loaded may compute in another order"
    reports = [json.loads(Path(f"{file}.report/report.json").read_text()) for file in (whole, out)]
    for name in ("rows", "strength", "negative", "deciles", "pairs"):
        assert close(reports[1][name], reports[0][name]), name
    assert not Path(f"{out}.report/members").exists()
    again: list[str] = []
    run(config, out, resume=True, progress=lambda what, done, total: again.append(what))
    assert again == [], "a finished run is not run again"


def test_a_file_that_is_there_stays(measured: Report, settings: Settings, tmp_path: Path, few_file: Path) -> None:
    out = tmp_path / "strong.jsonl"
    shutil.copy(measured.path, out)
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match="exists; a run never overwrites a file"):
        run(settings(), out)
    with pytest.raises(CheckpointError, match=r"strong.jsonl was not written by rewardproof strength .*Name another OUT"):
        run(settings(), out, resume=True)
    with pytest.raises(CheckpointError, match="expected two different files"):
        run(settings(), few_file, overwrite=True)
    assert out.read_bytes() == before
    run(settings("trainer.max_steps=3"), out, overwrite=True)
    assert out.read_bytes() != before


def test_a_strength_that_was_there_is_replaced_and_counted(measured: Report, settings: Settings, tmp_path: Path, caplog: Any) -> None:
    report = run(settings("trainer.max_steps=3", data=measured.path), tmp_path / "again.jsonl").results
    assert report["rows"]["replaced"] == 160
    assert "the strength of 160 rows was replaced" in caplog.text
    assert [row["strength"] for row in rows_in(tmp_path / "again.jsonl")] != [row["strength"] for row in rows_in(measured.path)]


def test_rows_that_do_not_fit_are_left_out_and_counted(
    settings: Settings, tmp_path: Path, toy_rows: Callable[..., Rows], write_jsonl: Callable[..., Path], caplog: Any
) -> None:
    rows = toy_rows(40)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[9]["prompt"] = " ".join(["w50"] * 60)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    config = settings("max_length=40", "read.overlong=drop", "trainer.max_steps=3", data=source)
    report = run(config, tmp_path / "out.jsonl").results
    assert report["rows"] == {"read": 40, "written": 38, "dropped": {"identical answers": 1}, "overlong_dropped": 1, "replaced": 0}
    assert [row["prompt"] for row in rows_in(tmp_path / "out.jsonl")] == [
        row["prompt"] for place, row in enumerate(rows) if place not in (3, 9)
    ]
    assert "of 40 rows left out: 1 × identical answers, 1 × overlong dropped" in caplog.text
    with pytest.raises(DataError, match=r"in.jsonl:10: got a conversation of \d+ tokens, expected at most max_length=40"):
        run(settings("max_length=40", data=source), tmp_path / "long.jsonl")
    assert not Path(f"{tmp_path / 'long.jsonl'}.report").exists()


@pytest.mark.slow
def test_a_mixture_can_judge(settings: Settings, noisy_file: Path, tmp_path: Path) -> None:
    small = ("recipe=umm", "upcycle.n_experts=4", "upcycle.n_active=3", "merge.steps=2", "merge.held_out=0.2", "trainer.max_steps=2")
    report = run(settings(*small, data=noisy_file), tmp_path / "out.jsonl").results
    assert all("merge" in judge["summary"] for judge in report["judges"])
    assert len(rows_in(tmp_path / "out.jsonl")) == 160


def test_without_a_held_out_part_training_answers_give_the_unit(settings: Settings, tmp_path: Path) -> None:
    report = run(settings("split=0", "trainer.max_steps=2"), tmp_path / "out.jsonl").results
    assert sum(judge["trained_on"] for judge in report["judges"]) == 2 * 40


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("members=5",), "members=5 with folds=2: expected a multiple of folds, at least 4"),
    (("members=2",), "members=2 with folds=2: expected a multiple of folds, at least 4.*a spread needs two rounds"),
    (("members=4", "folds=3"), "members=4 with folds=3: expected a multiple of folds, at least 6"),
    (("recipe=warm",), "a recipe of several models or with `reuse`.*Use recipe=dense"),
    (("recipe=ensemble",), "a recipe of several models"),
    (("reuse=a/b",), "a recipe of several models or with `reuse`"),
    (("recipe=dmoerm",), "a recipe with `capabilities`, expected one that trains a single reward model on pairs"),
    (("recipe=reform",), "a recipe with `reform`"),
    (("recipe=activation",), "a recipe with `activation`"),
    (("recipe=verifier",), "a recipe with `rule`"),
    (("data=",), "No data to measure, expected at least one source"),
    (("split=1",), "split=1.0: expected a fraction"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[" ".join(overrides) for overrides, _ in REFUSED])
def test_settings_that_give_no_strength(overrides: tuple[str, ...], message: str, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(settings(*overrides), tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sed=1",), r"Unknown key 'sed' \(did you mean 'seed'\?\)"),
        (("recipe=dens",), r"Unknown recipe 'dens'"),
        (("recipe=rloo",), r"Recipe 'rloo' optimises a policy"),
        (("folds=1",), "Bad value for 'folds': got 1; input should be greater than or equal to 2"),
        (("read.strength.treatment=flop",), "Bad value for 'read.strength.treatment'"),
    ],
)
def test_keys_are_the_verb_s_own_or_those_of_train(overrides: tuple[str, ...], message: str, settings: Settings) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(*overrides)


@pytest.mark.parametrize("value", [[1], [1, "a"], [1, None], "yes", [True, False]])
def test_gold_that_is_no_number_an_answer(
    value: Any, settings: Settings, tmp_path: Path, toy_rows: Callable[..., Rows], write_jsonl: Callable[..., Path]
) -> None:
    rows = [{**row, "truth": [1, 0.5]} for row in toy_rows(12)]
    rows[4]["truth"] = value
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(DataError, match=r"in.jsonl:5: got truth=.* for gold, expected a list of 2 numbers, one an answer"):
        run(settings("gold=truth", data=source), tmp_path / "out.jsonl")


def test_data_without_pairs_or_without_prompts_for_every_fold(
    settings: Settings, tmp_path: Path, toy_rows: Callable[..., Rows], write_jsonl: Callable[..., Path]
) -> None:
    one = toy_rows(1)[0]
    same = write_jsonl(tmp_path / "same.jsonl", [{**one, "chosen": f"w{number}"} for number in range(12)])
    with pytest.raises(
        DataError, match=r"folds=2 of 12 groups leave model \d nothing for train, expected prompts in every fold.*fewer folds"
    ):
        run(settings("split=0", data=same), tmp_path / "out.jsonl")
    answers = [{"prompt": "w1 w2", "answers": [f"w{number}"], "scores": [number]} for number in range(6)]
    single = write_jsonl(tmp_path / "single.jsonl", answers)
    with pytest.raises(DataError, match=r"single.jsonl: got 6 rows of which none orders two answers.*joined in one"):
        run(settings("split=0", data=single), tmp_path / "out.jsonl")


def test_a_judge_that_learned_nothing_gives_no_unit(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"model 0 has a mean of 0 and a standard deviation of 0 over"):
        run(settings("trainer.num_train_epochs=0"), tmp_path / "out.jsonl")


def test_data_that_changes_meanwhile_is_noticed(
    settings: Settings, tmp_path: Path, toy_rows: Callable[..., Rows], write_jsonl: Callable[..., Path]
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, toy_rows(40))
    more = write_jsonl(tmp_path / "more.jsonl", toy_rows(44)).read_text()

    def grow(what: str, done: int, total: int) -> None:
        if what.startswith("model 4"):
            source.write_text(more)

    config = settings("trainer.max_steps=2", data=source)
    with pytest.raises(DataError, match=r"got 40 rows at first and 44 when they were written.*--overwrite"):
        run(config, out, progress=grow)
    with pytest.raises(CheckpointError, match=r"judges/0.json holds rewards of \d+ rows, expected \d+: the data has changed"):
        run(config, out, resume=True)
    assert not out.exists()
