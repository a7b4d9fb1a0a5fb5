"""Policy runs: curves and laws are recovered from made-up runs, and intervals know which runs share a reward model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.evaluation import IMPLICIT, Evaluation, PolicyRuns, win_rate
from rewardproof.report import policy_figure
from rewardproof.statistics import local_linear

ALPHA, BETA = 0.35, 0.15


def law(distance: float) -> float:
    return distance * (ALPHA - BETA * np.log(distance)) if distance else 0.0


def made(
    distances: list[float], *, seed: int = 0, noise: float = 0.0, shift: float = 0.0, prompts: int = 12, extra: dict[str, Any] | None = None
) -> list[Evaluation]:
    """A run whose proxy climbs by 1 a distance and whose gold follows the law."""
    draw = np.random.default_rng(seed)
    start = np.random.default_rng(9).normal(size=(prompts, 4))
    found = []
    for step, distance in enumerate(distances):
        golds = 0.3 + law(distance) + shift * distance + 0.1 * start + noise * draw.normal(size=start.shape)
        rows = tuple(
            {
                "prompt": f"p{place}",
                "gold": golds[place].tolist(),
                "proxy/reward": (5 + 2 * (start[place] + distance)).tolist(),
                "kl": [distance**2] * 4,
                "tokens": [10 + step] * 4,
                "finished": [True] * 4,
                **(extra or {}),
            }
            for place in range(prompts)
        )
        found.append(Evaluation(step, rows))
    return found


FAR = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0]


def test_the_law_and_the_peak_are_found_again() -> None:
    found = PolicyRuns([made(FAR), made(FAR)]).summary()
    assert found.law is not None
    assert (found.law.alpha, found.law.beta) == (pytest.approx(ALPHA), pytest.approx(BETA))
    assert found.law.peak is not None
    assert found.law.peak[0] == pytest.approx(np.exp(ALPHA / BETA - 1))
    assert found.peak_kl == pytest.approx(3.79**2, rel=0.3)
    assert found.distance[-1] == pytest.approx(6.0)
    assert (found.n_runs, found.n_prompts, found.tokens, found.end_kl) == (2, 12, (10.0, 19.0), pytest.approx(36.0))


def test_a_figure_keeps_its_lines_legible_under_wide_bands_and_leaves_narrow_ones_whole() -> None:
    far, near = ([0.0, 1.0, 2.0, 3.0], [0.0, 0.9, 1.9, 3.0])
    wide = PolicyRuns([made(far, shift=0.9), made(near, seed=1, shift=-0.9)], models=[0, 1]).summary()
    narrow = PolicyRuns([made(far), made(near, seed=1)], models=[0, 1]).summary()
    for found, cut in ((wide, True), (narrow, False)):
        axes = policy_figure({"one": found}).axes[0]
        values = [one.estimate for one in found.gain]
        bottom, top = axes.get_ylim()
        assert bottom <= min(values) <= max(values) <= top
        assert (max(one.high for one in found.gain) > top) == cut


def test_the_proxy_is_in_units_of_the_first_answers_and_the_gap_is_what_it_promised_in_vain() -> None:
    runs = PolicyRuns([made([0.0, 1.0, 2.0])])
    spread = np.random.default_rng(9).normal(size=(12, 4)).std()
    proxy, gold = runs.gain()
    assert proxy.estimate == pytest.approx(2.0 / spread)
    assert gold is not None
    assert gold.estimate == pytest.approx(law(2.0))
    assert runs.table()[0]["proxy"]["estimate"] == pytest.approx(0)
    found = runs.summary()
    assert found.gap is not None
    assert found.gap.estimate == pytest.approx(2.0 / spread - law(2.0) / (0.1 * spread), abs=0.05)


def test_two_rewards_that_agree_are_one_reward() -> None:
    one = PolicyRuns([made([0.0, 1.0])])
    both = [Evaluation(each.step, tuple({**row, "proxy/again": row["proxy/reward"]} for row in each.rows)) for each in made([0.0, 1.0])]
    two = PolicyRuns([both], weights=[1.0, 3.0])
    np.testing.assert_allclose(one.proxy_SEP, two.proxy_SEP)


def test_rewards_are_found_whatever_they_are_called() -> None:
    renamed = [
        Evaluation(each.step, tuple({("proxy/umm" if name == "proxy/reward" else name): row[name] for name in row} for row in each.rows))
        for each in made([0.0, 1.0])
    ]
    np.testing.assert_allclose(PolicyRuns([renamed, made([0.0, 1.0])]).proxy_SEP[0], PolicyRuns([made([0.0, 1.0])]).proxy_SEP[0])


def test_without_gold_there_is_a_proxy_alone() -> None:
    found = PolicyRuns([made(FAR)], gold="").summary()
    assert (found.gold, found.law, found.fall, found.onset_kl) == ((), None, None, None)
    assert found.as_dict()["end_gold"] is None


def test_exact_divergences_are_taken_where_they_are() -> None:
    runs = PolicyRuns([made([0.0, 1.0], extra={"kl_exact": [0.25] * 4})])
    assert runs.distance_SE.tolist() == [[0.5, 0.5]]


def test_runs_against_one_reward_model_are_one_draw() -> None:
    """Four runs, two against each of two models that differ: as four draws the interval would be far too narrow."""
    runs = [made(FAR, seed=seed, shift=(0.2, 0.2, -0.2, -0.2)[seed]) for seed in range(4)]
    apart, together = (PolicyRuns(runs, models=models).summary() for models in ((), (0, 0, 1, 1)))
    assert apart.end_gold is not None
    assert together.end_gold is not None
    assert together.end_gold.high - together.end_gold.low > 1.5 * (apart.end_gold.high - apart.end_gold.low)


def test_a_fall_beyond_chance_is_an_onset() -> None:
    falling = [made([0.0, 1.0, 2.0, 3.0, 4.0], seed=seed, shift=-0.25, noise=0.02) for seed in range(3)]
    found = PolicyRuns(falling).summary()
    assert found.onset_kl is not None
    assert found.onset_kl < 4
    rising = [made([0.0, 1.0, 2.0, 3.0], seed=seed, noise=0.02) for seed in range(3)]
    assert PolicyRuns(rising).summary().onset_kl is None


def test_methods_compare_at_one_distance_on_their_own_curves() -> None:
    """However often each was judged, and however far it went."""
    near, far = (PolicyRuns([made(places, seed=seed) for seed in range(2)]) for places in ([0.0, 0.5, 1.0], [0.0, 1.0, 2.0, 3.0]))
    at_one = far.minus(far, distance=1.0)
    assert at_one is not None
    assert at_one.estimate == pytest.approx(0.0, abs=1e-12)
    assert near.minus(far, distance=1.0).estimate == pytest.approx(0.0, abs=0.05), "one law, two ranges"
    assert near.minus(far) is not None
    curve = far.summary()
    assert curve.gap is not None
    assert far.gap(curve.distance[-1]).estimate == pytest.approx(curve.gap.estimate)
    assert curve.peak_gold.estimate == pytest.approx(max(one.estimate for one in curve.gold))
    assert (curve.kl_estimator, PolicyRuns.joined([far.stored(), far.stored()]).kl_estimator) == ("k1", "k1")
    old = {name: value for name, value in far.stored().items() if name != "kl_estimator"}
    assert [PolicyRuns.joined(parts).kl_estimator for parts in ([old], [old, far.stored()])] == ["", "mixed"]


def test_runs_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(EvaluationError, match="without evaluations"):
        PolicyRuns([[]])
    with pytest.raises(EvaluationError, match="different prompts or after different numbers of updates"):
        PolicyRuns([made([0.0, 1.0]), made([0.0, 1.0, 2.0])])
    flat = made([0.0], extra={"proxy/reward": [1.0] * 4})
    with pytest.raises(EvaluationError, match="the same for all answers of the initial policy"):
        PolicyRuns([flat])


@pytest.mark.parametrize("places", [[0.0, 1.2, 1.19, 1.21, 1.20], [0.0, 2.0, 2.001, 2.002, 2.003], [0.0, 0.0], [0.0, 0.3, 0.9, 2.0, 2.1]])
def test_smoothing_never_blows_noise_up(places: list[float]) -> None:
    grid = np.linspace(0, max(places), 17)
    weights = local_linear(np.array(places), grid, 0.15 * max(places))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert np.linalg.norm(weights, axis=1).max() < 1.5
    if max(places):
        np.testing.assert_allclose(weights @ np.array(places), grid, atol=1e-6)


def test_runs_survive_being_stored_and_joined() -> None:
    runs = [made([0.0, 1.0, 2.0]), made([0.0, 0.5, 1.5])]
    both = PolicyRuns(runs, models=[0, 1])
    joined = PolicyRuns.joined([PolicyRuns([run]).stored() for run in runs], models=[0, 1])
    for name in ("kl_SEP", "proxy_SEP", "gold_SEP", "tokens_SE", "finished_SE"):
        np.testing.assert_allclose(getattr(joined, name), getattr(both, name), rtol=1e-4)
    assert (joined.models, joined.steps, joined.prompts) == (both.models, both.steps, both.prompts)
    unjudged = PolicyRuns.joined([PolicyRuns([runs[0]], gold="").stored()])
    assert unjudged.gold_SEP is None
    with pytest.raises(EvaluationError, match="different prompts"):
        PolicyRuns.joined([both.stored(), PolicyRuns([made([0.0, 1.0])]).stored()])


def test_the_law_is_told_with_the_start_taken_off_and_without() -> None:
    """Gold starts at 0.3: above its start the law is found again; fitted as it is, 0 at the start is forced on it, and it explains less."""
    laws = PolicyRuns([made(FAR), made(FAR)]).laws()
    above, raw = laws["gold, above its start"].law, laws["gold, as it is"].law
    assert above is not None
    assert raw is not None
    assert (above.alpha, above.beta, above.r_squared) == (pytest.approx(ALPHA), pytest.approx(BETA), pytest.approx(1))
    assert raw.r_squared < 0.9
    assert set(laws) == {f"{name}, {how}" for name in ("gold", "win rate") for how in ("above its start", "as it is")}
    told = laws["gold, above its start"].as_dict()
    assert told["peak"][0] == pytest.approx(np.exp(ALPHA / BETA - 1))
    assert told["range"]["alpha"][0] <= ALPHA <= told["range"]["alpha"][1]
    assert PolicyRuns([made([0.0, 1.0])]).laws() == {}
    near = [0.01 * step for step in range(len(FAR))]
    found = PolicyRuns([made(FAR), made(near)]).laws()["gold, above its start"].law
    assert found is not None, "a run that stays near the start takes the law from nobody"
    assert (found.alpha, found.beta) == (pytest.approx(ALPHA), pytest.approx(BETA))
    assert PolicyRuns([made(near)]).laws() == {}
    assert PolicyRuns([made(FAR)], gold="").laws() == {}


def test_ranges_of_a_law_know_how_far_runs_and_reward_models_disagree() -> None:
    def width(runs: list[list[Evaluation]], **changes: Any) -> float:
        found = PolicyRuns(runs, **changes).laws()["gold, above its start"].range
        assert found is not None
        return found.alpha[1] - found.alpha[0]

    alike = [made(FAR, seed=seed, noise=0.05) for seed in range(8)]
    apart = [made(FAR, seed=seed, noise=0.05, shift=shift) for seed, shift in enumerate([-0.2] * 4 + [0.2] * 4)]
    assert width(apart) > 3 * width(alike)
    assert width(apart, models=[0] * 4 + [1] * 4) > 1.2 * width(apart), "two reward models are two draws, whatever the number of runs"


def test_laws_of_stored_runs_are_those_of_the_runs() -> None:
    runs = PolicyRuns([made(FAR, noise=0.1)])
    again = PolicyRuns.joined([runs.stored()])
    for name, found in runs.laws().items():
        stored = again.laws()[name].law
        assert found.law is not None
        assert stored is not None
        assert (stored.alpha, stored.beta) == (pytest.approx(found.law.alpha, abs=1e-3), pytest.approx(found.law.beta, abs=1e-3))
    old = {name: table for name, table in runs.stored().items() if name != "wins"}
    assert set(PolicyRuns.joined([old]).laws()) == {"gold, above its start", "gold, as it is"}


def test_win_rates_swap_with_their_sides_and_ties_are_half() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 3, size=(5, 4)).astype(float), draw.integers(0, 3, size=(5, 6)).astype(float)
    found = win_rate(one, other)
    expected = [np.mean([[(a > b) + 0.5 * (a == b) for b in other[row]] for a in one[row]]) for row in range(5)]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(win_rate(other, one), 1 - found)
    np.testing.assert_allclose(win_rate(one, one), 0.5)
    assert PolicyRuns([made([0.0, 1.0])]).wins_SEP[0, 0].tolist() == [0.5] * 12


def test_an_implicit_reward_keeps_its_own_unit() -> None:
    """It is 0 for all answers at the start, so there is no spread to count in, and nothing that gold could be compared with."""
    runs = PolicyRuns([[Evaluation(one.step, tuple(_implicit(row) for row in one.rows)) for one in made([0.0, 1.0, 2.0])]])
    assert (runs.proxy_name, runs.proxy_unit) == ("implicit reward", "β nats")
    for one in (runs, PolicyRuns.joined([runs.stored()])):
        assert one.gain()[0].estimate == pytest.approx(0.4, rel=1e-4)
        assert one.summary().gap is None


def _implicit(row: Any) -> dict[str, Any]:
    return {**{name: value for name, value in row.items() if not name.startswith("proxy/")}, IMPLICIT: [0.1 * kl for kl in row["kl"]]}
