r"""Kinds of calls: calls of one kind can use the same captured program."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.engine.errors import CaptureError

_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, type)
_TORCHS = (torch.dtype, torch.device, torch.Size, torch.layout)


def kind_of(value: Any) -> Hashable:
    """Returns the kind of an argument; arguments of equal kind can use the same captured program.

    Tensors of one kind have the same shape, dtype and device; numbers, strings and the like have the same value;
    modules and functions are the same object.

    Arguments:
        value: Nested tuples, lists and dictionaries, or another pytree of torch.

    Raises:
        CaptureError: For any other object, since its contents may change from call to call.

    Example:
        >>> kind_of((torch.zeros(3), 0.5)) == kind_of((torch.ones(3), 0.5))
        True
        >>> kind_of((torch.zeros(3), 0.5)) == kind_of((torch.ones(3), 1))
        False
    """
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value), *map(kind_of, value)
    if isinstance(value, dict):
        return type(value), *((name, kind_of(entry)) for name, entry in value.items())
    if isinstance(value, _PLAIN + _TORCHS):
        return type(value), value
    if isinstance(value, MethodType):  # each access makes a new object
        return _Same(value.__self__), value.__func__
    if isinstance(value, nn.Module) or callable(value):
        return _Same(value)
    leaves, spec = pytree.tree_flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        raise CaptureError(
            f"CompiledSVI: an argument is a `{type(value).__name__}`, whose contents may change unnoticed from step to "
            "step; pass tensors, numbers and strings, in tuples, lists or dictionaries (an array by torch.as_tensor)."
        )
    return str(spec), *map(kind_of, leaves)


class _Same:
    """An object as part of a kind, equal only to itself. It is kept alive, so that its id stays unique."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _of_tensor(tensor: Tensor) -> Hashable:
    if tensor.requires_grad:
        raise CaptureError(
            f"CompiledSVI: an argument, of shape {tuple(tensor.shape)}, requires a gradient, but compiled steps give "
            "arguments none; pass it detached, or make it a parameter by pyro.param."
        )
    if tensor.layout is not torch.strided:
        raise CaptureError(f"CompiledSVI: an argument is a tensor of layout {tensor.layout}; pass dense ones.")
    return tensor.shape, tensor.dtype, tensor.device
