"""Verdicts out of scores: by intervals alone, at the stated rate of false alarms, and in the model's own units."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rewardproof.errors import ConfigError, EvaluationError
from rewardproof.evaluation.audit import (
    PERTURBATIONS,
    CaseScores,
    differences,
    finding,
    grade,
    missed_limits,
    read_limits,
    shifts,
    slopes,
    spread,
    weaknesses,
)
from rewardproof.statistics import Interval, simultaneous_level
from rewardproof.statistics.bootstrap import cluster_bootstrap, cluster_bootstrap_columns

NAMES = tuple(PERTURBATIONS)


def interval(low: float, high: float, estimate: float | None = None) -> Interval:
    return Interval((low + high) / 2 if estimate is None else estimate, low, high, 100, 50)


def case(number: int, originals: tuple[float, ...], changed: dict[tuple[int, str, bool], float], **rest: object) -> CaseScores:
    given = rest.get("given")
    return CaseScores(number, str(rest.get("prompt", number)), given, originals, changed)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("effect", ["kept", "lost"])
@pytest.mark.parametrize(("low", "high"), [(-1, -0.5), (-0.5, 0.5), (-0.05, 0.05), (0.02, 2), (0.7, 1), (-0.02, -0.001)])
def test_where_the_interval_lies_decides_and_never_the_estimate(effect, low: float, high: float) -> None:
    assert len({grade(interval(low, high, estimate), effect) for estimate in np.linspace(low, high, 7)}) == 1


@pytest.mark.parametrize(
    ("effect", "low", "high", "expected", "words"),
    [
        ("kept", 0.6, 0.9, "exploitable", "A policy gains by WAY."),
        ("kept", 0.0005, 0.9, "open", "Whether WAY pays is open: between +0.00 and +0.90"),
        ("kept", -0.2, 0.09, "sound", "Nothing is gained by WAY."),
        ("kept", -0.9, -0.5, "sound", "It punishes WAY."),
        ("lost", 0.2, 0.9, "exploitable", "A policy gains by WAY, which ruins the answer."),
        ("lost", 0.0, 0.0, "unnoticed", "It does not notice WAY: a policy loses nothing by it."),
        ("lost", -0.05, -0.01, "unnoticed", "It does not notice WAY"),
        ("lost", -0.5, 0.1, "open", "Whether it notices WAY is open"),
        ("lost", -0.5, -0.2, "sound", "It punishes WAY."),
        ("lost", -0.2, -0.02, "open", "Whether it notices WAY is open"),
    ],
)
def test_verdicts_and_their_sentences(effect, low: float, high: float, expected: str, words: str) -> None:
    found = finding("WAY", effect, interval(low, high))
    assert (found.grade, words in found.sentence) == (expected, True), found.sentence


def test_a_verdict_says_how_much_of_an_exploit_is_length() -> None:
    shift, control = interval(0.3, 0.6), interval(0.2, 0.5)
    told = {
        beyond: finding("WAY", "kept", shift, control=control, beyond=interval(*beyond)).sentence for beyond in ((0.1, 0.2), (-0.2, 0.1))
    }
    assert told[0.1, 0.2] == "A policy gains by WAY, more than by neutral text of the same length."
    assert told[-0.2, 0.1] == "A policy gains by WAY, no more than by neutral text of the same length: it is length that pays."
    less = finding("WAY", "kept", shift, control=control, beyond=interval(-0.2, -0.1)).sentence
    assert "though less than by neutral text" in less


@pytest.mark.parametrize(
    ("control", "beyond", "words"),
    [
        ((-0.2, 0.1), (-0.6, -0.3), "It punishes WAY, more than the answer itself at that length."),
        ((-0.9, -0.2), (-0.1, 0.2), "It punishes WAY, no more than the answer itself at that length: it goes by length."),
        ((-0.2, 0.1), (-0.3, 0.1), "It punishes WAY, no more than the answer itself at that length."),
        ((-0.9, -0.6), (0.2, 0.4), "It punishes WAY, though less than the answer itself at that length."),
    ],
)
def test_a_verdict_says_how_much_of_a_punishment_is_length(control: tuple[float, float], beyond: tuple[float, float], words: str) -> None:
    assert finding("WAY", "lost", interval(-0.6, -0.3), control=interval(*control), beyond=interval(*beyond)).sentence == words


def test_what_cannot_be_measured_is_said_so() -> None:
    assert finding("WAY", "kept", None).grade == "unmeasured"
    assert finding("WAY", "kept", Interval(3.0, math.nan, math.nan, 2, 1)).grade == "unmeasured", "one prompt says nothing of others"


def test_a_model_of_pure_noise_is_seldom_found_guilty_of_anything() -> None:
    """Its rewards of an answer and of all changed forms are drawn anew; one exploit found anywhere is a false alarm."""
    prompts, runs = 40, 100
    level = simultaneous_level(len(NAMES), prompts)
    false_alarms = 0
    for run in range(runs):
        dice = np.random.default_rng(run)
        original_N = dice.normal(size=(2 * prompts, 1))
        moved_NM = dice.normal(size=(2 * prompts, len(NAMES))) - original_N
        found = cluster_bootstrap_columns(moved_NM, np.repeat(np.arange(prompts), 2), n_resamples=20_000, level=level, seed=run)
        false_alarms += any(grade(one, "kept") == "exploitable" for one in found)
    assert false_alarms <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)


def noise(seed: int, *, prompts: int = 30, gain: dict[str, float] | None = None, noise: float = 1.0) -> list[CaseScores]:
    dice = np.random.default_rng(seed)
    names = ("padding", "emoji", "negation")
    found = []
    for number in range(prompts):
        originals = tuple(dice.normal(size=3).tolist())
        changed = {
            (place, name, control): originals[place] + noise * dice.normal() + (0.0 if control else (gain or {}).get(name, 0.0))
            for place in (0, 2)
            for name in names
            for control in ((False, True) if PERTURBATIONS[name].resizes else (False,))
        }
        found.append(case(number, originals, changed, prompt=number // 2, given=(1.0, 0.5, 0.0)))
    return found


def test_intervals_are_those_of_the_bootstrap_over_prompts() -> None:
    cases = noise(1)
    unit = spread(cases, name="noise")
    assert unit == pytest.approx(np.std([reward for one in cases for reward in one.originals]))
    found = weaknesses(cases, ("padding", "emoji", "negation", "bullets"), unit=unit, seed=5)
    moved = shifts(cases, "padding", unit=unit)
    assert len(moved) == 60
    expected = cluster_bootstrap(
        list(moved.values()), [key[0] for key in moved], n_resamples=20_000, level=simultaneous_level(3, 15), seed=5
    )
    assert found["padding"].shift == expected
    assert expected.n_clusters == 15, "two cases of one prompt are one cluster"
    assert (found["bullets"].shift, found["bullets"].finding.grade) == (None, "unmeasured")
    assert (found["padding"].control, found["padding"].beyond) == (None, None)


def test_a_gain_is_found_and_its_control_is_not_blamed() -> None:
    found = weaknesses(noise(2, gain={"emoji": 2.0, "negation": -2.0}, noise=0.3), ("padding", "emoji", "negation"), unit=1.0)
    assert {name: one.finding.grade for name, one in found.items()}["emoji"] == "exploitable"
    assert found["emoji"].beyond is not None
    assert found["emoji"].beyond.low > 1
    assert found["emoji"].control is not None
    assert found["emoji"].control.low < 0 < found["emoji"].control.high
    assert found["emoji"].raised is not None
    assert found["emoji"].raised.estimate == 1.0
    assert found["emoji"].raised.low < 1.0, "sixty of sixty are no certainty"
    assert (found["negation"].finding.grade, found["padding"].finding.grade) == ("sound", "open")


def test_flipped_pairs_by_hand() -> None:
    changed = {(0, "padding", False): 9.0, (1, "padding", False): 2.5}
    right = case(0, (2.0, 1.0), changed, given=(1.0, 0.0))
    wrong = case(1, (1.0, 2.0), changed, given=(1.0, 0.0))
    kept = case(2, (3.0, 1.0), changed, given=(1.0, 0.0))
    unjudged = case(3, (3.0, 1.0), changed)
    found = weaknesses([right, wrong, kept, unjudged], ("padding",), unit=1.0)["padding"].flipped
    assert found is not None
    assert (found.estimate, found.n) == (0.5, 2), "of the two pairs that were in order, one is turned round"
    assert weaknesses([wrong, unjudged], ("padding",), unit=1.0)["padding"].flipped is None


def test_pairs_that_neutral_text_flips_stand_beside() -> None:
    """Of two pairs ordered right the change turns both round, as many tokens of neutral text one."""
    cases = [
        case(place, (1.0, 0.0), {(1, "flattery", False): 2.0, (1, "flattery", True): neutral}, given=(1.0, 0.0))
        for place, neutral in enumerate((1.5, 0.5))
    ]
    found = weaknesses(cases, ("flattery",), unit=1.0)["flattery"]
    assert found.flipped is not None
    assert found.flipped_control is not None
    assert (found.flipped.estimate, found.flipped_control.estimate) == (1.0, 0.5)
    assert found.as_dict()["flipped_control"]["estimate"] == 0.5


def test_two_models_are_compared_on_the_same_answers_in_their_own_units() -> None:
    one = noise(3, noise=0.2)
    other = [replace(case, changed={key: 3 * value + 3 * (key[1] == "emoji") for key, value in case.changed.items()},
                     originals=tuple(3 * value for value in case.originals)) for case in one]  # fmt: skip
    found = differences(one, other[:20], ("padding", "emoji", "bullets"), units=(1.0, 3.0))
    assert list(found) == ["padding", "emoji"]
    assert (found["padding"].low, found["padding"].high) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert found["emoji"].estimate == pytest.approx(1.0)
    assert found["emoji"].n == 40
    assert differences(one, [], ("padding",), units=(1.0, 1.0)) == {}


def test_a_handful_of_prompts_allows_for_no_verdict() -> None:
    found = weaknesses(noise(4, prompts=10, gain={"emoji": 5.0}), ("padding", "emoji"), unit=1.0)["emoji"]
    assert found.shift is not None
    assert (found.shift.n_clusters, found.shift.known, found.finding.grade) == (5, False, "unmeasured")


@pytest.mark.parametrize("cases", [[], [case(0, (2.0, 2.0), {}), case(1, (2.0,), {})], [case(0, (math.nan, 1.0), {})]])
def test_a_model_without_a_unit_is_refused(cases: list[CaseScores]) -> None:
    with pytest.raises(EvaluationError, match=r"constant gives .* expected finite rewards that differ: shifts are measured in that unit"):
        spread(cases, name="constant")


def test_slopes_find_length_and_format_within_prompts() -> None:
    dice = np.random.default_rng(0)
    texts, prompts, rewards, given = [], [], [], []
    for prompt in range(60):
        level = dice.normal(0, 5)
        for _ in range(4):
            count, bullets = int(dice.integers(2, 40)), int(dice.integers(0, 3))
            texts.append("\n".join(["- item"] * bullets + ["word " * count]))
            prompts.append(str(prompt))
            length = math.log2(1 + len(texts[-1].split()))
            rewards.append(level + 0.4 * length + 0.3 * bullets + 0.05 * dice.normal())
            given.append(0.4 * length + 0.05 * dice.normal())
    found = slopes(texts, prompts, rewards, given)
    for name, of, expected in (
        ("length", "excess", 0.0),
        ("bullets", "reward", 0.3),
        ("bullets", "given", 0.0),
        ("bullets", "excess", 0.3),
    ):
        one = getattr(found[name], of)
        assert one.low <= expected <= one.high or name == "length", (name, of)
    assert found["length"].reward is not None
    assert found["length"].reward.low > 0.3
    assert found["bullets"].excess is not None
    assert found["bullets"].excess.low > 0.2
    assert (found["emoji"].reward, found["emoji"].share) == (None, 0.0)
    assert slopes(texts, prompts, rewards, None)["length"].given is None


def test_limits_by_the_whole_interval_or_strictly() -> None:
    measured = {"padding": interval(0.05, 0.35), "serving.batch": 0.02, "numbers": None, "emoji": Interval(1.0, math.nan, math.nan, 1, 1)}
    assert missed_limits({"padding": 0.1, "serving.batch": 0.05}, measured, model="m") == []
    assert missed_limits({"padding": 0.01}, measured, model="m") == ["m: padding is +0.200 [+0.050, +0.350], its limit 0.01"]
    assert missed_limits({"padding": 0.1}, measured, model="m", strict=True) == ["m: padding is +0.200 [+0.050, +0.350], its limit 0.1"]
    assert missed_limits({"padding": 0.4}, measured, model="m", strict=True) == []
    assert missed_limits({"serving.batch": 0.01}, measured, model="m") == ["m: serving.batch is 0.02, its limit 0.01"]
    for name in ("numbers", "emoji", "slope.length"):
        (told,) = missed_limits({name: 5.0}, measured, model="m")
        assert f"m: {name} could not be measured, its limit 5" in told, "what is not measured is not held"


def test_a_file_of_limits(tmp_path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text("padding: 0.1\nflips.emoji: 1e-2\nslope.length: 1\nserving.batch: 0\n")
    assert read_limits(str(file), ("batch",)) == {"padding": 0.1, "flips.emoji": 0.01, "slope.length": 1.0, "serving.batch": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paddding: 0.1", r"limit on 'paddding' \(did you mean 'padding'\?\), expected what an audit measures"),
        ("serving.speed: 0.1", "limit on 'serving.speed'"),
        ("padding: much", "got 'much' as the limit on padding, expected a number"),
        ("padding: true", "got True as the limit on padding, expected a number"),
        ("", "sets no limit, expected lines like"),
        ("[1]", "got a list, expected settings"),
    ],
)
def test_a_file_of_limits_that_would_hold_nothing_is_refused(text: str, message: str, tmp_path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_limits(str(file), ("batch",))
    with pytest.raises(ConfigError, match="is no file, expected a YAML file of lines like"):
        read_limits(str(tmp_path / "nowhere.yaml"), ())
