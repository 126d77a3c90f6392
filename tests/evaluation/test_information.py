"""Rate, distortion, mutual information and the aggregate posterior against closed forms, integrals and sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from scipy.stats import chi2
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from z_test import FAILURE_RATE, assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Mixture, mlp
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, information
from pyro_vae.evaluation.information import aggregate_posterior, mutual_information, rate_distortion

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(25)
# One latent, so that integrals over it are sums on a grid.
LINE = LinearGaussian.random(3, 1)
POINTS = LINE.sample(7)
GRID = torch.linspace(-12, 12, 20_001, dtype=torch.float64)


def assert_estimates(estimate: Estimate, exact: Tensor) -> None:
    assert_mean(estimate.pointwise, exact, estimate.diagnostics["pointwise_error"])
    error = torch.tensor([estimate.standard_error]).double()
    assert_mean(torch.tensor([estimate.value]).double(), exact.mean().reshape(1), error)


def integrals(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Each datum's part in I_q(x; z) and in KL(q(z) || p(z)), by the trapezoidal rule."""
    loc, scale = encoder(x)
    q = Normal(loc, scale).log_prob(GRID)  # (N, grid)
    mixture = q.logsumexp(0) - math.log(len(x))
    prior = Normal(0.0, 1.0).log_prob(GRID)
    return tuple(torch.trapezoid(q.exp() * ratio, GRID, dim=1) for ratio in (q - mixture, mixture - prior))


# ------------------------------------------------------------------ rate and distortion


def test_rate_is_exact_and_distortion_is_the_rest_of_the_elbo() -> None:
    encoder = MODEL.exact_encoder(1.6)
    result = rate_distortion(MODEL.vae(encoder, size=1000), X, 2000)
    loc, scale = encoder(X)
    rate = kl_divergence(Normal(loc, scale), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(result.rate.pointwise, rate, rtol=0, atol=1e-12)
    assert result.rate.standard_error == 0.0
    assert_estimates(result.distortion, -MODEL.elbo(X, loc, scale) - rate)
    assert repr(result) == (
        f"RateDistortion(rate={result.rate.value:.4f} ± 0.0000, "
        f"distortion={result.distortion.value:.4f} ± {result.distortion.standard_error:.4f}, 25 data)"
    )


def test_without_a_closed_form_the_rate_is_sampled_with_the_distortion() -> None:
    """At the exact posterior every draw's rate and distortion then add up to -log p(x)."""
    model = LinearGaussian.random(5, 2, diagonal=False)
    # N(0, I) in a form of which no KL is known.
    prior = Mixture(dist.Normal, (2,), 1, loc=Fixed(0.0), scale=Fixed(1.0), weights=Fixed([1.0]))
    base = model.vae()
    result = rate_distortion(VAE(prior.double(), base.likelihood, base.posterior), X, 2000)
    total = result.rate.pointwise + result.distortion.pointwise
    torch.testing.assert_close(total, -model.log_marginal(X), rtol=0, atol=1e-10)
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    assert_estimates(result.rate, kl_divergence(model.posterior(X), prior))


def test_distortion_is_that_of_the_observed_cells() -> None:
    mask = torch.zeros(X.shape, dtype=torch.bool)
    mask[:, 0] = True
    vae = MODEL.vae(MODEL.exact_encoder())
    result = rate_distortion(vae, Batch(X.masked_fill(~mask, math.nan), mask=mask), 2000)
    q = vae.encode(X * mask)
    residual = (q.mean @ MODEL.W[0] + MODEL.b[0] - X[:, 0]) / MODEL.s[0]
    variance = (q.variance * MODEL.W[0].square()).sum(1) / MODEL.s[0].square()
    exact = (residual.square() + variance) / 2 + MODEL.s[0].log() + math.log(2 * math.pi) / 2
    assert_estimates(result.distortion, exact.detach())


# ------------------------------------------------------------------ mutual information


@pytest.mark.parametrize(("data", "rows", "pairs"), [(500, 20_000, 200_000), (3, 100, 20)])
def test_mutual_information_is_its_integral_whatever_the_chunks(
    data: int, rows: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_DATA", data), ("_ROWS", rows), ("_PAIRS", pairs)):
        monkeypatch.setattr(information, name, value)
    encoder = LINE.exact_encoder(1.3)
    result = mutual_information(LINE.vae(encoder), POINTS, 1000)
    exact, _ = integrals(encoder, POINTS)
    assert_estimates(result, exact)
    assert 0.2 < result.value < math.log(7)


def test_mutual_information_at_its_limits() -> None:
    encoder = MODEL.exact_encoder()
    vae = MODEL.vae(encoder)
    assert mutual_information(vae, X[:1]).pointwise.tolist() == [0.0]
    assert float(mutual_information(vae, X[:1].expand(9, 5)).pointwise.abs().max()) < 1e-12
    apart = mutual_information(MODEL.vae(Encoder(1e4 * encoder.V, encoder.c, encoder.t)), X)
    torch.testing.assert_close(
        apart.pointwise, torch.full((25,), math.log(25), dtype=torch.float64), rtol=0, atol=1e-10
    )
    assert float(mutual_information(vae, X, 1).pointwise.max()) <= math.log(25)


def test_mutual_information_of_discrete_latents_is_its_sum() -> None:
    vae = VAE(
        Conditional(dist.Bernoulli, (2,), probs=Fixed(0.5)),
        Conditional(dist.Bernoulli, (4,), given=mlp(2)),
        Conditional(dist.Bernoulli, (2,), given=mlp(4)),
    )
    with torch.no_grad():
        vae.posterior.head.weight.mul_(5)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2))).unsqueeze(1)
    log_q = vae.encode(x).log_prob(z).detach().double()
    mixture = log_q.logsumexp(1) - math.log(16)
    assert_estimates(mutual_information(vae, x, 2000), (log_q.exp() * (log_q - mixture.unsqueeze(1))).sum(0))


