r"""Capture of a program of modules and distributions as a pure function of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from pyro_vae.engine.capture.agreement import at_other_inputs, close, perturbed, tolerance
from pyro_vae.engine.capture.graph import lift_constants, traced
from pyro_vae.engine.capture.noise import Draw, Lifted
from pyro_vae.engine.capture.origins import Read
from pyro_vae.engine.capture.refusals import Static, refuse_foreign
from pyro_vae.engine.capture.untouched import untouched
from pyro_vae.engine.errors import CaptureError


@dataclass
class Outputs:
    """Outputs of one call.

    Attributes:
        result: Return value of the program, with detached tensors.
        gradients: Gradients of the first tensor of the result, by parameter name.
        buffers: New values of the changed buffers, by name.
    """

    result: Any
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


@dataclass
class Capture:
    r"""A program as a pure function of parameters, buffers, inputs and noise.

    Attributes:
        graph: Tensor operations from `arguments` to the tensors of the result, gradients and new buffers.
        parameters: Names of the parameters, trainable or not.
        buffers: Names of the buffers.
        draws: Draws of standard noise, in order.
        held: Tensors that the program uses without being given them, such as tensors in a closure.
        reads: Held tensors whose values were read during capture; the graph is valid only for these values.
        differentiated: Names of the parameters whose gradients are returned.
        changed: Names of the buffers that the program changes.
        template: Structure of the result.
    """

    graph: GraphModule
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    draws: tuple[Draw, ...]
    held: list[Tensor]
    reads: tuple[Read, ...]
    differentiated: tuple[str, ...]
    changed: tuple[str, ...]
    template: Template = field(repr=False)

    @property
    def constants(self) -> list[Tensor]:
        """The held tensors, which are the graph's last arguments.

        Raises:
            CaptureError: See `check_reads`.
        """
        self.check_reads()
        return self.held

    def check_reads(self) -> None:
        """Raises a `CaptureError` if one of `reads` was changed since."""
        for read in self.reads:
            if read.changed():
                raise CaptureError(
                    f"capture: a tensor of shape {tuple(read.tensor.shape)} was changed in place after the capture, "
                    f"which read its values at {read.line}; make it an input or a buffer and use tensor operations "
                    "only, or leave the program uncompiled (compile=False)."
                )

    def arguments(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Sequence[Any],
        noise: Sequence[Tensor],
    ) -> list[Tensor]:
        """Returns the flat arguments of the graph."""
        return [
            *(parameters[name] for name in self.parameters),
            *(buffers[name] for name in self.buffers),
            *tensors_of(inputs),
            *noise,
            *self.constants,
        ]

    def outputs(self, flat: Sequence[Tensor]) -> Outputs:
        """Returns the graph's flat results as `Outputs`."""
        n, m = self.template.size, len(self.differentiated)
        return Outputs(
            self.template.fill(flat[:n]),
            dict(zip(self.differentiated, flat[n : n + m], strict=True)),
            dict(zip(self.changed, flat[n + m :], strict=True)),
        )

    def noise(self) -> list[Tensor]:
        """Returns noise for one call, from torch's random stream."""
        return [draw.sample() for draw in self.draws]

    @torch.no_grad()
    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Sequence[Any],
        noise: Sequence[Tensor] | None = None,
    ) -> Outputs:
        """Runs the graph, uncompiled.

        Arguments:
            parameters: Parameters by name.
            buffers: Buffers by name.
            inputs: Inputs of the same structure, shapes and types as the example inputs.
            noise: Noise of each of `draws`; by default from torch's random stream.
        """
        given = self.noise() if noise is None else noise
        return self.outputs(self.graph(*self.arguments(parameters, buffers, inputs, given)))


@dataclass
class Template:
    """The structure of a nested value, with its leaves that are no tensors."""

    spec: pytree.TreeSpec
    leaves: list[Any]

    @classmethod
    def of(cls, value: Any) -> Template:
        leaves, spec = pytree.tree_flatten(value)
        return cls(spec, [_HOLE if isinstance(leaf, Tensor) else leaf for leaf in leaves])

    @property
    def size(self) -> int:
        """The number of tensors."""
        return sum(leaf is _HOLE for leaf in self.leaves)

    def fill(self, tensors: Iterable[Any]) -> Any:
        """Returns the nested value with the given tensors."""
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if leaf is _HOLE else leaf for leaf in self.leaves], self.spec)


_HOLE = object()


