"""Full variational Bayes: its bound and gradient against closed forms, and a posterior over theta that is exact."""

from __future__ import annotations

import copy
import functools

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from replicas import all_losses, seeded
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed, Training, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import VB

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)
WIDE = MODEL.exact_encoder(1.6)
N = 40


def made(scale: float = 0.2, **options: float) -> tuple[VB, VAE]:
    """With W and b unknown and s known, so that all has a closed form."""
    inference, vae = VB(initial_scale=scale, **options), MODEL.vae(WIDE, size=N, fixed_scale=True)
    inference.check(vae)
    return inference, vae


def exact(w: Tensor, b: Tensor, log_w: Tensor, log_b: Tensor, prior: float = 1.0) -> tuple[Tensor, Tensor]:
    """The expected mean ELBO under q(theta), and KL(q(theta) || p(theta)); the arguments are means and log scales."""
    loc, scale = WIDE(X)
    spread = w.square() @ scale.square() + (2 * log_b).exp()
    squares = (X - loc @ w.T - b).square() + spread + (loc.square() + scale.square()) @ (2 * log_w).exp().T
    log_likelihood = -(squares / (2 * MODEL.s.square()) + MODEL.s.log() + torch.tensor(2 * torch.pi).log() / 2)
    kl_z = (loc.square() + scale.square() - 1) / 2 - scale.log()
    p = Normal(torch.zeros(()).double(), prior)
    kl = sum(kl_divergence(Normal(m, s.exp()), p).sum() for m, s in ((w, log_w), (b, log_b)))
    return (log_likelihood.sum(-1) - kl_z.sum(-1)).mean(), torch.as_tensor(kl)


def test_the_kl_of_theta_is_the_closed_form_over_n() -> None:
    inference, vae = made(0.3, prior_scale=0.7)
    (loss,) = all_losses(inference, vae, X)
    q = torch.cat([p.flatten() for p in vae.theta.values()]).detach()
    kl = kl_divergence(Normal(q, 0.3), Normal(torch.zeros_like(q), 0.7)).sum() / N
    torch.testing.assert_close(loss.value.detach() + loss.bound, kl, rtol=0, atol=1e-10)
    assert abs(float(inference.kl_per_datum) - float(kl)) < 1e-5
    assert f"is {float(kl):.2f} nats per datum" in inference.remark()
    other = MODEL.vae(WIDE, size=1000 * N, fixed_scale=True)
    (scaled,) = all_losses(inference, other, X)
    assert torch.equal(scaled.bound, loss.bound)  # the data's part is of a datum, whatever N
    torch.testing.assert_close(scaled.value.detach() + scaled.bound, kl / 1000, rtol=0, atol=1e-10)


def test_bound_and_gradient_are_unbiased_for_the_closed_form() -> None:
    """In the means, which are the VAE's own parameters, and in the log scales, which are the algorithm's."""
    inference, vae = made(0.2, num_particles=8)
    names = ["likelihood.head.weight", "likelihood.head.bias"]
    means = [vae.theta[name] for name in names]
    scales = [inference.log_scales[name.replace(".", "/")] for name in names]
    assert len(vae.theta) == len(inference.log_scales) == 2
    elbo, kl = exact(*means, *scales)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(elbo - kl / N, [*means, *scales])])
    bounds, samples = [], []
    with seeded(0):
        for _ in range(1500):
            loss = next(inference.losses(vae, X))
            slopes = torch.autograd.grad(-loss.value, [*means, *scales])
            bounds.append(loss.bound)
            samples.append(torch.cat([g.flatten() for g in slopes]))
    assert_mean(torch.stack(bounds), elbo)
    assert_mean(torch.stack(samples), expected)


