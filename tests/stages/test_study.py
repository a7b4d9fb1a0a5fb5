"""`study` on a tiny model: cells become rows once, an interrupted study goes on, and what cannot be is said before any work."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.config import apply_overrides, dump_yaml, load_study, load_yaml, parse
from rewardproof.data import read_groups, split_by_prompt
from rewardproof.data.splitting import split_salt
from rewardproof.errors import CheckpointError, ConfigError, EvaluationError, StorageError
from rewardproof.evaluation import pair_accuracy
from rewardproof.stages import study as stage
from rewardproof.stages.evaluate import Evaluate
from rewardproof.stages.evaluate import run as evaluate
from rewardproof.stages.merge import MergeModels
from rewardproof.stages.merge import run as run_merge
from rewardproof.stages.study import run
from rewardproof.stages.study_cell import digest
from rewardproof.stages.study_plan import Study, unfold
from rewardproof.stages.study_tables import load_settings, setting_table
from rewardproof.stages.upcycle import UpcycleModel
from rewardproof.stages.upcycle import run as run_upcycle
from rewardproof.training.preparation import Sources, prepare

EXAMPLE = """
name: tiny
common:
  model: $BASE
  split: 0.4
  compute: {precision: fp32}
  head: {learning_rate: 1e-2}
  trainer: {learning_rate: 5e-3, num_train_epochs: 1, per_device_train_batch_size: 8, save_strategy: "no"}
settings:
  toy: {data: [$TOY]}
  few: {data: [$TOY], read: {max_groups: 40, max_held_out: 30}}
methods:
  uniform: {of: umm, merge: {method: uniform}}
  dense: {recipe: dense}
  umm: {recipe: umm, upcycle: {n_experts: 4, n_active: 3}, merge: {steps: 2, held_out: 0.3}}
  moe_unmerged: {of: umm, take: moe}
  warm: {recipe: warm, members: 2, reuse: dense}
seeds: [0, 1]
"""
Made = Callable[..., Study]


@pytest.fixture(scope="session")
def study(base_dir: Path, toy_file: Path) -> Made:
    """`study("seeds=[0]", only="toy/*")`: the example with overrides, then with keys replaced."""

    def make(*overrides: str, **replaced: Any) -> Study:
        paths = [f"paths.BASE={base_dir}", f"paths.TOY={toy_file}"]
        return parse(Study, {**apply_overrides(load_yaml(EXAMPLE, origin="example"), [*paths, *overrides]), **replaced})

    return make


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted((out / "cells").glob("*.json"))}


@pytest.fixture(scope="session")
def made(study: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small setting under one seed."""
    out = tmp_path_factory.mktemp("study") / "out"
    report = run(study(only="few/*/0"), out)
    assert report.results["failures"] == {}
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def test_a_method_comes_directly_after_the_one_it_needs(study: Made) -> None:
    cells = unfold(study())
    assert [cell.name for cell in cells[:5]] == ["toy/dense/0", "toy/warm/0", "toy/umm/0", "toy/uniform/0", "toy/moe_unmerged/0"]
    assert len(cells) == 20
    assert [(cell.seed, cell.config.seed, cell.config.split_seed) for cell in cells[::5][:2]] == [(0, 0, 0), (1, 1000, 1)]


def test_only_takes_what_the_chosen_need(study: Made) -> None:
    assert [cell.name for cell in unfold(study(only="few/moe*/1,toy/dense/0"))] == ["toy/dense/0", "few/umm/1", "few/moe_unmerged/1"]


def test_a_row_says_what_it_is_of(made: Path, base_dir: Path, toy_file: Path) -> None:
    found = rows(made)
    assert len(found) == 5
    for row in found.values():
        pairs = json.loads((made / "pairs" / f"{row['pairs']}.json").read_text())
        assert (
            len(row["correct"]) == len(pairs["longer"]) == sum(size * count for size, count in pairs["sizes"]) == row["accuracy"]["n_pairs"]
        )
        share = (row["correct"].count("1") + 0.5 * row["correct"].count("=")) / len(row["correct"])
        assert share == pytest.approx(row["accuracy"]["overall"]["estimate"])
        assert row["pairs"] == digest({key: value for key, value in pairs.items() if key != "categories"})
        assert row["config"]["train"]["data"] == ["$TOY"]
        text = json.dumps(row)
        assert not any(str(path) in text for path in (made, base_dir, toy_file))
    assert len({row["pairs"] for row in found.values()}) == 1
    assert len(pairs["prompts"].split()) == 30


