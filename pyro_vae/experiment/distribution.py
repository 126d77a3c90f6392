r"""A distribution in an experiment file: ``{family: Normal, loc: 0, scale: learned}``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pydantic import (
    ConfigDict,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema
from pyro.distributions import TorchDistribution
from torch import nn
from torch.distributions.constraints import Constraint, is_dependent

from pyro_vae.distributions.family import parameters_of
from pyro_vae.distributions.registry import FAMILIES, usual_name
from pyro_vae.errors import near_match, nearest
from pyro_vae.experiment.encoder_input import EncoderInput
from pyro_vae.experiment.place import Part, Place
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.parameter_prior import ParameterPrior
from pyro_vae.vae.sources import TRANSFORMS, Fixed, Learned, Network, Source


class DistributionSpec(Part):
    """A family of `pyro.distributions` with a source for each named parameter.

    A number or list is `Fixed`; ``learned`` or ``{learned: 0.1}`` is `Learned`; ``network`` is `Network`, and
    ``{network: [256]}`` declares its shape. Parameters that are left out have the defaults of `Conditional`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    family: str

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {"family": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> DistributionSpec:
        if self.family not in FAMILIES:
            raise ValueError(f"unknown family `{self.family}`; {near_match(usual_name(self.family), FAMILIES)}")
        signature = parameter_names(self.family)
        for name in self.model_extra or {}:
            if name not in signature:
                beside = nearest(name, [*signature, *Part.model_fields]) in Part.model_fields
                allowed = [*Part.model_fields] if beside else signature
                raise ValueError(f"`{self.family}` has no parameter `{name}`; {near_match(name, allowed)}")
        self.sources()
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        number = {"anyOf": [{"type": "number"}, {"type": "array"}]}
        source = {
            "anyOf": [
                number,
                {"enum": ["learned", "network"]},
                {"type": "object", "properties": {"learned": {}, "network": {}, "fixed": {}}, "maxProperties": 1},
            ]
        }
        family = {"type": "string", "enum": sorted(FAMILIES)}
        mapping = {
            "type": "object",
            "properties": {"family": family},
            "required": ["family"],
            "additionalProperties": source,
        }
        return {"title": "distribution", "anyOf": [family, mapping]}

    @property
    def family_class(self) -> type[TorchDistribution]:
        """The class in `pyro.distributions`."""
        return FAMILIES[self.family]

    @property
    def title(self) -> str:
        return self.family

    @property
    def support(self) -> Constraint | None:
        support = self.family_class.support
        return support if isinstance(support, Constraint) else None

    def data_of(self, cells: int) -> EncoderInput:
        support = self.support
        if support is None or not is_dependent(support):
            return EncoderInput(support)
        with torch.no_grad(), isolated(0):
            built = self.build((cells,), nn.Linear(1, 1))
            like = torch.zeros(1, 1)
            return EncoderInput((built(like) if built.network_sizes else built()).support)

    def build_at(self, place: Place) -> nn.Module:
        given, head = place.trunk(self.network, lambda: self.num_network_parameters(place.event_shape))
        return self.build(place.event_shape, given, head or None)

    def completed(self, largest_total: int) -> DistributionSpec:
        """Returns the declaration with a ``total_count``, if the family has one and the file does not give it.

        Arguments:
            largest_total: Largest sum of a row of the data.
        """
        support = getattr(self.family_class, "support", None)
        of_rows = isinstance(support, Constraint) and support.event_dim == 1
        if not of_rows or "total_count" not in parameter_names(self.family):
            return self
        if "total_count" in (self.model_extra or {}):
            return self
        said = {**self.model_dump(exclude_none=True), "total_count": max(largest_total, 1)}
        return type(self).model_validate(said)

    def sources(self) -> dict[str, Source]:
        """Returns the source of each named parameter."""
        return {name: read_source(name, value) for name, value in (self.model_extra or {}).items()}

    def _keywords(self) -> dict[str, Any]:
        return dict(self.sources())

    def num_network_parameters(self, event_shape: Sequence[int]) -> int:
        """Returns the number of values for each cell that the network outputs, for a convolutional decoder."""
        probe = Conditional(self.family_class, event_shape, given=nn.Linear(1, 1), **self._keywords())
        return -(-sum(probe.network_sizes.values()) // math.prod(event_shape))

    def build(
        self, event_shape: Sequence[int], given: nn.Module | None = None, head: str | None = "linear"
    ) -> Conditional:
        """Returns the `Conditional`."""
        return Conditional(self.family_class, event_shape, given=given, head=head, **self._keywords())


def parameter_names(family: Any) -> list[str]:
    """Returns the names of a family's parameters; an empty list for what is no known family."""
    known = isinstance(family, str) and family in FAMILIES
    return list(parameters_of(FAMILIES[family])) if known else []


def read_source(name: str, value: Any) -> Source:
    """Returns the source that a parameter's value in the file describes."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"`{name}`: expected a number, a list, `learned` or `network`, got {value!r}")
    if isinstance(value, str):
        kinds: dict[str, Source] = {"learned": Learned(), "network": Network()}
        if value not in kinds:
            raise ValueError(
                f"`{name}`: expected a number, a list, `learned` or `network`, got `{value}`; "
                f"{near_match(value, kinds)}"
            )
        return kinds[value]
    if not isinstance(value, dict):
        return Fixed(value)
    if len(value) != 1 or next(iter(value)) not in ("learned", "network", "fixed"):
        raise ValueError(f"`{name}`: expected one of {{learned: ...}}, {{network: ...}}, {{fixed: ...}}, got {value!r}")
    ((kind, content),) = value.items()
    if kind == "fixed":
        return Fixed(content)
    fields = content if isinstance(content, dict) else {"init" if kind == "learned" else "shape": content}
    allowed = ["init", "shape", "transform", "noise"] if kind == "learned" else ["shape", "transform", "offset"]
    for field in fields:
        if field not in allowed:
            raise ValueError(f"`{name}`: `{kind}` has no `{field}`; {near_match(field, allowed)}")
    if "transform" in fields:
        given = fields["transform"]
        if not isinstance(given, str) or given not in TRANSFORMS:
            raise ValueError(f"`{name}`: unknown transform `{given}`; {near_match(str(given), TRANSFORMS)}")
        fields = {**fields, "transform": TRANSFORMS[given]()}
    noise = fields.get("noise", 0.0)
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise ValueError(f"`{name}`: expected a number as noise, got {noise!r}")
    return Learned(**fields) if kind == "learned" else Network(**fields)


class ParameterPriorSpec(DistributionSpec):
    """A prior over the generative parameters, with fixed numbers; see `pyro_vae.vae.parameter_prior.ParameterPrior`."""

    biases: bool = False

    @model_validator(mode="after")
    def _numbers(self) -> ParameterPriorSpec:
        for name, value in (self.model_extra or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"`{name}`: a parameter prior has fixed numbers, got {value!r}")
        try:
            with pyro.validation_enabled(True):
                self.build_prior()
        except TypeError:
            missing = [name for name in parameters_of(self.family_class) if name not in (self.model_extra or {})]
            raise ValueError(f"a parameter prior needs numbers for all parameters; give {', '.join(missing)}") from None
        return self

    def build_prior(self) -> ParameterPrior:
        """Returns the `ParameterPrior`."""
        numbers = {name: float(value) for name, value in (self.model_extra or {}).items()}
        return ParameterPrior(self.family_class(**numbers), self.biases)
