"""A data set, split into parts and scaled to model units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets.binarisation import bernoulli_draw, generator_for
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.large_arrays import row_blocks
from pyro_vae.datasets.raw_data import Binarisation, Scaling
from pyro_vae.errors import InputError


@dataclass(frozen=True, eq=False)
class Data:
    r"""Training, validation and test data in model units, with the facts that a result must record about them.

    Attributes:
        train: N x D float32. Grey values in [0, 1] under dynamic binarisation, where `transform` draws new bits for
            every minibatch; bits under static and threshold binarisation.
        valid: N x D float32, or None. Binarised once, with the recorded seed.
        test: N x D float32, or None. Binarised once, with the recorded seed.
        units: The map between model units and own units.
        labels: For each part the N labels (int64) of its rows; empty where there are none.
        seed: Seed of the split and of every binarisation except the dynamic one of `train`.
        split: Fractions of the parts; None where the official sets are used as they are.
        source: Name and sha256 of each file.
        context: For each part the covariates of its rows, N x C float32; empty where nothing conditions the model.
            Rows of `train` whose label is hidden are nan.
        offset: For each part the offsets of its rows, N x 1 float32; empty where there are none.
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

    def batch(self, part: str = "train", most: int | None = None) -> Batch:
        r"""Returns the rows of a part with their context, mask and offset, where the data have them.

        Missing cells are 0 in the batch (NaN in `train`, `valid` and `test`).

        Arguments:
            part: `train`, `valid` or `test`.
            most: Largest number of rows; None for all. If the part has more, so many are drawn at random, in random
                order. The draw depends on `seed` alone, and a smaller number is the beginning of a greater one.

        Raises:
            InputError: If there is no such part, or it has no rows.
        """
        sizes = {"train": self.train, "valid": self.valid, "test": self.test}
        have = [name for name, x in sizes.items() if x is not None]
        x = sizes.get(part)
        if x is None:
            raise InputError(
                f"`{self.name}`: there is no part `{part}`; choose one of {', '.join(f'`{name}`' for name in have)}"
            )
        whole = Batch(x, self.context.get(part), None, self.offset.get(part))
        if most is not None and len(x) > most:
            whole = whole.select(torch.randperm(len(x), generator=generator_for(self.seed, "evaluated"))[:most])
        x, mask = observed(whole.x) if self.units.missing == "mask" else (whole.x, None)
        return whole._replace(x=x, mask=mask)

    @property
    def context_features(self) -> int:
        r"""Number C of covariates."""
        return self.units.context_features

    @property
    def labelled(self) -> int | None:
        r"""Number of training rows whose label is known; None where no label is hidden."""
        context = self.context.get("train")
        known = -1 if context is None else int((~context.isnan().any(1)).sum())
        return None if context is None or known == len(context) else known

    def context_of(self, n: int) -> Tensor | None:
        r"""Returns n rows of context, cycling through the training rows; None where nothing conditions the model.

        Rows with a hidden label are skipped.
        """
        context = self.context.get("train")
        if context is None:
            return None
        known = context[~context.isnan().any(1)]
        return known[torch.arange(n) % len(known)]

    def mean_log_jacobian(self, part: str) -> float:
        r"""Returns the mean over a part's rows of the log Jacobian of their observed cells, in nats."""
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
        r"""Numbers that `to_model_units` subtracts, () or (D,) float64; None where scaling is `none`."""
        return self.units.centre

    @property
    def scale(self) -> Tensor | None:
        r"""Numbers that `to_model_units` divides by, () or (D,) float64; None where scaling is `none`."""
        return self.units.scale

    @property
    def cross_entropy(self) -> bool:
        r"""Whether results are cross-entropies, not log-likelihoods: a Bernoulli likelihood on grey values."""
        return self.units.cross_entropy

    @property
    def log_jacobian(self) -> float:
        r"""Nats to add to log p(x) in model units for log p(x) in own units."""
        return self.units.log_jacobian

    def transform(self, x: Tensor, generator: torch.Generator) -> Tensor:
        r"""Returns a training minibatch as a step uses it: binarised by a new draw if binarisation is dynamic.

        Arguments:
            x: Rows of `train`, B x D.
            generator: Random generator of the draw; unused where binarisation is not dynamic.

        Returns:
            B x D, same dtype: bits under dynamic binarisation, `x` itself otherwise.
        """
        return bernoulli_draw(x, generator) if self.binarisation == "dynamic" else x

    @property
    def minibatch_transform(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """`transform`, for `pyro_vae.fit`; None where it changes nothing."""
        return self.transform if self.binarisation == "dynamic" else None

    def to_model_units(self, x: Tensor | ArrayLike) -> Tensor:
        r"""Centres and scales data in own units; see `DataTransform.to_model_units`."""
        return self.units.to_model_units(x)

    def to_own_units(self, x: Tensor | ArrayLike) -> Tensor:
        r"""Undoes `to_model_units`; see `DataTransform.to_own_units`."""
        return self.units.to_own_units(x)

    def __repr__(self) -> str:
        sizes = {"train": self.train, "valid": self.valid, "test": self.test}
        parts = ", ".join(f"{part} {tuple(x.shape)}" for part, x in sizes.items() if x is not None)
        return f"Data({self.name}: {parts}, binarisation={self.binarisation}, scaling={self.scaling})"

    def record(self) -> dict[str, Any]:
        r"""Returns the facts that a result must record, ready for JSON; `DataTransform.from_record` reads them too."""
        sizes = {"train": self.train, "valid": self.valid, "test": self.test}
        return self.units.record() | {
            "n": {part: len(x) for part, x in sizes.items() if x is not None},
            "seed": self.seed,
            "split": None if self.split is None else list(self.split),
            "source": dict(self.source),
            "observed": {part: observed_share(x) for part, x in sizes.items() if x is not None},
            **({} if self.labelled is None else {"labelled": self.labelled}),
        }


def observed_share(x: Tensor) -> float:
    r"""Returns the share of the cells that are observed."""
    return sum(int((~x[rows].isnan()).sum()) for rows in row_blocks(x)) / x.numel()


def observed(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the rows with 0 in place of NaN, and the mask: true where a cell is observed."""
    mask = ~x.isnan()
    return x.masked_fill(~mask, 0.0), mask
