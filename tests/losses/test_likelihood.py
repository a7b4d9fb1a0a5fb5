"""The language model's loss on preferred answers against arithmetic written out."""

import math

import pytest
import torch

from rewardproof.errors import ConfigError
from rewardproof.losses import chosen_likelihood

LOG_PROBS = torch.tensor([-0.1, -3.0, -400.0], dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_equals_the_logarithm_of_the_sigmoid_written_out(beta: float) -> None:
    expected = [math.log1p(math.exp(-beta * value)) for value in LOG_PROBS.tolist()]
    found = chosen_likelihood(LOG_PROBS, beta=beta, reduction="none")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(chosen_likelihood(LOG_PROBS, beta=beta), found.mean())


def test_without_beta_it_is_the_likelihood_itself() -> None:
    torch.testing.assert_close(chosen_likelihood(LOG_PROBS, beta=0.0, reduction="none"), -LOG_PROBS)


def test_of_whole_answers_it_is_nearly_beta_times_the_likelihood() -> None:
    value = LOG_PROBS[2:].clone().requires_grad_(True)
    chosen_likelihood(value, beta=0.1).backward()
    assert value.grad is not None
    assert float(value.grad) == pytest.approx(-0.1, rel=1e-9)


def test_an_unknown_reduction() -> None:
    with pytest.raises(ConfigError, match="reduction='middle' is unknown"):
        chosen_likelihood(LOG_PROBS, reduction="middle")  # pyright: ignore[reportArgumentType]
