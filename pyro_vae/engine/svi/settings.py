r"""Numbers, strings, functions and tensors that a program reads from elsewhere than its arguments."""

from __future__ import annotations

import dis
import enum
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from torch import Tensor, nn

# Types of values that decide what a program does.
_NUMBERS = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device)
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
_DECISIVE = _NUMBERS + _FUNCTIONS
# Of the attributes of nn.Module itself, only the mode decides.
_INTERNAL = set(vars(nn.Module())) - {"training"}
_GLOBALS, _ATTRIBUTES = {"LOAD_GLOBAL", "LOAD_NAME"}, {"LOAD_ATTR", "LOAD_METHOD"}
# Longer lists and dictionaries are data.
_LONGEST = 100
_LIBRARIES = (str(Path(torch.__file__).parents[1]), str(Path(dis.__file__).parent), str(Path(__file__).parents[2]))
# Packages whose objects (losses, handlers) count with all their attributes; those of other libraries do not count.
_HANDLERS = ("pyro.infer", "pyro.poutine")


class Holder(Protocol):
    """What holds values by name."""

    def get(self, name: Any, /) -> Any:
        """Returns the value of a name; None if there is none."""


class _Cell:
    """A variable of a function around the program, as a holder."""

    def __init__(self, cell: CellType) -> None:
        self.cell = cell

    def get(self, name: Any) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # not yet assigned
            return None


class _Row:
    """A list as a holder."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def get(self, name: Any) -> Any:
        return self.values[name] if name < len(self.values) else None


class Settings:
    r"""The values that programs can read from elsewhere than their arguments.

    They are searched in the attributes of modules, of losses and of the objects whose methods are called, in global
    variables, in variables of surrounding functions, in defaults, in lists and dictionaries of at most 100 entries
    among these, and in Pyro's own settings. Of objects of the user, only attributes count that are named in the code
    of the program. A value that is reached by ``getattr`` with a computed name, or within an object of another
    library, is not found.

    Arguments:
        programs: Functions, methods, modules or other callables.

    Attributes:
        tensors: Holder, name and value of each tensor and array.
    """

    def __init__(self, *programs: Any) -> None:
        self.tensors: list[tuple[Holder, Any, Any]] = []
        self._reads: list[tuple[Callable[[Any], Any], Any]] = []
        self._parts: list[dict[str, Any]] = []
        self._seen: dict[int, Any] = {}
        self._names: set[str] = set()
        self._objects: list[Any] = []
        known = -1
        for module, path, _ in pyro.settings._REGISTRY.values():
            *parts, name = path.split(".")
            self._table(vars(functools.reduce(getattr, parts, sys.modules[module])), [name])
        self._visit_all(programs)
        while known != len(self._names) + len(self._seen):  # new code names attributes of known objects
            known = len(self._names) + len(self._seen)
            for value in list(self._objects):
                self._visit_named(value)
        for value in (v for v in self._objects if not isinstance(v, nn.Module)):
            self._table(vars(value), [name for name in vars(value) if name in self._names])

    def now(self) -> list[Any]:
        """Returns the current values without tensors."""
        found = [get(name) for get, name in self._reads]
        for parts in self._parts:
            found += parts.values()
        return found

    # ------------------------------------------------------------------ the search

    def _visit_all(self, values: Any) -> None:
        for value in values:
            self._visit(value)

    def _visit(self, value: Any) -> None:
        if id(value) in self._seen or isinstance(value, (*_NUMBERS, Tensor, np.ndarray, BuiltinFunctionType)):
            return
        self._seen[id(value)] = value  # kept alive, so that its id stays unique
        if isinstance(value, MethodType):
            self._visit_all((value.__self__, value.__func__))
        elif isinstance(value, FunctionType):
            self._visit_function(value)
        elif isinstance(value, functools.partial):
            self._visit_all((value.func, value.args, value.keywords))
        elif isinstance(value, nn.Module):
            self._visit_module(value)
        elif isinstance(value, dict):
            self._hold(value, list(value) if len(value) <= _LONGEST else [])
        elif isinstance(value, list | tuple):
            self._hold(_Row(value), list(range(len(value))) if len(value) <= _LONGEST else [])
        elif isinstance(value, ModuleType | type):
            if not _is_library(value.__name__ if isinstance(value, ModuleType) else value.__module__):
                self._objects.append(value)
        elif hasattr(value, "__dict__"):
            if type(value).__module__.startswith(_HANDLERS):
                self._hold(vars(value), list(vars(value)))
            elif not _is_library(type(value).__module__):
                self._objects.append(value)
                self._visit(vars(type(value)).get("__call__"))

    def _visit_function(self, function: FunctionType) -> None:
        cells = function.__closure__ or ()
        for cell in cells:
            self._hold(_Cell(cell), [None])
        self._visit_all((function.__defaults__ or (), function.__kwdefaults__ or {}))
        if not _is_library(function.__module__):
            self._names |= _read_by(function.__code__, _ATTRIBUTES)
            names = sorted(_read_by(function.__code__, _GLOBALS))
            self._hold(function.__globals__, [name for name in names if name in function.__globals__])

    def _visit_module(self, module: nn.Module) -> None:
        own = vars(module)
        self._table(own, [name for name in own if name not in _INTERNAL])
        self._parts.append(own["_modules"])
        for name in own.keys() - _INTERNAL:
            if isinstance(own[name], dict | list | tuple):
                self._visit(own[name])
        self._objects.append(module)
        self._visit_all(part for part in own["_modules"].values() if part is not None)
        self._visit(getattr(type(module), "forward", None))

    def _visit_named(self, value: Any) -> None:
        """Visits attributes and methods of an object that are named in the code."""
        own = vars(value)
        for name in list(self._names):
            if name in own:
                self._visit(own[name])
            elif not isinstance(value, ModuleType):
                method = getattr(type(value), name, None)
                self._visit(method.fget if isinstance(method, property) else method)

    def _hold(self, holder: Any, names: list[Any]) -> None:
        self._table(holder, names)
        self._visit_all(holder.get(name) for name in names)

    def _table(self, holder: Any, names: list[Any]) -> None:
        values = [(name, holder.get(name)) for name in names]
        self.tensors += [(holder, name, value) for name, value in values if isinstance(value, Tensor | np.ndarray)]
        self._reads += [(holder.get, name) for name, value in values if isinstance(value, _DECISIVE)]


def _read_by(code: CodeType, operations: set[str]) -> set[str]:
    """Returns the names that a function reads by some operations, also in its inner functions."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in operations}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return names.union(*(_read_by(part, operations) for part in inner))


@functools.cache
def _is_library(module: str | None) -> bool:
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        return module != "__main__"
    return str(file).startswith(_LIBRARIES)
