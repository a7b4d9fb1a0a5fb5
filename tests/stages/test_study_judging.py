"""A study whose models pick the best of n, and whose policies learn from them: rows hold what the stages themselves would find."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rewardproof.config import load_yaml, parse
from rewardproof.data import Group, Message, read_groups
from rewardproof.errors import ConfigError, DataError
from rewardproof.evaluation import BestOfNRuns, PolicyRuns
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.scoring import ModelEnsemble, combine, load_scorer
from rewardproof.stages import study_cell, study_judging
from rewardproof.stages.align import GOLD, run_evaluations
from rewardproof.stages.study import run
from rewardproof.stages.study_plan import Study, unfold
from rewardproof.stages.study_tables import load_settings

EXAMPLE = """
name: judged
common:
  model: $BASE
  data: [$TOY]
  split: 0.4
  compute: {precision: fp32}
  head: {learning_rate: 1e-2}
  trainer: {learning_rate: 5e-3, num_train_epochs: 1, per_device_train_batch_size: 8, save_strategy: "no"}
settings:
  toy:
    read: {max_groups: 40, max_held_out: 30}
    pools: {given: {pool: [$POOL], gold: scores}, few: {pool: [$POOL], gold: scores, n: [1, 3]}}
align:
  recipe: rloo
  policy: $BASE
  prompts: [$POOL]
  split: 0.3
  gold: $GOLD
  optimise: {steps: 2, prompts_per_step: 4, answers: 2, max_new_tokens: 4, learning_rate: 1e-3}
  direct: {steps: 4, groups_per_step: 4, max_new_tokens: 4, learning_rate: 1e-3, layers: "top:2"}
  evaluate: {every: 1, prompts: 4, answers: 2}
  compute: {precision: fp32}
methods:
  dense: {recipe: dense}
  ensemble: {recipe: ensemble, members: 2, reuse: dense}
  worst_case: {of: ensemble, combine: {combination: worst_case}}
  warm: {of: ensemble, average: weights}
  umm: {recipe: umm, upcycle: {n_experts: 4, n_active: 3}, merge: {steps: 2, held_out: 0.3}}
  moe_unmerged: {of: umm, take: moe}
  rloo_worst_case: {of: worst_case, align: {}, runs: 2}
  dpo_near: {of: dense, align: {recipe: dpo, direct: {beta: 0.2, optimizer: adamw, warmup_share: 0}}, runs: 2}
  dpo_far: {of: dense, align: {recipe: dpo, direct: {beta: 0.02, optimizer: adamw, warmup_share: 0}}}
  rloo_gentle: {of: moe_unmerged, align: {optimise: {kl: {coefficient: 0.5}}}}
seeds: [0]
"""


@pytest.fixture(scope="session")
def judged(base_dir: Path, toy_file: Path, pool_file: Path, reward_dir: Path) -> Callable[..., Study]:
    """The example with keys replaced."""

    def make(**replaced: Any) -> Study:
        paths = {"BASE": str(base_dir), "TOY": str(toy_file), "POOL": str(pool_file), "GOLD": str(reward_dir)}
        return parse(Study, {**load_yaml(EXAMPLE, origin="example"), "paths": paths, "keep_models": True, **replaced})

    return make


@pytest.fixture(scope="session")
def made(judged: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole study, models kept."""
    out = tmp_path_factory.mktemp("judged") / "out"
    assert run(judged(), out).results["failures"] == {}
    return out


def row(out: Path, method: str) -> dict[str, Any]:
    return json.loads((out / "cells" / f"toy--{method}--0.json").read_text())


@pytest.mark.parametrize("method", ["dense", "ensemble", "worst_case", "warm", "moe_unmerged"])
def test_a_row_has_what_the_model_picks(method: str, made: Path, pool_file: Path) -> None:
    pools = sorted(read_groups(str(pool_file), purpose="score").groups, key=lambda group: group.prompt_key)
    gold = [group.scores or () for group in pools]
    scores = load_scorer(str(made / "runs" / "toy" / method / "0" / "model")).score(pools)
    found = BestOfNRuns.joined([row(made, method)["best_of_n"]["given"]])
    expected = BestOfNRuns([scores], gold, (1, 2, 4, 8), [group.prompt_key for group in pools])
    assert found.ns == (1, 2, 4, 8)
    np.testing.assert_allclose(found.columns_SP3L, expected.columns_SP3L, atol=2e-4)
    assert row(made, method)["best_of_n"]["few"]["ns"] == [1, 3]


