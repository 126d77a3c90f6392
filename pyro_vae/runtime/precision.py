r"""How exactly networks multiply matrices; what is made of their outputs is always as exact as the parameters."""

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
    r"""Within the block, networks compute with so many bits; densities, KL and log-sum-exp do not.

    A sum of 784 Bernoulli terms in bfloat16 is off by half a nat; of terms in float32 whose logits come from a
    network in bfloat16, by hundredths. The networks that parametrise the transforms of a `Flow` are not affected.

    Arguments:
        precision: ``"float32"``, as the parameters are; ``"tf32"``: on a CUDA device the factors of products are
            rounded to 10 bits of mantissa; ``"bfloat16"``: networks run in bfloat16 (8 bits), by autocast.

    Raises:
        InputError: For any other.

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
    """Returns what decides how exactly the process computes now, by which programs differ."""
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return (_autocast.get(), *cuda, torch.get_default_dtype())


def network_output(network: nn.Module, context: Tensor) -> Tensor:
    """Returns a network's output, computed as `networks_in` says and of the type of the context.

    The network sees one batch dimension, whatever the context has: batch normalisation and convolutions need it.

    Arguments:
        network: Maps ``(B, C)`` to ``(B, ...)``.
        context: Shape ``(..., C)``.

    Returns:
        Shape ``(..., *rest)``.
    """
    rows, dtype = context.reshape(-1, context.shape[-1]), _autocast.get()
    if dtype is None:
        output: Tensor = network(rows)
    else:
        with torch.autocast(context.device.type, dtype, cache_enabled=False):
            output = network(rows).to(context.dtype)
    return output.reshape(*context.shape[:-1], *output.shape[1:])
