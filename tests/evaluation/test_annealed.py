"""Annealed importance sampling against exact answers: the oracle's, and quadrature where the support is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from annealing import short_pilot
from linear_gaussian import LinearGaussian
from torch import Tensor
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, mlp
from pyro_vae.engine import CaptureError, interpreted
from pyro_vae.engine.compilation import routine as function
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, annealed
from pyro_vae.evaluation.annealed import Annealing, LogMean, annealed_importance_sampling

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(6)
EXACT = MODEL.log_marginal(X)


def assert_exact(estimate: Estimate, exact: Tensor) -> None:
    """Asserts by z-tests that the estimates of all data, freed of their leading bias, are exact within their errors."""
    assert_mean(estimate.pointwise + estimate.diagnostics["bias"], exact, estimate.diagnostics["pointwise_error"])


# ------------------------------------------------------------------ exact answers


@pytest.mark.parametrize("temperatures", [2, 3, 12])
@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
def test_from_the_exact_posterior_every_weight_is_exact(temperatures: int, schedule: Any) -> None:
    model = LinearGaussian.random(5, 2, diagonal=False)
    with short_pilot():
        result = annealed_importance_sampling(
            model.vae(), X, temperatures, 3, start="encoder", schedule=schedule, num_leapfrog=2
        )
    torch.testing.assert_close(result.pointwise, model.log_marginal(X), rtol=0, atol=1e-10)
    assert result.standard_error < 1e-10
    torch.testing.assert_close(result.diagnostics["effective_sample_size"], torch.full((6,), 3.0).double())
    assert result.diagnostics["bias"].max() < 1e-10


@pytest.mark.parametrize(
    ("start", "schedule"),
    [
        *(("prior", "sigmoid"), ("encoder", "linear")),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("prior", "linear"), ("encoder", "sigmoid")]),
    ],
)
def test_it_hits_the_exact_values_within_its_errors(start: Any, schedule: Any) -> None:
    """Also from a q(z|x) of the wrong place and scale."""
    model = LinearGaussian.random(5, 2, diagonal=False)
    vae = model.vae(MODEL.exact_encoder(1.5))
    result = annealed_importance_sampling(vae, X, 100, 150, start=start, schedule=schedule, num_leapfrog=3)
    assert result.diagnostics["effective_sample_size"].min() > 25
    assert_exact(result, model.log_marginal(X))


@pytest.mark.parametrize(
    ("start", "temperatures"),
    [
        *(("prior", 2), ("encoder", 5)),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("prior", 5), ("encoder", 2)]),
    ],
)
def test_the_weights_are_unbiased_with_few_temperatures(start: Any, temperatures: int) -> None:
    """E[w] = p(x): over copies of the data that are evaluated independently, each with a pilot of its own."""
    copies, vae = 600, MODEL.vae(MODEL.exact_encoder(1.4))
    result = annealed_importance_sampling(
        vae, X[:2].repeat(copies, 1), temperatures, 8, start=start, num_leapfrog=2, seed=1
    )
    assert_mean((result.pointwise.reshape(copies, 2) - EXACT[:2]).exp(), torch.ones(2))


def test_the_error_and_the_bias_are_those_seen_over_independent_copies() -> None:
    copies = 600
    result = annealed_importance_sampling(MODEL.vae(), X[:1].repeat(copies, 1), 30, 40, num_leapfrog=3)
    error, bias = (result.diagnostics[name] for name in ("pointwise_error", "bias"))
    off = result.pointwise - EXACT[0]
    assert_mean(off.square() - error.square(), 0.0)
    assert_mean(off + bias, 0.0)
    assert float(off.mean()) < 0


def test_more_temperatures_have_less_error() -> None:
    errors = [
        annealed_importance_sampling(MODEL.vae(), X, t, 32, num_leapfrog=3).diagnostics["bias"].mean()
        for t in (4, 20, 100)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


# ------------------------------------------------------------------ other models


def quadrature(vae: VAE, x: Tensor) -> Tensor:
    """log p(x) of each datum by Gauss-Legendre over z itself, for 1 positive z, 1 in [0, 1] or 3 on the simplex."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(300))
    nodes, weights = (nodes + 1) / 2, weights / 2
    match type(vae.prior()).__name__, vae.prior().event_shape.numel():
        case "Dirichlet", _:  # z = (a, (1 - a) b, (1 - a)(1 - b))
            a, b = (grid.flatten() for grid in torch.meshgrid(nodes, nodes, indexing="ij"))
            z = torch.stack([a, (1 - a) * b, (1 - a) * (1 - b)], dim=-1)
            weights = torch.outer(weights, weights).flatten() * (1 - a)
        case _:
            upper = 30.0 if "Gamma" in repr(vae.prior().base_dist) else 1.0
            z, weights = upper * nodes.unsqueeze(-1), upper * weights
    z = z.unsqueeze(1).expand(-1, len(x), -1)
    return (vae.log_joint(z, x) + weights.log().unsqueeze(-1)).logsumexp(0)