def test_an_answer_that_several_pools_have_is_read_once(pool_file: Path) -> None:
    groups = read_groups((str(pool_file),), purpose="score").groups
    read: list[str] = []

    def by_member(asked: Sequence[Group]) -> list[np.ndarray]:
        read.extend(group.prompt_key for group in asked)
        return [np.array([[float(len(text)) for text in group.answer_texts], [1.0] * len(group.answers)]) for group in asked]

    fewer = [replace(group, answers=group.answers[1:], scores=None) for group in groups]
    other = replace(groups[0], answers=(*groups[0].answers, (Message("assistant", "one more"),)), scores=None)
    known: study_judging.Known = {}
    whole = study_judging._unless_known(by_member, groups, known)
    part = study_judging._unless_known(by_member, [*fewer, other], known)
    assert read == [group.prompt_key for group in (*groups, other)]
    for all_MN, some_MN in zip(whole, part[:-1], strict=True):
        np.testing.assert_array_equal(some_MN, all_MN[:, 1:])
    assert part[-1].shape == (2, len(other.answers))


def test_the_worst_case_is_that_of_the_ensembles_members(made: Path, pool_file: Path) -> None:
    model = made / "runs" / "toy" / "worst_case" / "0" / "model"
    ensemble = ModelEnsemble.load(model)
    assert ensemble.how.combination == "worst_case"
    pools = read_groups(str(pool_file), purpose="score").groups
    for scores, by_member in zip(ensemble.score(pools), ensemble.by_member(pools), strict=True):
        np.testing.assert_allclose(scores, combine(by_member, "worst_case"))
    assert row(made, "worst_case")["best_of_n"]["given"]["gold"] != row(made, "ensemble")["best_of_n"]["given"]["gold"]


def test_the_average_is_that_of_the_members_weights(made: Path) -> None:
    runs = made / "runs" / "toy"
    folders = [runs / "dense" / "0" / "model", runs / "ensemble" / "0" / "members" / "1" / "model", runs / "warm" / "0" / "model"]
    first, second, mean = (load_file(folder / "model.safetensors") for folder in folders)
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (first[name].double() + second[name].double()).div(2).float())
    assert row(made, "warm")["forward_gflops"] == row(made, "dense")["forward_gflops"]


def test_costs_are_those_of_members_and_of_active_experts(made: Path) -> None:
    gflops = {method: row(made, method)["forward_gflops"] for method in ("dense", "ensemble", "worst_case", "umm", "moe_unmerged")}
    assert gflops["ensemble"] == gflops["worst_case"] == pytest.approx(2 * gflops["dense"], rel=1e-3)
    assert gflops["umm"] == gflops["dense"] < gflops["moe_unmerged"]
    trained = {method: row(made, method)["training"]["steps"] for method in ("dense", "ensemble", "worst_case")}
    assert trained["ensemble"] == trained["worst_case"] == 2 * trained["dense"]


def test_a_row_of_policies_has_what_their_runs_found(made: Path) -> None:
    found = row(made, "rloo_worst_case")
    joined = PolicyRuns.joined([found["policies"]])
    folders = [made / "runs" / "toy" / "rloo_worst_case" / "0" / str(number) for number in (0, 1)]
    expected = PolicyRuns([run_evaluations(folder) for folder in folders], gold=GOLD)
    np.testing.assert_allclose(joined.proxy_SEP, expected.proxy_SEP, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(joined.kl_SEP, expected.kl_SEP, rtol=1e-3, atol=1e-6)
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]
    assert [config["seed"] for config in configs] == [0, 1]
    assert {config["reward"][0] for config in configs} == {str(made / "runs" / "toy" / "worst_case" / "0" / "model")}
    assert found["config"]["align"]["reward"] == ["$OUT/runs/toy/worst_case/0/model"]
    assert set(found["seconds_by_phase"]) >= {"generation", "scoring", "update", "all"}
    told = [json.loads(line) for line in (folders[0] / "log.jsonl").read_text().splitlines()]
    assert all(record["ensemble/disagreement"] > 0 for record in told if record["phase"] == "optimising")
    assert row(made, "rloo_gentle")["config"]["align"]["optimise"]["kl"]["coefficient"] == 0.5


