"""The importance-weighted bounds and their kin against exact answers, each other, and formulas written by hand."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from replicas import (
    all_losses,
    assert_below,
    assert_clearly_below,
    bounds,
    gradients,
    seeded,
    signal_to_noise,
    variance,
)
from torch import Tensor
from torch.distributions import Normal
from z_test import assert_mean

from pyro_vae import Batch
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, CIWAE, IWAE, MIWAE, PIWAE, RWS, STL, DReG, Inference, Renyi, ScoreFunction

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)
EXACT, WIDE, NARROW = (MODEL.exact_encoder(scale) for scale in (1.0, 1.6, 0.6))
LOG_MARGINAL = MODEL.log_marginal(X).mean()


def value_and_gradients(inference: Inference, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """The bound, and the theta and phi gradients of the loss."""
    vae = MODEL.vae(WIDE)
    (loss,) = all_losses(inference, vae, X, seed)
    grads = torch.autograd.grad(loss.value, [*vae.theta.values(), *vae.phi.values()])
    torch.testing.assert_close(loss.value, -loss.bound, rtol=0, atol=1e-12)
    theta, phi = grads[: len(vae.theta)], grads[len(vae.theta) :]
    return loss.bound, torch.cat([g.flatten() for g in theta]), torch.cat([g.flatten() for g in phi])


def assert_same(a: tuple[Tensor, ...], b: tuple[Tensor, ...], which: str = "bound theta phi") -> None:
    for name, mine, its in zip(("bound", "theta", "phi"), a, b, strict=True):
        if name in which:
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-10)
        else:
            assert not torch.allclose(mine, its, rtol=0, atol=1e-4)


# ------------------------------------------------------------------ the exact posterior


@pytest.mark.parametrize(
    "inference",
    [
        *(AEVB(4), STL(4), ScoreFunction("none", 4), IWAE(4), DReG(4), Renyi(0.3, 4), MIWAE(2, 3), PIWAE(2, 3)),
        *(CIWAE(4, 0.3), RWS(4)),
    ],
    ids=repr,
)
def test_at_the_exact_posterior_every_bound_is_log_marginal(inference: Inference) -> None:
    (loss,) = all_losses(inference, MODEL.vae(EXACT), X)
    torch.testing.assert_close(loss.bound, LOG_MARGINAL, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_particles", [1, 4, 20])
def test_at_the_exact_posterior_the_phi_gradient_of_dreg_is_zero_and_that_of_iwae_is_not(num_particles: int) -> None:
    assert float(gradients(DReG(num_particles), MODEL, EXACT, X, 100).phi.abs().max()) < 1e-10
    assert float(gradients(IWAE(num_particles), MODEL, EXACT, X, 100).phi.abs().amin(0).min()) > 1e-6


# ------------------------------------------------------------------ identities at the same noise


def hand_written(num_particles: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """log w, shape (K, 8), and the z that they belong to, shape (K, 8, 2)."""
    loc, scale = WIDE(X)
    torch.manual_seed(seed)
    z = loc + scale * Normal(torch.zeros(num_particles, 8, 2).double(), 1.0).sample()
    log_likelihood = Normal(z @ MODEL.W.T + MODEL.b, MODEL.s).log_prob(X).sum(-1)
    log_ratio = Normal(0.0, 1.0).log_prob(z).sum(-1) - Normal(loc, scale).log_prob(z).sum(-1)
    return log_likelihood + log_ratio, z


def test_values_are_those_written_by_hand() -> None:
    w = hand_written(6)[0].exp()
    expected = {
        IWAE(6): w.mean(0).log(),
        DReG(6): w.mean(0).log(),
        RWS(6): w.mean(0).log(),
        Renyi(0.3, 6): (w**0.7).mean(0).log() / 0.7,
        MIWAE(2, 3): (w[:3].mean(0).log() + w[3:].mean(0).log()) / 2,
        PIWAE(2, 3): w.mean(0).log(),
        CIWAE(6, 0.3): 0.3 * w.log().mean(0) + 0.7 * w.mean(0).log(),
    }
    for inference, bound in expected.items():
        torch.testing.assert_close(value_and_gradients(inference)[0], bound.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (IWAE(1), AEVB(1)),
        (Renyi(1.0, 4), AEVB(4)),
        (Renyi(1 - 1e-12, 4), AEVB(4)),
        (Renyi(0.0, 4), IWAE(4)),
        (Renyi(0.4, 1), AEVB(1)),
        (CIWAE(4, 1.0), AEVB(4)),
        (CIWAE(4, 0.0), IWAE(4)),
        (MIWAE(1, 4), IWAE(4)),
        (MIWAE(4, 1), AEVB(4)),
        (PIWAE(1, 4), IWAE(4)),
        (DReG(1), STL(1)),
    ],
    ids=repr,
)
def test_the_two_are_one_in_value_and_gradient(one: Inference, other: Inference) -> None:
    assert_same(value_and_gradients(one), value_and_gradients(other))


@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-7])
def test_renyi_is_accurate_near_alpha_1_in_float32(distance: float) -> None:
    """Its distance from the mean of the log weights is their variance times (1 - alpha)/2, to first order."""
    vae = MODEL.vae(WIDE).float()
    x = X.float()
    with seeded(0):
        log_weights = vae.log_weights(x, 5)
    with seeded(0):
        bound = Renyi(1 - distance, 5).loss(vae, x).bound
    expected = (log_weights.mean(0) + distance / 2 * log_weights.var(0, correction=0)).mean()
    torch.testing.assert_close(bound, expected, rtol=0, atol=1e-4 + 100 * distance**2)


def test_piwae_follows_iwae_in_theta_and_miwae_in_phi() -> None:
    piwae, iwae, miwae = (value_and_gradients(i) for i in (PIWAE(3, 4), IWAE(12), MIWAE(3, 4)))
    assert_same(piwae, iwae, "bound theta")
    assert_same(piwae, miwae, "phi")


def test_dreg_follows_iwae_in_theta_alone() -> None:
    assert_same(value_and_gradients(DReG(4)), value_and_gradients(IWAE(4)), "bound theta")


def test_the_dreg_gradient_is_equation_8_particle_by_particle() -> None:
    k, parameters = 4, [t.clone().requires_grad_() for t in (WIDE.V, WIDE.c, WIDE.t.log())]
    encoder = Encoder(parameters[0], parameters[1], parameters[2].exp())
    noise = (hand_written(k)[1] - WIDE(X)[0]) / WIDE.t
    total = [torch.zeros_like(p) for p in parameters]
    for i, x in enumerate(X):
        loc, scale = encoder(x)
        fixed_loc, fixed_scale = loc.detach(), scale.detach()
        at = [(fixed_loc + fixed_scale * e).requires_grad_() for e in noise[:, i]]
        log_w = [
            Normal(0.0, 1.0).log_prob(z).sum()
            + Normal(MODEL.W @ z + MODEL.b, MODEL.s).log_prob(x).sum()
            - Normal(fixed_loc, fixed_scale).log_prob(z).sum()
            for z in at
        ]
        share = torch.stack(log_w).detach().exp()
        for j in range(k):
            (slope,) = torch.autograd.grad(log_w[j], at[j])
            z = loc + scale * noise[j, i]
            for into, of in zip(total, torch.autograd.grad(z, parameters, slope, retain_graph=True), strict=True):
                into += (share[j] / share.sum()) ** 2 * of / len(X)
    by_hand = torch.cat([t.flatten() for t in total])
    torch.testing.assert_close(gradients(DReG(k), MODEL, WIDE, X, 1, seed=3).phi[0], by_hand, rtol=0, atol=1e-10)


def test_weights_of_data_are_outside_the_logarithm() -> None:
    weight = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    per_datum = hand_written(6)[0].exp().mean(0).log()
    for inference in (IWAE(6), DReG(6), RWS(6), PIWAE(2, 3)):
        (loss,) = all_losses(inference, MODEL.vae(WIDE), Batch(X, weight=weight), seed=3)
        torch.testing.assert_close(loss.bound, (weight * per_datum).mean(), rtol=0, atol=1e-12)


# ------------------------------------------------------------------ orders


@pytest.mark.parametrize("encoder", [WIDE, pytest.param(NARROW, marks=pytest.mark.slow)], ids=["wide", "narrow"])
def test_bounds_rise_with_k_and_stay_below_log_marginal(encoder: Encoder) -> None:
    vae, rows = MODEL.vae(encoder), []
    for k in (1, 2, 4, 8, 16):
        rows.append(bounds(IWAE(k), vae, X, n=50, copies=150))
        assert_below(rows[-1], float(LOG_MARGINAL))
    for low, high in pairwise(rows):
        assert_clearly_below(low, high)
    assert_mean(rows[0], MODEL.elbo(X, *encoder(X)).mean())


@pytest.mark.parametrize("encoder", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_others_lie_between_their_neighbours(encoder: Encoder) -> None:
    """At the same noise the order holds draw by draw, by Jensen's inequality."""
    vae = MODEL.vae(encoder)
    elbo, tight = (bounds(i, vae, X, n=20, copies=5) for i in (AEVB(12), IWAE(12)))
    for between in (Renyi(0.9, 12), Renyi(0.1, 12), CIWAE(12, 0.9), CIWAE(12, 0.1), MIWAE(6, 2), MIWAE(2, 6)):
        middle = bounds(between, vae, X, n=20, copies=5)
        assert bool((elbo < middle).all())
        assert bool((middle < tight).all())
    ordered = [bounds(Renyi(alpha, 12), vae, X, n=20, copies=5) for alpha in (1.0, 0.7, 0.4, 0.1, 0.0)]
    for low, high in pairwise(ordered):
        assert bool((low < high).all())


