r"""Matrix products on a CPU by the faster of torch's two libraries."""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

# Least number of multiplications of a product for oneDNN: for smaller ones, the call itself takes as long.
_LEAST = 3_000_000
# Least speedup by oneDNN, at the shape of a layer, for its use. On processors that are not Intel's it is about 2.
_FASTER = 1.3
_SHAPE = (100, 784, 500)


@torch.library.custom_op("pyro_vae::product", mutates_args=())
def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns a @ b + bias, computed by oneDNN; shapes ``(m, k)``, ``(k, n)`` and ``(n,)``, any strides."""
    return _onednn(a, b.t(), bias)


@product.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _onednn(given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(given, weight, bias, "none", [], "")


def use_faster_products(graph: GraphModule) -> None:
    """Replaces large products of float32 matrices on a CPU by calls of oneDNN, if it is faster on this machine.

    Arguments:
        graph: Graph whose nodes have example results in their ``meta``; changed in place.
    """
    changed = False
    for node in list(graph.graph.nodes):
        factors = _factors(node)
        if factors is None or not onednn_is_faster():
            continue
        with graph.graph.inserting_before(node):
            new = graph.graph.call_function(torch.ops.pyro_vae.product.default, factors)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
        changed = True
    if changed:
        graph.recompile()


def _factors(node: Node) -> tuple[Node | None, ...] | None:
    """Returns factors and bias of a node that is a large float32 product on a CPU; None for any other node."""
    if node.op != "call_function" or node.kwargs:
        return None
    if node.target is aten.mm.default:
        a, b = node.args
        bias = None
    elif node.target is aten.addmm.default:
        bias, a, b = node.args
        if bias.meta["val"].dim() != 1:  # type: ignore[union-attr]
            return None
    else:
        return None
    first, second = a.meta["val"], b.meta["val"]  # type: ignore[union-attr]
    if first.dtype != torch.float32 or first.device.type != "cpu":
        return None
    if first.shape[0] * first.shape[1] * second.shape[1] < _LEAST:
        return None
    return (a, b, bias)  # type: ignore[return-value]


@functools.cache
def onednn_is_faster() -> bool:
    """Returns whether oneDNN multiplies matrices much faster than torch's BLAS on this machine; measured once."""
    if not torch.backends.mkldnn.is_available():
        return False
    m, k, n = _SHAPE
    a, b = torch.ones(m, k), torch.ones(n, k)
    try:
        return _seconds(lambda: torch.mm(a, b.t())) > _FASTER * _seconds(lambda: _onednn(a, b, None))
    except (RuntimeError, AttributeError):  # a build of torch without it
        return False


def _seconds(run: object) -> float:
    """Returns the shortest of 20 times: other processes can only add to a time."""
    shortest = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        run()  # type: ignore[operator]
        shortest = min(shortest, time.perf_counter() - start)
    return shortest
