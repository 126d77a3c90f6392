r"""Where a parameter of a distribution comes from: a network, the optimizer, or a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transforms
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from pyro_vae.distributions.family import transform_onto
from pyro_vae.errors import InputError

TRANSFORMS: dict[str, type[Transform]] = {
    "exp": transforms.ExpTransform,
    "sigmoid": transforms.SigmoidTransform,
    "softplus": transforms.SoftplusTransform,
    "tanh": transforms.TanhTransform,
}
"""The transforms that an experiment file can name."""


@dataclass(frozen=True)
class Network:
    r"""A parameter that the network outputs: a slice of the one linear head.

    Attributes:
        shape: Size of the parameter for one element of the event, if the event does not determine it: ``(256,)``
            for the logits of a `Categorical` over 256 levels, ``(D, rank)`` for a low-rank factor.
        transform: Transform from the head's output to the parameter, or a constraint on the parameter. Default:
            ``transform_to`` of the parameter's own constraint (a positive parameter is the exp of the output).
        offset: Whether the batch's ``offset`` is added to the head's output, before the transform.
    """

    shape: Sequence[int] | None = None
    transform: Transform | Constraint | None = None
    offset: bool = False

    def to_spec(self) -> Any:
        """Returns its entry in an experiment file."""
        fields = {**_shape_spec(self.shape), **_transform_spec(self.transform)}
        if self.offset:
            fields["offset"] = True
        return {"network": fields} if fields else "network"


@dataclass(frozen=True)
class Learned:
    r"""A free parameter, optimised in unconstrained space.

    Attributes:
        init: Initial value, in the parameter's own (constrained) space. Its shape is the parameter's, broadcast
            over the event: a number is one value shared by all elements. Default: unconstrained zero, one value
            for each element.
        shape: Shape to expand ``init`` to: ``Learned(0.1, shape=(784,))`` has one value for each of 784 elements.
        transform: Transform or constraint, as in `Network`.
        noise: Standard deviation of Gaussian noise that is added to the unconstrained initial value, drawn from
            torch's global stream at construction: it makes the components of a mixture different.
    """

    init: float | Sequence[float] | Tensor | None = None
    shape: Sequence[int] | None = None
    transform: Transform | Constraint | None = None
    noise: float = 0.0

    def to_spec(self) -> Any:
        """Returns its entry in an experiment file."""
        fields = {**_shape_spec(self.shape), **_transform_spec(self.transform)}
        if self.init is not None:
            fields["init"] = _plain(self.init)
        if self.noise:
            fields["noise"] = self.noise
        if not fields:
            return "learned"
        return {"learned": fields["init"] if list(fields) == ["init"] else fields}


@dataclass(frozen=True)
class Fixed:
    """A constant: a buffer, or a Python number if the family takes a count.

    Attributes:
        value: A number, a list or a tensor that broadcasts over the event.
    """

    value: float | Sequence[float] | Tensor

    def to_spec(self) -> Any:
        """Returns its entry in an experiment file."""
        value = _plain(self.value)
        return {"fixed": value} if isinstance(value, bool) else value


Source = Network | Learned | Fixed


def _shape_spec(shape: Sequence[int] | None) -> dict[str, Any]:
    return {} if shape is None else {"shape": [int(size) for size in shape]}


def _transform_spec(given: Transform | Constraint | None) -> dict[str, Any]:
    if given is None:
        return {}
    transform = given if isinstance(given, Transform) else transform_onto(given)
    if transform.domain.event_dim == 0 and transform.codomain.event_dim == 0:
        at = torch.linspace(-5, 5, 101, dtype=torch.float64)
        for name, kind in TRANSFORMS.items():  # a constraint's transform may be of another class, or composed
            if torch.allclose(transform(at), kind()(at), rtol=1e-12):
                return {"transform": name}
    raise InputError(
        f"Conditional: the transform {given} has no name in an experiment file, which knows "
        f"{', '.join(f'`{name}`' for name in TRANSFORMS)}; use one of those, or keep the declaration in Python."
    )


def _plain(value: float | Sequence[float] | Tensor) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple):
        raise InputError(
            f"Conditional: the constant {value} is a tuple, which an experiment file cannot express; give a list."
        )
    return torch.as_tensor(value).tolist()