def test_it_finds_the_exact_posterior_of_a_mean() -> None:
    r"""x ~ N(b, s^2) of unknown b ~ N(0, p^2): N(b; v sum(x) / s^2, v) with 1/v = 1/p^2 + n/s^2."""
    zero, one = torch.zeros(3, 1).double(), torch.ones(3).double()
    model = LinearGaussian(zero, zero[:, 0], 2 * one)
    vae = model.vae(Encoder(zero.T, zero[:1, 0], one[:1]), fixed_scale=True, size=6)
    vae.likelihood.head.weight.requires_grad_(False)  # frozen at 0: what is frozen is known
    vae.posterior.requires_grad_(False)
    torch.manual_seed(0)
    x = 1.5 + 2 * torch.randn(6, 3).double()
    inference, steps = VB(prior_scale=1.2), 800
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    fit(vae, x, inference, Training(optimizer=adam, steps=steps, batch_size=6, schedule=lambda i: 1 - i / steps))
    variance = 1 / (1 / 1.2**2 + 6 / 4)
    (log_scale,) = inference.log_scales.values()
    torch.testing.assert_close(log_scale.detach().exp(), variance**0.5 * one, rtol=0.1, atol=0)
    torch.testing.assert_close(vae.likelihood.head.bias.detach(), variance * x.sum(0) / 4, rtol=0, atol=0.08)
    assert not bool(vae.likelihood.head.weight.any())


def test_the_state_goes_round_also_into_one_that_has_seen_no_vae() -> None:
    inference, vae = made()
    with torch.no_grad():
        for p in inference.log_scales.values():
            p += torch.randn_like(p)
    expected = all_losses(inference, vae, X)[0].value
    restored = VB()
    restored.load_state_dict(inference.state_dict())
    for other in (restored, copy.deepcopy(inference)):
        assert torch.equal(all_losses(other, vae, X)[0].value, expected)
    inference.check(vae)  # once more keeps what is there
    assert torch.equal(all_losses(inference, vae, X)[0].value, expected)


def test_theta_is_drawn_anew_each_time_and_the_vae_keeps_its_mean() -> None:
    inference, vae = made(0.5)
    before = {name: p.detach().clone() for name, p in vae.theta.items()}
    first, second = (all_losses(inference, vae, X, seed)[0].bound for seed in (0, 1))
    assert float((first - second).abs()) > 0.1
    assert all(torch.equal(vae.theta[name], p) for name, p in before.items())


def test_a_vae_of_another_shape_is_refused() -> None:
    inference, _ = made()
    other = LinearGaussian.random(4, 2)
    with pytest.raises(InputError, match=r"^VB: was prepared for another VAE; make a new VB\(\)"):
        inference.check(other.vae(other.exact_encoder(), size=N, fixed_scale=True))


@pytest.mark.parametrize("name", ["prior_scale", "initial_scale"])
@pytest.mark.parametrize("bad", [0.0, -1.0, "1"])
def test_scales_are_positive(name: str, bad: object) -> None:
    with pytest.raises(InputError, match=rf"^VB: `{name}` is a number of at least 1e-06, got"):
        VB(**{name: bad})  # type: ignore[arg-type]


class Twice(nn.Module):
    """A likelihood that holds one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = self.a
        self.out = Conditional(dist.Normal, (5,), given=mlp(2), scale=Fixed(1.0))

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return self.out(self.b(self.a(z).tanh()))


def test_a_layer_with_two_names_is_drawn_once_and_put_back() -> None:
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae, inference = VAE(prior, Twice(), Conditional(dist.Normal, (2,), given=mlp(5)), size=20), VB()
    before = dict(vae.named_parameters())
    fit(
        vae,
        torch.randn(20, 5),
        inference,
        Training(optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), steps=3, batch_size=10),
    )
    assert list(dict(vae.named_parameters())) == list(before)
    assert all(parameter is before[name] for name, parameter in vae.named_parameters())
    assert vae.likelihood.a.weight is vae.likelihood.b.weight


def test_a_draw_has_a_theta_of_its_own_and_the_same_posterior() -> None:
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae, inference = VAE(prior, Twice(), Conditional(dist.Normal, (2,), given=mlp(5)), size=20), VB(initial_scale=0.1)
    draws = [inference.draw(vae) for _ in range(400)]
    assert all(draw.likelihood.a.weight is draw.likelihood.b.weight for draw in draws)
    drawn, mean = (
        torch.stack([torch.cat([p.flatten() for p in each.theta.values()]) for each in vaes]).detach()
        for vaes in (draws, [vae])
    )
    assert_mean(drawn, mean[0])
    squares = (drawn - mean).square()
    assert_mean(squares, torch.full_like(mean[0], 0.01))
    assert_mean(squares.mean(1), torch.tensor(0.01))  # of all together, by a sharper test
    assert all(torch.equal(p, q) for p, q in zip(draws[0].phi.values(), vae.phi.values(), strict=True))
