"""Bidirectional Monte Carlo: the exact log p(x) of simulated data lies between its bounds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from annealing import short_pilot
from linear_gaussian import LinearGaussian
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, mlp
from pyro_vae.engine import interpreted
from pyro_vae.errors import InputError
from pyro_vae.evaluation import annealed
from pyro_vae.evaluation.bidirectional import Sandwich, bidirectional_monte_carlo

MODEL = LinearGaussian.random(5, 2)
# A z-test's limit, one-sided, at a failure rate below 2e-5.
LIMIT = 4.2


def exact(sandwich: Sandwich) -> torch.Tensor:
    return MODEL.log_marginal(sandwich.data)


def test_from_the_exact_posterior_both_bounds_are_exact() -> None:
    with short_pilot():
        sandwich = bidirectional_monte_carlo(MODEL.vae(), 4, 6, 3, start="encoder", num_leapfrog=2)
    for bound in (sandwich.lower, sandwich.upper):
        torch.testing.assert_close(bound.pointwise, exact(sandwich), rtol=0, atol=1e-10)
    assert abs(sandwich.width.value) < 1e-10


@pytest.mark.parametrize(
    ("start", "schedule"),
    [
        *(("prior", "sigmoid"), ("encoder", "linear")),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("prior", "linear"), ("encoder", "sigmoid")]),
    ],
)
def test_with_enough_temperatures_the_bounds_meet_at_the_exact_value(start: Any, schedule: Any) -> None:
    vae = MODEL.vae(MODEL.exact_encoder(1.4))
    sandwich = bidirectional_monte_carlo(vae, 6, 80, 100, start=start, schedule=schedule, num_leapfrog=3)
    lower, upper = sandwich.lower, sandwich.upper
    assert_mean(lower.pointwise + lower.diagnostics["bias"], exact(sandwich), lower.diagnostics["pointwise_error"])
    assert_mean(upper.pointwise - upper.diagnostics["bias"], exact(sandwich), upper.diagnostics["pointwise_error"])
    assert abs(sandwich.width.value) < 0.1


def test_with_few_temperatures_the_sandwich_is_wide_and_holds() -> None:
    sandwich = bidirectional_monte_carlo(MODEL.vae(), 600, 4, 4, num_leapfrog=2)
    above, below = sandwich.upper.pointwise - exact(sandwich), exact(sandwich) - sandwich.lower.pointwise
    for gap in (above, below):
        assert gap.mean() > LIMIT * gap.std() / 600**0.5
    width = sandwich.width
    assert width.value > 0.5
    assert width.value > LIMIT * width.sampling_error
    torch.testing.assert_close(width.pointwise, above + below)


@pytest.mark.parametrize("temperatures", [pytest.param(2, marks=pytest.mark.slow), 6])
def test_the_reverse_weights_are_unbiased(temperatures: int) -> None:
    """E[w'] = 1 / p(x), over pairs (z, x)."""
    vae = MODEL.vae(MODEL.exact_encoder(0.8))  # narrow, so that the reverse weights are light
    sandwich = bidirectional_monte_carlo(vae, 3000, temperatures, 2, start="encoder", num_leapfrog=2)
    assert_mean((exact(sandwich) - sandwich.upper.pointwise).exp(), 1.0)
    assert_mean((sandwich.lower.pointwise - exact(sandwich)).exp(), 1.0)


def test_the_error_of_the_upper_bound_is_honest_though_its_chains_share_one_exact_z() -> None:
    """Even with two temperatures, where chains that had not parted would all have one weight."""
    vae = MODEL.vae(MODEL.exact_encoder(0.8))
    upper = bidirectional_monte_carlo(vae, 500, 2, 30, start="encoder", num_leapfrog=5)
    bound = upper.upper
    off, error = bound.pointwise - exact(upper), bound.diagnostics["pointwise_error"]
    assert_mean(off.square() - error.square(), 0.0)
    assert_mean(off - bound.diagnostics["bias"], 0.0)


def test_the_pairs_are_draws_from_the_model() -> None:
    with short_pilot():
        sandwich = bidirectional_monte_carlo(MODEL.vae(), 5000, 2, 1, num_leapfrog=1)
    z, x = sandwich.latents, sandwich.data
    assert (z.shape, x.shape) == ((5000, 2), (5000, 5))
    assert_mean(torch.cat([z, z.square()], dim=-1), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    noise = (x - z @ MODEL.W.T - MODEL.b) / MODEL.s
    assert_mean(torch.cat([noise, noise.square()], dim=-1), torch.tensor([0.0] * 5 + [1.0] * 5))


@pytest.mark.parametrize("rows", [pytest.param(20_000, marks=pytest.mark.slow), 150])
def test_a_bounded_support_a_context_and_parts(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reverse weights from exact z on the simplex; each part of the pairs has its own context."""
    monkeypatch.setattr(annealed, "_ROWS", rows)
    vae = VAE(
        Conditional(dist.Dirichlet, (3,), given=mlp(1)),
        Conditional(dist.Normal, (4,), given=mlp(4), scale=Learned(0.5)),
        context_features=1,
    ).double()
    torch.nn.init.constant_(vae.likelihood.head.weight[:, 3].detach(), 3.0)  # another context, quite other data
    context = torch.linspace(-1, 1, 10).double().unsqueeze(-1)
    sandwich = bidirectional_monte_carlo(vae, 10, 40, 30, context=context, num_leapfrog=3)
    torch.testing.assert_close(sandwich.latents.sum(-1), torch.ones(10).double())
    width = sandwich.width
    biases = sum(bound.diagnostics["bias"] for bound in (sandwich.lower, sandwich.upper))
    assert_mean(width.pointwise - biases, torch.zeros(10), width.diagnostics["pointwise_error"])
    assert width.value < 0.2
    batch = Batch(sandwich.data, context)
    bounds = (sandwich.lower, annealed.annealed_importance_sampling(vae, batch, 40, 30, num_leapfrog=3))
    freed = [bound.pointwise + bound.diagnostics["bias"] for bound in bounds]
    errors = [bound.diagnostics["pointwise_error"] for bound in bounds]
    assert_mean(freed[0] - freed[1], torch.zeros(10), torch.stack(errors).norm(dim=0))


def test_a_repeat_is_bit_equal_and_its_text_is_one_line() -> None:
    with short_pilot():
        first, second = (bidirectional_monte_carlo(MODEL.vae(), 3, 4, 2, num_leapfrog=1, seed=3) for _ in range(2))
    assert torch.equal(first.data, second.data)
    assert torch.equal(first.width.pointwise, second.width.pointwise)
    number = r"-?\d+\.\d{4}"
    pattern = rf"lower {number} ± {number}, upper {number} ± {number}, width {number} ± {number}, 3 data"
    assert re.fullmatch(rf"Sandwich\({pattern}\)", repr(first))


def test_bad_arguments_are_refused(make_vae: Callable[..., VAE]) -> None:
    who = "bidirectional_monte_carlo: .*"
    with pytest.raises(InputError, match=who + "`n` is an integer of at least 1, got `0`"):
        bidirectional_monte_carlo(make_vae(), 0)
    with pytest.raises(InputError, match=who + "`temperatures` is an integer of at least 2"):
        bidirectional_monte_carlo(make_vae(), 3, 1)
    with pytest.raises(InputError, match=who + r"context_features=0 .* shape \(3, 1\); leave it out"):
        bidirectional_monte_carlo(make_vae(), 3, context=torch.ones(3, 1))
    conditional = VAE(
        Conditional(dist.Normal, (2,), given=mlp(1), scale=Fixed(1.0)),
        Conditional(dist.Bernoulli, (6,), given=mlp(3)),
        context_features=1,
    )
    for context in (None, torch.ones(2, 1)):
        with pytest.raises(InputError, match=who + r"pass context=, one row for each pair, of shape \(3, 1\)"):
            bidirectional_monte_carlo(conditional, 3, context=context)
    posterior = Conditional(dist.Bernoulli, (2,), given=mlp(6))
    discrete = make_vae(prior=Conditional(dist.Bernoulli, (2,), logits=Fixed(0.0)), posterior=posterior)
    with pytest.raises(InputError, match=who + "prior `Bernoulli` is discrete"):
        bidirectional_monte_carlo(discrete, 3)


def test_compiled_it_is_the_same_at_the_same_seed() -> None:
    vae = MODEL.vae(MODEL.exact_encoder(1.3))
    with interpreted(), short_pilot():
        plain, compiled = (
            bidirectional_monte_carlo(vae, 4, 8, 3, num_leapfrog=2, compile=compile) for compile in (False, True)
        )
    assert torch.equal(plain.data, compiled.data)
    for one, other in ((plain.lower, compiled.lower), (plain.upper, compiled.upper)):
        torch.testing.assert_close(one.pointwise, other.pointwise, rtol=0, atol=1e-9)
