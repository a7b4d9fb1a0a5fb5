"""`scripts/results.py`: rows are collected once, and the documents' tables are those of `results/`."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rewardproof.errors import CheckpointError, ConfigError, EvaluationError
from rewardproof.evaluation import ScoredRow
from rewardproof.stages.study_cell import digest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rewardproof_scripts_results", ROOT / "scripts" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAIRS = {"prompts": "aa bb cc dd", "subsets": [["harmless", 2], ["helpful", 2]], "sizes": [[1, 3], [2, 1]], "longer": "0110="}
ANSWERS = {"dense": "10110", "warm": "1011=", "umm": "11111"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A study's directory with three methods under two seeds."""
    folder = tmp_path / "runs"
    for part in ("cells", "pairs"):
        (folder / part).mkdir(parents=True)
    (folder / "pairs" / f"{digest(PAIRS)}.json").write_text(json.dumps(PAIRS))
    for method, correct in ANSWERS.items():
        for seed in (0, 1):
            row: dict[str, Any] = {
                "study": "small", "setting": "mixed", "method": method, "seed": seed, "pairs": digest(PAIRS), "correct": correct,
                "accuracy": {"reward_std": 0.5}, "training": {"seconds": {"dense": 10.0, "warm": 20.0, "umm": 35.0}[method]},
            }  # fmt: skip
            (folder / "cells" / f"mixed--{method}--{seed}.json").write_text(json.dumps(row))
    return folder


def document(options: str) -> str:
    return f"Before.\n\n<!-- table {options} -->\nold\n<!-- end of table -->\n\nAfter.\n"


