"""Between the data's own units and the model's: what a trained model must remember of its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets.binarisation import bernoulli_draw, threshold
from pyro_vae.datasets.cells import Cells, Levels, decoded
from pyro_vae.datasets.context import ContextColumn, Offset
from pyro_vae.datasets.errors import DataError
from pyro_vae.datasets.raw_data import Binarisation, Missing, RawData, Scaling
from pyro_vae.datasets.user_file import Wanted, from_frame

# Entries that a record may lack.
_LATER = ("missing", "levels", "context", "offset")


@dataclass(frozen=True, eq=False)
class DataTransform:
    r"""The affine map from a data set's own units to the units in which the model sees it.

    .. math:: x_\mathrm{model} = (x_\mathrm{own} - c) / s, \qquad
        \log p(x_\mathrm{own}) = \log p(x_\mathrm{model}) - \sum_d \log s_d

    It needs no data: `from_record(record())` restores it, bit for bit, so that a saved model can score
    new data and write what it generates in the units of the file that it was trained on.

    Attributes:
        name: name of the data set.
        dim: number D of cells of one datum.
        binarisation: `none`, `static`, `dynamic` or `threshold`.
        scaling: `none`, `unit` or `standardise`.
        image_shape: shape of one datum, with product D; None for a table.
        columns: names of a table's D columns; None where they have none.
        centre: c, float64, (D,), or () and 0 for images; None where scaling is `none`.
        scale: s, float64, (D,), or () for images; None where scaling is `none`.
        log_jacobian: :math:`-\sum_d \log s_d` in nats, to be added to a log density in model units; 0 where
            the model's data are binarised or a cross-entropy, since a mass has no Jacobian.
        cross_entropy: whether a Bernoulli likelihood on grey values was asked for, which has no log p(x).
        missing: `mask` where cells may be missing (NaN), `error` where none may.
        levels: of each column what its codes 0, 1, ... mean, None for a column of numbers; None where no column
            has levels.
        context: the columns, or labels, that condition the model, in the order of their covariates.
        offset: of which size the log is the offset; None where there is none.

    Example:
        >>> import torch
        >>> from pyro_vae.datasets import load
        >>> units = load("digits").units
        >>> units.to_model_units(torch.full((64,), 8.0))[0]
        tensor(0.5000)
        >>> round(units.log_jacobian, 3)  # -64 log 16
        -177.446
    """

    name: str
    dim: int
    binarisation: Binarisation = "none"
    scaling: Scaling = "none"
    image_shape: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None
    centre: Tensor | None = None
    scale: Tensor | None = None
    log_jacobian: float = 0.0
    cross_entropy: bool = False
    missing: Missing = "error"
    levels: tuple[Levels | None, ...] | None = None
    context: tuple[ContextColumn, ...] = ()
    offset: Offset | None = None

    @property
    def context_features(self) -> int:
        r"""Number C of covariates."""
        return sum(column.width for column in self.context)

    @property
    def cell_names(self) -> tuple[str, ...]:
        r"""Names of the D cells: of a table's columns, else `x0`, `x1`, ..."""
        return self.columns or tuple(f"x{index}" for index in range(self.dim))

    def to_model_units(self, x: Tensor | ArrayLike | pd.DataFrame) -> Tensor:
        r"""Centre and scale; binarise nothing (`binarise` does).

        Where cells are missing, or columns condition the model, `read_rows` makes a batch of them.

        Args:
            x: (..., D), own units, any dtype, a tensor, array or data frame (its columns by their names, with words
                where they have levels); computed in float64. Missing cells (NaN) stay NaN.

        Returns:
            float32 of the same shape, model units.

        Raises:
            DataError: if the last dimension is not D, or a data frame's column or cell cannot be used.
        """
        x = self._own_numbers(x) if isinstance(x, pd.DataFrame) else as_tensor(x)
        self._check(x)
        if self.centre is None or self.scale is None:
            return x.to(torch.float32)
        if x.dtype == torch.uint8 and self.scale.ndim == 0:
            # Exact for grey levels, and half the memory of float64 on a whole image set.
            return x.to(torch.float32).div_(self.scale.item())
        own = x.to(torch.float64)
        return ((own - self.centre.to(x.device)) / self.scale.to(x.device)).to(torch.float32)

    def to_own_units(self, x: Tensor | ArrayLike) -> Tensor:
        r"""Undo `to_model_units`; of binarised data it maps a grey value (a Bernoulli mean) to a grey level.

        Args:
            x: (..., D), model units.

        Returns:
            float64 of the same shape, own units: float32 would lose a column whose centre is large. A column with
            levels keeps their codes; `to_frame` writes the levels.

        Raises:
            DataError: if the last dimension is not D.
        """
        x = as_tensor(x)
        self._check(x)
        if self.scale is not None and self.scale.ndim == 0:
            # In the precision of x, so that a grey level comes back as the integer that it was.
            return (x * self.scale.item()).to(torch.float64)
        model = x.to(torch.float64)
        if self.centre is None or self.scale is None:
            return model
        return model * self.scale.to(x.device) + self.centre.to(x.device)

    def to_frame(self, x: Tensor | ArrayLike) -> pd.DataFrame:
        r"""Return rows in own units under the columns' names, with the levels in place of their codes.

        Args:
            x: (N, D), model units.
        """
        return self.named(self.to_own_units(x))

    def named(self, x: Tensor) -> pd.DataFrame:
        r"""Return rows, (N, D) in own units, as `to_frame` does; a code is rounded to the nearest level."""
        own = x.double().cpu().numpy()
        levels = self.levels or (None,) * self.dim
        return pd.DataFrame({name: decoded(own[:, i], levels[i]) for i, name in enumerate(self.cell_names)})

    def log_jacobian_of(self, rows: Batch | Tensor | None) -> Tensor | float:
        r"""Return what log p of the observed cells adds in own units, in nats.

        Args:
            rows: a batch in model units; or its mask, (N, D), true where a cell is observed, None where all are.

        Returns:
            (N,) float64, of each row; or `log_jacobian` where all rows have the same.
        """
        mask = rows.mask if isinstance(rows, Batch) else rows
        if mask is None or self.scale is None or self.log_jacobian == 0:
            return self.log_jacobian
        return -(mask.reshape(len(mask), -1).double().cpu() * self.scale.log()).sum(-1)

    def encode_context(self, cells: Mapping[str, Cells]) -> Tensor | None:
        r"""Return the covariates, N x C float32, of the context columns' cells; None where there are none."""
        if not self.context:
            return None
        return torch.cat([column.encode(cells[column.name].values) for column in self.context], dim=1)

    def binarise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r"""Binarise grey values as this data set does: a draw, the threshold 0.5, or not at all.

        Args:
            x: (..., D), model units, in [0, 1] unless `binarisation` is `none`.
            generator: used by `static` and `dynamic` alone.

        Returns:
            Same shape and dtype.
        """
        if self.binarisation == "none":
            return x
        bad = ((x < 0) | (x > 1)).reshape(-1, self.dim).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise DataError(
                f"`{self.name}`: row {row + 1}, column {column + 1} is {x.reshape(-1, self.dim)[row, column].item():g} "
                f"after scaling, and binarisation=`{self.binarisation}` needs values in [0, 1]; give values in the "
                "range of the training data"
            )
        drawn = threshold(x) if self.binarisation == "threshold" else bernoulli_draw(x, generator)
        return torch.where(x.isnan(), x, drawn) if self.missing == "mask" else drawn

    def record(self) -> dict[str, Any]:
        r"""Return every field as plain numbers, strings and lists, ready for JSON."""
        return {
            "name": self.name,
            "dim": self.dim,
            "binarisation": self.binarisation,
            "scaling": self.scaling,
            "image_shape": None if self.image_shape is None else list(self.image_shape),
            "columns": None if self.columns is None else list(self.columns),
            "centre": None if self.centre is None else self.centre.tolist(),
            "scale": None if self.scale is None else self.scale.tolist(),
            "log_jacobian": self.log_jacobian,
            "cross_entropy": self.cross_entropy,
            "missing": self.missing,
            "levels": None
            if self.levels is None
            else [None if levels is None else list(levels) for levels in self.levels],
            "context": [column.record() for column in self.context],
            "offset": None if self.offset is None else {"source": self.offset.source, "centre": self.offset.centre},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DataTransform:
        r"""Restore what `record` returned; other entries, such as those of `Data.record`, are ignored.

        Records of before there were missing cells, levels, context and offset have no such entries: none are there.

        Raises:
            DataError: naming the entries that are missing.
        """
        fields = [name for name in cls.__dataclass_fields__ if name not in _LATER]
        missing = [name for name in fields if name not in record]
        if missing:
            raise DataError(
                "`DataTransform.from_record`: the record lacks "
                f"{', '.join(f'`{name}`' for name in missing)}; pass what `record()` returned"
            )
        values = {name: record[name] for name in fields}
        for name in ("image_shape", "columns"):
            values[name] = None if values[name] is None else tuple(values[name])
        for name in ("centre", "scale"):
            values[name] = None if values[name] is None else torch.tensor(values[name], dtype=torch.float64)
        levels, offset = record.get("levels"), record.get("offset")
        return cls(
            **values,
            missing=record.get("missing", "error"),
            levels=None if levels is None else tuple(None if each is None else tuple(each) for each in levels),
            context=tuple(ContextColumn.from_record(column) for column in record.get("context", [])),
            offset=None if offset is None else Offset(**offset),
        )

    @property
    def known_levels(self) -> dict[str, Levels]:
        r"""What the codes of columns with levels mean, by the columns' names."""
        pairs = zip(self.columns or (), self.levels or (), strict=False)
        return {name: levels for name, levels in pairs if levels is not None}

    def _own_numbers(self, frame: pd.DataFrame) -> Tensor:
        """The numbers and codes of a data frame."""
        wanted = Wanted(self.columns, (), self.missing == "mask", levels=self.known_levels)
        return torch.from_numpy(from_frame(frame, wanted, self.name).arrays["all"])

    def _check(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise DataError(
                f"`{self.name}`: got data of shape {tuple(x.shape)}; expected (..., {self.dim}): flatten "
                "images, and give a table the columns of the training data"
            )


def as_tensor(x: Tensor | ArrayLike) -> Tensor:
    r"""Return an array-like as a tensor.

    Raises:
        DataError: if it does not hold numbers.
    """
    if isinstance(x, Tensor):
        return x
    array = np.array(x)
    if array.dtype.kind not in "biuf":
        raise DataError(f"got an array of dtype `{array.dtype}`; pass real numbers, or words in a DataFrame")
    return torch.from_numpy(array)


def fit_transform(
    raw: RawData, train: Tensor, binarisation: Binarisation, scaling: Scaling, scaled: Tensor | None = None
) -> DataTransform:
    r"""Fit centre and scale on the observed cells of the training rows (images: the greatest grey level, no fit).

    Args:
        raw: the data set.
        train: N x D, own units; NaN where a cell is missing.
        binarisation: decides whether the Jacobian counts.
        scaling: `none`, `unit` or `standardise`.
        scaled: (D,) bool, which columns are scaled; None for all.

    Raises:
        DataError: naming the column that is empty or constant on the training rows.
    """
    if raw.missing and bool((empty := train.isnan().all(0)).any()):
        raise DataError(
            f"`{raw.title}`: column {_named(raw, int(empty.nonzero()[0]))} is empty on all {len(train)} training rows, "
            "so that nothing can be learned of it; drop it, or choose another split"
        )
    centre: Tensor | None = None
    scale: Tensor | None = None
    if scaling == "unit" and raw.level is not None:
        centre = torch.zeros((), dtype=torch.float64)
        scale = torch.tensor(raw.level, dtype=torch.float64)
    elif scaling != "none":
        centre, scale = _fit_columns(raw, train.to(torch.float64), scaling, scaled)
    jacobian = 0.0
    if scale is not None and binarisation == "none":
        jacobian = -float(scale.log().sum() if scale.ndim else raw.dim * math.log(float(scale)))
    return DataTransform(
        raw.name,
        raw.dim,
        binarisation,
        scaling,
        raw.image_shape,
        raw.columns,
        centre,
        scale,
        jacobian,
        missing="mask" if raw.missing else "error",
        levels=raw.levels,
    )


def _fit_columns(raw: RawData, rows: Tensor, scaling: Scaling, scaled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Centre and scale of each column; 0 and 1 of those that stay as they are."""
    missing = rows.isnan()
    low, high = rows.masked_fill(missing, math.inf).amin(0), rows.masked_fill(missing, -math.inf).amax(0)
    chosen = torch.ones_like(low, dtype=torch.bool) if scaled is None else scaled
    constant = ((low == high) & chosen).nonzero()
    if len(constant):
        column = int(constant[0])
        raise DataError(
            f"`{raw.title}`: column {_named(raw, column)} is constant ({float(low[column]):g}) on the {len(rows)} "
            f"training rows, so that scaling=`{scaling}` would divide by zero; drop it, or pass scaling=`none`"
        )
    if scaling == "unit":
        centre, scale = low, high - low
    else:
        centre = rows.nanmean(0)
        scale = (rows - centre).square().nanmean(0).sqrt()
    return torch.where(chosen, centre, 0.0), torch.where(chosen, scale, 1.0)


def _named(raw: RawData, column: int) -> str:
    return f"`{raw.columns[column]}`" if raw.columns else str(column + 1)
