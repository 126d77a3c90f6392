"""log p(x) from a density fitted to posterior samples, against exact answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import nn
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, mlp
from pyro_vae.engine import interpreted
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, annealed
from pyro_vae.evaluation.posterior_density import posterior_density_estimator

MODEL = LinearGaussian.random(5, 2, diagonal=False)
X = MODEL.sample(6)
EXACT = MODEL.log_marginal(X)
ONE = torch.tensor(1.0).double()


def assert_exact(estimate: Estimate, exact: torch.Tensor) -> None:
    """Asserts by z-tests that the estimates of all data, freed of their leading bias, are exact within their errors."""
    assert_mean(estimate.pointwise - estimate.diagnostics["bias"], exact, estimate.diagnostics["pointwise_error"])


def positive() -> VAE:
    """One positive latent, whose posterior in unconstrained space is far from Normal."""
    torch.manual_seed(3)
    prior = Conditional(dist.Gamma, (1,), concentration=Fixed(2.0), rate=Fixed(1.5))
    return VAE(prior, Conditional(dist.Normal, (4,), given=mlp(1, 5), scale=Learned(0.8))).double()


def quadrature(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    """log p(x) of each datum by Gauss-Legendre over a positive z below 30."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(300))
    z = (15 * (nodes + 1)).reshape(-1, 1, 1).expand(-1, len(x), 1)
    with torch.no_grad():
        return (vae.log_joint(z, x) + (15 * weights).log().unsqueeze(-1)).logsumexp(0)


@pytest.mark.parametrize(
    ("start", "annealed"),
    [
        *(("prior", True), ("encoder", False)),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("prior", False), ("encoder", True)]),
    ],
)
def test_it_is_nearly_exact_where_the_posterior_is_normal(start: Any, annealed: bool) -> None:
    how: dict[str, Any] = {"start": start, "annealed": annealed}
    result = posterior_density_estimator(MODEL.vae(), X, 4000, chains=100, burn_in=60, num_leapfrog=5, **how)
    assert how.items() <= result.diagnostics.items()
    assert_exact(result, EXACT)
    assert result.diagnostics["pointwise_error"].max() < 0.01
    acceptance = result.diagnostics["acceptance"]
    assert 0.65 < acceptance.min() < acceptance.max() < 0.85


def test_it_hits_the_exact_value_of_a_posterior_that_is_not_normal() -> None:
    vae = positive()
    with torch.no_grad():
        x = vae.generate(5)
    result = posterior_density_estimator(vae, x, 4000, chains=200, burn_in=60, num_leapfrog=5)
    assert result.diagnostics["pointwise_error"].min() > 1e-3
    assert_exact(result, quadrature(vae, x))


class TwoModes(nn.Module):
    """x = (z^2, z) with little noise in the first: modes at z = 1 and -1, which no chain leaves."""

    def forward(self, z: torch.Tensor) -> dist.Independent:
        scale = torch.tensor([0.1, 0.6]).double()
        return dist.Normal(torch.cat([z.square(), z], -1), scale).to_event(1)


