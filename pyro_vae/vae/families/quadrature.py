r"""The probability mass of a distribution over its whole support, in few dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.support import base_support, is_discrete

# Nodes along each dimension, and the range of t in u = sinh(pi/2 sinh t), where u spans the unconstrained space.
_NODES = {1: (4001, 3.9), 2: (301, 3.0), 3: (71, 2.2)}
# For larger |u|, rounding puts values on the boundary of a bounded support.
_LARGEST = 300.0
# Number of values of an unbounded count, and of each count of a vector; largest number of points.
_COUNTS, _VECTOR_COUNTS, _MOST_POINTS = 20_000, 60, 200_000


# Cells and draws of the goodness-of-fit test, and the p-value below which draws do not follow the density.
_CELLS, _DRAWS, _P_VALUE = 16, 8000, 1e-9


class Quadrature(NamedTuple):
    """Nodes that cover the domain of a density, and the probability of the cell of each node.

    Attributes:
        nodes: Coordinates of the nodes, shape ``(M, n)``.
        masses: Probabilities of the cells, shape ``(M,)``; their sum is 1 for a normalised density.
        coordinates: Function from draws ``(S, *event_shape)`` to coordinates ``(S, n)``.
        over: Domain of the density: ``"support"``; ``"period"`` for a density of period 2 pi, which is normalised over
            one period; ``"total"`` for counts given their sum.
    """

    nodes: Tensor
    masses: Tensor
    coordinates: Callable[[Tensor], Tensor]
    over: str = "support"

    def goodness_of_fit(self, draws: Tensor, cells: int = _CELLS) -> float:
        r"""Returns the p-value of Pearson's :math:`\chi^2` test that draws follow the masses.

        Nodes are gathered into cells along each coordinate, at quantiles of the masses.

        Arguments:
            draws: Draws, shape ``(S, *event_shape)``.
            cells: Number of cells along each coordinate.
        """
        x, probability = self.coordinates(draws.double()), self.masses / self.masses.sum()
        node_cell, draw_cell = torch.zeros(len(self.nodes), dtype=torch.long), torch.zeros(len(x), dtype=torch.long)
        per_axis = max(2, round(cells ** (1 / self.nodes.shape[1])))
        for axis in range(self.nodes.shape[1]):
            values, order = self.nodes[:, axis].sort()
            cumulative = probability[order].cumsum(0)
            at = torch.searchsorted(cumulative, torch.arange(1, per_axis, dtype=cumulative.dtype) / per_axis)
            distinct = values.unique()
            where = torch.searchsorted(distinct, values[at.clamp(max=len(values) - 1)])
            edges = (distinct[where] + distinct[(where + 1).clamp(max=len(distinct) - 1)]) / 2
            node_cell = node_cell * (per_axis + 1) + torch.bucketize(self.nodes[:, axis].contiguous(), edges)
            draw_cell = draw_cell * (per_axis + 1) + torch.bucketize(x[:, axis].contiguous(), edges)
        size = (per_axis + 1) ** self.nodes.shape[1]
        expected = torch.zeros(size, dtype=probability.dtype).index_add_(0, node_cell, probability) * len(x)
        observed = torch.bincount(draw_cell, minlength=size).to(expected.dtype)
        return _chi_square_p_value(expected, observed)


def _chi_square_p_value(expected: Tensor, observed: Tensor) -> float:
    """Returns the p-value; joins cells that expect fewer than five draws; 0 if draws lie in cells of probability 0."""
    if bool((observed[expected < 1e-6 * expected.sum()] > 5).any()) or not bool(expected.isfinite().all()):
        return 0.0
    large = expected >= 5
    rest = torch.stack([(~large * expected).sum(), (~large * observed).sum()])
    e, o = torch.cat([expected[large], rest[:1]]), torch.cat([observed[large], rest[1:]])
    if float(rest[0]) < 5 and len(e) > 1:  # joined to the last of the large ones
        e = torch.cat([e[:-2], (e[-2] + e[-1])[None]])
        o = torch.cat([o[:-2], (o[-2] + o[-1])[None]])
    if len(e) < 2:
        return 1.0
    from scipy.stats import chi2  # half a second to import

    return float(chi2.sf(float(((o - e).square() / e).sum()), len(e) - 1))


def follows(distribution: Any, rule: Quadrature) -> bool:
    """Whether 8,000 draws pass a test that they follow the density."""
    draws = distribution.rsample((_DRAWS,)) if distribution.has_rsample else distribution.sample((_DRAWS,))
    return rule.goodness_of_fit(draws) > _P_VALUE


def quadrature(distribution: Any) -> Quadrature:
    r"""Covers the support with nodes: sums over masses, quadrature through ``biject_to`` over densities.

    Densities are integrated by the trapezoid rule in t, where the unconstrained coordinates are
    :math:`u = \sinh(\frac{\pi}{2}\sinh t)` (double exponential: it reaches the tails of a Cauchy), up to three
    dimensions; counts are summed up to 20,000.

    Arguments:
        distribution: Distribution in float64, with ``batch_shape == ()`` and validation off.

    Raises:
        NotImplementedError: If no rule for the support is known, or its dimension is too high.
    """
    support = distribution.support
    if is_discrete(support):
        return _sum(distribution, support)
    base: Any = base_support(support)
    if isinstance(base, type(constraints.real)) and _is_periodic(distribution):
        return _over_a_period(distribution)
    if isinstance(base, type(constraints.sphere)):
        return _over_the_sphere(distribution)
    if isinstance(base, type(constraints.positive_definite)):
        return _over_positive_definite(distribution)
    return _over_unconstrained(distribution, support)


def _grid(n: int) -> tuple[Tensor, Tensor]:
    """Returns nodes u of shape ``(M, n)``, and the logarithms of their weights."""
    if n not in _NODES:
        raise NotImplementedError(f"a quadrature in {n} dimensions")
    count, reach = _NODES[n]
    t = torch.linspace(-reach, reach, count, dtype=torch.float64)
    inner = math.pi / 2 * torch.sinh(t)
    log_weight = inner.abs() + torch.log1p(torch.exp(-2 * inner.abs())) - math.log(2)
    log_weight = log_weight + torch.log(math.pi / 2 * torch.cosh(t)) + math.log(2 * reach / (count - 1))
    u = torch.cartesian_prod(*[torch.sinh(inner)] * n).reshape(-1, n)
    return u, torch.cartesian_prod(*[log_weight] * n).reshape(-1, n).sum(-1)


def _over_unconstrained(distribution: Any, support: Constraint) -> Quadrature:
    if bool(torch.as_tensor(getattr(support, "upper_bound", 0.0)).isinf().all()):  # an interval without an end
        support = constraints.greater_than_eq(support.lower_bound)  # type: ignore[attr-defined]
    transform = biject_to(support)
    shape = torch.Size(transform.inverse_shape(distribution.event_shape))
    u, log_weight = _grid(shape.numel())
    if not isinstance(support, type(constraints.real)) and support != constraints.real_vector:
        inside = (u.abs() < _LARGEST).all(-1)
        u, log_weight = u[inside], log_weight[inside]
    points = u.reshape(-1, *shape)
    x = transform(points)
    jacobian = transform.log_abs_det_jacobian(points, x)
    jacobian = jacobian.reshape(len(u), -1).sum(-1)
    return Quadrature(
        u, _masses(distribution, x, log_weight + jacobian), lambda x: transform.inv(x).reshape(len(x), -1)
    )


def _over_positive_definite(distribution: Any) -> Quadrature:
    """Integrates over 2 x 2 matrices, in the logarithms of the Cholesky factor's diagonal and its lower entry."""
    if distribution.event_shape != (2, 2):
        raise NotImplementedError("a quadrature over positive definite matrices beyond 2 x 2")
    u, log_weight = _grid(3)
    # Beyond these, the product of the factors is singular in float64.
    inside = (u[:, [0, 2]].abs() < 40).all(-1) & (u[:, 2].exp() > 1e-7 * u[:, 1].abs()) & (u[:, 1].abs() < 1e6)
    u, log_weight = u[inside], log_weight[inside]
    factor = torch.zeros(len(u), 2, 2, dtype=u.dtype)
    factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = u[:, 0].exp(), u[:, 1], u[:, 2].exp()
    jacobian = 2 * math.log(2) + 3 * u[:, 0] + 2 * u[:, 2]

    def coordinates(x: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(x)
        return torch.stack([factor[:, 0, 0].log(), factor[:, 1, 0], factor[:, 1, 1].log()], dim=-1)

    return Quadrature(u, _masses(distribution, factor @ factor.mT, log_weight + jacobian), coordinates)


def _over_the_sphere(distribution: Any) -> Quadrature:
    """Integrates over the circle by the angle, over the sphere in three dimensions by height and angle."""
    size = distribution.event_shape[-1]
    angle = -math.pi + 2 * math.pi * (torch.arange(720, dtype=torch.float64) + 0.5) / 720
    if size == 2:
        u, area = angle[:, None], 2 * math.pi / 720
        x = torch.stack([angle.cos(), angle.sin()], dim=-1)
    elif size == 3:
        height = -1 + (2 * torch.arange(400, dtype=torch.float64) + 1) / 400
        u, area = torch.cartesian_prod(height, angle), 2 / 400 * 2 * math.pi / 720
        radius = (1 - u[:, 0].square()).sqrt()
        x = torch.stack([radius * u[:, 1].cos(), radius * u[:, 1].sin(), u[:, 0]], dim=-1)
    else:
        raise NotImplementedError(f"a quadrature over the sphere in {size} dimensions")

    def coordinates(x: Tensor) -> Tensor:
        around = torch.atan2(x[:, 1], x[:, 0])
        return torch.stack([x[:, 2], around], dim=-1) if size == 3 else around[:, None]

    return Quadrature(u, _masses(distribution, x, torch.full((len(u),), math.log(area))), coordinates)


def _is_periodic(distribution: Any) -> bool:
    """Whether every coordinate has the period 2 pi."""
    try:
        x = distribution.sample((8,)).double()
    except NotImplementedError:
        return False
    return bool(torch.isclose(distribution.log_prob(x), distribution.log_prob(x + 2 * math.pi), atol=1e-4).all())


def _over_a_period(distribution: Any) -> Quadrature:
    n = distribution.event_shape.numel()
    count = {1: 2000, 2: 400}.get(n)
    if count is None:
        raise NotImplementedError(f"a quadrature in {n} dimensions")
    angle = -math.pi + 2 * math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    u = torch.cartesian_prod(*[angle] * n).reshape(-1, n)
    log_weight = torch.full((len(u),), n * math.log(2 * math.pi / count), dtype=u.dtype)
    masses = _masses(distribution, u.reshape(-1, *distribution.event_shape), log_weight)
    return Quadrature(
        u, masses, lambda x: torch.remainder(x.reshape(len(x), -1) + math.pi, 2 * math.pi) - math.pi, "period"
    )


def _masses(distribution: Any, x: Tensor, log_weight: Tensor) -> Tensor:
    """Returns the probabilities of the cells; 0 where the density is nan, as it can be far out in the tails."""
    masses = torch.exp(distribution.log_prob(x) + log_weight)
    return torch.where(masses.isnan(), torch.zeros_like(masses), masses)


def _sum(distribution: Any, support: Constraint) -> Quadrature:
    points = _points(distribution, support)
    masses = distribution.log_prob(points).exp()
    over = "support"
    if distribution.event_shape and support.event_dim == 1 and not bool((masses.sum() - 1).abs() < 1e-3):
        totals = points.sum(-1)
        sums = torch.stack([masses[totals == total].sum() for total in totals.unique()])
        if bool((sums - 1).abs().max() < 1e-3):  # a density given the sum
            same = totals == distribution.sample().sum(-1)
            points, masses, over = points[same], masses[same], "total"
    nodes = points.reshape(len(points), -1).to(torch.float64)
    return Quadrature(nodes, masses, lambda x: x.reshape(len(x), -1).to(torch.float64), over)


def _points(distribution: Any, support: Constraint) -> Tensor:
    """Returns all values of a discrete distribution, with a limit on counts; shape ``(M, *event)``."""
    try:
        return distribution.enumerate_support()
    except NotImplementedError:
        pass
    base: Any = base_support(support)
    n = distribution.event_shape.numel()
    largest = _COUNTS if n == 1 else _VECTOR_COUNTS
    low = int(torch.as_tensor(getattr(base, "lower_bound", 0)).min())
    if not hasattr(base, "lower_bound") and base.event_dim == 0:
        low = -largest
    if hasattr(base, "upper_bound"):
        largest = int(torch.as_tensor(base.upper_bound).max())
    values = torch.arange(low, largest + 1, dtype=torch.float64)
    if len(values) ** n > _MOST_POINTS:
        raise NotImplementedError(f"a sum over {n} counts")
    points = torch.cartesian_prod(*[values] * n).reshape(-1, *distribution.event_shape)
    return points[support.check(points)]
