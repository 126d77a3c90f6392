"""The inference gap against the closed forms of the linear-Gaussian oracle; its search, its errors and its manners."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from scipy.stats import chi2
from torch import Tensor, nn
from torch.distributions import kl_divergence
from z_test import FAILURE_RATE, assert_mean

from pyro_vae import VAE, Batch, Conditional, Learned, mlp
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, gap
from pyro_vae.evaluation.gap import InferenceGap, inference_gap
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.derived_posterior import Pushforward

DIAGONAL, OBLIQUE = LinearGaussian.random(5, 2), LinearGaussian.random(5, 2, diagonal=False)
N = 20


def posterior_of(model: LinearGaussian, off: float = 0.3, wider: float = 1.6) -> Conditional:
    """A diagonal Normal whose network, linear in x, is so far off the best mean and so much wider than the best."""
    posterior = Conditional(dist.Normal, (2,), given=mlp(5)).double()
    origin = model.posterior(torch.zeros_like(model.b)).mean
    slopes = model.posterior(torch.eye(5).double()).mean - origin
    with torch.no_grad():
        posterior.head.weight.copy_(torch.cat([slopes.T, torch.zeros(2, 5).double()]))
        posterior.head.bias.copy_(torch.cat([origin + off, (wider * best_scale(model)).log()]))
    return posterior


def best_scale(model: LinearGaussian) -> Tensor:
    """Scale of the diagonal Normal with the highest ELBO, whose mean is the exact posterior's; shape ``(L,)``."""
    return model.precision.diagonal().rsqrt()


def best_elbo(model: LinearGaussian, x: Tensor) -> Tensor:
    return model.elbo(x, model.posterior(x).mean, best_scale(model).expand(len(x), 2)).detach()


def vae_of(model: LinearGaussian, **posterior: float) -> VAE:
    exact = model.vae()
    return VAE(exact.prior, exact.likelihood, posterior_of(model, **posterior), size=1000)


def amortized_elbo(model: LinearGaussian, vae: VAE, data: Tensor | Batch, x: Tensor) -> Tensor:
    q = vae.encode(data)
    return model.elbo(x, q.mean, q.stddev).detach()


def assert_estimates(estimate: Estimate, exact: Tensor, bias: Tensor | float = 0.0) -> None:
    assert_mean(estimate.pointwise - bias, exact, estimate.diagnostics["pointwise_error"])
    error = torch.tensor([estimate.standard_error]).double()
    assert_mean((estimate.pointwise - bias).mean(0, keepdim=True), exact.mean().reshape(1), error)
    assert estimate.value == pytest.approx(float(estimate.pointwise.mean()))


# ------------------------------------------------------------------ closed forms


def test_a_family_that_has_the_exact_posterior_leaves_the_amortization_gap_alone() -> None:
    x, vae = DIAGONAL.sample(N), vae_of(DIAGONAL)
    result = inference_gap(vae, x, steps=500)
    log_marginal = DIAGONAL.log_marginal(x)
    for estimate in (result.log_marginal, result.best_elbo):
        torch.testing.assert_close(estimate.pointwise, log_marginal, rtol=0, atol=1e-10)
    assert float(result.approximation.pointwise.abs().max()) < 1e-10
    assert result.approximation.standard_error < 1e-10
    assert result.log_marginal.diagnostics["pareto_k"].tolist() == [-math.inf] * N
    exact = log_marginal - amortized_elbo(DIAGONAL, vae, x, x)
    assert float(exact.mean()) > 0.5
    assert_estimates(result.amortization, exact)
    assert_estimates(result.total, exact)


def test_a_family_without_the_exact_posterior_has_the_approximation_gap_of_its_best_member() -> None:
    x, vae = OBLIQUE.sample(N), vae_of(OBLIQUE)
    result = inference_gap(vae, x, num_samples=4000)
    best, amortized = best_elbo(OBLIQUE, x), amortized_elbo(OBLIQUE, vae, x, x)
    log_marginal = OBLIQUE.log_marginal(x)
    bias = -result.log_marginal.diagnostics["pointwise_error"].square() / 2  # of the log of a mean
    assert_estimates(result.log_marginal, log_marginal, bias)
    assert_estimates(result.best_elbo, best)
    assert_estimates(result.elbo, amortized)
    assert_estimates(result.approximation, log_marginal - best, bias)
    assert_estimates(result.amortization, best - amortized)
    assert_estimates(result.total, log_marginal - amortized, bias)
    assert bool(result.best_elbo.diagnostics["converged"].all())
    assert float(result.best_elbo.diagnostics["last_gain"].max()) < 0.01


