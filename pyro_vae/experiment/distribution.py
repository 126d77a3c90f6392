r"""A distribution in an experiment file: ``{family: Normal, loc: 0, scale: learned}``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pyro.distributions
import torch
from pydantic import ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema
from pyro.distributions import TorchDistribution
from torch import nn
from torch.distributions import transforms

from pyro_vae.conditional import Conditional
from pyro_vae.errors import near_match
from pyro_vae.experiment.named import Strict
from pyro_vae.sources import Fixed, Learned, Network, Source

FAMILIES: dict[str, type[TorchDistribution]] = {
    name: member
    for name, member in vars(pyro.distributions).items()
    if inspect.isclass(member) and issubclass(member, torch.distributions.Distribution) and not name.startswith("_")
}

_TRANSFORMS: dict[str, type[transforms.Transform]] = {
    "exp": transforms.ExpTransform,
    "sigmoid": transforms.SigmoidTransform,
    "softplus": transforms.SoftplusTransform,
    "tanh": transforms.TanhTransform,
}


class DistributionSpec(Strict):
    """A family of `pyro.distributions` with a source for each parameter that is named.

    A number or list is `Fixed`; ``learned`` or ``{learned: 0.1}`` is `Learned`; ``network`` is `Network`, and
    ``{network: [256]}`` declares its shape. What is omitted follows `Conditional`.
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
            raise ValueError(f"unknown family `{self.family}`; {near_match(self.family, FAMILIES)}")
        signature = [name for name in inspect.signature(FAMILIES[self.family]).parameters if name != "validate_args"]
        for name in self.model_extra or {}:
            if name not in signature:
                raise ValueError(f"`{self.family}` has no parameter `{name}`; {near_match(name, signature)}")
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

    def sources(self) -> dict[str, Source]:
        """Returns the source of each parameter that is named."""
        return {name: _source(name, value) for name, value in (self.model_extra or {}).items()}

    def _keywords(self) -> dict[str, Any]:
        return dict(self.sources())

    def num_network_parameters(self, event_shape: Sequence[int]) -> int:
        """Returns how many parameters a network outputs, which sizes a convolutional decoder."""
        probe = Conditional(self.family_class, event_shape, given=nn.Linear(1, 1), **self._keywords())
        return sum(isinstance(source, Network) for source in probe.sources.values())

    def build(
        self, event_shape: Sequence[int], given: nn.Module | None = None, head: str | None = "linear"
    ) -> Conditional:
        """Returns the `Conditional`."""
        return Conditional(self.family_class, event_shape, given=given, head=head, **self._keywords())


def _source(name: str, value: Any) -> Source:
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
    allowed = ["init", "shape", "transform"] if kind == "learned" else ["shape", "transform", "offset"]
    for field in fields:
        if field not in allowed:
            raise ValueError(f"`{name}`: `{kind}` has no `{field}`; {near_match(field, allowed)}")
    if "transform" in fields:
        given = fields["transform"]
        if given not in _TRANSFORMS:
            raise ValueError(f"`{name}`: unknown transform `{given}`; {near_match(str(given), _TRANSFORMS)}")
        fields = {**fields, "transform": _TRANSFORMS[given]()}
    return Learned(**fields) if kind == "learned" else Network(**fields)