def tensors_of(value: Any) -> list[Tensor]:
    """Returns the tensors of a nested value, in order, as contiguous tensors: a graph is for one layout."""
    return [leaf.contiguous() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


class Program(nn.Module):
    """A function together with the modules whose parameters and buffers it uses.

    Arguments:
        function: Function from the inputs to any nested value.
        modules: Modules by name.
    """

    def __init__(self, function: Callable[..., Any], modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, then: Callable[[Any], Any], *inputs: Any) -> Any:
        """Returns ``then(value)`` of the function's value; both run with the same parameters in the modules."""
        return then(self.function(*inputs))


def capture(
    function: Callable[..., Any],
    modules: Mapping[str, nn.Module],
    inputs: Sequence[Any],
    gradients_of: Sequence[str] = (),
) -> Capture:
    r"""Captures a program as a pure function of tensors.

    The program runs three times: to list its draws, to record its operations, and to check the record. The check
    compares program and graph at other parameters, permuted input rows and other noise. The modules, the param store
    and the random state do not change. Batch statistics and other changed buffers are outputs of the captured
    function.

    The check finds Python numbers in the result that change from run to run, or with parameters and inputs, such as a
    counter of calls. It cannot find numbers that change later: one that the caller sets between two calls (an
    annealing factor as an attribute), or one that counts epochs. Make such numbers inputs or buffers.

    Arguments:
        function: Function from ``inputs`` to a nested value. For gradients, the first tensor of the value must be the
            scalar to differentiate. The function may use effect handlers, hooks and gradients itself.
        modules: Modules by name; they must own all parameters and buffers that the function uses.
        inputs: Example inputs: nested values. In later calls, only the values of their tensors may differ.
        gradients_of: Names of parameters, each with the module's name in front.

    Raises:
        CaptureError: If the program's operations depend on values of tensors, or it draws from its own generator,
            holds trainable tensors that are no parameters of the modules, changes parameters or inputs in place, or
            does not depend on a parameter of ``gradients_of``. The message names the line and the site.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> noisy = capture(lambda x: linear(x + torch.randn(3)).sum(), {"f": linear}, [torch.ones(3)], ["f.weight"])
        >>> parameters = {f"f.{name}": parameter for name, parameter in linear.named_parameters()}
        >>> noisy(parameters, {}, [torch.ones(3)], [torch.zeros(3)]).gradients["f.weight"][0]
        tensor([1., 1., 1.])
    """
    try:
        return _captured(function, modules, inputs, gradients_of)
    except ValueError as error:  # Pyro wraps an error from within a density in its own
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CaptureError):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from None


def _captured(
    function: Callable[..., Any], modules: Mapping[str, nn.Module], inputs: Sequence[Any], gradients_of: Sequence[str]
) -> Capture:
    program = Program(function, modules)
    run = _Pure(program, list(inputs), tuple(gradients_of))
    devices = _devices([*program.parameters(), *program.buffers(), *tensors_of(list(inputs))])
    with untouched(program, devices):
        parameters, buffers = run.state()
        drawn: list[tuple[Draw, Tensor]] = []

        def remember(draw: Draw) -> Tensor:
            drawn.append((draw, draw.sample()))
            return drawn[-1][1].clone()

        tensors = [tensor.detach().clone() for tensor in tensors_of(run.inputs)]
        with Lifted(remember):
            run(parameters, buffers, tensors)
        run.draws = tuple(draw for draw, _ in drawn)
        noise = [value for _, value in drawn]
        pure = traced(lambda *groups: run.at_noise(*groups), [parameters, buffers, tensors, noise])
        flat = [*parameters, *buffers, *tensors, *noise]
        pure = traced(functionalize(lambda *leaves: _leaves(pure(*run.grouped(leaves)))), flat)
        constants = lift_constants(pure)
        state = dict(program.named_parameters()) | dict(program.named_buffers())
        refuse_foreign(constants, {name: state[name] for name in (*run.gradients_of, *run.changed)})
        captured = Capture(
            *(pure, run.parameters, run.buffers, run.draws, constants, ()),
            *(run.gradients_of, run.changed, run.template),
        )
        _check(captured, run, flat, devices)
        captured.reads = tuple({id(read.tensor): read for read in run.reads}.values())
    return captured


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


