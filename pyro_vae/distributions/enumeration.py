r"""All values of a discrete latent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError

# Largest number of joint values that can be summed over.
MOST_VALUES = 4096


def latent_values(q: Distribution, caller: str = "enumeration") -> Tensor:
    """Returns every value of z: all combinations of the values of its dimensions.

    Arguments:
        q: Distribution of z with a finite support, batch shape ``(B,)``; the dimensions of z may be dependent.
        caller: Name of the caller, with which error messages begin.

    Returns:
        Values, shape ``(S, B, *latent_shape)``.

    Raises:
        InputError: Where z is continuous, unbounded, or has more than 4,096 values.

    Example:
        >>> import pyro.distributions as dist
        >>> q = dist.Bernoulli(torch.full((1, 2), 0.5)).to_event(1)
        >>> latent_values(q).squeeze(1).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    cells = cells_of(q)
    if not cells.has_enumerate_support:
        raise InputError(
            f"{caller}: needs latents with finitely many values, and those of `{type(cells).__name__}` cannot be "
            "listed; use score-function or rws for other discrete latents, aevb for continuous ones."
        )
    values = cells.enumerate_support(expand=False)
    values = values.reshape(len(values), *values.shape[1 + len(cells.batch_shape) :])  # the values of one cell
    cell_shape = q.event_shape[: len(q.event_shape) - len(cells.event_shape)]
    n = cell_shape.numel()
    if len(values) ** n > MOST_VALUES:
        raise InputError(
            f"{caller}: z has {len(values)}^{n} values, more than the {MOST_VALUES} that can be summed over; use "
            "score-function or rws."
        )
    index = torch.cartesian_prod(*[torch.arange(len(values), device=values.device)] * n).reshape(-1, n)
    joint = values[index].reshape(len(index), 1, *q.event_shape)
    return joint.expand(-1, *q.batch_shape, *q.event_shape)
