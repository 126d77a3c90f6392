r"""Modified Bessel functions of the first kind, as von Mises-Fisher distributions need them."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Debye's expansion is used at orders of at least _ORDER, with _TERMS terms. Its error is 1e-14 at every argument.
_ORDER, _TERMS = 16, 12


def log_bessel(order: float, x: Tensor) -> Tensor:
    r"""Returns the logarithm of the Bessel function, scaled so that nothing overflows or underflows.

    .. math:: \log\left[\Gamma(\nu + 1) \left(\frac{2}{x}\right)^\nu I_\nu(x)\right] - x
        = \log {}_0F_1\left(\nu + 1; \tfrac{x^2}{4}\right) - x

    It is 0 at x = 0. Debye's expansion, which is uniform in x, gives the function at an order of at least 16. A
    recurrence that is stable downwards then gives it at ``order``. One formula is used for all arguments. The
    computation is in float64 on the device of x. For orders up to 500 and x up to 1e6 the error is below 1e-12:
    absolute for values up to 1, relative for larger ones. Derivatives of any order are correct.

    Arguments:
        order: Order :math:`\nu \ge 0` of the function.
        x: Argument of the function, not negative, any shape.

    Returns:
        A tensor of the shape of x, in float64.

    Reference: Abramowitz and Stegun, "Handbook of mathematical functions", 1964, equations 9.7.7 and 9.6.26.

    Example:
        >>> x = torch.tensor([0.0, 2.0], dtype=torch.float64)
        >>> torch.allclose(log_bessel(0.0, x), torch.special.i0e(x).log())
        True
    """
    value: Tensor = _LogBessel.apply(x.double(), float(order))
    return value


def bessel_ratio(order: float, x: Tensor) -> Tensor:
    r"""Returns :math:`I_{\nu + 1}(x) / I_\nu(x)`, which is 1 plus the derivative of `log_bessel` of ``x``.

    It rises from 0 at x = 0 towards 1, and is the length of the mean of a von Mises-Fisher distribution in
    :math:`2\nu + 2` dimensions. Relative errors are below 1e-12.

    Example:
        >>> bessel_ratio(0.5, torch.tensor(2.0)) - (1 / math.tanh(2.0) - 1 / 2.0)
        tensor(0., dtype=torch.float64)
    """
    value: Tensor = _BesselRatio.apply(x.double(), float(order))
    return value


class _LogBessel(torch.autograd.Function):
    """`log_bessel`; the recurrence is differentiated by its known derivative, not step by step."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: float) -> Tensor:
        return _bessel_and_ratio(order, x)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.order = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * (bessel_ratio(ctx.order, x) - 1), None


class _BesselRatio(torch.autograd.Function):
    r"""`bessel_ratio` A, with :math:`A' = 1 - A^2 - (2\nu + 1) A / x`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: float) -> Tensor:
        return x * _bessel_and_ratio(order, x)[1] / (2 * order + 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.order = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        share = _bessel_and_ratio(ctx.order, x)[1] / (2 * ctx.order + 2)  # A / x, also at 0
        return gradients[0] * (1 - (x * share).square() - (2 * ctx.order + 1) * share), None


def _bessel_and_ratio(order: float, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""`log_bessel`, and the ratio :math:`{}_0F_1(\nu + 2; x^2/4) / {}_0F_1(\nu + 1; x^2/4)`, which is 1 at x = 0."""
    steps = max(0, math.ceil(_ORDER - order))
    top = order + steps
    value = _debye(top, x)
    ratio = (_debye(top + 1, x) - value).exp()
    square = x.square() / 4
    for j in range(steps):
        step = square * ratio / ((top - j) * (top - j + 1))
        value, ratio = value + torch.log1p(step), 1 / (1 + step)
    return value, ratio


def _debye(order: float, x: Tensor) -> Tensor:
    r"""`log_bessel` of a large order: :math:`I_\nu \sim e^\eta (2 \pi s)^{-1/2} \sum_k U_k(\nu/s) / \nu^k`."""
    s = torch.sqrt(x.square() + order**2)
    p = order / s
    series = torch.zeros_like(x)
    for coefficient in _debye_polynomial(order):
        series = series * p + coefficient
    leading = math.lgamma(order + 1) + order**2 / (s + x) + order * torch.log(2 / (order + s))
    return leading - (2 * math.pi * s).log() / 2 + series.log()


@cache
def _debye_polynomial(order: float) -> tuple[float, ...]:
    r"""Coefficients of :math:`\sum_k U_k(p) / \nu^k` as a polynomial in p, the highest first."""
    total = [0.0] * (3 * _TERMS + 1)
    for k, polynomial in enumerate(_debye_polynomials()):
        for power, coefficient in enumerate(polynomial):
            total[power] += float(coefficient) / order**k
    return tuple(reversed(total))


@cache
def _debye_polynomials() -> list[list[Fraction]]:
    r""":math:`U_{k+1} = \frac12 p^2 (1 - p^2) U_k' + \frac18 \int_0^p (1 - 5 t^2) U_k dt` from :math:`U_0 = 1`."""
    found = [[Fraction(1)]]
    for _ in range(_TERMS):
        following = [Fraction(0)] * (len(found[-1]) + 3)
        for power, coefficient in enumerate(found[-1]):
            following[power + 1] += coefficient * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            following[power + 3] -= coefficient * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        found.append(following)
    return found
