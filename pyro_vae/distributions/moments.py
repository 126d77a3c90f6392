r"""Means and standard deviations, also of distributions that do not implement them."""

from __future__ import annotations

import math

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution

from pyro_vae.distributions.kl import SiteBySite
from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError
from pyro_vae.runtime.random_streams import isolated

# Number of nodes of the Gauss-Hermite quadrature. Where it does not apply, _CHUNKS times _CHUNK draws are used; the
# chunks bound the memory.
_NODES, _CHUNKS, _CHUNK = 32, 40, 25


def centre(distribution: TorchDistribution) -> Tensor:
    """Returns a distribution's mean, or its mode in cells that have no mean.

    If a Normal is pushed through an elementwise bijection, the mean is computed by Gauss-Hermite quadrature. For any
    other continuous distribution that implements neither mean nor mode (a flow, a hierarchy), and for the latents of a
    program, it is computed from 1,000 draws; the global random stream stays unchanged.

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
    return centre_and_error(distribution)[0]


def centre_and_error(distribution: TorchDistribution) -> tuple[Tensor, Tensor | None]:
    """Returns a distribution's centre and the variance of its Monte Carlo error.

    The variance of centres over data contains that of their errors: subtract the mean of the latter.

    Arguments:
        distribution: Distribution of any batch shape.

    Returns:
        The centre, as `centre` returns it, and the error's variance, of the same shape; None where the centre is not
        computed from draws.

    Raises:
        InputError: If the distribution has neither mean nor mode.
    """
    if _statistic(distribution, "mean") is None and _computable(distribution):
        mean, _, error = _computed_moments(distribution)
        return mean, error
    return _implemented_centre(distribution), None


def _implemented_centre(distribution: TorchDistribution) -> Tensor:
    mean = _statistic(distribution, "mean")
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
    return representative_and_error(distribution)[0]


def representative_and_error(distribution: TorchDistribution) -> tuple[Tensor, Tensor | None]:
    """Returns what `representative` returns, and the variance of its Monte Carlo error; see `centre_and_error`."""
    value, error = centre_and_error(distribution)
    mode = _statistic(distribution, "mode")
    if distribution.support.is_discrete or mode is None:
        return value, error
    inside = distribution.support.check(value)
    return torch.where(
        inside.reshape(*inside.shape, *(1 for _ in range(value.dim() - inside.dim()))), value, mode
    ), error


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
    if isinstance(distribution, TransformedDistribution | SiteBySite):
        return True
    return not distribution.support.is_discrete and _statistic(distribution, "mode") is None


def _computed_moments(distribution: TorchDistribution) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and standard deviation by quadrature or from draws, and the variance of the mean's error if from draws."""
    transforms = getattr(distribution, "transforms", None)
    base = None if transforms is None else cells_of(distribution.base_dist)
    if isinstance(base, Normal) and all(_elementwise(transform) for transform in transforms or ()):
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        shape = (-1, *(1 for _ in base.batch_shape))
        x = base.loc + base.scale * base.loc.new_tensor(nodes).reshape(shape)
        for transform in transforms or ():
            x = transform(x)
        weight = base.loc.new_tensor(weights / math.sqrt(2 * math.pi)).reshape(shape)
        mean = (weight * x).sum(0)
        return mean, (weight * (x - mean).square()).sum(0).sqrt(), None
    with isolated(0, "moments"), torch.no_grad():
        # Deviations from a first mean: squares of the draws themselves would lose a small variance in float32.
        draws = _numbers(distribution.sample((_CHUNK,)))
        first = draws.mean(0)
        total = square = torch.zeros(())
        for chunk in range(_CHUNKS):
            deviation = (_numbers(distribution.sample((_CHUNK,))) if chunk else draws) - first
            total, square = total + deviation.sum(0), square + deviation.square().sum(0)
    size = _CHUNKS * _CHUNK
    variance = (square - total.square() / size).clamp_min(0) / (size - 1)
    return first + total / size, variance.sqrt(), variance / size


def _numbers(draws: Tensor) -> Tensor:
    """Draws of discrete sites alone are integers."""
    return draws if draws.is_floating_point() else draws.to(torch.get_default_dtype())


def _elementwise(transform: object) -> bool:
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return getattr(getattr(transform, "domain", None), "event_dim", 1) == 0
