r"""One training step as one graph: loss, gradients, clipping, and the optimizer's update."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import GraphModule

from pyro_vae.engine.capture.capture import Capture, Program, capture, tensors_of
from pyro_vae.engine.capture.graph import lift_constants, traced
from pyro_vae.engine.compilation.backend import Executable, compile_graph, known
from pyro_vae.engine.compilation.computed_once import computed_once
from pyro_vae.engine.compilation.cuda_graph import Replayed
from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.engine.step.optimizer_rules import State
from pyro_vae.errors import InputError


class Step:
    r"""Loss, gradients, clipping by norm and the optimizer's update of a program, as one graph that works in place.

    The graph changes parameters, buffers and the state of the user's optimizer in place; only the optimizer's
    counters are written back, see `Ledger`. An optimizer without a known rule takes its own step with the gradients
    of the graph.

    Arguments:
        function: Function from ``inputs`` to a nested value whose first tensor is the loss.
        modules: Modules by name, whose parameters and buffers the function uses.
        inputs: Example inputs.
        moved: Names of the parameters to move, each with the module's name in front.
        ledger: Ledger of the run.
        clip_norm: Largest norm of the gradient of all moved parameters; None does not clip.

    Attributes:
        executable: Function from all arguments to all results, compiled or operation by operation.
        fixed: Arguments that keep their addresses from step to step.

    Raises:
        CaptureError: See `capture`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        modules: Mapping[str, nn.Module],
        inputs: Sequence[Any],
        moved: Sequence[str],
        ledger: Ledger,
        clip_norm: float | None = None,
    ) -> None:
        self.program, self.ledger, self.clip_norm = Program(function, modules), ledger, clip_norm
        ledger.read_options()
        self.captured: Capture = capture(function, modules, inputs, moved)
        named = dict(self.program.named_parameters())
        self.moved = {name: named[name] for name in moved}
        self.constants: list[Tensor] = []
        self._list_fixed()
        with torch.random.fork_rng():
            arguments = self._arguments(tensors_of(inputs), self.captured.noise())
        self.graph: GraphModule = self._whole(arguments)
        self.constants = lift_constants(self.graph)
        self._examples = [*arguments, *self.constants]
        self.executable: Executable = lambda flat: self.graph(*flat)
        self._run: Executable = self.executable

    def compile(self) -> float:
        """Compiles the graph; returns the seconds, 0 if this process had compiled the same program before.

        Raises:
            CompilationError: See `compile_graph`; the step then runs uncompiled.
        """
        compiled = compile_graph(self.graph, self._examples)
        self.executable = compiled.run
        self._record()
        return compiled.seconds

    def _record(self) -> None:
        """Records all kernels as one CUDA graph, if the device is a CUDA device; see `Replayed`."""
        self._run = self.executable
        if self.ledger.failed.is_cuda and self.ledger.rule is not None:
            given = range(len(self.fixed), len(self._examples) - len(self.all_constants))
            arguments = [*self.fixed, *self._examples[len(self.fixed) :]]
            try:
                self._run = Replayed(self.executable, arguments, given)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"the step runs without a CUDA graph, kernel by kernel: {reason}", stacklevel=2)

    def known(self) -> str:
        """Returns where the compiled program is cached: ``"process"``, ``"disk"``, or ``""`` for nowhere."""
        return known(self.graph, self._examples)

    def preview(self, inputs: Sequence[Any]) -> Any:
        """Returns the function's value at the current parameters, without side effects."""
        state = (dict(self.program.named_parameters()), dict(self.program.named_buffers()))
        with torch.random.fork_rng():
            return self.captured(*state, inputs).result

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Any], noise: Sequence[Tensor] | None = None) -> Any:
        """Takes the step; returns the function's value, with detached tensors.

        Arguments:
            inputs: Inputs like the example inputs.
            noise: Noise of each of `Capture.draws`; by default from torch's random stream.
        """
        given = self.captured.noise() if noise is None else noise
        return self.captured.template.fill(self.take(tensors_of(inputs), given))

    @torch.no_grad()
    def take(self, inputs: Sequence[Tensor], noise: Sequence[Tensor]) -> Sequence[Tensor]:
        """Takes the step, as `__call__` does, with flat inputs; returns the tensors of the function's value.

        Arguments:
            inputs: Tensors of the inputs, in order.
            noise: Noise of each of `Capture.draws`.
        """
        self.follow()
        flat = self._run(self._arguments(inputs, noise))
        if self.ledger.rule is None:
            n = self.captured.template.size
            self._own_step(flat[n:])
            return flat[:n]
        return flat

    def like(self, modules: Mapping[str, nn.Module], ledger: Ledger) -> Step:
        """Returns the same step for other modules in another run, without a new capture.

        Arguments:
            modules: Modules by name, for which the function must be the same program.
            ledger: Ledger of the other run.
        """
        other = copy.copy(self)
        other.program, other.ledger = Program(self.program.function, modules), ledger
        named = dict(other.program.named_parameters())
        other.moved = {name: named[name] for name in self.moved}
        other._list_fixed()
        return other

    def held(self) -> list[Tensor]:
        """Returns the owners of the `fixed` arguments: the parameter and buffer objects, then the other tensors."""
        sources = [*self.program.parameters(), *self.program.buffers()]
        return [*sources, *self.fixed[len(sources) :]]

    def example_inputs(self) -> list[Tensor]:
        """Returns the tensors of the example inputs."""
        others = len(self.captured.draws) + len(self.all_constants)
        return self._examples[len(self.fixed) : len(self._examples) - others]

    @property
    def all_constants(self) -> list[Tensor]:
        """The last arguments of the graph: the constants of the program and of the step."""
        return [*self.captured.constants, *self.constants]

    @property
    def recorded(self) -> bool:
        """Whether the step runs as one CUDA graph."""
        return isinstance(self._run, Replayed)

    # ------------------------------------------------------------------ arguments with fixed addresses

    def _list_fixed(self) -> None:
        """Lists the arguments that keep their addresses from step to step."""
        sources = [*self.program.parameters(), *self.program.buffers()]
        self._holders = [*_holders(self.program, "_parameters"), *_holders(self.program, "_buffers")]
        self._addresses = [tensor.data_ptr() for tensor in sources]
        states = {name: self.ledger.state_of(parameter) for name, parameter in self.moved.items()}
        self._state_keys = [(name, key) for name, own in states.items() for key in own]
        self.fixed = [
            *(tensor.detach() for tensor in sources),
            *(states[name][key] for name, key in self._state_keys),
            *(tensor for parameter in self.moved.values() for tensor in self.ledger.previous_of(parameter)),
            *(*self.ledger.rates, *self.ledger.counts, self.ledger.failed, self.ledger.done),
        ]

    def follow(self) -> None:
        """Updates the references to parameters and buffers that were assigned anew, and the learning rates."""
        if [holder[name].data_ptr() for holder, name in self._holders] != self._addresses:
            self._list_fixed()
            for old, new in zip(self._examples, self.fixed, strict=False):
                if (old.dtype, old.shape, old.stride(), old.device) != (new.dtype, new.shape, new.stride(), new.device):
                    raise InputError(
                        f"a tensor of shape {tuple(old.shape)}, {old.dtype} on {old.device}, was replaced by one of "
                        f"shape {tuple(new.shape)}, {new.dtype} on {new.device} between two compiled steps; change the "
                        "model before or after training, not during it."
                    )
            if self._run is not self.executable:
                self._record()
        self.ledger.read_rates()

    def _arguments(self, inputs: Sequence[Tensor], noise: Sequence[Tensor]) -> list[Tensor]:
        return [*self.fixed, *inputs, *noise, *self.all_constants]

    # ------------------------------------------------------------------ the graph

    def _whole(self, arguments: list[Tensor]) -> GraphModule:
        """Returns loss, gradients and update as one graph, with all mutations at its end."""
        copies = [a.clone() for a in arguments]
        with torch.no_grad():
            return traced(functionalize(lambda *flat: self._take(list(flat)), remove="mutations"), copies)

    def _take(self, flat: list[Tensor]) -> list[Tensor]:
        ledger, rest = self.ledger, iter(flat)
        index = {name: next(rest) for name in (*self.captured.parameters, *self.captured.buffers)}
        states: dict[str, State] = {name: {} for name in self.moved}
        for name, key in self._state_keys:
            states[name][key] = next(rest)
        previous = {name: next(rest) for name, p in self.moved.items() if ledger.previous_of(p)}
        rates, counts = [next(rest) for _ in ledger.rates], [next(rest) for _ in ledger.counts]
        failed, done = next(rest), next(rest)
        values, gradients, buffers = _split(self.captured.graph(*index.values(), *rest), self.captured)
        norm = torch.stack([(g * g).sum() for g in gradients.values()]).sum().sqrt()
        fine = computed_once(~failed & (values[0] + norm).isfinite())
        if ledger.rule is None:
            for name, new in buffers.items():
                index[name].copy_(torch.where(fine, new, index[name]))
            failed.copy_(~fine)
            return [*values, *gradients.values()]
        factor = None if self.clip_norm is None else (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for name, gradient in gradients.items():
            group, part = ledger.group_of(self.moved[name]), ledger.part_of(self.moved[name])
            clipped = gradient if factor is None else gradient * factor
            new, after = ledger.rule.update(
                index[name], clipped, states[name], rates[group], counts[part] + 1, ledger.options[group]
            )
            if name in previous:
                previous[name].copy_(torch.where(fine, index[name], previous[name]))
            index[name].copy_(torch.where(fine, new, index[name]))
            for key, tensor in after.items():
                states[name][key].copy_(torch.where(fine, tensor, states[name][key]))
        for name, new in buffers.items():
            index[name].copy_(torch.where(fine, new, index[name]))
        for part in {ledger.part_of(parameter) for parameter in self.moved.values()}:
            counts[part].copy_(counts[part] + fine)
        done.copy_(done + fine)
        failed.copy_(~fine)
        return values

    def _own_step(self, gradients: Sequence[Tensor]) -> None:
        """Takes the optimizer's own step, for an optimizer without a known rule."""
        if bool(self.ledger.failed):
            return
        norm = torch.nn.utils.get_total_norm(list(gradients))
        scale = None if self.clip_norm is None else torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0)
        self.ledger.optimizer.zero_grad(set_to_none=True)
        for parameter in self.moved.values():
            for tensor in self.ledger.previous_of(parameter):
                tensor.copy_(parameter)
        for parameter, gradient in zip(self.moved.values(), gradients, strict=True):
            parameter.grad = gradient if scale is None else gradient * scale
        with torch.enable_grad():
            self.ledger.optimizer.step()
        self.ledger.optimizer.zero_grad(set_to_none=True)
        self.ledger.done += 1


def _holders(program: nn.Module, kind: str) -> list[tuple[dict[str, Tensor], str]]:
    """Returns the dictionary and key of each parameter or buffer, each once, in the order of the ``named_`` method."""
    found, seen = [], set()
    for module in program.modules():
        own: dict[str, Tensor] = getattr(module, kind)
        for name, tensor in own.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found.append((own, name))
    return found


def _split(results: Sequence[Tensor], captured: Capture) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Returns the flat results as tensors of the value, gradients by name, and new buffers by name."""
    n, m = captured.template.size, len(captured.differentiated)
    gradients = dict(zip(captured.differentiated, results[n : n + m], strict=True))
    return list(results[:n]), gradients, dict(zip(captured.changed, results[n + m :], strict=True))
