r"""Finds a way to declare a family, by trials."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import nn
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.family import (
    ALIASES,
    constraints_of,
    event_dim_of,
    parameters_of,
    transform_onto,
)
from pyro_vae.distributions.protocol import implied_constants
from pyro_vae.distributions.support import is_discrete
from pyro_vae.errors import InputError
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.sources import Fixed, Learned, Network, Source

# Number of components, categories or factors in the trials; it differs from every size of the trials' events.
COMPONENTS = 4
# Largest number of declarations of a family that are tried for one event shape.
_TRIALS = 600
# Number of further trials after a declaration works, to find one that also works for a batch of parameters.
_PATIENCE = 150
# Errors that families raise for arguments that they do not accept; a trial treats them as a failure of the family.
FAILURES = (
    InputError,
    ValueError,
    TypeError,
    RuntimeError,
    NotImplementedError,
    AttributeError,
    IndexError,
    KeyError,
    AssertionError,
    ArithmeticError,
)


@dataclass(frozen=True)
class Free:
    """A parameter that a network or the optimizer may move, with the size that must be declared, if any."""

    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Declaration:
    """A working way to declare a family.

    Attributes:
        family: Class of distributions.
        event_shape: Shape of a small event of the family.
        options: Option of each parameter, by name: `Free`, or the constant that it must be.
    """

    family: type[TorchDistribution]
    event_shape: tuple[int, ...]
    options: dict[str, Free | Fixed]

    @property
    def free(self) -> list[str]:
        """The parameters that are not constants."""
        return [name for name, option in self.options.items() if isinstance(option, Free)]

    def sources(self, network: Sequence[str] = (), noise: float = 0.0) -> dict[str, Source]:
        """Returns the source of each parameter: `Network` for those in ``network``, `Learned` for other free ones."""
        sources: dict[str, Source] = {}
        for name, option in self.options.items():
            if isinstance(option, Fixed):
                sources[name] = option
            elif name in network:
                sources[name] = Network(option.shape)
            else:
                sources[name] = Learned(shape=option.shape, noise=noise)
        return sources

    def conditional(
        self, network: Sequence[str] = (), noise: float = 0.0, event_shape: tuple[int, ...] | None = None
    ) -> Conditional:
        """Returns the `Conditional`; a network has three inputs."""
        given = nn.Linear(3, 5) if network else None
        shape = self.event_shape if event_shape is None else event_shape
        sources: dict[str, Any] = {**self.sources(network, noise)}
        return Conditional(self.family, shape, given=given, **sources)

    def fixed(self, name: str) -> Declaration:
        """Returns the declaration with one parameter constant: the value at unconstrained zero."""
        raw = getattr(self.conditional(), f"learned_{name}").detach()
        constraint = constraints_of(self.family, self.event_shape)[name]
        return replace(self, options={**self.options, name: Fixed(transform_onto(constraint)(raw).tolist())})


_NO_SUPPORT = "declares no support"


class Failure(Exception):
    """No declaration works; the message is the reason why the trial with the most stages failed."""


def declare(family: type[TorchDistribution], prefer: Callable[[Declaration], bool]) -> Declaration:
    """Returns a declaration whose draws lie in the support and have a finite density.

    Parameters whose size must be declared are tried at several sizes. Parameters that cannot be learned are tried at
    constants that their constraint allows.

    Arguments:
        family: Class of distributions.
        prefer: Additional test of a declaration. If none of the next 150 declarations passes it, the first one that
            works is returned.

    Raises:
        Failure: If no declaration works.
    """
    furthest, reason = -1, "it takes no parameters that could be tried"
    first, patience = None, _PATIENCE
    clash = sorted(set(parameters_of(family)) & set(inspect.signature(Conditional).parameters))
    if clash:
        raise Failure(f"its argument `{clash[0]}` has the name of one of Conditional's")
    for event_shape in _event_shapes(family):
        for options in itertools.islice(_trials(family, event_shape), _TRIALS):
            declaration = Declaration(family, event_shape, options)
            patience -= first is not None
            if first is not None and patience < 0:
                return first
            stage, complaint = _try(declaration)
            if not complaint and prefer(declaration):
                return declaration
            if not complaint:
                first = first or declaration
            elif stage > furthest:
                furthest, reason = stage, complaint
                if complaint == _NO_SUPPORT:
                    raise Failure(reason)
        if first is not None:
            return first
    raise Failure(reason)


def _try(declaration: Declaration) -> tuple[int, str]:
    """Returns the stage that a declaration reaches (building, drawing, density), and why it fails there."""
    stage = 0
    try:
        with pyro.validation_enabled(True):
            distribution = declaration.conditional()()
            stage = 1
            x = distribution.sample((16,))
            stage = 2
            if x.shape != (16, *declaration.event_shape):
                return 2, f"draws have the shape {tuple(x.shape[1:])}, not its event shape"
            if not bool(distribution.support.check(x).all()):
                return 2, f"draws lie outside the support {distribution.support} that it declares"
            stage = 3
            log_prob = distribution.log_prob(x)
    except FAILURES as error:
        return stage, _said(stage, error)
    if log_prob.shape != (16,):
        return 4, "log_prob gives no value for each draw"
    return (5, "") if bool(log_prob.isfinite().all()) else (5, "log_prob is not finite at its own draws")


def _said(stage: int, error: Exception) -> str:
    if stage == 2 and isinstance(error, NotImplementedError):
        return _NO_SUPPORT
    what = ("", "has no sampler", "has a support that cannot be checked", "has no log_prob of several draws")[stage]
    text = " ".join(str(error).split()).replace("Conditional: ", "")
    return ": ".join(part for part in (what, text) if part) or type(error).__name__


def _event_shapes(family: type[TorchDistribution]) -> list[tuple[int, ...]]:
    by_dimension: dict[int, list[tuple[int, ...]]] = {0: [()], 1: [(2,), (3,)], 2: [(2, 2)]}
    d = event_dim_of(family)
    return [s for shapes in by_dimension.values() for s in shapes] if d is None else by_dimension.get(d, [])


def _trials(family: type[TorchDistribution], event_shape: tuple[int, ...]) -> Iterator[dict[str, Free | Fixed]]:
    """Yields combinations of the options of all parameters, the simplest first."""
    constrained = constraints_of(family, event_shape)
    implied = implied_constants(family, event_shape)
    options = {}
    for name, parameter in _passed(family).items():
        required = parameter.default is inspect.Parameter.empty and name not in implied
        if name in constrained or required:
            options[name] = _options(constrained.get(name), event_shape)
    combinations = itertools.product(*(list(enumerate(choices)) for choices in options.values()))
    cost = {name: [c for c, _ in choices] for name, choices in options.items()}
    ranked = sorted(
        (sum(cost[name][i] for name, (i, _) in zip(options, combination, strict=True)), k, combination)
        for k, combination in enumerate(itertools.islice(combinations, 50_000))
    )
    for _, _, combination in ranked:
        yield {name: choice[1] for name, (_, choice) in zip(options, combination, strict=True)}


def _passed(family: type[TorchDistribution]) -> dict[str, inspect.Parameter]:
    """Returns the constructor's arguments; of several parametrisations, only the first."""
    signature = parameters_of(family)
    for aliases in ALIASES:
        for name in [name for name in aliases if name in signature][1:]:
            del signature[name]
    return signature


