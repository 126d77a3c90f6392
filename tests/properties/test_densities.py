"""Every usable family is a normalised density, and its draws follow it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from z_test import FAILURE_RATE

from pyro_vae import Conditional, Fixed, Learned
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.families import classifications
from pyro_vae.vae.families.quadrature import quadrature
from pyro_vae.vae.families.trials import total_mass
from pyro_vae.vae.sources import Network

USABLE = {name: entry for name, entry in classifications().items() if entry.usable}
SPREADS = (0.0, 0.5)  # of the unconstrained parameters, about zero
NUM_DRAWS = 4000
# Draws near df = 1 are singular in float64 too, and a quadrature of the density loses 2e-3 there.
SPREADS_OF = {"Wishart": (0.0, 0.3)}
CASES = [(name, spread) for name in USABLE for spread in SPREADS_OF.get(name, SPREADS)]

pytestmark = pytest.mark.filterwarnings("ignore:Low df values", "ignore:.*LKJCorrCholesky", "ignore:Singular sample")


@pytest.mark.parametrize(("name", "spread"), CASES)
def test_a_density_integrates_to_one_and_draws_follow_it(name, spread):
    with isolated(1, f"{name} {spread}"), pyro.validation_enabled(False):
        distribution, rule = total_mass(USABLE[name].declaration, spread)
        assert abs(float(rule.masses.sum()) - 1) < 1e-3
        draws = distribution.rsample if distribution.has_rsample else distribution.sample
        assert rule.goodness_of_fit(draws((NUM_DRAWS,)).detach()) > FAILURE_RATE / len(CASES)


@pytest.mark.parametrize(
    ("family", "event_shape", "sources"),
    [
        (dist.Dirichlet, (3,), {}),
        (dist.RelaxedOneHotCategorical, (3,), {"temperature": Fixed(0.7)}),
        (dist.LogisticNormal, (3,), {"loc": Learned(shape=(2,), noise=0.5), "scale": Learned(shape=(2,), noise=0.5)}),
        (dist.MultivariateNormal, (3,), {"scale_tril": Learned(noise=0.3)}),
        (dist.Categorical, (), {"logits": Learned(shape=(256,), noise=1.0)}),
        (dist.ProjectedNormal, (3,), {"concentration": Learned(noise=1.0)}),
        (dist.NegativeBinomial, (2,), {"total_count": Fixed(3.0), "logits": Learned(noise=0.5)}),
        (dist.Normal, (2,), {"loc": Learned([1.0, -2.0]), "scale": Learned([0.2, 3.0])}),
    ],
)
def test_larger_events_too(family, event_shape, sources):
    with pyro.validation_enabled(False), torch.no_grad():
        distribution = Conditional(family, event_shape, **sources).double()()
        rule = quadrature(distribution)
        assert abs(float(rule.masses.sum()) - 1) < 1e-3
        assert rule.goodness_of_fit(distribution.sample((NUM_DRAWS,))) > FAILURE_RATE / 8


@pytest.mark.parametrize("family", [dist.Multinomial, dist.DirichletMultinomial])
@pytest.mark.parametrize("length", [0, 1, 4, 10])
def test_documents_of_every_length_have_a_total_mass_of_one(family, length):
    d = Conditional(family, (3,), total_count=Fixed(10))()
    counts = torch.cartesian_prod(*[torch.arange(length + 1.0)] * 3)
    documents = counts[counts.sum(-1) == length]
    assert len(documents) == math.comb(length + 2, 2)
    torch.testing.assert_close(d.log_prob(documents).exp().sum(), torch.tensor(1.0), rtol=1e-5, atol=0)


# ------------------------------------------------------------------ the rule itself


@pytest.mark.parametrize(
    ("distribution", "oracle"),
    [
        (dist.Normal(1.0, 0.3), stats.norm(1.0, 0.3)),
        (dist.Cauchy(0.0, 2.0), stats.cauchy(0.0, 2.0)),
        (dist.Laplace(0.0, 1.0), stats.laplace()),
        (dist.Poisson(4.0), stats.poisson(4.0)),
    ],
)
def test_masses_are_those_of_the_distribution_function(distribution, oracle):
    rule = quadrature(distribution)
    for x in (-1.0, 0.0, 1.2, 5.0):
        below = rule.masses[rule.nodes[:, 0] <= x].sum()
        # Up to the mass of the cell in which x lies.
        assert abs(float(below) - oracle.cdf(x)) <= float(rule.masses.max()) + 1e-9 if x % 1 else True
    assert abs(float(rule.masses.sum()) - 1) < 1e-6


def test_a_wrong_density_has_another_mass():
    class Wrong(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value) + 0.01

    mass = quadrature(Wrong(torch.tensor(0.0).double(), torch.tensor(1.0).double())).masses.sum()
    torch.testing.assert_close(mass, torch.tensor(math.exp(0.01)).double(), rtol=1e-6, atol=0)


def test_the_goodness_of_fit_test_tells_densities_apart_and_has_its_level():
    rule = quadrature(dist.Normal(torch.zeros(()).double(), torch.ones(()).double()))
    p_values = [rule.goodness_of_fit(torch.randn(500)) for _ in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > FAILURE_RATE
    assert rule.goodness_of_fit(1.2 * torch.randn(4000)) < 1e-9
    assert rule.goodness_of_fit(0.2 + torch.randn(4000)) < 1e-9


def test_a_network_puts_out_the_same_density():
    conditional = Conditional(dist.Gamma, (), given=torch.nn.Identity(), head=None, rate=Network()).double()
    raw = torch.tensor([0.3, -0.4]).double()
    rule = quadrature(conditional(raw))
    assert abs(float(rule.masses.sum()) - 1) < 1e-6
