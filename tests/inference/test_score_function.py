"""The score-function gradient: unbiased under every baseline, and why one would rather not use it."""

from __future__ import annotations

import copy

import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from replicas import all_losses, exact_gradients, gradients, variance
from torch import Tensor
from torch.distributions import Normal
from z_test import assert_mean

from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, ScoreFunction

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)
WIDE = MODEL.exact_encoder(1.6)


def elbo(model: LinearGaussian, encoder: Encoder) -> Tensor:
    return model.elbo(X, *encoder(X)).mean()


def warm(num_particles: int = 1) -> ScoreFunction:
    """The running baseline as it is after many steps."""
    inference, vae = ScoreFunction("running", num_particles), MODEL.vae(WIDE)
    for seed in range(50):
        all_losses(inference, vae, X.repeat(20, 1), seed)
    return inference.eval()


MADE = {
    "none": ScoreFunction("none", 1),
    "none, 4 particles": ScoreFunction("none", 4),
    "running": warm(),
    "leave-one-out, 2 particles": ScoreFunction("leave-one-out", 2),
    "leave-one-out": ScoreFunction("leave-one-out", 4),
}


@pytest.mark.parametrize("scale", [0.6, 1.6])
@pytest.mark.parametrize("name", MADE)
def test_the_gradient_is_unbiased_for_that_of_the_exact_elbo(name: str, scale: float) -> None:
    encoder = MODEL.exact_encoder(scale)
    samples = gradients(MADE[name], MODEL, encoder, X, 8000).both
    assert_mean(samples, exact_gradients(elbo, MODEL, encoder).both)


@pytest.mark.parametrize("baseline", ["none", "leave-one-out"])
def test_the_gradient_is_the_formula_written_by_hand(baseline: str) -> None:
    k, parameters = 3, [t.clone().requires_grad_() for t in (WIDE.V, WIDE.c, WIDE.t.log())]
    loc, scale = Encoder(parameters[0], parameters[1], parameters[2].exp())(X)
    torch.manual_seed(3)
    z = (loc + scale * Normal(torch.zeros(k, 8, 2).double(), 1.0).sample()).detach()
    log_q = Normal(loc, scale).log_prob(z).sum(-1)
    log_joint = Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(z @ MODEL.W.T + MODEL.b, MODEL.s).log_prob(X).sum(-1)
    log_w = (log_joint - log_q).detach()
    rest = [(log_w[1] + log_w[2]) / 2, (log_w[0] + log_w[2]) / 2, (log_w[0] + log_w[1]) / 2]
    signal = log_w if baseline == "none" else log_w - torch.stack(rest)
    by_hand = torch.autograd.grad((signal * log_q).mean(), parameters)
    ours = gradients(ScoreFunction(baseline, k), MODEL, WIDE, X, 1, seed=3).phi[0]
    torch.testing.assert_close(ours, torch.cat([g.flatten() for g in by_hand]), rtol=0, atol=1e-10)


def test_it_has_more_than_ten_times_the_variance_of_the_pathwise_gradient() -> None:
    """Trace of the covariance over all phi, with as many particles each."""
    for k in (1, 4):
        score, pathwise = (gradients(i, MODEL, WIDE, X, 8000) for i in (ScoreFunction("none", k), AEVB(k)))
        assert variance(score.phi) > 10 * variance(pathwise.phi)
        torch.testing.assert_close(score.theta, pathwise.theta, rtol=0, atol=1e-10)  # at the same noise


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.6])
def test_baselines_take_variance_away(scale: float) -> None:
    encoder = MODEL.exact_encoder(scale)

    def of(inference: ScoreFunction) -> float:
        return variance(gradients(inference, MODEL, encoder, X).phi)

    assert of(ScoreFunction("leave-one-out", 4)) < of(ScoreFunction("none", 4)) / 5
    assert of(warm()) < of(ScoreFunction("none", 1)) / 3


def test_the_running_baseline_is_the_moving_mean_of_the_elbo_and_starts_at_its_first_value() -> None:
    inference, vae = ScoreFunction("running", 2).double(), MODEL.vae(WIDE)
    seen: list[float] = []
    for seed in range(5):
        expected = sum(0.9 ** (seed - 1 - i) * e for i, e in enumerate(seen)) / sum(0.9**i for i in range(seed) or [0])
        assert abs(float(inference._baseline(torch.zeros(2, 8))) - (expected if seen else 0.0)) < 1e-12
        seen.append(float(all_losses(inference, vae, X, seed)[0].bound))
    state = copy.deepcopy(inference.state_dict())
    all_losses(inference.eval(), vae, X)
    assert inference.state_dict() == state  # evaluation remembers nothing


def test_the_running_baseline_goes_with_the_state_of_the_algorithm() -> None:
    restored = ScoreFunction("running", 1)
    restored.load_state_dict(warm().state_dict())
    losses = [all_losses(i.eval(), MODEL.vae(WIDE), X)[0] for i in (warm(), restored, copy.deepcopy(restored))]
    assert len({float(loss.value.detach()) for loss in losses}) == 1
    assert abs(float(restored._baseline(torch.zeros(1, 8))) - float(elbo(MODEL, WIDE))) < 0.5


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match=r'^ScoreFunction: `baseline` is one of "none", "running", "leave-one-out"'):
        ScoreFunction("mean")
    with pytest.raises(InputError, match=r"leave-one-out' needs `num_particles` of at least 2.*baseline='running'"):
        ScoreFunction("leave-one-out", 1)
