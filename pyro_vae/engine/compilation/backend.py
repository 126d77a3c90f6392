r"""Compilation of a captured graph to machine code by Inductor, with a cache on disk."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.engine.capture.graph import fingerprint, lift_constants, traced
from pyro_vae.engine.compilation.compiler_cache import writable_cache
from pyro_vae.engine.compilation.computed_once import register_with_inductor
from pyro_vae.engine.compilation.products import use_faster_products
from pyro_vae.engine.errors import CompilationError

Executable = Callable[[list[Tensor]], Sequence[Tensor]]

# Versions of torch with which this was tested; with others, compilation may raise a `CompilationError`.
SUPPORTED = ("2.11", "2.13")

_compiled: dict[str, Executable] = {}
_interpreted = False


@contextmanager
def interpreted() -> Iterator[None]:
    """A block in which captured programs run operation by operation, for debugging and for fast tests."""
    global _interpreted
    before, _interpreted = _interpreted, True
    try:
        yield
    finally:
        _interpreted = before


@dataclass
class Compiled:
    """A program as machine code.

    Attributes:
        run: Function from the flat arguments to the flat results; it changes the arguments that the graph mutates.
        seconds: Seconds of the compilation; 0 if this process had compiled the same program before.
    """

    run: Executable
    seconds: float


def compile_graph(graph: GraphModule, arguments: Sequence[Tensor]) -> Compiled:
    """Returns a graph as machine code.

    A process compiles the same program once, for all models. Inductor stores it for later processes in the folder of
    the environment variable ``TORCHINDUCTOR_CACHE_DIR``. If this folder cannot be written, a temporary one is used,
    with a warning.

    Arguments:
        graph: Graph of tensor operations; its only mutations are ``copy_`` into arguments, at its end.
        arguments: Example arguments; those of later calls have the same shapes, strides, types and devices.

    Raises:
        CompilationError: If compilation fails: there is no C++ compiler, or this version of torch lacks a function.
    """
    if _interpreted:
        return Compiled(lambda flat: graph(*flat), 0.0)
    key = fingerprint(graph, arguments)
    if key in _compiled:
        return Compiled(_compiled[key], 0.0)
    start = time.perf_counter()
    try:
        with writable_cache(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of modules that Inductor imports
            executable, entry = _without_probes(graph, list(arguments))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CompilationError(
            f"cannot compile on this machine with torch {torch.__version__} (tested with {', '.join(SUPPORTED)}): "
            f"{type(error).__name__}: {reason}"
        ) from error
    _compiled[key] = executable
    with suppress(OSError):
        _stamp(key).parent.mkdir(exist_ok=True)
        _stamp(key).write_text(entry)
    return Compiled(executable, time.perf_counter() - start)


def known(graph: GraphModule, arguments: Sequence[Tensor]) -> str:
    """Returns where the compiled program is cached: ``"process"``, ``"disk"``, or ``""`` for nowhere."""
    key = fingerprint(graph, arguments)
    if key in _compiled:
        return "process"
    try:
        entry = _stamp(key).read_text()
        return "disk" if entry and (_stamp(key).parents[1] / "fxgraph" / entry[1:3] / entry).exists() else ""
    except (OSError, ImportError, AttributeError):  # no entry, or a version of torch without such a cache
        return ""


def _stamp(key: str) -> Path:
    """Returns the file that holds the name of a program's entry in Inductor's cache."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "pyro_vae" / key


def _without_probes(graph: GraphModule, arguments: list[Tensor]) -> tuple[Executable, str]:
    """Compiles for the vector instructions that the processor has; if the compiler fails, for those that it knows too.

    Inductor finds these by probes, which compile ten programs and take longer than the compilation of a step.
    """
    from torch._inductor import config
    from torch._inductor.exc import CppCompileError

    if config.cpp.vec_isa_ok is not None:
        return _inductor(graph, arguments)
    try:
        with config.patch({"cpp.vec_isa_ok": True}):
            return _inductor(graph, arguments)
    except Exception as error:
        if not isinstance(getattr(error, "inner_exception", error), CppCompileError):
            raise
    return _inductor(graph, arguments)


def _inductor(graph: GraphModule, arguments: list[Tensor]) -> tuple[Executable, str]:
    """Returns the compiled program, and the name of its entry in the cache on disk (empty if it has none)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's imports warn too
        from torch._guards import TracingContext, tracing
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        register_with_inductor()
        table = {**select_decomp_table(), torch.ops.aten.min.dim: _least}
        with torch.no_grad(), config.patch(_OPTIONS):
            lowered = traced(lambda *flat: graph(*flat), _copies(arguments), decomposition_table=table)
            # Constants of the decompositions, such as a zero; they do not depend on the arguments.
            constants = lift_constants(lowered)
            use_faster_products(lowered)
            fake = FakeTensorMode(shape_env=ShapeEnv())  # without a ShapeEnv, Inductor skips its cache on disk
            examples = [fake.from_tensor(a, static_shapes=True) for a in (*arguments, *constants)]
            with tracing(TracingContext(fake)):
                # On a CPU, C++ calls the kernels: calls from Python take a third of the time of a small step.
                compiled = compile_fx_inner(lowered, examples, cpp_wrapper=not any(a.is_cuda for a in arguments))
    entry = getattr(compiled, "_fx_graph_cache_key", None) or ""
    return (lambda flat: compiled([*flat, *constants])) if constants else compiled, entry


# Callers check their arguments; Inductor's own checks take as long as a small step.
_OPTIONS: dict[str, object] = {"fx_graph_cache": True, "size_asserts": False}


def _least(tensor: Tensor, dim: int, keepdim: bool = False) -> object:
    """The least value and its place for truth values, as whole numbers; other types are left as they are.

    Checks of distributions ask so whether all cells are valid. Torch 2.13 writes invalid C++ for it in float64.
    """
    if tensor.dtype is not torch.bool:
        return NotImplemented
    least = tensor.to(torch.int32).min(dim, keepdim)
    return least.values.bool(), least.indices


def _copies(arguments: list[Tensor]) -> list[Tensor]:
    """Returns copies with the same strides, since tracing runs the graph and so mutates its arguments."""
    return [torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=a.device).copy_(a) for a in arguments]
