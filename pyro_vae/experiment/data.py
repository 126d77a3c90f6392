r"""The data in an experiment file: ``digits`` or ``{name: table.csv, scaling: standardise}``."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from pyro_vae.datasets.number_format import NumberFormat
from pyro_vae.errors import InputError
from pyro_vae.experiment.choices import Strict

Seed = Annotated[int, Field(ge=0)]


class DataSpec(Strict):
    """The name of a data set or the path of a file, with options; see `pyro_vae.datasets.load`."""

    name: str
    binarisation: Literal["none", "static", "dynamic", "threshold"] | None = None
    scaling: Literal["none", "unit", "standardise"] | None = None
    missing: Literal["error", "mask"] | None = None
    context: str | list[str] | dict[str, Literal["standardise", "one-hot", "none"] | None] | None = None
    offset: str | None = None
    labelled: Annotated[int, Field(ge=1)] | None = None
    split: list[float] | None = None
    decimal: str | None = None
    thousands: str | None = None
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str | os.PathLike) else value

    @model_validator(mode="after")
    def _signs(self) -> DataSpec:
        try:
            NumberFormat.of(self.decimal, self.thousands)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(core))]}
