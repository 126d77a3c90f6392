r"""Functions that are called over and over, each kind of call a compiled program at the module's present parameters."""

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
from pyro_vae.engine.compilation.cost import CAPTURE, FUNCTION, MOST, TIMED, WARM, Busy, Mode, price
from pyro_vae.engine.errors import CaptureError, CompilationError
from pyro_vae.errors import InputError
from pyro_vae.runtime.precision import numerics

# Uncompiled calls of which the median time is taken.
_REMEMBERED = 9
# Attributes of a module that are compared by value, others by identity; those of every module are not.
_PLAIN = {bool, int, float, str, type(None)}
_INTERNAL = set(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Kinds of calls that are remembered.
_KINDS = 64


def _silently(title: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Terms:
    """What a block asks of the engine.

    Attributes:
        mode: Whether functions run as compiled programs: ``"auto"`` where that saves time.
        calls: How often each of them is going to be called in the block, as far as is known.
        busy: A block with a title, for what takes long.
        costs: Seconds of each capture and compilation in the block.
    """

    mode: Mode = False
    calls: int = 1
    busy: Busy = _silently
    costs: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """What capturing and compiling took."""
        return sum(self.costs)


_terms: ContextVar[Terms] = ContextVar("terms", default=Terms())  # noqa: B039 - never changed where it is off


@contextmanager
def enabled(mode: Mode, calls: int = 1, busy: Busy = _silently) -> Iterator[Terms]:
    """Within the block, every `Routine` runs as a compiled program.

    Arguments:
        mode: False for not at all; True for always, where one that cannot be captured is an error; ``"auto"`` where
            that saves time, judged by the first calls, with a warning where one cannot.
        calls: How often what is in the block is going to be done.
        busy: A block with a title, for what takes long.

    Raises:
        InputError: For another mode.
    """
    if mode not in ("auto", True, False):
        raise InputError(f'`compile` is "auto", True or False, got `{mode!r}`.')
    with _under(Terms(mode, calls, busy)) as terms:
        yield terms


@contextmanager
def repeated(times: int, optional: bool = False) -> Iterator[None]:
    """Within the block, every `Routine` is expected to be called so many times for each time that the block is run.

    Arguments:
        times: Number of calls.
        optional: Whether what is in the block is to be compiled only where that saves time, whatever is asked for:
            a short part of something longer.
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
    """One kind of call as machine code, and where the module's tensors are that it reads."""

    captured: Capture
    places: list[tuple[dict[str, Any], str]]
    fixed: list[Tensor]
    run: Executable
    simple: bool
    addresses: list[int] = field(default_factory=list)

    def follow(self) -> bool:
        """Finds the module's tensors again that were assigned anew; whether they are of the same kind as before."""
        found = [owner[name] for owner, name in self.places]
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
        for place, name in zip(self.places, (*captured.parameters, *captured.buffers), strict=True):
            if name in outputs.buffers:
                place[0][place[1]].copy_(outputs.buffers[name])
        return outputs.result


@dataclass
class _Kind:
    """Calls with inputs of one kind: how long they take uncompiled, and their program."""

    seconds: list[float] = field(default_factory=list)
    uses: int = 0
    price: float = WARM + CAPTURE
    captured: Capture | None = None
    program: _Program | None = None
    refused: Exception | None = None
    seen: list[Callable[[], Any]] = field(default_factory=list)


def _watched(value: Any) -> Callable[[], Any]:
    """Tells the value as long as it lives; keeps alive only what cannot be watched."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


class Routine:
    r"""A function of a module and tensors that is called over and over, compiled for each kind of inputs.

    A kind is the inputs' structure, shapes, types, devices and values that are no tensors, and the modes, other
    attributes and hooks of the module's parts. Each call is at the parameters and buffers that the module has then,
    assigned anew or not. Outside an `enabled` block the function itself runs. No gradient passes through: outputs are
    detached.

    Arguments:
        function: From the module and the inputs (tensors, and tuples and lists of them; all else is part of the kind)
            to a nested value. What it uses of tensors are the inputs, and parameters and buffers of the module. It
            must not change with its inputs' values; see `pyro_vae.engine.capture.capture`.
        module: Kept alive by others than the routine; see `routine`.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> total = Routine(lambda module, x: module(x).sum(), linear)
        >>> with enabled(True), backend.interpreted():
        ...     torch.equal(total(torch.ones(3)), linear(torch.ones(3)).sum())
        True
    """

    kinds: dict[Any, _Kind]
    _structure: list[tuple[dict[str, Any], tuple[Any, ...]]]
    _attributes: list[tuple[dict[str, Any], int, list[str]]]

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self.function, self._module, self._warned = function, weakref.ref(module), False
        self._look()

    def __call__(self, *inputs: Any, otherwise: Callable[[], Any] | None = None) -> Any:
        """Returns the function's value, by a compiled program where the block asks for it and there is one.

        Arguments:
            inputs: Of the function, after the module.
            otherwise: The uncompiled way to the same value, where what is common to many calls is at hand; by default
                the function itself.
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
        """Returns the program for inputs of the kind of these, for calls in close succession; None where there is none.

        It takes the inputs' tensors alone, in order, and does not look whether they are of that kind or the module
        has been changed since.

        Arguments:
            inputs: Examples.
        """
        return None if _terms.get().mode is False else self._kind(inputs, []).program

    @torch.no_grad()
    def _uncompiled(self, inputs: Sequence[Any], otherwise: Callable[[], Any] | None) -> Any:
        return self.function(self._present(), *inputs) if otherwise is None else otherwise()

    def _present(self) -> nn.Module:
        module = self._module()
        if module is None:
            raise RuntimeError("a routine's module is gone")
        return module

    # ------------------------------------------------------------------ kinds

    def _kind(self, inputs: Sequence[Any], tensors: list[Tensor]) -> _Kind:
        """The kind of inputs, its program made where it is time for it; their tensors are listed."""
        if any(tuple(parts.values()) != seen for parts, seen in self._structure) or any(
            len(own) != n for own, n, _ in self._attributes
        ):
            self._look()
        tensors.clear()
        described: list[Any] = [backend._interpreted, *numerics()]
        _describe(inputs, described, tensors)
        values = [own[name] for own, _, names in self._attributes for name in names]
        hooks = [number for own, _, _ in self._attributes for name in _HOOKS for number in own[name]]
        key = (*described, *[v if v.__class__ in _PLAIN else id(v) for v in values], *hooks)
        kind = self.kinds.get(key)
        if kind is not None and any(old() is None for old in kind.seen):  # another object has its number now
            kind = None
        if kind is None:
            if len(self.kinds) >= _KINDS:
                self.kinds = {k: v for k, v in self.kinds.items() if v.program is not None}
            kind = self.kinds[key] = _Kind(seen=[_watched(v) for v in values if v.__class__ not in _PLAIN])
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
            self._look()
            return self._kind(inputs, tensors)
        return kind

    def _look(self) -> None:
        """Lists the module's parts; what was compiled for others is forgotten."""
        self.kinds = {}
        parts = list(self._present().modules())
        # Of the module itself no more than its dictionaries, which do not keep it alive.
        self._structure = [(part._modules, tuple(part._modules.values())) for part in parts if len(part._modules)]
        own = [part.__dict__ for part in parts]
        self._attributes = [(each, len(each), [name for name in each if name not in _INTERNAL]) for each in own]

    def _decide(self, kind: _Kind, inputs: Sequence[Any], terms: Terms) -> None:
        """Compiles a kind where that is asked for, and where it saves time."""
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
            if saved < kind.price:
                return
        start = time.perf_counter()
        try:
            with terms.busy("compiling"), enabled(False):
                self._compile(kind, inputs, saved)
        except (CaptureError, CompilationError) as error:
            kind.refused = error
            if terms.mode is True:
                raise
            self._warn(error)
        finally:
            terms.costs.append(time.perf_counter() - start)

    def _warn(self, error: Exception) -> None:
        """Says once why it runs uncompiled."""
        if not self._warned:
            self._warned = True
            name = getattr(self.function, "__name__", "a function").strip("_")
            warnings.warn(f"`{name}` runs uncompiled: {error}", stacklevel=6)

    def _compile(self, kind: _Kind, inputs: Sequence[Any], saved: float) -> None:
        """The kind's program, unless it costs more than it saves."""
        if sum(other.program is not None for other in self.kinds.values()) >= MOST:
            raise CaptureError(f"called with inputs of more than {MOST} kinds; keep to fewer shapes.")
        module = self._present()
        function = self.function
        if kind.captured is None:
            kind.captured = capture(lambda *given: function(module, *given), {"module": module}, _contiguous(inputs))
        captured = kind.captured
        places = [_place(module, name.partition(".")[2]) for name in (*captured.parameters, *captured.buffers)]
        tensors = [owner[name].detach() for owner, name in places]
        with torch.random.fork_rng(devices=sorted({t.device for t in tensors if t.is_cuda}, key=str)):
            examples = [*tensors, *tensors_of(_contiguous(inputs)), *captured.noise(), *captured.constants]
        kind.price = price(known(captured.graph, examples))
        if saved < kind.price:
            return
        run = compile_graph(captured.graph, examples).run
        template = captured.template
        simple = template.size == len(template.leaves) and template.spec.type is tuple and not captured.changed
        simple = simple and template.spec.num_children == template.size
        kind.program = _Program(captured, places, tensors, run, simple)
        kind.program.follow()


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary in which a parameter or buffer of a module stands, and its name there."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    entries: dict[str, Any] = owner._parameters if last in owner._parameters else owner._buffers
    return entries, last


def _describe(values: Sequence[Any], described: list[Any], tensors: list[Tensor]) -> None:
    """Lists the tensors among nested values, and what is to be equal from call to call."""
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            described += (value.shape, value.dtype, value.device)
        elif isinstance(value, tuple | list):
            described += (type(value), len(value))
            _describe(value, described, tensors)
        else:
            described += (type(value), value)


def _contiguous(inputs: Sequence[Any]) -> list[Any]:
    mapped: list[Any] = pytree.tree_map_only(Tensor, lambda tensor: tensor.contiguous(), list(inputs))
    return mapped


_routines: weakref.WeakKeyDictionary[nn.Module, dict[Callable[..., Any], Routine]] = weakref.WeakKeyDictionary()


def routine(function: Callable[..., Any], module: nn.Module) -> Routine:
    """Returns the `Routine` of a function and a module: the same one, with its programs, as long as the module lives.

    Arguments:
        function: Defined once, at the top of a file; see `Routine`.
        module: Whose parameters and buffers it uses.
    """
    own = _routines.setdefault(module, {})
    if function not in own:
        own[function] = Routine(function, module)
    return own[function]
