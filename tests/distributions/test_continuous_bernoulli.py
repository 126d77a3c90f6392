"""The continuous Bernoulli distribution against arithmetic of 50 digits."""

import mpmath
import pyro.distributions as dist
import pytest
import torch
from z_test import assert_mean

from pyro_vae import Conditional, mlp
from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli

# Both sides of the series' boundaries at 0.1 (log partition), 0.05 (mean) and 1e-6 (cdf), and the extremes.
MAGNITUDES = [0.0, 1e-9, 9.9e-7, 1.1e-6, 1e-4, 1e-2, 0.049, 0.051, 0.099, 0.101, 1.0, 5.0, 15.0, 20.0, 50.0]
LOGITS = sorted({sign * magnitude for magnitude in MAGNITUDES for sign in (-1.0, 1.0)})
PROBABILITIES = [0.0, 0.01, 0.3, 0.5, 0.8, 0.999, 1.0]
precision = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)], ids=str)


def log_partition(logit):
    return mpmath.mpf(0) if logit == 0 else mpmath.log(mpmath.expm1(logit) / logit)


def quantile(logit, u):
    return u if logit == 0 else mpmath.log1p(u * mpmath.expm1(logit)) / logit


def quantile_slope(logit, u):
    """Derivative of the quantile in the logit."""
    if logit == 0:
        return u * (1 - u) / 2
    growth = mpmath.expm1(logit)
    return u * mpmath.exp(logit) / (1 + u * growth) / logit - mpmath.log1p(u * growth) / logit**2


def mean(logit):
    return mpmath.mpf("0.5") if logit == 0 else 1 / (-mpmath.expm1(-logit)) - 1 / logit


def variance(logit):
    return mpmath.mpf(1) / 12 if logit == 0 else 1 / logit**2 - 1 / (4 * mpmath.sinh(logit / 2) ** 2)


def exact(function, *grids):
    """The function in 50 digits at the very numbers that the tensors hold, rounded to float64."""
    with mpmath.workdps(50):
        points = zip(*(grid.flatten().tolist() for grid in grids), strict=True)
        values = [float(function(*(mpmath.mpf(number) for number in point))) for point in points]
    return torch.tensor(values, dtype=torch.float64).reshape(grids[0].shape)


def grid(dtype):
    logits, values = torch.meshgrid(torch.tensor(LOGITS), torch.tensor(PROBABILITIES), indexing="ij")
    return logits.to(dtype).requires_grad_(), values.to(dtype)


def assert_near(actual, expected, tolerance):
    torch.testing.assert_close(actual.detach().double(), expected, rtol=tolerance, atol=tolerance)


@precision
def test_log_prob_and_its_gradient(dtype, tolerance):
    logits, x = grid(dtype)
    log_prob = ContinuousBernoulli(logits=logits).log_prob(x)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert_near(log_prob, exact(lambda logit, x: x * logit - log_partition(logit), logits, x), tolerance)
    assert_near(gradient, exact(lambda logit, x: x - mean(logit), logits, x), tolerance)


