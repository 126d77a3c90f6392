r"""The input of an encoder in an experiment file, which depends on the likelihood's support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.columns import ColumnSupport
from pyro_vae.distributions.multinomial import CountVector
from pyro_vae.distributions.support import base_support
from pyro_vae.errors import InputError
from pyro_vae.networks.preprocess import Bounds, Cell, Preprocess

# Whole numbers in a range up to this width are not preprocessed.
_NARROW = 32


def default_input(support: Constraint | None) -> str:
    r"""Returns the default preprocessing of data with a given support.

    Counts become log(1 + x); positive numbers have a logarithmic scale; whole numbers between bounds more than 32
    apart are mapped to [0, 1], since the tanh of a grey level of 255 is saturated (for a smaller range, this map would
    slow training down); a table with a family for each column is preprocessed column by column; other data are not
    preprocessed.

    Example:
        >>> default_input(constraints.nonnegative_integer), default_input(constraints.real)
        ('log1p', 'raw')
        >>> default_input(constraints.positive)
        'log'
        >>> default_input(constraints.integer_interval(0, 255)), default_input(constraints.boolean)
        ('unit', 'raw')
    """
    if isinstance(support, ColumnSupport):
        return "columns"
    if is_count(support):
        return "log1p"
    if is_positive(support):
        return "log"
    bounds = bounds_of(support)
    wide = bounds is not None and bool((torch.as_tensor(bounds[1] - bounds[0]) > _NARROW).any())
    return "unit" if wide else "raw"


def is_count(support: Constraint | None) -> bool:
    """Returns whether a support holds whole numbers from 0, without an upper bound for each cell."""
    base: Any = None if support is None else base_support(support)
    if isinstance(base, CountVector | type(constraints.multinomial)):
        return True
    unbounded = isinstance(base, type(constraints.nonnegative_integer))
    return unbounded and bool((torch.as_tensor(base.lower_bound) >= 0).all())


def is_positive(support: Constraint | None) -> bool:
    """Returns whether a support holds all numbers above a bound that is at least 0."""
    base: Any = None if support is None else base_support(support)
    unbounded = isinstance(base, constraints.greater_than | constraints.greater_than_eq)
    return unbounded and bool((torch.as_tensor(base.lower_bound) >= 0).all())


def bounds_of(support: Constraint | None) -> Bounds | None:
    """Returns the bounds of whole numbers of more than two values; None for any other support."""
    base = None if support is None else base_support(support)
    if not isinstance(base, constraints.integer_interval):
        return None
    low, high = (_of_one_datum(bound) for bound in (base.lower_bound, base.upper_bound))
    return (low, high) if bool((torch.as_tensor(high - low) > 1).any()) else None


def _of_one_datum(bound: float | Tensor) -> float | Tensor:
    """Returns the bound of one datum, a number or one for each cell, from the bound of a batch."""
    cells = torch.as_tensor(bound)
    cells = cells.reshape(-1, cells.shape[-1])[0] if cells.dim() > 1 else cells
    return float(cells.flatten()[0]) if bool((cells == cells.flatten()[0]).all()) else cells


def fit_inputs(vae: nn.Module, train: Tensor) -> None:
    """Fits the scales of the encoders' inputs in a VAE to training rows, ``(N, D)``; see `LogScale`."""
    for module in vae.modules():
        if isinstance(module, Preprocess):
            module.fit(train)


@dataclass(frozen=True)
class EncoderInput:
    """Description of the data that an encoder receives.

    Attributes:
        support: Support of the data; None if unknown.
        columns: Preprocessing of each column, for a table with a family for each column; see `Preprocess`.
    """

    support: Constraint | None = None
    columns: tuple[Cell, ...] = ()

    @classmethod
    def of_columns(cls, supports: Sequence[Constraint], names: Sequence[str], levels: Sequence[bool]) -> EncoderInput:
        """Returns the description of a table.

        Arguments:
            supports: Supports of the columns.
            names: Names of the columns.
            levels: Whether each column holds codes of levels without an order.
        """
        cells = tuple(map(_cell, supports, levels))
        return cls(ColumnSupport(supports, names), cells)

    def kind(self, asked: str | None, own: bool) -> str:
        """Returns the kind of preprocessing.

        Arguments:
            asked: Kind in the file; None for the default of the support.
            own: Whether the network is the user's own, which receives raw data by default.
        """
        if asked is not None:
            return asked
        return "raw" if own else default_input(self.support)

    def width(self, kind: str, cells: int) -> int:
        """Returns the number of features that replace the cells."""
        return Preprocess.width(self.columns) if kind == "columns" and self.columns else cells

    def preprocessed(self, network: nn.Module, kind: str, context_features: int, cells: int) -> nn.Module:
        """Returns the network with a kind of preprocessing before it.

        Raises:
            InputError: If this kind does not fit the data.
        """
        if kind == "raw":
            return network
        if kind == "unit":
            bounds = bounds_of(self.support)
            if bounds is None:
                raise InputError(
                    "`input: unit` is for whole numbers between bounds, as of a `DiscretizedLogisticMixture` or a "
                    "`Binomial` likelihood; use `input: raw`, or leave it out."
                )
            return Preprocess("unit", network, context_features, bounds=bounds)
        if kind == "columns":
            return Preprocess("columns", network, context_features, columns=self._table())
        if kind == "log":
            return Preprocess("log", network, context_features, cells=cells)
        return Preprocess(kind, network, context_features)

    def _table(self) -> tuple[Cell, ...]:
        if not self.columns:
            raise InputError("`input: columns` is for a `mixed` likelihood; use `input: raw`, or leave it out.")
        return self.columns


def _cell(support: Constraint, levels: bool) -> Cell:
    """Returns the preprocessing of one column."""
    if is_count(support):
        return "log1p"
    if is_positive(support):
        return "log"
    base, bounds = base_support(support), bounds_of(support)
    if levels and isinstance(base, constraints.integer_interval):
        return int(torch.as_tensor(base.upper_bound)) + 1
    return "raw" if bounds is None else (float(bounds[0]), float(bounds[1]))