def test_mutual_information_takes_a_context(make_vae: Callable[..., VAE]) -> None:
    parts = [Conditional(dist.Normal, (2,), given=mlp(width, 4)) for width in (1, 7)]
    vae = make_vae(parts[0], Conditional(dist.Bernoulli, (6,), given=mlp(3)), parts[1], context_features=1)
    data = Batch(torch.ones(6, 6), context=torch.linspace(-9, 9, 6).unsqueeze(-1))
    assert mutual_information(vae, data).value > 0
    with pytest.raises(InputError, match="aggregate_posterior: the prior of this VAE depends on a context"):
        aggregate_posterior(vae, data)


# ------------------------------------------------------------------ aggregate posterior


def test_the_rate_is_mutual_information_and_marginal_kl() -> None:
    encoder = LINE.exact_encoder(1.3)
    vae = LINE.vae(encoder)
    result = aggregate_posterior(vae, POINTS, 1000)
    parts = result.mutual_information.pointwise + result.marginal_kl.pointwise
    torch.testing.assert_close(result.rate.pointwise, parts, rtol=0, atol=1e-12)
    information_part, marginal_part = integrals(encoder, POINTS)
    assert_estimates(result.marginal_kl, marginal_part)
    assert_estimates(result.rate, rate_distortion(vae, POINTS).rate.pointwise)
    torch.testing.assert_close(information_part + marginal_part, rate_distortion(vae, POINTS).rate.pointwise)
    assert torch.equal(result.mutual_information.pointwise, mutual_information(vae, POINTS, 1000).pointwise)
    assert repr(result) == (
        f"AggregatePosterior(mutual_information={result.mutual_information.value:.4f} ± "
        f"{result.mutual_information.standard_error:.4f}, marginal_kl={result.marginal_kl.value:.4f} ± "
        f"{result.marginal_kl.standard_error:.4f}, 7 data)"
    )


def test_moments_are_those_of_the_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "_DATA", 10)
    encoder = MODEL.exact_encoder(1.3)
    result = aggregate_posterior(MODEL.vae(encoder), X)
    loc, scale = encoder(X)
    between = (loc - loc.mean(0)).square().mean(0)
    for value, exact in (
        (result.mean, loc.mean(0)),
        (result.variance, between + scale.square()),
        (result.active_share, between / (between + scale.square())),
    ):
        torch.testing.assert_close(value, exact, rtol=0, atol=1e-10)