BOUNDED = {
    "Gamma": Conditional(dist.Gamma, (1,), concentration=Fixed(2.0), rate=Fixed(1.5)),
    "Beta": Conditional(dist.Beta, (1,), concentration1=Fixed(2.0), concentration0=Fixed(1.3)),
    "Dirichlet": Conditional(dist.Dirichlet, (3,), concentration=Fixed(torch.tensor([2.0, 1.0, 3.0]))),
}


@pytest.mark.parametrize(
    ("family", "start"),
    [
        *(("Gamma", "encoder"), ("Beta", "prior"), ("Dirichlet", "encoder")),
        *(pytest.param(family, "prior", marks=pytest.mark.slow) for family in ("Gamma", "Dirichlet")),
        pytest.param("Beta", "encoder", marks=pytest.mark.slow),
    ],
)
def test_priors_of_bounded_support_against_quadrature(family: str, start: Any) -> None:
    torch.manual_seed(3)
    prior = BOUNDED[family]
    likelihood = Conditional(dist.Normal, (4,), given=mlp(prior().event_shape.numel(), 5), scale=Learned(0.4))
    vae = VAE(prior, likelihood).double()
    x = vae.generate(5)
    with torch.no_grad():
        exact = quadrature(vae, x)
    result = annealed_importance_sampling(vae, x, 40, 150, start=start, num_leapfrog=3)
    assert result.diagnostics["effective_sample_size"].min() > 30
    assert_exact(result, exact)


def test_hidden_cells_are_left_out() -> None:
    observed = torch.tensor([True, False, True, True, False])
    visible = LinearGaussian(MODEL.W[observed], MODEL.b[observed], MODEL.s[observed])
    batch = Batch(torch.where(observed, X, torch.nan), mask=observed.expand(6, 5))
    assert_exact(
        annealed_importance_sampling(MODEL.vae(), batch, 60, 100, num_leapfrog=3),
        visible.log_marginal(X[:, observed]),
    )


def test_the_context_reaches_prior_and_likelihood() -> None:
    torch.manual_seed(5)
    vae = VAE(
        Conditional(dist.Normal, (2,), given=mlp(1), scale=Fixed(1.0)),
        Conditional(dist.Normal, (5,), given=mlp(3), scale=Fixed(0.5)),
        context_features=1,
    ).double()
    context = torch.linspace(-2, 2, 6).double().unsqueeze(-1)
    batch = Batch(X, context)
    with torch.no_grad():
        mean = vae.decode(vae.prior(context).mean, batch).mean
        w = vae.likelihood.head.weight[:, :2]
        exact = LinearGaussian(w, torch.zeros(5).double(), torch.tensor(0.5).double()).log_marginal(X - mean)
    assert_exact(annealed_importance_sampling(vae, batch, 60, 100, num_leapfrog=3), exact)


def test_float32() -> None:
    vae = MODEL.vae(MODEL.exact_encoder(1.4)).float()
    result = annealed_importance_sampling(vae, X.float(), 60, 100, start="encoder", num_leapfrog=3)
    assert result.pointwise.dtype == torch.float64
    assert_exact(result, EXACT)


# ------------------------------------------------------------------ parts


