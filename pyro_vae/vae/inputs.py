r"""Data as they are given, made ready for one VAE."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch, DataLike, is_frame
from pyro_vae.errors import InputError
from pyro_vae.vae.part import column_names


class TakesData(Protocol):
    """What decides how data are read: a `VAE`."""

    likelihood: nn.Module
    units: Any

    @property
    def device(self) -> torch.device:
        """Where it lies."""

    @property
    def dtype(self) -> torch.dtype:
        """Its floating-point type."""


def batch_for(vae: TakesData, data: DataLike, caller: str = "VAE", name: str = "x") -> Batch:
    """Returns data as a `Batch` of tensors, the columns of a data frame in the order of the likelihood's.

    A likelihood tells the names of its columns; see `pyro_vae.vae.part.Likelihood`.

    Arguments:
        vae: For which they are.
        data: Shape ``(B, *event_shape)``, model units, in any form that `Batch.of` takes.
        caller: Who asks; begins the message of an error.
        name: What the data are called there.

    Raises:
        InputError: As `Batch.of`; and for a data frame where the VAE comes from a run folder, with units.
    """
    x = data.x if isinstance(data, Batch) else data
    if isinstance(x, Tensor):
        return Batch.of(data, caller, name)
    if vae.units is not None and is_frame(x):
        raise InputError(
            f"{caller}: the VAE comes from a run folder, and the data frame may be in other units than the model's; "
            "pass vae.units.to_model_units(frame)."
        )
    return Batch.of(data, caller, name, column_names(vae.likelihood))


def batch_on(vae: TakesData, data: DataLike) -> Batch:
    """Returns what `batch_for` does; what was given as arrays, on the VAE's device and in its floating-point type."""
    batch = batch_for(vae, data)
    as_given = batch is data or isinstance(data, Tensor)
    return batch if as_given else batch.to(vae.device, vae.dtype)
