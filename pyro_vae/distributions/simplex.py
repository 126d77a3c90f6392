r"""The simplex, accurate in float32: its bijection in log space, and the logistic normal distribution on it."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import IndependentTransform, StickBreakingTransform, Transform
from torch.nn.functional import logsigmoid, pad


class StickBreaking(StickBreakingTransform):
    r"""The stick-breaking bijection from n real numbers to the simplex of n + 1 cells, computed in log space.

    .. math:: \log z_i = \log\sigma(y_i) + \sum_{j<i} \log\sigma(-y_j), \qquad y_i = u_i - \log(n + 1 - i)

    for i = 1, ..., n; the last cell is the rest, :math:`\log z_{n+1} = \sum_j \log\sigma(-y_j)`. The inverse is
    :math:`y_i = \log z_i - \log \sum_{j>i} z_j`, and :math:`\log |\det J| = \sum_i (\log z_i + \log\sigma(-y_i))`.

    It is the map of `torch.distributions.transforms.StickBreakingTransform`, and ``==`` says that they are equal.
    Torch's class computes the rest of the stick as 1 minus the other cells; if the rest is below 1e-7, float32 keeps
    no digit of it. Here each cell has full relative precision, so the inverse recovers u from z. Cells below the
    smallest normal number (1e-38 in float32) are set to that number, and u cannot be recovered from them. Cells below
    1e-31 (1e-292 in float64) have no gradient. With u from N(0, 3^2), none of 50 cells is so small. Of 1,000 cells,
    1 % are below the first bound and 5 % below the second: use float64 there.

    Reference: "Stan Reference Manual" 2.26, section 10.7, "Unit simplex", for the map and its determinant.

    Example:
        >>> import torch
        >>> u = torch.tensor([20.0, 1.0, -2.0])  # z is 1, 3.6e-09, 3.1e-10 and 2.3e-09
        >>> [round(float(v), 4) for v in StickBreaking().inv(StickBreaking()(u))]
        [20.0, 1.0, -2.0]
    """

    sign = 1  # the Jacobian is triangular, and its diagonal positive

    def log_simplex(self, u: Tensor) -> Tensor:
        """Returns log z, shape ``(..., n + 1)``, for u of shape ``(..., n)``; it does not underflow."""
        y = u - _log_offset(u)
        left = logsigmoid(-y).cumsum(-1)
        return pad(logsigmoid(y), [0, 1]) + pad(left, [1, 0])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det J| at u = ``x``, shape ``(...)``; z = ``y`` is not needed."""
        shifted, n = x - _log_offset(x), x.shape[-1]
        # sigma(-y_j) is a factor of the diagonal terms dz_i / du_i of all i = j, ..., n.
        times = torch.arange(n, 0, -1, dtype=x.dtype, device=x.device)
        return (logsigmoid(shifted) + times * logsigmoid(-shifted)).sum(-1)

    def _call(self, x: Tensor) -> Tensor:
        # Up to rounding, exp of the logarithms sums to 1; softmax removes the rounding error of the sum.
        return _bounded(self.log_simplex(x).softmax(-1))

    def _inverse(self, y: Tensor) -> Tensor:
        z = _bounded(y)
        right = z[..., 1:].flip(-1).cumsum(-1).flip(-1)  # a sum of positive terms: nothing cancels
        u = z[..., :-1].log() - right.log()
        return u + _log_offset(u)


def _bounded(z: Tensor) -> Tensor:
    """Raises cells to the smallest normal number; no gradient where that of log z, 1 / z, may overflow."""
    limits = torch.finfo(z.dtype)
    return torch.where(z > limits.tiny / limits.eps, z, z.detach().clamp_min(limits.tiny))


def _log_offset(u: Tensor) -> Tensor:
    """Returns log n, ..., log 2, log 1, with which u = 0 is the centre of the simplex."""
    return torch.arange(u.shape[-1], 0, -1, dtype=u.dtype, device=u.device).log()


def bijection_onto(support: Constraint) -> Transform:
    r"""Returns the bijection from real numbers onto a support: `StickBreaking` for the simplex, else torch's.

    Arguments:
        support: Support of a distribution over real numbers.

    Raises:
        NotImplementedError: Where no bijection is known.

    Example:
        >>> from torch.distributions import constraints
        >>> bijection_onto(constraints.simplex), bijection_onto(constraints.unit_interval)
        (StickBreaking(), SigmoidTransform())
    """
    if isinstance(support, constraints.independent):
        return IndependentTransform(bijection_onto(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, type(constraints.simplex)):
        return StickBreaking()
    return biject_to(support)


class LogisticNormal(dist.LogisticNormal):
    r"""Logistic normal on the simplex: a diagonal Normal, pushed through `StickBreaking`.

    .. math:: z = T(u), \quad u \sim N(\mu, \operatorname{diag} s^2), \qquad
        \log p(z) = \log N(u; \mu, s^2) - \log |\det J_T(u)|, \quad u = T^{-1}(z)

    It is the density of `torch.distributions.LogisticNormal`. In float32, torch's result is wrong by hundreds of nats
    for 50 cells at s = 3, because it computes u from differences that cancel. Here only rounding errors remain.
    `Conditional` puts this class in the place of the original.

    Arguments:
        loc: :math:`\mu`, shape ``(..., L - 1)`` for L cells.
        scale: s, of the same shape.
        validate_args: Whether to check arguments and values.

    Reference: Aitchison and Shen, "Logistic-normal distributions: some properties and uses", 1980, for the family;
    `StickBreaking` for the map.

    Example:
        >>> import torch
        >>> LogisticNormal(torch.zeros(2), torch.ones(2)).log_prob(torch.tensor([1 / 3, 1 / 3, 1 / 3]))
        tensor(1.4580)
    """

    def __init__(self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None) -> None:
        super().__init__(loc, scale, validate_args=validate_args)
        self.transforms = [StickBreaking()]

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogisticNormal:
        return super().expand(batch_shape, self._get_checked_instance(LogisticNormal, _instance))
