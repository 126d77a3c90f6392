r"""Precision of the networks' matrix products; everything after a network has the precision of the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError, near_match

Precision = Literal["float32", "tf32", "bfloat16"]

_autocast: ContextVar[torch.dtype | None] = ContextVar("autocast", default=None)


@contextmanager
def networks_in(precision: Precision) -> Iterator[None]:
    r"""A block that sets the precision of networks; densities, KL and log-sum-exp are not affected.

    A sum of 784 Bernoulli terms in bfloat16 has an error of half a nat. If only the logits come from a network in
    bfloat16, and the terms are in float32, the error is some hundredths. The networks of the transforms of a `Flow`
    are not affected.

    Arguments:
        precision: ``"float32"``, the precision of the parameters; ``"tf32"``: on a CUDA device, the factors of
            products are rounded to 10 bits of mantissa; ``"bfloat16"``: networks run in bfloat16 (8 bits), by
            autocast.

    Raises:
        InputError: For any other precision.

    Example:
        >>> with networks_in("bfloat16"):
        ...     network_output(nn.Linear(2, 3), torch.ones(4, 2)).dtype
        torch.float32
    """
    if precision not in get_args(Precision):
        raise InputError(f"unknown `precision` {precision!r}; {near_match(str(precision), get_args(Precision))}")
    token = _autocast.set(torch.bfloat16 if precision == "bfloat16" else None)
    products = torch.backends.cuda.matmul
    before, convolutions = products.allow_tf32, torch.backends.cudnn.allow_tf32
    if precision == "tf32":
        products.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        _autocast.reset(token)
        if precision == "tf32":
            products.allow_tf32, torch.backends.cudnn.allow_tf32 = before, convolutions


def numerics() -> tuple[object, ...]:
    """Returns the current settings of numerical precision, which are part of a compiled program."""
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return (_autocast.get(), *cuda, torch.get_default_dtype())


def network_output(network: nn.Module, context: Tensor) -> Tensor:
    """Returns a network's output, computed with the precision of `networks_in`, in the type of the context.

    The network always gets one batch dimension, since batch normalisation and convolutions need it.

    Arguments:
        network: Network from ``(B, C)`` to ``(B, *rest)``.
        context: Input of the network, shape ``(..., C)``.

    Returns:
        Output of shape ``(..., *rest)``.
    """
    rows, dtype = context.reshape(-1, context.shape[-1]), _autocast.get()
    if dtype is None:
        output: Tensor = network(rows)
    else:
        with torch.autocast(context.device.type, dtype, cache_enabled=False):
            output = network(rows).to(context.dtype)
    return output.reshape(*context.shape[:-1], *output.shape[1:])
