r"""Means and standard deviations, also of distributions that do not implement them."""

from __future__ import annotations

import math

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution

from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError
from pyro_vae.runtime.random_streams import isolated

# Number of nodes of the Gauss-Hermite quadrature. Where it does not apply, _CHUNKS times _CHUNK draws are used; the
# chunks bound the memory.
_NODES, _CHUNKS, _CHUNK = 32, 40, 25


def centre(distribution: TorchDistribution) -> Tensor:
    """Returns a distribution's mean, or its mode in cells that have no mean.

    If a Normal is pushed through an elementwise bijection, the mean is computed by Gauss-Hermite quadrature. For any
    other continuous distribution that implements neither mean nor mode (a flow, a hierarchy), it is computed from
    1,000 draws; the global random stream stays unchanged.

    Arguments:
        distribution: Distribution of any batch shape.

    Returns:
        Tensor of shape ``batch_shape + event_shape``.

    Raises:
        InputError: If the distribution has neither mean nor mode.

    Example:
        >>> import pyro.distributions as dist
        >>> centre(dist.Categorical(logits=torch.tensor([0.0, 2.0, 1.0])))
        tensor(1)
    """
    mean = _statistic(distribution, "mean")
    if mean is None and _computable(distribution):
        return _computed_moments(distribution)[0]
    mode = _statistic(distribution, "mode")
    if mode is None:
        if mean is None or bool(mean.isnan().any()):
            raise InputError(f"`{type(distribution).__name__}` has neither mean nor mode; ask for num_samples draws.")
        return mean
    if mean is None:
        return mode
    # In torch, the mean of a Categorical is nan, and its type is not that of the mode.
    return torch.where(mean.isnan(), mode, mean) if mean.dtype == mode.dtype else mode


def representative(distribution: TorchDistribution) -> Tensor:
    """Returns one value for a distribution: its centre, or its mode where the centre lies outside the support.

    On a sphere, for example, the mean lies inside the sphere. For discrete distributions the centre is not checked.

    Arguments:
        distribution: Distribution of any batch shape.

    Returns:
        Tensor of shape ``batch_shape + event_shape``.
    """
    value = centre(distribution)
    mode = _statistic(distribution, "mode")
    if distribution.support.is_discrete or mode is None:
        return value
    inside = distribution.support.check(value)
    return torch.where(inside.reshape(*inside.shape, *(1 for _ in range(value.dim() - inside.dim()))), value, mode)


def spread(distribution: TorchDistribution) -> Tensor | None:
    """Returns a distribution's standard deviation, computed as `centre` computes the mean; None where it has none.

    Arguments:
        distribution: Distribution of any batch shape.

    Returns:
        Tensor of shape ``batch_shape + event_shape``.
    """
    scale = _statistic(distribution, "stddev")
    if scale is None and _computable(distribution):
        return _computed_moments(distribution)[1]
    return scale


def _statistic(distribution: TorchDistribution, name: str) -> Tensor | None:
    try:
        value: Tensor = getattr(distribution, name)
    except (NotImplementedError, AttributeError):
        return None
    return value


def _computable(distribution: TorchDistribution) -> bool:
    """Whether `_computed_moments` can compute the moments that a distribution does not implement."""
    if isinstance(distribution, TransformedDistribution):
        return True
    return not distribution.support.is_discrete and _statistic(distribution, "mode") is None


def _computed_moments(distribution: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by quadrature or from draws."""
    transforms = getattr(distribution, "transforms", None)
    base = None if transforms is None else cells_of(distribution.base_dist)
    if isinstance(base, Normal) and all(_elementwise(transform) for transform in transforms or ()):
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        shape = (-1, *(1 for _ in base.batch_shape))
        x = base.loc + base.scale * base.loc.new_tensor(nodes).reshape(shape)
        for transform in transforms or ():
            x = transform(x)
        weight = base.loc.new_tensor(weights / math.sqrt(2 * math.pi)).reshape(shape)
        mean, square = (weight * x).sum(0), (weight * x.square()).sum(0)
    else:
        with isolated(0, "moments"), torch.no_grad():
            mean, square = torch.zeros(()), torch.zeros(())
            for _ in range(_CHUNKS):
                draws = distribution.sample((_CHUNK,))
                mean, square = mean + draws.mean(0) / _CHUNKS, square + draws.square().mean(0) / _CHUNKS
    return mean, (square - mean.square()).clamp_min(0).sqrt()


def _elementwise(transform: object) -> bool:
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return getattr(getattr(transform, "domain", None), "event_dim", 1) == 0
