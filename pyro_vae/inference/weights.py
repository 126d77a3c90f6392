r"""Functions of the log weights of particles, for the multi-sample bounds and their gradients."""

from __future__ import annotations

import math

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.distributions.pushed import Pushed


def log_mean_exp(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Returns the log of the mean of the weights along a dimension."""
    return log_weights.logsumexp(dim) - math.log(log_weights.shape[dim])


def fixed_log_prob(q: TorchDistribution, z: Tensor) -> Tensor:
    """Returns log q(z|x) at fixed z; the gradient reaches all of phi.

    Arguments:
        q: Batch shape ``(B,)``.
        z: Draws from q, shape ``(K, B, *latent_shape)``; detached here.

    Returns:
        Shape ``(K, B)``.
    """
    if isinstance(q, Pushed):
        return q.fixed_log_prob(z)
    # A flow caches its own draws, and the cached path leaves out the parameters that invert z. A copy is not cached.
    return q.log_prob(z.detach().clone())


def root_of(q: TorchDistribution, z: Tensor) -> Tensor:
    """Returns the tensor through which z depends on phi: z itself, or the u that a bijection maps to z."""
    return q.preimage(z) if isinstance(q, Pushed) else z


def path_log_prob(q: TorchDistribution, z: Tensor) -> Tensor:
    r"""Returns log q(z|x) whose gradient reaches phi through z alone.

    The score :math:`\partial_\phi \log q_\phi(z|x)` at fixed z is subtracted; its expectation is 0. Both terms use one
    pass of the encoder, so its dropout masks are the same.

    Arguments:
        q: Batch shape ``(B,)``.
        z: Reparameterized draws from q, shape ``(K, B, *latent_shape)``.

    Returns:
        Shape ``(K, B)``.

    Reference: Roeder, Wu and Duvenaud, "Sticking the landing", 2017, equation 8.
    """
    at_fixed_z = fixed_log_prob(q, z)
    return q.log_prob(z) - (at_fixed_z - at_fixed_z.detach())
