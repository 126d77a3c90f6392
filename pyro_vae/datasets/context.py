"""Columns that condition the model and are not modelled: covariates, labels, and the offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.datasets.cells import Cells, Levels, with_levels
from pyro_vae.datasets.errors import DataError, check_choice

Encoding = Literal["standardise", "one-hot", "none"]
Asked = str | Sequence[str] | Mapping[str, str | None] | None

# The word that stands for the labels of a named set, and the name of their column.
LABELS, LABEL = "labels", "label"
# The word that stands for the total of a row.
TOTAL = "total"


@dataclass(frozen=True)
class ContextColumn:
    r"""How one column becomes covariates.

    Attributes:
        name: of the column.
        encoding: `standardise` to mean 0 and variance 1, `one-hot`, or `none`.
        levels: of a one-hot column, in the order of its covariates.
        centre: what `standardise` subtracts.
        scale: what it divides by.
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
        r"""Return the covariates, N x width float32, of a column's numbers or codes, (N,)."""
        if self.levels is not None:
            codes = torch.from_numpy(values.astype(np.int64))
            return torch.nn.functional.one_hot(codes, len(self.levels)).float()
        return torch.from_numpy((values - self.centre) / self.scale).float().unsqueeze(1)

    def record(self) -> dict[str, Any]:
        r"""Return every field, ready for JSON."""
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
        r"""Restore what `record` returned."""
        levels = None if record["levels"] is None else tuple(record["levels"])
        return cls(record["name"], record["encoding"], levels, record["centre"], record["scale"])


def asked_for(context: Asked) -> dict[str, str | None]:
    r"""Return the encoding that is asked for of each context column, None for the column's own.

    Raises:
        DataError: for an encoding that is none.
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
    r"""Return a column's encoding, fitted on the training rows, and its cells in the form that it wants.

    Words are one-hot and numbers standardised unless another encoding is asked for. Levels are those of all rows.

    Raises:
        DataError: where words are to be taken as numbers, or a number to standardise is constant.
    """
    encoding = cast("Encoding", asked or ("standardise" if cells.levels is None else "one-hot"))
    if encoding == "one-hot":
        coded = with_levels(cells)
        return ContextColumn(name, encoding, coded.levels), coded
    if cells.levels is not None:
        raise DataError(
            f"`{title}`: context column `{name}` holds words (`{cells.levels[0]}`), which encoding=`{encoding}` cannot "
            "take; leave the encoding out, or pass `one-hot`"
        )
    if encoding == "none":
        return ContextColumn(name, encoding), cells
    rows = cells.values[train]
    if float(np.ptp(rows)) == 0.0:
        raise DataError(
            f"`{title}`: context column `{name}` is constant ({rows[0]:g}) on the {len(rows)} training rows, and tells "
            "nothing; leave it out of `context`"
        )
    return ContextColumn(name, encoding, None, float(rows.mean()), float(rows.std())), cells


@dataclass(frozen=True)
class Offset:
    r"""The offset of a row: the log of a size, less its mean over the training rows.

    .. math:: o_i = \log s_i - \frac{1}{N} \sum_{j \in \mathrm{train}} \log s_j

    so that an offset of 0 is that of a typical row, with which a model draws.

    Attributes:
        source: `total` for the sum over a row's observed cells, else the name of the column that holds s.
        centre: mean of log s over the training rows.
    """

    source: str
    centre: float = 0.0

    def of(self, title: str, size: Tensor) -> Tensor:
        r"""Return the offsets, N x 1 float32, of sizes (N,).

        Raises:
            DataError: naming the first size that is not above 0.
        """
        bad = ~(size > 0)
        if bool(bad.any()):
            row = int(bad.to(torch.uint8).argmax())
            what = "total" if self.source == TOTAL else f"`{self.source}`"
            raise DataError(
                f"`{title}`: data row {row + 1} (counted from 1, without the header) has {what} {float(size[row]):g}, "
                f"of which `offset: {self.source}` takes the log; drop the row, or the offset"
            )
        return (size.double().log() - self.centre).float().unsqueeze(1)
