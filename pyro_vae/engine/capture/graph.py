r"""What is done to a captured graph: its constants, its replicates, its text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx


def traced(function: Callable[..., Any], arguments: Sequence[Any], **options: Any) -> GraphModule:
    """Returns the tensor operations of a function at given arguments; torch's random stream is left as it is.

    Arguments:
        function: Of the arguments.
        arguments: Nested tensors, which are computed with.
        options: Of `make_fx`.
    """
    # One mode of fake tensors for the whole trace; else each operation makes one of its own, which takes longer.
    context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    with tracing(context), torch.random.fork_rng():
        return make_fx(function, **options)(*arguments)


def lift_constants(graph: GraphModule) -> list[Tensor]:
    """Makes the tensors that a graph holds its last arguments; returns them in order."""
    nodes = list(graph.graph.nodes)
    body = next(node for node in nodes if node.op != "placeholder")
    found: dict[str, torch.fx.Node] = {}
    constants = []
    for node in nodes:
        if node.op != "get_attr" or not isinstance(getattr(graph, node.target, None), Tensor):
            continue
        if node.target not in found:
            with graph.graph.inserting_before(body):
                found[node.target] = graph.graph.placeholder(f"constant_{len(found)}")
            constants.append(getattr(graph, node.target))
        node.replace_all_uses_with(found[node.target])
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return constants


def fingerprint(graph: GraphModule, arguments: Sequence[Tensor]) -> str:
    """Returns a digest by which two graphs are the same program on tensors of the same kind.

    The text of a graph shows its operators, their order and every argument that is no tensor: types, layouts, and
    numbers to the last digit. It does not show the tensors that a graph holds, which `lift_constants` makes arguments.
    What a process has set for all its operations and a compiled program holds fast is part of the digest.
    """
    kinds = [(str(a.dtype), tuple(a.shape), a.stride(), str(a.device)) for a in arguments]
    parts = [graph.code, *(part.code for part in graph.children() if isinstance(part, GraphModule))]
    process = (
        torch.__version__,
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )
    return hashlib.sha256(f"{parts}{kinds}{process}".encode()).hexdigest()