def test_costs_of_what_a_method_builds_on_are_its_own(made: Path) -> None:
    found = rows(made)
    steps = {name: row["training"]["steps"] for name, row in found.items()}
    assert steps["few--warm--0"] == 2 * steps["few--dense--0"] == 10
    assert steps["few--uniform--0"] == steps["few--moe_unmerged--0"] == steps["few--umm--0"] > 0
    assert found["few--warm--0"]["training"]["tokens"] > found["few--dense--0"]["training"]["tokens"] > 0


def test_a_mixture_is_judged_and_folded_again(made: Path) -> None:
    found = rows(made)
    uniform, learned, unmerged = (found[f"few--{name}--0"] for name in ("uniform", "umm", "moe_unmerged"))
    assert unmerged["accuracy"]["overall"] == learned["merge"]["held_out"]["mixture_accuracy"]
    assert uniform["merge"]["method"] == "uniform"
    assert uniform["merge"]["divergence"] == learned["merge"]["divergence"] == unmerged["mixture"]["divergence"]
    assert uniform["merge"]["routing"] == learned["merge"]["routing"]
    for part in ("train", "merge_fit", "merge_stop"):
        assert uniform["rows"][part] == learned["rows"][part]


def test_weights_are_gone_and_reports_stay(made: Path) -> None:
    assert not list(made.rglob("*.safetensors"))
    assert len(list(made.glob("runs/few/*/0/report.json"))) == 5


def test_rows_are_never_written_again(study: Made, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: (file.stat().st_mtime_ns, file.read_text()) for file in copy.glob("cells/*.json")}
    monkeypatch.setattr(stage, "run_cell", None)
    said: list[str] = []
    report = run(study(only="few/*/0"), copy, say=said.append)
    assert said == ["5 of 5 cells are there"]
    assert report.headline == "5 of 5 cells have a row"
    assert {file: (file.stat().st_mtime_ns, file.read_text()) for file in copy.glob("cells/*.json")} == before


def test_a_run_that_ended_is_collected_and_models_that_went_are_made_again(study: Made, copy: Path) -> None:
    before = rows(copy)
    (copy / "cells" / "few--dense--0.json").unlink()
    (copy / "cells" / "few--moe_unmerged--0.json").unlink()
    shutil.rmtree(copy / "runs" / "few" / "moe_unmerged")
    said: list[str] = []
    run(study(only="few/*/0"), copy, say=said.append)
    assert any("few/umm/0 once more" in line for line in said)
    after = rows(copy)
    assert after["few--dense--0"]["seconds"] == before["few--dense--0"]["seconds"], "not run again"
    assert after["few--moe_unmerged--0"]["correct"] == before["few--moe_unmerged--0"]["correct"]
    assert not list(copy.rglob("*.safetensors"))


