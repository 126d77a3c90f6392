r"""The modules and parameters that a Pyro program uses."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.errors import InputError

_counted: ContextVar[bool] = ContextVar("counted", default=True)


@contextmanager
def uncounted() -> Iterator[None]:
    """A block whose modules and ``pyro.param`` statements do not count as those of the program around it."""
    token = _counted.set(False)
    try:
        yield
    finally:
        _counted.reset(token)


@dataclass
class Found:
    """What a run of a program used.

    Attributes:
        modules: The outermost modules, by name.
        parameters: Unconstrained values and constraints of ``pyro.param`` statements that belong to no module.
        statements: Names of the ``pyro.param`` statements of modules.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, tuple[Tensor, Constraint]] = field(default_factory=dict)
    statements: set[str] = field(default_factory=set)


@contextmanager
def observing(program: Any, found: Found) -> Iterator[None]:
    """A block in which a program runs for the first time; then ``found`` says what it used.

    Modules are found where they are called, and where ``pyro.module`` registers them. They run in evaluation mode, so
    that the example changes no batch statistics; afterwards they have their former modes.
    """
    called: list[nn.Module] = [program] if isinstance(program, nn.Module) else []
    named: dict[int, str] = {}
    register = pyro.module

    def registering(name: str, module: nn.Module, *rest: Any, **others: Any) -> nn.Module:
        if _counted.get():
            called.append(module)
            named[id(module)] = name
        result: nn.Module = register(name, module, *rest, **others)
        return result

    modes: dict[nn.Module, bool] = {}

    def calling(module: nn.Module, _: Any) -> None:
        if _counted.get():
            called.append(module)
        modes.setdefault(module, module.training)
        module.training = False

    statements = _Statements()
    with ExitStack() as stack:
        stack.callback(_restore, modes)
        stack.enter_context(pyro.get_param_store().scope())
        hook = register_module_forward_pre_hook(calling)
        stack.callback(hook.remove)
        stack.enter_context(patch.object(pyro, "module", registering))
        stack.enter_context(Copies())
        stack.enter_context(statements)
        yield
    unique = list({id(module): module for module in called}.values())
    inner = {id(part) for module in unique for part in module.modules() if part is not module}
    for module in unique:
        if id(module) not in inner:
            found.modules[_unused(named.get(id(module), type(module).__name__.lower()), found.modules)] = module
    own = {id(p) for module in found.modules.values() for p in module.parameters()}
    of_modules = {name for module in unique for name in _pyro_names(module)}
    for name, (value, constraint) in statements.found.items():
        if name in of_modules or (isinstance(value, Tensor) and id(value) in own):
            found.statements.add(name)
            continue
        with torch.no_grad():
            unconstrained = value if constraint is constraints.real else transform_to(constraint).inv(value)
        found.parameters[name] = (unconstrained, constraint)


def _restore(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _unused(name: str, taken: Any) -> str:
    name = name.replace(".", "_")
    return name if name not in taken else next(f"{name}{i}" for i in range(2, 10_000) if f"{name}{i}" not in taken)


def _pyro_names(module: nn.Module) -> Iterator[str]:
    """Names of the ``pyro.param`` statements that reading the attributes of a PyroModule makes."""
    for part in module.modules():
        if isinstance(part, pyro.nn.PyroModule) and part._pyro_context.used:
            for name in (*part._pyro_params, *part._parameters):
                yield part._pyro_get_fullname(name)
            for name, child in part._modules.items():
                if child is not None and not isinstance(child, pyro.nn.PyroModule):
                    prefix = part._pyro_get_fullname(name)
                    yield from (f"{prefix}$$${inner}" for inner, _ in child.named_parameters())


class _Statements(Messenger):
    """Records the ``pyro.param`` statements with an initial value."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[Any, Constraint]] = {}

    def _pyro_param(self, msg: Any) -> None:
        arguments = msg["args"]
        if len(arguments) > 1 and msg["name"] not in self.found and _counted.get():
            initial = arguments[1]() if callable(arguments[1]) else arguments[1]
            msg["args"] = (arguments[0], initial, *arguments[2:])
            self.found[msg["name"]] = (initial, msg["kwargs"].get("constraint", constraints.real))


class Copies(Messenger):
    """Gives ``pyro.param`` copies of initial values: Pyro would have the user's own tensors require gradients."""

    def _pyro_param(self, msg: Any) -> None:
        arguments = msg["args"]
        if len(arguments) > 1 and isinstance(arguments[1], Tensor) and not arguments[1].requires_grad:
            msg["args"] = (arguments[0], arguments[1].clone(), *arguments[2:])


class Parameters(nn.Module):
    """The parameters of a program's own ``pyro.param`` statements, in unconstrained space.

    Arguments:
        given: Unconstrained initial value and constraint of each, by name.
    """

    def __init__(self, given: dict[str, tuple[Tensor, Constraint]]) -> None:
        super().__init__()
        self.constraints = {name: constraint for name, (_, constraint) in given.items()}
        self._keys: dict[str, str] = {}
        for name, (value, _) in given.items():
            self._keys[name] = key = _unused(name, self._parameters)
            own = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())
            self.register_parameter(key, own)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def __getitem__(self, name: str) -> Tensor:
        """Returns the constrained value."""
        unconstrained: Tensor = getattr(self, self._keys[name])
        constraint = self.constraints[name]
        return unconstrained if constraint is constraints.real else transform_to(constraint)(unconstrained)


class Supplied(Messenger):
    """Answers ``pyro.param`` statements by a program's own parameters, and by those of its modules.

    Arguments:
        sources: Parameters of the model and of the guide.
        statements: Names of the statements of modules.
    """

    def __init__(self, sources: Sequence[Parameters], statements: Container[str]) -> None:
        super().__init__()
        self.sources, self.statements = sources, statements

    def _pyro_param(self, msg: Any) -> None:
        name, arguments = msg["name"], msg["args"]
        for source in self.sources:
            if name in source:
                msg["value"], msg["done"] = source[name], True
                return
        if len(arguments) < 2:  # a PyroParam, which its module has put into the store
            return
        if name not in self.statements:
            raise InputError(
                f"Program: the parameter `{name}` was not there when the program ran on the example; make the same "
                "pyro.param statements in every run."
            )
        msg["value"], msg["done"] = arguments[1], True


class Originals:
    """Modules that a function uses, beside those of a `Program`, which are copies of them if it was copied.

    A function keeps its modules when a `Program` is copied. So the copy lends its own parameters, buffers and modes to
    the function's modules while the function runs.

    Arguments:
        modules: The modules that the function uses.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)

    def __deepcopy__(self, memo: dict[int, Any]) -> Originals:
        return self

    @contextmanager
    def lent(self, own: Sequence[nn.Module]) -> Iterator[None]:
        """A block in which the function's modules have the parameters, buffers and modes of other ones."""
        pairs = [
            (mine, its)
            for module, other in zip(self.modules, own, strict=True)
            if module is not other
            for mine, its in zip(module.modules(), other.modules(), strict=True)
        ]
        kept = [(mine._parameters, mine._buffers, mine.training) for mine, _ in pairs]
        try:
            for mine, its in pairs:
                mine._parameters, mine._buffers, mine.training = its._parameters, its._buffers, its.training
            yield
        finally:
            for (mine, _), (parameters, buffers, training) in zip(pairs, kept, strict=True):
                mine._parameters, mine._buffers, mine.training = parameters, buffers, training
