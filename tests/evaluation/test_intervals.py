"""Intervals over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pyro_vae.evaluation.intervals import interval


def test_interval_is_students():
    values = [1.0, 2.5, 3.0, 7.0]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    result = interval(values)
    assert (result.low, result.high, result.n) == (pytest.approx(low), pytest.approx(high), 4)
    assert 5.0 in result
    assert high + 0.1 not in result


def test_coverage_over_many_experiments():
    rng = np.random.default_rng(0)
    n = 4000
    covered = sum(0.0 in interval(rng.normal(size=3)) for _ in range(n))
    assert abs(covered - 0.95 * n) / math.sqrt(n * 0.95 * 0.05) < 4.27


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "-"), ([math.nan], "-"), ([1.25], "1.25"), ([1.0, math.nan], "1.00"), ([1.0, 1.0], "1.00 ± 0.00")],
)
def test_what_is_not_known_is_not_shown(values, text):
    assert f"{interval(values)}" == text


def test_an_infinite_value_is_not_left_out():
    result = interval([-100.0, -101.0, -math.inf])
    assert (result.mean, result.n) == (-math.inf, 3)
    assert math.isnan(result.half_width)
