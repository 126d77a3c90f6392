"""A data set as its files hold it: before any split, scaling or binarisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_vae.datasets.cells import Cells, Levels
from pyro_vae.datasets.errors import DataError

Binarisation = Literal["none", "static", "dynamic", "threshold"]
Scaling = Literal["none", "unit", "standardise"]
Missing = Literal["error", "mask"]


@dataclass(frozen=True, eq=False)
class RawData:
    r"""Arrays in the data's own units, and what is known of them.

    Attributes:
        name: the catalogue's name, or the file's stem.
        arrays: N x D each; one array `all`, or official sets among `train`, `valid` and `test`.
        files: sha256 of each file that was read.
        labels: N integers for each array, or empty.
        image_shape: shape of one datum; None for a table.
        columns: names of a table's columns.
        level: greatest grey level of an image's cell; None for a table.
        bernoulli: binarisation that a Bernoulli likelihood gets unless another is asked for; `static` says
            that the file itself is binarised.
        path: of the user's file, as given; None for the catalogue.
        missing: whether cells may be NaN, which are hidden from the likelihood.
        levels: for each column what its codes mean, None for a column of numbers; None where no column has levels.
        others: a table's columns that are not modelled, by name.
        order: names of all of a table's columns, in the file's order.
        rest: the columns that are neither modelled nor in `others`, as they stand; N rows.
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

    @property
    def title(self) -> str:
        r"""What an error calls it: the path of a user's file, else the name."""
        return self.path or self.name

    @property
    def dim(self) -> int:
        r"""Number D of cells of one datum."""
        return int(next(iter(self.arrays.values())).shape[1])

    def cell(self, part: str, row: int, column: int) -> str:
        r"""Describe the cell at 0-based (row, column): its value and its place, counted from 1."""
        value = self.arrays[part][row, column]
        levels = None if self.levels is None else self.levels[column]
        said = f"{value:g}" if levels is None else levels[int(value)]
        name = f"`{self.columns[column]}`" if self.columns else str(column + 1)
        of = "" if part == "all" else f" of `{part}`"
        return f"`{said}` in data row {row + 1}{of} (counted from 1, below the header), column {name}"


def check_finite(raw: RawData) -> RawData:
    r"""Return `raw` if it has rows and columns, and every cell that is not missing is finite.

    Raises:
        DataError: naming the first empty array, or the first NaN or infinite cell.
    """
    for part, array in raw.arrays.items():
        of = "" if part == "all" else f"array `{part}` "
        if 0 in array.shape:
            raise DataError(
                f"`{raw.title}`: {of}holds {array.shape[0]} rows of {array.shape[1]} columns; at least "
                "one row and one column are needed"
            )
        if array.dtype.kind == "f":
            bad = np.isinf(array) if raw.missing else ~np.isfinite(array)
            if bad.any():
                row, column = divmod(int(bad.argmax()), array.shape[1])
                raise DataError(
                    f"`{raw.title}`: found {raw.cell(part, row, column)}; every cell must be a finite "
                    "number: fill in or drop missing values first, or hide them with `missing: mask`"
                )
    return raw
