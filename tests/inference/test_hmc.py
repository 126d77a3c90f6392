"""Hamiltonian Monte Carlo: what it leaves invariant, what it adapts to, and the densities that it moves on."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import Tensor
from torch.distributions import constraints
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, mlp
from pyro_vae.engine import interpreted
from pyro_vae.engine.compilation.routine import Terms, enabled
from pyro_vae.errors import InputError
from pyro_vae.inference.hmc import Start, Tempered, adapted, hmc_transition, jittered
from pyro_vae.inference.latents import Latents

MODEL = LinearGaussian.random(5, 2, diagonal=False)
X = MODEL.sample(4)
PRIORS = {
    "Normal": lambda: Conditional(dist.Normal, (2,), loc=Fixed(0.5), scale=Fixed(2.0)),
    "Gamma": lambda: Conditional(dist.Gamma, (2,), concentration=Fixed(2.0), rate=Fixed(1.5)),
    "Beta": lambda: Conditional(dist.Beta, (2,), concentration1=Fixed(2.0), concentration0=Fixed(1.3)),
    "Dirichlet": lambda: Conditional(dist.Dirichlet, (3,), concentration=Fixed(torch.tensor([2.0, 1.0, 3.0]))),
}


def latents_of(vae: VAE, data: Tensor | Batch, caller: str = "HMC") -> Latents:
    return Latents(vae, vae.check(data), caller)


def vae_with(prior: str) -> VAE:
    p = PRIORS[prior]()
    return VAE(p, Conditional(dist.Bernoulli, (6,), given=mlp(p().event_shape.numel(), 4))).double()


def moments(u: Tensor) -> Tensor:
    """First and second moments of each of the samples, shape ``(n, L + L * L)``."""
    return torch.cat([u, (u.unsqueeze(-1) * u.unsqueeze(-2)).flatten(-2)], dim=-1)


# ------------------------------------------------------------------ transitions


@pytest.mark.parametrize(("step", "num_leapfrog"), [(1.7, 4), (1.8, 1), (1.6, 10)])
def test_a_transition_leaves_the_exact_posterior_invariant(step: float, num_leapfrog: int) -> None:
    """From exact draws, with steps (in units of the smallest scale) so large that the rejections matter."""
    latents, posterior, n = latents_of(MODEL.vae(), X), MODEL.posterior(X), 20_000
    u, acceptances = posterior.sample((n,)), []
    size = step * torch.linalg.eigvalsh(posterior.covariance_matrix).min().sqrt()
    for _ in range(4):
        u, acceptance = hmc_transition(latents.log_joint, u, size, num_leapfrog)
        assert acceptance.shape == (n, 4)
        acceptances.append(acceptance.mean())
    assert 0.3 < torch.stack(acceptances).mean() < 0.9
    second = posterior.covariance_matrix + posterior.mean.unsqueeze(-1) * posterior.mean.unsqueeze(-2)
    assert_mean(moments(u), torch.cat([posterior.mean, second.flatten(-2)], dim=-1))


@pytest.mark.parametrize("prior", PRIORS)
def test_a_transition_leaves_a_prior_on_its_support_invariant(prior: str) -> None:
    latents, n = latents_of(vae_with(prior), torch.ones(1, 6)), 20_000
    u = latents.draw_prior(n)
    for _ in range(5):
        u, acceptance = hmc_transition(latents.log_prior, u, torch.tensor(1.1 if prior != "Normal" else 3.0), 2)
    assert acceptance.mean() < 0.97
    z, p = latents.constrain(u), latents.prior
    assert_mean(torch.cat([z, (z - p.mean) ** 2], dim=-1), torch.cat([p.mean, p.variance], dim=-1).unsqueeze(0))


def test_chains_find_the_posterior_from_elsewhere() -> None:
    latents, posterior = latents_of(MODEL.vae(), X), MODEL.posterior(X)
    u = torch.full((3000, 4, 2), 3.0, dtype=torch.float64)
    for _ in range(60):
        u = hmc_transition(latents.log_joint, u, jittered(torch.full((4,), 0.4).double(), u.shape[:2]), 5).position
    assert_mean(u, posterior.mean)


def test_a_scalar_position_and_every_chains_own_step() -> None:
    """Chains with a step of nearly 0 stay nearly where they are; the others do not."""
    u = torch.zeros(2, 500)
    new, acceptance = hmc_transition(lambda at: -at.square() / 2, u, torch.tensor([[1e-6], [0.8]]), 3, event_dim=0)
    assert new.shape == acceptance.shape == (2, 500)
    assert new[0].abs().max() < 1e-4 < new[1].std()


def test_the_energy_error_is_of_second_order_in_the_step() -> None:
    """Over trajectories of one length, from the same momenta."""
    errors = []
    for num_leapfrog in (10, 20):
        torch.manual_seed(1)
        step = torch.tensor(0.2 / num_leapfrog)
        moved = hmc_transition(lambda at: -at.pow(4).sum(-1), torch.ones(200, 2).double(), step, num_leapfrog)
        errors.append(float((1 - moved.acceptance).mean()))
    assert 3.7 < errors[0] / errors[1] < 4.3


def test_a_trajectory_that_overflows_is_rejected_and_not_validated() -> None:
    """Under Pyro's validation, which would raise for a z that is nan."""
    for prior in PRIORS:
        latents = latents_of(vae_with(prior).float(), torch.ones(3, 6))
        u = latents.draw_prior(5)
        new, acceptance = hmc_transition(latents.log_joint, u, torch.tensor(1e30), 3)
        assert torch.equal(new, u)
        assert not acceptance.any()


