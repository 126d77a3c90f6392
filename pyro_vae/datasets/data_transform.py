"""The map between own units and model units, which is saved with a trained model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
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
from pyro_vae.datasets.large_arrays import row_blocks
from pyro_vae.datasets.number_format import NumberFormat
from pyro_vae.datasets.raw_data import Binarisation, Missing, RawData, Scaling
from pyro_vae.datasets.user_file import Wanted, from_frame
from pyro_vae.errors import InputError, shown

# Entries that old records lack.
_OPTIONAL = ("missing", "levels", "context", "offset", "numbers")
# Number of cells whose columns are fitted at once, and the least number of columns.
_CELLS, _COLUMNS = 2**20, 16


@dataclass(frozen=True, eq=False)
class DataTransform:
    r"""The affine map from a data set's own units to model units.

    .. math:: x_\mathrm{model} = (x_\mathrm{own} - c) / s, \qquad
        \log p(x_\mathrm{own}) = \log p(x_\mathrm{model}) - \sum_d \log s_d

    `from_record(record())` restores it exactly, without the data. So a saved model can score new data, and can write
    generated data in the units of its training file.

    Attributes:
        name: Name of the data set.
        dim: Number D of cells of one datum.
        binarisation: `none`, `static`, `dynamic` or `threshold`.
        scaling: `none`, `unit` or `standardise`.
        image_shape: Shape of one datum, with product D; None for a table.
        columns: Names of a table's D columns; None where they have none.
        centre: The c of the formula, float64, (D,), or () and 0 for images; None where scaling is `none`.
        scale: The s of the formula, float64, (D,), or () for images; None where scaling is `none`.
        log_jacobian: :math:`-\sum_d \log s_d` in nats, to be added to a log density in model units. It is 0 for
            binarised data, other discrete data and cross-entropies, since a mass has no Jacobian.
        cross_entropy: Whether the likelihood is a Bernoulli on grey values, which gives a cross-entropy, not log p(x).
        missing: `mask` where cells may be missing (NaN), `error` where not.
        levels: For each column the meanings of its codes 0, 1, ..., or None for a column of numbers; None where no
            column has levels.
        context: The columns, or labels, that condition the model, in the order of their covariates.
        offset: Rule of the offset; None where the model has none.
        numbers: How numbers are written in `.csv` files, where this was declared.

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
    numbers: NumberFormat | None = None

    @property
    def context_features(self) -> int:
        r"""Number C of covariates."""
        return sum(column.width for column in self.context)

    @property
    def cell_names(self) -> tuple[str, ...]:
        r"""Names of the D cells: of a table's columns, else `x0`, `x1`, ..."""
        return self.columns or tuple(f"x{index}" for index in range(self.dim))

    def to_model_units(self, x: Tensor | ArrayLike | pd.DataFrame, *, in_place: bool = False) -> Tensor:
        r"""Centres and scales data, without binarisation (see `binarise`).

        For data with missing cells, or with columns that condition the model, use `read_rows`, which returns a batch.

        Arguments:
            x: (..., D), own units, any dtype: a tensor, an array or a data frame (columns are found by name; columns
                with levels hold words). Missing cells (NaN) stay NaN. The computation is in float64.
            in_place: Whether a float32 tensor may be overwritten by the result.

        Returns:
            float32 of the same shape, model units.

        Raises:
            InputError: If the last dimension is not D, or a column or cell of a data frame cannot be used.
        """
        x = self._own_numbers(x) if isinstance(x, pd.DataFrame) else as_tensor(x)
        self._check(x)
        if self.centre is None or self.scale is None:
            return x.to(torch.float32)
        if x.dtype == torch.uint8 and self.scale.ndim == 0:
            # Exact for grey levels, and half the memory of float64 on a whole image set.
            return x.to(torch.float32).div_(self.scale.item())
        centre, scale = self.centre.to(x.device), self.scale.to(x.device)
        scaled = x if in_place and x.dtype == torch.float32 else torch.empty_like(x, dtype=torch.float32)
        own, out = x.reshape(-1, self.dim), scaled.view(-1, self.dim)
        for rows in row_blocks(own):
            out[rows] = (own[rows].to(torch.float64) - centre).div_(scale)
        return scaled

    def to_own_units(self, x: Tensor | ArrayLike) -> Tensor:
        r"""Undoes `to_model_units`; for binarised data, maps a grey value (a Bernoulli mean) to a grey level.

        Arguments:
            x: (..., D), model units.

        Returns:
            float64 of the same shape, own units (float32 is too coarse for a column with a large centre). A column
            with levels keeps their codes; `to_frame` writes the levels.

        Raises:
            InputError: If the last dimension is not D.
        """
        x = as_tensor(x)
        self._check(x)
        if self.scale is not None and self.scale.ndim == 0:
            # In the precision of x, so that a grey level becomes the same integer again.
            return (x * self.scale.item()).to(torch.float64)
        model = x.to(torch.float64)
        if self.centre is None or self.scale is None:
            return model
        return model * self.scale.to(x.device) + self.centre.to(x.device)

    def to_frame(self, x: Tensor | ArrayLike) -> pd.DataFrame:
        r"""Returns rows in own units as a data frame with named columns, and levels in place of codes.

        Arguments:
            x: (N, D), model units.
        """
        return self.named(self.to_own_units(x))

    def named(self, x: Tensor) -> pd.DataFrame:
        r"""Returns `to_frame` of rows that are in own units already, (N, D); codes are rounded to the nearest level."""
        own = x.double().cpu().numpy()
        levels = self.levels or (None,) * self.dim
        return pd.DataFrame({name: decoded(own[:, i], levels[i]) for i, name in enumerate(self.cell_names)})

    def log_jacobian_of(self, rows: Batch | Tensor | None) -> Tensor | float:
        r"""Returns the log Jacobian of the observed cells, in nats: the addend to log p(x) in model units.

        Arguments:
            rows: A batch in model units, or its mask, (N, D), true where a cell is observed; None if all are observed.

        Returns:
            One number for each row, (N,) float64; or `log_jacobian`, if it is the same for all rows.
        """
        mask = rows.mask if isinstance(rows, Batch) else rows
        if mask is None or self.scale is None or self.log_jacobian == 0:
            return self.log_jacobian
        return -(mask.reshape(len(mask), -1).double().cpu() * self.scale.log()).sum(-1)

    def encode_context(self, cells: Mapping[str, Cells]) -> Tensor | None:
        r"""Returns the covariates, N x C float32, from the cells of the context columns; None without a context."""
        if not self.context:
            return None
        return torch.cat([column.encode(cells[column.name].values) for column in self.context], dim=1)

    def binarise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r"""Binarises grey values as `binarisation` says: by a draw, by the threshold 0.5, or not at all.

        Arguments:
            x: (..., D), model units, in [0, 1] unless `binarisation` is `none`.
            generator: Random generator of the draw for `static` and `dynamic`.

        Returns:
            Bits (or `x` itself where `binarisation` is `none`) of the same shape and dtype.

        Raises:
            InputError: If a value is outside [0, 1]; the message names the first one.
        """
        if self.binarisation == "none":
            return x
        bad = ((x < 0) | (x > 1)).reshape(-1, self.dim).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            value = shown(x.reshape(-1, self.dim)[row, column].item())
            raise InputError(
                f"`{self.name}`: row {row + 1}, column {column + 1} is {value} "
                f"after scaling, but binarisation=`{self.binarisation}` needs values in [0, 1]; give values in the "
                "range of the training data"
            )
        drawn = threshold(x) if self.binarisation == "threshold" else bernoulli_draw(x, generator)
        return torch.where(x.isnan(), x, drawn) if self.missing == "mask" else drawn

    def record(self) -> dict[str, Any]:
        r"""Returns every field as plain numbers, strings and lists, ready for JSON."""
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
            "numbers": None if self.numbers is None else asdict(self.numbers),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DataTransform:
        r"""Returns the transform of a record; other entries, such as those of `Data.record`, are ignored.

        The entries `missing`, `levels`, `context`, `offset` and `numbers` may be absent, as in old records.

        Raises:
            InputError: If an entry is missing or cannot be used; the message names it.
        """
        from pyro_vae.datasets.transform_record import check_record  # pydantic takes long to import

        fields = [name for name in cls.__dataclass_fields__ if name not in _OPTIONAL]
        missing = [name for name in fields if name not in record]
        if missing:
            raise InputError(
                "`DataTransform.from_record`: the record lacks "
                f"{', '.join(f'`{name}`' for name in missing)}; pass what `record()` returned"
            )
        check_record(record)
        values = {name: record[name] for name in fields}
        for name in ("image_shape", "columns"):
            values[name] = None if values[name] is None else tuple(values[name])
        for name in ("centre", "scale"):
            values[name] = None if values[name] is None else torch.tensor(values[name], dtype=torch.float64)
        levels, offset, numbers = record.get("levels"), record.get("offset"), record.get("numbers")
        return cls(
            **values,
            missing=record.get("missing", "error"),
            levels=None if levels is None else tuple(None if each is None else tuple(each) for each in levels),
            context=tuple(ContextColumn.from_record(column) for column in record.get("context", [])),
            offset=None if offset is None else Offset(**offset),
            numbers=None if numbers is None else NumberFormat(**numbers),
        )

    @property
    def known_levels(self) -> dict[str, Levels]:
        r"""Levels of each column that has levels, by the column's name."""
        pairs = zip(self.columns or (), self.levels or (), strict=False)
        return {name: levels for name, levels in pairs if levels is not None}

    def _own_numbers(self, frame: pd.DataFrame) -> Tensor:
        """Returns the numbers and codes of a data frame."""
        wanted = Wanted(self.columns, (), self.missing == "mask", levels=self.known_levels)
        return torch.from_numpy(from_frame(frame, wanted, self.name).arrays["all"])

    def _check(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise InputError(
                f"`{self.name}`: got data of shape {tuple(x.shape)}; expected (..., {self.dim}): flatten "
                "images; pass tables with the columns of the training data"
            )


def as_tensor(x: Tensor | ArrayLike) -> Tensor:
    r"""Returns an array-like as a tensor.

    Raises:
        InputError: If it does not hold real numbers.
    """
    if isinstance(x, Tensor):
        return x
    array = np.array(x)
    if array.dtype.kind not in "biuf":
        raise InputError(f"got an array of dtype `{array.dtype}`; pass real numbers, or words in a DataFrame")
    return torch.from_numpy(array)


def fit_transform(
    raw: RawData, train: Tensor, binarisation: Binarisation, scaling: Scaling, scaled: Tensor | None = None
) -> DataTransform:
    r"""Returns the transform, with centre and scale fitted on the observed cells of the training rows.

    Images are not fitted: `unit` scaling divides them by their greatest grey level.

    Arguments:
        raw: The data set.
        train: Training rows, N x D, own units; NaN where a cell is missing.
        binarisation: Kind of binarisation; the log Jacobian is 0 unless it is `none`.
        scaling: `none`, `unit` or `standardise`.
        scaled: Mask of the columns to be scaled, (D,) bool; None for all.

    Raises:
        InputError: If a column is empty or constant on the training rows; the message names it.
    """
    if raw.missing and bool((empty := train.isnan().all(0)).any()):
        raise InputError(
            f"`{raw.title}`: column {_named(raw, int(empty.nonzero()[0]))} is empty on all {len(train)} training rows, "
            "so it cannot be learned; drop it, or choose another split"
        )
    centre: Tensor | None = None
    scale: Tensor | None = None
    if scaling == "unit" and raw.level is not None:
        centre = torch.zeros((), dtype=torch.float64)
        scale = torch.tensor(raw.level, dtype=torch.float64)
    elif scaling != "none":
        centre, scale = _fit_columns(raw, train, scaling, scaled)
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
        numbers=raw.numbers,
    )


