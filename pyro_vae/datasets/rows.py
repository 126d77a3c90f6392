"""New rows for a trained model: read with the columns, levels and covariates of its training data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets.columns import decoded, read_cells
from pyro_vae.datasets.conditioning import row_totals
from pyro_vae.datasets.context import TOTAL
from pyro_vae.datasets.data import observed
from pyro_vae.datasets.errors import DataError, suggestion
from pyro_vae.datasets.table import Wanted, read_file, read_frame
from pyro_vae.datasets.units import DataTransform

FilePath = str | os.PathLike[str]


def read_rows(
    path: FilePath, units: DataTransform, generator: torch.Generator, context: FilePath | None = None
) -> Batch:
    r"""Read a file's rows as a batch in model units, with context, mask and offset as in training.

    A row without any observed cell is accepted: its log p is 0, and its imputation that of the model.

    Args:
        path: a `.csv`, `.parquet`, `.npy` or `.npz` file in the training data's own units.
        units: of the training data.
        generator: of the binarisation.
        context: in place of the file's own context columns; see `read_context`.

    Raises:
        DataError: for a file, a column or a cell that cannot be used.
    """
    return read_both(path, units, generator, context)[0]


def read_both(
    path: FilePath, units: DataTransform, generator: torch.Generator, context: FilePath | None = None
) -> tuple[Batch, Tensor]:
    r"""Read a file's rows as `read_rows` does, and as they stand: (N, D) float64 in own units, NaN where missing."""
    by_name = {column.name: column.levels for column in units.context}
    by_name |= dict(zip(units.columns or (), units.levels or (), strict=False))
    others = [] if context is not None else [column.name for column in units.context]
    if units.offset is not None and units.offset.source != TOTAL:
        others.append(units.offset.source)
    levels = {name: each for name, each in by_name.items() if each is not None}
    raw = read_file(path, Wanted(units.columns, tuple(dict.fromkeys(others)), units.missing == "mask", levels=levels))
    if "all" not in raw.arrays:
        raise DataError(f"`{path}`: holds several sets, and one array is wanted; save the rows as the array `x`")
    own = torch.from_numpy(raw.arrays["all"].astype(np.float64))
    x = units.binarise(units.to_model_units(own), generator)
    x, mask = observed(x) if units.missing == "mask" else (x, None)
    offset = None
    if units.offset is not None:
        total = units.offset.source == TOTAL
        size = row_totals(own) if total else torch.from_numpy(raw.others[units.offset.source].values)
        offset = units.offset.of(raw.title, size)
    if context is None:
        return Batch(x, units.encode_context(raw.others), mask, offset), own
    given = read_context(context, units)
    if len(given) not in (1, len(x)):
        raise DataError(
            f"`{context}`: holds {len(given)} rows of context for the {len(x)} rows of `{path}`; give one, or as many"
        )
    return Batch(x, given.expand(len(x), -1), mask, offset), own


def read_context(context: FilePath, units: DataTransform) -> Tensor:
    r"""Read covariates in the context columns' own units.

    Args:
        context: `label=3` or `age=40,sex=f`, one row; or the path of a `.csv` or `.parquet` file with the context
            columns.
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
    names = [column.name for column in units.context]
    if not names:
        raise DataError(f"`{context}`: got a context, but the model of `{units.name}` has none; leave it out")
    if "=" in str(context) and not Path(context).is_file():
        pairs = [pair.partition("=") for pair in str(context).split(",")]
        frame = pd.DataFrame({name.strip(): [value.strip()] for name, _, value in pairs})
    else:
        frame = read_frame(context)
    for name in frame.columns:
        if name not in names and "=" in str(context):
            raise DataError(f"`{context}`: there is no context `{name}`{suggestion(name, names)}; it is {_said(names)}")
    for name in names:
        if name not in frame.columns:
            raise DataError(f"`{context}`: lacks the context `{name}`; the model needs {_said(names)}")
    cells = {
        column.name: read_cells(str(context), column.name, frame[column.name], levels=column.levels, modelled=False)
        for column in units.context
    }
    encoded = units.encode_context(cells)
    if encoded is None:
        raise DataError(f"`{units.name}`: has no context")
    return encoded


def context_frame(units: DataTransform, context: Tensor) -> pd.DataFrame:
    r"""Return covariates, N x C, under the context columns' names and in their own units."""
    columns, start = {}, 0
    for column in units.context:
        part = context[:, start : start + column.width].double().cpu().numpy()
        start += column.width
        if column.levels is None:
            columns[column.name] = pd.Series(part[:, 0] * column.scale + column.centre)
        else:
            columns[column.name] = decoded(part.argmax(1).astype(np.float64), column.levels)
    return pd.DataFrame(columns)


def _said(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
