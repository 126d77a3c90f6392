"""Importance sampling from a proposal that all data share agrees with quadrature."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.runtime.random_streams import isolated

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.aevb_figure3_shared")


@pytest.fixture
def vae():
    """Twelve pixels whose posteriors are narrower than the prior."""
    with isolated(0, "networks"):
        prior = Conditional(dist.Normal, (3,), loc=Fixed(0.0), scale=Fixed(1.0))
        vae = VAE(prior, Conditional(dist.Bernoulli, (12,), given=mlp(3, 20)))
        with torch.no_grad():
            for parameter in vae.likelihood.parameters():
                parameter.normal_(0.0, 2.0)
    return vae


def by_quadrature(vae, x):
    """log p(x) by the midpoint rule in each of three dimensions."""
    at = torch.linspace(-6, 6, 100, dtype=torch.float64)
    weight = dist.Normal(0.0, 1.0).log_prob(at) + math.log(12 / 99)
    z, log_prior = torch.cartesian_prod(at, at, at), torch.cartesian_prod(weight, weight, weight).sum(1)
    with torch.no_grad():
        logits = vae.double().decode(z).base_dist.logits
    vae.float()
    return ((x.double() @ logits.T - softplus(logits).sum(1)) + log_prior).logsumexp(1)


def test_it_agrees_with_quadrature(shared, vae):
    x = torch.rand(6, 12, generator=torch.Generator().manual_seed(0)).round()
    exact = by_quadrature(vae, x)
    found = shared.shared_importance_sampling(vae, x, 2**15, rounds=3, pilot_draws=2**12, seed=1)
    error = found.diagnostics["pointwise_error"]
    assert error.median() < 0.03
    assert ((found.pointwise - exact).abs() < 4 * error + 0.001).all()
    prior = shared.shared_importance_sampling(vae, x, 2**15, rounds=0, seed=1)
    gained = found.diagnostics["effective_sample_size"] / prior.diagnostics["effective_sample_size"]
    assert gained.min() > 1.5
    again = shared.shared_importance_sampling(vae, x, 2**15, rounds=3, pilot_draws=2**12, seed=1)
    assert torch.equal(again.pointwise, found.pointwise)


def test_the_proposals_density_is_that_of_its_draws(shared):
    """The mean of p(z) / r(z) over draws from r is 1, and of draws from p that of r(z) / p(z)."""
    with isolated(3, "draws"):
        mass = shared.smoothed(0.3 * torch.randn(500, 3) + torch.tensor([1.0, -2.0, 0.5]), torch.full((500,), 1 / 500))
        assert float(mass.sum()) == pytest.approx(1, abs=1e-5)
        proposal = shared.Histogram(mass)
        z, log_ratio = proposal.draw(400_000)
        assert torch.equal(proposal.log_ratio(z), log_ratio)
        assert float(log_ratio.exp().mean()) == pytest.approx(1, abs=0.01)
        assert float((z[:, 1] < -1).float().mean()) == pytest.approx(0.8 + 0.2 * 0.159, abs=0.01)
        by_prior = (-proposal.log_ratio(torch.randn(2_000_000, 3))).exp()
        assert float(by_prior.mean()) == pytest.approx(1, abs=0.03)
        outside = proposal.log_ratio(torch.tensor([[shared.REACH + 1, 0.0, 0.0]]))
        assert float(outside) == pytest.approx(-math.log(shared.OF_PRIOR), abs=1e-5)


def test_sums_are_those_of_the_weights(shared):
    log_weights = torch.randn(4, 30, dtype=torch.float64)
    sums = shared.Sums(4)
    for block in log_weights.split(7, 1):
        sums.add(block - 500)
    mean, error, size = sums.result(30)
    weights = log_weights.exp()
    assert mean == pytest.approx(weights.mean(1).log() - 500)
    assert size == pytest.approx(weights.sum(1).square() / weights.square().sum(1))
    assert error == pytest.approx(weights.std(1, correction=0) / weights.mean(1) / math.sqrt(30))
