"""The KL divergence of the posterior from the prior: in closed form, by dimension, from draws."""

from __future__ import annotations

import functools

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed, Training, fit, mlp
from pyro_vae.distributions.kl import analytic_kl, factors, kl, kl_of_dimensions
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, AnalyticKL


def test_analytic_kl_of_diagonal_normals_is_kl_divergence_and_equation_10() -> None:
    torch.manual_seed(0)
    loc, log_scale = 2 * torch.randn(2, 100, 3, 4, dtype=torch.float64), torch.randn(2, 100, 3, 4, dtype=torch.float64)
    q, p = (dist.Normal(m, s.exp()).to_event(2) for m, s in zip(loc, log_scale, strict=True))
    torch.testing.assert_close(analytic_kl(q, p), kl_divergence(q, p), rtol=1e-12, atol=1e-12)
    standard = dist.Normal(torch.zeros(3, 4).double(), 1.0).to_event(2)
    m, s2 = loc[0], (2 * log_scale[0]).exp()
    equation_10 = 0.5 * (1 + s2.log() - m**2 - s2).sum((-1, -2))
    torch.testing.assert_close(-analytic_kl(q, standard), equation_10, rtol=1e-12, atol=1e-12)


def _positive(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64) + 0.5


PAIRS = pytest.mark.parametrize(
    ("q", "p"),
    [
        (dist.Gamma(_positive(6, 3), 1.0).to_event(1), dist.Gamma(_positive(3), 2.0).to_event(1)),
        (dist.Beta(_positive(6, 3), 1.0).to_event(1), dist.Beta(_positive(3), 2.0).to_event(1)),
        (dist.Laplace(_positive(6, 3), 1.0).to_event(1), dist.Normal(_positive(3), 2.0).to_event(1)),
        (dist.LogNormal(_positive(6, 3), 1.0).to_event(1), dist.LogNormal(_positive(3), 2.0).to_event(1)),
        (dist.Dirichlet(_positive(6, 3)), dist.Dirichlet(_positive(3))),
        (
            dist.MultivariateNormal(_positive(6, 3), scale_tril=torch.eye(3).double() * _positive(6, 1, 3)),
            dist.MultivariateNormal(_positive(3), scale_tril=2 * torch.eye(3).double()),
        ),
    ],
    ids=lambda d: type(getattr(d, "base_dist", d)).__name__,
)


@PAIRS
def test_analytic_kl_of_other_pairs_is_kl_divergence_of_each_datum(
    q: dist.TorchDistribution, p: dist.TorchDistribution
) -> None:
    torch.testing.assert_close(analytic_kl(q, p), kl_divergence(q, p.expand((6,))), rtol=1e-12, atol=1e-12)


def test_analytic_kl_refuses_a_pair_without_closed_form_by_name() -> None:
    likelihood = Conditional(dist.Normal, (5,), given=mlp(3), scale=Fixed(1.0))
    vae = VAE(Conditional(dist.Dirichlet, (3,), concentration=Fixed([1.0, 1.0, 1.0])), likelihood)
    adam = functools.partial(torch.optim.Adam, lr=0.03)
    for refuse in (
        AnalyticKL().check,
        lambda v: fit(v, torch.zeros(4, 5), AnalyticKL(), Training(optimizer=adam, steps=1)),
    ):
        with pytest.raises(InputError, match=r"KL\(Pushed\(.*\) \|\| Dirichlet\).*use aevb"):
            refuse(vae)
    AEVB().check(vae)


@PAIRS
def test_kl_is_the_closed_form_where_there_is_one(q: dist.TorchDistribution, p: dist.TorchDistribution) -> None:
    assert torch.equal(kl(q, p, q.sample((2,))), analytic_kl(q, p))


def test_kl_is_estimated_without_bias_where_there_is_no_closed_form() -> None:
    """A mixture of two equal components has none, and is a Normal all the same."""
    normal = dist.Normal(torch.full((3, 2, 2), 0.3).double(), 1.5).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.full((3, 2), 0.5).double()), normal)
    p = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
    torch.manual_seed(0)
    samples = torch.stack([kl(mixture, p, mixture.sample((1,))) for _ in range(3000)])
    single = dist.Normal(torch.full((3, 2), 0.3).double(), 1.5).to_event(1)
    assert_mean(samples, kl_divergence(single, p.expand((3,))))
    z = mixture.sample((4,))
    torch.testing.assert_close(kl(mixture, p, z), (mixture.log_prob(z) - p.log_prob(z)).mean(0))


