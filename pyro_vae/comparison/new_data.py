r"""Reads new rows for a trained model in the data's own units; errors name the row and column of an invalid value."""

from __future__ import annotations

import torch

from pyro_vae.batch import Batch
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.new_rows import Context, Rows, read_whole
from pyro_vae.datasets.user_file import Source
from pyro_vae.errors import InputError, shown
from pyro_vae.vae.data_check import CellNames, check_values
from pyro_vae.vae.vae import VAE


class _InFile(CellNames):
    """Describes a value by its row and column in a file or table, in own units.

    Arguments:
        rows: The rows of the file.
        units: The data transform of the model.
    """

    def __init__(self, rows: Rows, units: DataTransform) -> None:
        self.own, self.columns = rows.own, units.columns

    def row(self, row: int) -> str:
        return f"data row {row + 1} (counted from 1, below the header)"

    def cell(self, row: int, column: int | tuple[int, ...], value: float) -> str:
        if isinstance(column, tuple):  # rows of a file are flat and have no such index
            return super().cell(row, column, value)
        name = f"`{self.columns[column]}`" if self.columns else str(column + 1)
        return f"`{shown(self.own[row, column].item())}` in {self.row(row)}, column {name}"


def read(vae: VAE, units: DataTransform, source: Source, seed: int = 0, context: Context | None = None) -> Rows:
    """Returns rows in the model's units and in own units, with the columns that the model does not use.

    Arguments:
        vae: VAE whose likelihood must have the values in its support.
        units: The transform of its training data.
        source: A file, a DataFrame, an array or a tensor, in the training data's own units.
        seed: Seed of the binarisation.
        context: Context to use instead of the rows' own context columns.

    Raises:
        InputError: For a file, a column or a cell that cannot be used, and for a `Batch`.
    """
    if isinstance(source, Batch):
        raise InputError(
            "the rows are a `Batch`, which is in the model's units; pass a file, a DataFrame or an array in the data's "
            "own units. The functions of pyro_vae.evaluation take a `Batch`, with `trained.vae`."
        )
    rows = read_whole(source, units, torch.Generator().manual_seed(seed), context)
    check_values(vae, rows.batch, not units.cross_entropy, f"`{rows.title}`", names=_InFile(rows, units))
    return rows