class _Pure:
    """A program as a function of flat tensors, without changes of its modules."""

    def __init__(self, program: Program, inputs: list[Any], gradients_of: tuple[str, ...]) -> None:
        self.program, self.inputs, self.gradients_of = program, inputs, gradients_of
        self.template_of_inputs = Template.of(inputs)
        named, buffers = dict(program.named_parameters()), dict(program.named_buffers())
        self.parameters, self.buffers = tuple(named), tuple(buffers)
        self.trainable = {name for name, parameter in named.items() if parameter.requires_grad}
        for name in gradients_of:
            if name not in self.trainable:
                raise CaptureError(f"capture: `{name}` is no trainable parameter; there are {sorted(self.trainable)}.")
        self.draws: tuple[Draw, ...] = ()
        self.changed: tuple[str, ...] = ()
        self.template = Template.of(None)
        self.reads: list[Read] = []

    def state(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns copies of the parameters and buffers."""
        return (
            [parameter.detach().clone() for parameter in self.program.parameters()],
            [buffer.detach().clone() for buffer in self.program.buffers()],
        )

    def grouped(self, flat: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Returns the flat tensors as lists of parameters, buffers, inputs and noise."""
        sizes = (len(self.parameters), len(self.buffers), self.template_of_inputs.size, len(self.draws))
        groups, start = [], 0
        for size in sizes:
            groups.append(list(flat[start : start + size]))
            start += size
        return tuple(groups)

    def at_noise(
        self, parameters: list[Tensor], buffers: list[Tensor], tensors: list[Tensor], noise: list[Tensor]
    ) -> list[Tensor]:
        """Runs the program with given noise; see `__call__`."""
        rest = iter(noise)
        with Lifted.at(rest, self.draws):
            results = self(parameters, buffers, tensors)
        if next(rest, None) is not None:
            raise CaptureError(
                "capture: the program draws less in its second run than in its first; its draws must not depend on "
                "values or on the number of runs."
            )
        return results

    def __call__(self, parameters: list[Tensor], buffers: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        leaves = {
            name: value.detach().requires_grad_(name in self.trainable)
            for name, value in zip(self.parameters, parameters, strict=True)
        }
        own = {name: value.detach().clone() for name, value in zip(self.buffers, buffers, strict=True)}
        given = [tensor.detach() for tensor in tensors]
        versions = {name: value._version for name, value in own.items()}
        state, fixed = {**leaves, **own}, [(t, t._version) for t in (*leaves.values(), *given)]
        static = Static([*leaves.values(), *own.values(), *given])
        with static, torch.enable_grad():
            result, gradients = functional_call(
                self.program,
                state,
                (lambda result: (result, self._gradients(result, leaves, fixed)), *self.template_of_inputs.fill(given)),
            )
        self.reads += static.reads
        after = {name: state[name] for name in own}  # an assigned buffer is another tensor now
        changed = tuple(n for n, b in after.items() if b is not own[n] or b._version != versions[n])
        self.changed, self.template = changed, Template.of(result)
        return [t.detach() for t in (*tensors_of(result), *gradients, *(after[name] for name in changed))]

    def _refuse_mutation(self, fixed: list[tuple[Tensor, int]]) -> None:
        names = [*(f"the parameter `{name}`" for name in self.parameters), *["one of its inputs"] * len(fixed)]
        for name, (tensor, version) in zip(names, fixed, strict=False):
            if tensor._version != version:
                raise CaptureError(
                    f"capture: the program changes {name} in place; change a copy (x.clone()); use a buffer for values "
                    "that last from call to call; only the optimizer may change parameters."
                )

    def _gradients(self, result: Any, leaves: dict[str, Tensor], fixed: list[tuple[Tensor, int]]) -> list[Tensor]:
        """Returns the gradients; the modules must still have these parameters, which checkpointing reads again."""
        self._refuse_mutation(fixed)
        if not self.gradients_of:
            return []
        value = next(iter(tensors_of(result)), None)
        if value is None or value.dim():
            found = "no tensor" if value is None else f"a tensor of shape {tuple(value.shape)}"
            raise CaptureError(f"capture: the program must return the scalar to differentiate first; it is {found}.")
        wanted = [leaves[name] for name in self.gradients_of]
        gradients = (
            torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None] * len(wanted)
        )
        missing = [n for n, g in zip(self.gradients_of, gradients, strict=True) if g is None]
        if missing:
            raise CaptureError(f"capture: the loss does not depend on {', '.join(f'`{name}`' for name in missing)}.")
        return [gradient for gradient in gradients if gradient is not None]


def _check(captured: Capture, run: _Pure, flat: list[Tensor], devices: list[torch.device]) -> None:
    """Raises a `CaptureError` if graph and program differ at other parameters, inputs and noise."""
    parameters, buffers, tensors, noise = run.grouped(flat)
    parameters = [perturbed(tensor) for tensor in parameters]
    noise = [draw.sample() for draw in captured.draws]

    def program(inputs: list[Tensor]) -> list[Tensor]:
        with torch.random.fork_rng(devices=devices):  # the same opaque draws for the program and the graph
            return run.at_noise(parameters, buffers, inputs, [value.clone() for value in noise])

    expected, tensors = at_other_inputs(program, tensors)
    with torch.no_grad():
        got = captured.graph(*parameters, *buffers, *tensors, *noise, *captured.constants)
    names = [f"output {i}" for i in range(captured.template.size)]
    names += [f"the gradient of `{n}`" for n in captured.differentiated] + [f"buffer `{n}`" for n in captured.changed]
    if len(expected) != len(names):
        raise CaptureError(
            "capture: the outputs of the program or the buffers that it changes differ from run to run; they must not "
            "depend on the number of runs."
        )
    most = tolerance([*flat, *captured.constants, *expected])
    for name, a, b in zip(names, expected, got, strict=True):
        if a.shape != b.shape or not close(a, b, most):
            raise CaptureError(
                f"capture: {name} of the captured program differs from that of the program itself at other parameters "
                "and inputs; it depends on values that are no tensors: numbers read out of tensors, drawn by `random` "
                "or NumPy, or kept between calls (a counter). Make them tensors, inputs or buffers."
            )


def _devices(tensors: list[Tensor]) -> list[torch.device]:
    return sorted({tensor.device for tensor in tensors if tensor.is_cuda}, key=str)
