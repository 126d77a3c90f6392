r"""From arrays and data frames to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import InputError


class ToNumpy(Protocol):
    """A data frame, or what else tells its values by ``to_numpy``."""

    def to_numpy(self) -> NDArray[Any]:
        """Returns the values."""
        ...


TensorLike = Tensor | NDArray[Any] | ToNumpy


def as_tensor(
    values: Any,
    name: str,
    forms: str = "a Tensor, an ndarray or a DataFrame",
    columns: Sequence[str] | None = None,
) -> Tensor:
    """Returns values as a tensor of their own type; a tensor as it is.

    Arguments:
        values: A tensor, an array or a data frame.
        name: What they are called in errors.
        forms: What the caller takes.
        columns: Names of the columns, in whose order those of a data frame are put.

    Raises:
        InputError: For anything else, for cells that are not numbers, and for a data frame with other columns.
    """
    if isinstance(values, Tensor):
        return values
    array = values.to_numpy() if hasattr(values, "to_numpy") else values
    if columns is not None and is_frame(values):
        array = array[:, _order(values, columns, name)]
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} is {forms}; got `{type(values).__name__}`.")
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"{name}: data must be numeric, got an array of dtype `{array.dtype}`; encode its cells as numbers."
        )
    if not array.flags.writeable or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array))


def is_frame(values: Any) -> bool:
    """Whether values have columns with names."""
    return hasattr(values, "columns") and hasattr(values, "to_numpy")


def _order(frame: Any, columns: Sequence[str], name: str) -> list[int]:
    """Where the columns lie in a data frame."""
    given = [str(column) for column in frame.columns]
    if sorted(given) != sorted(columns):
        raise InputError(
            f"{name} has the columns {_listed(given)}, and the likelihood {_listed(columns)}; give the data frame "
            "these columns, in any order, or pass its values, in this order, by to_numpy()."
        )
    return [given.index(column) for column in columns]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
