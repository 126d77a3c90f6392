r"""Dependence of a program's tensors on given tensors (parameters, buffers, inputs, noise) and on held tensors.

A held tensor is one that the program uses without being given it, such as a tensor in a closure.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

# What a tensor depends on: the storages of held tensors; None stands for given tensors.
Sources = frozenset[StorageWeakRef | None]

_GIVEN = None
_NOTHING: Sources = frozenset()
GIVEN: Sources = frozenset([_GIVEN])


@dataclass
class Read:
    """A held tensor whose values decide what the program does, with a copy of these values.

    Attributes:
        tensor: The tensor.
        line: Source line at which its values were read.
    """

    tensor: Tensor
    line: str

    def __post_init__(self) -> None:
        self._version = _version(self.tensor)
        self._bytes = self._now().clone()

    def changed(self) -> bool:
        """Returns whether the tensor was changed in place since; on a CUDA device, by torch's version counter."""
        version = _version(self.tensor)
        if version == self._version and self.tensor.is_cuda:
            return False
        if not torch.equal(self._now(), self._bytes):
            return True
        self._version = version
        return False

    def _now(self) -> Tensor:
        """Returns the bytes of the whole storage: they show changes by other views too, and nan equals nan."""
        empty = torch.empty(0, dtype=torch.uint8, device=self.tensor.device)
        return empty.set_(self.tensor.untyped_storage())


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Origins:
    """The sources of each tensor in a run, by its storage, which views share.

    Attributes:
        reads: Held tensors whose values were read.
    """

    def __init__(self) -> None:
        self._sources: dict[StorageWeakRef, Sources] = {}
        self._held: dict[StorageWeakRef, Tensor] = {}
        self._reads: dict[StorageWeakRef, Read] = {}

    @property
    def reads(self) -> list[Read]:
        return list(self._reads.values())

    def give(self, tensors: Iterable[Tensor]) -> None:
        """Adds given tensors."""
        for tensor in tensors:
            self._sources[_storage(tensor)] = GIVEN

    def of(self, tensors: Iterable[Tensor]) -> Sources:
        """Returns the union of the sources of some tensors."""
        sources = _NOTHING
        for tensor in tensors:
            sources |= self._of(tensor)
        return sources

    def _of(self, tensor: Tensor) -> Sources:
        if tensor.layout is not torch.strided:
            return GIVEN  # the safe answer
        storage = _storage(tensor)
        if storage not in self._sources:
            self._sources[storage], self._held[storage] = frozenset([storage]), tensor
        return self._sources[storage]

    def holds(self, tensor: Tensor) -> bool:
        """Returns whether a tensor is a held one; `of` must have been called with it before."""
        return tensor.layout is torch.strided and _storage(tensor) in self._held

    def record(self, results: Iterable[Tensor], arguments: Sequence[Tensor], sources: Sources) -> None:
        """Records the sources of an operation's results and changed arguments.

        Arguments:
            results: Results and changed arguments of the operation.
            arguments: Arguments of the operation.
            sources: Sources of these arguments.
        """
        before = {_storage(tensor) for tensor in arguments if tensor.layout is torch.strided}
        for tensor in results:
            if tensor.layout is torch.strided:
                storage = _storage(tensor)
                self._sources[storage] = sources | (self._sources[storage] if storage in before else _NOTHING)

    def read(self, sources: Sources, line: str) -> None:
        """Records that the values of held tensors were read at a line."""
        for storage in sources - self._reads.keys():
            if storage is not None:
                with _disable_current_modes():
                    self._reads[storage] = Read(self._held[storage], line)


def _storage(tensor: Tensor) -> StorageWeakRef:
    """Returns a reference to a tensor's storage; it is unique as long as it exists."""
    return StorageWeakRef(tensor.untyped_storage())


@functools.cache
def _changed_by(function: Any) -> tuple[int | str, ...]:
    arguments = enumerate(function._schema.arguments)
    return tuple(a.name if a.kwarg_only else i for i, a in arguments if a.alias_info and a.alias_info.is_write)


def changed_by(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> list[Any]:
    """Returns the arguments that an operator changes in place."""
    positions = _changed_by(function)
    return [
        arguments[at] if isinstance(at, int) else named[at]
        for at in positions
        if (at < len(arguments) if isinstance(at, int) else at in named)
    ]
