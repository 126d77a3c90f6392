r"""A part of an experiment file with its own key: ``{flow: {kind: nsf}}``."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import GetJsonSchemaHandler, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from pyro_vae.errors import near_match
from pyro_vae.experiment.place import Part

# Keys that are allowed on the same level as a part's own key.
BESIDE = frozenset(Part.model_fields)


class Tagged(Part):
    """A part with its own key: ``{flow: {kind: nsf}}``, or ``flow`` alone."""

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
        fields = cls.fields_of(content or {}) if whole else cls.shorthand(content)
        return {**{k: v for k, v in value.items() if k != cls.tag}, **fields}

    @classmethod
    def shorthand(cls, content: Any) -> dict[str, Any]:
        """Returns the fields for a short form, a single value in place of a mapping."""
        raise ValueError(f"expected {cls.expected()}, got {content!r}")

    @classmethod
    def expected(cls) -> str:
        """Returns the expected value of the key, for an error."""
        return f"a mapping with keys among {', '.join(f'`{key}`' for key in cls.own_fields())}"

    @classmethod
    def fields_of(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields for the value of the key in a file."""
        return content

    @classmethod
    def content_of(cls, fields: dict[str, Any]) -> Any:
        """Returns the value of the key in a file, for the fields."""
        return fields

    @classmethod
    def own_fields(cls) -> list[str]:
        """Returns the names of the fields under the key."""
        return [name for name in cls.model_fields if name not in BESIDE]

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if self.tag in fields:  # pydantic wraps a recursive model's serializer twice
            return fields
        content = self.content_of({name: value for name, value in fields.items() if name not in BESIDE})
        return {self.tag: content, **{name: value for name, value in fields.items() if name in BESIDE}}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        fields = handler.resolve_ref_schema(handler(core))
        properties = fields.get("properties", {})
        own = {k: v for k, v in fields.items() if k not in ("properties", "required", "title", "description")}
        shown = cls.content_schema({k: v for k, v in properties.items() if k not in BESIDE})
        content = {**own, "type": ["object", "null"], **shown}
        beside = {k: v for k, v in properties.items() if k in BESIDE}
        mapping = {"type": "object", "properties": {cls.tag: content, **beside}, "required": [cls.tag]}
        return {"title": cls.tag, "anyOf": [{"const": cls.tag}, {**mapping, "additionalProperties": False}]}

    @classmethod
    def content_schema(cls, properties: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON schema of the key's value, from the schemas of the fields."""
        return {"properties": properties}