def test_rows_of_models_and_of_policies_are_told_apart(made: Path) -> None:
    found = load_settings(made / "cells", made / "pairs")["toy"]
    assert set(found.policies) == {"rloo_worst_case", "rloo_gentle", "dpo_near", "dpo_far"}
    assert set(found.rows) == {"dense", "ensemble", "worst_case", "warm", "umm", "moe_unmerged"}
    tables = (made / "tables.md").read_text().split("\n\n")
    assert ["rloo" in table for table in tables[1:6]] == [False, False, False, True, False]
    assert ["dpo" in table for table in tables[1:6]] == [False, False, False, False, True], "ways do not share a table"
    assert all(
        title in text for title, text in zip(("accuracy", "gold of best of 8", "gold of best of 3", "KL at last"), tables[1:], strict=False)
    )


def test_policies_by_preferences_stand_beside_those_by_rewards(made: Path) -> None:
    rows = {method: row(made, method) for method in ("dpo_near", "dpo_far", "rloo_worst_case")}
    assert [rows[method]["policies"]["steps"] for method in rows] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2]]
    assert {rows[method]["policies"]["prompts"] for method in rows} == {rows["dpo_near"]["policies"]["prompts"]}
    assert rows["dpo_near"]["config"]["align"]["direct"]["layers"] == "top:2"
    assert rows["dpo_near"]["config"]["align"]["optimise"]["steps"] == 100, "what is common to policies by rewards is not for these"
    assert rows["rloo_worst_case"]["config"]["align"]["direct"] is None
    assert set(rows["dpo_near"]["seconds_by_phase"]) == {"update", "all"}
    assert len(rows["dpo_near"]["policies"]["wins"]) == 2


def test_policies_of_an_interrupted_study_go_on(judged: Callable[..., Study], made: Path, tmp_path: Path, monkeypatch) -> None:
    update, calls = OnPolicyLoop.update, [0]

    def broken(self: OnPolicyLoop) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return update(self)

    config = judged(only=["toy/rloo_worst_case/0"])
    monkeypatch.setattr(OnPolicyLoop, "update", broken)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "out")
    monkeypatch.setattr(OnPolicyLoop, "update", update)
    first = tmp_path / "out" / "runs" / "toy" / "rloo_worst_case" / "0" / "0" / "report.json"
    before = first.stat().st_mtime_ns
    assert run(config, tmp_path / "out").results["failures"] == {}
    assert first.stat().st_mtime_ns == before
    assert row(tmp_path / "out", "rloo_worst_case")["policies"] == row(made, "rloo_worst_case")["policies"]


def test_models_that_were_deleted_come_back_for_a_new_policy(judged: Callable[..., Study], tmp_path: Path, monkeypatch) -> None:
    trained: list[str] = []
    real = study_cell.run_train
    monkeypatch.setattr(study_cell, "run_train", lambda config, out, **more: trained.append(out.parent.name) or real(config, out, **more))
    run(judged(only=["toy/worst_case/0"], keep_models=False), tmp_path / "out")
    assert not (tmp_path / "out" / "runs" / "toy" / "worst_case" / "0" / "model").exists()
    (tmp_path / "out" / "cells" / "toy--worst_case--0.json").unlink()
    report = run(judged(only=["toy/rloo_worst_case/0"], keep_models=False), tmp_path / "out")
    assert report.results["failures"] == {}
    assert trained == ["dense", "ensemble"] * 2, "the row that was taken away came back with the models"
    assert not list((tmp_path / "out" / "runs" / "toy" / "rloo_worst_case" / "0").glob("*/model"))


def test_a_policy_of_other_settings_starts_anew(judged: Callable[..., Study], tmp_path: Path) -> None:
    methods = {"dense": {"recipe": "dense"}, "rloo": {"of": "dense", "align": {}}}
    run(judged(methods=methods), tmp_path / "out")
    (tmp_path / "out" / "cells" / "toy--rloo--0.json").unlink()
    methods["rloo"] = {"of": "dense", "align": {"optimise": {"steps": 1}}}
    assert run(judged(methods=methods), tmp_path / "out").results["failures"] == {}
    assert row(tmp_path / "out", "rloo")["policies"]["steps"] == [0, 1]