def _options(constraint: Constraint | None, event_shape: tuple[int, ...]) -> Sequence[tuple[int, Free | Fixed]]:
    """Returns the options of a parameter, each with a cost."""
    d = event_shape[-1] if event_shape else COMPONENTS - 1
    k = COMPONENTS
    if constraint is not None and is_discrete(constraint):
        counts = (10, 3, 2, 1, 0)
        return [(i, Fixed(n)) for i, n in enumerate(counts) if bool(constraint.check(torch.tensor(n)).all())]
    if constraint is None or constraints.is_dependent(constraint):
        plain = (0.0, 1.0, 0.5, d)
        return [(i, Fixed(value)) for i, value in enumerate(plain)] + [(3, Fixed([0.0] * d))]
    try:
        transform_onto(constraint)
    except NotImplementedError:
        return [(0, Fixed(0.0)), (1, Fixed(1.0))]
    shapes = [((k,), 1), ((d,), 1), ((k, d), 1), ((d, k), 1), ((d - 1,), 2), ((d + 1,), 2), ((d, d), 2), ((2, k, d), 2)]
    sized: list[tuple[int, Free | Fixed]] = [
        (cost, Free(shape)) for shape, cost in shapes if min(shape) > 0 and len(shape) >= constraint.event_dim
    ]
    return [(0, Free()), *sized]


class _Spy:
    """Replaces an argument, and records which attributes are read."""

    def __init__(self) -> None:
        self.__dict__["asked"] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        raise AttributeError(name)


_OF_A_DISTRIBUTION = {"batch_shape", "event_shape", "support", "log_prob", "sample", "has_rsample"}


_DISTRIBUTIONS = (
    dist.Normal(0.0, 1.0),
    dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    dist.Categorical(torch.ones(2)),
    dist.Gamma(1.0, 1.0),
)


def object_arguments(family: type[TorchDistribution]) -> list[str]:
    """Returns the required arguments that must be distributions, as `_is_read_as_distribution` finds."""
    constrained = constraints_of(family)
    passed = [
        name
        for name, parameter in _passed(family).items()
        if parameter.default is inspect.Parameter.empty or name in constrained
    ]
    others: list[Any] = [torch.zeros(()), torch.zeros(2), torch.zeros(2, 2), torch.ones(2, dtype=torch.bool), []]
    return [
        name
        for name in passed
        if name not in constrained and any(_is_read_as_distribution(family, name, passed, other) for other in others)
    ]


def _is_read_as_distribution(family: type[TorchDistribution], name: str, passed: list[str], other: Any) -> bool:
    """Whether the constructor reads attributes of a distribution, or fails elsewhere if it gets a distribution."""
    constrained, spy = constraints_of(family), _Spy()
    number = other if isinstance(other, torch.Tensor) else torch.tensor(0.5)
    arguments = {argument: number if argument in constrained else other for argument in passed}
    ends = [_end(family, {**arguments, name: value}) for value in (spy, torch.zeros(2), *_DISTRIBUTIONS)]
    return bool(spy.asked & _OF_A_DISTRIBUTION) or (ends[0] == ends[1] and any(end != ends[0] for end in ends[2:]))


def _end(family: type[TorchDistribution], arguments: dict[str, Any]) -> int:
    """Returns the line on which a constructor fails; 0 if it does not fail."""
    try:
        family(**arguments)
    except FAILURES as error:
        line, trace = 0, error.__traceback__
        while trace is not None:
            line, trace = trace.tb_lineno, trace.tb_next
        return line
    return 0
