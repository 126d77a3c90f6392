"""Learning curves weigh by data, and a bound that runs away is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_vae import Training, fit
from pyro_vae.inference import AEVB
from pyro_vae.training.history import History, Records


def history(bounds, sizes):
    nothing = np.array([], dtype=np.int64)
    bounds = np.array(bounds, dtype=np.float64)
    return History(bounds, np.cumsum(sizes), np.arange(len(bounds)) * 1.0, nothing, nothing.astype(np.float64))


def test_a_short_minibatch_is_no_point_of_its_own():
    """Three epochs of 4 batches of 100 and one of 3, whose bounds differ."""
    bounds, sizes = [-18.0, -18.0, -18.0, -18.0, -2.0] * 3, [100, 100, 100, 100, 3] * 3
    steps, curve = history(bounds, sizes).curve(100)
    assert steps.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 15]
    expected = np.full(12, -18.0)
    expected[[4, 8]] = (3 * -2.0 + 100 * -18.0) / 103
    expected[11] = (100 * -18.0 + 3 * -2.0) / 103  # the rest of the run is in the last interval
    np.testing.assert_allclose(curve, expected, rtol=1e-12)


@pytest.mark.parametrize("points", [1, 3, 7, 100])
def test_intervals_cover_every_datum_once(points):
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, 50)
    one = history(generator.normal(size=50), sizes)
    steps, curve = one.curve(points)
    assert 1 <= len(steps) <= points
    assert steps[-1] == 50
    weights = np.diff(np.cumsum(sizes)[steps - 1], prepend=0)
    assert len(steps) == 1 or weights.min() >= sizes.max()
    assert float(curve @ weights / weights.sum()) == pytest.approx(float(one.bound @ sizes / sizes.sum()))


def test_a_run_without_steps_has_no_points():
    steps, curve = history([], []).curve(10)
    assert (steps.tolist(), curve.tolist()) == ([], [])


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        (np.linspace(-45, -1.9e7, 60), "its bound fell from"),
        (np.linspace(-45, -56, 60), ""),
        (np.linspace(-500, -80, 60), ""),
        (np.linspace(0.5, -9, 60), ""),
        ([float("nan")] * 5, ""),
        ([], ""),
    ],
)
def test_a_bound_that_runs_away_is_named(bounds, named):
    fall = Records(list(bounds)).fall()
    assert fall.startswith(named)
    assert bool(fall) == bool(named)


def test_the_remark_of_a_run_names_it(make_vae, x):
    def rising(parameters):
        return torch.optim.SGD(parameters, lr=0.5, maximize=True)

    run = fit(make_vae(), x, AEVB(), Training(optimizer=rising, steps=15, batch_size=6, clip_norm=1.0))
    assert "training ran away" in run.remark