def test_the_search_finds_the_best_member_itself() -> None:
    """Its suboptimality, in closed form, is below the tolerance by far."""
    x, vae = OBLIQUE.sample(N), vae_of(OBLIQUE)
    with torch.no_grad():
        raw, _ = gap._optimised(vae, x_batch := Batch(x), vae.posterior.network_output(x), 300, 0, None)
        q = vae.local_posterior(x_batch)(raw)
        lost = best_elbo(OBLIQUE, x) - OBLIQUE.elbo(x, q.mean, q.stddev)
    assert 0 <= float(lost.min()) <= float(lost.max()) < 1e-3


def test_each_datum_has_the_gap_of_its_own_observed_cells() -> None:
    x = OBLIQUE.sample(N)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[0], mask[1] = True, False
    data, vae = Batch(x.masked_fill(~mask, math.nan), mask=mask), vae_of(OBLIQUE)
    q = vae.encode(data)
    log_marginal, best, amortized = (torch.zeros(N, dtype=torch.float64) for _ in range(3))
    for i, seen in enumerate(mask):
        if bool(seen.any()):
            model, cells = LinearGaussian(OBLIQUE.W[seen], OBLIQUE.b[seen], OBLIQUE.s[seen]), x[i : i + 1, seen]
            log_marginal[i], best[i] = model.log_marginal(cells), best_elbo(model, cells)
            amortized[i] = model.elbo(cells, q.mean[i : i + 1], q.stddev[i : i + 1]).detach()
        else:
            amortized[i] = -kl_divergence(q, vae.prior().expand((N,)))[i]
    result = inference_gap(vae, data, num_samples=4000)
    assert abs(float(result.best_elbo.pointwise[1])) < 1e-6  # the posterior is the prior
    bias = -result.log_marginal.diagnostics["pointwise_error"].square() / 2
    seen = torch.arange(N) != 1
    for estimate, exact, shift in (
        (result.approximation, log_marginal - best, bias),
        (result.amortization, best - amortized, 0 * bias),
        (result.total, log_marginal - amortized, bias),
    ):
        error = estimate.diagnostics["pointwise_error"]
        assert_mean((estimate.pointwise - shift)[seen], exact[seen], error[seen])


class OfLogarithm(nn.Module):
    """p(x|z) as another likelihood's p(x|log z)."""

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Tensor) -> Any:
        return self.likelihood(z.clamp_min(1e-30).log())


def test_a_bijection_of_the_latents_changes_no_gap() -> None:
    x, vae = OBLIQUE.sample(N), vae_of(OBLIQUE)
    prior = Conditional(dist.LogNormal, (2,), loc=Learned(0.0), scale=Learned(1.0)).double()
    pushed = VAE(prior, OfLogarithm(vae.likelihood), Pushforward(vae.posterior, prior))
    assert float(pushed.encode(x).sample().min()) > 0
    plain, other = (inference_gap(each, x, steps=100, num_samples=200) for each in (vae, pushed))
    for name in ("log_marginal", "best_elbo", "elbo", "approximation", "amortization", "total"):
        mine, its = getattr(plain, name), getattr(other, name)
        torch.testing.assert_close(its.pointwise, mine.pointwise, rtol=0, atol=1e-8)
        assert its.standard_error == pytest.approx(mine.standard_error, abs=1e-8)


# ------------------------------------------------------------------ errors and differences


def test_gaps_are_the_differences_of_their_bounds() -> None:
    result = inference_gap(vae_of(OBLIQUE), OBLIQUE.sample(N), steps=20, num_samples=50)
    bounds = [each.pointwise for each in (result.log_marginal, result.best_elbo, result.elbo)]
    for name, exact in (
        ("approximation", bounds[0] - bounds[1]),
        ("amortization", bounds[1] - bounds[2]),
        ("total", bounds[0] - bounds[2]),
    ):
        assert torch.equal(getattr(result, name).pointwise, exact), name
    assert repr(result) == (
        f"InferenceGap(total={result.total.value:.4f} ± {result.total.standard_error:.4f}, "
        f"approximation={result.approximation.value:.4f} ± {result.approximation.standard_error:.4f}, "
        f"amortization={result.amortization.value:.4f} ± {result.amortization.standard_error:.4f}, {N} data)"
    )


