"""Simulation-based calibration where the ranks' distribution has a closed form, and its band against enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from scipy.stats import norm
from torch import Tensor, nn
from z_test import FAILURE_RATE, assert_mean

from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.errors import InputError
from pyro_vae.evaluation import calibration
from pyro_vae.evaluation.calibration import Calibration, coverage, simulation_based_calibration, uniform_band

MODEL = LinearGaussian.random(5, 2)
# A calibrated posterior with two latents fails with probability FAILURE_RATE.
LEVEL = 1 - FAILURE_RATE / 2


def assert_uniform(result: Calibration) -> None:
    """By the band, and by z-tests of the ranks' mean and variance."""
    s = result.num_draws
    assert bool(result.uniform.all())
    ranks = result.ranks.double()
    assert_mean(ranks, torch.full(ranks.shape[1:], s / 2))
    assert_mean((ranks - s / 2).square(), torch.full(ranks.shape[1:], ((s + 1) ** 2 - 1) / 12))


def assert_ranks(result: Calibration, shift: float, wider: float) -> None:
    """That the ranks are those of a Normal q that is ``shift`` standard deviations off and so much wider.

    With u = z_s - z, P(u < 0) is the mean rank's share, and two such u correlate by 1 / (1 + wider^2).
    """
    s, ranks = result.num_draws, result.ranks.double()
    below = norm.cdf(-shift / math.sqrt(1 + wider**2))
    assert_mean(ranks, torch.full(ranks.shape[1:], s * below))
    if shift == 0:
        both = 1 / 4 + math.asin(1 / (1 + wider**2)) / (2 * math.pi)
        assert_mean(ranks * (ranks - 1), torch.full(ranks.shape[1:], s * (s - 1) * both))


# ------------------------------------------------------------------ continuous latents


@pytest.mark.parametrize("diagonal", [True, False])
def test_the_exact_posterior_is_calibrated(diagonal: bool) -> None:
    model = LinearGaussian.random(5, 2, diagonal=diagonal)
    result = simulation_based_calibration(model.vae(size=7), 3000, level=LEVEL)
    assert_uniform(result)
    assert result.ranks.shape == (3000, 2)
    assert int(result.ranks.min()) == 0
    assert int(result.ranks.max()) == 99


@pytest.mark.parametrize("wider", [0.5, 2.0])
def test_a_wrong_scale_has_the_ranks_it_must_have_and_is_seen(wider: float) -> None:
    result = simulation_based_calibration(MODEL.vae(MODEL.exact_encoder(wider)), level=LEVEL)
    assert_ranks(result, 0.0, wider)
    assert result.uniform.tolist() == [False, False]
    low, high = (result.ecdf[:, k] - result.points[k] for k in (9, 89))
    assert bool(((low > 0) & (high < 0) if wider < 1 else (low < 0) & (high > 0)).all())


def test_a_shifted_mean_has_the_ranks_it_must_have_and_is_seen() -> None:
    exact = MODEL.exact_encoder()
    shifted = Encoder(exact.V, exact.c + torch.tensor([0.0, 0.5]).double() * exact.t, exact.t)
    result = simulation_based_calibration(MODEL.vae(shifted), 2000, level=LEVEL)
    assert result.uniform.tolist() == [True, False]
    assert_ranks(replace(result, ranks=result.ranks[:, :1]), 0.0, 1.0)
    assert_ranks(replace(result, ranks=result.ranks[:, 1:]), 0.5, 1.0)


def test_a_posterior_that_is_the_prior_passes_too() -> None:
    prior = Encoder(torch.zeros(2, 5).double(), torch.zeros(2).double(), torch.ones(2).double())
    assert_uniform(simulation_based_calibration(MODEL.vae(prior), 2000, level=LEVEL))


def test_chunks_make_no_difference_to_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_ROWS", 700)
    result = simulation_based_calibration(MODEL.vae(), 1500, 19, level=LEVEL)
    assert result.ranks.shape == (1500, 2)
    assert result.ecdf.shape == (2, 19)
    assert_uniform(result)


def test_the_ecdf_is_that_of_the_ranks() -> None:
    result = simulation_based_calibration(MODEL.vae(), 50, 4, level=0.9)
    for k, point in enumerate(result.points.tolist(), start=1):
        assert point == k / 5
        torch.testing.assert_close(result.ecdf[:, k - 1], (result.ranks < k).double().mean(0))
    lower, upper = uniform_band(50, 4, 0.9)
    assert (result.lower * 50).round().tolist() == lower.tolist()
    assert (result.upper * 50).round().tolist() == upper.tolist()
    inside = [bool(((row >= result.lower) & (row <= result.upper)).all()) for row in result.ecdf]
    assert result.uniform.tolist() == inside
    assert repr(result) == (
        f"Calibration({sum(inside)} of 2 latent dimensions inside the band of level 0.9, 50 data, 4 draws)"
    )


# ------------------------------------------------------------------ other latents


def blocks(*values: Tensor) -> Tensor:
    return torch.block_diag(*(value.reshape(-1, 1) for value in values))


