r"""A part of an experiment file that is said by a key of its own: ``{flow: {kind: nsf}}``."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import GetJsonSchemaHandler, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from pyro_vae.errors import near_match
from pyro_vae.experiment.place import Part

# What stands beside a part's own key.
BESIDE = frozenset(Part.model_fields)


class Tagged(Part):
    """A part that is said by a key of its own: ``{flow: {kind: nsf}}``, or ``flow`` alone."""

    tag: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if value == cls.tag:
            value = {cls.tag: None}
        if not isinstance(value, dict) or cls.tag not in value:
            return value
        for key in value:
            if key != cls.tag and key not in BESIDE:
                raise ValueError(f"`{key}` is no key beside `{cls.tag}`; {near_match(str(key), BESIDE)}")
        content = value[cls.tag]
        whole = content is None or isinstance(content, dict)
        fields = cls.content(content or {}) if whole else cls.shorthand(content)
        return {**{k: v for k, v in value.items() if k != cls.tag}, **fields}

    @classmethod
    def shorthand(cls, content: Any) -> dict[str, Any]:
        """Returns the fields that one value stands for."""
        raise ValueError(f"expected {cls.expected()}, got {content!r}")

    @classmethod
    def expected(cls) -> str:
        """Returns what stands below the key, for an error."""
        return f"a mapping with keys among {', '.join(f'`{key}`' for key in cls.own_fields())}"

    @classmethod
    def content(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields that stand below the key."""
        return content

    @classmethod
    def below(cls, fields: dict[str, Any]) -> Any:
        """Returns what is written below the key."""
        return fields

    @classmethod
    def own_fields(cls) -> list[str]:
        """Returns the fields below the key."""
        return [name for name in cls.model_fields if name not in BESIDE]

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if self.tag in fields:  # pydantic wraps a recursive model's serializer twice
            return fields
        below = self.below({name: value for name, value in fields.items() if name not in BESIDE})
        return {self.tag: below, **{name: value for name, value in fields.items() if name in BESIDE}}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        fields = handler.resolve_ref_schema(handler(core))
        properties = fields.get("properties", {})
        own = {k: v for k, v in fields.items() if k not in ("properties", "required", "title", "description")}
        shown = cls.schema_below({k: v for k, v in properties.items() if k not in BESIDE})
        below = {**own, "type": ["object", "null"], **shown}
        beside = {k: v for k, v in properties.items() if k in BESIDE}
        mapping = {"type": "object", "properties": {cls.tag: below, **beside}, "required": [cls.tag]}
        return {"title": cls.tag, "anyOf": [{"const": cls.tag}, {**mapping, "additionalProperties": False}]}

    @classmethod
    def schema_below(cls, properties: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON schema of what stands below the key, from those of the fields."""
        return {"properties": properties}
