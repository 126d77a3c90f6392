r"""Which tensors of a program depend on what it is given, and on what it holds elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

# What tensors depend on: storages that were there before the run, and whether on anything that it is given or draws.
Sources = frozenset[StorageWeakRef | None]

# In the place of a storage: parameters, buffers, inputs and noise.
_GIVEN = None
_NOTHING: Sources = frozenset()
GIVEN: Sources = frozenset([_GIVEN])


@dataclass
class Read:
    """A tensor that a program holds elsewhere and whose values decided what it does, as it was then.

    Attributes:
        tensor: Itself.
        line: Where its values were read.
    """

    tensor: Tensor
    line: str

    def __post_init__(self) -> None:
        self._version = _version(self.tensor)
        self._bytes = self._now().clone()

    def changed(self) -> bool:
        """Whether it has been changed in place since; on a CUDA device by what torch knows about, without a look."""
        version = _version(self.tensor)
        if version == self._version and self.tensor.is_cuda:
            return False
        if not torch.equal(self._now(), self._bytes):
            return True
        self._version = version
        return False

    def _now(self) -> Tensor:
        """Everything that lies there, so that another view of it cannot be changed unseen; nan is equal to itself."""
        empty = torch.empty(0, dtype=torch.uint8, device=self.tensor.device)
        return empty.set_(self.tensor.untyped_storage())


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Origins:
    """What each tensor of a run depends on, kept by the storage in which it lies: views share it.

    Attributes:
        reads: Tensors that were there before the run and whose values were read.
    """

    def __init__(self) -> None:
        self._sources: dict[StorageWeakRef, Sources] = {}
        self._held: dict[StorageWeakRef, Tensor] = {}
        self._reads: dict[StorageWeakRef, Read] = {}

    @property
    def reads(self) -> list[Read]:
        return list(self._reads.values())

    def give(self, tensors: Iterable[Tensor]) -> None:
        """Adds tensors that the run is given."""
        for tensor in tensors:
            self._sources[_place(tensor)] = GIVEN

    def of(self, tensors: Iterable[Tensor]) -> Sources:
        """Returns what any of some tensors depends on."""
        sources = _NOTHING
        for tensor in tensors:
            sources |= self._of(tensor)
        return sources

    def _of(self, tensor: Tensor) -> Sources:
        if tensor.layout is not torch.strided:
            return GIVEN  # to be on the safe side
        place = _place(tensor)
        if place not in self._sources:
            self._sources[place], self._held[place] = frozenset([place]), tensor
        return self._sources[place]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor, of which `of` has been asked, was there before the run, and not given to it."""
        return tensor.layout is torch.strided and _place(tensor) in self._held

    def record(self, results: Iterable[Tensor], arguments: Sequence[Tensor], sources: Sources) -> None:
        """Notes what the results of an operation depend on, or the arguments that it has changed."""
        before = {_place(tensor) for tensor in arguments if tensor.layout is torch.strided}
        for tensor in results:
            if tensor.layout is torch.strided:
                place = _place(tensor)
                self._sources[place] = sources | (self._sources[place] if place in before else _NOTHING)

    def read(self, sources: Sources, line: str) -> None:
        """Notes that values which depend on nothing that the run is given decide what it does."""
        for place in sources - self._reads.keys():
            if place is not None:
                with _disable_current_modes():
                    self._reads[place] = Read(self._held[place], line)


def _place(tensor: Tensor) -> StorageWeakRef:
    """Where a tensor lies; while there is a reference, no other storage gets the same one."""
    return StorageWeakRef(tensor.untyped_storage())


@functools.cache
def _changed_by(function: Any) -> tuple[int | str, ...]:
    arguments = enumerate(function._schema.arguments)
    return tuple(a.name if a.kwarg_only else i for i, a in arguments if a.alias_info and a.alias_info.is_write)


def changed_by(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> list[Any]:
    """Returns the arguments that an operator changes in place."""
    places = _changed_by(function)
    return [
        arguments[at] if isinstance(at, int) else named[at]
        for at in places
        if (at < len(arguments) if isinstance(at, int) else at in named)
    ]
