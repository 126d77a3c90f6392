"""An estimate carries its errors; the log of a mean of weights is right to leading order."""

from __future__ import annotations

import math

import pytest
import torch
from z_test import assert_mean

from pyro_vae.evaluation import Estimate
from pyro_vae.evaluation.estimate import LogMean


def test_an_estimate_carries_the_errors_of_its_mean() -> None:
    result = Estimate.of(torch.tensor([-1.0, -3.0, -8.0]), torch.tensor([0.3, 0.4, 1.2]), num_samples=7)
    assert result.value == pytest.approx(-4.0)
    assert result.standard_error == pytest.approx(1.3 / 3, rel=1e-6)
    assert result.sampling_error == pytest.approx(math.sqrt((9 + 1 + 16) / 2 / 3))
    assert result.diagnostics["num_samples"] == 7
    assert result.pointwise.dtype == torch.float64
    assert repr(result) == "Estimate(-4.0000 ± 0.4333 (Monte Carlo) ± 2.0817 (data), 3 data)"
    shifted = result.shifted(1.5)
    assert (shifted.value, shifted.pointwise.tolist()) == (-2.5, [0.5, -1.5, -6.5])
    errors = ("standard_error", "sampling_error", "diagnostics")
    assert all(getattr(shifted, name) == getattr(result, name) for name in errors)
    assert math.isnan(Estimate.of(torch.tensor([1.0]), torch.tensor([0.1])).sampling_error)
    with pytest.raises(AttributeError):
        result.value = 0.0


def test_an_estimate_says_where_its_weights_speak_against_its_error() -> None:
    """By Pareto k-hat where there is one; else by the effective sample size, where an error is stated at all."""
    values, errors = torch.tensor([-1.0, -3.0, -8.0, -2.0]), torch.tensor([0.3, 0.4, math.inf, math.nan])
    sizes = torch.tensor([1.9, 2.0, 1.0, 1.0])
    few = Estimate.of(values, errors, effective_sample_size=sizes)
    assert repr(few).endswith("4 data, effective sample size < 2 for 1: not to be trusted there)")
    assert repr(few.shifted(1.0)).endswith("4 data, effective sample size < 2 for 1: not to be trusted there)")
    heavy = Estimate.of(values, errors, effective_sample_size=sizes, pareto_k=torch.tensor([0.1, 0.8, 0.7, 0.9]))
    assert repr(heavy).endswith("4 data, k-hat > 0.7 for 2: not to be trusted there)")
    assert repr(Estimate.of(values, errors, effective_sample_size=2 * sizes)).endswith("4 data)")


def test_the_log_of_a_mean_is_that_of_its_weights() -> None:
    """Weights of any size; one that is 0 counts, and data whose weights are all 0 have probability 0."""
    w = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 2.0, 4.0, 0.0]], dtype=torch.float64)
    for shift in (0.0, -5000.0, 5000.0):
        mean = LogMean.of(w.log() + shift)
        expected = torch.tensor([2.0, 2.0, 2.0, 0.0]).double().log() + shift
        torch.testing.assert_close(mean.value, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(mean.error[:3], torch.tensor([0.5, 0.0, 1.0]).double(), rtol=0, atol=1e-10)
        torch.testing.assert_close(mean.effective_sample_size[:3], torch.tensor([1.6, 2.0, 1.0]).double())
        torch.testing.assert_close(mean.bias[:3], torch.tensor([0.125, 0.0, 0.5]).double(), rtol=0, atol=1e-10)
        assert bool(mean.error[3].isnan())
    single = LogMean.of(torch.tensor([[-2.0]]))
    assert (float(single.value), math.isnan(single.error), math.isnan(single.bias)) == (-2.0, True, True)


def test_the_log_of_a_mean_is_too_low_by_its_bias() -> None:
    """Log-normal weights of mean 1, relative variance v and third central moment m; with the term after the bias."""
    n, growth = 20, math.exp(0.25)
    generator = torch.Generator().manual_seed(0)
    mean = LogMean.of(0.5 * torch.randn(n, 100_000, generator=generator, dtype=torch.float64) - 0.125)
    v, m = growth - 1, (growth - 1) ** 2 * (growth + 2)
    assert_mean(mean.value, -v / (2 * n) + m / (3 * n**2) - 3 * v**2 / (4 * n**2))