# ------------------------------------------------------------------ between two densities


@pytest.mark.parametrize(
    ("start", "beta"),
    [
        *(("prior", 0.3), ("encoder", 0.0), ("encoder", 1.0)),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("prior", 0.0), ("prior", 1.0), ("encoder", 0.3)]),
    ],
)
def test_a_tempered_transition_leaves_its_density_invariant_and_tells_the_ratio(start: Start, beta: float) -> None:
    """Densities of a linear-Gaussian VAE: Normal at every beta, from its precisions."""
    encoder = LinearGaussian.random(5, 2).exact_encoder(1.5)
    latents, n = latents_of(MODEL.vae(encoder), X), 20_000
    path, posterior = Tempered(latents, start), MODEL.posterior(X)
    base = latents.vae.encode(X) if start == "encoder" else dist.Normal(torch.zeros(4, 2).double(), 1.0).to_event(1)
    first = (1 / base.variance).diag_embed()
    precision = (1 - beta) * first + beta * posterior.precision_matrix
    shift = (1 - beta) * base.mean / base.variance
    shift = shift + beta * (posterior.precision_matrix @ posterior.mean.unsqueeze(-1)).squeeze(-1)
    exact = torch.distributions.MultivariateNormal(
        torch.linalg.solve(precision, shift), precision_matrix=(precision + precision.mT) / 2
    )
    u = exact.sample((n,))
    size = 1.6 * torch.linalg.eigvalsh(exact.covariance_matrix).min().sqrt()
    for _ in range(3):
        u, ratio, acceptance = path.transition(u, beta, size, 3)
        expected = latents.log_joint(u) - path.log_base(u)
        torch.testing.assert_close(ratio, expected, rtol=0, atol=1e-10)
    assert 0.3 < acceptance.mean() < 0.99
    second = exact.covariance_matrix + exact.mean.unsqueeze(-1) * exact.mean.unsqueeze(-2)
    assert_mean(moments(u), torch.cat([exact.mean, second.flatten(-2)], dim=-1))


def same_transitions(path: Tempered, terms: Terms, n: int = 3) -> None:
    """Asserts that compiled transitions are the uncompiled ones at the same noise, one by one from the same place."""
    u = path.draw(3)
    step = torch.full((u.shape[1],), 0.4, dtype=u.dtype)
    for i in range(n):
        results = []
        for mode in (False, True):
            torch.manual_seed(i)
            with enabled(mode) as block:
                results.append(path.transition(u, i / (n - 1), jittered(step, u.shape[:2]), 4))
                terms.costs += block.costs
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        u = results[0][0]


STARTS = {"Normal": "prior", "Gamma": "encoder", "Beta": "prior", "Dirichlet": "encoder"}


@pytest.mark.parametrize(
    ("prior", "start"),
    [
        pytest.param(prior, start, marks=() if STARTS[prior] == start else pytest.mark.slow)
        for prior in PRIORS
        for start in ("prior", "encoder")
    ],
)
def test_compiled_transitions_are_the_uncompiled_ones(prior: str, start: Start) -> None:
    """At the present parameters and for each batch, by one program."""
    vae, terms = vae_with(prior), Terms()
    with interpreted():
        for x in (torch.ones(3, 6), torch.eye(6)[:3]):
            same_transitions(Tempered(latents_of(vae, x), start), terms)
            with torch.no_grad():
                vae.likelihood.head.bias += 1.0
    assert len(terms.costs) == 1


def test_compiled_transitions_heed_mask_and_context() -> None:
    vae = VAE(
        Conditional(dist.Normal, (2,), given=mlp(1), scale=Fixed(1.0)),
        Conditional(dist.Normal, (6,), given=mlp(3), scale=Fixed(1.0)),
        context_features=1,
    ).double()
    batch = Batch(torch.randn(3, 6).double(), torch.randn(3, 1).double(), torch.rand(3, 6) < 0.5)
    with interpreted():
        same_transitions(Tempered(latents_of(vae, batch), "encoder"), Terms())


