r"""The parameters of a distribution as free numbers: read in unconstrained space, and changed there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution
from torch.distributions.constraints import Constraint, is_dependent
from torch.distributions.transforms import Transform

from pyro_vae.distributions.family import ALIASES, constraints_of, parameters_of, transform_onto
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.distributions.support import is_discrete
from pyro_vae.errors import InputError

Change = Callable[[str, Tensor], Tensor]


def with_parameters(distribution: Any, change: Change) -> TorchDistribution:
    r"""Returns a distribution whose parameters are changed in unconstrained space.

    .. math:: \theta' = T(f(T^{-1}(\theta))), \qquad T \text{ the transform onto the constraint of } \theta

    The parameters are those of the family inside: behind dimensions of the event, masks, expansions and bijections,
    which stay as they are. If a family has several parametrisations, they are its logits, and the lower triangular
    factor of its covariance. Counts and sizes stay as they are.

    Arguments:
        distribution: A distribution.
        change: f, from the name of a parameter and its unconstrained value to another value. Its shape may have more
            batch dimensions on the left.

    Raises:
        InputError: For a family with a parameter onto whose constraint there is no transform, or with none at all.

    Example:
        >>> import torch
        >>> normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> with_parameters(normal, lambda name, value: value + 1.0).base_dist.scale
        tensor([2.7183, 2.7183])
    """
    if isinstance(distribution, Independent):
        return with_parameters(distribution.base_dist, change).to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, MaskedDistribution):
        return with_parameters(distribution.base_dist, change).mask(distribution._mask)
    if isinstance(distribution, ExpandedDistribution):
        base = with_parameters(distribution.base_dist, change)
        return base.expand(torch.broadcast_shapes(base.batch_shape, distribution.batch_shape))
    if _is_bijection(distribution):
        base = with_parameters(distribution.base_dist, change)
        kind = Pushed if isinstance(distribution, Pushed) else dist.TransformedDistribution
        return kind(base, distribution.transforms)
    family, free = type(distribution), _transforms(distribution)
    arguments: dict[str, Any] = {}
    for name in _arguments(distribution):
        value = getattr(distribution, name)
        arguments[name] = free[name](change(name, free[name].inv(value))) if name in free else value
    changed: TorchDistribution = family(**arguments)
    return changed


@torch.no_grad()
def free_parameters(distribution: Any) -> dict[str, torch.Size]:
    """Returns the shape of each parameter of one event in unconstrained space, by name; see `with_parameters`.

    Raises:
        InputError: As `with_parameters`, and if the family is not made again by its parameters.

    Example:
        >>> import torch
        >>> free_parameters(dist.Normal(torch.zeros(5, 2), 1.0).to_event(1))
        {'loc': torch.Size([2]), 'scale': torch.Size([2])}
    """
    cells: tuple[int, ...] = ()
    family = distribution
    while isinstance(family, Independent | MaskedDistribution | ExpandedDistribution) or _is_bijection(family):
        if isinstance(family, Independent):
            cells = (*cells, *family.event_shape[: family.reinterpreted_batch_ndims])
        family = family.base_dist
    shapes: dict[str, torch.Size] = {}
    for name, transform in _transforms(family).items():
        value = getattr(family, name)
        more = max(0, value.dim() - len(family.batch_shape) - transform.codomain.event_dim)  # a vector of real numbers
        free = transform.inv(value)
        shapes[name] = torch.Size([*cells, *free.shape[free.dim() - transform.domain.event_dim - more :]])
    _check_again(distribution)
    return shapes


def _check_again(distribution: Any) -> None:
    """Raises an `InputError` unless the distribution with unchanged parameters has the same density."""
    name = type(distribution).__name__
    try:
        again = with_parameters(distribution, lambda _, value: value)
        value = distribution.sample()
        same = torch.allclose(again.log_prob(value), distribution.log_prob(value), rtol=1e-3, atol=1e-3, equal_nan=True)
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"`{name}` is not made again from its parameters ({error})") from error
    if not same or again.batch_shape != distribution.batch_shape or again.event_shape != distribution.event_shape:
        raise InputError(f"`{name}` made again from its parameters has another density")


def _is_bijection(distribution: Any) -> bool:
    """Whether it is another distribution pushed through bijections, and no family with parameters of its own."""
    return isinstance(distribution, TransformedDistribution) and not distribution.arg_constraints


def _arguments(distribution: Any) -> list[str]:
    """The constructor arguments that say all: of several parametrisations, the first."""
    names = list(parameters_of(type(distribution)))
    others = {name for aliases in ALIASES for name in [each for each in aliases if each in names][1:]}
    return [name for name in names if name not in others]


def _transforms(distribution: Any) -> dict[str, Transform]:
    """The transform onto the constraint of each parameter that is no count or size."""
    family = type(distribution).__name__
    constraints = constraints_of(type(distribution), distribution.event_shape)
    own = [name for name in _arguments(distribution) if name in constraints and not is_discrete(constraints[name])]
    if not own:
        raise InputError(f"`{family}` declares no parameters with constraints")
    return {name: _onto(f"`{family}.{name}`", constraints[name]) for name in own}


def _onto(where: str, constraint: Constraint) -> Transform:
    try:
        if not is_dependent(constraint):
            return transform_onto(constraint)
    except NotImplementedError:
        pass
    raise InputError(f"there is no transform onto the constraint of {where}")