def bernoulli_vae() -> VAE:
    """Two Bernoulli latents, each with two cells of its own, and their exact posterior, linear in x."""
    odds = torch.tensor([-0.5, 1.0])
    off, on = torch.tensor([[-0.7, 0.4], [1.1, -1.6]]), torch.tensor([[0.9, -0.3], [0.2, 1.0]])
    likelihood = Conditional(dist.Bernoulli, (4,), given=mlp(2))
    posterior = Conditional(dist.Bernoulli, (2,), given=mlp(4))
    with torch.no_grad():
        likelihood.head.weight.copy_(blocks(*(on - off)))
        likelihood.head.bias.copy_(off.flatten())
        posterior.head.weight.copy_(blocks(*(on - off)).T)
        softplus = nn.functional.softplus
        posterior.head.bias.copy_(odds + (softplus(off) - softplus(on)).sum(1))
    return VAE(Conditional(dist.Bernoulli, (2,), logits=Fixed(odds)), likelihood, posterior)


def test_the_exact_posterior_of_discrete_latents_is_calibrated() -> None:
    vae = bernoulli_vae()
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2))).unsqueeze(1).expand(4, 16, 2)
    log_weights = vae.log_joint(z, x) - vae.encode(x).log_prob(z)
    torch.testing.assert_close(log_weights, log_weights.logsumexp(0, keepdim=True).expand(4, 16) - math.log(4))
    result = simulation_based_calibration(vae, 3000, 19, level=LEVEL)
    assert_uniform(result)
    with torch.no_grad():
        vae.posterior.head.bias += 1.0
    assert simulation_based_calibration(vae, 3000, 19, level=LEVEL).uniform.tolist() == [False, False]


def test_the_context_reaches_prior_likelihood_and_posterior() -> None:
    r"""z ~ N(2c, 1), x ~ N(z + c, 1): the posterior is N((x + c) / 2, 1/2)."""

    def normal(features: int, weight: list[float], scale: float) -> Conditional:
        part = Conditional(dist.Normal, (1,), given=mlp(features), scale=Fixed(scale))
        with torch.no_grad():
            part.head.weight.copy_(torch.tensor([weight]))
            part.head.bias.zero_()
        return part

    parts = normal(1, [2.0], 1.0), normal(2, [1.0, 1.0], 1.0)
    exact = VAE(*parts, normal(2, [0.5, 0.5], math.sqrt(0.5)), context_features=1)
    blind = VAE(*parts, normal(2, [0.5, 0.0], math.sqrt(0.5)), context_features=1)
    context = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)) + 2
    assert_uniform(simulation_based_calibration(exact, 2000, context=context, level=LEVEL))
    assert simulation_based_calibration(blind, 2000, context=context, level=LEVEL).uniform.tolist() == [False]
    with pytest.raises(InputError, match=r"needs a context of shape \(10, 1\), .*got \(10, 0\)"):
        simulation_based_calibration(exact, 10)


def test_latents_of_any_shape_are_flattened(make_vae) -> None:
    prior = Conditional(dist.Normal, (2, 3), loc=Fixed(0.0), scale=Fixed(1.0))
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(6))
    vae = make_vae(prior, likelihood, Conditional(dist.Normal, (2, 3), given=mlp(6)))
    assert simulation_based_calibration(vae, 30, 9).ranks.shape == (30, 6)


# ------------------------------------------------------------------ the band


@pytest.mark.parametrize(("n", "num_draws"), [(1, 1), (3, 2), (5, 3), (4, 4)])
def test_coverage_is_that_of_enumeration(n: int, num_draws: int) -> None:
    ranks = np.array(list(itertools.product(range(num_draws + 1), repeat=n)))
    counts = np.stack([(ranks < k).sum(1) for k in range(1, num_draws + 1)], axis=1)
    generator = np.random.default_rng(0)
    for _ in range(20):
        ends = np.sort(generator.integers(0, n + 1, (2, num_draws)), axis=0)
        lower, upper = np.maximum.accumulate(ends[0]), np.maximum.accumulate(ends[1])
        exact = ((counts >= lower) & (counts <= upper)).all(1).mean()
        assert coverage(n, lower, upper) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(("n", "num_draws", "level"), [(1000, 99, 0.95), (1000, 99, LEVEL), (300, 20, 0.5)])
def test_the_band_has_its_level_and_no_more_than_needed(n: int, num_draws: int, level: float) -> None:
    lower, upper = uniform_band(n, num_draws, level)
    assert level <= coverage(n, lower, upper) < level + 0.1 * (1 - level)
    assert (lower + upper[::-1]).tolist() == [n] * num_draws


# ------------------------------------------------------------------ manners


def test_repeats_are_bit_equal_and_the_random_state_is_left_alone() -> None:
    vae, state = MODEL.vae().train(), torch.get_rng_state()
    first, again, other = (simulation_based_calibration(vae, 40, 9, seed=seed).ranks for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training


def test_a_vae_in_training_mode_is_evaluated_in_evaluation_mode(make_vae: Callable[..., VAE]) -> None:
    dropping = Conditional(dist.Bernoulli, (6,), given=nn.Sequential(mlp(2, 7), nn.Dropout(0.5)), features=7)
    vae = make_vae(likelihood=dropping)
    evaluated, trained = (simulation_based_calibration(vae.train(mode), 200, 9).ranks for mode in (False, True))
    assert torch.equal(evaluated, trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "`n` is a positive integer, got `0`"),
        ({"num_draws": 2.5}, "`num_draws` is a positive integer, got `2.5`"),
        ({"level": 95}, "`level` is a probability between 0 and 1, such as 0.95, got `95`"),
        ({"n": 3, "context": torch.zeros(3, 1)}, r"needs a context of shape \(3, 0\), .*got \(3, 1\)"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulation_based_calibration(MODEL.vae(), **options)
