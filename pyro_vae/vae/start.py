r"""Starts a likelihood at the location and scale of training data, before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from pyro_vae.distributions.start import Known, rule_of
from pyro_vae.distributions.statistics import Statistics
from pyro_vae.vae.sources import Learned, Network, Source


class Declared(Protocol):
    """What a start needs of a `Conditional`, whose attributes these are."""

    family: type[TorchDistribution]
    event_shape: torch.Size
    sources: dict[str, Source]
    head: nn.Linear | None
    drawn_bias: Tensor | None

    @property
    def network_sizes(self) -> Mapping[str, int]: ...

    @property
    def raw_shapes(self) -> Mapping[str, torch.Size]: ...

    @property
    def transforms(self) -> Mapping[str, Transform]: ...

    @property
    def constants(self) -> Mapping[str, Any]: ...

    def as_emitted(self, name: str, value: Tensor) -> Tensor: ...

    def named_parameters(self, *, recurse: bool) -> Iterator[tuple[str, nn.Parameter]]: ...


@torch.no_grad()
def start(part: Declared, data: Statistics) -> None:
    """Sets the bias of the head and the learned parameters to where a model without latents would have them.

    A location whose transform is the default one varies in units of the data's scale: its rows of the head's weights
    are multiplied by it. Only what is as it was drawn at construction is set: a head whose bias was changed (by a user,
    by training, or from a file) or is frozen, a learned parameter with an initial value of its own, and what ``given``
    emits itself stay as they are.

    Arguments:
        part: The likelihood, or the part of it for some columns.
        data: Statistics of the data, whose cells are those of the part.
    """
    rule = rule_of(part.family)
    if rule is None or data.x.shape[1:] != part.event_shape:
        return
    heads = [name for name, source in part.sources.items() if isinstance(source, Network)]
    if heads and not _fresh(part):
        return
    learned = [name for name, source in part.sources.items() if isinstance(source, Learned) and _unset(part, name)]
    found = rule(data, Known(_declared(part, learned), _sizes(part)))
    place = 0
    for name in heads:
        size = part.network_sizes[name]
        if name in found.parameters:
            _start_rows(part, name, slice(place, place + size), data, found.parameters[name], found.units.get(name))
        place += size
    for name in learned:
        if name in found.parameters:
            _start_learned(getattr(part, f"learned_{name}"), part.transforms[name], found.parameters[name])


def _fresh(part: Declared) -> bool:
    """Whether the head is as it was drawn, and is trained."""
    head = part.head
    drawn = None if head is None else part.drawn_bias
    if head is None or drawn is None or not (head.bias.requires_grad and head.weight.requires_grad):
        return False
    return bool(torch.equal(head.bias, drawn.to(head.bias)))


def _unset(part: Declared, name: str) -> bool:
    """Whether a learned parameter has no initial value of its own, and has not been trained."""
    source: Any = part.sources[name]
    parameter: Tensor = getattr(part, f"learned_{name}")
    return source.init is None and not source.noise and parameter.requires_grad and not bool(parameter.any())


def _declared(part: Declared, free: list[str]) -> dict[str, Any]:
    """The values of the parameters that are fixed or have initial values, on the data's device, float64."""
    values: dict[str, Any] = {}
    for name, value in part.constants.items():
        values[name] = value.double() if isinstance(value, Tensor) else value
    for name, source in part.sources.items():
        if isinstance(source, Learned) and name not in free:
            values[name] = part.transforms[name](getattr(part, f"learned_{name}")).double()
    return values


def _sizes(part: Declared) -> dict[str, int]:
    """The last dimension of each parameter that is not fixed."""
    shapes = {name: parameter.shape for name, parameter in part.named_parameters(recurse=False)}
    learned = {name.removeprefix("learned_"): shape for name, shape in shapes.items()}
    return {name: shape[-1] for name, shape in {**part.raw_shapes, **learned}.items() if shape}


def _start_rows(part: Declared, name: str, rows: slice, data: Statistics, value: Tensor, unit: Tensor | None) -> None:
    """Sets the rows of the head that output one parameter."""
    head, source, transform = part.head, part.sources[name], part.transforms[name]
    raw = _unconstrained(transform, value)
    if head is None or raw is None:
        return
    bias = part.as_emitted(name, raw)
    if data.offset is not None and isinstance(source, Network) and source.offset:
        bias = bias - data.offset
    known = bias.isfinite()
    head.bias[rows] = torch.where(known, bias, head.bias[rows].double()).to(head.bias)
    if unit is not None and isinstance(source, Network) and source.transform is None:
        factor = part.as_emitted(name, unit)
        head.weight[rows] *= torch.where(factor.isfinite() & known, factor, 1.0).unsqueeze(-1).to(head.weight)


def _start_learned(parameter: Tensor, transform: Transform, value: Tensor) -> None:
    """Sets a learned parameter; one that several cells share becomes the mean of theirs."""
    raw = _unconstrained(transform, value)
    if raw is None:
        return
    while raw.dim() > parameter.dim():
        raw = raw.nanmean(0)
    for d, size in enumerate(parameter.shape[parameter.dim() - raw.dim() :]):
        if size == 1:
            raw = raw.nanmean(d, keepdim=True)
    parameter.copy_(torch.where(raw.isfinite(), raw, parameter.double()))


def _unconstrained(transform: Transform, value: Tensor) -> Tensor | None:
    """Returns unconstrained values; None where the transform has no inverse."""
    try:
        raw: Tensor = transform.inv(value)
    except NotImplementedError:
        return None
    return raw
