"""The estimators of the ELBO: values and gradients at the same noise, expectations, variances."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from replicas import Gradients, all_losses, exact_gradients, gradients, variance
from torch import Tensor
from torch.distributions import Normal
from z_test import assert_mean

from pyro_vae.inference import AEVB, CIWAE, IWAE, STL, AnalyticKL, BetaVAE, FreeBits, Inference, Renyi, ScoreFunction

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)
WIDE = MODEL.exact_encoder(1.6)


def elbo(model: LinearGaussian, encoder: Encoder) -> Tensor:
    return model.elbo(X, *encoder(X)).mean()


# ------------------------------------------------------------------ at the same noise


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("size", [None, 50])
def test_they_are_the_hand_written_estimators(num_particles: int, size: int | None) -> None:
    vae = MODEL.vae(WIDE, size=size)
    loc, scale = WIDE(X)
    torch.manual_seed(3)
    z = loc + scale * Normal(torch.zeros(num_particles, 8, 2).double(), 1.0).sample()
    log_likelihood = Normal(z @ MODEL.W.T + MODEL.b, MODEL.s).log_prob(X).sum(-1)
    log_ratio = Normal(0.0, 1.0).log_prob(z).sum(-1) - Normal(loc, scale).log_prob(z).sum(-1)
    kl = ((loc**2 + scale**2 - 1) / 2 - scale.log()).sum(-1)
    a, b = (log_likelihood + log_ratio).mean(), (log_likelihood - kl).mean()
    expected = {AEVB(num_particles): a, STL(num_particles): a, AnalyticKL(num_particles): b}
    expected[ScoreFunction("none", num_particles)] = a
    for inference, value in expected.items():
        (loss,) = all_losses(inference, vae, X, seed=3)
        torch.testing.assert_close(loss.value, -value, rtol=0, atol=1e-12)
        torch.testing.assert_close(loss.bound, value, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("inference", "elbo"),
    [
        (AEVB(), Trace_ELBO()),
        (AEVB(3), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)),
        (AnalyticKL(), TraceMeanField_ELBO()),
        (BetaVAE(1.0), TraceMeanField_ELBO()),
        (FreeBits(0.0), TraceMeanField_ELBO()),
        (IWAE(1), Trace_ELBO()),
        (Renyi(0.5, 1), Trace_ELBO()),
        (Renyi(1.0, 3), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)),
        (CIWAE(3, 1.0), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)),
    ],
    ids=lambda value: repr(value) if isinstance(value, Inference) else type(value).__name__,
)
@pytest.mark.parametrize("size", [None, 50])
def test_an_algorithm_is_pyros_own_elbo_on_model_and_guide(
    inference: Inference, elbo: Trace_ELBO, size: int | None
) -> None:
    vae = MODEL.vae(WIDE, size=size, parameter_prior=size and dist.Normal(0.0, 1.0))
    parameters = [*vae.theta.values(), *vae.phi.values()]
    torch.manual_seed(4)
    theirs = elbo.differentiable_loss(vae.model, vae.guide, X) / (size or len(X))
    (ours,) = all_losses(inference, vae, X, seed=4)
    torch.testing.assert_close(ours.value, theirs, rtol=0, atol=1e-12)
    for mine, its in zip(*(torch.autograd.grad(v, parameters) for v in (ours.value, theirs)), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_particles", [1, 5])
def test_at_the_exact_posterior_the_phi_gradient_of_stl_is_zero_and_that_of_others_is_not(num_particles: int) -> None:
    exact = MODEL.exact_encoder()
    assert float(gradients(STL(num_particles), MODEL, exact, X, 100).phi.abs().max()) < 1e-10
    for other in (AEVB(num_particles), AnalyticKL(num_particles), IWAE(num_particles), ScoreFunction("none", 1)):
        assert float(gradients(other, MODEL, exact, X, 100).phi.abs().amin(0).min()) > 1e-6


# ------------------------------------------------------------------ expectations


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.6])
@pytest.mark.parametrize(
    "inference",
    [AEVB(), AEVB(4), AnalyticKL(), AnalyticKL(4), STL(), STL(4), BetaVAE(1.0), FreeBits(0.0)],
    ids=repr,
)
def test_the_gradient_is_unbiased_for_that_of_the_exact_elbo(inference: Inference, scale: float) -> None:
    """In all of theta and phi."""
    encoder = MODEL.exact_encoder(scale)
    assert_mean(gradients(inference, MODEL, encoder, X).both, exact_gradients(elbo, MODEL, encoder).both)


def test_the_bound_is_unbiased_for_the_exact_elbo() -> None:
    copies, vae = X.repeat(100, 1), MODEL.vae(WIDE)
    for inference in (AEVB(), AnalyticKL(), STL(), ScoreFunction()):
        samples = torch.stack([all_losses(inference, vae, copies, seed)[0].bound for seed in range(100)])
        assert_mean(samples, elbo(MODEL, WIDE))


def test_minibatch_losses_of_pyros_svi_are_unbiased_for_the_full_data() -> None:
    """The N/M scale belongs to the data's plate alone, not to the parameter prior."""
    x = MODEL.sample(20)
    vae = MODEL.vae(WIDE, size=20, parameter_prior=dist.Normal(0.0, 0.7))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        losses = [svi.evaluate_loss(x[torch.randperm(20)[:5]]) for _ in range(600)]
    full = MODEL.elbo(x, *WIDE(x)).sum() + Normal(0.0, 0.7).log_prob(MODEL.W).sum()
    assert_mean(torch.tensor(losses, dtype=torch.float64), -full)