def test_the_standard_errors_are_the_spread_over_repetitions() -> None:
    """By chi-square tests, with bounded log weights of q* and q that go together."""
    generator, repetitions = torch.Generator().manual_seed(0), 400
    best, noise = (torch.rand(2000, repetitions, generator=generator, dtype=torch.float64) for _ in range(2))
    best = 3 * best
    columns = gap._columns(best, 1.2 * best + 0.2 * noise)
    values = {name: columns[name] for name in ("log_marginal", "best_elbo", "elbo")}
    values["approximation"] = values["log_marginal"] - values["best_elbo"]
    values["amortization"] = values["best_elbo"] - values["elbo"]
    values["total"] = values["log_marginal"] - values["elbo"]
    tail = FAILURE_RATE / 2 / len(values)
    for name, value in values.items():
        statistic = float(((value - value.mean()) / columns[f"{name} error"]).square().sum())
        assert chi2.ppf(tail, repetitions - 1) < statistic < chi2.isf(tail, repetitions - 1), name


def test_common_random_numbers_tell_small_amortization_gaps() -> None:
    x = OBLIQUE.sample(N)
    result = inference_gap(vae_of(OBLIQUE, off=0.001, wider=1.0), x, steps=100)
    assert result.amortization.standard_error < result.elbo.standard_error / 10


def test_a_better_log_marginal_takes_the_place_of_importance_sampling() -> None:
    x, vae = OBLIQUE.sample(N), vae_of(OBLIQUE)
    error = torch.linspace(0.0, 0.2, N).double()
    exact = Estimate.of(OBLIQUE.log_marginal(x), error)
    result = inference_gap(vae, x, log_marginal=exact, steps=100)
    assert result.log_marginal is exact
    assert_mean(
        result.approximation.pointwise[:1],
        (exact.pointwise - best_elbo(OBLIQUE, x))[:1],
        result.best_elbo.diagnostics["pointwise_error"][:1],
    )
    for estimate, bound in ((result.approximation, result.best_elbo), (result.total, result.elbo)):
        combined = (error.square() + bound.diagnostics["pointwise_error"].square()).sqrt()
        torch.testing.assert_close(estimate.diagnostics["pointwise_error"], combined)
    own = inference_gap(vae, x, steps=100)
    assert torch.equal(own.amortization.pointwise, result.amortization.pointwise)


# ------------------------------------------------------------------ the search


def test_a_search_that_is_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, vae = DIAGONAL.sample(N), vae_of(DIAGONAL)
    found = inference_gap(vae, x, steps=10, num_samples=100).best_elbo
    assert bool(found.diagnostics["converged"].all())
    monkeypatch.setattr(gap, "_RUNS", 1)
    cut = inference_gap(vae, x, steps=10, num_samples=100).best_elbo
    assert not bool(cut.diagnostics["converged"].any())
    assert cut.diagnostics["runs"].tolist() == [1] * N
    assert float(cut.diagnostics["last_gain"].min()) > 0.01
    assert cut.value < found.value


