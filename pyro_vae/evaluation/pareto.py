r"""Pareto k-hat of importance weights, computed by ArviZ."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Log weights within this range count as constant: their generalised Pareto fit has no scale.
_CONSTANT = 1e-8
# With fewer draws the tail is too short for ArviZ's fit.
_FEWEST = 30


def pareto_k(log_weights: Tensor) -> Tensor:
    """Returns the Pareto k-hat of each datum's importance weights, computed by ArviZ.

    Below 0.5 the weights' variance is finite and the estimate good; above 0.7 the estimate is not reliable. If all
    of the largest weights are equal (log weights within 1e-8, as at the exact posterior or for few discrete z), there
    is no tail: k-hat is then defined as -inf here, while ArviZ returns inf or an error.

    Arguments:
        log_weights: Log weights, shape ``(S, N)``.

    Returns:
        k-hat of each datum, shape ``(N,)``; nan if S is below 30, too few to fit a tail.
    """
    values = log_weights.detach().double().cpu().numpy().T
    result = np.full(len(values), np.nan)
    finite = np.isfinite(values).all(axis=1)
    n = values.shape[1]
    length = n if n < _FEWEST else math.ceil(min(0.2 * n, 3 * math.sqrt(n)))  # of the fitted tail
    tails = np.partition(np.where(finite[:, None], values, 0.0), -length, axis=1)[:, -length:]
    constant = finite & (np.ptp(tails, axis=1) < _CONSTANT)
    fitted = finite & ~constant
    result[constant] = -np.inf
    if fitted.any() and n >= _FEWEST:
        result[fitted] = _psis(values[fitted])
    return torch.from_numpy(result)


def _psis(log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns k-hat of each row, by ArviZ 0.23 (`psislw` of log weights) or 1.x (`psislw` of log likelihoods)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of k above 0.7, which the caller sees, and of ArviZ's refactoring
        try:
            from arviz_stats.base import array_stats
        except ImportError:
            import arviz

            _, k = arviz.psislw(log_weights)
        else:
            _, k = array_stats.psislw(-log_weights)
    return np.asarray(k, dtype=np.float64)