# ------------------------------------------------------------------ variances: traces of the covariance over all phi


def outlying(inference: Inference) -> Gradients:
    """At data whose z lies far from the prior's bulk, and which the encoder sees as x = 0."""
    model = LinearGaussian(MODEL.W, -MODEL.W.sum(1) * 8, MODEL.s)
    return gradients(inference, model, model.exact_encoder(1.6), torch.zeros_like(X))


def test_the_analytic_kl_has_less_variance_than_the_monte_carlo_kl() -> None:
    """About half of it at data from the model; more of it at data whose z is far from the prior's bulk.

    There the Monte Carlo KL cancels noise of the reconstruction.
    """
    a, b = (gradients(inference, MODEL, WIDE, X) for inference in (AEVB(), AnalyticKL()))
    assert_mean(a.both - b.both, torch.zeros_like(a.both[0]))  # paired: both have the same noise
    assert 0.4 < variance(b.phi) / variance(a.phi) < 0.7
    assert 1.2 < variance(outlying(AnalyticKL()).phi) / variance(outlying(AEVB()).phi) < 3.0


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("scale", [0.5, 0.6, 0.9, 1.6])
def test_the_variance_of_stl_is_1_minus_1_over_f_squared_of_that_of_aevb_where_q_is_f_times_as_wide(
    num_particles: int, scale: float
) -> None:
    r"""Squared, as the gradient itself is scaled: more where f < :math:`1/\sqrt{2}`, 3.2 times as much at 0.6."""
    ours, theirs = (
        gradients(inference(num_particles), MODEL, MODEL.exact_encoder(scale), X, 1000) for inference in (STL, AEVB)
    )
    torch.testing.assert_close(ours.theta, theirs.theta, rtol=0, atol=1e-10)  # at the same noise
    expected = (1 - scale**-2) ** 2 * variance(theirs.phi)
    assert abs(variance(ours.phi) / expected - 1) < 1e-10
    assert (variance(ours.phi) > variance(theirs.phi)) is (scale < 0.7)


def test_variance_falls_as_1_over_k() -> None:
    for make in (AEVB, AnalyticKL, STL):
        one, ten = (variance(gradients(make(k), MODEL, WIDE, X).phi) for k in (1, 10))
        assert 8.5 < one / ten < 11.5
