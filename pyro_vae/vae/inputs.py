r"""Data as they are given, made ready for one VAE."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch, DataLike, is_frame
from pyro_vae.errors import InputError
from pyro_vae.vae.part import column_names, takes_offset


class TakesData(Protocol):
    """What decides how data are read: a `VAE`."""

    likelihood: nn.Module
    transformed_data: bool
    event_shape: torch.Size
    context_features: int

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""


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
    return Batch.of(data, caller, name, column_names(vae.likelihood), vae.dtype)


def ready(vae: TakesData, data: DataLike) -> Batch:
    """Returns data as a ready batch: a `Batch` that fits the VAE, in its floating-point type.

    Arrays are put on the VAE's device; tensors stay where they are. Data are made ready once, where they enter. A ready
    batch is not checked again; neither are its rows, or a copy of it on another device.

    Arguments:
        vae: The VAE.
        data: Shape ``(B, *event_shape)``, in any form that `Batch.of` takes.

    Raises:
        InputError: For a trailing shape that is not the likelihood's, an empty batch, and fields that do not fit, as an
            offset for a likelihood that takes none.
    """
    batch, dtype = batch_for(vae, data), vae.dtype
    if batch is not data and not isinstance(data, Tensor):
        batch = batch.to(vae.device, dtype)
    if batch.x.shape[1:] != vae.event_shape or batch.x.dim() == 0 or batch.size == 0:
        raise InputError(
            f"VAE: expected data of shape (B, {', '.join(map(str, vae.event_shape))}) with B >= 1, got "
            f"{tuple(batch.x.shape)}; reshape them, or declare the likelihood with that event_shape."
        )
    _check_fields(batch, vae.context_features)
    if batch.offset is not None and not takes_offset(vae.likelihood):
        raise InputError(
            f"VAE: the batch has an offset, but the likelihood `{type(vae.likelihood).__name__}` takes none; declare a "
            "parameter as Network(offset=True), or, in a likelihood of your own, set takes_offset = True and take the "
            "offset as the second argument of forward."
        )
    fields = {"x": batch.x, "context": batch.context, "offset": batch.offset}
    cast = {name: field.to(dtype) for name, field in fields.items() if field is not None and field.dtype != dtype}
    return batch._replace(**cast) if cast else batch


def _check_fields(batch: Batch, context_features: int) -> None:
    """Raises an `InputError` if the fields of a batch do not fit each other or the model's context."""
    given = None if batch.context is None else tuple(batch.context.shape)
    if given != ((batch.size, context_features) if context_features else None):
        raise InputError(
            f"VAE: declared with context_features={context_features}, got a context of shape {given} for "
            f"{batch.size} data."
        )
    if batch.weight is not None and batch.weight.shape != (batch.size,):
        raise InputError(
            f"VAE: `weight` has shape {tuple(batch.weight.shape)}; expected ({batch.size},), one for each datum."
        )
    if batch.mask is not None and (batch.mask.shape != batch.x.shape or batch.mask.dtype != torch.bool):
        raise InputError(
            f"VAE: `mask` is {batch.mask.dtype} of shape {tuple(batch.mask.shape)}; expected torch.bool of the shape "
            f"of x, {tuple(batch.x.shape)}: True where a cell is observed."
        )
    if batch.offset is not None and (batch.offset.dim() != 2 or batch.offset.shape[0] != batch.size):
        raise InputError(
            f"VAE: `offset` has shape {tuple(batch.offset.shape)}; expected ({batch.size}, 1) or ({batch.size}, D)."
        )