def _fit_columns(raw: RawData, rows: Tensor, scaling: Scaling, scaled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the centre and the scale of each column; 0 and 1 for columns that are not scaled."""
    # Kept in one place: small results between large temporaries would keep the allocator from using these again.
    numbers = torch.empty(4, rows.shape[1], dtype=torch.float64)
    for columns in _column_blocks(rows):
        _fit_block(numbers[:, columns], rows[:, columns].to(torch.float64), scaling)
    low, high, centre, scale = numbers
    chosen = torch.ones_like(low, dtype=torch.bool) if scaled is None else scaled
    constant = ((low == high) & chosen).nonzero()
    if len(constant):
        column = int(constant[0])
        raise InputError(
            f"`{raw.title}`: column {_named(raw, column)} is constant ({shown(float(low[column]))}) on the {len(rows)} "
            f"training rows, so scaling=`{scaling}` would divide by zero; drop it, or pass scaling=`none`"
        )
    return torch.where(chosen, centre, 0.0), torch.where(chosen, scale, 1.0)


def _column_blocks(rows: Tensor) -> Iterator[slice]:
    """Yields slices that cover the columns; the rows of each are few enough to be held in float64."""
    step = max(_COLUMNS, _CELLS // max(1, len(rows)) // _COLUMNS * _COLUMNS)
    for start in range(0, rows.shape[1], step):
        yield slice(start, start + step)


def _fit_block(numbers: Tensor, rows: Tensor, scaling: Scaling) -> None:
    """Writes the least and the greatest value, the centre and the scale of each column, (4, D)."""
    missing = rows.isnan()
    numbers[0], numbers[1] = rows.masked_fill(missing, math.inf).amin(0), rows.masked_fill(missing, -math.inf).amax(0)
    if scaling == "unit":
        numbers[2], numbers[3] = numbers[0], numbers[1] - numbers[0]
    else:
        numbers[2] = rows.nanmean(0)
        numbers[3] = (rows - numbers[2]).square().nanmean(0).sqrt()


def _named(raw: RawData, column: int) -> str:
    return f"`{raw.columns[column]}`" if raw.columns else str(column + 1)
