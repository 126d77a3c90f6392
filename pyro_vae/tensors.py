r"""From arrays and data frames to tensors."""

from __future__ import annotations

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


def as_tensor(values: Any, name: str, forms: str = "a Tensor, an ndarray or a DataFrame") -> Tensor:
    """Returns values as a tensor of their own type; a tensor as it is.

    Arguments:
        values: A tensor, an array or a data frame.
        name: What they are called in errors.
        forms: What the caller takes.

    Raises:
        InputError: For anything else, and for cells that are not numbers.
    """
    if isinstance(values, Tensor):
        return values
    array = values.to_numpy() if hasattr(values, "to_numpy") else values
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} is {forms}; got `{type(values).__name__}`.")
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"{name}: data must be numeric, got an array of dtype `{array.dtype}`; encode its cells as numbers."
        )
    if not array.flags.writeable or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array))
