"""The oracle itself, against numerical integration and hand-derived identities."""

from __future__ import annotations

import math

import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from z_test import FAILURE_RATE, assert_mean

TIGHT = {"rtol": 0.0, "atol": 1e-10}
_STEP = 0.05
_AXIS = torch.arange(-360, 361, dtype=torch.float64) * _STEP


def random_encoder(d: int, latent: int, seed: int = 7) -> Encoder:
    generator = torch.Generator().manual_seed(seed)
    v, c, t = (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((latent, d), (latent,), (latent,)))
    return Encoder(0.3 * v, 0.3 * c, (0.3 * t).exp())


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("diagonal", [False, True])
def test_marginal_posterior_and_elbo_are_the_integrals_over_z(latent: int, diagonal: bool) -> None:
    model = LinearGaussian.random(3, latent, diagonal=diagonal, seed=1)
    encoder = random_encoder(3, latent)
    for x in model.sample(3):
        z = torch.cartesian_prod(*[_AXIS] * latent).reshape(-1, latent)
        cell = _STEP**latent
        log_joint = Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(z @ model.W.T + model.b, model.s).log_prob(x).sum(-1)
        evidence = log_joint.exp().sum() * cell
        torch.testing.assert_close(model.log_marginal(x), evidence.log(), **TIGHT)
        density = log_joint.exp() / evidence * cell
        mean = density @ z
        torch.testing.assert_close(model.posterior(x).mean, mean, **TIGHT)
        covariance = (density.unsqueeze(-1) * (z - mean)).T @ (z - mean)
        torch.testing.assert_close(model.posterior(x).covariance_matrix, covariance, **TIGHT)
        loc, scale = encoder(x)
        log_q = Normal(loc, scale).log_prob(z).sum(-1)
        integral = (log_q.exp() * (log_joint - log_q)).sum() * cell
        torch.testing.assert_close(model.elbo(x, loc, scale), integral, **TIGHT)


@pytest.mark.parametrize("diagonal", [False, True])
def test_log_marginal_is_elbo_plus_kl(diagonal: bool) -> None:
    model, encoder = LinearGaussian.random(5, 2, diagonal=diagonal), random_encoder(5, 2)
    x = model.sample(50)
    loc, scale = encoder(x)
    gap = kl_divergence(MultivariateNormal(loc, scale_tril=scale.diag().expand(50, 2, 2)), model.posterior(x))
    assert bool((gap > 0.01).all())
    torch.testing.assert_close(model.log_marginal(x), model.elbo(x, loc, scale) + gap, **TIGHT)


def test_the_elbo_is_log_marginal_at_the_exact_encoder() -> None:
    model = LinearGaussian.random(5, 2)
    x = model.sample(50)
    torch.testing.assert_close(model.elbo(x, *model.exact_encoder()(x)), model.log_marginal(x), **TIGHT)
    assert bool((model.elbo(x, *model.exact_encoder(wider=1.6)(x)) < model.log_marginal(x) - 0.1).all())


def test_gradients_of_log_marginal_are_the_hand_derived_ones() -> None:
    model = LinearGaussian.random(5, 2, diagonal=False)
    x = model.sample(1)[0]
    leaves = [t.clone().requires_grad_() for t in (model.W, model.b, model.s)]
    gradients = torch.autograd.grad(LinearGaussian(*leaves).log_marginal(x), leaves)
    inverse = torch.linalg.inv(model.marginal().covariance_matrix)
    pull = inverse @ (x - model.b)
    by_covariance = torch.outer(pull, pull) - inverse  # twice the gradient with respect to the covariance
    for gradient, exact in zip(
        gradients, (by_covariance @ model.W, pull, by_covariance.diagonal() * model.s), strict=True
    ):
        torch.testing.assert_close(gradient, exact, **TIGHT)


