r"""R steps of one structure as one program, on the stacked tensors of R replicates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize, vmap
from torch.fx import GraphModule

from pyro_vae.engine.capture.graph import lift_constants, traced
from pyro_vae.engine.capture.noise import Draw
from pyro_vae.engine.capture.opaque import OPAQUE
from pyro_vae.engine.compilation.backend import Executable, compile_graph, known
from pyro_vae.engine.errors import CaptureError
from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.engine.step.step import Step
from pyro_vae.engine.step.varying import OneOfMany, Varying

# Bytes of parameters and optimizer state that fit a CPU's caches during a step; number of replicates beyond which a
# larger batch is not faster.
_CACHED, _MOST_AT_A_TIME = 2e6, 16


class Stack:
    """Stacked tensors of R replicates; the replicates' own tensors become views of them.

    So every parameter, buffer and optimizer state stays the same object and always has its current value.
    """

    def __init__(self) -> None:
        self._stacked: dict[int, Tensor] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the replicates' tensors as one tensor of shape ``(R, ...)``.

        Arguments:
            tensors: One tensor of each replicate, the same objects in each call.
        """
        stacked = self._stacked.get(id(tensors[0]))
        if stacked is None:
            stacked = torch.stack([tensor.detach() for tensor in tensors])
            self._stacked[id(tensors[0])] = stacked
        for tensor, part in zip(tensors, stacked.unbind(0), strict=True):
            if tensor.data_ptr() != part.data_ptr() or tensor.stride() != part.stride():
                part.copy_(tensor)
                self._kept.append((tensor, tensor.data))
                tensor.data = part
        return stacked

    @torch.no_grad()
    def release(self) -> None:
        """Moves every tensor back to its own memory, with its current value."""
        for tensor, before in reversed(self._kept):
            if not torch.equal(before, tensor):
                before.copy_(tensor)
            tensor.data = before
        self._kept.clear()
        self._stacked.clear()


def _part_size(count: int, fixed: Sequence[Tensor]) -> int:
    """Returns the number of replicates in one run of the program; on a CPU, as many as its caches hold."""
    if fixed[0].device.type != "cpu":
        return count
    each = sum(tensor.nbytes for tensor in fixed) / count
    wanted = min(max(_CACHED / each, 1.0), _MOST_AT_A_TIME, count)
    return min((d for d in range(1, count + 1) if count % d == 0), key=lambda d: abs(math.log(d / wanted)))


def _parts(tensors: Sequence[Tensor], own: Sequence[bool], start: int, size: int) -> list[Tensor]:
    return [t[start : start + size] if each else t for t, each in zip(tensors, own, strict=True)]


def check_rules(ledgers: Sequence[Ledger]) -> None:
    """Raises a `CaptureError` unless the replicates' optimizers follow one known rule."""
    for r, ledger in enumerate(ledgers):
        name, first = type(ledger.optimizer).__name__, ledgers[0]
        if ledger.rule is None:
            raise CaptureError(
                f"replicates: the optimizer of replicate {r}, `{name}`, has no rule that a program can follow; use "
                "SGD, Adagrad, Adam or AdamW of torch.optim without hooks, or train them one by one."
            )
        if ledger.rule is not first.rule:
            raise CaptureError(
                f"replicates: the optimizer of replicate {r} is `{name}`, that of replicate 0 "
                f"`{type(first.optimizer).__name__}`; train them one by one."
            )