def test_rows_are_collected_once(script: ModuleType, out: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert len(script.collect(out, results)) == 7
    assert script.collect(out, results) == []
    (out / "cells" / "mixed--umm--1.json").write_text(json.dumps({"study": "small", "pairs": digest(PAIRS)}))
    with pytest.raises(CheckpointError, match=r"mixed--umm--1\.json has setting='mixed' where .* has 'None', expected equal rows"):
        script.collect(out, results)
    with pytest.raises(CheckpointError, match="has no rows in cells/"):
        script.collect(tmp_path / "nothing", results)


def test_tables_are_built_from_the_results_alone(script: ModuleType, out: Path, tmp_path: Path) -> None:
    script.collect(out, tmp_path / "results")
    shutil.rmtree(out)
    text = script.built(document("study=small setting=mixed methods=umm,dense"), tmp_path / "results")
    assert text.startswith(
        "Before.\n\n<!-- table study=small setting=mixed methods=umm,dense -->\n\n| method | accuracy, % | harmless, % |"
    )
    assert text.endswith("\n\n<!-- end of table -->\n\nAfter.\n")
    umm, dense, length = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    assert umm[0] == "`umm`"
    assert [float(row[1].split()[0]) for row in (umm, dense, length)] == [100.0, 62.5, 56.2]
    assert [row[2].split()[0] for row in (dense, length)] == ["50.0", "50.0"]
    assert umm[4].split()[0] == "+37.5"
    assert dense[4] == "–"
    assert umm[-2:] == ["3.50", "2"]
    assert script.built(text, tmp_path / "results") == text


def test_columns_of_a_category_are_there_for_who_names_them(script: ModuleType, out: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    script.collect(out, results)
    named = document('study=small setting=mixed columns="maths, %;maths minus dense, points"')
    with pytest.raises(EvaluationError, match="No column 'maths, %', expected some of method, accuracy, %, harmless, %"):
        script.built(named, results)
    pairs = out / "pairs" / f"{digest(PAIRS)}.json"
    pairs.write_text(json.dumps(PAIRS | {"categories": [["maths", 1], ["", 1], ["maths", 2]]}))
    assert script.collect(out, results) == [results / "small" / "pairs" / pairs.name]
    assert script.collect(out, results) == []
    lines = [line for line in script.built(named, results).splitlines() if line.startswith("| ")]
    rows = [[cell.strip().split()[0] for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == ["method", "maths,", "maths"]
    # groups of 1, 1, 1 and 2 pairs, the second without a category
    assert {name: cells for name, *cells in rows[1:]} == {
        "`dense`": ["83.3", "–"], "`umm`": ["100.0", "+16.7"], "`warm`": ["91.7", "+8.3"], "the": ["41.7", "–"],
    }  # fmt: skip
    assert "maths" not in script.built(document("study=small setting=mixed"), results)


def test_columns_are_chosen(script: ModuleType, out: Path, tmp_path: Path) -> None:
    script.collect(out, tmp_path / "results")
    text = script.built(document('study=small setting=mixed columns="accuracy, %;minus warm, points"'), tmp_path / "results")
    assert "| method | accuracy, % | minus warm, points |" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("study=small", "Got 'study=small', expected study=, setting="),
        ("study=small setting=mixed sort=yes", "Got .*sort=yes', expected study="),
        ("study=small setting=mixed of=everything", "Got .*of=everything', expected study="),
        ("study=small setting=mixed of=policies", "No policies, expected those of one method"),
        ("study=small setting=mixed of=laws", "Got .*of=laws' without methods=, expected some that learned from preferences"),
        ("study=small setting=mixed pool=p", "No row with the pool 'p'"),
        ("study=small setting=pure", "has no row of the setting 'pure', expected one of mixed"),
    ],
)
def test_a_table_that_cannot_be_is_named(options: str, message: str, script: ModuleType, out: Path, tmp_path: Path) -> None:
    script.collect(out, tmp_path / "results")
    with pytest.raises((ConfigError, EvaluationError), match=message):
        script.built(document(options), tmp_path / "results")


def test_a_single_run_is_published_without_this_machines_folders(script: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    report = {"headline": "good", "accuracy": {"overall": 1, "calibration": []}, "peak_memory_gb": 1, "x": 2}
    factor = {"number": 0, "highest": [{"text": "a text of the data"}], "lowest": [{"text": "a text of the data"}]}
    members = [{"failures": 3, "widest": ["a text of the data"], "factors": {"strongest": [factor]}}]
    (run / "report.json").write_text(json.dumps(report | {"members": members}))
    (run / "provenance.json").write_text('{"commit": "abc"}')
    (run / "config.yaml").write_text(f"data: {tmp_path}/pairs.jsonl\n")
    target = script.publish("one", run, [f"$DATA={tmp_path}"], tmp_path / "results")
    assert json.loads(target.read_text()) == {
        "headline": "good", "accuracy": {"overall": 1}, "peak_memory_gb": 1,
        "members": [{"failures": 3, "factors": {"strongest": [{"number": 0}]}}],
        "config": {"data": "$DATA/pairs.jsonl"}, "provenance": {"commit": "abc"},
    }  # fmt: skip


def test_figures_of_documents_are_drawn_with_experts_in_one_order(script: ModuleType, out: Path, tmp_path: Path, monkeypatch) -> None:
    weights = np.array([[[0.9, 0.1], [0.7, 0.3]], [[0.2, 0.8], [0.4, 0.6]]])
    for seed, flip in ((0, 1), (1, -1)):  # experts of another seed have other numbers
        file = out / "cells" / f"mixed--umm--{seed}.json"
        told = {name: {"0": part[0].tolist(), "1": part[1].tolist()} for name, part in zip("ab", weights[:, :, ::flip], strict=True)}
        row = json.loads(file.read_text()) | {"experts": {"regime_weights": told, "regime_information": {"0": 0.3, "1": 0.5}}}
        file.write_text(json.dumps(row))
    script.collect(out, tmp_path / "results")
    seen: list[Any] = []
    figure = script.regimes_figure
    monkeypatch.setattr(script, "regimes_figure", lambda *shown, **names: (seen.append(shown), figure(*shown, **names))[1])
    for name, text in (("README.md", ""), ("docs/results.md", "![](figures/regimes-mixed-umm.png)")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert script.draw(tmp_path) == [tmp_path / "docs" / "figures" / "regimes-mixed-umm.png"]
    np.testing.assert_allclose([seen[0][0]["a"], seen[0][0]["b"]], weights)
    (tmp_path / "docs" / "results.md").write_text("")
    assert script.draw(tmp_path) == []


def test_an_unknown_verb_says_which_there_are(script: ModuleType) -> None:
    with pytest.raises(ConfigError, match="expected collect OUT, build, publish NAME RUN"):
        script.main("rebuild")


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_the_documents_are_up_to_date(name: str, script: ModuleType) -> None:
    assert name in script.DOCUMENTS
    text = (ROOT / name).read_text()
    assert script.built(text, ROOT / "results") == text, "run: make results"


def test_the_suites_of_corrected_models_are_averaged_over_seeds(script: ModuleType, tmp_path: Path) -> None:
    for seed, after in enumerate((0.5, 0.6, 0.7)):
        told = {when: {"estimate": value, "n": 50} for when, value in (("before", 0.5), ("after", after), ("gain", after - 0.5))}
        run = {"members": [{"reform": {"robustness": {"repetition/preferred": told}}}]}
        (tmp_path / f"run_{seed}.json").write_text(json.dumps(run))
    table = script.built(document("suites=run_0,run_1,run_2"), tmp_path)
    # Student's t with two degrees of freedom, 4.303, times the standard error of .5, .6, .7, which is .1 / sqrt(3).
    assert "| repetition/preferred | 50.0 [50.0, 50.0] | 60.0 [35.2, 84.8] | +10.0 [-14.8, +34.8] | 150 |" in table


def judged_run(folder: Path, method: str, seed: int, right: list[bool]) -> None:
    """What `evaluate` leaves: LLMBar rows of a model that has so many right."""
    run = folder / method / str(seed) / "whole"
    (run / "judged").mkdir(parents=True)
    rows = [
        ScoredRow(
            (float(good), 0.5), (1.0, 0.0), (3, 9), (f"{place}a", f"{place}b"), f"p{place}", origin="LLMBar/Natural/dataset.json:1",
            format="llmbar",
        ).as_dict()
        for place, good in enumerate(right)
    ]  # fmt: skip
    (run / "judged" / "0.jsonl").write_text(json.dumps({"groups": len(rows), "lengths": {}, "rows": rows}) + "\n")
    (run / "config.yaml").write_text(f"model: {folder}/model\n")
    (run / "provenance.json").write_text('{"commit": "abc"}')
    (run / "report.json").write_text("{}")


def test_benchmarks_over_seeds_become_a_table(script: ModuleType, tmp_path: Path) -> None:
    folder, results = tmp_path / "judged", tmp_path / "results"
    for seed, right in enumerate(([True, True, False, False], [True, True, True, False])):
        judged_run(folder, "dense", seed, right)
        judged_run(folder, "a_better_one", seed, [True, True, True, True])
    file = script.judged("small", folder, [f"$OUT={tmp_path}"], results)
    text = file.read_text()
    assert str(tmp_path) not in text
    first = json.loads(text)["benchmarks"]["llmbar"]["lines"][0]
    assert first["methods"]["dense"]["number"]["estimate"] == pytest.approx(5 / 8)
    assert first["methods"]["a_better_one"]["minus dense"]["estimate"] == pytest.approx(3 / 8)
    table = script.built(document("judged=small"), results)
    assert "| data | `dense`, % | `a_better_one`, % | `a_better_one` minus dense, points | longest wins, % | rows |" in table
    assert "+37.5 [" in table
    assert "(of a part of it)" in table


def test_benchmarks_are_taken_from_finished_runs_alone(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "judged"
    for seed in (0, 1):
        judged_run(folder, "dense", seed, [True, False])
    (folder / "notes.txt").write_text("no run")
    script.judged("small", folder, [], tmp_path / "results")
    (folder / "dense" / "1" / "whole" / "report.json").unlink()
    with pytest.raises(CheckpointError, match="expected the same of every seed and none that is not finished"):
        script.judged("small", folder, [], tmp_path / "results")
    with pytest.raises(CheckpointError, match="holds nothing, expected METHOD/SEED/RUN"):
        script.judged("small", tmp_path / "none", [], tmp_path / "results")


def test_benchmarks_need_the_same_seeds_for_all(script: ModuleType, tmp_path: Path) -> None:
    judged_run(tmp_path / "judged", "dense", 0, [True, False])
    judged_run(tmp_path / "judged", "umm", 1, [True, False])
    with pytest.raises(CheckpointError, match="same seeds"):
        script.judged("small", tmp_path / "judged", [], tmp_path / "results")