def test_a_search_only_ever_improves(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the best member on, steps far too large find nothing better, and it is kept bit by bit."""
    monkeypatch.setattr(gap, "_STEP_SIZE", 5.0)
    result = inference_gap(vae_of(OBLIQUE, off=0.0, wider=1.0), OBLIQUE.sample(N), steps=3, num_samples=50)
    assert result.amortization.pointwise.tolist() == [0.0] * N
    assert result.best_elbo.diagnostics["runs"].tolist() == [1] * N


def test_chunks_of_the_data_are_optimised_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x, vae = OBLIQUE.sample(N), vae_of(OBLIQUE)
    monkeypatch.setattr(gap, "_DATA", 7)
    monkeypatch.setattr(gap, "_ROWS", 900)
    result = inference_gap(vae, x, steps=100)
    best, amortized = best_elbo(OBLIQUE, x), amortized_elbo(OBLIQUE, vae, x, x)
    assert_estimates(result.amortization, best - amortized)
    assert [len(result.best_elbo.diagnostics[name]) for name in ("converged", "runs", "last_gain")] == [N] * 3


def test_each_chunk_has_draws_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap, "_DATA", 5)
    result = inference_gap(vae_of(OBLIQUE), OBLIQUE.sample(5).repeat(2, 1), steps=5, num_samples=20)
    for estimate in (result.elbo, result.best_elbo, result.log_marginal):
        assert bool((estimate.pointwise[:5] != estimate.pointwise[5:]).all())


def test_no_draws_are_used_twice_but_by_the_two_posteriors_that_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    used: Counter[tuple[int, str]] = Counter()

    def counting(seed: int, stream: str) -> AbstractContextManager[None]:
        used[seed, stream] += 1
        return isolated(seed, stream)

    monkeypatch.setattr(gap, "isolated", counting)
    monkeypatch.setattr(gap, "_DATA", 10)
    monkeypatch.setattr(gap, "_ROWS", 5000)
    result = inference_gap(vae_of(OBLIQUE), OBLIQUE.sample(N), steps=10)
    runs = int(result.best_elbo.diagnostics["runs"].view(2, 10).amax(1).sum())
    assert runs > 2
    # Each run has one stream to optimise by and one to judge by; each half of the data has two blocks to evaluate.
    assert sorted(used.values()) == [1] * runs + [2] * (runs + 2 * 2)


# ------------------------------------------------------------------ manners


def test_the_vae_and_the_random_state_are_left_alone_and_repeats_are_bit_equal() -> None:
    x, vae = OBLIQUE.sample(N), vae_of(OBLIQUE).train()
    before, state = {k: v.clone() for k, v in vae.state_dict().items()}, torch.get_rng_state()
    results = [inference_gap(vae, x, steps=20, num_samples=50, seed=seed) for seed in (3, 3, 4)]
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vae.parameters())
    assert vae.training
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (result.approximation.pointwise for result in results)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not any(estimate.pointwise.requires_grad for estimate in vars(results[0]).values())


def test_a_vae_in_training_mode_is_evaluated_in_evaluation_mode(make_vae: Callable[..., VAE], x: Tensor) -> None:
    dropping = Conditional(dist.Bernoulli, (6,), given=nn.Sequential(mlp(2, 7), nn.Dropout(0.5)), features=7)
    vae = make_vae(likelihood=dropping)
    evaluated, trained = (inference_gap(vae.train(mode), x, steps=2, num_samples=9) for mode in (False, True))
    assert torch.equal(evaluated.best_elbo.pointwise, trained.best_elbo.pointwise)


def test_progress_is_a_line_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(inference_gap(vae_of(OBLIQUE), OBLIQUE.sample(2), steps=2, progress=True), InferenceGap)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert all(line.isprintable() for line in lines)  # no bar
    inference_gap(vae_of(OBLIQUE), OBLIQUE.sample(2), steps=2)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "`num_samples` is an integer of at least 2, got `1`"),
        ({"steps": 0}, "`steps` is an integer of at least 1, got `0`"),
        ({"log_marginal": Estimate.of(torch.zeros(3), torch.zeros(3))}, "is for 3 data, but there are 20"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inference_gap(vae_of(OBLIQUE), OBLIQUE.sample(N), **options)


def test_posteriors_without_parameters_or_gradient_are_refused() -> None:
    with pytest.raises(InputError, match="a `ExactPosterior` does not expose them; declare"):
        inference_gap(OBLIQUE.vae(), OBLIQUE.sample(2))
    exact = OBLIQUE.vae()
    shared = VAE(exact.prior, exact.likelihood, Conditional(dist.Normal, (2,), loc=Learned(0.0), scale=Learned(1.0)))
    with pytest.raises(InputError, match="a `Conditional` does not expose them; declare"):
        inference_gap(shared, OBLIQUE.sample(2))
    prior = Conditional(dist.Bernoulli, (2,), probs=Learned(0.5)).double()
    discrete = VAE(prior, exact.likelihood, Conditional(dist.Bernoulli, (2,), given=mlp(5)).double())
    with pytest.raises(InputError, match="draws of `Bernoulli` have none; use a posterior with rsample"):
        inference_gap(discrete, OBLIQUE.sample(2))
