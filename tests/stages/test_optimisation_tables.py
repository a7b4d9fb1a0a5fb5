"""Tables of over-optimisation from rows: seeds pair with themselves, policies of one model are one draw, and gaps are at one distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.evaluation import BestOfNRuns, Evaluation, PolicyRuns
from rewardproof.stages.optimisation_tables import by_way, laws_table, picks, picks_table, policies, policies_of, policies_table
from rewardproof.stages.study_tables import SettingRows

PROMPTS = [f"prompt{number}" for number in range(12)]
DRAW = np.random.default_rng(0)
GOLD = DRAW.random((12, 9))
NOISE = {seed: DRAW.normal(size=GOLD.shape) for seed in range(3)}


def row(seed: int, noise: float, *, cost: float = 1.0) -> dict[str, Any]:
    runs = BestOfNRuns([GOLD + noise * NOISE[seed]], GOLD, (1, 2, 4, 8), PROMPTS)
    return {"seed": seed, "best_of_n": {"pool": runs.stored()}, "forward_gflops": cost, "training": {"tflops": 8 * cost}}


def policy_row(
    seed: int, far: float, gold: float, runs: int = 2, *, direct: dict[str, Any] | None = None, shares: tuple[float, ...] = (0.0, 0.5, 1.0)
) -> dict[str, Any]:
    made = []
    for number in range(runs):
        draw = np.random.default_rng(100 * seed + number)
        evaluations = []
        for step, share in enumerate(shares):
            table = {
                "gold": gold * share + draw.random((6, 2)),
                "proxy/x": 3 * share + draw.random((6, 2)),
                "kl": np.full((6, 2), far * share**2),
                "tokens": np.full((6, 2), 9),
                "finished": np.ones((6, 2)),
            }
            rows = [{"prompt": f"p{place}", **{name: values[place].tolist() for name, values in table.items()}} for place in range(6)]
            evaluations.append(Evaluation(step, tuple(rows)))
        made.append(evaluations)
    return {"policies": PolicyRuns(made).stored(), "config": {"runs": runs, "align": {"direct": direct}}}


@pytest.fixture
def setting() -> SettingRows:
    rows = {
        "good": {seed: row(seed, 0.1) for seed in range(3)},
        "bad": {seed: row(seed, 5.0, cost=2.0) for seed in (0, 2)},
        "other": {0: {"training": {"tflops": 1.0}}},
    }
    policies = {
        "near": {seed: policy_row(seed, 1.0, 0.5) for seed in (0, 1)},
        "far": {seed: policy_row(seed, 9.0, -0.5) for seed in (0, 1)},
    }
    return SettingRows(rows=rows, policies=policies)


def cells(table: Any, name: str) -> dict[str, str]:
    return dict(zip(table.columns, next(row for row in table.rows if row[0] == name), strict=True))


def test_a_method_is_compared_on_the_seeds_that_it_shares(setting: SettingRows) -> None:
    found = cells(picks_table(setting, "pool", ["good", "bad"]), "`bad`")
    pairs = [(setting.rows[name][seed]["best_of_n"]["pool"]) for name in ("bad", "good") for seed in (0, 2)]
    expected = BestOfNRuns.joined(pairs[:2]).minus(BestOfNRuns.joined(pairs[2:]))
    assert expected is not None
    assert found["minus good"].startswith(f"{expected.estimate:+.3f} [")
    assert (found["seeds"], found["training, TFLOP"], found["a forward pass, × good"]) == ("2", "16.0", "2.00")


def test_methods_without_the_pool_are_left_out_and_named_when_asked_for(setting: SettingRows) -> None:
    assert list(picks(setting, "pool")) == ["good", "bad"]
    with pytest.raises(EvaluationError, match="No row of 'other' with the pool 'pool', expected one of good, bad"):
        picks_table(setting, "pool", ["other"])


def test_policies_against_one_model_are_one_draw(setting: SettingRows) -> None:
    assert policies_of(setting, "near").models == (0, 0, 1, 1)
    assert policies(setting)["near"].n_runs == 4


def test_each_method_is_judged_over_its_own_range_and_promises_at_one_that_all_reached(setting: SettingRows) -> None:
    table = policies_table(setting, ["near", "far"])
    far = cells(table, "`far`")
    assert "promised beyond gold at KL 1.0, SD" in table.columns
    assert (far["KL at last, nats"], far["runs"]) == ("9.00", "4")
    assert float(far["lost since the peak"].split()[0]) == pytest.approx(policies_of(setting, "far").summary().fall.estimate, abs=1e-3)
    assert f"minus near at KL {1.0:.1f}" in table.columns
    at_one = policies_of(setting, "far").gap(1.0).estimate
    assert float(far["promised beyond gold at KL 1.0, SD"].split()[0]) == pytest.approx(at_one, abs=0.01)
    with pytest.raises(EvaluationError, match="No policies of 'good', expected one of near, far"):
        policies_table(setting, ["good"])
    with pytest.raises(EvaluationError, match="No policies, expected those of one method"):
        policies(SettingRows())


def test_no_table_and_no_figure_puts_ways_to_optimise_on_one_axis(setting: SettingRows) -> None:
    setting.policies["dpo"] = {0: policy_row(0, 4.0, 0.2, direct={"beta": 0.1})}
    assert by_way(setting, ["near", "dpo", "far"]) == [["near", "far"], ["dpo"]]
    for refused in (policies, policies_table):
        with pytest.raises(EvaluationError, match=r"on policy \(near, far\) and off policy \(dpo\), expected one way"):
            refused(setting)
    assert list(policies(setting, ["dpo"])) == ["dpo"]


def test_a_loss_has_one_law_over_its_betas_and_seeds(setting: SettingRows) -> None:
    shares = (0.0, 0.3, 0.5, 0.8, 1.0)
    for method, form, far in (("dpo_a", "dpo", 2.0), ("dpo_b", "dpo", 16.0), ("ipo", "ipo", 4.0)):
        direct = {"form": form, "beta": 0.1}
        setting.policies[method] = {seed: policy_row(seed, far, 0.5, runs=1, direct=direct, shares=shares) for seed in (0, 1)}
    table = laws_table(setting, ["dpo_a", "dpo_b", "ipo"])
    assert table is not None
    told = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(one["method"], one["runs"]) for one in told] == [("`dpo`", "4")] * 4 + [("`ipo`", "2")] * 4
    assert [one["fitted to"] for one in told[:4]] == [
        f"{name}, {how}" for name in ("gold", "win rate") for how in ("above its start", "as it is")
    ]
    assert laws_table(setting, []) is None


def test_methods_of_one_loss_that_differ_in_more_than_beta_have_laws_of_their_own(setting: SettingRows) -> None:
    shares = (0.0, 0.3, 0.5, 0.8, 1.0)
    kinds = {
        "plain": {}, "rpo": {"eta": 0.2}, "sft": {"eta": 100.0}, "short": {"length_penalty": 0.05}, "fast": {"learning_rate": 1e-3},
    }  # fmt: skip
    for method, direct in kinds.items():
        for seed in (0, 1):
            setting.policies.setdefault(method, {})[seed] = policy_row(
                seed, 4.0, 0.5, runs=1, direct={"beta": 0.1 * (1 + seed), **direct}, shares=shares
            )
    table = laws_table(setting, list(kinds))
    assert table is not None
    told = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [one["method"] for one in told[::4]] == ["`dpo`", "`rpo, η 0.2`", "`rpo, η 100`", "`dpo_length, α 0.05`", "`dpo`"]
    assert {one["runs"] for one in told} == {"2"}
