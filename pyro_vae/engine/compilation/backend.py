r"""From a captured graph to machine code, by Inductor, with its cache on disk."""

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
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.engine.capture.graph import fingerprint, lift_constants
from pyro_vae.engine.compilation.compiler_cache import writable_cache
from pyro_vae.engine.compilation.computed_once import register_with_inductor
from pyro_vae.engine.compilation.products import use_faster_products
from pyro_vae.engine.errors import CompilationError

Executable = Callable[[list[Tensor]], Sequence[Tensor]]

# Versions of torch under which this was run; others may work, and say so where they do not.
SUPPORTED = ("2.11", "2.13")

_compiled: dict[str, Executable] = {}
_interpreted = False


@contextmanager
def interpreted() -> Iterator[None]:
    """Within the block, captured programs run operation by operation: for debugging, and where compiling takes long."""
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
        run: From the flat arguments to the flat results; arguments that the graph mutates are changed in place.
        seconds: What compiling took; 0 where the process had the same program already.
    """

    run: Executable
    seconds: float


def compile_graph(graph: GraphModule, arguments: Sequence[Tensor]) -> Compiled:
    """Returns a graph as machine code.

    A process compiles the same program once, whichever model it belongs to; Inductor keeps it on disk for the next
    process, in the folder that ``TORCHINDUCTOR_CACHE_DIR`` names. Where that cannot be written, a temporary one
    takes its place, with a warning.

    Arguments:
        graph: Of tensor operations without mutation, but for ``copy_`` into arguments at its end.
        arguments: Examples; later calls have tensors of the same shapes, strides, types and devices.

    Raises:
        CompilationError: Where it cannot be compiled: no C++ compiler, or a version of torch without what is needed.
    """
    if _interpreted:
        return Compiled(lambda flat: graph(*flat), 0.0)
    key = fingerprint(graph, arguments)
    if key in _compiled:
        return Compiled(_compiled[key], 0.0)
    start = time.perf_counter()
    try:
        with writable_cache(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the modules that Inductor imports
            executable, entry = _inductor(graph, list(arguments))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CompilationError(
            f"cannot compile on this machine with torch {torch.__version__} (run with {', '.join(SUPPORTED)}): "
            f"{type(error).__name__}: {reason}"
        ) from error
    _compiled[key] = executable
    with suppress(OSError):
        _stamp(key).parent.mkdir(exist_ok=True)
        _stamp(key).write_text(entry)
    return Compiled(executable, time.perf_counter() - start)


def known(graph: GraphModule, arguments: Sequence[Tensor]) -> str:
    """Returns where a program is as machine code already: ``"process"``, ``"disk"``, or nowhere, ``""``."""
    key = fingerprint(graph, arguments)
    if key in _compiled:
        return "process"
    try:
        entry = _stamp(key).read_text()
        return "disk" if entry and (_stamp(key).parents[1] / "fxgraph" / entry[1:3] / entry).exists() else ""
    except (OSError, ImportError, AttributeError):  # nothing there, or a version of torch without such a cache
        return ""


def _stamp(key: str) -> Path:
    """The file that names the entry of Inductor's cache that is a program."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "pyro_vae" / key


def _inductor(graph: GraphModule, arguments: list[Tensor]) -> tuple[Executable, str]:
    """The program, and the name of its entry in the cache on disk, empty where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Inductor's own parts, while they are imported too
        from torch._guards import TracingContext, tracing
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        register_with_inductor()
        table = select_decomp_table()
        with torch.no_grad(), config.patch(_OPTIONS):
            lowered = make_fx(lambda *flat: graph(*flat), decomposition_table=table)(*_copies(arguments))
            # Of the decompositions, such as a zero: the same for all arguments, of which the program's own are some.
            constants = lift_constants(lowered)
            use_faster_products(lowered)
            fake = FakeTensorMode(shape_env=ShapeEnv())  # without which the cache on disk is passed by
            examples = [fake.from_tensor(a, static_shapes=True) for a in (*arguments, *constants)]
            with tracing(TracingContext(fake)):
                # On a CPU the calls of the kernels from C++: from Python they take a third of a small step.
                compiled = compile_fx_inner(lowered, examples, cpp_wrapper=not any(a.is_cuda for a in arguments))
    entry = getattr(compiled, "_fx_graph_cache_key", None) or ""
    return (lambda flat: compiled([*flat, *constants])) if constants else compiled, entry


# Callers guard what they pass; Inductor's own checks of every argument take as long as a small step.
_OPTIONS: dict[str, object] = {"fx_graph_cache": True, "size_asserts": False}


def _copies(arguments: list[Tensor]) -> list[Tensor]:
    """Copies with the same strides: tracing a graph that mutates its arguments runs it."""
    return [torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=a.device).copy_(a) for a in arguments]
