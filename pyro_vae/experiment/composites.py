r"""Composite parts of an experiment file: a mixture, a flow, the VampPrior."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, WithJsonSchema, field_validator, model_validator
from torch import nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.datasets.support import support_kind
from pyro_vae.distributions.columns import ColumnSupport
from pyro_vae.distributions.registry import FAMILIES
from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.distribution import DistributionSpec, parameter_names, read_source
from pyro_vae.experiment.encoder_input import EncoderInput, bounds_of, is_count
from pyro_vae.experiment.network import Depth, Size
from pyro_vae.experiment.place import Place
from pyro_vae.experiment.tagged import Tagged
from pyro_vae.vae.flow import FLOWS, Flow
from pyro_vae.vae.mixture import Mixture
from pyro_vae.vae.sources import Source
from pyro_vae.vae.vamp_prior import VampPrior

# Supports of pseudo-inputs, by their names in a file.
_REGIONS = {"real": constraints.real, "unit": constraints.unit_interval, "positive": constraints.positive}
_BOUNDS = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_PSEUDO_INPUTS = {"anyOf": [{"enum": list(_REGIONS)}, _BOUNDS, {"type": "null"}]}


class MixtureSpec(Tagged):
    """A mixture of one family: ``{mixture: {family: Normal, components: 10}}``; see `pyro_vae.Mixture`."""

    tag: ClassVar[str] = "mixture"

    of: DistributionSpec = DistributionSpec(family="Normal")
    components: Size = 10
    weights: Any = None

    @classmethod
    def fields_of(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields; the file has the family and its parameters on the same level as ``components``."""
        own: dict[str, Any] = {name: content[name] for name in ("components", "weights") if name in content}
        of = {"family": "Normal", **{name: value for name, value in content.items() if name not in own}}
        names = parameter_names(of["family"])
        known = ["family", "components", "weights", *names]
        for name in of if names else ():
            if name not in known:
                raise ValueError(f"`{name}` is no key here; {near_match(str(name), known)}")
        return {**own, "of": of}

    @classmethod
    def expected(cls) -> str:
        """Returns the expected value of the key, for an error."""
        return "a mapping, such as {family: Normal, components: 10}"

    @classmethod
    def content_schema(cls, properties: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON schema of the key's value: a family together with the fields."""
        family = {"family": {"type": "string", "enum": sorted(FAMILIES)}}
        own = {name: properties[name] for name in ("components", "weights")}
        return {"properties": {**family, **own}, "additionalProperties": True}

    @classmethod
    def content_of(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns the value of the key in a file."""
        of = {name: value for name, value in fields.pop("of").items() if value is not None}
        return {**of, **fields}

    @model_validator(mode="after")
    def _weights(self) -> MixtureSpec:
        self.weight_source()
        return self

    def weight_source(self) -> Source | None:
        """Returns the source of the components' weights; None for the default."""
        return None if self.weights is None else read_source("weights", self.weights)

    @property
    def title(self) -> str:
        return f"mixture of {self.components} {self.of.title}"

    @property
    def support(self) -> Constraint | None:
        return self.of.support

    def data_of(self, cells: int) -> EncoderInput:
        return self.of.data_of(cells)

    def build_at(self, place: Place) -> nn.Module:
        """Returns the module; see `Part.build_at`."""
        given, _ = place.trunk(self.network)
        sources: dict[str, Any] = dict(self.of.sources())
        return Mixture(
            self.of.family_class,
            place.event_shape,
            self.components,
            given=given,
            weights=self.weight_source(),
            **sources,
        )


class FlowSpec(Tagged):
    """A normalizing flow: ``flow`` or ``{flow: {kind: nsf}}``; see `pyro_vae.Flow`."""

    tag: ClassVar[str] = "flow"

    kind: str = "maf"
    transforms: Depth = 3
    hidden: list[Size] = Field(default=[64, 64], min_length=1)
    fast: Literal["density", "sampling"] | None = None

    @model_validator(mode="after")
    def _known(self) -> FlowSpec:
        if self.kind not in FLOWS:
            raise ValueError(f"unknown flow `{self.kind}`; {near_match(self.kind, FLOWS)}")
        return self

    @classmethod
    def shorthand(cls, content: Any) -> dict[str, Any]:
        """Returns the fields for the short form ``{flow: nsf}``."""
        return {"kind": content}

    @classmethod
    def content_schema(cls, properties: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON schema of the key's value: a kind alone, or a mapping."""
        kind = {"type": "string", "enum": sorted(FLOWS)}
        forms = [{"enum": [*sorted(FLOWS), None]}, {"type": "object"}]
        return {"type": ["object", "string", "null"], "anyOf": forms, "properties": {**properties, "kind": kind}}

    @property
    def title(self) -> str:
        return f"flow ({self.kind})"

    @property
    def support(self) -> Constraint | None:
        return constraints.real_vector

    def build_at(self, place: Place) -> nn.Module:
        """Returns the module; see `Part.build_at`."""
        given, _ = place.trunk(self.network)
        return Flow(
            place.event_shape,
            self.kind,
            given=given,
            transforms=self.transforms,
            hidden=self.hidden,
            fast=self.fast,
        )


class VampSpec(Tagged):
    """The VampPrior: ``vamp`` or ``{vamp: {components: 500}}``; see `pyro_vae.VampPrior`.

    The posterior receives pseudo-inputs like data. Their support depends on that of the likelihood: [0, 1] for [0, 1]
    and {0, 1}; the interval between the bounds for bounded whole numbers; the positive numbers for counts; else the
    real line. In a ``mixed`` table they are real numbers; a code between two levels is a mixture of them.

    Attributes:
        components: Number of pseudo-inputs.
        mean: Mean of the initial pseudo-inputs; default: 0 (1 for counts); for a bounded support, the lower bound
            plus a twentieth of its width.
        std: Standard deviation of the initial pseudo-inputs; default: 0.01; for a bounded support, a hundredth of its
            width.
        pseudo_inputs: Support of the pseudo-inputs: ``real``, ``unit``, ``positive`` or ``[low, high]``; the default
            is described above.
    """

    tag: ClassVar[str] = "vamp"

    components: Size = 500
    mean: float | None = None
    std: NonNegativeFloat | None = None
    pseudo_inputs: Annotated[Any, WithJsonSchema(_PSEUDO_INPUTS)] = None

    @field_validator("pseudo_inputs")
    @classmethod
    def _region(cls, value: Any) -> Any:
        if isinstance(value, list):
            numbers = [bound for bound in value if isinstance(bound, int | float) and not isinstance(bound, bool)]
            if len(numbers) == len(value) == 2 and -math.inf < numbers[0] < numbers[1] < math.inf:
                return [float(bound) for bound in numbers]
        elif value is None or (isinstance(value, str) and value in _REGIONS):
            return value
        names = ", ".join(f"`{name}`" for name in _REGIONS)
        raise ValueError(f"expected {names} or a pair of bounds such as [0, 255] (got {value!r})")

    @property
    def title(self) -> str:
        return f"VampPrior ({self.components} pseudo-inputs)"

    def build_at(self, place: Place) -> nn.Module:
        """Returns the module; see `Part.build_at`."""
        if place.role != "prior":
            raise InputError("`vamp` is a prior; use a Normal, a mixture or a flow here.")
        said = _region_of(place.data.support) if self.pseudo_inputs is None else self.pseudo_inputs
        low, high = said if isinstance(said, list) else (0.0, 1.0)
        region = constraints.interval(low, high) if isinstance(said, list) else _REGIONS[said]
        bounded = isinstance(region, constraints.interval)
        mean, std = (low + 0.05 * (high - low), 0.01 * (high - low)) if bounded else (float(said == "positive"), 0.01)
        return VampPrior(
            place.cells,
            self.components,
            mean=mean if self.mean is None else self.mean,
            std=std if self.std is None else self.std,
            support=region,
        )


def _region_of(support: Constraint | None) -> str | list[float]:
    """Returns the name or the bounds of the pseudo-inputs' default support, for data with a given support."""
    if isinstance(support, ColumnSupport):
        return "real"
    if is_count(support):
        return "positive"
    bounds = bounds_of(support)
    if bounds is not None:
        low, high = map(torch.as_tensor, bounds)
        return [float(low.min()), float(high.max())]
    return "unit" if support_kind(support) in ("binary", "unit") else "real"