def test_kl_of_dimensions_sums_to_the_kl_and_is_each_dimensions_own() -> None:
    q, p = dist.Normal(_positive(6, 3), _positive(6, 3)), dist.Normal(_positive(3), 2.0)
    each = kl_of_dimensions(q.to_event(1), p.to_event(1), q.sample((2,)))
    assert each.shape == (6, 3)
    torch.testing.assert_close(each, kl_divergence(q, p.expand((6, 3))), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(each.sum(-1), analytic_kl(q.to_event(1), p.to_event(1)), rtol=1e-12, atol=1e-12)


def test_kl_of_dimensions_from_draws() -> None:
    q, p = dist.StudentT(5.0, _positive(6, 3), 1.0), dist.Normal(torch.zeros(3).double(), 1.0)
    z = q.sample((4,))
    each = kl_of_dimensions(q.to_event(1), p.to_event(1), z)
    torch.testing.assert_close(each, (q.log_prob(z) - p.log_prob(z)).mean(0))


@pytest.mark.parametrize("which", ["posterior", "prior"])
def test_dimensions_that_depend_on_each_other_have_no_kl_each(which: str) -> None:
    free = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    tied = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    q, p = (tied.expand((3,)), free) if which == "posterior" else (free.expand((3,)), tied)
    with pytest.raises(InputError, match=rf"the {which} `MultivariateNormal` does not factorise"):
        kl_of_dimensions(q, p, q.sample((1,)))
    assert factors(tied) is None
    assert isinstance(factors(free), dist.Normal)


def _lower(*shape: int) -> Tensor:
    return torch.diag_embed(_positive(*shape)) + 0.3 * torch.ones(shape[-1], shape[-1]).double().tril(-1)


LOW_RANK = dist.LowRankMultivariateNormal(_positive(6, 3), _positive(6, 3, 2), _positive(6, 3))


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (dist.MultivariateNormal(_positive(6, 3), scale_tril=_lower(6, 3)), dist.Normal(_positive(3), 2.0).to_event(1)),
        (LOW_RANK, dist.Normal(_positive(3), _positive(3)).to_event(1)),
        (LOW_RANK, dist.Normal(_positive(6, 3), 1.5).to_event(1)),  # a prior given a context
        (dist.Normal(_positive(6, 3), 0.7).to_event(1), dist.MultivariateNormal(_positive(3), scale_tril=_lower(3))),
        (
            dist.Normal(_positive(6, 3), _positive(6, 3)).to_event(1),
            dist.LowRankMultivariateNormal(_positive(3), _positive(3, 2), _positive(3)),
        ),
    ],
    ids=["full-diagonal", "low-rank-diagonal", "low-rank-diagonal-context", "diagonal-full", "diagonal-low-rank"],
)
def test_kl_of_full_and_low_rank_against_diagonal_normals_is_that_of_full_ones(
    q: dist.TorchDistribution, p: dist.TorchDistribution
) -> None:
    full = [
        torch.distributions.MultivariateNormal(
            d.mean, torch.diag_embed(d.variance) if isinstance(d, dist.Independent) else d.covariance_matrix
        )
        for d in (q, p.expand((6,)))
    ]
    torch.testing.assert_close(analytic_kl(q, p), kl_divergence(*full), rtol=1e-10, atol=1e-10)


def test_kl_of_a_normal_pushed_onto_the_support_of_a_log_normal_is_that_of_the_normals() -> None:
    vae = VAE(
        Conditional(dist.LogNormal, (3,), loc=Fixed(0.3), scale=Fixed(0.8)),
        Conditional(dist.Normal, (5,), given=mlp(3), scale=Fixed(1.0)),
    ).double()
    q, p = vae.encode(torch.randn(4, 5).double()), vae.prior_given(None)
    base = q.base_dist
    normal = dist.Normal(torch.full((3,), 0.3).double(), 0.8).to_event(1)
    torch.testing.assert_close(analytic_kl(q, p), analytic_kl(base, normal), rtol=1e-6, atol=1e-6)
    z = q.sample((5000,))
    assert_mean(q.log_prob(z) - p.log_prob(z), analytic_kl(q, p))


def test_no_closed_form_is_taken_where_the_transforms_differ() -> None:
    vae = VAE(
        Conditional(dist.Gamma, (3,), concentration=Fixed(2.0), rate=Fixed(1.0)),
        Conditional(dist.Normal, (5,), given=mlp(3), scale=Fixed(1.0)),
    )
    with pytest.raises(InputError, match="no closed form"):
        analytic_kl(vae.encode(torch.zeros(4, 5)), vae.prior_given(None))
    matrix = dist.Normal(torch.zeros(6, 3, 3), 1.0).to_event(2)
    with pytest.raises(InputError, match="no closed form"):
        analytic_kl(
            dist.MultivariateNormal(torch.zeros(6, 3), torch.eye(3)), dist.Laplace(torch.zeros(3), 1.0).to_event(1)
        )
    assert analytic_kl(matrix, dist.Normal(torch.zeros(3, 3), 1.0).to_event(2)).shape == (6,)


def test_pyro_knows_the_closed_form_of_a_posterior_that_is_pushed_onto_a_log_normal_prior() -> None:
    prior = Conditional(dist.LogNormal, (3,), loc=Fixed(0.3), scale=Fixed(0.8))
    vae = VAE(prior, Conditional(dist.Bernoulli, (5,), given=mlp(3, 4))).double()
    q, p = vae.encode(torch.zeros(2, 5).double()), vae.prior_given(None)
    expected = kl_divergence(q.base_dist, dist.Normal(0.3, 0.8).expand((2, 3)).to_event(1))
    torch.testing.assert_close(kl_divergence(q, p.expand((2,))), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(analytic_kl(q, p), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Gamma(torch.ones(2, 3).double(), 1.0).to_event(1))
