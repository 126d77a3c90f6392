r"""A choice from a registry with its arguments: ``Adam``, ``{Adam: {lr: 0.001}}``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from pyro_vae.errors import InputError, near_match
from pyro_vae.inference.interface import Inference
from pyro_vae.inference.registry import ALGORITHMS
from pyro_vae.training.schedules import SCHEDULES, Schedule


class Strict(BaseModel):
    """A part of an experiment file: unknown keys are errors, and fields cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Named(Strict):
    """A name from a registry, alone or as the only key of a mapping to its arguments."""

    name: str
    arguments: dict[str, Any] = {}

    kind: ClassVar[str]
    supplied: ClassVar[frozenset[str]] = frozenset()  # arguments that this package supplies, not the file
    registry: ClassVar[Mapping[str, Callable[..., Any]]]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        elif isinstance(value, dict) and not ({"name"} <= set(value) <= {"name", "arguments"}):
            if len(value) != 1:
                raise ValueError(f"expected a name, or one name with its arguments: {{name: {{...}}}}; got {value!r}")
            ((name, arguments),) = value.items()
            value = {"name": str(name), "arguments": arguments or {}}
        return value

    @model_validator(mode="after")
    def _known(self) -> Named:
        if self.name not in self.registry:
            raise ValueError(f"unknown {self.kind} `{self.name}`; {near_match(self.name, self.registry)}")
        signature = [
            argument
            for argument in inspect.signature(self.registry[self.name]).parameters
            if argument not in self.supplied
        ]
        for argument in self.arguments:
            if argument not in signature:
                raise ValueError(
                    f"{self.kind} `{self.name}` has no argument `{argument}`; {near_match(argument, signature)}"
                )
        try:
            self.try_out()
        except (InputError, ValueError, TypeError) as error:
            reason = self._misfit() or " ".join(str(error).split())
            raise ValueError(f"{self.kind} `{self.name}`: {reason}") from None
        return self

    def _misfit(self) -> str | None:
        """Returns a complaint about the first argument that should be a number but is not; None if there is none."""
        for name, parameter in inspect.signature(self.registry[self.name]).parameters.items():
            given, default = self.arguments.get(name, parameter.default), parameter.default
            if _is_number(default) and not _is_number(given):
                return f"`{name}`: expected a number such as {default:g}, got `{given}`"
        return None

    @model_serializer
    def _write(self) -> Any:
        return {self.name: dict(self.arguments)} if self.arguments else self.name

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        names = sorted(cls.registry)
        arguments = {"anyOf": [{"type": "object"}, {"type": "null"}]}
        return {
            "title": cls.kind,
            "anyOf": [
                {"type": "string", "enum": names},
                {
                    "type": "object",
                    "properties": {name: arguments for name in names},
                    "additionalProperties": False,
                    "minProperties": 1,
                    "maxProperties": 1,
                },
            ],
        }

    def try_out(self) -> None:
        """Raises an error if the arguments cannot be used."""


def _optimizers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    return {
        name: member
        for name, member in vars(torch.optim).items()
        if inspect.isclass(member)
        and issubclass(member, torch.optim.Optimizer)
        and member is not torch.optim.Optimizer
        and name not in ("LBFGS", "SparseAdam", "Muon")  # these need closures, sparse gradients, only matrices
    }


class OptimizerSpec(Named):
    """An optimizer of `torch.optim`."""

    kind: ClassVar[str] = "optimizer"
    supplied: ClassVar[frozenset[str]] = frozenset({"params"})
    registry: ClassVar[Mapping[str, Callable[..., Any]]] = _optimizers()

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the optimizer of these parameters."""
        optimizer: torch.optim.Optimizer = self.registry[self.name](parameters, **self.arguments)
        return optimizer

    def try_out(self) -> None:
        self.build([torch.nn.Parameter(torch.zeros(1))])


class ScheduleSpec(Named):
    """A schedule of `pyro_vae.training.schedules`."""

    kind: ClassVar[str] = "schedule"
    supplied: ClassVar[frozenset[str]] = frozenset({"total"})
    registry: ClassVar[Mapping[str, Callable[..., Any]]] = SCHEDULES

    def build(self, total: int) -> Schedule:
        """Returns the factor of the learning rate as a function of the step, for ``total`` steps."""
        schedule: Schedule = self.registry[self.name](total, **self.arguments)
        return schedule

    def try_out(self) -> None:
        self.build(10**9)


class InferenceSpec(Named):
    """An algorithm of `pyro_vae.inference`, by its short name."""

    kind: ClassVar[str] = "inference algorithm"
    registry: ClassVar[Mapping[str, Callable[..., Any]]] = ALGORITHMS

    @property
    def label(self) -> str:
        """The short name, followed by the arguments: ``aevb-num_particles=5``."""
        return "-".join([self.name, *(f"{name}={value}" for name, value in self.arguments.items())])

    def build(self) -> Inference:
        """Returns the algorithm."""
        algorithm: Inference = self.registry[self.name](**self.arguments)
        return algorithm

    def try_out(self) -> None:
        self.build()
