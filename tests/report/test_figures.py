"""Figures draw what they are given, write both files the same way twice and refuse to draw nothing."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rewardproof.errors import EvaluationError
from rewardproof.evaluation import BestOfNRuns, Evaluation, Hacking, PolicyRuns, StateSimilarity
from rewardproof.report import (
    accuracy_figure,
    coefficients_figure,
    course_figure,
    hacking_figure,
    policy_figure,
    regimes_figure,
    reliability_figure,
    routing_figure,
    save_figure,
    similarity_figure,
    strength_figure,
    training_figure,
    weight_figure,
)
from rewardproof.statistics import Interval, KindSimilarity, reliability, wilson

GENERATOR = np.random.default_rng(0)
POOLS = GENERATOR.normal(size=(2, 6, 40)).tolist()


def picked(ns: list[int]) -> Hacking:
    return BestOfNRuns([POOLS[0]], POOLS[1], ns, [f"p{number}" for number in range(6)]).summary()


def optimised() -> PolicyRuns:
    """Two runs of three evaluations."""
    columns = ("gold", "proxy/reward", "tokens")

    def run(model: int) -> list[Evaluation]:
        return [
            Evaluation(step, tuple({"prompt": f"p{place}", "kl": [float(step)] * 4, "finished": [True] * 4,
                                    **{name: GENERATOR.normal(step + model, size=4).tolist() for name in columns}} for place in range(6)))
            for step in range(3)
        ]  # fmt: skip

    return PolicyRuns([run(0), run(1)], models=[0, 1])


SIMILAR = KindSimilarity(Interval(0.6, 0.5, 0.7, 9, 9), Interval(0.4, 0.3, 0.5, 9, 9), Interval(0.5, math.nan, math.nan, 9, 1))
FIGURES = {
    "best_of_n": lambda: hacking_figure({"dense": picked([1, 2, 4, 8, 16, 32])}),
    "accuracy": lambda: accuracy_figure({"dense": {"all": wilson(6, 9), "hard": wilson(1, 3)}, "umm": {"all": wilson(7, 9)}}),
    "reliability": lambda: reliability_figure(reliability([0.6, 0.7, 0.9], [1, 0, 1], span=(0.5, 1.0))),
    "coefficients": lambda: coefficients_figure(np.full((3, 4), 0.25), ["0", "1", "2"], expert_names=["shared", "1", "2", "3"]),
    "routing": lambda: routing_figure([[3, 1, 0], [1, 1, 1]], ["0", "1"]),
    "strength": lambda: strength_figure(GENERATOR.normal(0.5, size=300), GENERATOR.uniform(size=300)),
    "strength of one pair": lambda: strength_figure([0.5], [0.0]),
    "weight": lambda: weight_figure([0.0, 0.5, 1.0], [wilson(6, 9), wilson(7, 9), Interval(0.5, math.nan, math.nan, 9, 1)], chosen=0.5),
    "policies": lambda: policy_figure({"dense": optimised().summary()}),
    "course": lambda: course_figure(optimised().table()),
    "similarity": lambda: similarity_figure([StateSimilarity(step, SIMILAR) for step in range(2)]),
    "regimes": lambda: regimes_figure({"helpful": [[0.5, 0.1]], "harmless": [[0.1, 0.5]]}, [1.0], ["0"], expert_names=["1", "2"]),
    "training": lambda: training_figure([{"step": i, "loss": 0.7, "eval_accuracy": 0.5} for i in range(50)]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_writes_svg_and_png(name: str, tmp_path: Path) -> None:
    saved = save_figure(FIGURES[name](), tmp_path, name)
    assert saved.svg == tmp_path / "figures" / f"{name}.svg"
    assert saved.svg.read_text().rstrip().endswith("</svg>")
    assert saved.png.read_bytes().startswith(b"\x89PNG")


def test_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = (save_figure(FIGURES["accuracy"](), tmp_path / run, "a").svg.read_bytes() for run in ("one", "two"))
    assert first == second


def test_the_panels_hold_the_curves_over_the_root_of_the_divergence() -> None:
    found = picked([1, 2, 4])
    for axes, expected in zip(hacking_figure({"dense": found}).axes, (found.gain, found.proxy), strict=True):
        line = axes.get_lines()[0]
        np.testing.assert_allclose(np.asarray(line.get_xdata()), np.sqrt(found.kl))
        np.testing.assert_allclose(np.asarray(line.get_ydata()), [one.estimate for one in expected])


def test_importing_the_room_loads_no_matplotlib() -> None:
    code = "import sys, rewardproof.report; sys.exit('matplotlib' in sys.modules or 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_mistakes_stop_with_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="no methods to draw"):
        hacking_figure({})
    with pytest.raises(EvaluationError, match="no rows with 'loss' to draw"):
        training_figure([{"step": 1}])
    with pytest.raises(EvaluationError, match="with 1 layer names"):
        coefficients_figure(np.ones((2, 2)), ["0"])
