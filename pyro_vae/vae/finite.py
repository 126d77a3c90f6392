r"""Values that are not finite, named by their place."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError


class Place:
    """Says where a value stands in data that are held in memory: counted from 0."""

    def row(self, row: int) -> str:
        """Returns what to call a datum."""
        return f"row {row} (from 0)"

    def cell(self, row: int, column: int | tuple[int, ...], value: float) -> str:
        """Returns what to call a value of a cell, in model units."""
        return f"the value {value:g} in row {row}, column {column} (from 0)"


def check_finite(batch: Batch, name: str, place: Place | None = None) -> None:
    """Raises an `InputError` that names the first observed cell of x that is not finite.

    Arguments:
        batch: The data.
        name: What they are called, or who asks.
        place: Says where a bad value stands.
    """
    bad = ~batch.x.isfinite() if batch.mask is None else batch.mask & ~batch.x.isfinite()
    refuse(name, batch.x, bad, "is not finite; remove it, or hide it with Batch(x, mask=...)", place)


def refuse(name: str, x: Tensor, bad: Tensor, complaint: str, place: Place | None = None) -> None:
    """Raises an `InputError` with a complaint of the first cell, or block of cells, that is ``bad``, where one is.

    Arguments:
        name: What the data are called, or who asks.
        x: The data.
        bad: Which cells are bad, of the shape of ``x``, or one that expands to it.
        complaint: Follows the cell's place.
        place: Says where a bad value stands.
    """
    if bool(bad.any()):
        row, *rest = (int(i) for i in torch.nonzero(bad.expand_as(x))[0])
        column = rest[0] if len(rest) == 1 else tuple(rest)
        said = (place or Place()).cell(row, column, x[(row, *rest)].item())
        raise InputError(f"{name}: {said} {complaint}.")