def test_policies_without_gold_have_rows_too(judged: Callable[..., Study], tmp_path: Path) -> None:
    methods = {"dense": {"recipe": "dense"}, "rloo": {"of": "dense", "align": {"gold": ""}}}
    assert run(judged(methods=methods), tmp_path / "out").results["failures"] == {}
    assert row(tmp_path / "out", "rloo")["policies"]["gold"] is None


def test_a_probe_picks_too(judged: Callable[..., Study], tmp_path: Path) -> None:
    probe = {"recipe": "linear_probe", "head": {"init": "probe"}, "trainer": {"num_train_epochs": 0}}
    assert run(judged(methods={"probe": probe}), tmp_path / "out").results["failures"] == {}
    assert row(tmp_path / "out", "probe")["best_of_n"]["given"]["ns"] == [1, 2, 4, 8]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"methods": {"d": {"recipe": "dense"}, "a": {"of": "d", "combine": {}}}}, "of=d is no ensemble"),
    ({"methods": {"d": {"recipe": "ensemble"}, "a": {"of": "d", "average": "scores"}}}, "Got average='scores', expected weights"),
    ({"methods": {"d": {"recipe": "dense"}, "a": {"of": "d", "align": {"recipe": "dense"}}}}, "align.recipe|dense"),
    ({"methods": {"d": {"recipe": "dense"}, "a": {"of": "d", "align": {}, "runs": 0}}}, "Got runs=0"),
    ({"methods": {"d": {"recipe": "ensemble"}, "a": {"of": "d", "combine": {}, "runs": 2}}}, "Got runs=2 with combine"),
    ({"methods": {"d": {"recipe": "ensemble"}, "a": {"of": "d", "combine": "worst_case"}}}, "Got combine='worst_case', expected settings"),
    ({"methods": {"d": {"recipe": "ensemble", "head": {"init": "normal"}}, "a": {"of": "d", "average": "weights"}}}, "drew a head each"),
    ({"settings": {"toy": {"pools": ["x"]}}}, r"Got pools=\['x'\], expected settings by name"),
    ({"methods": {"d": {"recipe": "dense"}, "a": {"of": "d", "align": {"seed": 3}}}}, "Got align.seed=3, expected none"),
    ({"methods": {"d": {"recipe": "dense"}, "a": {"of": "d", "align": {}}, "b": {"of": "a", "align": {}}}}, "of=a leaves policies"),
    ({"methods": {"d": {"recipe": "dense"}, "a": {"of": "d", "align": {}}}, "align": {}}, "Missing align.recipe"),
    ({"settings": {"toy": {"pools": {"x": {"pol": []}}}}}, r"Unknown key 'pol' \(did you mean 'pool'\?\)"),
]


@pytest.mark.parametrize(("replaced", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_what_cannot_be_judged_is_said_before_any_work(replaced: dict[str, Any], message: str, judged: Callable[..., Study]) -> None:
    with pytest.raises(ConfigError, match=message):
        unfold(judged(**replaced))


def test_prompts_of_other_sources_stay_out_of_a_pool(pool_file: Path, tmp_path: Path) -> None:
    from rewardproof.stages.stress_pools import PoolSettings, read_pools

    lines = pool_file.read_text().splitlines()
    (tmp_path / "known.jsonl").write_text("\n".join(lines[:5]) + "\n")
    config = PoolSettings(pool=(str(pool_file),), gold="scores", without=(str(tmp_path / "known.jsonl"),))
    left = {group.prompt_text for group in read_pools(config).groups}
    assert left == {json.loads(line)["prompt"] for line in lines[5:]}
    parts = [{one.prompt_key for one in read_pools(config.model_copy(update={"share": share})).groups} for share in ((0, 0.5), (0.5, 1))]
    assert len(parts[0]) + len(parts[1]) == 15
    assert not parts[0] & parts[1]
    with pytest.raises(DataError, match="none of 20 prompts is left"):
        read_pools(PoolSettings(pool=(str(pool_file),), gold="scores", without=(str(pool_file),)))