def test_dream_cross_entropy_is_the_integral_and_the_forward_kl() -> None:
    model, encoder = LinearGaussian.random(1, 1, seed=3), random_encoder(1, 1)
    z, x = torch.cartesian_prod(_AXIS, _AXIS).T
    log_p = Normal(0.0, 1.0).log_prob(z) + Normal(z * model.W[0, 0] + model.b, model.s).log_prob(x)
    log_q = Normal(x * encoder.V[0, 0] + encoder.c, encoder.t).log_prob(z)
    integral = -(log_p.exp() * log_q).sum() * _STEP**2
    torch.testing.assert_close(model.dream_cross_entropy(encoder), integral, **TIGHT)

    def forward_kl(x: Tensor) -> Tensor:
        q = MultivariateNormal(encoder(x)[0], scale_tril=encoder.t.diag())
        return kl_divergence(model.posterior(x), q)

    weights = model.log_marginal(_AXIS.unsqueeze(-1)).exp() * _STEP
    mean_kl = weights @ forward_kl(_AXIS.unsqueeze(-1))
    entropy = model.posterior(torch.zeros(1, dtype=torch.float64)).entropy()
    torch.testing.assert_close(model.dream_cross_entropy(encoder), mean_kl + entropy, **TIGHT)


@pytest.mark.parametrize("fixed", [None, 0.5, 2.0])
def test_maximum_likelihood_is_the_closed_form_and_stationary(fixed: float | None) -> None:
    gains = torch.tensor([3.0, 1.2], dtype=torch.float64)
    data = LinearGaussian(torch.eye(6, 2) * gains, torch.ones(6).double(), torch.tensor(0.7).double()).sample(200)
    best = LinearGaussian.maximum_likelihood(data, 2, fixed)
    optimum = best.log_marginal(data).mean()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(data.T, correction=0)).flip(0)
    if fixed is None:
        noise = eigenvalues[2:].mean()
        formula = -0.5 * (6 * math.log(2 * math.pi) + eigenvalues[:2].log().sum() + 4 * noise.log() + 6)
        torch.testing.assert_close(optimum, formula, **TIGHT)
    else:  # a component whose variance is below the noise collapses
        assert best.W.abs().amax(0).gt(0).tolist() == (eigenvalues[:2] > fixed**2).tolist() == [True, fixed < 1]
    leaves = {name: getattr(best, name).clone().requires_grad_() for name in ("W", "b", "s")}
    value = LinearGaussian(**leaves).log_marginal(data).mean()
    gradients = torch.autograd.grad(value, list(leaves.values()))[: 3 if fixed is None else 2]
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), **TIGHT)
    torch.testing.assert_close(best.elbo(data, *best.exact_encoder()(data)).mean(), optimum, **TIGHT)


def test_samples_have_the_mean_and_covariance_of_the_marginal() -> None:
    model = LinearGaussian.random(4, 2, diagonal=False)
    centred = model.sample(20_000) - model.b
    assert_mean(centred, torch.zeros(4).double())
    assert_mean(centred.unsqueeze(-1) * centred.unsqueeze(-2), model.marginal().covariance_matrix)


@pytest.mark.parametrize("fixed_scale", [False, True])
def test_the_vae_has_the_parameters_of_the_oracle(fixed_scale: bool) -> None:
    model, encoder = LinearGaussian.random(5, 2), random_encoder(5, 2)
    vae = model.vae(encoder, fixed_scale=fixed_scale)
    assert vae.dtype == torch.float64
    assert ("likelihood.learned_scale" in vae.theta) is not fixed_scale
    for read, given in zip(LinearGaussian.of(vae), (model, encoder), strict=True):
        for name in vars(given):
            torch.testing.assert_close(getattr(read, name), getattr(given, name), rtol=0, atol=1e-14)
    x = model.sample(6)
    exact = model.vae().encode(x)
    assert float(kl_divergence(exact, model.posterior(x)).detach().abs().max()) < 1e-10


def test_the_z_test_finds_a_bias_of_six_standard_errors() -> None:
    samples = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    assert assert_mean(samples, torch.zeros(3)) < 3.0
    with pytest.raises(AssertionError, match="component 1 of 3"):
        assert_mean(samples + torch.tensor([0.0, 6 / 1000**0.5, 0.0]), torch.zeros(3))
    assert FAILURE_RATE == 2e-5
