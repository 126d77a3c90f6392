"""Bessel functions against 40 digits."""

import mpmath
import pytest
import torch

from pyro_vae.distributions.bessel import bessel_ratio, log_bessel

ARGUMENTS = (0.0, 1e-8, 1e-3, 0.1, 0.7, 1.0, 3.0, 10.0, 24.0, 100.0, 1e3, 1e4, 1e6)
ORDERS = (0.0, 0.5, 1.0, 1.5, 9.0, 15.5, 16.0, 24.0, 49.5, 499.0)


def exact_log_bessel(order, x):
    if x == 0:
        return 0.0
    x = mpmath.mpf(x)
    return float(mpmath.log(mpmath.gamma(order + 1) * (2 / x) ** order * mpmath.besseli(order, x)) - x)


def exact_ratio(order, x):
    return float(mpmath.besseli(order + 1, x) / mpmath.besseli(order, x)) if x else 0.0


@pytest.mark.parametrize("order", ORDERS)
def test_values_and_derivative(order):
    x = torch.tensor(ARGUMENTS, dtype=torch.float64, requires_grad=True)
    value = log_bessel(order, x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    with mpmath.workdps(40):
        exact = [exact_log_bessel(order, v) for v in ARGUMENTS]
        ratio = torch.tensor([exact_ratio(order, v) for v in ARGUMENTS], dtype=torch.float64)
    torch.testing.assert_close(value, torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bessel_ratio(order, x), ratio, rtol=2e-12, atol=0)
    torch.testing.assert_close(slope, ratio - 1, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [0.0, 0.5, 1.5, 24.0])
def test_derivatives_of_every_order(order):
    x = torch.tensor([0.0, 0.2, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    shifted = lambda x: log_bessel(order, x + 1e-3)  # noqa: E731  (numerical differences need both sides)
    assert torch.autograd.gradcheck(shifted, x)
    assert torch.autograd.gradgradcheck(shifted, x)


def test_vectorised_gradients():
    x = torch.linspace(0, 20, 7, dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.grad(lambda x: log_bessel(0.5, x)))(x)
    torch.testing.assert_close(slopes, bessel_ratio(0.5, x) - 1, rtol=1e-12, atol=0)


def test_float32_arguments_are_computed_in_float64():
    x = torch.tensor([0.5, 1e4], requires_grad=True)
    assert log_bessel(1.0, x).dtype == torch.float64
    (slope,) = torch.autograd.grad(log_bessel(1.0, x).sum(), x)
    assert slope.dtype == torch.float32
