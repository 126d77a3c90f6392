"""Monte Carlo EM: draws from the exact posterior, Fisher's identity, the step size, the optimum of log p(x)."""

from __future__ import annotations

import copy

import pyro.distributions as dist
import pytest
import torch
from fitting import fit_with
from linear_gaussian import Encoder, LinearGaussian
from replicas import all_losses, exact_gradients, gradients, replicated, seeded
from torch import Tensor
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Training, fit, mlp
from pyro_vae.engine import interpreted
from pyro_vae.engine.compilation.routine import enabled
from pyro_vae.errors import InputError
from pyro_vae.inference import MCEM
from pyro_vae.inference.hmc import hmc_transition, jittered
from pyro_vae.inference.latents import Latents

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)
ORACLE = MODEL.vae(MODEL.exact_encoder())


def adapted(inference: MCEM, steps: int = 0) -> MCEM:
    """With the step size that it takes on the oracle, or after steps of its own."""
    if not steps:
        inference.step_size.fill_(0.5)
    with seeded(0):
        for _ in range(steps):
            next(inference.losses(ORACLE, X.repeat(10, 1)))
    return inference


def draws(inference: MCEM, vae: VAE, n: int, seed: int = 1) -> Tensor:
    """n draws of the E-step for every datum, shape (n, 8, L): what it hands to the first update."""
    batch = Batch(X.repeat(n, 1))
    with seeded(seed):
        _, z = inference.phases[0].compute(vae, batch, None)
    return z.unflatten(0, (n, 8))


def test_the_draws_of_the_e_step_are_from_the_exact_posterior() -> None:
    inference, exact = adapted(MCEM(transitions=20)), MODEL.posterior(X)
    z = draws(inference, ORACLE, 1000)
    assert_mean(z, exact.mean)
    apart = z - exact.mean
    assert_mean(apart.unsqueeze(-1) * apart.unsqueeze(-2), exact.covariance_matrix)


def test_few_transitions_leave_them_near_the_prior_where_they_start() -> None:
    """The bias that the docstring tells of."""
    inference, exact = MCEM(transitions=1, leapfrog_steps=1), MODEL.posterior(X)
    off = (draws(inference, ORACLE, 500).mean(0) - exact.mean).norm()
    assert float(off) > 0.5 * float(exact.mean.norm())


def test_its_gradient_is_unbiased_for_that_of_log_marginal() -> None:
    """Fisher's identity; in theta alone."""
    inference = adapted(MCEM(transitions=15, updates=1)).eval()
    samples = gradients(inference, MODEL, MODEL.exact_encoder(), X, 1500)
    exact = exact_gradients(lambda model, _: model.log_marginal(X).mean(), MODEL, MODEL.exact_encoder())
    assert_mean(samples.theta, exact.theta)
    assert not bool(samples.phi.any())


@pytest.mark.parametrize(("start", "target"), [pytest.param(0.1, 0.9, marks=pytest.mark.slow), (10.0, 0.9), (0.1, 0.8)])
def test_the_step_size_adapts_to_the_target_acceptance(start: float, target: float) -> None:
    inference = MCEM(target_acceptance=target)
    inference.step_size.fill_(start)
    adapted(inference, 14)
    with seeded(2):
        latents = Latents(ORACLE, Batch(X.repeat(2000, 1)))
        u = latents.unconstrain(MODEL.posterior(X).sample((2000,)).flatten(0, 1))
        acceptance = hmc_transition(
            latents.log_joint, u, jittered(inference.step_size.double(), u.shape[:1]), 10
        ).acceptance
    assert abs(float(acceptance.mean()) - target) < 0.05


def test_a_step_size_that_is_not_adapted_explores_too_little() -> None:
    """Trajectories that are too short are all accepted, and go nowhere."""
    fixed, exact = MCEM(transitions=10).eval(), MODEL.posterior(X)
    fixed.step_size.fill_(5e-3)
    off = [
        float((draws(inference, ORACLE, 500).mean(0) - exact.mean).norm())
        for inference in (fixed, adapted(MCEM(transitions=10)).eval())
    ]
    assert off[0] > 5 * off[1]


