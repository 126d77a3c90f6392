r"""Prior, likelihood and posterior in an experiment file: a family, or what is made of several."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    NonNegativeFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema
from torch import nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.datasets.support import support_kind
from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.distribution import DistributionSpec, read_source
from pyro_vae.experiment.mixed import MixedSpec
from pyro_vae.experiment.named import Strict
from pyro_vae.experiment.place import Part, Place
from pyro_vae.flow import FLOWS, Flow
from pyro_vae.hierarchy import CONTEXT, Hierarchy
from pyro_vae.mixture import Mixture
from pyro_vae.sources import Source
from pyro_vae.vamp_prior import VampPrior

# What stands beside a part's own key.
_BESIDE = frozenset(Part.model_fields)


class Tagged(Part):
    """A part that is said by a key of its own: ``{flow: {kind: nsf}}``, or ``flow`` alone."""

    tag: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {}
        if not isinstance(value, dict) or cls.tag not in value:
            return value
        for key in value:
            if key != cls.tag and key not in _BESIDE:
                raise ValueError(f"`{key}` is no key beside `{cls.tag}`; {near_match(str(key), _BESIDE)}")
        content = value[cls.tag]
        if content is not None and not isinstance(content, dict):
            content = cls.shorthand(content)
        return {**{k: v for k, v in value.items() if k != cls.tag}, **cls.content(content or {})}

    @classmethod
    def shorthand(cls, content: Any) -> dict[str, Any]:
        """Returns the fields that one value stands for."""
        raise ValueError(f"expected a mapping with keys among {', '.join(f'`{key}`' for key in cls.own_fields())}")

    @classmethod
    def content(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields that stand below the key."""
        return content

    @classmethod
    def below(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns what is written below the key."""
        return fields

    @classmethod
    def own_fields(cls) -> list[str]:
        """Returns the fields below the key."""
        return [name for name in cls.model_fields if name not in _BESIDE]

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if self.tag in fields:  # pydantic wraps a recursive model's serializer twice
            return fields
        below = self.below({name: value for name, value in fields.items() if name not in _BESIDE})
        return {self.tag: below, **{name: value for name, value in fields.items() if name in _BESIDE}}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        fields = handler.resolve_ref_schema(handler(core))
        properties = fields.get("properties", {})
        own = {k: v for k, v in fields.items() if k not in ("properties", "required", "title", "description")}
        below = {"type": "object", "properties": {k: v for k, v in properties.items() if k not in _BESIDE}}
        beside = {k: v for k, v in properties.items() if k in _BESIDE}
        mapping = {"type": "object", "properties": {cls.tag: {**own, **below}, **beside}, "required": [cls.tag]}
        return {"title": cls.tag, "anyOf": [{"const": cls.tag}, {**mapping, "additionalProperties": False}]}


class MixtureSpec(Tagged):
    """A mixture of one family: ``{mixture: {family: Normal, components: 10}}``; see `pyro_vae.Mixture`."""

    tag: ClassVar[str] = "mixture"

    of: DistributionSpec = DistributionSpec(family="Normal")
    components: PositiveInt = 10
    weights: Any = None

    @classmethod
    def content(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields below the key: the family and its parameters stand beside ``components``."""
        own: dict[str, Any] = {name: content[name] for name in ("components", "weights") if name in content}
        family = {name: value for name, value in content.items() if name not in own}
        return {**own, "of": {"family": "Normal", **family}}

    @classmethod
    def below(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns what is written below the key."""
        of = {name: value for name, value in fields.pop("of").items() if value is not None}
        return {**of, **fields}

    @model_validator(mode="after")
    def _weights(self) -> MixtureSpec:
        self.weight_source()
        return self

    def weight_source(self) -> Source | None:
        """Returns where the components' weights come from; None: the default."""
        return None if self.weights is None else read_source("weights", self.weights)

    @property
    def title(self) -> str:
        return f"mixture of {self.components} {self.of.title}"

    @property
    def support(self) -> Constraint | None:
        return self.of.support

    def build_at(self, place: Place) -> nn.Module:
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
    transforms: PositiveInt = 3
    hidden: list[PositiveInt] = Field(default=[64, 64], min_length=1)
    fast: Literal["density", "sampling"] | None = None

    @model_validator(mode="after")
    def _known(self) -> FlowSpec:
        if self.kind not in FLOWS:
            raise ValueError(f"unknown flow `{self.kind}`; {near_match(self.kind, FLOWS)}")
        return self

    @classmethod
    def shorthand(cls, content: Any) -> dict[str, Any]:
        """Returns the fields that one value stands for: ``{flow: nsf}``."""
        return {"kind": content}

    @property
    def title(self) -> str:
        return f"flow ({self.kind})"

    @property
    def support(self) -> Constraint | None:
        return constraints.real_vector

    def build_at(self, place: Place) -> nn.Module:
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

    Pseudo-inputs live in [0, 1] where the likelihood does, or on {0, 1}; else on the real line.
    """

    tag: ClassVar[str] = "vamp"

    components: PositiveInt = 500
    mean: float | None = None
    std: NonNegativeFloat = 0.01
    pseudo_inputs: Literal["real", "unit"] | None = None

    @property
    def title(self) -> str:
        return f"VampPrior ({self.components} pseudo-inputs)"

    def build_at(self, place: Place) -> nn.Module:
        if place.role != "prior":
            raise InputError("`vamp` is a prior; use a Normal, a mixture or a flow here.")
        bounded = support_kind(place.support) in ("binary", "unit")
        unit = bounded if self.pseudo_inputs is None else self.pseudo_inputs == "unit"
        mean = (0.05 if unit else 0.0) if self.mean is None else self.mean
        support = constraints.unit_interval if unit else constraints.real
        return VampPrior(place.cells, self.components, mean=mean, std=self.std, support=support)


class LayerSpec(Strict):
    """One layer of a hierarchy: a part with a size."""

    size: PositiveInt
    part: AnyPart

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        rest = {name: content for name, content in value.items() if name != "size"}
        return {name: value[name] for name in ("size",) if name in value} | {"part": rest.get("part", rest)}

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if "part" not in fields:  # pydantic wraps a recursive model's serializer twice
            return fields
        part = fields["part"]
        return {"size": fields["size"], **({"family": part} if isinstance(part, str) else part)}


class HierarchySpec(Tagged):
    """Several stochastic layers in the order in which they are drawn; see `pyro_vae.Hierarchy`.

    ``{hierarchy: {z2: {size: 50, family: Normal, loc: 0, scale: 1}, z1: {size: 100, family: Normal}}}``
    """

    tag: ClassVar[str] = "hierarchy"

    layers: dict[str, LayerSpec] = Field(min_length=2)
    inputs: dict[str, list[str]] | None = None

    @classmethod
    def content(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields below the key: the layers stand beside ``inputs``."""
        layers = {name: layer for name, layer in content.items() if name != "inputs"}
        return {"layers": layers, **({"inputs": content["inputs"]} if "inputs" in content else {})}

    @classmethod
    def below(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns what is written below the key."""
        return {**fields.pop("layers"), **fields}

    @property
    def title(self) -> str:
        return "hierarchy of " + ", ".join(f"{name} ({layer.part.title})" for name, layer in self.layers.items())

    def event_shape(self, latent: Any) -> tuple[int, ...]:
        """Returns the shape of all layers together."""
        return (sum(layer.size for layer in self.layers.values()),)

    def sizes(self) -> dict[str, int]:
        """Returns the size of each layer."""
        return {name: layer.size for name, layer in self.layers.items()}

    def build_at(self, place: Place) -> nn.Module:
        if place.role not in ("prior", "posterior"):
            raise InputError("`hierarchy` is a prior or a posterior; use a family, a mixture or a flow here.")
        outside = place.in_features
        sizes = {**self.sizes(), CONTEXT: outside}
        names = list(self.layers)
        modules: dict[str, nn.Module] = {}
        for i, (name, layer) in enumerate(self.layers.items()):
            default = [CONTEXT] if i == 0 else [names[i - 1]]
            given = default if self.inputs is None else self.inputs.get(name, default)
            width = sum(sizes.get(one, 0) for one in given)
            modules[name] = layer.part.build_at(place.layer(layer.size, width, given == [CONTEXT]))
        return Hierarchy(self.inputs, **modules)


_PARTS: dict[str, type[Part]] = {
    spec.tag: spec for spec in (MixtureSpec, FlowSpec, VampSpec, HierarchySpec, MixedSpec)
}


def _tag_of(value: Any) -> str:
    if isinstance(value, Part):
        return getattr(value, "tag", "family")
    if isinstance(value, str):
        return value if value in _PARTS else "family"
    return next((tag for tag in _PARTS if isinstance(value, dict) and tag in value), "family")


def spelled_out(key: str, name: str) -> dict[str, Any]:
    """Returns the mapping that a name alone stands for under a key of the file: ``prior: flow`` is ``{flow: {}}``.

    Arguments:
        key: Such as ``prior`` or ``data``.
        name: What stands there.

    Example:
        >>> spelled_out("prior", "Normal"), spelled_out("prior", "flow"), spelled_out("data", "digits")
        ({'family': 'Normal'}, {'flow': {}}, {'name': 'digits'})
    """
    if key not in ("prior", "likelihood", "posterior"):
        return {"name": name}
    return {name: {}} if name in _PARTS else {"family": name}


AnyPart = Annotated[
    Annotated[DistributionSpec, Tag("family")]
    | Annotated[MixtureSpec, Tag("mixture")]
    | Annotated[FlowSpec, Tag("flow")]
    | Annotated[VampSpec, Tag("vamp")]
    | Annotated[HierarchySpec, Tag("hierarchy")]
    | Annotated[MixedSpec, Tag("mixed")],
    Discriminator(_tag_of),
]
LayerSpec.model_rebuild()
HierarchySpec.model_rebuild()
