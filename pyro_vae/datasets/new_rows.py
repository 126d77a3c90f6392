"""New rows for a trained model: read with the columns, levels and covariates of its training data."""

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
from pyro_vae.datasets.errors import DataError, suggestion
from pyro_vae.datasets.user_file import Source, Wanted, read_frame, read_rows_of, title_of

# One row in words, the path of a table, or a table.
Context = str | os.PathLike[str] | pd.DataFrame


class Rows(NamedTuple):
    r"""Rows in own units, as a model receives them and as they stand.

    Attributes:
        batch: in model units, with context, mask and offset.
        own: (N, D) float64 in own units, NaN where missing.
        beside: the columns that condition the model, context and offset, in own units; N rows.
        order: names of all columns, in their order; empty where they have none.
        title: what an error calls them.
        rest: the columns that the model does not know, such as identifiers, as they stand; N rows.
    """

    batch: Batch
    own: Tensor
    beside: pd.DataFrame
    order: tuple[str, ...] = ()
    title: str = "rows"
    rest: pd.DataFrame = pd.DataFrame()

    def table(self, units: DataTransform, x: Tensor) -> pd.DataFrame:
        r"""Return other values of the modelled cells, (N, D) in own units, with what stands beside them.

        Columns are in the file's order; those that the file lacks come last.
        """
        frame = self.identified(pd.concat([units.named(x), self.beside], axis=1))
        known = [name for name in self.order if name in frame.columns]
        return frame[known + [name for name in frame.columns if name not in set(known)]]

    def identified(self, table: pd.DataFrame) -> pd.DataFrame:
        r"""Return a table of N rows behind the columns that the model does not know, but those of a name of its own."""
        return pd.concat([self.rest.drop(columns=table.columns, errors="ignore"), table], axis=1)


class Given(NamedTuple):
    r"""What a model is conditioned on.

    Attributes:
        covariates: N x C float32, as the model receives them.
        columns: the context columns in own units, as they were given; N rows.
    """

    covariates: Tensor
    columns: pd.DataFrame

    def in_turn(self, n: int) -> Given:
        r"""Return n rows, these in turn."""
        rows = np.arange(n) % len(self.columns)
        return Given(self.covariates[torch.from_numpy(rows)], self.columns.iloc[rows].reset_index(drop=True))


def read_rows(
    source: Source, units: DataTransform, generator: torch.Generator, context: Context | None = None
) -> Batch:
    r"""Read rows as a batch in model units, with context, mask and offset as in training.

    A row without any observed cell is accepted: its log p is 0, and its imputation that of the model.

    Args:
        source: a `.csv`, `.parquet`, `.npy` or `.npz` file, a data frame, an array or a tensor, in the training data's
            own units.
        units: of the training data.
        generator: of the binarisation.
        context: in place of the rows' own context columns; see `read_context`.

    Raises:
        DataError: for a file, a column or a cell that cannot be used.
    """
    return read_whole(source, units, generator, context).batch


def read_whole(
    source: Source, units: DataTransform, generator: torch.Generator, context: Context | None = None
) -> Rows:
    r"""Read rows as `read_rows` does, and as they stand."""
    by_name = {column.name: column.levels for column in units.context} | units.known_levels
    others = [] if context is not None else [column.name for column in units.context]
    if units.offset is not None and units.offset.source != TOTAL:
        others.append(units.offset.source)
    levels = {name: each for name, each in by_name.items() if each is not None}
    wanted = Wanted(units.columns, tuple(dict.fromkeys(others)), units.missing == "mask", levels=levels)
    raw = read_rows_of(source, wanted)
    if "all" not in raw.arrays:
        raise DataError(f"`{raw.title}`: holds several sets, and one array is wanted; save the rows as the array `x`")
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
        raise DataError(
            f"`{title_of(context)}`: holds {len(given.columns)} rows of context for the {len(x)} rows of "
            f"`{raw.title}`; give one, or as many"
        )
    given = given.in_turn(len(x))
    beside = given.columns.join(beside[[name for name in beside.columns if name not in given.columns]])
    return Rows(Batch(x, given.covariates, mask, offset), own, beside, raw.order, raw.title, raw.rest)


def read_context(context: Context, units: DataTransform) -> Tensor:
    r"""Read covariates in the context columns' own units.

    Args:
        context: `label=3` or `age=40,sex=f`, one row; or the path of a `.csv` or `.parquet` file, or a data frame,
            with the context columns.
        units: of the training data.

    Returns:
        N x C float32, as the model receives it.

    Raises:
        DataError: where the model has no context, or a column or a cell does not fit.

    Example:
        >>> from pyro_vae.datasets import load
        >>> read_context("label=3", load("digits", context="labels").units).tolist()
        [[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    return read_given(context, units).covariates


def read_given(context: Context, units: DataTransform) -> Given:
    r"""Read covariates as `read_context` does, and as they were given."""
    title, names = title_of(context), [column.name for column in units.context]
    if not names:
        raise DataError(f"`{title}`: got a context, but the model of `{units.name}` has none; leave it out")
    if isinstance(context, pd.DataFrame):
        frame = context.rename(columns=str)
    elif "=" in title and not Path(context).is_file():
        frame = _pairs(title, names)
    else:
        frame = read_frame(context)
    for name in names:
        if name not in frame.columns:
            raise DataError(f"`{title}`: lacks the context `{name}`; the model needs {_said(names)}")
    cells = {
        column.name: read_cells(title, column.name, frame[column.name], levels=column.levels, modelled=False)
        for column in units.context
    }
    encoded = units.encode_context(cells)
    if encoded is None:
        raise DataError(f"`{units.name}`: has no context")
    return Given(encoded, own_columns(cells))


def _pairs(text: str, names: list[str]) -> pd.DataFrame:
    """The one row of `age=40,sex=f`."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    frame = pd.DataFrame({name.strip(): [value.strip()] for name, _, value in pairs})
    for name in frame.columns:
        if name not in names:
            raise DataError(f"`{text}`: there is no context `{name}`{suggestion(name, names)}; it is {_said(names)}")
    return frame


def own_columns(cells: Mapping[str, Cells]) -> pd.DataFrame:
    r"""Return columns as they were given: numbers, whole ones as integers, or words."""
    return pd.DataFrame({name: _whole(decoded(column.values, column.levels)) for name, column in cells.items()})


def _whole(column: pd.Series) -> pd.Series:
    """Whole numbers as integers, unless some are too large to be told apart."""
    if not pd.api.types.is_numeric_dtype(column):
        return column
    exact = (column == column.round()) & (column.abs() < 2**53)
    return column.astype(np.int64) if bool(exact.all()) else column


def _said(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
