"""Rates near the boundary of a bounded support, where float32 rounds z, against integrals over u in float64."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import logsigmoid
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed, Network, mlp
from pyro_vae.evaluation import aggregate_posterior, latent_kl, mutual_information, rate_distortion

X = torch.zeros(20, 3)


class Constant(nn.Module):
    """Features that do not depend on x."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(*x.shape[:-1], 1)


def pushed(loc: float) -> VAE:
    """Prior Beta(1/2, 1/2), and the posterior z = sigmoid(u), u ~ N(loc, 1) for each datum."""
    return VAE(
        Conditional(dist.Beta, (1,), concentration1=Fixed(0.5), concentration0=Fixed(0.5)),
        Conditional(dist.Normal, (3,), given=mlp(1, 4)),
        Conditional(dist.Normal, (1,), given=Constant(loc), head=None, loc=Network(), scale=Fixed(1.0)),
    )


def exact_rate(loc: float) -> float:
    u = torch.linspace(loc - 9, loc + 9, 20_001, dtype=torch.float64)
    log_q = Normal(loc, 1.0).log_prob(u)
    log_p = (logsigmoid(u) + logsigmoid(-u)) / 2 - math.log(math.pi)
    return float(torch.trapezoid(log_q.exp() * (log_q - log_p), u))


@pytest.mark.parametrize("loc", [-20.0, 0.0, 12.0, 17.0, 20.0, 30.0])
def test_rates_are_right_where_z_is_rounded(loc: float) -> None:
    vae, rate = pushed(loc), torch.tensor([exact_rate(loc)]).double()
    aggregate = aggregate_posterior(vae, X, 400)
    for estimate in (aggregate.marginal_kl, aggregate.rate, rate_distortion(vae, X, 400).rate):
        assert_mean(torch.tensor([estimate.value]).double(), rate, torch.tensor([estimate.standard_error]).double())
    whole = latent_kl(vae, X, 400)
    assert_mean(whole.value.double(), rate, whole.standard_error)


@pytest.mark.parametrize("loc", [12.0, 17.0, 20.0, 60.0])
def test_a_posterior_that_ignores_x_has_no_mutual_information(loc: float) -> None:
    assert float(mutual_information(pushed(loc), X).pointwise.abs().max()) < 1e-5


class OfTheFirst(nn.Module):
    """Features x_0."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1]


@pytest.mark.parametrize("centre", [0.0, 20.0, 60.0])
def test_mutual_information_does_not_change_with_the_place_of_the_posteriors(centre: float) -> None:
    """It is that of the u, with any centre, and at most log N."""
    vae = VAE(
        Conditional(dist.Beta, (1,), concentration1=Fixed(0.5), concentration0=Fixed(0.5)),
        Conditional(dist.Normal, (3,), given=mlp(1, 4)),
        Conditional(dist.Normal, (1,), given=OfTheFirst(), features=1, head=None, loc=Network(), scale=Fixed(1.0)),
    )
    offsets = torch.linspace(-3, 3, 7, dtype=torch.float64)
    u = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_q = Normal(offsets.unsqueeze(1), 1.0).log_prob(u)
    exact = torch.trapezoid(log_q.exp() * (log_q - log_q.logsumexp(0) + math.log(7)), u, dim=1)
    result = mutual_information(vae, torch.cat([(centre + offsets).float().unsqueeze(1), torch.zeros(7, 2)], 1), 1000)
    assert_mean(result.pointwise, exact, result.diagnostics["pointwise_error"])
    apart = torch.cat([centre + 1e3 * offsets.float().unsqueeze(1), torch.zeros(7, 2)], 1)
    assert mutual_information(vae, apart, 10).value == pytest.approx(math.log(7), abs=1e-6)
