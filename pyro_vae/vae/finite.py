r"""Checks for values that are not finite; errors name the position of the value."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError, shown

# Number of cells that are checked at once, so that what a check computes takes little memory.
_CELLS = 2**20


def blocks_of_rows(x: Tensor) -> Iterator[slice]:
    """Yields slices along the first dimension that cover all rows, each of about a million cells."""
    rows = max(1, _CELLS // max(1, x[:1].numel()))
    for start in range(0, len(x), rows):
        yield slice(start, min(start + rows, len(x)))


class CellNames:
    """Names the positions of values in data that are held in memory; rows and columns count from 0."""

    def row(self, row: int) -> str:
        """Returns the name of a datum."""
        return f"row {row} (from 0)"

    def cell(self, row: int, column: int | tuple[int, ...], value: float) -> str:
        """Returns the name of a cell with its value, in model units."""
        return f"the value {shown(value)} in row {row}, column {column} (from 0)"


def check_finite(batch: Batch, name: str, names: CellNames | None = None) -> None:
    """Raises an `InputError` that names the first observed cell of x that is not finite.

    Arguments:
        batch: The data.
        name: Name of the data or of the caller, for the message.
        names: Names the position of a bad value.
    """
    complaint = "is not finite; remove it, or hide it with Batch(x, mask=...)"
    for rows in blocks_of_rows(batch.x):
        x = batch.x[rows]
        if batch.mask is None and bool(x.sum().isfinite()):
            continue  # a sum with a value that is not finite is not finite
        bad = ~x.isfinite() if batch.mask is None else batch.mask[rows] & ~x.isfinite()
        refuse(name, x, bad, complaint, names, rows.start)


def refuse(
    name: str, x: Tensor, bad: Tensor, complaint: str, names: CellNames | None = None, first_row: int = 0
) -> None:
    """Raises an `InputError` about the first bad cell, or block of cells, if there is one.

    Arguments:
        name: Name of the data or of the caller, for the message.
        x: The data.
        bad: Boolean tensor, True for bad cells, whose shape is that of ``x`` or expands to it.
        complaint: Text that follows the cell's name in the message.
        names: Names the position of a bad value.
        first_row: Number of the first row of ``x`` in the data.
    """
    if bool(bad.any()):
        row, *rest = (int(i) for i in torch.nonzero(bad.expand_as(x))[0])
        column = rest[0] if len(rest) == 1 else tuple(rest)
        said = (names or CellNames()).cell(first_row + row, column, x[(row, *rest)].item())
        raise InputError(f"{name}: {said} {complaint}.")
