"""Between the data's own units and the model's: what a trained model must remember of its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_vae.datasets.binarisation import bernoulli_draw, threshold
from pyro_vae.datasets.errors import DataError
from pyro_vae.datasets.raw import Binarisation, RawData, Scaling


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

    def to_model_units(self, x: Tensor | ArrayLike) -> Tensor:
        r"""Centre and scale; binarise nothing (`binarise` does).

        Args:
            x: (..., D), own units, any dtype, a tensor, array or data frame; computed in float64.

        Returns:
            float32 of the same shape, model units.

        Raises:
            DataError: if the last dimension is not D.
        """
        x = as_tensor(x)
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
            float64 of the same shape, own units: float32 would lose a column whose centre is large.

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
        return threshold(x) if self.binarisation == "threshold" else bernoulli_draw(x, generator)

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
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DataTransform:
        r"""Restore what `record` returned; other entries, such as those of `Data.record`, are ignored.

        Raises:
            DataError: naming the entries that are missing.
        """
        fields = cls.__dataclass_fields__
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
        return cls(**values)

    def _check(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise DataError(
                f"`{self.name}`: got data of shape {tuple(x.shape)}; expected (..., {self.dim}): flatten "
                "images, and give a table the columns of the training data"
            )


def as_tensor(x: Tensor | ArrayLike) -> Tensor:
    r"""Return an array-like as a tensor."""
    return x if isinstance(x, Tensor) else torch.from_numpy(np.array(x))


def fit_transform(raw: RawData, train: Tensor, binarisation: Binarisation, scaling: Scaling) -> DataTransform:
    r"""Fit centre and scale on the training rows alone (images: the greatest grey level, which is no fit).

    Args:
        raw: the data set.
        train: N x D, own units.
        binarisation: decides whether the Jacobian counts.
        scaling: `none`, `unit` or `standardise`.

    Raises:
        DataError: naming the column that is constant on the training rows.
    """
    centre: Tensor | None = None
    scale: Tensor | None = None
    if scaling == "unit" and raw.level is not None:
        centre = torch.zeros((), dtype=torch.float64)
        scale = torch.tensor(raw.level, dtype=torch.float64)
    elif scaling != "none":
        rows = train.to(torch.float64)
        low, high = rows.amin(0), rows.amax(0)
        constant = (low == high).nonzero()
        if len(constant):
            column = int(constant[0])
            name = f"`{raw.columns[column]}`" if raw.columns else str(column + 1)
            raise DataError(
                f"`{raw.title}`: column {name} is constant ({float(low[column]):g}) on the {len(rows)} "
                f"training rows, so that scaling=`{scaling}` would divide by zero; drop it, or "
                "pass scaling=`none`"
            )
        centre, scale = (low, high - low) if scaling == "unit" else (rows.mean(0), rows.std(0, correction=0))
    jacobian = 0.0
    if scale is not None and binarisation == "none":
        jacobian = -float(scale.log().sum() if scale.ndim else raw.dim * math.log(float(scale)))
    return DataTransform(
        raw.name, raw.dim, binarisation, scaling, raw.image_shape, raw.columns, centre, scale, jacobian
    )