def test_miwae_has_the_expectation_of_iwae_and_piwae_that_of_more_particles() -> None:
    vae = MODEL.vae(WIDE)
    miwae, iwae, piwae = (bounds(i, vae, X, 60, 50)[:, None] for i in (MIWAE(4, 4), IWAE(4), PIWAE(4, 4)))
    error = (miwae.var(0) / 60 + iwae.var(0) / 60).sqrt()
    assert_mean(miwae.mean(0), iwae.mean(0), error)
    assert_clearly_below(miwae[:, 0], piwae[:, 0])
    assert_below(piwae[:, 0], float(LOG_MARGINAL))


@pytest.mark.parametrize("inference", [IWAE(4), Renyi(0.5, 4), RWS(4)], ids=repr)
def test_values_do_not_move_under_the_size_of_the_data_set(inference: Inference) -> None:
    """N/M of 1, 10 and 1,000 for batches of a single datum, whose value is then the datum's own."""
    for x in X[:3]:
        values = [all_losses(inference, MODEL.vae(WIDE, size=n), x[None])[0].bound for n in (1, 10, 1000)]
        assert max(values) - min(values) < 1e-12


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("encoder", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("num_particles", [1, 3, 8])
def test_dreg_and_iwae_have_the_same_expected_gradient(encoder: Encoder, num_particles: int) -> None:
    ours = gradients(DReG(num_particles), MODEL, encoder, X, 8000, seed=1)
    theirs = gradients(IWAE(num_particles), MODEL, encoder, X, 8000, seed=2)
    assert_mean(ours.both.mean(0), theirs.both.mean(0), (ours.both.var(0) / 8000 + theirs.both.var(0) / 8000).sqrt())


def test_miwae_has_one_mth_of_the_gradient_variance_of_iwae_and_its_expectation() -> None:
    ours, theirs = gradients(MIWAE(8, 4), MODEL, WIDE, X), gradients(IWAE(4), MODEL, WIDE, X, seed=7)
    assert_mean(ours.both.mean(0), theirs.both.mean(0), (ours.both.var(0) / 4000 + theirs.both.var(0) / 4000).sqrt())
    for mine, its in zip(ours, theirs, strict=True):
        assert 7 < variance(its) / variance(mine) < 9


def test_where_q_is_too_wide_dreg_has_less_variance_and_a_signal_that_rises_with_k() -> None:
    """Signal-to-noise: the norm of the mean gradient over the root of the trace of its covariance."""
    iwae, dreg = ([gradients(make(k), MODEL, WIDE, X, 2000).phi for k in (1, 8, 64)] for make in (IWAE, DReG))
    for theirs, ours, factor in zip(iwae, dreg, (2, 50, 1000), strict=True):
        assert variance(ours) * factor < variance(theirs)
    falling, rising = ([signal_to_noise(samples) for samples in rows] for rows in (iwae, dreg))
    assert falling[0] > 2 * falling[1] > 4 * falling[2]
    assert rising[0] < rising[1] < rising[2] / 2
    assert all(high > low for high, low in zip(rising, falling, strict=True))


def test_where_q_is_too_narrow_dreg_has_more_variance() -> None:
    """As its docstring tells: at 0.5 times the posterior's scale for any K, at 0.6 times for few particles."""
    ratios = {
        scale: [
            variance(gradients(DReG(k), MODEL, encoder, X, 2000).phi)
            / variance(gradients(IWAE(k), MODEL, encoder, X, 2000).phi)
            for k in (1, 8, 32)
        ]
        for scale, encoder in ((0.5, MODEL.exact_encoder(0.5)), (0.6, NARROW))
    }
    assert all(ratio > 2 for ratio in ratios[0.5])
    assert 3 < ratios[0.6][0] < 3.4
    assert 0.8 < ratios[0.6][1] < 1.2
    assert ratios[0.6][2] < 0.9


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf, "0.5", True])
def test_renyi_refuses_an_alpha_that_makes_no_bound(alpha: object) -> None:
    with pytest.raises(InputError, match=r"^Renyi: `alpha` is a number from 0 to 1, got"):
        Renyi(alpha)  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan, "0.5"])
def test_ciwae_refuses_a_share_that_is_none(beta: object) -> None:
    with pytest.raises(InputError, match=r"^CIWAE: `beta` is a number from 0 to 1, got"):
        CIWAE(beta=beta)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [MIWAE, PIWAE])
@pytest.mark.parametrize("bad", [0, -1, 2.0, True])
def test_outer_particles_are_a_positive_integer(make: type[Inference], bad: object) -> None:
    with pytest.raises(InputError, match=rf"^{make.__name__}: `num_outer` is a positive integer, got"):
        make(num_outer=bad)


def test_a_frozen_posterior_leaves_the_theta_gradient_as_it_is() -> None:
    for inference in (IWAE(4), DReG(4), PIWAE(2, 2), RWS(4), STL(4)):
        free, frozen = MODEL.vae(WIDE), copy.deepcopy(MODEL.vae(WIDE))
        frozen.posterior.requires_grad_(False)
        slopes = []
        for vae in (free, frozen):
            (loss,) = all_losses(inference, vae, X)
            slopes.append(torch.autograd.grad(loss.value, list(vae.theta.values())))
        for one, other in zip(*slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