def test_every_update_is_at_the_same_draw_and_sees_the_moved_parameters() -> None:
    vae, inference = MODEL.vae(MODEL.exact_encoder()), MCEM(updates=3)
    with seeded(0):
        losses = inference.losses(vae, X)
        assert float(next(losses).value.detach()) == 0.0  # the E-step
        first = float(next(losses).value.detach())
        assert float(next(losses).value.detach()) == first
        with torch.no_grad():
            vae.likelihood.head.bias += 1.0
        assert float(next(losses).value.detach()) > first + 0.1
        assert next(losses, None) is None
    assert [phase.moves for phase in inference.phases] == [set(), {"theta"}, {"theta"}, {"theta"}]


def test_training_adapts_and_evaluation_does_not() -> None:
    inference = MCEM()
    before = float(inference.step_size)
    all_losses(inference.eval(), ORACLE, X)
    assert float(inference.step_size) == before
    all_losses(inference.train(), ORACLE, X)
    assert float(inference.step_size) != before
    restored = MCEM()
    restored.load_state_dict(inference.state_dict())
    assert torch.equal(restored.step_size, inference.step_size)


@pytest.mark.parametrize("compiled", ["E-step", "M-step", pytest.param("both", marks=pytest.mark.slow)])
def test_compiled_training_is_the_uncompiled(compiled: str) -> None:
    """Losses, parameters and the step size after 20 steps; planning the M-steps leaves the step size alone."""
    results = []
    for e, m in ((False, False), (compiled != "M-step", compiled != "E-step")):
        vae, inference = MODEL.vae(MODEL.exact_encoder()), MCEM(3, 4, updates=2).double()
        with interpreted(), enabled(e):
            fit(
                *(vae, X, inference),
                Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.02), steps=20, batch_size=4, compile=m),
            )
        results.append([*vae.parameters(), inference.step_size])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_constrained_prior_is_moved_through_its_bijection() -> None:
    """exp(z) in place of z: the same model, so the same draws at the same noise."""
    plain, pushed = (replicated(MODEL, MODEL.exact_encoder(), 1, pushed) for pushed in (False, True))
    inference = MCEM(transitions=3)
    one, other = draws(copy.deepcopy(inference), plain, 3), draws(copy.deepcopy(inference), pushed, 3)
    torch.testing.assert_close(one.exp(), other, rtol=1e-9, atol=1e-9)


def test_it_has_neither_a_bound_nor_a_posterior() -> None:
    assert all(loss.bound is None for loss in all_losses(MCEM(), ORACLE, X))
    assert not MCEM.trains_posterior
    assert not MCEM.has_bound


def test_discrete_latents_are_refused() -> None:
    prior = Conditional(dist.Bernoulli, (2,), probs=Fixed(0.5))
    likelihood = Conditional(dist.Bernoulli, (3,), given=mlp(2))
    vae = VAE(prior, likelihood, Conditional(dist.Bernoulli, (2,), given=mlp(3)))
    with pytest.raises(InputError, match=r"^MCEM: Hamiltonian .*`Bernoulli` is discrete; use rws, wake-sleep or score"):
        MCEM().check(vae)


@pytest.mark.parametrize("name", ["transitions", "leapfrog_steps", "updates"])
@pytest.mark.parametrize("bad", [0, 1.5])
def test_counts_are_positive_integers(name: str, bad: object) -> None:
    with pytest.raises(InputError, match=rf"^MCEM: `{name}` is a positive integer, got"):
        MCEM(**{name: bad})


@pytest.mark.parametrize("bad", [0.0, 1.0, "0.9"])
def test_the_target_is_a_probability_between_0_and_1(bad: object) -> None:
    with pytest.raises(InputError, match=r"^MCEM: `target_acceptance` is a number from 0.01 to 0.99, got"):
        MCEM(target_acceptance=bad)  # type: ignore[arg-type]


def test_an_encoder_is_only_looked_at_where_it_would_be_shared() -> None:
    """Whatever q is, the draws are the same."""
    other = Encoder(torch.zeros(2, 5).double(), torch.ones(2).double(), torch.ones(2).double())
    assert torch.equal(draws(MCEM(), ORACLE, 3), draws(MCEM(), MODEL.vae(other), 3))


def sized(n: int) -> VAE:
    """The oracle, declared for n data."""
    return VAE(ORACLE.prior, ORACLE.likelihood, ORACLE.posterior, size=n)


