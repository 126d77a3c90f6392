r"""Values with names for their dimensions, as a model tells them to whoever lists its variables."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

DRAW, DATUM = "draw", "datum"


class Named(NamedTuple):
    """Values with names for their dimensions.

    The names ``draw`` and ``datum`` stand for the draws and for the data of a batch. All other names are the model's.

    Attributes:
        values: The values.
        dims: Name of each dimension of ``values``, in order.

    Example:
        >>> import torch
        >>> Named(torch.zeros(3, 5, 2), (DRAW, DATUM, "latent")).dims
        ('draw', 'datum', 'latent')
    """

    values: Tensor
    dims: tuple[str, ...]
