"""A data set, split and in the units of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets.binarisation import bernoulli_draw
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.errors import DataError
from pyro_vae.datasets.raw_data import Binarisation, Scaling


@dataclass(frozen=True, eq=False)
class Data:
    r"""Training, validation and test data in model units, with all that a result must record about them.

    Attributes:
        train: N x D float32. Under dynamic binarisation grey values in [0, 1], from which `transform`
            draws anew; already binarised under static and threshold binarisation.
        valid: N x D float32, or None. Binarised once, by the recorded seed.
        test: N x D float32, or None. Binarised once, by the recorded seed.
        units: the map between model units and the data's own.
        labels: for each part the N labels (int64), aligned to its rows; empty where there are none.
        seed: of the split and of every binarisation but the dynamic one of `train`.
        split: fractions that were split off; None where the official sets are used as they are.
        source: name and sha256 of each file.
        context: for each part the covariates of its rows, N x C float32; empty where nothing conditions the model.
            Rows of `train` whose label is hidden are nan.
        offset: for each part the offsets of its rows, N x 1 float32; empty where there are none.
    """

    train: Tensor
    valid: Tensor | None
    test: Tensor | None
    units: DataTransform
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    split: tuple[float, ...] | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, Tensor] = field(default_factory=dict)
    offset: Mapping[str, Tensor] = field(default_factory=dict)

    def batch(self, part: str = "train") -> Batch:
        r"""Return a part with all that is known of its rows: context, mask and offset, where the data have them.

        Hidden cells are 0 in the batch (NaN in `train`, `valid` and `test`).

        Args:
            part: `train`, `valid` or `test`.

        Raises:
            DataError: where the part is none, or has no rows.
        """
        sizes = {"train": self.train, "valid": self.valid, "test": self.test}
        have = [name for name, x in sizes.items() if x is not None]
        x = sizes.get(part)
        if x is None:
            raise DataError(
                f"`{self.name}`: there is no part `{part}`; it has {', '.join(f'`{name}`' for name in have)}"
            )
        x, mask = observed(x) if self.units.missing == "mask" else (x, None)
        return Batch(x, self.context.get(part), mask, self.offset.get(part))

    @property
    def context_features(self) -> int:
        r"""Number C of covariates."""
        return self.units.context_features

    @property
    def labelled(self) -> int | None:
        r"""Number of training rows whose label is known; None where none is hidden."""
        context = self.context.get("train")
        known = -1 if context is None else int((~context.isnan().any(1)).sum())
        return None if context is None or known == len(context) else known

    def context_of(self, n: int) -> Tensor | None:
        r"""Return n rows of context, those of the training rows in turn; None where nothing conditions the model.

        Rows whose label is hidden are passed over.
        """
        context = self.context.get("train")
        if context is None:
            return None
        known = context[~context.isnan().any(1)]
        return known[torch.arange(n) % len(known)]

    def mean_log_jacobian(self, part: str) -> float:
        r"""Return `log_jacobian` of the observed cells, mean over the rows of a part, in nats."""
        return float(torch.as_tensor(self.units.log_jacobian_of(self.batch(part).mask)).double().mean())

    @property
    def name(self) -> str:
        r"""The catalogue's name, or the file's stem."""
        return self.units.name

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        r"""Shape of one datum, such as (28, 28); None for a table."""
        return self.units.image_shape

    @property
    def columns(self) -> tuple[str, ...] | None:
        r"""Names of a table's columns; None where they have none."""
        return self.units.columns

    @property
    def binarisation(self) -> Binarisation:
        r"""One of `none`, `static`, `dynamic` and `threshold`."""
        return self.units.binarisation

    @property
    def scaling(self) -> Scaling:
        r"""One of `none`, `unit` and `standardise`."""
        return self.units.scaling

    @property
    def centre(self) -> Tensor | None:
        r"""What `to_model_units` subtracts, () or (D,) float64; None where scaling is `none`."""
        return self.units.centre

    @property
    def scale(self) -> Tensor | None:
        r"""What `to_model_units` divides by, () or (D,) float64; None where scaling is `none`."""
        return self.units.scale

    @property
    def cross_entropy(self) -> bool:
        r"""Whether numbers are a cross-entropy, not a log-likelihood: a Bernoulli likelihood on grey values."""
        return self.units.cross_entropy

    @property
    def log_jacobian(self) -> float:
        r"""Nats to add to log p(x) in model units to have it in the data's own units."""
        return self.units.log_jacobian

    def transform(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r"""Do to a training minibatch what every step does: a Bernoulli draw if binarisation is dynamic.

        Args:
            x: rows of `train`, B x D.
            generator: of the draw; unused otherwise.

        Returns:
            B x D, same dtype: in {0, 1} under dynamic binarisation, `x` itself otherwise.
        """
        return bernoulli_draw(x, generator) if self.binarisation == "dynamic" else x

    def to_model_units(self, x: Tensor | ArrayLike) -> Tensor:
        r"""Centre and scale data in their own units; see `DataTransform.to_model_units`."""
        return self.units.to_model_units(x)

    def to_own_units(self, x: Tensor | ArrayLike) -> Tensor:
        r"""Undo `to_model_units`; see `DataTransform.to_own_units`."""
        return self.units.to_own_units(x)

    def __repr__(self) -> str:
        sizes = {"train": self.train, "valid": self.valid, "test": self.test}
        parts = ", ".join(f"{part} {tuple(x.shape)}" for part, x in sizes.items() if x is not None)
        return f"Data({self.name}: {parts}, binarisation={self.binarisation}, scaling={self.scaling})"

    def record(self) -> dict[str, Any]:
        r"""Return what a result must record, ready for JSON; `DataTransform.from_record` reads it too."""
        sizes = {"train": self.train, "valid": self.valid, "test": self.test}
        return self.units.record() | {
            "n": {part: len(x) for part, x in sizes.items() if x is not None},
            "seed": self.seed,
            "split": None if self.split is None else list(self.split),
            "source": dict(self.source),
            "observed": {part: float((~x.isnan()).double().mean()) for part, x in sizes.items() if x is not None},
            **({} if self.labelled is None else {"labelled": self.labelled}),
        }


def observed(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return rows with 0 in place of NaN, and the mask: true where a cell is observed."""
    mask = ~x.isnan()
    return x.masked_fill(~mask, 0.0), mask
