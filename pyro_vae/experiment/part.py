r"""Prior, likelihood and posterior in an experiment file: a family or a composite part."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema
from torch import nn

from pyro_vae.distributions.registry import FAMILIES, usual_name
from pyro_vae.errors import InputError, nearest
from pyro_vae.experiment.choices import Strict
from pyro_vae.experiment.composites import FlowSpec, MixtureSpec, VampSpec
from pyro_vae.experiment.distribution import DistributionSpec
from pyro_vae.experiment.mixed import MixedSpec
from pyro_vae.experiment.network import Size
from pyro_vae.experiment.place import Part, Place
from pyro_vae.experiment.tagged import Tagged
from pyro_vae.vae.hierarchy import CONTEXT, Hierarchy


class LayerSpec(Strict):
    """One layer of a hierarchy: a part with a size."""

    size: Size
    part: AnyPart

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected a part with a size, such as {{size: 3, family: Normal}}; got {value!r}")
        rest = {name: content for name, content in value.items() if name != "size"}
        part = rest.get("part", rest)
        if isinstance(part, dict) and "family" not in part and not any(tag in part for tag in _PARTS):
            part = {"family": "Normal", **part}
        return {name: value[name] for name in ("size",) if name in value} | {"part": part}

    @field_validator("part")
    @classmethod
    def _vector(cls, part: Part) -> Part:
        if isinstance(part, VampSpec | HierarchySpec | MixedSpec):
            raise ValueError(f"`{part.tag}` is no layer of a hierarchy; a layer is a family, a mixture or a flow")
        return part

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if "part" not in fields:  # pydantic wraps a recursive model's serializer twice
            return fields
        part = fields["part"]
        return {"size": fields["size"], **({"family": part} if isinstance(part, str) else part)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        fields = handler.resolve_ref_schema(handler(core))
        size = {"size": fields["properties"]["size"]}
        family = {"family": {"type": "string", "enum": sorted(FAMILIES)}}
        return {"title": "layer", "type": "object", "properties": {**size, **family}, "required": ["size"]}


_EXAMPLE = "{z2: {size: 2, family: Normal, loc: 0, scale: 1}, z1: {size: 4, family: Normal}}"


class HierarchySpec(Tagged):
    """Several stochastic layers in the order in which they are drawn; see `pyro_vae.Hierarchy`.

    ``{hierarchy: {z2: {size: 50, family: Normal, loc: 0, scale: 1}, z1: {size: 100, family: Normal}}}``
    """

    tag: ClassVar[str] = "hierarchy"

    layers: dict[str, LayerSpec] = Field(min_length=2)
    inputs: dict[str, list[str]] | None = None

    @classmethod
    def fields_of(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields; the file has the layers on the same level as ``inputs``."""
        layers = {name: layer for name, layer in content.items() if name != "inputs"}
        for name, layer in layers.items():
            if nearest(str(name), ["inputs"]) and not (isinstance(layer, dict) and "size" in layer):
                raise ValueError(f"`{name}` is no layer with a size, and no key here; did you mean `inputs`?")
        if len(layers) < 2:
            raise ValueError(f"expected at least two layers, got {len(layers)}; write {_EXAMPLE}")
        return {"layers": layers, **({"inputs": content["inputs"]} if "inputs" in content else {})}

    @classmethod
    def expected(cls) -> str:
        """Returns the expected value of the key, for an error."""
        return f"layers, such as {_EXAMPLE}"

    @classmethod
    def content_of(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns the value of the key in a file."""
        return {**fields.pop("layers"), **fields}

    @classmethod
    def content_schema(cls, properties: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON schema of the key's value: layers together with ``inputs``."""
        layer = properties["layers"]["additionalProperties"]
        return {"properties": {"inputs": properties["inputs"]}, "additionalProperties": layer}

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
        """Returns the module; see `Part.build_at`."""
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


_PARTS: dict[str, type[Part]] = {spec.tag: spec for spec in (MixtureSpec, FlowSpec, VampSpec, HierarchySpec, MixedSpec)}


def _tag_of(value: Any) -> str:
    if isinstance(value, Part):
        return getattr(value, "tag", "family")
    if isinstance(value, str):
        return value if value in _PARTS else "family"
    return next((tag for tag in _PARTS if isinstance(value, dict) and tag in value), "family")


def _known(value: Any) -> Any:
    """Returns the value if it names a family or a part; raises an error with the nearest name if not."""
    parts = ", ".join(f"`{tag}`" for tag in _PARTS)
    if isinstance(value, dict) and "family" not in value and not any(tag in value for tag in _PARTS):
        for key in value:
            near = nearest(str(key), _PARTS)
            if near is not None and key not in Part.model_fields:
                raise ValueError(f"`{key}` is no key here; did you mean `{near}`?")
    name = value.get("family") if isinstance(value, dict) else value
    if isinstance(name, str) and name not in FAMILIES and not (name in _PARTS and name is value):
        near = nearest(usual_name(name), [*FAMILIES, *_PARTS])
        if near is None:
            raise ValueError(
                f"unknown family `{name}`; expected one of `pyro.distributions`, such as `Normal`, or one of {parts}"
            )
        written = f"`{near}: ...` in place of `family`" if near in _PARTS and name is not value else f"`{near}`"
        raise ValueError(f"unknown family `{name}`; did you mean {written}?")
    return value


def spelled_out(key: str, name: str) -> dict[str, Any]:
    """Returns the mapping for a name alone under a key of the file: ``prior: flow`` is ``{flow: {}}``.

    Arguments:
        key: Key of the file, such as ``prior`` or ``data``.
        name: Name under the key.

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
    BeforeValidator(_known),
]
LayerSpec.model_rebuild()
HierarchySpec.model_rebuild()
