r"""Tracing of functions to graphs, constants of a graph, and digests of graphs."""

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
    """Returns the tensor operations of a function as a graph; torch's random state is unchanged.

    Arguments:
        function: The function to trace.
        arguments: Example arguments of the function: nested tensors.
        options: Options of `make_fx`.
    """
    # One fake-tensor mode for the whole trace is faster than one for each operation.
    context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    with tracing(context), torch.random.fork_rng():
        return make_fx(function, **options)(*arguments)


def lift_constants(graph: GraphModule) -> list[Tensor]:
    """Turns the tensors stored in a graph into its last arguments; returns them in order."""
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
    """Returns a digest: graphs of equal digest are the same program on tensors of the same kind.

    The digest covers the text of the graph (its operators, their order, and all arguments that are no tensors, with
    every digit of a number) and the process-wide settings that become part of a compiled program. It does not cover
    tensors stored in the graph, so call `lift_constants` first.
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
