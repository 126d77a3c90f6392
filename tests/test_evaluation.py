"""Evaluation against the exact answers of the linear-Gaussian oracle; its errors, its k-hat and its manners."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from scipy.stats import chi2
from torch import Tensor, nn
from torch.distributions import Normal
from z_test import FAILURE_RATE, assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned
from pyro_vae.errors import InputError
from pyro_vae.evaluation import (
    Estimate,
    active_units,
    elbo,
    importance,
    kl_per_dimension,
    log_marginal,
    pareto_k,
    posterior_means,
)

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(25)
EXACT = MODEL.log_marginal(X)


def widened(wider: float) -> VAE:
    return MODEL.vae(MODEL.exact_encoder(wider))


# ------------------------------------------------------------------ log p(x)


@pytest.mark.parametrize("diagonal", [True, False])
def test_log_marginal_is_exact_at_the_exact_posterior(diagonal: bool) -> None:
    model = LinearGaussian.random(5, 2, diagonal=diagonal)
    vae = model.vae(model.exact_encoder() if diagonal else None, size=1000)  # whose N/M must not enter the weights
    result = log_marginal(vae, Batch(X, weight=torch.linspace(0, 2, 25)), num_samples=50)
    torch.testing.assert_close(result.pointwise, model.log_marginal(X), rtol=0, atol=1e-10)
    assert result.value == pytest.approx(float(model.log_marginal(X).mean()), abs=1e-10)
    assert result.standard_error < 1e-10
    assert result.diagnostics["pareto_k"].tolist() == [-math.inf] * 25
    torch.testing.assert_close(result.diagnostics["effective_sample_size"], torch.full((25,), 50.0).double())


@pytest.mark.parametrize("rows", [50_000, 4000, 700], ids=lambda rows: f"chunks of {rows}")
def test_estimates_hit_the_exact_values_within_their_errors_whatever_the_chunks(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many rows are decoded at once, and every datum gets exactly S samples in the order of the data."""
    monkeypatch.setattr(importance, "_ROWS", rows)
    vae, encoder, num_samples = widened(1.6), MODEL.exact_encoder(1.6), 2000
    drawn: list[tuple[int, int]] = []

    def counting(part: Batch, num_particles: int) -> Tensor:
        drawn.append((num_particles, part.size))
        return VAE.log_weights(vae, part, num_particles)

    vae.log_weights = counting
    for estimate, exact in ((log_marginal, EXACT), (elbo, MODEL.elbo(X, *encoder(X)))):
        drawn.clear()
        result = estimate(vae, X, num_samples)
        assert sum(k * size for k, size in drawn) == num_samples * 25
        assert max(k * size for k, size in drawn) <= rows
        assert (len(drawn) == 1) is (rows >= num_samples * 25)
        error = result.diagnostics["pointwise_error"]
        bias = -(error.square()) / 2 if estimate is log_marginal else torch.zeros_like(error)  # of log of a mean
        assert_mean(result.pointwise - bias, exact, error)
        mean = torch.tensor([result.value, result.standard_error]).double()
        assert_mean(mean[:1] - bias.mean(), exact.mean().reshape(1), mean[1:])


@pytest.mark.parametrize("estimate", [log_marginal, elbo])
def test_the_standard_error_is_the_spread_over_seeds(estimate: Callable[..., Estimate]) -> None:
    """By a chi-square test: for each datum, and for their mean."""
    x, seeds = X[:4], 200
    results = [estimate(widened(1.6), x, 1000, seed=seed) for seed in range(seeds)]
    values = torch.stack([torch.cat([r.pointwise, torch.tensor([r.value]).double()]) for r in results])
    errors = torch.stack(
        [torch.cat([r.diagnostics["pointwise_error"], torch.tensor([r.standard_error]).double()]) for r in results]
    )
    statistic = ((values - values.mean(0)) / errors).square().sum(0)
    tail = FAILURE_RATE / 2 / statistic.numel()
    assert float(statistic.min()) > chi2.ppf(tail, seeds - 1)
    assert float(statistic.max()) < chi2.isf(tail, seeds - 1)


def test_effective_sample_size_is_that_of_the_weights() -> None:
    """S / E[w^2] for weights of mean 1, which has a closed form in each dimension and is the same for all data."""
    result = log_marginal(widened(1.6), MODEL.sample(100), num_samples=20_000)
    fraction = (math.sqrt(2 * 1.6**2 - 1) / 1.6**2) ** 2
    assert_mean(result.diagnostics["effective_sample_size"] / 20_000, torch.tensor(fraction).double())


