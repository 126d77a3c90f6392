"""A data set as read from its files, before any split, scaling or binarisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_vae.datasets.cells import Cells, Levels
from pyro_vae.datasets.large_arrays import row_blocks
from pyro_vae.datasets.number_format import NumberFormat
from pyro_vae.errors import InputError, shown

Binarisation = Literal["none", "static", "dynamic", "threshold"]
Scaling = Literal["none", "unit", "standardise"]
Missing = Literal["error", "mask"]


@dataclass(frozen=True, eq=False)
class RawData:
    r"""Arrays in own units, with their description.

    Attributes:
        name: Name of the data set, or the file's stem.
        arrays: Arrays of N x D: one array `all`, or official sets among `train`, `valid` and `test`.
        files: Mapping from each file that was read to its sha256.
        labels: N integers for each array, or empty.
        image_shape: Shape of one datum; None for a table.
        columns: Names of a table's modelled columns.
        level: Greatest grey level that an image can have; None for a table.
        bernoulli: Default binarisation for a Bernoulli likelihood; `static` means that the file holds bits.
        path: Path of the user's file, as given; None for a named set.
        missing: Whether cells may be NaN; these are hidden from the likelihood.
        levels: For each column the meanings of its codes 0, 1, ..., or None for a column of numbers; None where no
            column has levels.
        others: A table's columns that condition the model, by name.
        order: Names of all columns of a table, in the file's order.
        rest: Unchanged columns that are neither modelled nor in `others`; N rows.
        numbers: How numbers were written in the file, where this was declared.
    """

    name: str
    arrays: dict[str, NDArray[Any]]
    files: dict[str, str]
    labels: dict[str, NDArray[Any]] = field(default_factory=dict)
    image_shape: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None
    level: float | None = None
    bernoulli: Binarisation = "none"
    path: str | None = None
    missing: bool = False
    levels: tuple[Levels | None, ...] | None = None
    others: Mapping[str, Cells] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    rest: pd.DataFrame = field(default_factory=pd.DataFrame)
    numbers: NumberFormat | None = None

    @property
    def title(self) -> str:
        r"""Name in errors: the path of a user's file, else the name."""
        return self.path or self.name

    @property
    def dim(self) -> int:
        r"""Number D of cells of one datum."""
        return int(next(iter(self.arrays.values())).shape[1])

    def cell(self, part: str, row: int, column: int) -> str:
        r"""Returns a description of the cell at 0-based (row, column): its value and its place, counted from 1."""
        value = self.arrays[part][row, column]
        levels = None if self.levels is None else self.levels[column]
        said = shown(float(value)) if levels is None else levels[int(value)]
        name = f"`{self.columns[column]}`" if self.columns else str(column + 1)
        of = "" if part == "all" else f" of `{part}`"
        return f"`{said}` in data row {row + 1}{of} (counted from 1, below the header), column {name}"


def check_finite(raw: RawData) -> RawData:
    r"""Returns `raw` unchanged, if it has rows and columns, and every cell that is not missing is finite.

    Raises:
        InputError: If an array is empty or a cell is NaN or infinite; the message names the first one.
    """
    for part, array in raw.arrays.items():
        of = "" if part == "all" else f"array `{part}` "
        if 0 in array.shape:
            raise InputError(
                f"`{raw.title}`: {of}holds {array.shape[0]} rows of {array.shape[1]} columns; at least "
                "one row and one column are needed"
            )
        if array.dtype.kind == "f":
            for rows in row_blocks(array):
                bad = np.isinf(array[rows]) if raw.missing else ~np.isfinite(array[rows])
                if bad.any():
                    row, column = divmod(int(bad.argmax()), array.shape[1])
                    raise InputError(
                        f"`{raw.title}`: found {raw.cell(part, rows.start + row, column)}; every cell must be a finite "
                        "number: fill in or drop missing values first, or hide them with `missing: mask`"
                    )
    return raw
