r"""Data as they are given, made ready for one VAE."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from pyro_vae.batch import Batch, DataLike, is_frame
from pyro_vae.errors import InputError
from pyro_vae.vae.part import column_names


class TakesData(Protocol):
    """What decides how data are read: a `VAE`."""

    likelihood: nn.Module
    transformed_data: bool


def batch_for(vae: TakesData, data: DataLike, caller: str = "VAE", name: str = "x") -> Batch:
    """Returns data as a `Batch` of tensors, the columns of a data frame in the order of the likelihood's.

    A likelihood tells the names of its columns; see `pyro_vae.vae.part.Likelihood`.

    Arguments:
        vae: For which they are.
        data: Shape ``(B, *event_shape)``, model units, in any form that `Batch.of` takes.
        caller: Who asks; begins the message of an error.
        name: What the data are called there.

    Raises:
        InputError: As `Batch.of`; and for a data frame where the VAE is declared with ``transformed_data=True``.
    """
    x = data.x if isinstance(data, Batch) else data
    if isinstance(x, Tensor):
        return Batch.of(data, caller, name)
    if vae.transformed_data and is_frame(x):
        raise InputError(
            f"{caller}: the VAE is of transformed data, as those of an experiment are, and the data frame may be in "
            "other units than the model's; pass read_rows(frame) of what `pyro_vae.load` returns, or "
            "units.to_model_units(frame) of the data's transform."
        )
    return Batch.of(data, caller, name, column_names(vae.likelihood))