def visited(inference: MCEM, vae: VAE, x: Tensor, steps: int, batch_size: int, **options: object) -> MCEM:
    """After so many steps that leave theta where it is."""
    fit_with(
        vae, x, inference, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), steps=steps, batch_size=batch_size, **options
    )
    return inference


def test_persistent_chains_reach_the_posterior_by_one_transition_a_visit() -> None:
    """From the prior, at the same step size, one transition does not."""
    n, exact = 500, MODEL.posterior(X)
    inference = visited(MCEM(1, 5, 1, persistent=True), sized(8 * n), X.repeat(n, 1), 80, 2000, compile=False)
    assert inference.chains is not None
    z = inference.chains.unflatten(0, (n, 8))
    assert_mean(z, exact.mean)
    apart = z - exact.mean
    assert_mean(apart.unsqueeze(-1) * apart.unsqueeze(-2), exact.covariance_matrix)
    fresh = MCEM(1, 5, 1)
    fresh.step_size.copy_(inference.step_size)
    off = (draws(fresh, ORACLE, n).mean(0) - exact.mean).norm()
    assert float(off) > 5 * float((z.mean(0) - exact.mean).norm())


def test_a_visit_moves_the_chains_of_the_minibatch_alone() -> None:
    inference = visited(MCEM(2, 3, 1, persistent=True), sized(8), X, 1, 3, compile=False)
    first = inference.chains
    assert first is not None
    assert int((~first.isnan()).all(-1).sum()) == 3
    before = first.clone()
    inference.train().visit(torch.tensor([1, 6]))
    with seeded(0):
        _, z = inference.phases[0].compute(sized(8), Batch(X[[1, 6]]), None)
    assert torch.equal(first[[1, 6]], z)
    rest = [0, 2, 3, 4, 5, 7]
    assert torch.equal(first[rest].nan_to_num(7.0), before[rest].nan_to_num(7.0))


@pytest.mark.parametrize("compiled", ["E-step", "M-step"])
def test_compiled_persistent_chains_are_the_uncompiled(compiled: str) -> None:
    """Over several epochs with a short last minibatch; planning a step leaves the chains alone."""
    results = []
    for e, m in ((False, False), (compiled == "E-step", compiled == "M-step")):
        inference = MCEM(1, 4, 2, persistent=True).double()
        with interpreted(), enabled(e):
            visited(inference, sized(8), X, 12, 3, compile=m)
        assert inference.chains is not None
        results.append(inference.chains)
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


def test_persistent_chains_are_saved_and_go_on(tmp_path) -> None:
    whole = visited(MCEM(1, 4, 2, persistent=True), sized(8), X, 9, 3, compile=False)
    path = tmp_path / "run.checkpoint"
    visited(MCEM(1, 4, 2, persistent=True), sized(8), X, 4, 3, compile=False, checkpoint=path)
    resumed = visited(MCEM(1, 4, 2, persistent=True), sized(8), X, 9, 3, compile=False, checkpoint=path)
    restored = MCEM(1, 4, 2, persistent=True)
    restored.load_state_dict(resumed.state_dict())
    for inference in (resumed, restored):
        assert inference.chains is not None
        assert torch.equal(inference.chains, whole.chains)
        assert torch.equal(inference.step_size, whole.step_size)


def test_persistent_chains_need_to_know_the_data() -> None:
    inference = MCEM(persistent=True)
    with pytest.raises(InputError, match=r"^MCEM: persistent chains .* declare their number, VAE\(..., size=N\)"):
        inference.check(ORACLE)
    inference.check(sized(8))
    with pytest.raises(InputError, match=r"^MCEM: persistent chains need to know which .* train by `fit`"):
        all_losses(inference, sized(8), X)


def test_outside_fit_persistent_chains_do_not_know_the_data_after_it_either():
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae = VAE(prior, Conditional(dist.Normal, (3,), given=mlp(2, 4), scale=Fixed(1.0)), size=20)
    inference, x = MCEM(transitions=1, updates=1, persistent=True), torch.randn(20, 3)
    fit(
        vae, x, inference, Training(optimizer=lambda p: torch.optim.SGD(p, 1e-3), steps=3, batch_size=10, compile=False)
    )
    before = inference.chains.clone()
    with pytest.raises(InputError, match="persistent chains need to know which of the data"):
        next(inference.losses(vae, Batch(x[:10])))
    torch.testing.assert_close(inference.chains, before, equal_nan=True)
