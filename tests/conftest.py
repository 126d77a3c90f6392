"""Fixtures that the tests share: a seed, a small VAE, and the one test of Monte Carlo statements."""

import math
from statistics import NormalDist

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, Conditional, Fixed, mlp


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def x():
    """Twelve binary data of six cells."""
    return (torch.rand(12, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@pytest.fixture
def make_vae():
    """Makes a VAE with two Normal latents and six Bernoulli cells; any part may be replaced."""

    def make(prior=None, likelihood=None, posterior=None, **options):
        return VAE(
            prior or Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
            likelihood or Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)),
            posterior or Conditional(dist.Normal, (2,), given=mlp(6, 7)),
            **options,
        )

    return make


@pytest.fixture
def assert_mean():
    """Tests at level 2e-5 (Bonferroni over components) that draws, first dimension, have the expected mean."""

    def check(draws, expected):
        draws = draws.detach().double()
        error = draws.std(0) / math.sqrt(len(draws))
        z = (draws.mean(0) - torch.as_tensor(expected, dtype=torch.float64)) / error
        limit = NormalDist().inv_cdf(1 - 1e-5 / z.numel())
        assert z.abs().max() < limit, f"|z| = {z.abs().max():.2f}, above {limit:.2f}"

    return check
