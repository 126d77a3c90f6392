r"""Graphs of one structure as a single graph whose numbers vary from replicate to replicate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate

from pyro_vae.engine.capture.opaque import _vmap_elementwise
from pyro_vae.engine.errors import CaptureError

aten = torch.ops.aten

# The place of a number in a graph: the node's name, and the position or name of the argument.
Place = tuple[str, int | str]


@dataclass
class Varying:
    """The numbers that differ between graphs of one structure.

    Attributes:
        values: For each place, the number in each graph.
    """

    values: dict[Place, list[float]] = field(default_factory=dict)

    @classmethod
    def among(cls, graphs: Sequence[GraphModule]) -> Varying:
        """Compares graphs node by node.

        Arguments:
            graphs: The graph of each replicate; replicates with equal graphs may have the same object.

        Raises:
            CaptureError: If a graph differs from the first in more than numbers, or in a number that is part of an
                operation's structure, such as a size.
        """
        first, found = graphs[0], cls()
        for r, graph in enumerate(graphs):
            if graph is not first and graph.code != first.code:
                found._compare(first, graph, r, len(graphs))
        for place, values in found.values.items():
            node = next(n for n in first.graph.nodes if n.name == place[0])
            if not _liftable(node, place[1]):
                r = next(r for r, value in enumerate(values) if value != values[0])
                raise CaptureError(
                    f"replicates: `{node.target}` has the number {values[r]:g} in replicate {r} and {values[0]:g} in "
                    f"replicate 0, and this number cannot vary within one program; {_ADVICE}"
                )
        return found

    def _compare(self, first: GraphModule, graph: GraphModule, r: int, count: int) -> None:
        ours, theirs = list(first.graph.nodes), list(graph.graph.nodes)
        indices = {node: i for nodes in (ours, theirs) for i, node in enumerate(nodes)}
        for i, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            if a.op != b.op or (a.op == "call_function" and a.target != b.target) or _shape(a) != _shape(b):
                raise _differs(r, i, a, b)
            for at, (x, y) in _pairs(a, b, i, r).items():
                if _is_number(x) and _is_number(y):
                    if x != y or (a.name, at) in self.values:
                        self.values.setdefault((a.name, at), [float(x)] * count)[r] = float(y)
                elif repr(_indexed(x, indices)) != repr(_indexed(y, indices)):
                    raise _differs(r, i, a, b)
        if len(ours) != len(theirs):
            raise _differs(r, min(len(ours), len(theirs)), ours[-1], theirs[-1])


_ADVICE = "train them one by one, each by its own `fit`."


def _pairs(a: Node, b: Node, i: int, r: int) -> dict[int | str, tuple[Any, Any]]:
    ours, theirs = ({**dict(enumerate(node.args)), **node.kwargs} for node in (a, b))
    if list(ours) != list(theirs):
        raise _differs(r, i, a, b)
    return {at: (ours[at], theirs[at]) for at in ours}


def _indexed(argument: Any, indices: dict[Node, int]) -> Any:
    return map_aggregate(argument, lambda leaf: f"node {indices[leaf]}" if isinstance(leaf, Node) else leaf)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shape(node: Node) -> Any:
    value = node.meta.get("val")
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def _differs(r: int, i: int, a: Node, b: Node) -> CaptureError:
    return CaptureError(
        f"replicates: replicate {r} is of another structure than replicate 0: operation {i} is {_described(b)} instead "
        f"of {_described(a)}; {_ADVICE}"
    )


def _described(node: Node) -> str:
    shape = _shape(node)
    of = f" of shape {tuple(shape[0])}" if shape else ""
    return f"`{node.target}`{of}" if node.op == "call_function" else f"an argument{of}"


# ------------------------------------------------------------------ numbers as tensors

_FILLED = {aten.full.default, aten.full_like.default, aten.scalar_tensor.default, aten.fill.Scalar}
_SCALED = {aten.add.Tensor: 1.0, aten.sub.Tensor: -1.0}


def _liftable(node: Node, at: int | str) -> bool:
    if node.target in _FILLED:
        return at == (0 if node.target is aten.scalar_tensor.default else 1)
    return (at == "alpha" and node.target in _SCALED) or _with_tensor(node.target, _name(node.target, at)) is not None


def _name(target: Any, at: int | str) -> str:
    return at if isinstance(at, str) else target._schema.arguments[at].name


def _with_tensor(target: Any, name: str) -> Any:
    """Returns the overload of an operator that takes a tensor as the named argument; None if there is none."""
    arguments = [argument.name for argument in target._schema.arguments]
    others = (getattr(target.overloadpacket, overload) for overload in target.overloadpacket.overloads())
    for overload in (target, *others):
        types = {argument.name: str(argument.type) for argument in overload._schema.arguments}
        if list(types) == arguments and types[name] in ("Tensor", "Optional[Tensor]"):
            return overload
    return None


def _called(node: Node, arguments: dict[int | str, Any], lifted: dict[int | str, Tensor]) -> Any:
    """Returns the node's result with tensors in place of some of its numbers."""
    target: Any = node.target
    meta = node.meta["val"]
    if target in _FILLED:
        return next(iter(lifted.values())).to(meta.dtype).expand(meta.shape)
    own = next(value for value in arguments.values() if isinstance(value, Tensor))
    # The type that a Python number would take: a float64 number must not widen a float32 scalar.
    dtype = own.dtype if own.dtype.is_floating_point else torch.result_type(torch.empty((), dtype=own.dtype), 1.0)
    numbers = {at: number.to(dtype) for at, number in lifted.items()}
    if "alpha" in numbers:
        return arguments[0] + arguments[1] * (numbers["alpha"] * _SCALED[target])
    for at in numbers:
        target = _with_tensor(target, _name(target, at))
    names = {argument.name: str(argument.type) for argument in target._schema.arguments}
    for at, value in {**arguments, **numbers}.items():
        tensor = _is_number(value) and names[_name(target, at)] in ("Tensor", "Optional[Tensor]")
        arguments[at] = own.new_full((), value, dtype=dtype) if tensor and target is not node.target else value
    positional = [arguments[at] for at in arguments if isinstance(at, int)]
    return target(*positional, **{at: value for at, value in arguments.items() if isinstance(at, str)})


