"""`search` on tiny models: what it leaves is proved by scoring it again; what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rewardproof.artifacts import Report
from rewardproof.config import apply_overrides, parse
from rewardproof.data import read_groups
from rewardproof.errors import CheckpointError, ConfigError, DataError, ModelError
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import Combine, ModelEnsemble, Scale
from rewardproof.stages.search import Search, run

Settings = Callable[..., Search]


@pytest.fixture(scope="module")
def settings(reward_dir: Path, base_dir: Path, toy_file: Path) -> Settings:
    """`settings("key=value", …)`: the verb at the size of a test."""
    given = {"model": str(reward_dir), "data": str(toy_file), "aligned": str(base_dir), "flipped": str(base_dir)}

    def make(*overrides: str) -> Search:
        return parse(Search, apply_overrides(given, ["max_new_tokens=6", "top_k=8", "alpha=0", "share=0.2", *overrides]))

    return make


@pytest.fixture(scope="module")
def searched(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return run(settings("pairing=both", "share=0.6"), tmp_path_factory.mktemp("search") / "out")


def rows_of(report: Report) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (report.path / "failures.jsonl").read_text().splitlines()]


def test_every_failure_is_one_on_the_whole_text(searched: Report, reward_dir: Path) -> None:
    """The finished texts scored again, end token and all: the model orders every row against what the row says."""
    groups = read_groups(str(searched.path / "failures.jsonl")).groups
    kinds = [str(group.meta["failure"]) for group in groups]
    assert {"preferred", "non_preferred", "both"} == set(kinds)
    rewards = RewardModel.load(reward_dir).score(groups)
    for group, kind, (first, second) in zip(groups, kinds, rewards, strict=True):
        assert group.scores == (1.0, 0.0)
        if kind != "both":
            assert first < second, "the reward model says the opposite of the row"
            own = first if kind == "preferred" else second
            assert own == pytest.approx(group.meta["rewards"][2], abs=1e-5)
    texts = [(group.prompt_text, group.answer_texts) for group in groups]
    assert len(set(texts)) == len(texts)


def test_the_pairs_searched_are_those_of_the_lowest_loss(searched: Report, reward_dir: Path, toy_file: Path) -> None:
    groups = read_groups(str(toy_file)).groups
    gaps = {group.origin: first - second for group, (first, second) in zip(groups, RewardModel.load(reward_dir).score(groups), strict=True)}
    surest = sorted(gaps, key=lambda origin: -gaps[origin])[:96]
    assert searched.results["searched_pairs"] == 96
    assert {row["meta"]["source"] for row in rows_of(searched)} <= set(surest)


def test_its_report_accounts_for_every_variant(searched: Report) -> None:
    report = json.loads((searched.path / "report.json").read_text())
    assert report == searched.results
    for kind in ("preferred", "non_preferred"):
        assert sum(report["variants"][kind].values()) == 96
        assert report["perplexity"][kind] > 1
    assert report["failures"] == sum(report["variants"][kind]["failures"] for kind in report["variants"]) > 0
    assert report["rows"]["written"] == len(rows_of(searched))
    widths = [abs(one["rewards"]["variant"] - one["rewards"]["against"]) for one in report["widest"]]
    assert widths == sorted(widths, reverse=True)
    page = (searched.path / "report.html").read_text()
    assert report["widest"][0]["variant"].split()[0] in page
    assert "failures found for" in report["headline"]
    assert "[" in report["headline"]


def test_a_search_is_repeatable_and_the_seed_draws_others(settings: Settings, tmp_path: Path) -> None:
    drawn = ["form=released", "variants=3", "share=0.1"]
    first, again = (run(settings(*drawn), tmp_path / name) for name in ("a", "b"))
    other = run(settings(*drawn, "seed=1"), tmp_path / "c")
    assert rows_of(first) == rows_of(again) != rows_of(other)
    assert sum(first.results["variants"]["preferred"].values()) == 3 * 16


def test_one_class_alone_needs_one_policy(settings: Settings, tmp_path: Path) -> None:
    report = run(settings("classes=preferred", "flipped=", "max_pairs=5"), tmp_path / "out")
    assert set(report.results["variants"]) == {"preferred"}
    assert report.results["searched_pairs"] == 5
    assert {row["meta"]["failure"] for row in rows_of(report)} <= {"preferred"}


def test_raw_text_is_searched_as_raw_text(settings: Settings, reward_dir: Path, tmp_path: Path) -> None:
    report = run(settings("text=raw", "max_pairs=8"), tmp_path / "out")
    groups = read_groups(str(report.path / "failures.jsonl"), text="raw").groups
    assert groups
    rewards = RewardModel.load(reward_dir).score([group for group in groups if group.meta["failure"] != "both"])
    assert all(first < second for first, second in rewards)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["aligned="], r"Missing aligned=: expected a language model that writes preferred .* align dpo\), or write classes=non_preferred"),
        (["flipped="], r"Missing flipped=.* direct\.read\.label_noise=1\), or write classes=preferred"),
        (["variants=2"], r"variants=2 with form=argmin, expected 1: the rule is deterministic.*form=released"),
        (["top_k=97"], r"top_k=97: expected at most the 96 tokens of the vocabulary of .*Lower it"),
        (["classes=preferred", "pairing=both"], r"pairing=both with classes=preferred, expected both classes"),
    ],
)
def test_settings_that_find_nothing_are_refused(settings: Settings, overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(settings(*overrides), tmp_path / "out")
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_bad_models_and_data_are_refused(
    settings: Settings, tiny: ModuleType, tmp_path: Path, write_jsonl: Callable[..., Path], reward_dir: Path
) -> None:
    foreign = tmp_path / "foreign"
    tiny.causal("llama").save_pretrained(foreign)
    tiny.word_tokenizer([f"v{number}" for number in range(92)]).save_pretrained(foreign)
    with pytest.raises(ModelError, match=r"foreign has another vocabulary than the reward model \(96 and 96 tokens\), expected the same"):
        run(settings(f"aligned={foreign}"), tmp_path / "out")
    members = {str(seed): RewardModel(tiny.classifier("llama", seed=seed), tiny.word_tokenizer()) for seed in range(2)}
    for name, member in members.items():
        member.save(tmp_path / name)
    ensemble = ModelEnsemble(members, {name: Scale(0.0, 1.0) for name in members}, Combine())
    ensemble.save(tmp_path / "ensemble", {name: f"../{name}" for name in members}, reference="none")
    with pytest.raises(ModelError, match=r"ensemble is an ensemble, expected one dense reward model.*Search its members one by one"):
        run(settings(f"model={tmp_path / 'ensemble'}"), tmp_path / "joined")
    tied = write_jsonl(tmp_path / "tied.jsonl", [{"prompt": "w1", "answers": ["w2", "w3"], "scores": [1.0, 1.0]}])
    with pytest.raises(DataError, match=r"tied\.jsonl.*1 rows of which none can be used"):
        run(settings(f"data={tied}"), tmp_path / "tied")
    with pytest.raises(DataError, match=r"no prompt with two answers that the data orders and the model can read .*expected preferences"):
        run(settings("max_length=3"), tmp_path / "long")
    with pytest.raises(ModelError, match=r"it has no reward head"):
        run(settings(f"model={settings().aligned}"), tmp_path / "headless")
    with pytest.raises(CheckpointError, match=r"lies in the output directory"):
        run(settings(), reward_dir.parent, overwrite=True)