def test_the_schedules_by_hand() -> None:
    def betas(schedule: Any, temperatures: int = 5) -> list[float]:
        return Annealing("", temperatures, 1, "prior", schedule, 1).betas

    assert betas("linear") == [0.0, 0.25, 0.5, 0.75, 1.0]
    edge, inner = (1 / (1 + math.exp(-4 * place)) for place in (-1, -0.5))
    first = (inner - edge) / (1 - 2 * edge)
    assert betas("sigmoid") == pytest.approx([0.0, first, 0.5, 1 - first, 1.0])
    assert betas("sigmoid", 2) == [0.0, 1.0]


def test_the_log_of_a_mean_by_hand() -> None:
    mean = LogMean.of(torch.tensor([[1.0], [3.0]]).double().log() - 1000)
    assert float(mean.value) == pytest.approx(math.log(2) - 1000)
    assert float(mean.error) == pytest.approx(0.5)  # sd sqrt(2), mean 2, two weights
    assert float(mean.effective_sample_size) == pytest.approx(1.6)
    assert float(mean.bias) == pytest.approx(0.125)


def test_step_sizes_do_not_depend_on_the_main_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pilot leaves is what the chains move by, whatever they accept; and it suits them."""
    used: list[Tensor] = []
    move = annealed.Path.move

    def spy(self: annealed.Path, u: Tensor, beta: float, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        used.append(step)
        return move(self, u, beta, step)

    monkeypatch.setattr(annealed.Path, "move", spy)
    results = [annealed_importance_sampling(MODEL.vae(), X, 40, chains) for chains in (1, 20)]
    first, second = used[: len(used) // 2], used[len(used) // 2 :]
    assert len(first) > 38
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    acceptance = results[1].diagnostics["acceptance"]
    assert 0.6 < acceptance.min() < acceptance.max() < 0.9


# ------------------------------------------------------------------ compiled


@pytest.mark.parametrize("start", ["prior", "encoder"])
def test_compiled_it_is_the_same_at_the_same_seed(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two parts of the data and a smaller rest, which runs uncompiled as the pilots do: with one program."""
    monkeypatch.setattr(annealed, "_ROWS", 20)
    model = LinearGaussian.random(5, 2, diagonal=False)
    vae, data = model.vae(MODEL.exact_encoder(1.3)), MODEL.sample(9)
    capture, shapes = function.capture, []
    monkeypatch.setattr(function, "capture", lambda f, m, given: shapes.append(given[0].shape) or capture(f, m, given))
    with interpreted(), short_pilot():
        results = [
            annealed_importance_sampling(vae, data, 8, 5, start=start, num_leapfrog=2, compile=c) for c in (False, True)
        ]
    assert shapes == [(5, 4, 2)]
    torch.testing.assert_close(results[0].pointwise, results[1].pointwise, rtol=0, atol=1e-9)
    for name in ("acceptance", "effective_sample_size", "bias"):
        torch.testing.assert_close(*(r.diagnostics[name] for r in results), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["prior", "encoder"])
def test_as_machine_code_it_is_the_same(start: Any, make_vae: Callable[..., VAE]) -> None:
    """A program of networks: Bernoulli cells and a Gamma prior, moved through its bijection."""
    prior = Conditional(dist.Gamma, (2,), concentration=Fixed(2.0), rate=Fixed(1.5))
    vae = make_vae(prior, posterior=Conditional(dist.Gamma, (2,), given=mlp(6, 7))).double()
    x = torch.eye(6).double()
    plain, compiled = (
        annealed_importance_sampling(vae, x, 12, 5, start=start, num_leapfrog=3, compile=c) for c in (False, True)
    )
    torch.testing.assert_close(plain.pointwise, compiled.pointwise, rtol=0, atol=1e-8)


def test_auto_does_not_compile_what_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "capture", None)
    annealed_importance_sampling(MODEL.vae(), X, 12, 5, num_leapfrog=3)