# ------------------------------------------------------------------ adaptation


@pytest.mark.parametrize(
    ("first", "target"),
    [
        *((1e-3, 0.8), (30.0, 0.6)),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(1e-3, 0.6), (30.0, 0.8)]),
    ],
)
def test_adaptation_reaches_its_target_for_each_datum(target: float, first: float) -> None:
    latents = latents_of(MODEL.vae(), X)
    u, step, late = latents.draw_prior(50), torch.full((4,), first).double(), []
    for i in range(150):
        u, acceptance = hmc_transition(latents.log_joint, u, step, 5)
        step = adapted(step, acceptance.mean(0), target)
        late += [acceptance.mean(0)] if i >= 50 else []
    assert (torch.stack(late).mean(0) - target).abs().max() < 0.03
    assert ((step > 0.05) & (step < 3)).all()


def test_one_adaptation_by_hand() -> None:
    moved = adapted(torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 0.5]).double(), 0.8, rate=0.5)
    torch.testing.assert_close(moved, torch.tensor([math.exp(0.1), 2 * math.exp(-0.15)]).double())


def test_jitter_is_drawn_for_each_chain_around_the_step() -> None:
    step = jittered(torch.tensor([1.0, 2.0]), torch.Size([20_000, 2]))
    assert_mean(step, torch.tensor([1.0, 2.0]))
    assert step[:, 0].min() > 0.7 - 1e-6
    assert step[:, 1].max() < 2.6 + 1e-6
    assert_mean((step - torch.tensor([1.0, 2.0])) ** 2, torch.tensor([0.03, 0.12]))  # of a uniform density


# ------------------------------------------------------------------ densities


def test_joint_minus_posterior_is_log_p_of_x() -> None:
    latents = latents_of(MODEL.vae(), X)
    u = torch.randn(3, 4, 2).double()
    exact = MODEL.log_marginal(X).expand(3, 4)
    torch.testing.assert_close(latents.log_joint(u) - latents.log_posterior(u), exact, rtol=0, atol=1e-10)
    assert latents.draw_posterior(3).shape == (3, 4, 2)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_jacobian_is_that_of_the_bijection(prior: str) -> None:
    latents = latents_of(vae_with(prior), torch.ones(3, 6))
    u = latents.draw_prior(2)
    assert u.shape == (2, 3, 2)
    z = latents.constrain(u)
    torch.testing.assert_close(latents.unconstrain(z), u)

    def jacobian(at: Tensor) -> Tensor:
        full = torch.autograd.functional.jacobian(lambda v: latents.constrain(v)[..., :2], at)
        return torch.linalg.slogdet(full).logabsdet

    exact = torch.stack([jacobian(at) for at in u.flatten(0, 1)]).reshape(2, 3)
    torch.testing.assert_close(latents.log_jacobian(u).expand(2, 3), exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(latents.log_prior(u), latents.prior.log_prob(z) + exact, rtol=0, atol=1e-10)


def test_mask_and_context_enter_the_densities() -> None:
    vae = VAE(
        Conditional(dist.Normal, (2,), given=mlp(1), scale=Fixed(1.0)),
        Conditional(dist.Normal, (6,), given=mlp(3), scale=Fixed(1.0)),
        context_features=1,
    ).double()
    batch = Batch(torch.randn(3, 6), torch.randn(3, 1), torch.rand(3, 6) < 0.5).map(
        lambda field: field if field.dtype == torch.bool else field.double()
    )
    latents = latents_of(vae, batch)
    u = latents.draw_prior(4)
    assert u.shape == (4, 3, 2)
    p, x_given_z = vae.prior(batch.context), vae.decode(u, batch)
    cells = x_given_z.base_dist.log_prob(batch.x) * batch.mask
    torch.testing.assert_close(latents.log_joint(u), p.log_prob(u) + cells.sum(-1), rtol=0, atol=1e-10)


class Ring(constraints.Constraint):
    """A support onto which no bijection is known."""

    def check(self, value: Tensor) -> Tensor:
        return value == value


class OnTheRing(dist.Normal):
    """A family with that support."""

    support = Ring()


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Conditional(dist.Bernoulli, (2,), logits=Fixed(0.0)), "needs the gradient in z, and the prior `Bernoulli`"),
        (Conditional(OnTheRing, (2,), loc=Fixed(0.0), scale=Fixed(1.0)), "no bijection onto the support"),
    ],
)
def test_latents_that_cannot_be_moved_are_refused(prior: Conditional, message: str) -> None:
    posterior = Conditional(prior.family, (2,), given=mlp(6))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2)), posterior)
    with pytest.raises(InputError, match=f"the caller: .*{message}"):
        latents_of(vae, torch.ones(1, 6), "the caller")
