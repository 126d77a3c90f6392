r"""The parameters of a declared distribution: which of them are passed, their shapes, transforms and checks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform, identity_transform

from pyro_vae.distributions.family import ALIASES, constraints_of, parameters_of, transform_onto
from pyro_vae.distributions.protocol import implied_constants
from pyro_vae.distributions.support import is_discrete
from pyro_vae.errors import InputError, near_match
from pyro_vae.vae.sources import Fixed, Learned, Network, Source

_SQUARE = (
    constraints.lower_cholesky,
    constraints.lower_triangular,
    constraints.positive_definite,
    constraints.positive_semidefinite,
    constraints.corr_cholesky,
)


def resolve(
    family: type[TorchDistribution], sources: dict[str, Source], has_network: bool, event_shape: Sequence[int]
) -> dict[str, Source]:
    """Returns the source of every parameter that will be passed to the family."""
    signature = parameters_of(family)
    for name, source in sources.items():
        if name not in signature:
            raise InputError(
                f"Conditional: `{family.__name__}` has no parameter `{name}`; {near_match(name, signature)}"
            )
        if not isinstance(source, Network | Learned | Fixed):
            raise InputError(
                f"Conditional: `{family.__name__}.{name}` must be Network(), Learned(...) or Fixed(...), "
                f"got `{source!r}`; write {name}=Fixed({source!r}) for a constant."
            )
    shadowed = _shadowed(family, signature, sources)
    constrained = constraints_of(family, event_shape)
    implied = implied_constants(family, event_shape)
    resolved: dict[str, Source] = {}
    for name, parameter in signature.items():
        if name in sources:
            resolved[name] = sources[name]
        elif name in shadowed:
            continue
        elif name in constrained:
            resolved[name] = Network() if has_network else Learned()
        elif name in implied:
            resolved[name] = Fixed(implied[name])
        elif parameter.default is inspect.Parameter.empty:
            raise InputError(
                f"Conditional: `{family.__name__}.{name}` has no constraint of its own, so it can be neither learned "
                f"nor output by a network; pass {name}=Fixed(...)."
            )
    return resolved


def _shadowed(family: type[TorchDistribution], signature: dict[str, Any], sources: dict[str, Source]) -> set[str]:
    """Returns the parameters that another parametrisation of the same quantity makes superfluous."""
    shadowed: set[str] = set()
    for aliases in ALIASES:
        present = [name for name in aliases if name in signature]
        named = [name for name in present if name in sources]
        if len(named) > 1:
            raise InputError(f"Conditional: `{family.__name__}` takes only one of {', '.join(named)}.")
        shadowed.update(name for name in present if name != (named or present)[0])
    return shadowed


def as_shape(shape: Sequence[int]) -> torch.Size:
    """Returns the shape as `torch.Size`; checks that its entries are positive integers."""
    if not isinstance(shape, Sequence) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise InputError(f"Conditional: a shape is a tuple of positive integers, such as (20,); got `{shape!r}`.")
    return torch.Size(shape)


def is_number(source: Fixed, declared: bool, constraint: Constraint) -> bool:
    """Whether a constant is passed as it is and not as a tensor, such as `Multinomial.total_count`."""
    return isinstance(source.value, int | tuple) and (not declared or is_discrete(constraint))


def _numeric(where: str, source: Fixed | Learned, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Returns the tensor of a value that is given."""
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(source).__name__
        raise InputError(f"Conditional: {where}: {kind}({value!r}) is not numeric: {error}.") from None


def constant(where: str, source: Fixed, constraint: Constraint, event: torch.Size) -> Tensor:
    """Returns the tensor of a constant, checked; for a vector, one number becomes each of its entries."""
    tensor = _numeric(where, source, source.value)
    if not tensor.dtype.is_floating_point:
        tensor = tensor.to(torch.get_default_dtype())
    vector = not constraints.is_dependent(constraint) and constraint.event_dim == 1 == len(event)
    if vector and tensor.dim() == 0:
        tensor = tensor.expand(event)
    _check_value(where, source, constraint, tensor)
    return tensor.detach().clone()


