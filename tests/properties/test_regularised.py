"""Objectives beside the ELBO: beta-VAE, free bits, maximum mean discrepancy, the autoencoder."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from replicas import all_losses, exact_gradients, gradients, replicated
from torch import Tensor
from torch.distributions import Normal
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Flow, Learned, Mixture, Training, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import MMD, AnalyticKL, Autoencoder, BetaVAE, FreeBits, Inference
from pyro_vae.inference.mmd import _scale

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)
WIDE = MODEL.exact_encoder(1.6)
WEIGHT = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def kl_of_wide(encoder: Encoder = WIDE) -> Tensor:
    """KL(q(z|x) || p(z)) of each datum and dimension, shape (8, 2)."""
    loc, scale = encoder(X)
    return (loc**2 + scale**2 - 1) / 2 - scale.log()


def loss_of(inference: Inference, data: Tensor | Batch = X, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Value and bound at a draw of z that all of them share."""
    (loss,) = all_losses(inference, MODEL.vae(WIDE), data, seed)
    return loss.value.detach(), loss.bound


def run(inference: Inference, steps: int) -> str:
    return fit(MODEL.vae(WIDE), X, inference, Training(optimizer=torch.optim.SGD, steps=steps, batch_size=8)).remark


# ------------------------------------------------------------------ beta-VAE


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("data", [X, Batch(X, weight=WEIGHT)], ids=["plain", "weighted"])
def test_beta_weighs_the_kl_and_the_bound_is_the_true_elbo(beta: float, data: Tensor | Batch) -> None:
    value, bound = loss_of(BetaVAE(beta, num_particles=2), data)
    elbo = loss_of(AnalyticKL(2), data)[1]
    torch.testing.assert_close(bound, elbo, rtol=0, atol=1e-12)
    kl = Batch.of(data).mean(kl_of_wide().sum(-1))
    torch.testing.assert_close(value, -elbo + (beta - 1) * kl, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
def test_its_gradient_is_unbiased_for_the_exact_weighted_elbo(beta: float) -> None:
    def objective(model: LinearGaussian, encoder: Encoder) -> Tensor:
        return (model.elbo(X, *encoder(X)) - (beta - 1) * kl_of_wide(encoder).sum(-1)).mean()

    assert_mean(gradients(BetaVAE(beta), MODEL, WIDE, X).both, exact_gradients(objective, MODEL, WIDE).both)


def test_the_warm_up_is_a_line_in_steps_of_training() -> None:
    inference, vae, kl = BetaVAE(2.0, warmup=4), MODEL.vae(WIDE), kl_of_wide().sum(-1).mean()

    def weight() -> float:
        loss = next(inference.losses(vae, X))
        return float((loss.value.detach() + loss.bound) / kl + 1)

    got = [weight() for _ in range(6)]
    np.testing.assert_allclose(got, [0.0, 0.5, 1.0, 1.5, 2.0, 2.0], atol=1e-12)
    inference = BetaVAE(2.0, warmup=4)
    assert [round(weight(), 9) for _ in range(3)] == [0.0, 0.5, 1.0]
    inference.eval()
    assert [round(weight(), 9) for _ in range(2)] == [1.5, 1.5]  # evaluation is no step
    restored = BetaVAE(2.0, warmup=4)
    restored.load_state_dict(inference.state_dict())
    again = copy.deepcopy(inference)
    for inference in (again, restored.eval()):  # noqa: B007
        assert round(weight(), 9) == 1.5


@pytest.mark.parametrize(
    ("inference", "ends_at"),
    [(BetaVAE(0.5), "0.5"), (BetaVAE(1.0, warmup=10), "0.3"), (BetaVAE(4.0, warmup=40), "0.3"), (BetaVAE(4.0), None)],
    ids=repr,
)
def test_a_run_that_ends_below_1_says_so(inference: BetaVAE, ends_at: str | None) -> None:
    remark = run(inference, 3)
    assert remark == "" if ends_at is None else f"ended at a KL weight of {ends_at}, below 1" in remark


@pytest.mark.parametrize(("name", "bad"), [("beta", -1.0), ("beta", math.nan), ("warmup", -1), ("warmup", 1.5)])
def test_beta_vae_refuses_what_makes_no_sense(name: str, bad: float) -> None:
    with pytest.raises(InputError, match=rf"^BetaVAE: `{name}` is a number"):
        BetaVAE(**{name: bad})


# ------------------------------------------------------------------ free bits


@pytest.mark.parametrize("data", [X, Batch(X, weight=WEIGHT)], ids=["plain", "weighted"])
def test_free_bits_is_a_maximum_over_the_batch_mean_of_each_dimension(data: Tensor | Batch) -> None:
    weight = torch.ones(8).double() if isinstance(data, Tensor) else WEIGHT
    each = (weight.unsqueeze(-1) * kl_of_wide()).mean(0)
    low, high = sorted(each.tolist())
    elbo = loss_of(AnalyticKL(2), data)[1]
    for free in (0.0, low / 2, (low + high) / 2, 2 * high):
        value, bound = loss_of(FreeBits(free, num_particles=2), data)
        torch.testing.assert_close(bound, elbo, rtol=0, atol=1e-12)
        added = sum(max(free - kl, 0.0) for kl in (low, high))
        torch.testing.assert_close(value, -elbo + added, rtol=0, atol=1e-12)


def test_free_bits_leaves_out_the_gradient_of_the_kl_that_is_free() -> None:
    low, high = sorted(kl_of_wide().mean(0).tolist())
    lower = int(kl_of_wide().mean(0).argmin())
    free, none, all_of_it, whole = (
        gradients(i, MODEL, WIDE, X, 5)
        for i in (FreeBits((low + high) / 2), BetaVAE(0.0), FreeBits(2 * high), AnalyticKL())
    )
    torch.testing.assert_close(all_of_it.both, none.both, rtol=0, atol=1e-10)
    of = torch.cat([torch.arange(2).repeat_interleave(5), torch.arange(2), torch.arange(2)])  # V, c, log t
    expected = torch.where(of == lower, none.phi, whole.phi)
    torch.testing.assert_close(free.phi, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(free.theta, whole.theta, rtol=0, atol=1e-10)


def test_free_bits_tells_how_many_dimensions_it_held() -> None:
    low, high = sorted(kl_of_wide().mean(0).tolist())
    assert run(FreeBits(low / 2), 1) == ""
    assert "ended with 1 latent dimension(s) below" in run(FreeBits((low + high) / 2), 1)
    assert "ended with 2 latent dimension(s) below" in run(FreeBits(2 * high), 1)


def test_free_bits_refuses_less_than_nothing() -> None:
    with pytest.raises(InputError, match=r"^FreeBits: `free_nats` is a number of at least 0, got `-1`"):
        FreeBits(-1)


# ------------------------------------------------------------------ maximum mean discrepancy


def expected_kernel(mean: Tensor, variance: Tensor, scale: float, kernel: str) -> Tensor:
    r"""E k(d) for d ~ N(mean, diag(variance)); the inverse multiquadric is an exponential mixture of Gaussians."""
    if kernel == "rbf":
        return ((1 + 2 * variance / scale).rsqrt() * (-mean.square() / (scale + 2 * variance)).exp()).prod(-1)
    nodes, weights = np.polynomial.laguerre.laggauss(60)
    return sum(w * expected_kernel(mean, variance, scale / t, "rbf") for t, w in zip(nodes, weights, strict=True))


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
@pytest.mark.parametrize("equal", [True, False])
def test_the_discrepancy_has_the_closed_form_of_gaussians_as_its_expectation(kernel: str, equal: bool) -> None:
    """Of q(z|x) for four data and p(z), with a given scale; 0 where they are equal."""
    inference, scale = MMD(kernel=kernel), 4.0
    loc, s = (torch.zeros(4, 2), torch.ones(2)) if equal else (WIDE(X[:4])[0] + 1.0, WIDE.t)
    loc, s = loc.double(), s.double()
    pairs = expected_kernel(loc.unsqueeze(0) - loc.unsqueeze(1), 2 * s.square(), scale, kernel)
    within_p = expected_kernel(torch.zeros(2).double(), torch.full((2,), 2.0).double(), scale, kernel)
    between = expected_kernel(loc, s.square() + 1, scale, kernel).mean()
    exact = (pairs.sum() - pairs.diagonal().sum()) / 12 + within_p - 2 * between
    torch.manual_seed(0)
    z, draws = (loc + s * torch.randn(1000, 1, 4, 2).double()), torch.randn(1000, 1, 4, 2).double()
    samples = torch.stack([inference.discrepancy(a, b, torch.tensor(scale)) for a, b in zip(z, draws, strict=True)])
    assert_mean(samples, exact)
    assert abs(float(exact)) < 1e-12 if equal else float(exact) > 0.05


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_where_q_is_the_prior_the_expected_discrepancy_is_zero(kernel: str) -> None:
    """With the scale that the objective takes: one that depended on the compared draws would bias it."""
    same = Encoder(torch.zeros(2, 5).double(), torch.zeros(2).double(), torch.ones(2).double())
    vae, inference = MODEL.vae(same), MMD(1.0, kernel=kernel)
    losses = [all_losses(inference, vae, X[:3], seed)[0] for seed in range(400)]
    discrepancy = torch.stack([loss.value.detach() + loss.bound for loss in losses])  # the KL is 0
    assert_mean(discrepancy, 0.0)


def test_the_scale_of_the_kernel_is_twice_the_total_variance_of_the_prior() -> None:
    """Estimated from draws, with and without a batch of priors."""
    torch.manual_seed(0)
    p = dist.Normal(torch.tensor([5.0, -1.0]), torch.tensor([0.5, 2.0]))
    for prior in (p.to_event(1), p.expand((10, 2)).to_event(1), p.expand((5000, 2)).to_event(1)):
        assert abs(float(_scale(prior)) / 8.5 - 1) < 0.2


def test_mmd_is_made_of_reconstruction_kl_and_discrepancy() -> None:
    reconstruction = float(loss_of(BetaVAE(0.0))[0])
    kl = float(kl_of_wide().sum(-1).mean())
    for data in (X, Batch(X, weight=torch.ones(8).double())):
        discrepancy = float(loss_of(MMD(1.0), data)[0]) - reconstruction
        value, bound = loss_of(MMD(7.0, kl_weight=0.4), data)
        assert abs(float(value) - (reconstruction + 0.4 * kl + 7.0 * discrepancy)) < 1e-10
        torch.testing.assert_close(bound, loss_of(AnalyticKL())[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(loss_of(MMD(0.0, kl_weight=1.0))[0], loss_of(AnalyticKL())[0], rtol=0, atol=1e-12)


def test_weights_count_data_as_often() -> None:
    """A datum of weight 0 is as good as absent."""
    torch.manual_seed(0)
    z, draws, scale = torch.randn(1, 6, 2).double(), torch.randn(1, 6, 2).double(), torch.tensor(4.0)
    weight = torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0, 0.0]).double()
    far = torch.cat([z[:, :3], z[:, 3:] + 100], 1)
    one, other = (MMD().discrepancy(a, draws, scale, weight) for a in (z, far))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_mmd_moves_a_learned_prior_towards_the_aggregate_posterior() -> None:
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (1,), loc=Learned(3.0), scale=Fixed(1.0))
    likelihood = Conditional(dist.Normal, (2,), given=mlp(1), scale=Fixed(1.0))
    vae = VAE(prior, likelihood, Conditional(dist.Normal, (1,), given=mlp(2), scale=Fixed(1.0)))
    torch.nn.init.zeros_(vae.posterior.head.bias)
    vae.posterior.requires_grad_(False)  # N(0, 1) at the data, which are 0
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    fit(vae, torch.zeros(200, 2), MMD(), Training(optimizer=adam, steps=60, batch_size=50))
    assert abs(float(vae.prior().mean.detach())) < 0.5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"weight": -1.0}, "`weight` is a number of at least 0"),
        ({"kl_weight": -1.0}, "`kl_weight` is a number of at least 0"),
        ({"kernel": "gauss"}, '`kernel` is one of "imq", "rbf"'),
    ],
)
def test_mmd_refuses_what_makes_no_sense(bad: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^MMD: {message}"):
        MMD(**bad)  # type: ignore[arg-type]


def test_mmd_takes_a_batch_of_one_and_says_when_it_maximised_no_bound() -> None:
    (loss,) = all_losses(MMD(), MODEL.vae(WIDE), X[:1])  # the last of an epoch may be that short
    assert bool(loss.value.isfinite())
    assert "did not maximise a lower bound" in MMD().remark()
    assert MMD(kl_weight=1.0).remark() == ""


# ------------------------------------------------------------------ the autoencoder


def test_the_autoencoder_reconstructs_from_the_mean_and_leaves_the_scale_alone() -> None:
    samples = gradients(Autoencoder(), MODEL, WIDE, X, 2)

    def objective(model: LinearGaussian, encoder: Encoder) -> Tensor:
        return Normal(encoder(X)[0] @ model.W.T + model.b, model.s).log_prob(X).sum(-1).mean()

    exact = exact_gradients(objective, MODEL, WIDE)
    for ours in (samples.theta, samples.phi):
        torch.testing.assert_close(ours[0], ours[1], rtol=0, atol=0)  # nothing is drawn
    torch.testing.assert_close(samples.both[0], exact.both, rtol=0, atol=1e-10)
    assert bool((samples.phi[:, -2:] == 0).all())
    (loss,) = all_losses(Autoencoder(), replicated(MODEL, WIDE, 1), X)
    torch.testing.assert_close(loss.value, -objective(MODEL, WIDE), rtol=0, atol=1e-12)
    assert loss.bound is None


def test_the_autoencoder_finds_the_principal_components_that_the_elbo_does_not_stop_at() -> None:
    """Its squared error is that of the two leading components; its q(z|x) is no posterior."""
    data = LinearGaussian.random(6, 2, seed=3).sample(200)
    best = LinearGaussian.maximum_likelihood(data, 2)
    generator = torch.Generator().manual_seed(1)
    w, v = (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 2), (2, 6)))
    zeros, ones = torch.zeros(6).double(), torch.ones(6).double()
    vae = LinearGaussian(w, zeros, ones[0]).vae(Encoder(v, zeros[:2], ones[:2]), fixed_scale=True)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    steps = 300
    fit(
        vae,
        data,
        Autoencoder(),
        Training(optimizer=adam, steps=steps, batch_size=200, schedule=lambda i: 1 - i / steps),
    )
    error = float((vae.reconstruct(data) - data).square().sum(-1).mean())
    assert abs(error / float(4 * best.s.square()) - 1) < 0.01  # the four components that are left out
    assert torch.equal(vae.encode(data).stddev, torch.ones(200, 2).double())
    model, encoder = LinearGaussian.of(vae)
    assert float((best.log_marginal(data) - model.elbo(data, *encoder(data))).mean().detach()) > 0.1


def test_the_autoencoder_refuses_a_posterior_whose_mean_has_no_gradient() -> None:
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2, 5))
    with pytest.raises(InputError, match="mean of the posterior `FlowDistribution` is known from draws"):
        Autoencoder().check(VAE(prior, likelihood, Flow((2,), given=mlp(6, 5))))
    Autoencoder().check(VAE(prior, likelihood, Mixture(dist.Normal, (2,), 3, given=mlp(6, 5))))
