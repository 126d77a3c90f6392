"""What the record of a data transform must hold, so that a damaged one is refused by the name of its entry."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pyro_vae.datasets.context import Encoding
from pyro_vae.datasets.raw_data import Binarisation, Missing, Scaling
from pyro_vae.errors import InputError

# Largest number of cells of one datum.
_MOST_CELLS = 10_000_000

_Positive = Annotated[float, Field(gt=0)]
_Size = Annotated[int, Field(gt=0, le=_MOST_CELLS)]
_Levels = Annotated[list[str], Field(min_length=1)] | Annotated[list[float], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Context(_Strict):
    name: str
    encoding: Encoding
    levels: _Levels | None
    centre: float
    scale: _Positive

    @model_validator(mode="after")
    def _fits(self) -> _Context:
        if (self.encoding == "one-hot") != (self.levels is not None):
            raise ValueError(f"encoding `{self.encoding}` and levels {self.levels} do not fit")
        return self


class _Offset(_Strict):
    source: str
    centre: float


class _Numbers(_Strict):
    decimal: str
    thousands: str | None


class _Record(_Strict):
    name: str
    dim: _Size
    binarisation: Binarisation
    scaling: Scaling
    image_shape: list[_Size] | None
    columns: list[str] | None
    centre: float | list[float] | None
    scale: _Positive | list[_Positive] | None
    log_jacobian: float
    cross_entropy: bool
    missing: Missing = "error"
    levels: list[_Levels | None] | None = None
    context: list[_Context] = Field(default_factory=list)
    offset: _Offset | None = None
    numbers: _Numbers | None = None

    @model_validator(mode="after")
    def _fits(self) -> _Record:
        sizes = {
            name: len(value)
            for name in ("columns", "centre", "scale", "levels")
            if isinstance(value := getattr(self, name), list)
        }
        if self.image_shape is not None:
            sizes["image_shape"] = math.prod(self.image_shape)
        for name, size in sizes.items():
            if size != self.dim:
                raise ValueError(f"`{name}` is of {size} cells, and `dim` is {self.dim}")
        if type(self.centre) is not type(self.scale):
            raise ValueError("`centre` and `scale` are of one kind: numbers, lists or null")
        if (self.scaling == "none") != (self.scale is None):
            raise ValueError(f"scaling `{self.scaling}` and scale {self.scale} do not fit")
        return self


def check_record(record: Any) -> None:
    """Raises an `InputError` that names the first entry of a record that cannot be used."""
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f"`{place}`: " if place else ""
        raise InputError(f"{where}{first['msg'][:1].lower()}{first['msg'][1:]}") from None