def test_log_marginal_of_partly_observed_data_is_that_of_the_observed_cells() -> None:
    """Here q is the prior, so that a datum without any observed cell has weights 1."""
    mask = torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[0] = False
    exact = torch.zeros(25, dtype=torch.float64)
    for i, (x, seen) in enumerate(zip(X, mask, strict=True)):
        if bool(seen.any()):
            exact[i] = LinearGaussian(MODEL.W[seen], MODEL.b[seen], MODEL.s[seen]).log_marginal(x[seen])
    prior = Encoder(torch.zeros(2, 5).double(), torch.zeros(2).double(), torch.ones(2).double())
    result = log_marginal(MODEL.vae(prior), Batch(X.masked_fill(~mask, math.nan), mask=mask), num_samples=20_000)
    error = result.diagnostics["pointwise_error"]
    assert_mean(result.pointwise + error.square() / 2, exact, error)
    assert result.diagnostics["pareto_k"][0] == -math.inf


def test_one_sample_gives_an_elbo_without_a_standard_error() -> None:
    result = elbo(widened(1.6), X, num_samples=1)
    assert math.isfinite(result.value)
    assert math.isnan(result.standard_error)


@pytest.mark.parametrize(("estimate", "bad"), [(log_marginal, 1), (log_marginal, 2.0), (elbo, 0), (elbo, 1.5)])
def test_too_few_samples_are_refused(estimate: Callable[..., Estimate], bad: float) -> None:
    with pytest.raises(InputError, match=rf"{estimate.__name__}: `num_samples` is .*got `{bad}`"):
        estimate(widened(1.0), X, num_samples=bad)


# ------------------------------------------------------------------ k-hat


