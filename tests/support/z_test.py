"""The one test of Monte Carlo statements."""

from __future__ import annotations

import torch
from scipy.stats import norm
from torch import Tensor

# The probability that a correct library fails a Monte Carlo test, all its components together.
FAILURE_RATE = 2e-5


def assert_mean(samples: Tensor, exact: object, error: Tensor | None = None) -> float:
    """Asserts by z-tests that independent samples, shape ``(n, ...)``, have the expectation ``exact``; returns max |z|.

    With ``error``, ``samples`` are estimates of ``exact`` that have these standard errors. The failure rate is
    `FAILURE_RATE` for all components together (Bonferroni).
    """
    samples, exact = samples.detach().double(), torch.as_tensor(exact, dtype=torch.float64).detach()
    if error is None:
        samples, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    assert samples.shape == exact.shape == error.shape
    z = (samples - exact) / error.clamp_min(1e-12)
    largest, limit = float(z.abs().max()), norm.isf(FAILURE_RATE / 2 / z.numel())
    assert largest < limit, f"component {int(z.abs().argmax())} of {z.numel()}: |z| = {largest:.2f} > {limit:.2f}"
    return largest
