"""The Weibull posterior against scipy's distributions, numerical integration and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from rewardproof.losses import weibull_gamma_kl, weibull_sample, weibull_scale


def integrated_kl(shape: float, scale: float, prior_shape: float, prior_rate: float) -> float:
    """The integral that defines the divergence, over quantiles of the posterior."""
    posterior, prior = stats.weibull_min(shape, scale=scale), stats.gamma(prior_shape, scale=1 / prior_rate)

    def difference(quantile: float) -> float:
        x = posterior.ppf(quantile)
        return posterior.logpdf(x) - prior.logpdf(x)

    return quad(difference, 0, 1, limit=400)[0]


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("shape", "scale", "expected"), [(1.7, 0.4, 0.5661), (3.0, 2.0, 0.8066)])
def test_the_divergence_agrees_with_monte_carlo_and_the_published_check(shape: float, scale: float, expected: float) -> None:
    found = float(weibull_gamma_kl(double(shape), double(scale)))
    drawn = stats.weibull_min(shape, scale=scale).rvs(400_000, random_state=0)
    monte_carlo = np.mean(stats.weibull_min(shape, scale=scale).logpdf(drawn) - stats.gamma(1.0).logpdf(drawn))
    assert found == pytest.approx(expected, abs=5e-5)
    assert found == pytest.approx(monte_carlo, abs=0.01)


@pytest.mark.parametrize("prior", [(1.0, 1.0), (0.5, 2.0), (3.0, 0.7)])
@pytest.mark.parametrize(("shape", "scale"), [(0.8, 0.3), (1.7, 0.4), (6.0, 5.0)])
def test_the_divergence_is_the_integral_for_every_prior(shape: float, scale: float, prior: tuple[float, float]) -> None:
    found = weibull_gamma_kl(double(shape), double(scale), prior_shape=prior[0], prior_rate=prior[1])
    assert float(found) == pytest.approx(integrated_kl(shape, scale, *prior), rel=1e-4, abs=1e-5)


def test_the_divergence_is_posterior_against_prior_and_not_the_other_way() -> None:
    """Algorithm 1 of the paper prints KL(Gamma || Weibull)."""
    posterior, prior = stats.weibull_min(3.0, scale=2.0), stats.gamma(1.0)
    reverse = quad(lambda q: prior.logpdf(prior.ppf(q)) - posterior.logpdf(prior.ppf(q)), 0, 1, limit=400)[0]
    assert abs(float(weibull_gamma_kl(double(3.0), double(2.0))) - reverse) > 1


def test_only_the_prior_itself_has_no_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, scale = (0.2 + 4 * torch.rand(2, 1000, generator=generator, dtype=torch.float64)).unbind()
    assert (weibull_gamma_kl(shape, scale) > 0).all()
    for rate in (0.5, 1.0, 3.0):
        exponential = weibull_gamma_kl(double(1.0), double(1 / rate), prior_rate=rate)
        assert float(exponential) == pytest.approx(0, abs=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    shape, scale = torch.tensor([0.7, 1.7, 4.0], dtype=torch.float64), torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    noise = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    shape.requires_grad_(True)
    scale.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda k, s: weibull_gamma_kl(k, s, prior_shape=2.0, prior_rate=0.5), (shape, scale))
    assert torch.autograd.gradcheck(lambda s, k: weibull_sample(s, k, noise), (scale, shape))


def test_samples_follow_the_distribution() -> None:
    noise = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = weibull_sample(double(0.4), double(1.7), noise)
    assert stats.kstest(drawn.numpy(), stats.weibull_min(1.7, scale=0.4).cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", [1.0 + 1e-6, 1.5, 3.0, 50.0])
def test_the_scale_gives_the_mean(shape: float) -> None:
    """The paper prints exp(Γ(·)) where Γ(·) is meant."""
    scale = float(weibull_scale(double(0.3), double(shape)))
    assert stats.weibull_min(shape, scale=scale).mean() == pytest.approx(0.3, rel=1e-9)


def test_noise_at_both_ends_gives_finite_samples_and_gradients() -> None:
    """`torch.rand` draws from [0, 1): 1 - u may be 1, and as small as 2^-24."""
    noise = torch.tensor([0.0, 1 - 2**-24, 1.0])
    scale, shape = torch.ones(3, requires_grad=True), torch.full((3,), 1.2, requires_grad=True)
    drawn = weibull_sample(scale, shape, noise)
    drawn.sum().backward()
    assert scale.grad is not None
    assert shape.grad is not None
    assert torch.isfinite(torch.cat((drawn.detach(), scale.grad, shape.grad))).all()
    first, _, last = drawn.tolist()
    assert first == 0
    assert last == pytest.approx(math.log(1e10) ** (1 / 1.2), rel=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    shape, scale = torch.tensor([1.7]), torch.tensor([0.4])
    half = [value.bfloat16() for value in (shape, scale)]
    found = weibull_gamma_kl(*half)
    assert found.dtype == weibull_sample(half[1], half[0], torch.tensor([0.3])).dtype == torch.float32
    torch.testing.assert_close(found, weibull_gamma_kl(*(value.float() for value in half)))
