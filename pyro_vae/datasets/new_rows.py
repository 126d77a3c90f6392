"""Reading of new rows for a trained model, with the columns, levels and covariates of its training data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets.cells import Cells, decoded, read_cells
from pyro_vae.datasets.conditioning import row_totals
from pyro_vae.datasets.context import TOTAL
from pyro_vae.datasets.data import observed
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.errors import suggestion
from pyro_vae.datasets.user_file import Source, Wanted, read_frame, read_rows_of, title_of
from pyro_vae.errors import InputError

# One row such as "age=40,sex=f", the path of a table, or a table.
Context = str | os.PathLike[str] | pd.DataFrame


class Rows(NamedTuple):
    r"""New rows, in model units and in own units.

    Attributes:
        batch: The rows in model units, with context, mask and offset.
        own: The rows in own units, (N, D) float64; NaN where a cell is missing.
        beside: The columns that condition the model (context and offset) in own units; N rows.
        order: Names of all columns of the source, in its order; empty where they have none.
        title: Name of the source in errors.
        rest: Unchanged columns that the model does not use, such as identifiers; N rows.
    """

    batch: Batch
    own: Tensor
    beside: pd.DataFrame
    order: tuple[str, ...] = ()
    title: str = "rows"
    rest: pd.DataFrame = pd.DataFrame()

    def table(self, units: DataTransform, x: Tensor) -> pd.DataFrame:
        r"""Returns a table with `x` (N x D, own units) as the modelled cells, and all other columns of the source.

        Columns are in the order of the source; columns that the source lacks come last.
        """
        frame = self.identified(pd.concat([units.named(x), self.beside], axis=1))
        known = [name for name in self.order if name in frame.columns]
        return frame[known + [name for name in frame.columns if name not in set(known)]]

    def identified(self, table: pd.DataFrame) -> pd.DataFrame:
        r"""Returns a table of N rows with `rest` as its first columns, except those whose names the table has."""
        return pd.concat([self.rest.drop(columns=table.columns, errors="ignore"), table], axis=1)


class Given(NamedTuple):
    r"""Rows of context.

    Attributes:
        covariates: Encoded context, N x C float32.
        columns: Context columns in own units, as they were given; N rows.
    """

    covariates: Tensor
    columns: pd.DataFrame

    def in_turn(self, n: int) -> Given:
        r"""Returns n rows, cycling through these."""
        rows = np.arange(n) % len(self.columns)
        return Given(self.covariates[torch.from_numpy(rows)], self.columns.iloc[rows].reset_index(drop=True))


def read_rows(
    source: Source, units: DataTransform, generator: torch.Generator, context: Context | None = None
) -> Batch:
    r"""Reads rows as a batch in model units, with context, mask and offset as in training.

    A row without observed cells is accepted: its log p is 0, and imputation fills it from the model alone.

    Arguments:
        source: Path of a `.csv`, `.parquet`, `.npy` or `.npz` file, a data frame, an array or a tensor, in the
            training data's own units.
        units: Data transform of the training data.
        generator: Random generator of the binarisation.
        context: Context that replaces the context columns of the source; see `read_context`.

    Raises:
        InputError: If a file, a column or a cell cannot be used.
    """
    return read_whole(source, units, generator, context).batch


def read_whole(
    source: Source, units: DataTransform, generator: torch.Generator, context: Context | None = None
) -> Rows:
    r"""Reads rows as `read_rows` does; returns them in own units too."""
    by_name = {column.name: column.levels for column in units.context} | units.known_levels
    others = [] if context is not None else [column.name for column in units.context]
    if units.offset is not None and units.offset.source != TOTAL:
        others.append(units.offset.source)
    levels = {name: each for name, each in by_name.items() if each is not None}
    wanted = Wanted(
        units.columns, tuple(dict.fromkeys(others)), units.missing == "mask", levels=levels, numbers=units.numbers
    )
    raw = read_rows_of(source, wanted)
    if "all" not in raw.arrays:
        raise InputError(f"`{raw.title}`: holds several sets; expected one array: save the rows as the array `x`")
    own = torch.from_numpy(raw.arrays["all"].astype(np.float64))
    x = units.binarise(units.to_model_units(own), generator)
    x, mask = observed(x) if units.missing == "mask" else (x, None)
    offset = None
    if units.offset is not None:
        total = units.offset.source == TOTAL
        size = row_totals(own) if total else torch.from_numpy(raw.others[units.offset.source].values)
        offset = units.offset.of(raw.title, size)
    beside = own_columns(raw.others)
    if context is None:
        batch = Batch(x, units.encode_context(raw.others), mask, offset)
        return Rows(batch, own, beside, raw.order, raw.title, raw.rest)
    given = read_given(context, units)
    if len(given.columns) not in (1, len(x)):
        raise InputError(
            f"`{title_of(context)}`: holds {len(given.columns)} rows of context for the {len(x)} rows of "
            f"`{raw.title}`; pass 1 or {len(x)}"
        )
    given = given.in_turn(len(x))
    beside = given.columns.join(beside[[name for name in beside.columns if name not in given.columns]])
    return Rows(Batch(x, given.covariates, mask, offset), own, beside, raw.order, raw.title, raw.rest)


def read_context(context: Context, units: DataTransform) -> Tensor:
    r"""Reads covariates in own units and encodes them.

    Arguments:
        context: One row such as `label=3` or `age=40,sex=f`; or the path of a `.csv` or `.parquet` file, or a data
            frame, with the context columns.
        units: Data transform of the training data.

    Returns:
        Encoded context, N x C float32.

    Raises:
        InputError: If the model has no context, or a column or a cell does not fit.

    Example:
        >>> from pyro_vae.datasets import load
        >>> read_context("label=3", load("digits", context="labels").units).tolist()
        [[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    return read_given(context, units).covariates


def read_given(context: Context, units: DataTransform) -> Given:
    r"""Reads covariates as `read_context` does; returns them in own units too."""
    title, names = title_of(context), [column.name for column in units.context]
    if not names:
        raise InputError(f"`{title}`: got a context, but the model of `{units.name}` has none; leave the context out")
    numbers = units.numbers
    if isinstance(context, pd.DataFrame):
        frame = context.rename(columns=str)
    elif "=" in title and not Path(context).is_file():
        frame, numbers = _pairs(title, names), None  # commas separate the columns of a row that is typed
    else:
        frame = read_frame(context, as_text=numbers is not None)
    for name in names:
        if name not in frame.columns:
            raise InputError(f"`{title}`: lacks the context `{name}`; the model needs {_listed(names)}")
    cells = {
        column.name: read_cells(
            title, column.name, frame[column.name], levels=column.levels, modelled=False, numbers=numbers
        )
        for column in units.context
    }
    encoded = units.encode_context(cells)
    if encoded is None:
        raise InputError(f"`{units.name}`: has no context; leave the context out")
    return Given(encoded, own_columns(cells))


def _pairs(text: str, names: list[str]) -> pd.DataFrame:
    """Returns the row that a text such as `age=40,sex=f` describes."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    frame = pd.DataFrame({name.strip(): [value.strip()] for name, _, value in pairs})
    for name in frame.columns:
        if name not in names:
            raise InputError(
                f"`{text}`: there is no context `{name}`{suggestion(name, names)}; the model has {_listed(names)}"
            )
    return frame


def own_columns(cells: Mapping[str, Cells]) -> pd.DataFrame:
    r"""Returns columns in own units: words, or numbers, with whole numbers as integers."""
    return pd.DataFrame({name: _whole(decoded(column.values, column.levels)) for name, column in cells.items()})


def _whole(column: pd.Series) -> pd.Series:
    """Returns a column of whole numbers as integers, unless float64 cannot hold some of them exactly."""
    if not pd.api.types.is_numeric_dtype(column):
        return column
    exact = (column == column.round()) & (column.abs() < 2**53)
    return column.astype(np.int64) if bool(exact.all()) else column


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
