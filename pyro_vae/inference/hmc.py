r"""Hamiltonian Monte Carlo for the latents of many data at once, in the unconstrained space of the prior's support."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.engine.compilation.routine import repeated, routine
from pyro_vae.inference.latents import Latents
from pyro_vae.vae.latent_variable_model import LatentVariableModel

LogDensity = Callable[[Tensor], Tensor]
Start = Literal["prior", "encoder"]

# Change of a log step size in one adaptation, for each unit of acceptance above its target.
_RATE = 0.5
# A little above 0.65, the optimum in many dimensions (Beskos et al., 2013): in few, 0.65 is nearly unstable.
TARGET_ACCEPTANCE = 0.75
# First step size of an adaptation, and largest relative change of the step size drawn for a trajectory.
FIRST_STEP, _JITTER = 0.5, 0.3


class Transition(NamedTuple):
    """One transition of every chain.

    Attributes:
        position: Shape ``(..., *shape)``.
        acceptance: Acceptance probability of each chain's proposal, shape ``(...)``.
    """

    position: Tensor
    acceptance: Tensor


class Tempered:
    r"""The densities :math:`p_0(u)^{1-\beta} p(x, u)^\beta` of the latents of a batch, and transitions under them.

    At :math:`\beta = 1` the density is that of the exact posterior, for any :math:`p_0`. Within an
    `pyro_vae.engine.compilation.routine.enabled` block a leapfrog step is one compiled program.

    Arguments:
        latents: Latents of the batch.
        start: :math:`p_0`: ``"prior"``, or ``"encoder"`` for q(u|x).
    """

    def __init__(self, latents: Latents, start: Start = "prior") -> None:
        self.latents, self.start = latents, start
        self.q = None
        if start == "encoder":
            with pyro.validation_enabled(False):
                self.q = latents.vae.posterior_given(latents.batch)

    def draw(self, n: int) -> Tensor:
        """Returns n draws from p0 for each datum, shape ``(n, B, *shape)``."""
        return self.latents.draw_prior(n) if self.q is None else self.latents.unconstrain(self.q.sample((n,)))

    def log_base(self, u: Tensor) -> Tensor:
        """Returns log p0(u)."""
        if self.q is None:
            return self.latents.log_prior(u)
        return self.q.log_prob(self.latents.constrain(u)) + self.latents.log_jacobian(u)

    def log_ratio(self, u: Tensor, log_base: Tensor) -> Tensor:
        """Returns log p(x, u) - log p0(u)."""
        return self.latents.log_likelihood(u) if self.q is None else self.latents.log_joint(u) - log_base

    def advance(self, u: Tensor, momentum: Tensor, drift: Tensor, kick: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        """Moves positions by their momenta, and momenta by the gradient at the new positions.

        Arguments:
            u: Shape ``(C, B, *shape)``.
            momentum: Likewise.
            drift: Time for which the positions move, ``(C, B, 1, ...)``.
            kick: Time for which the momenta move.
            beta: Scalar.

        Returns:
            Position, momentum, log density and log ratio.
        """
        ratio = u.new_zeros(())

        def log_density(at: Tensor) -> Tensor:
            nonlocal ratio
            base = self.log_base(at)
            ratio = self.log_ratio(at, base)
            return base + beta * ratio

        u, momentum, value = _advance(log_density, u, momentum, drift, kick)
        return u, momentum, value, ratio.detach()

    def transition(self, u: Tensor, beta: float, step_size: Tensor, num_leapfrog: int) -> tuple[Tensor, Tensor, Tensor]:
        """Moves every chain by one transition that leaves the density at ``beta`` invariant; see `hmc_transition`.

        Arguments:
            u: Shape ``(C, B, *shape)``.
            beta: Between 0 and 1.
            step_size: Broadcasts to ``(C, B)``.
            num_leapfrog: Leapfrog steps of a trajectory.

        Returns:
            Position, log ratio there and acceptance probability of every chain.
        """
        at = torch.full((), beta, dtype=u.dtype, device=u.device)
        leapfrog, batch = routine(_leapfrog_step, self.latents.vae), tuple(self.latents.batch)
        time = u.new_full((*u.shape[:2], *(1 for _ in self.latents.shape)), FIRST_STEP)
        program = leapfrog.ready(u, u, time, time, at, batch, self.start)
        given = self.latents.batch.tensors
        ratios: list[Tensor] = []

        def advance(u: Tensor, momentum: Tensor, drift: Tensor, kick: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            state = (u, momentum, drift, kick, at)
            if program is not None:
                u, momentum, value, ratio = program([*state, *given])
            else:
                uncompiled = partial(self.advance, *state)
                u, momentum, value, ratio = leapfrog(*state, batch, self.start, otherwise=uncompiled)
            ratios[1:] = [ratio]  # only the first and the last are used
            return u, momentum, value

        new, acceptance, accepted = _trajectory(advance, u, step_size, num_leapfrog, len(self.latents.shape))
        return new, torch.where(accepted, ratios[-1], ratios[0]), acceptance

    def expected(self, transitions: int, num_leapfrog: int, optional: bool = False) -> AbstractContextManager[None]:
        """Returns a block for a known number of transitions, from which the engine decides what is worth compiling.

        Arguments:
            transitions: Their number.
            num_leapfrog: Leapfrog steps of each.
            optional: See `pyro_vae.engine.compilation.routine.repeated`.
        """
        return repeated(transitions * (num_leapfrog + 1), optional)


def _leapfrog_step(
    vae: LatentVariableModel,
    u: Tensor,
    momentum: Tensor,
    drift: Tensor,
    kick: Tensor,
    beta: Tensor,
    fields: tuple[Tensor, ...],
    start: Start,
) -> tuple[Tensor, ...]:
    """`Tempered.advance` as a function of tensors and the VAE alone."""
    return Tempered(Latents(vae, Batch(*fields)), start).advance(u, momentum, drift, kick, beta)


def hmc_transition(
    log_density: LogDensity, position: Tensor, step_size: Tensor, num_leapfrog: int, event_dim: int = 1
) -> Transition:
    r"""Returns one Hamiltonian Monte Carlo transition of every chain, which leaves ``log_density`` invariant.

    Each chain has a step size and a Metropolis decision of its own. A trajectory that leaves the finite numbers is
    rejected, and no distribution is asked to validate what it meets there.

    Arguments:
        log_density: From positions to unnormalised log densities, shape ``(...)``; each chain's own.
        position: Shape ``(..., *shape)``.
        step_size: Broadcasts to ``(...)``.
        num_leapfrog: Leapfrog steps of a trajectory.
        event_dim: Number of dimensions of one chain's position.

    Returns:
        Detached from any graph.

    Reference: Neal, "MCMC using Hamiltonian dynamics", 2011, section 5.3.
    """

    def advance(u: Tensor, momentum: Tensor, drift: Tensor, kick: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _advance(log_density, u, momentum, drift, kick)

    new, acceptance, _ = _trajectory(advance, position, step_size, num_leapfrog, event_dim)
    return Transition(new, acceptance)


Advance = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _advance(
    log_density: LogDensity, position: Tensor, momentum: Tensor, drift: Tensor, kick: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The moved positions, the moved momenta, and the log density at the new positions."""
    new = position + drift * momentum
    with torch.enable_grad():
        at = new.detach().requires_grad_()
        value = log_density(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
    return new, momentum + kick * gradient, value.detach()


@torch.no_grad()
def _trajectory(
    advance: Advance, position: Tensor, step_size: Tensor, num_leapfrog: int, event_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The position after the Metropolis decision on a trajectory, the acceptance probability, and the decision."""
    chains = position.shape[: position.dim() - event_dim]
    ones = (1,) * event_dim
    step = step_size.expand(chains).reshape(*chains, *ones)
    half = step / 2
    momentum = torch.randn_like(position)
    kinetic = _kinetic(momentum, event_dim)
    with pyro.validation_enabled(False):
        new, momentum, first = advance(position, momentum, torch.zeros_like(step), half)
        for i in range(num_leapfrog):
            new, momentum, value = advance(new, momentum, step, step if i < num_leapfrog - 1 else half)
    change = value - _kinetic(momentum, event_dim) - (first - kinetic)
    acceptance = torch.where(change.isfinite(), change, -torch.inf).clamp_max(0).exp()
    accepted = torch.rand_like(acceptance) < acceptance
    return torch.where(accepted.reshape(*chains, *ones), new, position), acceptance, accepted


def adapted(step_size: Tensor, acceptance: Tensor, target: float, rate: float = _RATE) -> Tensor:
    """Returns step sizes moved towards a target acceptance: larger where more was accepted, smaller where less.

    Arguments:
        step_size: Any shape.
        acceptance: Mean acceptance probability under each, same shape.
        target: Between 0 and 1.
        rate: Change of log step size for each unit of acceptance.

    Reference: Andrieu and Thoms, "A tutorial on adaptive MCMC", 2008, equation 20.
    """
    return step_size * (rate * (acceptance - target)).exp()


def jittered(step_size: Tensor, chains: torch.Size) -> Tensor:
    """Returns a step size for every chain, drawn anew within 30 % of the given ones.

    A step size that is drawn without regard to the position leaves every distribution invariant, and keeps
    trajectories from being a whole number of periods long, which would end where they began.

    Arguments:
        step_size: Broadcasts to ``chains``.
        chains: Shape of the chains.

    Reference: Neal, "MCMC using Hamiltonian dynamics", 2011, section 3.2.
    """
    return step_size * (1 + _JITTER * (2 * torch.rand(chains, device=step_size.device, dtype=step_size.dtype) - 1))


def _kinetic(momentum: Tensor, event_dim: int) -> Tensor:
    return momentum.square().flatten(-event_dim).sum(-1) / 2 if event_dim else momentum.square() / 2
