r"""Scalars that a compiled program computes once, instead of again in every loop over elements."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


@torch.library.custom_op("pyro_vae::scalar", mutates_args=())
def computed_once(value: Tensor) -> Tensor:
    """Returns a copy; Inductor stores it in memory, so loops do not repeat its computation."""
    return value.clone()


@computed_once.register_fake
def _(value: Tensor) -> Tensor:
    return torch.empty_like(value)


@computed_once.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], value: Tensor) -> tuple[Tensor, int | None]:
    return computed_once(value), in_dims[0]


@functools.cache
def register_with_inductor() -> None:
    """Tells Inductor to store the copy in memory; without this, the operator is an unknown function to Inductor."""
    from torch._inductor.lowering import clone, register_lowering

    @register_lowering(torch.ops.pyro_vae.scalar.default, type_promotion_kind=None)
    def lowered(value: Any) -> Any:
        copy = clone(value)
        copy.realize()
        return copy
