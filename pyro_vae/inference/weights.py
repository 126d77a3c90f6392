r"""Log weights of particles, and what the multi-sample bounds make of them."""

from __future__ import annotations

import math

from pyro.distributions import TorchDistribution
from torch import Tensor


def log_mean_exp(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Returns the log of the mean of the weights along a dimension."""
    return log_weights.logsumexp(dim) - math.log(log_weights.shape[dim])


def path_log_prob(q: TorchDistribution, z: Tensor) -> Tensor:
    r"""Returns log q(z|x), whose gradient reaches phi through z alone.

    The score :math:`\partial_\phi \log q_\phi(z|x)` at fixed z, whose expectation is 0, is taken off; one pass of the
    encoder serves both terms, whatever is random in it.

    Arguments:
        q: Batch shape ``(B,)``.
        z: Reparameterized draws from q, shape ``(K, B, *latent_shape)``.

    Returns:
        Shape ``(K, B)``.

    Reference: Roeder, Wu and Duvenaud, "Sticking the landing", 2017, equation 8.
    """
    at_fixed_z = q.log_prob(z.detach())
    return q.log_prob(z) - (at_fixed_z - at_fixed_z.detach())