def test_float32_is_within_1e_5_of_the_exact_value_and_gradient_for_logits_up_to_50():
    logits, x = torch.meshgrid(torch.linspace(-50, 50, 101), torch.tensor(PROBABILITIES), indexing="ij")
    logits = logits.clone().requires_grad_()
    log_prob = ContinuousBernoulli(logits=logits).log_prob(x)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    at = logits.detach()
    assert (log_prob.double() - exact(lambda logit, x: x * logit - log_partition(logit), at, x)).abs().max() < 1e-5
    assert (gradient.double() - exact(lambda logit, x: x - mean(logit), at, x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("dtype", "tolerance", "spread"), [(torch.float32, 2e-6, 2e-5), (torch.float64, 1e-10, 1e-7)], ids=str
)
def test_mean_variance_and_entropy(dtype, tolerance, spread):
    logits = torch.tensor(LOGITS, dtype=dtype)
    d = ContinuousBernoulli(logits=logits)
    assert_near(d.mean, exact(mean, logits), tolerance)
    assert_near(d.variance, exact(variance, logits), spread)
    assert_near(d.entropy(), exact(lambda logit: log_partition(logit) - logit * mean(logit), logits), 10 * tolerance)


@precision
def test_icdf_and_its_gradient(dtype, tolerance):
    logits, u = grid(dtype)
    quantiles = ContinuousBernoulli(logits=logits).icdf(u)
    (gradient,) = torch.autograd.grad(quantiles.sum(), logits)
    assert_near(quantiles, exact(quantile, logits, u), tolerance)
    assert_near(gradient, exact(quantile_slope, logits, u), 10 * tolerance)


@precision
def test_cdf_inverts_icdf(dtype, tolerance):
    logits, u = grid(dtype)
    d = ContinuousBernoulli(logits=logits)
    assert_near(d.cdf(d.icdf(u)), u.double(), 10 * tolerance)


def test_density_integrates_to_one():
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    x = torch.linspace(0, 1, 20001, dtype=torch.float64)
    density = ContinuousBernoulli(logits=logits).log_prob(x[:, None]).exp()
    # The trapezoid rule's relative error is (logit * step)^2 / 12.
    torch.testing.assert_close(torch.trapezoid(density, x, dim=0), torch.ones_like(logits), rtol=1e-6, atol=0)


def test_draws_have_the_mean_and_pass_its_gradient():
    logits = torch.tensor([-50.0, -3.0, -1e-3, 0.0, 0.5, 20.0]).requires_grad_()
    each = logits.expand(20000, -1)
    draws = ContinuousBernoulli(logits=each).rsample()
    assert ((draws >= 0) & (draws <= 1)).all()
    assert_mean(draws, exact(mean, logits))
    (slopes,) = torch.autograd.grad(draws.sum(), each)
    assert_mean(slopes, exact(variance, logits))  # the derivative of the mean in the logit


def test_conditional_declares_it_in_the_place_of_torchs():
    d = Conditional(dist.ContinuousBernoulli, (3,), given=mlp(4, 8))(torch.randn(5, 4))
    assert isinstance(d.base_dist, ContinuousBernoulli)
    assert isinstance(d.expand((2, 5)).base_dist, ContinuousBernoulli)
    by_probs = ContinuousBernoulli(probs=torch.tensor([0.2, 0.5, 0.9]))
    by_logits = ContinuousBernoulli(logits=torch.tensor([0.2, 0.5, 0.9]).logit())
    torch.testing.assert_close(by_probs.log_prob(torch.tensor(0.3)), by_logits.log_prob(torch.tensor(0.3)))


def test_torchs_own_density_is_wrong_at_large_logits():
    logits, x = torch.tensor(50.0), torch.tensor(0.8)
    truth = exact(lambda logit, x: x * logit - log_partition(logit), logits, x)
    assert (dist.ContinuousBernoulli(logits=logits).log_prob(x) - truth).abs() > 1  # why ours exists


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_divergence_is_right_at_large_logits(dtype):
    logits = [torch.tensor([50.0, -50.0, 0.0, 1e-3], dtype=dtype), torch.tensor([-3.0, 2.0, 1.0, 0.0], dtype=dtype)]
    p, q = (ContinuousBernoulli(logits=value) for value in logits)
    with mpmath.workdps(40):
        exact = []
        for a, b in zip(*(value.tolist() for value in logits), strict=True):
            partition = [mpmath.log(mpmath.expm1(mpmath.mpf(c)) / c) if c else mpmath.mpf(0) for c in (a, b)]
            mean = 1 / (1 - mpmath.exp(-mpmath.mpf(a))) - 1 / mpmath.mpf(a) if a else mpmath.mpf(1) / 2
            exact.append(float(mean * (mpmath.mpf(a) - b) - partition[0] + partition[1]))
    torch.testing.assert_close(
        torch.distributions.kl_divergence(p, q), torch.tensor(exact, dtype=dtype), rtol=1e-5, atol=2e-6
    )