class OneOfMany(Interpreter):
    """Runs a graph with the numbers of one replicate, as a function to be batched over replicates.

    The function has no mutations: it returns the values that the graph copies into its arguments.

    Arguments:
        graph: Graph whose only mutations are ``copy_`` into arguments, at its end.
        varying: The varying numbers with their places.
    """

    def __init__(self, graph: GraphModule, varying: Varying) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.places = list(varying.values)
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        order = {node: i for i, node in enumerate(placeholders)}
        copies = [node for node in graph.graph.nodes if node.target is aten.copy_.default]
        self.targets = [order[node.args[0]] for node in copies]

    def at(self, numbers: Sequence[Tensor], flat: Sequence[Tensor]) -> list[Tensor]:
        """Returns the results of the graph, followed by the new values of the arguments `targets`.

        Arguments:
            numbers: Numbers of the replicate, float64 scalars.
            flat: Arguments of the graph.
        """
        self._numbers = dict(zip(self.places, numbers, strict=True))
        self._after: list[Tensor] = []
        results = self.run(*flat)
        return [*results, *self._after]

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        fetched, named = self.fetch_args_kwargs_from_env(n)
        if n.target is aten.copy_.default:
            self._after.append(fetched[1])
            return fetched[1]
        lifted = {at: self._numbers[n.name, at] for name, at in self.places if name == n.name}
        if lifted:
            arguments: dict[int | str, Any] = dict(enumerate(fetched))
            arguments.update(named)
            return _called(n, arguments, lifted)
        rule = _BATCHED.get(n.target)
        return rule(*fetched, **named) if rule else n.target(*fetched, **named)  # type: ignore[operator]


# ------------------------------------------------------------------ operators without a batching rule in torch


@torch.library.custom_op("pyro_vae::standard_gamma_grad", mutates_args=())
def standard_gamma_grad(concentration: Tensor, draw: Tensor) -> Tensor:
    """Returns the derivative of draws from Gamma(concentration, 1) by the concentration."""
    return torch.ops.aten._standard_gamma_grad(concentration, draw)


@torch.library.custom_op("pyro_vae::dirichlet_grad", mutates_args=())
def dirichlet_grad(draw: Tensor, concentration: Tensor, total: Tensor) -> Tensor:
    """Returns the derivative of draws from Dirichlet(concentration) by the concentration."""
    return torch.ops.aten._dirichlet_grad(draw, concentration, total)


standard_gamma_grad.register_fake(lambda concentration, draw: torch.empty_like(concentration))
dirichlet_grad.register_fake(lambda draw, concentration, total: torch.empty_like(draw))
for _operator in (standard_gamma_grad, dirichlet_grad):
    _operator.register_vmap(_vmap_elementwise(_operator))

_BATCHED: dict[Any, Any] = {
    aten.copy.default: lambda out, given, *rest: given.to(out.dtype).expand(out.shape),
    aten.fill.Scalar: lambda out, value: torch.full_like(out, value),
    aten._standard_gamma_grad.default: standard_gamma_grad,
    aten._dirichlet_grad.default: dirichlet_grad,
}