def test_rows_from_earlier_are_taken_over(study: Made, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tmp_path / "published"
    shutil.copytree(made / "cells", published)
    shutil.copytree(made / "pairs", published / "pairs")
    monkeypatch.setattr(stage, "run_cell", None)
    report = run(study(only="few/*/0", rows=str(published)), tmp_path / "out")
    assert report.headline == "5 of 5 cells have a row"
    assert rows(tmp_path / "out") == rows(made)
    with pytest.raises(ConfigError, match="holds no rows"):
        run(study(rows=str(tmp_path / "nowhere")), tmp_path / "other")


def test_other_settings_are_refused_by_row_and_key(study: Made, copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"few--dense--0\.json was made with train\.trainer\.learning_rate=0\.005, expected 0\.1"):
        run(study("common.trainer.learning_rate=0.1", only="few/*/0"), copy)
    changed = study().methods | {"uniform": {"of": "umm", "merge": {"method": "uniform", "shared_weight": 0.1}}}
    with pytest.raises(CheckpointError, match=r"few--uniform--0\.json was made with merge\.shared_weight=0\.5, expected 0\.1"):
        run(study(methods=changed, only="few/*/0"), copy)


def test_a_setting_that_is_younger_than_a_row_counts_as_its_default(study: Made, copy: Path) -> None:
    file = copy / "cells" / "few--dense--0.json"
    row = json.loads(file.read_text())
    del row["config"]["train"]["compute"]["save_dtype"]
    file.write_text(json.dumps(row))
    run(study(only="few/dense/0"), copy)
    with pytest.raises(CheckpointError, match="save_dtype='fp32', expected 'bf16'"):
        run(study("common.compute.save_dtype=bf16", only="few/dense/0"), copy)
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as a row"):
        run(study(only="few/dense/0"), copy)


def test_a_failing_cell_leaves_the_others_alone(study: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stage.run_cell

    def breaks(cell: Any, place: Any) -> Any:
        if cell.method == "umm":
            raise ValueError("no luck")
        return real(cell, place)

    monkeypatch.setattr(stage, "run_cell", breaks)
    said: list[str] = []
    report = run(study(only="few/*/0"), tmp_path / "out", say=said.append)
    assert sorted(rows(tmp_path / "out")) == ["few--dense--0", "few--warm--0"]
    assert sorted(report.results["failures"]) == ["few/moe_unmerged/0", "few/umm/0", "few/uniform/0"]
    assert report.results["failures"]["few/umm/0"] == "ValueError: no luck"
    assert "few/umm/0 failed, expected its model" in report.results["failures"]["few/uniform/0"]
    assert "failed: few/umm/0, few/uniform/0, few/moe_unmerged/0" in report.headline
    assert "cell 3 of 5 · few/umm/0 · failed: no luck" in said
    records = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert "Traceback" in records[0]["traceback"]


@pytest.mark.slow
def test_an_interrupted_study_goes_on(study: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    real, out = stage.run_cell, tmp_path / "out"

    def interrupted(cell: Any, place: Any) -> Any:
        started.append(cell.name)
        if len(started) == 4:
            cell.folder(out).mkdir(parents=True)
            (cell.folder(out) / "config.yaml").write_text("half a run")
            raise KeyboardInterrupt
        return real(cell, place)

    monkeypatch.setattr(stage, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(study(), out)
    assert len(rows(out)) == 3
    said: list[str] = []
    report = run(study(), out, say=said.append)
    assert report.results["failures"] == {}
    assert said[0] == "3 of 20 cells are there"
    assert "left" in said[1]
    assert len(started) == 4 + 17
    assert len(rows(out)) == 20
    assert len(list((out / "pairs").iterdir())) == 4
    assert (out / "tables.md").read_text().count("| `warm` |") == 2


@pytest.mark.parametrize(("text", "expected"), [("seeds=0,1", (0, 1)), ("seeds=3", (3,)), ("seeds=[1, 2]", (1, 2))])
def test_seeds_as_they_are_written_on_the_command_line(text: str, expected: tuple[int, ...]) -> None:
    assert parse(Study, apply_overrides({"name": "x", "settings": {}, "methods": {}}, [text])).seeds == expected


def test_seeds_split_differently_and_zero_as_ever(toy_file: Path) -> None:
    groups = read_groups(str(toy_file), purpose="train").groups
    held = [{group.prompt_key for group in split_by_prompt(groups, fraction=0.4, salt=split_salt(seed))[1]} for seed in (0, 1, 2)]
    assert held[0] == {group.prompt_key for group in split_by_prompt(groups, fraction=0.4)[1]}
    assert held[0] != held[1] != held[2] != held[0]
    assert split_salt(1, "merge") not in {split_salt(1), split_salt(2, "merge"), split_salt(0, "merge")}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"settings": {}}, "has no settings"),
    ({"settings": {"Toy--a": {}}}, "Got the setting name 'Toy--a'"),
    ({"seeds": [0, 0]}, r"Got seeds=\[0, 0\]"),
    ({"seeds": []}, r"Got seeds=\[\]"),
    ({"settings": {"toy": {"data": ["$TOY"], "splitt": 0.1}}}, r"toy/dense: Unknown key 'splitt' \(did you mean 'split'\?\)"),
    ({"methods": {"a": {"recipe": "dens"}}}, r"toy/a: Unknown recipe 'dens' \(did you mean 'dense'\?\)"),
    ({"methods": {"a": {"recipe": "dense", "trainr": {}}}}, r"toy/a: Unknown key 'trainr' \(did you mean 'trainer'\?\)"),
    ({"methods": {"a": {"layers": "all"}}}, "Missing `recipe` or `of`"),
    ({"methods": {"a": {"recipe": "dense", "seed": 4}}}, "Got seed=4, expected none"),
    ({"methods": {"a": {"recipe": "dense", "split": 0}}}, "holds nothing out"),
    ({"methods": {"umm": {"recipe": "umm"}, "a": {"of": "um", "take": "moe"}}}, r"needs 'um' \(did you mean 'umm'\?\)"),
    ({"methods": {"umm": {"recipe": "umm"}, "a": {"of": "umm"}}}, "of take, merge, combine, average, align, expected one"),
    ({"methods": {"umm": {"recipe": "umm"}, "a": {"of": "umm", "take": "model"}}}, "Got take='model', expected moe"),
    ({"methods": {"umm": {"recipe": "umm"}, "a": {"of": "umm", "tke": "moe"}}}, r"Unknown key 'tke' \(did you mean 'take'\?\)"),
    ({"methods": {"dense": {"recipe": "dense"}, "a": {"of": "dense", "take": "moe"}}}, "of=dense leaves no mixture"),
    ({"methods": {"ewa": {"recipe": "ewa"}, "a": {"of": "ewa", "merge": {"method": "learned"}}}}, "ewa kept none of its prompts"),
    (
        {"methods": {"umm": {"recipe": "umm"}, "a": {"of": "umm", "merge": {"held_out": 0.2}}}},
        "learned with held_out=0.2, but umm kept held_out=0.1 of its prompts",
    ),
    ({"methods": {"a": {"of": "b", "take": "moe"}, "b": {"of": "a", "take": "moe"}}}, "need each other in a circle"),
    ({"methods": {"warm": {"recipe": "warm"}, "a": {"recipe": "warm", "reuse": "warm"}}}, "reuse=warm is no single training run"),
    (
        {"methods": {"d": {"recipe": "dense", "max_length": 9}, "a": {"recipe": "warm", "reuse": ["d"]}}},
        "reuse=d, but it has max_length=9 where this method has 2048",
    ),
    ({"settings": {"toy": {"data": ["$ELSEWHERE/x"]}}}, r"toy: \$ELSEWHERE/x has no path .* add paths.ELSEWHERE="),
    ({"only": ["toy/x/*"]}, "only=toy/x/. matches no cell"),
]


@pytest.mark.parametrize(("replaced", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_cannot_be_is_said_before_any_work(replaced: dict[str, Any], message: str, study: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(study(**replaced), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_directories_and_files_are_refused(study: Made, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something that is no study"):
        run(study(), tmp_path / "full")
    with pytest.raises(CheckpointError, match="holds the study 'tiny', expected 'big'"):
        run(study(name="big"), copy)
    with pytest.raises(ConfigError, match="is no file, expected the YAML file of a study"):
        load_study("nothing.yaml")


def test_the_command_goes_on_and_fails_as_its_cells_do(made: Path, copy: Path, base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(EXAMPLE)
    call = ["study", str(file), str(copy), f"paths.BASE={base_dir}", f"paths.TOY={toy_file}"]
    result = CliRunner().invoke(app, [*call, "only=few/*/0"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"{copy}: 5 of 5 cells have a row"
    assert json.loads(CliRunner().invoke(app, [*call, "only=few/*/0", "--json"]).stdout)["cells"] == 5
    failing = CliRunner().invoke(app, [*call[:-1], f"paths.TOY={tmp_path}/gone.jsonl", "only=few/dense/1"])
    assert failing.exit_code == 1
    assert "0 of 1 cells have a row; failed: few/dense/1" in failing.output
    assert CliRunner().invoke(app, call[:-1]).exit_code == 2


def test_a_row_tells_of_factors_without_the_answers_that_they_respond_to(study: Made, tmp_path: Path) -> None:
    methods = {"bnrm": {"recipe": "bnrm", "factors": {"n_factors": 4}, "trainer": {"max_steps": 2}}}
    run(study(methods=methods, only="few/bnrm/0"), tmp_path / "out")
    ((name, row),) = rows(tmp_path / "out").items()
    assert name == "few--bnrm--0"
    assert row["factors"]["strongest"]
    assert not any("highest" in one or "lowest" in one for one in row["factors"]["strongest"])


def test_the_split_of_a_cell_is_that_of_merge_and_evaluate(
    reward_dir: Path, toy_file: Path, study: Made, tmp_path: Path, tiny: ModuleType
) -> None:
    train = next(cell for cell in unfold(study()) if cell.seed == 1).config
    sources = Sources((str(toy_file),), (), train.split, 0.0, train.read, 200, split_seed=train.split_seed)
    prepared = prepare(sources, tiny.word_tokenizer())
    report, _ = evaluate(Evaluate(model=str(reward_dir), data=(str(toy_file),), split=0.4, split_seed=1, precision="fp32"))
    (found,) = report.results["accuracy"].values()
    assert found["length_only"] == pair_accuracy(prepared.held_out, [(0.0, 1.0)] * len(prepared.held_out)).as_dict()["length_only"]
    upcycled = run_upcycle(UpcycleModel(model=str(reward_dir), n_experts=4, n_active=3), tmp_path / "moe").path / "model"
    merging = MergeModels(models=(str(upcycled),), data=(str(toy_file),), method="uniform", split=0.4, split_seed=1)
    merged = run_merge(merging, tmp_path / "merged")
    assert merged.results["rows"]["held_out_set"] == prepared.rows["held_out_set"]
    assert merged.results["accuracy"]["length_only"] == found["length_only"]


def test_tables_compare_on_the_same_pairs(made: Path) -> None:
    few = load_settings(made / "cells", made / "pairs")["few"]
    table = setting_table(few, ["dense", "umm"])
    assert table.columns == (
        "method", "accuracy, %", "minus dense, points", "minus warm, points", "reward spread", "training time over dense",
        "training, × dense", "seeds",
    )  # fmt: skip
    assert [row[0] for row in table.rows] == ["`dense`", "`umm`", "the longer answer wins"]
    dense, umm = (few.rows[name][0]["accuracy"]["overall"]["estimate"] for name in ("dense", "umm"))
    assert few.difference("umm", "dense").estimate == pytest.approx(umm - dense)  # pyright: ignore[reportOptionalMemberAccess]
    assert table.rows[2][1] == f"{100 * few.rows['dense'][0]['accuracy']['length_only']['estimate']:.1f}" + str(table.rows[2][1])[4:]
    assert setting_table(few, ["umm"], ["seeds"]).rows[0] == ("`umm`", "1")
    spent = {name: few.rows[name][0]["training"]["tflops"] for name in ("dense", "umm")}
    assert setting_table(few, ["umm"], ["training, × dense"]).rows[0][1] == f"{spent['umm'] / spent['dense']:.2f}"
    del few.rows["umm"][0]["training"]["tflops"]
    assert setting_table(few, ["dense", "umm"], ["training, × dense"]).rows[1][1] == "–"
    few.rows["umm"][0]["pairs"] = "others"
    assert few.difference("umm", "dense") is None


def test_tables_name_what_is_missing(made: Path, copy: Path) -> None:
    few = load_settings(made / "cells", made / "pairs")["few"]
    with pytest.raises(EvaluationError, match="No row of the method 'umn'"):
        setting_table(few, ["umn"])
    with pytest.raises(EvaluationError, match="No column 'speed'"):
        setting_table(few, [], ["speed"])
    shutil.rmtree(copy / "pairs")
    with pytest.raises(EvaluationError, match="is of the held-out pairs"):
        load_settings(copy / "cells", copy / "pairs")


def test_two_calls_do_not_fill_one_directory(tmp_path: Path, study: Callable[..., Study]) -> None:
    config = study("seeds=[0]", only="toy/dense/*")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.yaml").write_text(f"name: {config.name}\n")
    with (tmp_path / "out" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match=r"is being filled by another `rewardproof study`"):
            run(config, tmp_path / "out")


def test_a_full_disk_ends_the_study_and_is_no_cells_failure(
    tmp_path: Path, study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("its disk is full")

    monkeypatch.setattr(stage, "run_cell", full)
    with pytest.raises(StorageError, match="its disk is full"):
        run(study("seeds=[0]", only="toy/dense/*"), tmp_path / "out")
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_a_failed_cell_ends_the_command_with_one(study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EvaluationError("this cell cannot be")

    config = study("seeds=[0]", only="toy/dense/*")
    file = tmp_path / "study.yaml"
    file.write_text(dump_yaml(config))
    monkeypatch.setattr(stage, "run_cell", broken)
    done = CliRunner().invoke(app, ["study", str(file), str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "0 of 1 cells have a row; failed: toy/dense/0" in done.stderr


def test_several_processes_are_refused_where_a_verb_does_not_share_its_work(
    study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    file = tmp_path / "study.yaml"
    file.write_text(dump_yaml(study("seeds=[0]")))
    done = CliRunner().invoke(app, ["study", str(file), str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "Got 2 processes, expected one" in done.stderr