@pytest.mark.parametrize("k", [0.3, 0.7, 1.0])
def test_pareto_k_recovers_the_tail_of_the_weights(k: float) -> None:
    u = torch.rand(2000, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert abs(float(pareto_k(-k * u.log()).mean()) - k) < 0.08


def test_pareto_k_of_each_datum_is_its_own() -> None:
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant, heavy = torch.full_like(u, -3.0), -1.5 * u.log()
    broken = heavy.clone()
    broken[5] = -math.inf
    result = pareto_k(torch.stack([heavy, constant, broken, broken.abs(), heavy * math.nan, 1e5 + heavy], dim=1))
    assert result[0] > 1.2
    assert result[1] == -math.inf
    assert bool(result[2:5].isnan().all())
    assert float(result[5]) == pytest.approx(float(result[0]), abs=1e-6)


def test_pareto_k_of_fewer_than_30_draws_is_unknown() -> None:
    log_weights = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    assert bool(pareto_k(log_weights).isfinite().all())
    assert all(bool(pareto_k(log_weights[:n]).isnan().all()) for n in (2, 5, 29))


def test_k_hat_tells_a_wide_posterior_from_a_narrow_one() -> None:
    wide, narrow = (log_marginal(widened(w), X, 5000).diagnostics["pareto_k"] for w in (1.6, 0.1))
    assert float(wide.max()) < 0.5
    assert float(narrow.median()) > 0.7


# ------------------------------------------------------------------ manners


def vae_with_modes() -> VAE:
    """Dropout in the decoder, batch normalisation in the encoder, one part in evaluation mode, a sampled KL."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5))
    vae = VAE(
        Conditional(dist.StudentT, (2,), df=Fixed(5.0), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(dist.Normal, (5,), given=decoder, scale=Learned(0.7)),
        Conditional(dist.Normal, (2,), given=encoder),
    )
    vae.posterior.given[2].eval()
    return vae


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda vae, seed: log_marginal(vae, X, 30, seed=seed).pointwise,
        lambda vae, seed: elbo(vae, X, 30, seed=seed).pointwise,
        lambda vae, seed: kl_per_dimension(vae, X, seed=seed),
        lambda vae, seed: posterior_means(vae, X),
        lambda vae, seed: active_units(vae, X),
    ],
    ids=["log_marginal", "elbo", "kl_per_dimension", "posterior_means", "active_units"],
)
def test_evaluation_runs_in_evaluation_mode_and_leaves_everything_as_it_was(
    evaluate: Callable[[VAE, int], Tensor],
) -> None:
    vae = vae_with_modes()
    modes = [child.training for child in vae.modules()]
    assert len(set(modes)) == 2
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    result = evaluate(vae, 3)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])  # noqa: NPY002
    assert random.getstate() == random_states[2]
    assert [child.training for child in vae.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in vae.state_dict().items())
    assert not any(p.grad is not None for p in vae.parameters())
    assert not result.requires_grad
    assert not any(key.startswith(vae._name) for key in pyro.get_param_store().keys())  # noqa: SIM118
    assert torch.equal(evaluate(vae, 3), result)
    assert torch.equal(evaluate(vae.eval(), 3), result)  # no dropout, no batch statistics


@pytest.mark.parametrize("estimate", [log_marginal, elbo])
def test_another_seed_gives_other_draws(estimate: Callable[..., Estimate]) -> None:
    first, second = (estimate(widened(1.6), X, 30, seed=seed).pointwise for seed in (0, 1))
    assert not bool((first == second).any())


# ------------------------------------------------------------------ latent dimensions


def collapsing() -> tuple[LinearGaussian, Encoder]:
    """Three latent dimensions, of which the second is not used: its posterior is the prior."""
    gains = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    model = LinearGaussian(LinearGaussian.random(5, 3).W * gains, MODEL.b, LinearGaussian.random(5, 3).s)
    return model, model.exact_encoder()


def test_active_units_and_kl_per_dimension_are_the_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = collapsing()
    vae, x = model.vae(encoder), model.sample(30)
    loc, scale = encoder(x)
    torch.testing.assert_close(posterior_means(vae, x), loc, rtol=0, atol=1e-12)
    assert active_units(vae, x).tolist() == [True, False, True]
    variance = loc.var(0)
    assert active_units(vae, x, float(variance[0]) - 1e-9).tolist() == [True, False, bool(variance[2] > variance[0])]
    assert active_units(vae, x, float(variance[0]) + 1e-9).tolist() == [False, False, bool(variance[2] > variance[0])]
    exact = ((loc.square() + scale.square() - 1) / 2 - scale.log()).mean(0)
    torch.testing.assert_close(kl_per_dimension(vae, x), exact, rtol=0, atol=1e-12)
    assert abs(float(exact[1])) < 1e-12
    monkeypatch.setattr("pyro_vae.evaluation.latent._CHUNK", 7)  # 30 data are then five chunks
    torch.testing.assert_close(kl_per_dimension(vae, x), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(posterior_means(vae, x), loc, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match=r"active_units.* at least two"):
        active_units(vae, x[:1])


def test_kl_per_dimension_without_closed_form_is_unbiased() -> None:
    """A Normal posterior and a Student prior; mean and variance of the log ratio by numerical integration."""
    encoder, x = MODEL.exact_encoder(1.6), MODEL.sample(500)
    prior = Conditional(dist.StudentT, (2,), df=Fixed(5.0), loc=Fixed(0.0), scale=Fixed(1.0)).double()
    base = MODEL.vae(encoder)
    loc, scale = encoder(x)
    z = torch.arange(-20, 20, 0.05, dtype=torch.float64).reshape(-1, 1, 1)
    log_q = Normal(loc, scale).log_prob(z)
    ratio = log_q - dist.StudentT(5.0).log_prob(z)
    mean, square = ((log_q.exp() * 0.05 * moment).sum(0) for moment in (ratio, ratio.square()))
    error = ((square - mean.square()).sum(0) / 3).sqrt() / 500
    result = kl_per_dimension(VAE(prior, base.likelihood, base.posterior), x, num_samples=3)
    assert_mean(result, mean.mean(0), error)


def test_kl_per_dimension_is_none_where_a_distribution_does_not_factorise() -> None:
    assert kl_per_dimension(MODEL.vae(), X) is None
    prior = Conditional(dist.MultivariateNormal, (2,), loc=Fixed([0.0, 0.0]), scale_tril=Fixed(torch.eye(2))).double()
    base = MODEL.vae(MODEL.exact_encoder())
    assert kl_per_dimension(VAE(prior, base.likelihood, base.posterior), X) is None


# ------------------------------------------------------------------ the estimate


def test_an_estimate_carries_the_errors_of_its_mean() -> None:
    result = Estimate.of(torch.tensor([-1.0, -3.0, -8.0]), torch.tensor([0.3, 0.4, 1.2]), num_samples=7)
    assert result.value == pytest.approx(-4.0)
    assert result.standard_error == pytest.approx(1.3 / 3, rel=1e-6)
    assert result.sampling_error == pytest.approx(math.sqrt((9 + 1 + 16) / 2 / 3))
    assert result.diagnostics["num_samples"] == 7
    assert result.pointwise.dtype == torch.float64
    assert repr(result) == "Estimate(-4.0000 ± 0.4333 (Monte Carlo) ± 2.0817 (data), 3 data)"
    shifted = result.shifted(1.5)
    assert (shifted.value, shifted.pointwise.tolist()) == (-2.5, [0.5, -1.5, -6.5])
    errors = ("standard_error", "sampling_error", "diagnostics")
    assert all(getattr(shifted, name) == getattr(result, name) for name in errors)
    assert math.isnan(Estimate.of(torch.tensor([1.0]), torch.tensor([0.1])).sampling_error)
    with pytest.raises(AttributeError):
        result.value = 0.0


def test_a_float32_model_is_evaluated_on_float64_data_and_summed_in_float64() -> None:
    single = widened(1.6).float()
    result = log_marginal(single, X, num_samples=500)
    assert result.pointwise.dtype == torch.float64
    error = result.diagnostics["pointwise_error"]
    assert_mean(result.pointwise + error.square() / 2, EXACT, error)


def test_weights_whose_largest_are_the_same_have_no_tail() -> None:
    log_weights = torch.cat([torch.zeros(500, 1), -torch.rand(500, 1)]).double()
    assert pareto_k(log_weights).tolist() == [-math.inf]