class ReplicatedStep:
    r"""The steps of R replicates as one graph, batched over replicates, that works in place.

    Each replicate has its own loss, gradients, clipping, update and flag for failure: a replicate whose loss is not
    finite no longer changes; the others continue. Numbers that differ between the programs (the weight of a KL, a
    decay rate) become tensors of shape ``(R,)``.

    Arguments:
        steps: The step of each replicate.
        stack: Stack of the run, shared by all its replicated steps.
        shared: Number of leading input tensors that are the same for all replicates; the others have the shape
            ``(R, ...)``.
        common_noise: Whether all replicates have the same noise.

    Raises:
        CaptureError: If the programs differ in more than numbers, the optimizer has no known rule, or noise is
            common and the program has a draw that is no function of standard noise.
    """

    def __init__(self, steps: Sequence[Step], stack: Stack, shared: int = 0, common_noise: bool = False) -> None:
        self.steps, self.stack, self.common_noise = list(steps), stack, common_noise
        first = steps[0]
        self.template, self.draws = first.captured.template, first.captured.draws
        self._reading = [step.captured for step in steps if step.captured.reads]
        check_rules([step.ledger for step in steps])
        self._refuse(first)
        varying = Varying.among([step.graph for step in steps])
        given = first.example_inputs()
        inputs = [t if i < shared else torch.stack([t] * len(steps)) for i, t in enumerate(given)]
        constants = [*zip(*([*step.captured.constants, *step.constants] for step in steps), strict=True)]
        equal = [all(torch.equal(t, of_all[0]) for t in of_all[1:]) for of_all in constants]
        self._constants = [t[0] if same else torch.stack(t) for t, same in zip(constants, equal, strict=True)]
        device = first.ledger.failed.device
        self._constants += [torch.tensor(v, dtype=torch.float64, device=device) for v in varying.values.values()]
        self._own_inputs = [i >= shared for i in range(len(given))]
        self._own_constants = [*(not same for same in equal), *(True for _ in varying.values)]
        self._list_fixed()
        arguments = next(self._arguments(inputs, [self._empty(draw).zero_() for draw in self.draws]))
        own = [*(True for _ in self._parts[0][0]), *self._own_inputs]
        own += [*(not common_noise for _ in self.draws), *self._own_constants]
        self.graph: GraphModule = self._batched(OneOfMany(first.graph, varying), own, arguments)
        self._lifted = lift_constants(self.graph)
        self._examples = [*arguments, *self._lifted]
        self._run: Executable = lambda flat: self.graph(*flat)

    def _refuse(self, first: Step) -> None:
        opaque = {f"{operator._opoverload}" for operator in OPAQUE.values()}
        drawn = sorted({f"{n.target}" for n in first.graph.graph.nodes if f"{n.target}" in opaque})
        if self.common_noise and drawn:
            raise CaptureError(
                f"replicates: `{drawn[0].split('.')[1]}` cannot be drawn from given noise, so replicates cannot share "
                "it; give each its own seed, with common_noise=False."
            )

    def compile(self) -> float:
        """Compiles the graph; returns the seconds. See `Step.compile`."""
        compiled = compile_graph(self.graph, self._examples)
        self._run = compiled.run
        return compiled.seconds

    def known(self) -> str:
        """Returns where the compiled program is cached: ``"process"``, ``"disk"``, or ``""`` for nowhere."""
        return known(self.graph, self._examples)

    def noise(self, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Returns noise for one call.

        Arguments:
            generators: One random generator for each replicate; if noise is common, only the first is used.
        """
        if self.common_noise:
            return [draw.sample(generators[0]) for draw in self.draws]
        drawn = [self._empty(draw) for draw in self.draws]
        parts = [noise.unbind(0) for noise in drawn]
        for r, generator in enumerate(generators):
            for draw, part in zip(self.draws, parts, strict=True):
                draw.fill(part[r], generator)
        return drawn

    @torch.no_grad()
    def take(self, inputs: Sequence[Tensor], noise: Sequence[Tensor]) -> Sequence[Tensor]:
        """Takes the step of every replicate; returns the tensors of the function's values, shape ``(R, ...)``.

        Arguments:
            inputs: Tensors of the inputs, in order.
            noise: Result of the method `noise`.
        """
        for captured in self._reading:
            captured.check_reads()
        results = [self._run([*arguments, *self._lifted]) for arguments in self._arguments(inputs, noise)]
        return results[0] if len(results) == 1 else [torch.cat(parts) for parts in zip(*results, strict=True)]

    def follow(self) -> None:
        """Updates the references to buffers that were assigned anew outside the program."""
        self._list_fixed()

    def _list_fixed(self) -> None:
        held = zip(*(step.held() for step in self.steps), strict=True)
        fixed = [self.stack.of(tensors).detach() for tensors in held]
        size = _part_size(len(self.steps), fixed)
        starts = range(0, len(self.steps), size)
        own = [True] * len(fixed)
        self._parts = [
            (_parts(fixed, own, i, size), _parts(self._constants, self._own_constants, i, size), i, size)
            for i in starts
        ]

    def _empty(self, draw: Draw) -> Tensor:
        shape = draw.shape if self.common_noise else (len(self.steps), *draw.shape)
        return torch.empty(shape, dtype=draw.dtype, device=draw.device)

    def _arguments(self, inputs: Sequence[Tensor], noise: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yields the graph's arguments for each part of the replicates."""
        given = [*inputs, *noise]
        own = [*self._own_inputs, *(not self.common_noise for _ in noise)]
        for fixed, constants, start, size in self._parts:
            yield [*fixed, *(given if len(self._parts) == 1 else _parts(given, own, start, size)), *constants]

    def _batched(self, one: OneOfMany, own: Sequence[bool], arguments: Sequence[Tensor]) -> GraphModule:
        """Returns the step of all replicates as one graph, with all mutations at its end."""
        n, size = len(arguments) - len(one.places), self.template.size

        def replicate(*flat: Tensor) -> tuple[Tensor, ...]:
            return tuple(one.at(flat[n:], flat[:n]))

        in_dims: Any = tuple(0 if each else None for each in own)

        def whole(*flat: Tensor) -> list[Tensor]:
            results = vmap(replicate, in_dims=in_dims, randomness="different")(*flat)
            for target, new in zip(one.targets, results[size:], strict=True):
                flat[target].copy_(new)
            return list(results[:size])

        copies = [a.clone() for a in arguments]
        functorch: Any = torch._C._functorch
        functorch._set_vmap_fallback_warning_enabled(False)  # the fallback is slower but correct
        try:
            with torch.no_grad():
                return traced(functionalize(whole, remove="mutations"), copies)
        finally:
            functorch._set_vmap_fallback_warning_enabled(True)  # the default
