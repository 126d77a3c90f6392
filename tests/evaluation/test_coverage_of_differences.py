"""How often intervals hold the true differences of candidates, with crossed effects of seeds and data."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import stdtrit

from pyro_vae.evaluation.best_candidate import best_candidate
from pyro_vae.evaluation.crossed_effects import crossed_mean
from pyro_vae.evaluation.intervals import interval
from pyro_vae.evaluation.paired_differences import paired_differences

NUM_DATA = 100
REPETITIONS = 1000


class Scales(NamedTuple):
    """Standard deviations of the effects in each candidate's values."""

    seeds: float
    data: float
    error: float


# The error of the mean is due to seeds (nearly all), to both, or to data (nearly all).
SEEDS, BOTH, DATA = Scales(1.0, 0.5, 0.5), Scales(0.2, 1.0, 1.0), Scales(0.02, 1.0, 1.0)


def normal(rng, *shape):
    return rng.normal(size=shape)


def skewed(rng, *shape):
    return 1 - rng.exponential(size=shape)


def student(rng, *shape):
    return rng.standard_t(5, size=shape) / math.sqrt(5 / 3)


def experiments(num_candidates, num_seeds, scales, effect=normal, repetitions=REPETITIONS):
    """Values of candidates whose true means are 0, 1, 2, ...: tables that share the difficulty of data and the seed."""
    rng = np.random.default_rng(0)
    for _ in range(repetitions):
        shared = normal(rng, 1, num_seeds, 1) + 3 * effect(rng, 1, 1, NUM_DATA)
        own = scales.seeds * normal(rng, num_candidates, num_seeds, 1)
        own = own + scales.data * effect(rng, num_candidates, 1, NUM_DATA)
        own = own + scales.error * effect(rng, num_candidates, num_seeds, NUM_DATA)
        tables = np.arange(num_candidates)[:, None, None] + shared + own
        yield {str(c): torch.from_numpy(table) for c, table in enumerate(tables)}


def covered(differences):
    """Whether all intervals hold the true differences."""
    return all(float(pair.label) - float(pair.baseline) in pair for pair in differences.pairs)


def coverage(*setting, baseline="0", each_alone=False):
    held = []
    for values in experiments(*setting):
        num_pairs = len(values) - 1 if baseline else math.comb(len(values), 2)
        # At this level of all intervals together, Bonferroni's level of each one is 0.95: no correction.
        level = 1 - 0.05 * num_pairs if each_alone else 0.95
        held.append(covered(paired_differences(values, baseline, level)))
    return float(np.mean(held))


@pytest.mark.parametrize(
    ("num_candidates", "num_seeds", "effect"),
    [
        (2, 3, normal),
        (4, 5, student),
        (8, 3, skewed),
        pytest.param(4, 3, skewed, marks=pytest.mark.slow),
        pytest.param(8, 3, normal, marks=pytest.mark.slow),
        pytest.param(8, 3, student, marks=pytest.mark.slow),
        pytest.param(8, 5, skewed, marks=pytest.mark.slow),
    ],
)
def test_intervals_against_a_baseline_hold_together(num_candidates, num_seeds, effect):
    assert 0.93 <= coverage(num_candidates, num_seeds, SEEDS, effect) <= 0.97


@pytest.mark.parametrize("num_seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_intervals_of_all_pairs_hold_together(num_seeds):
    assert 0.93 <= coverage(4, num_seeds, SEEDS, baseline=None) <= 0.97


@pytest.mark.parametrize(
    ("scales", "num_seeds"),
    [
        (SEEDS, 2),
        (BOTH, 3),
        (DATA, 5),
        pytest.param(BOTH, 2, marks=pytest.mark.slow),
        pytest.param(BOTH, 5, marks=pytest.mark.slow),
        pytest.param(DATA, 3, marks=pytest.mark.slow),
    ],
)
def test_intervals_hold_whatever_the_error_is_due_to(scales, num_seeds):
    assert coverage(4, num_seeds, scales, skewed) >= 0.93


def test_without_correction_they_do_not_hold_together():
    assert coverage(4, 3, SEEDS, each_alone=True) < 0.9


def test_one_seed_covers_data_alone():
    no_seeds = Scales(0.0, 1.0, 1.0)
    assert 0.93 <= coverage(4, 1, no_seeds) <= 0.97
    assert coverage(4, 1, SEEDS) < 0.5


def test_intervals_over_seeds_alone_or_data_alone_do_not_hold():
    held = {"seeds": 0, "data": 0, "both": 0}
    for values in experiments(2, 5, BOTH):
        table = values["1"] - values["0"]
        held["seeds"] += 1.0 in interval(table.mean(1).tolist())
        held["data"] += 1.0 in interval(table.mean(0).tolist())
        held["both"] += covered(paired_differences(values, "0"))
    assert held["seeds"] < 0.9 * REPETITIONS
    assert held["data"] < 0.9 * REPETITIONS
    assert held["both"] >= 0.93 * REPETITIONS


def test_satterthwaites_degrees_of_freedom_are_too_many_with_few_seeds():
    num_seeds, count, held = 2, 3, 0
    for values in experiments(count + 1, num_seeds, SEEDS):
        means = [crossed_mean((values[str(c)] - values["0"]).numpy()) for c in range(1, count + 1)]
        errors = np.array([[mean.seed_error, mean.data_error] for mean in means]) ** 2
        degrees = errors.sum(1) ** 2 / (errors**2 / [num_seeds - 1, NUM_DATA - 1]).sum(1)
        half = -stdtrit(degrees, 0.025 / count) * np.sqrt(errors.sum(1))
        held += bool((np.abs([mean.mean - c for c, mean in enumerate(means, 1)]) <= half).all())
    assert held < 0.87 * REPETITIONS


def test_equal_candidates_are_rarely_distinguishable_from_the_best():
    wrong, wrong_without = 0, 0
    for values in experiments(8, 5, SEEDS):
        equal = {label: table - float(label) for label, table in values.items()}
        best = best_candidate(equal)
        wrong += len(best.not_distinguishable) < 7
        # The correction counts seven differences, as if the baseline were not chosen by these values.
        wrong_without += any(pair.distinguishable for pair in paired_differences(equal, best.label).pairs)
    assert wrong <= 0.05 * REPETITIONS
    assert wrong_without > 0.07 * REPETITIONS
