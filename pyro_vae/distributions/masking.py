r"""Data with cells that are not observed."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.protocol import observing_of
from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError


def masked(x_given_z: TorchDistribution, x: Tensor, mask: Tensor) -> tuple[TorchDistribution, Tensor]:
    """Returns the distribution of the observed cells, and x with hidden cells filled by a value inside the support.

    Hidden cells contribute 0 to log p(x|z) and to its gradients, whatever value they hold. They are filled because a
    nan would make the gradients nan. If the cells are independent but of different families, the distribution has its
    own method for masks; see `pyro_vae.distributions.protocol.Family.observing`.

    Arguments:
        x_given_z: Distribution p(x|z) with independent cells.
        x: Data, shape ``(B, *event_shape)``.
        mask: True where a cell is observed, shape of ``x``.

    Raises:
        InputError: If the cells depend on each other.
    """
    cells = cells_of(x_given_z)
    observing = observing_of(cells)
    if observing is not None:
        return observing(x, mask)
    if cells.event_dim > 0:
        raise InputError(
            f"VAE: `mask` hides single cells, but the cells of `{type(cells).__name__}` depend on each other; "
            "use a likelihood whose cells are independent."
        )
    return cells.mask(mask).to_event(x_given_z.event_dim), filled(x, mask, cells.support)


def filled(x: Tensor, mask: Tensor, support: Constraint) -> Tensor:
    """Returns x with its hidden cells filled by a value inside the support of one cell."""
    zeros = torch.zeros_like(x)
    return torch.where(mask, x, zeros if support.is_discrete else transform_to(support)(zeros))
