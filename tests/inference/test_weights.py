"""Log weights of particles: their mean, their path, and posteriors that are pushed through a bijection."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from replicas import gradients, replicated
from torch.distributions import Normal

from pyro_vae.inference import (
    AEVB,
    CIWAE,
    IWAE,
    MCEM,
    MIWAE,
    PIWAE,
    RWS,
    STL,
    Autoencoder,
    DReG,
    Inference,
    Renyi,
    ScoreFunction,
    WakeSleep,
)
from pyro_vae.inference.weights import log_mean_exp, path_log_prob

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)


@pytest.mark.parametrize("diagonal", [True, False])
def test_at_the_exact_posterior_every_log_weight_is_log_marginal(diagonal: bool) -> None:
    model = LinearGaussian.random(5, 2, diagonal=diagonal)
    vae = model.vae(model.exact_encoder() if diagonal else None)
    weights = vae.log_weights(X, num_particles=50)
    torch.testing.assert_close(weights, model.log_marginal(X).expand(50, 8), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dim", [0, 1])
def test_log_mean_exp_is_the_log_of_the_mean_also_of_weights_that_overflow(dim: int) -> None:
    log_weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = log_weights.exp().mean(dim).log()
    torch.testing.assert_close(log_mean_exp(log_weights, dim), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_mean_exp(log_weights + 5000, dim), expected + 5000, rtol=0, atol=1e-11)
    assert bool(log_mean_exp(torch.tensor([-torch.inf, 0.0])) == -torch.log(torch.tensor(2.0)))


def test_the_path_of_log_q_has_its_value_and_reaches_phi_through_z_alone() -> None:
    loc, scale = (t.double().requires_grad_() for t in (torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])))
    q = Normal(loc, scale)
    noise = torch.randn(4, 2).double()
    z = loc + scale * noise
    path = path_log_prob(q, z)  # type: ignore[arg-type]
    torch.testing.assert_close(path, q.log_prob(z))
    by_loc, by_scale = torch.autograd.grad(path.sum(), [loc, scale])
    slope = -(noise / scale).detach()  # of log q in z
    torch.testing.assert_close(by_loc, slope.sum(0))
    torch.testing.assert_close(by_scale, (slope * noise).sum(0))


@pytest.mark.parametrize("cache_size", [0, 1])
def test_the_path_of_log_q_holds_for_flows_whose_transform_has_parameters(cache_size: int) -> None:
    """Nothing but z moves: as under the density with all its parameters frozen."""
    loc, scale, a, b = (torch.tensor(v).double().requires_grad_() for v in ([0.3, -1.0], [0.5, 2.0], 0.7, 1.5))

    def flow(*parameters: torch.Tensor) -> dist.TorchDistribution:
        affine = dist.transforms.AffineTransform(parameters[2], parameters[3], cache_size=cache_size)
        base = dist.Normal(parameters[0], parameters[1]).to_event(1)
        return dist.TransformedDistribution(base, [affine, dist.transforms.SigmoidTransform(cache_size=cache_size)])

    q, frozen = flow(loc, scale, a, b), flow(*(p.detach() for p in (loc, scale, a, b)))
    z = q.rsample((4,))
    expected = torch.autograd.grad(frozen.log_prob(z.clone()).sum(), [loc, scale, a, b], retain_graph=True)
    ours = torch.autograd.grad(path_log_prob(q, z).sum(), [loc, scale, a, b])
    for mine, its in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "inference",
    [
        *(AEVB(3), STL(3), ScoreFunction("leave-one-out", 3)),
        *(IWAE(3), DReG(3), Renyi(0.5, 3), MIWAE(2, 3), PIWAE(2, 3), CIWAE(3)),
        *(WakeSleep(), RWS(3), MCEM(transitions=2).eval(), Autoencoder()),
    ],
    ids=repr,
)
def test_latents_pushed_through_a_bijection_have_the_gradients_of_the_latents_before_it(inference: Inference) -> None:
    """exp(z) in place of z is the same model: the same weights and gradients at the same noise.

    A distribution that remembers what it pushed must not lead a gradient round z.
    """
    plain, pushed = (gradients(inference, MODEL, MODEL.exact_encoder(1.6), X, 5, pushed=p) for p in (False, True))
    torch.testing.assert_close(pushed.both, plain.both, rtol=1e-9, atol=1e-9)


def test_the_copies_in_one_vae_are_the_vae_itself() -> None:
    """What the replicates of all these tests rest on."""
    encoder = MODEL.exact_encoder(1.6)
    many, one = replicated(MODEL, encoder, 4), MODEL.vae(encoder)
    z = torch.randn(3, 32, 2).double()
    torch.testing.assert_close(many.log_joint(z, X.repeat(4, 1)), one.log_joint(z, X.repeat(4, 1)))
    torch.testing.assert_close(many.encode(X.repeat(4, 1)).mean, one.encode(X.repeat(4, 1)).mean)
    torch.testing.assert_close(many.encode(X.repeat(4, 1)).stddev, one.encode(X.repeat(4, 1)).stddev)
    samples = gradients(AEVB(), MODEL, encoder, X, 4)
    assert len({float(row.sum()) for row in samples.both}) == 4