def transform_for(where: str, source: Network | Learned, constraint: Constraint) -> Transform:
    """Returns the transform from unconstrained values to the parameter."""
    name = where.strip("`").rpartition(".")[2]
    if isinstance(source.transform, Transform):
        return source.transform
    if source.transform is not None:
        constraint = source.transform
    elif is_discrete(constraint):
        raise InputError(
            f"Conditional: {where} has an integer constraint, which no network can output and no optimizer can "
            f"move; pass {name}=Fixed(...)."
        )
    try:
        return transform_onto(constraint)
    except NotImplementedError:
        raise InputError(
            f"Conditional: {where} has the constraint {constraint}, onto which no transform is known; "
            f"pass {name}=Fixed(...)."
        ) from None


def shape_for(
    where: str,
    source: Network | Learned,
    constraint: Constraint,
    batch: torch.Size,
    event: torch.Size,
    default: tuple[int, ...] | None = None,
) -> torch.Size:
    """Returns the shape of a `Network` or `Learned` parameter, in its constrained space.

    Arguments:
        where: Name of the parameter, for messages.
        source: Source of the parameter.
        constraint: Constraint of the parameter.
        batch: The part of the event shape over which the family's own events are independent.
        event: The shape of the family's own event.
        default: Size that the family declares.
    """
    rank, d = constraint.event_dim, len(event)
    declared = None if source.shape is None else as_shape(source.shape)
    if isinstance(source, Learned) and declared is None and source.init is not None:
        declared = _numeric(where, source, source.init).shape
    if declared is not None and len(declared) >= rank:
        return batch + declared if isinstance(source, Network) else declared
    if default is not None:
        own = torch.Size(default)
    elif rank in (0, d):
        own = event[:rank]
    elif rank == 2 and d == 1 and any(constraint is square for square in _SQUARE):
        own = event + event
    else:
        name = where.strip("`").rpartition(".")[2]
        raise InputError(
            f"Conditional: the size of {where} does not follow from event_shape {tuple(batch + event)}; "
            f"declare it: {name}={type(source).__name__}(shape=...) with {rank} dimension(s)."
        )
    return batch + own if declared is None else torch.Size(torch.broadcast_shapes(declared, own))


def initial(
    where: str, source: Learned, constraint: Constraint, transform: Transform, shape: torch.Size, raw_shape: torch.Size
) -> Tensor:
    """Returns the unconstrained initial value of a learned parameter."""
    if source.noise < 0 or not math.isfinite(source.noise):
        raise InputError(f"Conditional: {where}: `noise` is a standard deviation, not negative; got {source.noise}.")
    if source.init is None:
        raw = torch.zeros(raw_shape)
    else:
        dtype = None if isinstance(source.init, Tensor) else torch.get_default_dtype()
        init = _numeric(where, source, source.init, dtype).expand(shape)
        _check_value(where, source, constraint, init)
        raw = transform.inv(init).detach().clone().contiguous()
        # Some inverses clamp: that of a sigmoid to 87, where the gradient is 0.
        if not bool((raw.abs() < (80 if transform is not identity_transform else math.inf)).all()):
            raise InputError(f"Conditional: {where}: {source} lies on the boundary of its constraint {constraint}.")
    return raw + source.noise * torch.randn(raw_shape, dtype=raw.dtype) if source.noise else raw


def _check_value(where: str, source: Source, constraint: Constraint, value: Tensor) -> None:
    if not bool(value.isfinite().all()):
        raise InputError(f"Conditional: {where}: {source} is not finite.")
    if constraints.is_dependent(constraint):
        return
    if value.dim() >= constraint.event_dim and not bool(constraint.check(value).all()):
        raise InputError(f"Conditional: {where}: {source} violates the constraint {constraint}.")