def test_a_model_that_branches_on_values_runs_uncompiled_unless_told(make_vae: Callable[..., VAE]) -> None:
    vae = make_vae()
    true = vae.log_likelihood_of
    vae.log_likelihood_of = lambda z, batch: true(z, batch) if bool(z.isfinite().all()) else true(z * 0, batch)
    with pytest.raises(CaptureError, match=r"test_annealed.py, line \d+"):
        annealed_importance_sampling(vae, torch.ones(3, 6), 4, 2, num_leapfrog=2, compile=True)
    annealed_importance_sampling(vae, torch.ones(3, 6), 4, 2, num_leapfrog=2)
    with pytest.raises(InputError, match="`compile` is"):
        annealed_importance_sampling(vae, torch.ones(3, 6), 4, 2, compile="yes")


# ------------------------------------------------------------------ manners


@pytest.mark.parametrize("rows", [20, 7])
def test_memory_is_bounded_and_data_keep_their_order(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annealed, "_ROWS", rows)
    vae, sizes = MODEL.vae(), []
    original = vae.log_likelihood_of
    vae.log_likelihood_of = lambda z, batch: sizes.append(z.shape[:-1].numel()) or original(z, batch)
    with short_pilot():
        result = annealed_importance_sampling(vae, X, 5, 7, start="encoder", num_leapfrog=1)
    assert max(sizes) <= rows
    torch.testing.assert_close(result.pointwise, EXACT, rtol=0, atol=1e-10)


def test_a_repeat_is_bit_equal_and_leaves_the_random_state_and_the_mode_alone() -> None:
    vae = MODEL.vae(MODEL.exact_encoder(1.4)).train()
    state = torch.get_rng_state()
    with short_pilot():
        first, second, other = (
            annealed_importance_sampling(vae, X, 5, 4, num_leapfrog=1, seed=seed).pointwise for seed in (0, 0, 1)
        )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_what_the_estimate_tells() -> None:
    with short_pilot():
        result = annealed_importance_sampling(MODEL.vae(), X, 5, 1, schedule="sigmoid", num_leapfrog=1, seed=4)
    told = result.diagnostics
    settings = {name: told[name] for name in ("method", "temperatures", "chains", "start", "schedule", "seed")}
    assert settings == {
        "method": "annealed importance sampling",
        "temperatures": 5,
        "chains": 1,
        "start": "prior",
        "schedule": "sigmoid",
        "seed": 4,
    }
    assert math.isnan(result.standard_error)
    assert all(told[name].shape == (6,) for name in ("acceptance", "effective_sample_size", "bias"))


def test_a_progress_bar_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with short_pilot():
        quiet, shown = (
            annealed_importance_sampling(MODEL.vae(), X, 4, 2, num_leapfrog=1, progress=shown).pointwise
            for shown in (False, True)
        )
    assert torch.equal(quiet, shown)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperatures": 1}, "`temperatures` is an integer of at least 2, got `1`"),
        ({"temperatures": 10.0}, "`temperatures` is an integer"),
        ({"chains": 0}, "`chains` is an integer of at least 1, got `0`"),
        ({"num_leapfrog": 0}, "`num_leapfrog` is an integer of at least 1"),
        ({"start": "posterior"}, "unknown start `posterior`"),
        ({"start": "prio"}, "did you mean `prior`"),
        ({"schedule": "sigmoidal"}, "did you mean `sigmoid`"),
    ],
)
def test_bad_arguments_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"annealed_importance_sampling: .*{message}"):
        annealed_importance_sampling(MODEL.vae(), X, **given)


def test_discrete_latents_and_data_outside_the_support_are_refused(make_vae: Callable[..., VAE]) -> None:
    discrete = make_vae(
        prior=Conditional(dist.Bernoulli, (2,), logits=Fixed(0.0)),
        posterior=Conditional(dist.Bernoulli, (2,), given=mlp(6)),
    )
    with pytest.raises(InputError, match=r"annealed_importance_sampling: .*prior `Bernoulli` is discrete"):
        annealed_importance_sampling(discrete, torch.ones(3, 6))
    with pytest.raises(ValueError, match="support"):
        annealed_importance_sampling(make_vae(), torch.full((3, 6), 0.5))
    with pytest.raises(InputError, match="expected data of shape"):
        annealed_importance_sampling(make_vae(), torch.ones(3, 5))
