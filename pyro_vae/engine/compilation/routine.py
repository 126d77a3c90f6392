r"""Functions of a module that are called many times, with a compiled program for each kind of call."""

from __future__ import annotations

import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.engine.capture.capture import Capture, capture, tensors_of
from pyro_vae.engine.compilation import backend
from pyro_vae.engine.compilation.backend import Executable, compile_graph, known
from pyro_vae.engine.compilation.cost import CAPTURE, FUNCTION, MOST, TIMED, WARM, Busy, Mode, compile_cost
from pyro_vae.engine.errors import CaptureError, CompilationError
from pyro_vae.errors import InputError
from pyro_vae.runtime.precision import numerics

# Uncompiled calls of which the median time is taken.
_REMEMBERED = 9
# Types of module attributes that are compared by value; attributes of other types are compared by identity.
_PLAIN = {bool, int, float, str, type(None)}
# Attributes that every module has; they are not compared.
_INTERNAL = set(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Largest number of kinds of calls that are remembered.
_KINDS = 64


def _silently(title: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Terms:
    """Settings of an `enabled` block.

    Attributes:
        mode: Whether functions run as compiled programs; ``"auto"``: if that saves time.
        calls: Expected number of calls of each function in the block.
        busy: Function that returns a block with a title, for slow work.
        costs: Seconds of each capture and compilation in the block.
    """

    mode: Mode = False
    calls: int = 1
    busy: Busy = _silently
    costs: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of all captures and compilations."""
        return sum(self.costs)


_terms: ContextVar[Terms] = ContextVar("terms", default=Terms())  # noqa: B039 - never changed where it is off


@contextmanager
def enabled(mode: Mode, calls: int = 1, busy: Busy = _silently) -> Iterator[Terms]:
    """A block in which every `Routine` runs as a compiled program.

    Arguments:
        mode: False does not compile. True compiles always, and raises if a function cannot be compiled. ``"auto"``
            compiles if that saves time, judged by the first calls, and warns if a function cannot be compiled.
        calls: Expected number of calls of each routine in the block.
        busy: Function that returns a block with a title, for slow work.

    Raises:
        InputError: For another mode.
    """
    if mode not in ("auto", True, False):
        raise InputError(f'`compile` is "auto", True or False, got `{mode!r}`.')
    with _under(Terms(mode, calls, busy)) as terms:
        yield terms


@contextmanager
def repeated(times: int, optional: bool = False) -> Iterator[None]:
    """A block in which every `Routine` is expected to be called ``times`` times.

    Arguments:
        times: Number of calls each time that the block runs.
        optional: Whether to compile only if that saves time, even if the outer block says True; for a short part of
            a longer computation.
    """
    terms = _terms.get()
    mode: Mode = "auto" if optional and terms.mode else terms.mode
    with _under(replace(terms, mode=mode, calls=terms.calls * times)):
        yield


@contextmanager
def _under(terms: Terms) -> Iterator[Terms]:
    token = _terms.set(terms)
    try:
        yield terms
    finally:
        _terms.reset(token)


@dataclass
class _Program:
    """One kind of call as a compiled program, with the places of the module's tensors."""

    captured: Capture
    holders: list[tuple[dict[str, Any], str]]
    fixed: list[Tensor]
    run: Executable
    simple: bool
    addresses: list[int] = field(default_factory=list)

    def follow(self) -> bool:
        """Updates the references to tensors that were assigned anew; returns whether their layouts are unchanged."""
        found = [owner[name] for owner, name in self.holders]
        addresses = [tensor.data_ptr() for tensor in found]
        if addresses == self.addresses:
            return True
        if any(_layout(new) != _layout(old) for new, old in zip(found, self.fixed, strict=True)):
            return False
        self.addresses, self.fixed = addresses, [tensor.detach() for tensor in found]
        return True

    @torch.no_grad()
    def __call__(self, tensors: list[Tensor]) -> Any:
        captured = self.captured
        noise = captured.noise() if captured.draws else []
        given = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]
        flat = self.run([*self.fixed, *given, *noise, *captured.constants])
        if self.simple:
            return tuple(flat)
        outputs = captured.outputs(flat)
        for (owner, key), name in zip(self.holders, (*captured.parameters, *captured.buffers), strict=True):
            if name in outputs.buffers:
                owner[key].copy_(outputs.buffers[name])
        return outputs.result


@dataclass
class CallKind:
    """Calls with inputs of one kind: their times while uncompiled, and their program."""

    seconds: list[float] = field(default_factory=list)
    uses: int = 0
    cost: float = WARM + CAPTURE
    captured: Capture | None = None
    program: _Program | None = None
    refused: Exception | None = None
    seen: list[Callable[[], Any]] = field(default_factory=list)


def _watched(value: Any) -> Callable[[], Any]:
    """Returns a function that returns the value, or None once it is gone; keeps alive only values without weakrefs."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


class Routine:
    r"""A function of a module and tensors that is called many times, compiled for each kind of inputs.

    A kind is the inputs' structure, shapes, types, devices and values that are no tensors, and the modes, other
    attributes and hooks of the module's parts. Each call uses the current parameters and buffers of the module, even
    if they were assigned anew. Outside an `enabled` block the function itself runs. Outputs are detached, so no
    gradient passes through.

    Arguments:
        function: Function from the module and the inputs (tensors, and tuples and lists of them; all other values are
            part of the kind) to a nested value. The only tensors that it may use are the inputs and the parameters
            and buffers of the module. Its operations must not depend on values; see `capture`.
        module: The module; the routine keeps only a weak reference. See `routine`.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> total = Routine(lambda module, x: module(x).sum(), linear)
        >>> with enabled(True), backend.interpreted():
        ...     torch.equal(total(torch.ones(3)), linear(torch.ones(3)).sum())
        True
    """

    kinds: dict[Any, CallKind]
    _structure: list[tuple[dict[str, Any], tuple[Any, ...]]]
    _attributes: list[tuple[dict[str, Any], int, list[str]]]

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self.function, self._module, self._warned = function, weakref.ref(module), False
        self._inspect()

    def __call__(self, *inputs: Any, otherwise: Callable[[], Any] | None = None) -> Any:
        """Returns the function's value, from a compiled program if the block enables it and one is ready.

        Arguments:
            inputs: Inputs of the function, without the module.
            otherwise: Faster uncompiled way to the same value, if the caller has one; by default the function itself.
        """
        if _terms.get().mode is False:
            return self._uncompiled(inputs, otherwise)
        tensors: list[Tensor] = []
        kind = self._kind(inputs, tensors)
        if kind.program is not None:
            return kind.program(tensors)
        start = time.perf_counter()
        result = self._uncompiled(inputs, otherwise)
        kind.uses += 1
        kind.seconds = [*kind.seconds[1 - _REMEMBERED :], time.perf_counter() - start]
        return result

    def ready(self, *inputs: Any) -> Callable[[list[Tensor]], Any] | None:
        """Returns the program for inputs of this kind, for calls in close succession; None if there is none.

        The program takes the tensors of the inputs, in order. It checks neither their kind nor changes of the module.

        Arguments:
            inputs: Example inputs.
        """
        return None if _terms.get().mode is False else self._kind(inputs, []).program

    @torch.no_grad()
    def _uncompiled(self, inputs: Sequence[Any], otherwise: Callable[[], Any] | None) -> Any:
        return self.function(self._present(), *inputs) if otherwise is None else otherwise()

    def _present(self) -> nn.Module:
        module = self._module()
        if module is None:
            raise RuntimeError("a routine was called after its module was deleted")
        return module

    # ------------------------------------------------------------------ kinds

    def _kind(self, inputs: Sequence[Any], tensors: list[Tensor]) -> CallKind:
        """Returns the kind of the inputs, compiles it if that is due, and lists the inputs' tensors in ``tensors``."""
        if any(tuple(parts.values()) != seen for parts, seen in self._structure) or any(
            len(own) != n for own, n, _ in self._attributes
        ):
            self._inspect()
        tensors.clear()
        described: list[Any] = [backend._interpreted, *numerics()]
        _describe(inputs, described, tensors)
        values = [own[name] for own, _, names in self._attributes for name in names]
        hooks = [number for own, _, _ in self._attributes for name in _HOOKS for number in own[name]]
        key = (*described, *[v if v.__class__ in _PLAIN else id(v) for v in values], *hooks)
        kind = self.kinds.get(key)
        if kind is not None and any(old() is None for old in kind.seen):  # another object may have its id now
            kind = None
        if kind is None:
            if len(self.kinds) >= _KINDS:
                self.kinds = {k: v for k, v in self.kinds.items() if v.program is not None}
            kind = self.kinds[key] = CallKind(seen=[_watched(v) for v in values if v.__class__ not in _PLAIN])
        if kind.program is not None and kind.captured is not None and kind.captured.reads:
            try:
                kind.captured.check_reads()
            except CaptureError as error:
                kind.refused, kind.program = error, None
                if _terms.get().mode == "auto":
                    self._warn(error)
        if kind.program is None:
            self._decide(kind, inputs, _terms.get())
        elif not kind.program.follow():
            self._inspect()
            return self._kind(inputs, tensors)
        return kind

    def _inspect(self) -> None:
        """Lists the module's parts, and forgets all kinds."""
        self.kinds = {}
        parts = list(self._present().modules())
        # Only the modules' dictionaries are kept, which do not keep the modules alive.
        self._structure = [(part._modules, tuple(part._modules.values())) for part in parts if len(part._modules)]
        own = [part.__dict__ for part in parts]
        self._attributes = [(each, len(each), [name for name in each if name not in _INTERNAL]) for each in own]

    def _decide(self, kind: CallKind, inputs: Sequence[Any], terms: Terms) -> None:
        """Compiles a kind if the mode is True, or if it is "auto" and compiling saves time."""
        saved = float("inf")
        if kind.refused is not None:
            if terms.mode is True:
                raise kind.refused
            return
        if terms.mode == "auto":
            if kind.uses < TIMED:
                return
            # What has been done so often is expected to be done as often again.
            saved = FUNCTION.of(statistics.median(kind.seconds), max(terms.calls, kind.uses))
            if saved < kind.cost:
                return
        start = time.perf_counter()
        try:
            with enabled(False):
                self._compile(kind, inputs, saved, terms.busy)
        except (CaptureError, CompilationError) as error:
            kind.refused = error
            if terms.mode is True:
                raise
            self._warn(error)
        finally:
            terms.costs.append(time.perf_counter() - start)

    def _warn(self, error: Exception) -> None:
        """Warns, once, that the function runs uncompiled, and why."""
        if not self._warned:
            self._warned = True
            name = getattr(self.function, "__name__", "a function").strip("_")
            warnings.warn(f"`{name}` runs uncompiled: {error}", stacklevel=6)

    def _compile(self, kind: CallKind, inputs: Sequence[Any], saved: float, busy: Busy) -> None:
        """Captures and compiles a kind, unless compiling costs more than it saves."""
        if sum(other.program is not None for other in self.kinds.values()) >= MOST:
            raise CaptureError(f"called with inputs of more than {MOST} kinds; use fewer shapes.")
        module = self._present()
        function = self.function
        if kind.captured is None:
            kind.captured = capture(lambda *given: function(module, *given), {"module": module}, _contiguous(inputs))
        captured = kind.captured
        holders = [_holder(module, name.partition(".")[2]) for name in (*captured.parameters, *captured.buffers)]
        tensors = [owner[name].detach() for owner, name in holders]
        with torch.random.fork_rng(devices=sorted({t.device for t in tensors if t.is_cuda}, key=str)):
            examples = [*tensors, *tensors_of(_contiguous(inputs)), *captured.noise(), *captured.constants]
        kind.cost = compile_cost(known(captured.graph, examples))
        if saved < kind.cost:
            return
        with busy("compiling") if kind.cost else nullcontext():  # a program of this process is only looked up
            run = compile_graph(captured.graph, examples).run
        template = captured.template
        simple = template.size == len(template.leaves) and template.spec.type is tuple and not captured.changed
        simple = simple and template.spec.num_children == template.size
        kind.program = _Program(captured, holders, tensors, run, simple)
        kind.program.follow()


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()


def _holder(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Returns the dictionary that holds a parameter or buffer of a module, and its key there."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    entries: dict[str, Any] = owner._parameters if last in owner._parameters else owner._buffers
    return entries, last


def _describe(values: Sequence[Any], described: list[Any], tensors: list[Tensor]) -> None:
    """Appends the tensors of nested values to ``tensors``, and what identifies their kind to ``described``."""
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            described += (value.shape, value.dtype, value.device)
        elif isinstance(value, tuple | list):
            described += (type(value), len(value))
            _describe(value, described, tensors)
        elif isinstance(value, dict):
            described += (type(value), tuple(value))
            _describe(list(value.values()), described, tensors)
        else:
            described += (type(value), value)


def _contiguous(inputs: Sequence[Any]) -> list[Any]:
    mapped: list[Any] = pytree.tree_map_only(Tensor, lambda tensor: tensor.contiguous(), list(inputs))
    return mapped


_routines: weakref.WeakKeyDictionary[nn.Module, dict[Callable[..., Any], Routine]] = weakref.WeakKeyDictionary()


def routine(function: Callable[..., Any], module: nn.Module) -> Routine:
    """Returns the `Routine` of a function and a module: always the same object, with its programs.

    Arguments:
        function: Function at the top level of a file, so that it exists once; see `Routine`.
        module: Module whose parameters and buffers the function uses.
    """
    own = _routines.setdefault(module, {})
    if function not in own:
        own[function] = Routine(function, module)
    return own[function]
