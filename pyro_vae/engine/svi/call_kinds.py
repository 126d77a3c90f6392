r"""Kinds of calls, which can use the same captured program, and the arguments of such a program."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import enum
from collections.abc import Container, Hashable, Mapping, Sequence
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.engine.errors import CaptureError

_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, type)
# Largest array, in bytes, whose values are compared at each call.
_MOST = 2**20
_TORCHS = (torch.dtype, torch.device, torch.Size, torch.layout)


def kind_of(value: Any) -> Hashable:
    """Returns the kind of an argument; arguments of equal kind can use the same captured program.

    Tensors of one kind have the same shape, dtype and device; numbers, strings, arrays and the like have the same
    values; modules and functions are the same object.

    Arguments:
        value: Nested tuples, lists, dictionaries, dataclasses and namespaces, or another pytree of torch.

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
    if isinstance(value, (nn.Module, FunctionType)):
        return _Same(value)
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return _of_array(value)
    if _is_record(value):
        return type(value), *((name, kind_of(entry)) for name, entry in vars(value).items())
    if callable(value):
        return _Same(value)
    leaves, spec = pytree.tree_flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        raise CaptureError(
            f"CompiledSVI: an argument is a `{type(value).__name__}`, whose contents may change unnoticed from step to "
            "step; pass tensors, numbers, strings and arrays, in tuples, lists, dictionaries, dataclasses or "
            "namespaces."
        )
    return str(spec), *map(kind_of, leaves)


def _is_record(value: Any) -> bool:
    if isinstance(value, argparse.Namespace | SimpleNamespace):
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__")


class _Record:
    """A dataclass or namespace as a node of a nested value."""

    def __init__(self, example: Any, values: dict[str, Any]) -> None:
        self.example, self.values = example, values

    def restored(self) -> Any:
        """Returns an object like the example, with other values."""
        restored = copy.copy(self.example)
        vars(restored).update(as_given(self.values))
        return restored


pytree.register_pytree_node(
    _Record,
    lambda record: (list(record.values.values()), (record.example, list(record.values))),
    lambda values, context: _Record(context[0], dict(zip(context[1], values, strict=True))),
)


def contiguous(args: Sequence[Any], kwargs: Mapping[str, Any], changed: Container[int] = ()) -> list[Any]:
    """Returns a call's arguments with contiguous tensors, as compiled code needs them, and records as nodes.

    Arguments:
        args: Positional arguments, whose tensors may have any strides.
        kwargs: Keyword arguments, whose tensors may have any strides.
        changed: Addresses of the storages that the code changes in place; tensors in these storages are copied.
    """

    def given(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in changed else tensor

    def taken(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return given(leaf.contiguous())
        return _Record(leaf, pytree.tree_map(taken, dict(vars(leaf)))) if _is_record(leaf) else leaf

    if not kwargs and all(isinstance(a, Tensor) and a.is_contiguous() and given(a) is a for a in args):
        return [args, kwargs]
    return pytree.tree_map(taken, [args, kwargs])


class _Fixed:
    """A tensor among the arguments whose values belong to the kind of the call, so a program may read them."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.device = tensor, tensor.device  # a PackedSequence asks for the device


def whole_numbers(args: Any, kwargs: Any) -> tuple[int, ...]:
    """Returns the places of the tensors of whole numbers or booleans, such as lengths, among all leaves."""
    leaves = enumerate(pytree.tree_leaves(contiguous(args, kwargs)))
    return tuple(i for i, leaf in leaves if isinstance(leaf, Tensor) and not leaf.dtype.is_floating_point)


def values_at(args: Any, kwargs: Any, places: Sequence[int]) -> Hashable:
    """Returns the values of the tensors at some places among all leaves."""
    leaves = pytree.tree_leaves(contiguous(args, kwargs))
    return tuple(leaves[i].detach().cpu().numpy().tobytes() for i in places)


def fixed_at(inputs: list[Any], places: Sequence[int]) -> list[Any]:
    """Returns the arguments with the tensors at some places fixed."""
    if not places:
        return inputs
    leaves, spec = pytree.tree_flatten(inputs)
    return pytree.tree_unflatten([_Fixed(leaf) if i in places else leaf for i, leaf in enumerate(leaves)], spec)


def as_examples(inputs: list[Any]) -> list[Any]:
    """Returns the arguments for a capture, with arrays and fixed tensors of their own: the user's may change."""
    inputs = pytree.tree_map_only(_Fixed, lambda fixed: _Fixed(fixed.tensor.clone()), inputs)
    return pytree.tree_map_only(np.ndarray, np.copy, inputs)


def as_given(inputs: Any) -> Any:
    """Returns the arguments of a program as the user gave them, in dataclasses and namespaces."""
    is_record = lambda value: isinstance(value, _Record)  # noqa: E731
    inputs = pytree.tree_map_only(_Fixed, lambda fixed: fixed.tensor, inputs)
    return pytree.tree_map(lambda leaf: leaf.restored() if is_record(leaf) else leaf, inputs, is_leaf=is_record)


class _Same:
    """An object as part of a kind, equal only to itself. It is kept alive, so that its id stays unique."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _of_array(array: np.ndarray[Any, Any] | np.generic) -> Hashable:
    if array.nbytes > _MOST:
        raise CaptureError(
            f"CompiledSVI: an argument is an `ndarray` of {array.nbytes} bytes, whose values would be compared at each "
            "step; pass torch.as_tensor of it."
        )
    return type(array), array.dtype, array.shape, array.tobytes()


def _of_tensor(tensor: Tensor) -> Hashable:
    if tensor.requires_grad:
        raise CaptureError(
            f"CompiledSVI: an argument, of shape {tuple(tensor.shape)}, requires a gradient, but compiled steps give "
            "arguments none; pass it detached, or make it a parameter by pyro.param."
        )
    if tensor.layout is not torch.strided:
        raise CaptureError(f"CompiledSVI: an argument is a tensor of layout {tensor.layout}; pass dense ones.")
    return tensor.shape, tensor.dtype, tensor.device