def test_chains_that_end_in_a_minor_mode_die_out() -> None:
    """The minor mode has e^-5.6, e^-8.3 and e^-11 of the other's mass; half of the draws from the prior lead there."""
    prior = Conditional(dist.Normal, (1,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae = VAE(prior, TwoModes(), Conditional(dist.Normal, (1,), given=mlp(2, 3))).double()
    x = torch.tensor([[1.0, 1.0], [1.0, 1.5], [1.0, 2.0]]).double()
    z = torch.linspace(-6, 6, 200_001).double().reshape(-1, 1, 1).expand(-1, 3, 1)
    exact = vae.log_joint(z, x).logsumexp(0) + math.log(12 / 200_000)
    result = posterior_density_estimator(vae, x.repeat_interleave(40, 0), 300, chains=30, burn_in=80, num_leapfrog=5)
    off = (result.pointwise - exact.repeat_interleave(40)).reshape(3, 40)
    assert off.abs().median(1).values.max() < 0.1
    assert off.min() > -3.0


def test_chains_begin_where_they_are_told_to() -> None:
    """At a q(z|x) that sits in the minor mode, and not annealed, the estimate is that mode's mass alone."""
    prior = Conditional(dist.Normal, (1,), loc=Fixed(0.0), scale=Fixed(1.0))
    minor = Conditional(dist.Normal, (1,), loc=Fixed(-1.0), scale=Fixed(0.05))
    vae = VAE(prior, TwoModes(), minor).double()
    x = torch.tensor([[1.0, 1.0]]).double()
    z = torch.linspace(-6, 0, 100_001).double().reshape(-1, 1, 1)
    with torch.no_grad():
        mass = vae.log_joint(z, x).logsumexp(0) + math.log(6 / 100_000)
    how: dict[str, Any] = {"chains": 30, "burn_in": 80, "num_leapfrog": 5, "annealed": False}
    stuck = posterior_density_estimator(vae, x, 600, start="encoder", **how)
    assert stuck.pointwise.item() == pytest.approx(mass.item(), abs=0.1)
    assert posterior_density_estimator(vae, x, 600, start="prior", **how).pointwise.item() > mass.item() + 2


def test_the_error_is_honest_though_samples_of_a_chain_depend_on_each_other() -> None:
    """Trajectories of one short step along a narrow posterior; over copies of one datum, estimated independently."""
    copies, narrow = 300, LinearGaussian(torch.tensor([8.0, 0.5]).double().diag(), torch.zeros(2).double(), ONE)
    x = torch.tensor([0.5, -0.5]).double().expand(copies, 2)
    result = posterior_density_estimator(narrow.vae(), x, 600, chains=60, burn_in=60, num_leapfrog=1)
    off, told = result.pointwise - narrow.log_marginal(x[:1]), result.diagnostics
    assert_mean(off.square() - told["pointwise_error"].square(), 0.0)
    assert_mean(off - told["bias"], 0.0)


def test_the_mean_is_unbiased_for_one_over_p_of_x_whatever_is_fitted() -> None:
    """From a fit to so few samples that it would show if the mean were over these."""
    result = posterior_density_estimator(MODEL.vae(), X[:1].expand(600, 5), 20, chains=20, burn_in=60, num_leapfrog=5)
    assert_mean((EXACT[0] - result.pointwise).exp(), 1.0)


def test_hidden_cells_are_left_out_and_parts_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annealed, "_ROWS", 450)
    observed = torch.tensor([True, False, True, True, False])
    visible = LinearGaussian(MODEL.W[observed], MODEL.b[observed], MODEL.s[observed])
    batch = Batch(torch.where(observed, X, torch.nan), mask=observed.expand(6, 5))
    vae, sizes = MODEL.vae(), []
    original = vae.log_likelihood_of
    vae.log_likelihood_of = lambda z, batch: sizes.append(z.shape[:-1].numel()) or original(z, batch)
    result = posterior_density_estimator(vae, batch, 1000, chains=100, burn_in=60, num_leapfrog=5)
    assert max(sizes) == 400
    assert_exact(result, visible.log_marginal(X[:, observed]))


def test_float32_a_context_and_the_simplex() -> None:
    """Against the estimate of importance sampling, within both errors."""
    vae = VAE(
        Conditional(dist.Dirichlet, (3,), given=mlp(1)),
        Conditional(dist.Normal, (4,), given=mlp(4), scale=Learned(0.8)),
        context_features=1,
    )
    context = torch.linspace(-1, 1, 4).unsqueeze(-1)
    batch = Batch(vae.generate(4, context), context)
    result = posterior_density_estimator(vae, batch, 2000, chains=100, burn_in=60, num_leapfrog=5)
    other = annealed.annealed_importance_sampling(vae, batch, 60, 200, num_leapfrog=3)
    errors = torch.stack([estimate.diagnostics["pointwise_error"] for estimate in (result, other)])
    difference = result.pointwise - other.pointwise
    biases = result.diagnostics["bias"] + other.diagnostics["bias"]
    assert_mean(difference, biases, errors.norm(dim=0))


def test_a_repeat_is_bit_equal_and_the_estimate_tells_its_settings() -> None:
    vae, state = MODEL.vae().train(), torch.get_rng_state()
    first, second = (posterior_density_estimator(vae, X, 21, chains=5, burn_in=5, num_leapfrog=1) for _ in range(2))
    assert torch.equal(first.pointwise, second.pointwise)
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    told = first.diagnostics
    assert (told["method"], told["num_samples"], told["chains"]) == ("posterior density", 21, 5)
    assert all(told[name].shape == (6,) for name in ("acceptance", "effective_sample_size", "bias"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_samples": 0}, "`num_samples` is an integer of at least 1"),
        ({"num_samples": 19}, "`num_samples` is at least 10 for each latent dimension, here 20"),
        ({"chains": 1}, "`chains` is an integer of at least 2, got `1`"),
        ({"burn_in": 0}, "`burn_in` is an integer of at least 1"),
        ({"num_leapfrog": 0}, "`num_leapfrog` is an integer of at least 1"),
        ({"start": "encodr"}, "unknown start `encodr`.*encoder"),
    ],
)
def test_bad_arguments_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"posterior_density_estimator: .*{message}"):
        posterior_density_estimator(MODEL.vae(), X, **given)


def test_many_dimensions_and_discrete_latents_are_refused(make_vae: Callable[..., VAE]) -> None:
    five = Conditional(dist.Normal, (5,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae = VAE(five, Conditional(dist.Bernoulli, (6,), given=mlp(5)))
    with pytest.raises(
        InputError, match=r"below 5 latent dimensions.* has 5; .*log_marginal .*annealed_importance_samp"
    ):
        posterior_density_estimator(vae, torch.ones(2, 6))
    posterior = Conditional(dist.Bernoulli, (2,), given=mlp(6))
    discrete = make_vae(prior=Conditional(dist.Bernoulli, (2,), logits=Fixed(0.0)), posterior=posterior)
    with pytest.raises(InputError, match=r"posterior_density_estimator: .*prior `Bernoulli` is discrete"):
        posterior_density_estimator(discrete, torch.ones(2, 6))


def test_compiled_it_is_the_same_at_the_same_seed() -> None:
    with interpreted():
        plain, compiled = (
            posterior_density_estimator(MODEL.vae(), X, 40, chains=4, burn_in=6, num_leapfrog=2, compile=compile)
            for compile in (False, True)
        )
    torch.testing.assert_close(plain.pointwise, compiled.pointwise, rtol=0, atol=1e-8)
    assert torch.equal(plain.diagnostics["acceptance"] > 0.5, compiled.diagnostics["acceptance"] > 0.5)
