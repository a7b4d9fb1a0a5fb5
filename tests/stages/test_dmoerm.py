"""`train dmoerm` on a tiny model: its phases, what it delivers, what it reports, and how it survives being interrupted."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from rewardproof.artifacts import Report
from rewardproof.cli.main import app
from rewardproof.config import apply_overrides, load_recipe, parse
from rewardproof.data import read_groups, split_by_prompt
from rewardproof.errors import ConfigError, DataError
from rewardproof.models.double_mixture import switch_to
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import DoubleMixture, load_model, load_scorer
from rewardproof.stages.train import Train, run

SLOW = pytest.mark.slow
NAMES = ("blue", "red")
POINTS = ("care", "humour")
UNTRAINED = (
    "trainer.num_train_epochs=0",
    "capabilities.trainer.router.num_train_epochs=0",
    "capabilities.trainer.mixer.num_train_epochs=0",
    "capabilities.calibrate=false",
    "capabilities.baseline=false",
)
"""Every phase is gone through, and none changes anything."""


def rows(count: int) -> list[dict[str, Any]]:
    """Prompts of two categories that two words tell apart; at each of two points an answer is good or bad, the red prefer humour."""
    draw = random.Random(0)

    def words(first: int, last: int, n: int) -> str:
        return " ".join(f"w{draw.randint(first, last)}" for _ in range(n))

    found: list[dict[str, Any]] = []
    for number in range(count):
        name = NAMES[number % 2]
        care, humour = ([float(draw.random() < 0.5) for _ in range(4)] for _ in range(2))
        weight = 2.0 if name == "red" else 0.5
        answers = [
            f"{words(0, 4, 2) if one else words(10, 14, 2)} {words(5, 9, 2) if other else words(15, 19, 2)}"
            for one, other in zip(care, humour, strict=True)
        ]
        found.append(
            {
                "prompt": words(40 if name == "red" else 60, 55 if name == "red" else 75, 5),
                "answers": answers,
                "scores": [one + weight * other for one, other in zip(care, humour, strict=True)],
                "category": name,
                "caps": {"care": care, "humour": humour},
            }
        )
    return found


def command(*arguments: object) -> None:
    """The command as a user runs it, in process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def labelled_file(write_jsonl: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("labelled") / "rows.jsonl", rows(160))


