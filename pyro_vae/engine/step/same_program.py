r"""Comparison of two programs by their code, attributes and parts, without running them."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

# Attributes that are no part of a program: names of instances, and Pyro's caches.
_IGNORED = frozenset({"_name", "_pyro_name", "unconstrained"})
_ATOMS = (str, bytes, int, float, complex, type, type(None), type(Ellipsis), torch.dtype, torch.device)


def same_program(a: Any, b: Any) -> bool:
    """Returns whether two values are the same program, apart from the values of parameters and buffers.

    Modules are the same program if their types, attributes and parts are, for any values of parameters and buffers.
    Functions are the same program if they have the same code, defaults and closures. Objects that cannot be inspected
    must be identical. The answer may be False for equal programs, but is never True for different ones.

    Arguments:
        a: A module, a function or any value.
        b: Value to compare with.

    Example:
        >>> same_program(nn.Linear(2, 3), nn.Linear(2, 3)), same_program(nn.Dropout(0.1), nn.Dropout(0.2))
        (True, False)
    """
    return _Comparison().same(a, b)


class _Plain:
    """An object with attributes only; an object of larger basic size has content that cannot be inspected."""


class _Comparison:
    """One comparison, with the pairs that are being compared."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], tuple[Any, Any]] = {}

    def same(self, a: Any, b: Any) -> bool:
        if a is b or (id(a), id(b)) in self._open:
            return True
        if type(a) is not type(b):
            return False
        if isinstance(a, _ATOMS):
            return bool(a == b)
        self._open[id(a), id(b)] = (a, b)  # keeps both alive, so that no other object gets the same id
        if isinstance(a, Tensor):
            return _kind(a) == _kind(b) and not a.requires_grad and torch.equal(a, b)
        if isinstance(a, nn.Module):
            return self._modules(a, b)
        if isinstance(a, Mapping):
            return list(a) == list(b) and all(self.same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(self.same, a, b))
        if isinstance(a, set | frozenset):
            return bool(a == b)
        return self._objects(a, b)

    def _modules(self, a: nn.Module, b: nn.Module) -> bool:
        for part in ("_parameters", "_buffers"):
            ours, theirs = getattr(a, part), getattr(b, part)
            if list(ours) != list(theirs) or any(_kind(ours[name]) != _kind(theirs[name]) for name in ours):
                return False
        return self._attributes(a, b, frozenset({"_parameters", "_buffers"}))

    def _objects(self, a: Any, b: Any) -> bool:
        if isinstance(a, MethodType):
            return a.__func__ is b.__func__ and self.same(a.__self__, b.__self__)
        if isinstance(a, FunctionType):
            parts = (a.__defaults__, a.__kwdefaults__, _cells(a)), (b.__defaults__, b.__kwdefaults__, _cells(b))
            return a.__code__ is b.__code__ and a.__globals__ is b.__globals__ and self.same(*parts)
        if not hasattr(a, "__dict__") or type(a).__basicsize__ > _Plain.__basicsize__:
            return False
        return self._attributes(a, b, frozenset())

    def _attributes(self, a: Any, b: Any, others: frozenset[str]) -> bool:
        ours, theirs = ({k: v for k, v in vars(o).items() if k not in _IGNORED | others} for o in (a, b))
        return self.same(ours, theirs)


def _kind(tensor: Tensor | None) -> Any:
    return tensor if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, type(tensor))


def _cells(function: FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or ()]