def test_a_collapsed_posterior_has_no_information_and_no_active_share() -> None:
    prior = Encoder(torch.zeros(2, 5).double(), torch.zeros(2).double(), torch.ones(2).double())
    result = aggregate_posterior(MODEL.vae(prior), X)
    for estimate in (result.mutual_information, result.marginal_kl, result.rate):
        assert float(estimate.pointwise.abs().max()) < 1e-12
    assert result.active_share.tolist() == [0.0, 0.0]
    assert result.variance.tolist() == [1.0, 1.0]


# ------------------------------------------------------------------ manners


def tensors(result: Any) -> list[Tensor]:
    estimates = [result] if isinstance(result, Estimate) else [e for e in vars(result).values()]
    return [each.pointwise if isinstance(each, Estimate) else each for each in estimates]


def test_the_standard_errors_are_the_spread_over_seeds() -> None:
    """By chi-square tests."""
    vae, x, seeds = LINE.vae(LINE.exact_encoder(1.3)), POINTS[:3], 200
    runs = [(rate_distortion(vae, x, 500, seed=i), aggregate_posterior(vae, x, 500, seed=i)) for i in range(seeds)]
    tail = FAILURE_RATE / 2 / 4
    for name in ("distortion", "mutual_information", "marginal_kl", "rate"):
        estimates = [getattr(first if name == "distortion" else second, name) for first, second in runs]
        values, errors = (torch.tensor([getattr(e, of) for e in estimates]) for of in ("value", "standard_error"))
        statistic = float(((values - values.mean()) / errors).square().sum())
        assert chi2.ppf(tail, seeds - 1) < statistic < chi2.isf(tail, seeds - 1), name


@pytest.mark.parametrize("evaluate", [rate_distortion, mutual_information, aggregate_posterior])
class TestManners:
    def test_repeats_are_bit_equal_and_states_are_left_alone(self, evaluate: Callable[..., Any]) -> None:
        vae, state = MODEL.vae(MODEL.exact_encoder(1.6)).train(), torch.get_rng_state()
        first, again, other = (tensors(evaluate(vae, X, seed=seed, progress=True)) for seed in (1, 1, 2))
        assert all(torch.equal(mine, its) for mine, its in zip(first, again, strict=True))
        assert not all(torch.equal(mine, its) for mine, its in zip(first, other, strict=True))
        assert torch.equal(torch.get_rng_state(), state)
        assert vae.training
        assert not any(tensor.requires_grad for tensor in first)

    def test_a_vae_in_training_mode_is_evaluated_in_evaluation_mode(
        self, evaluate: Callable[..., Any], make_vae: Callable[..., VAE], x: Tensor
    ) -> None:
        dropping = Conditional(dist.Bernoulli, (6,), given=nn.Sequential(mlp(2, 7), nn.Dropout(0.5)), features=7)
        encoder = Conditional(dist.Normal, (2,), given=nn.Sequential(mlp(6, 7), nn.Dropout(0.5)), features=7)
        vae = make_vae(likelihood=dropping, posterior=encoder)
        evaluated, trained = (tensors(evaluate(vae.train(mode), x)) for mode in (False, True))
        assert all(torch.equal(mine, its) for mine, its in zip(evaluated, trained, strict=True))

    def test_one_draw_has_no_standard_error(self, evaluate: Callable[..., Any]) -> None:
        result = evaluate(MODEL.vae(MODEL.exact_encoder(1.6)), X, 1)
        sampled = result if isinstance(result, Estimate) else list(vars(result).values())[-1]
        assert math.isfinite(sampled.value)
        assert math.isnan(sampled.standard_error)

    @pytest.mark.parametrize("bad", [0, 2.0])
    def test_bad_numbers_are_refused(self, evaluate: Callable[..., Any], bad: float) -> None:
        with pytest.raises(InputError, match=rf"{evaluate.__name__}: `num_samples` is a positive integer, got `{bad}`"):
            evaluate(MODEL.vae(), X, bad)