@pytest.fixture(scope="module")
def overrides(base_dir: Path, labelled_file: Path) -> list[str]:
    return [
        f"model={base_dir}", f"data={labelled_file}", "split=0.25", "compute.precision=fp32", "labels.capabilities=caps",
        "trainer.learning_rate=5e-3", "head.learning_rate=1e-2", "trainer.num_train_epochs=2", "trainer.per_device_train_batch_size=8",
        "trainer.save_strategy=no", "capabilities.trainer.experts.learning_rate=5e-3", "capabilities.trainer.mixer.num_train_epochs=4",
        "capabilities.lora.r=4", "layers=top:2", "read.on_bad=drop_unfit", "capabilities.min_validation=5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def settings(overrides: list[str]) -> Callable[..., Train]:
    def make(*more: str) -> Train:
        return parse(Train, apply_overrides(load_recipe("dmoerm"), [*overrides, *more]))

    return make


@pytest.fixture(scope="module")
def trained(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A run of the command itself."""
    out = tmp_path_factory.mktemp("dmoerm") / "run"
    command("train", "dmoerm", str(out), *overrides)
    results = json.loads((out / "report.json").read_text())
    return Report(out, results["headline"], results)


def held_out(file: Path) -> list[Any]:
    return split_by_prompt(read_groups(str(file), purpose="train", on_bad="drop_unfit").groups, fraction=0.25)[1]


def test_it_learns_and_reports_every_part_with_its_interval(trained: Report) -> None:
    found = trained.results["members"][0]["held_out"]
    assert found["router"]["accuracy"]["estimate"] > 0.8
    assert found["router"]["accuracy"]["low"] < found["router"]["accuracy"]["high"]
    for name in ("final", "base", "baseline"):
        assert set(found[name]["by_category"]) == set(NAMES)
        assert found[name]["overall"]["low"] < found[name]["overall"]["estimate"] < found[name]["overall"]["high"]
    assert found["final"]["overall"]["estimate"] > 0.6
    assert found["final"]["overall"]["estimate"] == pytest.approx(trained.results["accuracy"]["overall"]["estimate"])
    difference = found["final"]["overall"]["estimate"] - found["baseline"]["overall"]["estimate"]
    assert found["gain_over_baseline"]["estimate"] == pytest.approx(difference)
    assert found["gain_over_base"]["low"] <= found["gain_over_base"]["high"]
    for name in NAMES:
        assert set(found["experts"][name]) == set(POINTS)
        for point in found["experts"][name].values():
            assert point["expert"]["n"] == point["base"]["n"] > 10
            assert point["pairs"] > point["expert"]["n"]
    page = (trained.path / "report.html").read_text()
    assert "one model on all the preferences" in page
    assert "load_model(" in page


def test_the_phases_are_trained_on_their_shares_and_their_costs_are_told(trained: Report) -> None:
    member = trained.results["members"][0]
    for name in NAMES:
        category = member["categories"][name]
        parts = category["rows"]
        assert parts["base"]["groups"] > parts["mix"]["groups"] > parts["validation"]["groups"] > 0
        assert category["passes"] == 3, "two experts and the router"
        assert category["mixer"]["steps"] > 0
        assert category["base"]["tokens"] > 0
        assert category["baseline"]["tokens"] > category["base"]["tokens"]
        assert set(category["experts"]) == set(POINTS)
        assert all(0 < found["trainable_parameters"] < category["base"]["trainable_parameters"] for found in category["experts"].values())
        assert category["forward_gflops"] > 0
    assert member["router"]["prompts"] > member["router"]["validation_prompts"] > 0
    assert member["router"]["best_step"] > 0
    assert member["labels"]["training"]["tied_pairs"] > 0
    whole = DoubleMixture.load(trained.path / "model")
    assert trained.results["parameters"] == whole.parameters


def test_the_router_and_the_first_models_are_stock_checkpoints_and_all_weights_are_safetensors(trained: Report) -> None:
    router = AutoModelForSequenceClassification.from_pretrained(trained.path / "model" / "router")
    assert router.config.id2label == {0: "blue", 1: "red"}
    for number in range(2):
        stock = AutoModelForSequenceClassification.from_pretrained(trained.path / "model" / "categories" / str(number) / "base")
        assert stock.config.num_labels == 1
    assert not [file for file in (trained.path / "model").rglob("*") if file.suffix in {".bin", ".pt", ".pkl", ".pth"}]
    assert not (trained.path / "checkpoints").exists()


def test_rewards_are_in_units_of_their_categorys_spread(trained: Report, labelled_file: Path, settings: Callable[..., Train]) -> None:
    whole = DoubleMixture.load(trained.path / "model")
    told = trained.results["members"][0]["categories"]
    for name in NAMES:
        assert whole.scales[name] == pytest.approx((told[name]["mean"], told[name]["std"]))
    groups = split_by_prompt(read_groups(str(labelled_file), purpose="train", on_bad="drop_unfit").groups, fraction=0.25)[0]
    for name in NAMES:
        encoded, _ = whole.encode([group for group in groups if group.category == name])
        values = np.concatenate(whole.score_as(encoded, [name] * len(encoded)))
        assert values.mean() == pytest.approx(0, abs=1e-3)
        assert values.std() == pytest.approx(1, abs=1e-3)


def test_every_verb_takes_the_directory(trained: Report, labelled_file: Path, pool_file: Path, tmp_path: Path) -> None:
    model = str(trained.path / "model")
    whole = load_scorer(model)
    assert isinstance(whole, DoubleMixture)
    command("evaluate", model, str(labelled_file), "split=0.25", "precision=fp32", "--out", str(tmp_path / "evaluated"))
    judged = json.loads((tmp_path / "evaluated" / "report.json").read_text())["accuracy"][str(labelled_file)]
    assert judged["overall"]["estimate"] == trained.results["accuracy"]["overall"]["estimate"]
    command("score", model, str(labelled_file), str(tmp_path / "scored.jsonl"), "precision=fp32", "on_bad=drop")
    groups = held_out(labelled_file)
    by_prompt = {line["prompt"]: line["rewards"] for line in map(json.loads, (tmp_path / "scored.jsonl").read_text().splitlines())}
    for group, rewards in zip(groups, whole.score(groups), strict=True):
        assert by_prompt[group.prompt_text] == pytest.approx(rewards, abs=1e-4)
    command("stress", model, tmp_path / "stress", f"pool={pool_file}", "gold=scores", "precision=fp32")
    assert json.loads((tmp_path / "stress" / "report.json").read_text())["headline"]


def test_an_expert_of_the_directory_gives_the_accuracy_that_the_report_tells(trained: Report, labelled_file: Path) -> None:
    whole = DoubleMixture.load(trained.path / "model")
    model = whole.categories["red"].model
    groups = [group for group in held_out(labelled_file) if group.category == "red"]
    for number, point in enumerate(POINTS):
        switch_to(model, number)
        shares = []
        for group, row in zip(groups, RewardModel(model, whole.tokenizer).score(groups), strict=True):
            told = group.meta["caps"][point]
            gaps = [row[i] - row[j] for i in range(4) for j in range(4) if told[i] > told[j]]
            if gaps:
                shares.append(np.mean([1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]))
        expected = trained.results["members"][0]["held_out"]["experts"]["red"][point]["expert"]
        assert expected["estimate"] == pytest.approx(np.mean(shares), abs=1e-9)
        assert expected["n"] == len(shares)


def test_acceptance_1_and_defect_1_router_and_first_models_start_from_the_pretrained_weights(
    settings: Callable[..., Train], base_dir: Path, tmp_path: Path
) -> None:
    report = run(settings(*UNTRAINED), tmp_path / "out")
    pretrained = {name: tensor for name, tensor in load_file(base_dir / "model.safetensors").items() if name.startswith("model.")}
    for part in ("router", "categories/0/base", "categories/1/base"):
        found = load_file(report.path / "model" / part / "model.safetensors")
        assert {name for name in found if name != "score.weight"} == set(pretrained)
        assert all(torch.equal(found[name], tensor) for name, tensor in pretrained.items())
        assert not found["score.weight"].any()
    whole = DoubleMixture.load(report.path / "model")
    assert set(whole.scales.values()) == {(0.0, 1.0)}
    names = {name for model in whole.models for name, _ in model.model.named_parameters() if "layers.0." in name}
    places = {
        dict(model.named_parameters())[name].data_ptr()
        for model in (whole.router.model, *(m.model for m in whole.models))
        for name in names
    }
    assert len(places) == len(names), "layers in common are in memory once"


def test_every_expert_learns_by_the_recipes_own_settings(base_dir: Path, labelled_file: Path, tmp_path: Path) -> None:
    own = [f"model={base_dir}", f"data={labelled_file}", "labels.capabilities=caps", "layers=top:2", "compute.precision=fp32",
           "read.max_groups=60", "capabilities.min_pairs=10", "capabilities.baseline=false", "trainer.save_strategy=no"]  # fmt: skip
    report = run(parse(Train, apply_overrides(load_recipe("dmoerm"), own)), tmp_path / "out")
    for number, name in enumerate(NAMES):
        folder = report.path / "model" / "categories" / str(number)
        base_head = load_file(folder / "base" / "model.safetensors")["score.weight"]
        found = report.results["members"][0]["categories"][name]
        assert list(found["experts"]) == list(POINTS)
        for place, point in enumerate(POINTS):
            expert = load_file(folder / "experts" / f"point_{place:03d}" / "adapter_model.safetensors")
            moved = [float(tensor.abs().max()) for key, tensor in expert.items() if "lora_B" in key]
            assert min(moved) > 1e-3, "more than a step or two at a vanishing rate"
            head = next(tensor for key, tensor in expert.items() if "score" in key)
            assert 0 < float((head - base_head).abs().max()) < 10 * max(moved), "the head does not run ahead of its adapter"
            assert "best_step" not in found["experts"][point], "a handful of pairs chooses no state"


class Stopped(Exception):
    """Stands for the machine going down."""


def stopping_at(wanted: str, step: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == wanted and done >= step:
            raise Stopped

    return progress


@pytest.mark.parametrize(
    ("what", "step", "finished"),
    [
        ("red: humour", 4, {"router", "blue: base", "blue: care", "blue: mixture", "red: base", "red: care"}),
        pytest.param("router", 4, set(), marks=SLOW),
        pytest.param("blue: base", 4, {"router"}, marks=SLOW),
        pytest.param("red: mixture", 4, {"router", "red: humour", "red: care", "blue: mixture"}, marks=SLOW),
    ],
)
def test_an_interrupted_run_ends_at_the_same_numbers_and_repeats_no_finished_phase(
    what: str, step: int, finished: set[str], settings: Callable[..., Train], tmp_path: Path
) -> None:
    every = ["trainer.max_steps=6", "trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.eval_strategy=steps",
             "trainer.eval_steps=2", "read.max_groups=60", "capabilities.min_pairs=1", "capabilities.lora.lora_dropout=0.2",
             "labels.points={blue: [care], red: [care, humour]}", "capabilities.baseline=false"]  # fmt: skip
    config = settings(*every)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "broken", progress=stopping_at(what, step))
    assert not (tmp_path / "broken" / "model" / "dmoerm.yaml").exists(), "half a model is none"
    seen: list[tuple[str, int]] = []
    resumed = run(config, tmp_path / "broken", resume=True, progress=lambda name, done, total: seen.append((name, done)))
    assert not finished & {name for name, _ in seen}
    assert next(done for name, done in seen if name == what) == (step - 1) // 2 * 2 + 1, "it went on from its checkpoint"
    files = sorted(file.relative_to(whole.path) for file in (whole.path / "model").rglob("*.safetensors"))
    assert len(files) == 1 + (1 + 1 + 1) + (1 + 2 + 1), "a router, first models, three experts, two networks"
    for file in files:
        ours, theirs = load_file(whole.path / file), load_file(resumed.path / file)
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-6, atol=1e-6)
    assert resumed.results["accuracy"] == whole.results["accuracy"]
    assert resumed.results["members"][0]["held_out"] == whole.results["members"][0]["held_out"]
    assert (whole.path / "model" / "dmoerm.yaml").read_text() == (resumed.path / "model" / "dmoerm.yaml").read_text()


def unlabelled(file: Path, target: Path, every: int) -> Path:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [{**row, "category": ""} if number % every == 0 else row for number, row in enumerate(lines)]
    target.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return target


def test_prompts_without_a_category_stop_are_left_out_or_are_routed(
    settings: Callable[..., Train], labelled_file: Path, tmp_path: Path
) -> None:
    data = f"data={unlabelled(labelled_file, tmp_path / 'some.jsonl', 5)}"
    with pytest.raises(DataError, match=r"some.jsonl:\d+: got a prompt without a category in column 'category' \(one of \d+\)"):
        run(settings(data), tmp_path / "fail")
    counted: dict[str, int] = {}
    for how in ("drop", "route"):
        report = run(
            settings(data, *UNTRAINED, "capabilities.trainer.router.num_train_epochs=3", f"labels.unlabelled={how}"), tmp_path / how
        )
        member = report.results["members"][0]
        assert member["labels"]["training"]["without_category"] > 10
        assert member["labels"]["training"].get("routed", 0) == (member["labels"]["training"]["without_category"] if how == "route" else 0)
        assert member["held_out"]["router"]["without_label"] > 0
        counted[how] = sum(part["groups"] for name in NAMES for key, part in member["categories"][name]["rows"].items() if key != "points")
    assert counted["route"] > counted["drop"]
    assert counted["route"] == report.results["rows"]["train"], "every prompt went to a category"


def test_a_small_category_is_judged_by_one_model_of_all_unless_that_is_refused(
    settings: Callable[..., Train], labelled_file: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in labelled_file.read_text().splitlines()]
    names = {0: "green", 5: "green", 10: "green", 15: "black", 20: "black", 25: "black"}
    few = [{**row, "category": names.get(number, row["category"])} for number, row in enumerate(lines)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    changed = (f"data={tmp_path / 'few.jsonl'}", *UNTRAINED, "capabilities.min_pairs=40")
    with pytest.raises(DataError, match=r"Category 'black': got pairs for .*capabilities.small=fallback"):
        run(settings(*changed, "capabilities.small=fail"), tmp_path / "fail")
    report = run(settings(*changed, "capabilities.trainer.base.num_train_epochs=1"), tmp_path / "out")
    green = report.results["members"][0]["categories"]["green"]
    assert green["fallback"] is True
    assert green["passes"] == 2
    whole = load_model(str(report.path / "model"))
    assert isinstance(whole, DoubleMixture)
    assert whole.categories["green"].experts is None
    assert (report.path / "model" / "general" / "base" / "model.safetensors").is_file()
    log = [json.loads(line) for line in (report.path / "log.jsonl").read_text().splitlines()]
    trained = [entry["step"] for entry in log if entry["phase"] == "general: base" and "train_runtime" in entry]
    assert len(trained) == 1, "one model judges both small categories"
    parts = [category["rows"] for category in report.results["members"][0]["categories"].values()]
    assert trained == [math.ceil(sum(part["base"]["groups"] + part["mix"]["groups"] for part in parts) / 8)], "it learns from all of them"
    assert whole.categories["green"] is whole.categories["black"]


def test_verdicts_of_an_endpoint_are_learned_from_and_kept(
    settings: Callable[..., Train], serve: Callable[..., str], tmp_path: Path
) -> None:
    asked: list[str] = []

    def judge(body: dict[str, Any]) -> tuple[int, str]:
        text = body["messages"][0]["content"]
        asked.append(text)
        first, second = text.partition("[Reply 1]")[2].partition("Which reply")[0].split("[Reply 2]")
        verdict = 1 if "else: humour." in text and first > second else 2
        return 200, json.dumps({"choices": [{"message": {"content": str(verdict)}}]})

    address = f"labels.capabilities={serve(judge)}"
    points = "labels.points={blue: [humour, care], red: [humour]}"
    config = settings(
        *UNTRAINED,
        address,
        points,
        "read.max_groups=40",
        "read.pairs_per_group=2",
        "capabilities.min_pairs=1",
        "capabilities.small=fallback",
    )
    with pytest.raises(Stopped):
        run(config, tmp_path / "out", progress=stopping_at("scoring", 1))
    n_asked = len(asked)
    report = run(config, tmp_path / "out", resume=True)
    assert len(asked) == n_asked > 0, "nobody is asked twice"
    labels = report.results["members"][0]["labels"]["training"]
    assert labels["inconsistent"] > 0, "about care it always says the second"
    assert len((tmp_path / "out" / "capability_labels.jsonl").read_text().split()) > 0
    for name in NAMES:
        assert report.results["members"][0]["categories"][name]["points"] == ["humour"]


def test_one_category_is_nothing_to_route(settings: Callable[..., Train], labelled_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got 1 categories in column 'meta_column', expected two or more"):
        run(settings("labels.category=meta_column", "labels.unlabelled=drop", f"data={_one(labelled_file, tmp_path)}"), tmp_path / "out")


def _one(file: Path, folder: Path) -> Path:
    lines = [{**json.loads(line), "meta_column": "only"} for line in file.read_text().splitlines()]
    (folder / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder / "one.jsonl"


REFUSED = {
    "members=2": "Got `capabilities` with members, expected it alone",
    "upcycle={}": "Got `capabilities` with upcycle, expected it alone",
    "reuse=a/b": "Got `capabilities` with reuse, expected it alone",
    "domain.model=a/b": "Got `capabilities` with domain, expected it alone",
    "contrast.method=simcse": "Got `capabilities` with contrast, expected it alone",
    "policy_loss.weight=1": "Got `capabilities` with policy_loss, expected it alone",
    "factors={}": "Got `capabilities` with factors, expected it alone",
    "loss.language=0.1": "Got `capabilities` with loss.language, expected it alone",
    "layers=top:0": "layers=top:0 with `capabilities`, expected layers that experts can be adapters on",
    "capabilities.trainer.mixer.learning_rat=1": "Unknown key 'trainer.learning_rat'",
    "trainer.eval_strategy=no": "Got eval_strategy=no for router, base, experts, mixer with capabilities.validation=0.1",
    "capabilities.trainer.mixer.eval_strategy=no": "Got eval_strategy=no for mixer with",
    "capabilities.share=1": "Unknown key 'capabilities.share'",
}


@pytest.mark.parametrize("override", REFUSED)
def test_settings_that_cannot_work(override: str, settings: Callable[..., Train], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=REFUSED[override]):
        run(settings(override), tmp_path / "out")


def test_labels_alone_are_refused(base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    config = parse(Train, {"model": str(base_dir), "data": str(toy_file), "labels": {}})
    with pytest.raises(ConfigError, match="Got `labels` without `capabilities`, expected both"):
        run(config, tmp_path / "out")
