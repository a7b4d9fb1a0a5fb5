"""The onset monitor names what has changed against the run's own beginning, and sits in a trainer's log."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState

from rewardproof.policy.monitor import HackingCallback, HackingMonitor, Limits, watched

STEADY = {"kl": 0.1, "reward": 0.5, "length": 40.0, "disagreement": 0.2}


def course(count: int, **slopes: float) -> list[dict[str, float]]:
    """Records that wobble a little and drift by a slope a record from the tenth on."""
    wobble = (0.99, 1.01, 1.0, 1.005, 0.995)
    return [
        {name: value * (wobble[step % 5] + slopes.get(name, 0.0) * max(step - 10, 0)) for name, value in STEADY.items()}
        for step in range(count)
    ]


def signs_after(records: list[dict[str, float]]) -> list[str]:
    monitor, signs = HackingMonitor(), {}
    for record in records:
        signs = monitor.observe(record)
    return monitor.named(signs)


def test_a_steady_run_shows_nothing() -> None:
    assert signs_after([{**record, "kl": 0.1 * step} for step, record in enumerate(course(40))]) == []


@pytest.mark.parametrize(("name", "slope"), [("reward", 0.05), ("length", 0.1), ("length", -0.03), ("disagreement", 0.2)])
def test_what_drifts_is_named(name: str, slope: float) -> None:
    assert signs_after(course(30, **{name: slope})) == [name]


def test_distance_that_grows_faster_and_faster_is_named() -> None:
    assert signs_after([{"kl": 0.1 * step + 0.02 * max(step - 15, 0) ** 2} for step in range(22)]) == ["acceleration"]


@pytest.mark.parametrize("shape", ["constant", "linear", "saturating"])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_noise_is_no_acceleration(shape: str, noise: float) -> None:
    """Distances that do not speed up, as noisy as a batch's log-ratio makes them, raise an alarm in few runs of 60 records."""
    course = {"constant": lambda t: 1 + 0 * t, "linear": lambda t: 0.1 * t, "saturating": lambda t: 2 * (1 - np.exp(-t / 10))}[shape]
    alarms = 0
    for seed in range(100):
        kl_T = course(np.arange(60.0)) + noise * np.random.default_rng(seed).normal(size=60)
        monitor = HackingMonitor()
        alarms += any("acceleration" in monitor.named(monitor.observe({"kl": float(kl)})) for kl in kl_T)
    assert alarms <= 5


def test_acceleration_is_seen_through_noise() -> None:
    seen = 0
    for seed in range(50):
        noise_T, monitor = 0.02 * np.random.default_rng(seed).normal(size=40), HackingMonitor()
        kl_T = [0.05 * step + 0.02 * max(step - 20, 0) ** 2 + noise_T[step] for step in range(40)]
        seen += any("acceleration" in monitor.named(monitor.observe({"kl": kl})) for kl in kl_T)
    assert seen >= 48


def test_what_a_trainer_could_not_measure_is_left_aside() -> None:
    assert watched({"kl": None, "reward": 0.5, "completions/mean_length": None}) == {"reward": 0.5}


def test_numbers_that_are_not_finite_are_left_aside() -> None:
    assert HackingMonitor().observe({"kl": float("nan")}) == {}


def test_a_trainers_log_gains_the_signs_and_a_run_can_be_stopped(caplog: pytest.LogCaptureFixture) -> None:
    callback, control, state = HackingCallback(Limits(window=2), stop_at=2), TrainerControl(), TrainerState()
    arguments: Any = None
    lengths, rewards = [40, 41, 40, 90, 95, 99], [0.1, 0.11, 0.1, 0.9, 1.2, 1.4]
    with caplog.at_level(logging.WARNING):
        for step, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
            logs = {"completions/mean_length": length, "reward": reward, "loss": 0.0}
            state.global_step, state.log_history = step, [*state.log_history, dict(logs)]
            callback.on_log(arguments, state, control, logs=logs)
            assert control.should_training_stop == (step >= 3)
    assert state.log_history[-1]["hacking/length"] == pytest.approx(97 / 40.5 - 1)
    assert "hacking/reward" in state.log_history[-1]
    assert caplog.text.count("beyond what the run began with") == 1, "each sign warns once"
    callback.on_log(arguments, state, control, logs=None)
