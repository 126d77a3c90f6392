r"""Hamiltonian Monte Carlo for the latents of many data at once, in the unconstrained space of the prior's support."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions.transforms import identity_transform

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.families import cells_of
from pyro_vae.posteriors import support_of
from pyro_vae.simplex import bijection_onto
from pyro_vae.vae import VAE

LogDensity = Callable[[Tensor], Tensor]

# Change of a log step size in one adaptation, for each unit by which the acceptance misses its target.
_RATE = 0.5
# A little above 0.65, the optimum in many dimensions (Beskos et al., 2013): in few, steps at 0.65 are nearly unstable.
TARGET_ACCEPTANCE = 0.75
# Where an adaptation begins, and by which share up or down a step size is drawn anew for every trajectory.
FIRST_STEP, _JITTER = 0.5, 0.3


class Latents:
    r"""The latents u of a batch in unconstrained space, z = T(u), with the densities that a sampler needs.

    .. math:: \log p(u) = \log p(z) + \log |\det J_T(u)|, \qquad T = \texttt{bijection\_onto}(\text{support of } p(z))

    All methods map u of shape ``(..., B, *shape)`` to ``(..., B)``, in nats, and are differentiable in u.

    Arguments:
        vae: The VAE.
        data: Shape ``(B, *event_shape)``, or a `Batch`.
        caller: Who asks; begins the message of an error.

    Raises:
        InputError: For discrete latents, and for a support onto which no bijection is known.

    Reference: Kucukelbir et al., "Automatic differentiation variational inference", 2017, section 2.3.
    """

    def __init__(self, vae: VAE, data: Tensor | Batch, caller: str = "HMC") -> None:
        self.vae, self.batch = vae, vae.check(data)
        with pyro.validation_enabled(False):  # positions that overflow are for the sampler to reject
            self.prior = vae.prior_given(self.batch)
        family = type(cells_of(self.prior)).__name__
        if self.prior.support.is_discrete:
            raise InputError(
                f"{caller}: Hamiltonian Monte Carlo needs the gradient in z, and the prior `{family}` is discrete; use "
                "rws, wake-sleep or score-function to train, and log_marginal to evaluate."
            )
        try:
            self.transform = bijection_onto(support_of(self.prior))
        except NotImplementedError:
            raise InputError(
                f"{caller}: no bijection onto the support {self.prior.support} of the prior `{family}` is known, so "
                "that its latents cannot be moved; use aevb to train, and log_marginal to evaluate."
            ) from None
        self.shape = self.transform.inverse_shape(vae.latent_shape)

    def constrain(self, u: Tensor) -> Tensor:
        """Returns z = T(u)."""
        z: Tensor = self.transform(u)
        return z

    def unconstrain(self, z: Tensor) -> Tensor:
        """Returns u with T(u) = z."""
        u: Tensor = self.transform.inv(z)
        return u

    def log_jacobian(self, u: Tensor) -> Tensor:
        """Returns log |det dz/du|, shape ``(..., B)``."""
        if self.transform is identity_transform:
            return u.new_zeros(())
        terms = self.transform.log_abs_det_jacobian(u, self.constrain(u))
        return terms.flatten(-event).sum(-1) if (event := terms.dim() - (u.dim() - len(self.shape))) else terms

    def log_prior(self, u: Tensor) -> Tensor:
        """Returns log p(u)."""
        return self.prior.log_prob(self.constrain(u)) + self.log_jacobian(u)

    def log_likelihood(self, u: Tensor) -> Tensor:
        """Returns log p(x|z) at z = T(u)."""
        return self.vae.log_likelihood(self.constrain(u), self.batch)

    def log_joint(self, u: Tensor) -> Tensor:
        """Returns log p(x, u), whose normalised density is the exact posterior of u."""
        return self.log_prior(u) + self.log_likelihood(u)

    def log_posterior(self, u: Tensor) -> Tensor:
        """Returns log q(u|x), the approximate posterior's density of u."""
        return self.vae.encode(self.batch).log_prob(self.constrain(u)) + self.log_jacobian(u)

    @torch.no_grad()
    def draw_prior(self, n: int) -> Tensor:
        """Returns n draws from the prior for each datum, shape ``(n, B, *shape)``."""
        shape = (n,) if self.prior.batch_shape else (n, self.batch.size)
        return self.unconstrain(self.prior.sample(shape))

    @torch.no_grad()
    def draw_posterior(self, n: int) -> Tensor:
        """Returns n draws from q(u|x) for each datum, shape ``(n, B, *shape)``."""
        return self.unconstrain(self.vae.encode(self.batch).sample((n,)))


class Transition(NamedTuple):
    """One transition of every chain.

    Attributes:
        position: Shape ``(..., *shape)``.
        acceptance: Probability with which each chain's proposal was accepted, shape ``(...)``.
    """

    position: Tensor
    acceptance: Tensor


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
    chains = position.shape[: position.dim() - event_dim]
    step = step_size.expand(chains).reshape(*chains, *(1 for _ in range(event_dim)))
    momentum = torch.randn_like(position)
    with pyro.validation_enabled(False):
        value, gradient = _value_and_gradient(log_density, position)
        energy = value - _kinetic(momentum, event_dim)
        new, momentum = position, momentum + step / 2 * gradient
        for i in range(num_leapfrog):
            new = new + step * momentum
            value, gradient = _value_and_gradient(log_density, new)
            momentum = momentum + (step if i < num_leapfrog - 1 else step / 2) * gradient
    change = value - _kinetic(momentum, event_dim) - energy
    acceptance = torch.where(change.isfinite(), change, -torch.inf).clamp_max(0).exp()
    accepted = torch.rand_like(acceptance) < acceptance
    kept = accepted.reshape(*chains, *(1 for _ in range(event_dim)))
    return Transition(torch.where(kept, new, position), acceptance)


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


def _value_and_gradient(log_density: LogDensity, position: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        at = position.detach().requires_grad_()
        value = log_density(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), gradient


def _kinetic(momentum: Tensor, event_dim: int) -> Tensor:
    return momentum.square().flatten(-event_dim).sum(-1) / 2 if event_dim else momentum.square() / 2
