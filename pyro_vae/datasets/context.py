"""Columns that condition the model and are not modelled: covariates, labels and the offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.datasets.cells import Cells, Levels, with_levels
from pyro_vae.datasets.errors import check_choice
from pyro_vae.errors import InputError, shown

Encoding = Literal["standardise", "one-hot", "none"]
Asked = str | Sequence[str] | Mapping[str, str | None] | None

# `context: labels` means the labels of a named set; their column is called `label`.
LABELS, LABEL = "labels", "label"
# `offset: total` means the sum of a row's cells.
TOTAL = "total"


@dataclass(frozen=True)
class ContextColumn:
    r"""Encoding of one column as covariates.

    Attributes:
        name: Name of the column.
        encoding: `standardise` to mean 0 and variance 1, `one-hot`, or `none`.
        levels: Levels of a one-hot column, in the order of its covariates; None for other encodings.
        centre: Number that `standardise` subtracts.
        scale: Number that `standardise` divides by.
    """

    name: str
    encoding: Encoding
    levels: Levels | None = None
    centre: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        r"""Number of covariates."""
        return len(self.levels) if self.levels is not None else 1

    def encode(self, values: NDArray[np.float64]) -> Tensor:
        r"""Returns the covariates, N x width float32, of a column's numbers or codes, (N,)."""
        if self.levels is not None:
            codes = torch.from_numpy(values.astype(np.int64))
            return torch.nn.functional.one_hot(codes, len(self.levels)).float()
        return torch.from_numpy((values - self.centre) / self.scale).float().unsqueeze(1)

    def record(self) -> dict[str, Any]:
        r"""Returns every field, ready for JSON."""
        levels = None if self.levels is None else list(self.levels)
        return {
            "name": self.name,
            "encoding": self.encoding,
            "levels": levels,
            "centre": self.centre,
            "scale": self.scale,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ContextColumn:
        r"""Restores what `record` returned."""
        levels = None if record["levels"] is None else tuple(record["levels"])
        return cls(record["name"], record["encoding"], levels, record["centre"], record["scale"])


def asked_for(context: Asked) -> dict[str, str | None]:
    r"""Returns the wanted encoding of each context column; None for the default of the column's type.

    Raises:
        InputError: If there is no such encoding.
    """
    if context is None:
        return {}
    if isinstance(context, str):
        return {context: None}
    asked = dict(context) if isinstance(context, Mapping) else dict.fromkeys(context)
    for name, encoding in asked.items():
        if encoding is not None:
            check_choice(f"context.{name}", encoding, get_args(Encoding))
    return asked


def fit_context(
    title: str, name: str, cells: Cells, train: NDArray[np.int64] | slice, asked: str | None
) -> tuple[ContextColumn, Cells]:
    r"""Returns a column's encoding, fitted on the training rows, and its cells (codes if the encoding is one-hot).

    By default, words are one-hot and numbers are standardised. Levels are those of all rows.

    Raises:
        InputError: If words are to be encoded as numbers, or a column to be standardised is constant.
    """
    encoding = cast("Encoding", asked or ("standardise" if cells.levels is None else "one-hot"))
    if encoding == "one-hot":
        coded = with_levels(cells)
        return ContextColumn(name, encoding, coded.levels), coded
    if cells.levels is not None:
        raise InputError(
            f"`{title}`: context column `{name}` holds words (`{cells.levels[0]}`), and encoding=`{encoding}` needs "
            "numbers; leave the encoding out, or pass `one-hot`"
        )
    if encoding == "none":
        return ContextColumn(name, encoding), cells
    rows = cells.values[train]
    if float(np.ptp(rows)) == 0.0:
        raise InputError(
            f"`{title}`: context column `{name}` is constant ({shown(rows[0])}) on the {len(rows)} training rows, so "
            "it has no information; leave it out of `context`"
        )
    return ContextColumn(name, encoding, None, float(rows.mean()), float(rows.std())), cells


@dataclass(frozen=True)
class Offset:
    r"""The offset of a row: the log of its size, minus the mean log size of the training rows.

    .. math:: o_i = \log s_i - \frac{1}{N} \sum_{j \in \mathrm{train}} \log s_j

    A typical row has offset 0; a model generates rows with this offset.

    Attributes:
        source: `total` for the sum over a row's observed cells, else the name of the column that holds s.
        centre: Mean of log s over the training rows.
    """

    source: str
    centre: float = 0.0

    def of(self, title: str, size: Tensor) -> Tensor:
        r"""Returns the offsets, N x 1 float32, of sizes (N,).

        Raises:
            InputError: If a size is not above 0; the message names the first such row.
        """
        bad = ~(size > 0)
        if bool(bad.any()):
            row = int(bad.to(torch.uint8).argmax())
            what = "total" if self.source == TOTAL else f"`{self.source}`"
            raise InputError(
                f"`{title}`: data row {row + 1} (counted from 1, without the header) has {what} "
                f"{shown(float(size[row]))}, but `offset: {self.source}` takes its log; drop the row, or the offset"
            )
        return (size.double().log() - self.centre).float().unsqueeze(1)
