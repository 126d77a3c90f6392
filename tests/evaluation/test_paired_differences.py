"""Differences of candidates over seeds and data: exact values on small tables, missing values, records."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from z_test import assert_mean

from pyro_vae.errors import InputError
from pyro_vae.evaluation.crossed_effects import crossed_mean
from pyro_vae.evaluation.intervals import interval
from pyro_vae.evaluation.paired_differences import paired_differences

NAN = math.nan
# Seeds' means 3 and 7, data's means 3, 5 and 7, mean squares 24 (seeds), 8 (data) and 2 (error).
TABLE = torch.tensor([[1.0, 2.0, 6.0], [5.0, 8.0, 8.0]])


def difference(table, **arguments):
    """The difference of a candidate with these values and one with zeros."""
    values = {"zeros": torch.zeros_like(table), "candidate": table}
    (pair,) = paired_differences(values, baseline="zeros", **arguments).pairs
    return pair


def test_a_table_by_hand():
    pair = difference(TABLE)
    assert (pair.mean, pair.seed_error, pair.data_error) == pytest.approx((5.0, 2.0, 1.0))
    assert pair.standard_error == pytest.approx(math.sqrt(5))
    over_seeds, over_data = stats.t.ppf(0.975, 1), stats.t.ppf(0.975, 2)
    assert pair.half_width == pytest.approx(math.sqrt(4 * over_seeds**2 + over_data**2))
    assert (pair.low, pair.high) == pytest.approx((5 - pair.half_width, 5 + pair.half_width))
    assert (pair.covers, pair.num_seeds, pair.num_data) == ("seeds and data", 2, 3)
    assert pair.method == "Banerjee's t interval"


def test_without_variance_over_data_it_is_students_interval_over_seeds():
    seeds = torch.tensor([1.0, 2.5, 3.0, 7.0])
    pair, over_seeds = difference(seeds[:, None].expand(4, 50)), interval(seeds.tolist())
    assert (pair.mean, pair.half_width) == pytest.approx((over_seeds.mean, over_seeds.half_width))


def test_one_seed_gives_students_interval_over_data_and_says_so():
    data = [1.0, 2.5, 3.0, 7.0]
    pair, over_data = difference(torch.tensor([data])), interval(data)
    assert (pair.mean, pair.half_width) == pytest.approx((over_data.mean, over_data.half_width))
    assert (pair.covers, pair.method, pair.seed_error) == ("data", "Student's t interval", 0.0)


def test_identical_candidates_differ_by_exactly_zero():
    pair = difference(torch.zeros(3, 4))
    assert (pair.low, pair.high, pair.distinguishable) == (0.0, 0.0, False)


def test_the_variance_of_data_is_never_negative():
    pair = difference(torch.tensor([[0.0, 2.0], [3.0, 1.0]]))  # data's means are equal: MS of data 0, of error 4
    assert (pair.seed_error, pair.data_error) == (0.5, 0.0)


def test_the_squared_standard_error_has_the_variance_of_the_mean_as_expectation():
    rng = np.random.default_rng(0)
    n, seeds, data = 2000, 3, 20
    a, b, e = rng.normal(size=(n, seeds, 1)), 3 * rng.normal(size=(n, 1, data)), rng.normal(size=(n, seeds, data))
    means = [crossed_mean(table) for table in a + b + e]
    squares = torch.tensor([mean.standard_error**2 for mean in means])
    assert_mean(squares, 1 / seeds + 9 / data + 1 / (seeds * data))
    assert_mean(torch.tensor([mean.mean for mean in means]).square(), 1 / seeds + 9 / data + 1 / (seeds * data))


def test_several_differences_widen_each_interval_as_bonferroni_says():
    values = {"zeros": torch.zeros_like(TABLE)} | {name: TABLE + i for i, name in enumerate("abc")}
    against_one, all_pairs = paired_differences(values, "zeros"), paired_differences(values)
    assert (len(against_one.pairs), len(all_pairs.pairs)) == (3, 6)
    assert [(pair.label, pair.baseline) for pair in all_pairs.pairs][:2] == [("a", "zeros"), ("b", "zeros")]
    alone = difference(TABLE, level=1 - 0.05 / 3)
    assert against_one.pairs[0].half_width == pytest.approx(alone.half_width)
    assert against_one.pairs[0].method == "Banerjee's t interval, Bonferroni for 3 differences"
    of_six = paired_differences(values, "zeros", num_comparisons=6)
    assert of_six.pairs[0].half_width == pytest.approx(all_pairs.pairs[0].half_width)


def test_a_difference_changes_its_sign_with_its_order():
    values = {"a": TABLE, "b": TABLE.flip(1)}
    (forth,), (back,) = paired_differences(values, "a").pairs, paired_differences(values, "b").pairs
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))


def test_effects_that_both_candidates_share_cancel():
    rng = torch.Generator().manual_seed(0)
    shared = 100 * torch.randn(3, 1, generator=rng) + 100 * torch.randn(1, 5, generator=rng)
    noise = torch.randn(3, 5, generator=rng).double()
    (paired,) = paired_differences({"a": shared.double(), "b": shared + noise}, "a").pairs
    assert paired.half_width == pytest.approx(difference(noise).half_width)


@pytest.mark.parametrize(
    ("missing", "kept"),
    [
        ([[0, 0, NAN, NAN], [0, 0, NAN, NAN], [0, 0, NAN, NAN]], (slice(0, 3), slice(0, 2))),  # the first n data
        ([[NAN] * 4, [0] * 4, [0] * 4], (slice(1, 3), slice(0, 4))),  # a run without values
        ([[NAN] * 4, [0, 0, 0, NAN], [0] * 4], (slice(1, 3), slice(0, 3))),  # both
    ],
)
def test_what_both_have_is_compared(missing, kept):
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(3, 4, generator=rng).double()
    pair, of_kept = difference(table + torch.tensor(missing)), difference(table[kept])
    assert pair == of_kept


@pytest.mark.parametrize(
    ("table", "mean", "reason"),
    [
        (torch.full((3, 4), NAN), NAN, "fewer than two common data"),
        (torch.tensor([[1.0], [3.0]]), 2.0, "fewer than two common data"),
        (torch.tensor([[1.0, -math.inf], [3.0, 2.0]]), -math.inf, "a value is infinite"),
    ],
)
def test_no_interval_where_none_is_known(table, mean, reason):
    pair = difference(table)
    assert pair.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(pair.half_width)
    assert (pair.covers, pair.method) == (None, f"no interval: {reason}")
    assert not pair.distinguishable
    assert 0.0 not in pair


def test_two_infinite_values_are_not_missing():
    table = torch.tensor([[1.0, -math.inf], [3.0, 2.0]])
    (pair,) = paired_differences({"a": table, "b": table}).pairs
    assert (pair.num_data, pair.method) == (2, "no interval: a value is infinite")


def test_a_candidate_without_values_does_not_widen_the_other_intervals():
    values = {"zeros": torch.zeros_like(TABLE), "a": TABLE, "failed": torch.full_like(TABLE, NAN)}
    with_value, without = paired_differences(values, "zeros").pairs
    assert with_value == replace(difference(TABLE), label="a")
    assert f"{without}" == "-"


def test_record_and_text():
    differences = paired_differences({"AEVB": torch.zeros_like(TABLE), "IWAE": TABLE}, "AEVB")
    record = json.loads(json.dumps(differences.record(), allow_nan=False))
    assert (record["baseline"], record["level"], record["num_comparisons"]) == ("AEVB", 0.95, 1)
    (pair,) = record["pairs"]
    assert {name: pair[name] for name in ("label", "mean", "covers", "distinguishable")} == {
        "label": "IWAE",
        "mean": 5.0,
        "covers": "seeds and data",
        "distinguishable": False,
    }
    text = "Difference(IWAE - AEVB: 5.00 ± 25.77, over seeds and data)"
    assert repr(differences) == f"PairedDifferences({text})"
    missing = difference(torch.full((2, 2), NAN))
    assert json.loads(json.dumps(missing.record(), allow_nan=False))["low"] is None
    assert repr(missing) == "Difference(candidate - zeros: -, no interval)"


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        ([TABLE, TABLE], {}, "got `list`; pass a dict of labels and tensors"),
        ({"a": [[1.0]], "b": [[1.0]]}, {}, "got `dict`; pass a dict of labels and tensors"),
        ({"a": TABLE}, {}, "needs two candidates or more"),
        ({"a": TABLE, "b": TABLE[:1]}, {}, r"`b` have shape \(1, 3\), those of `a` \(2, 3\)"),
        ({"a": TABLE[0], "b": TABLE[0]}, {}, r"shape \(3,\); pass shape \(seeds, data\)"),
        ({"IWAE": TABLE, "b": TABLE}, {"baseline": "IWEA"}, "did you mean `IWAE`"),
        ({"a": TABLE, "b": TABLE}, {"level": 95.0}, "`level` is 95.0"),
        ({"a": TABLE, "b": TABLE, "c": TABLE}, {"num_comparisons": 2}, "pass at least 3"),
        ({"a": TABLE * NAN, "b": TABLE}, {"num_comparisons": 0}, "pass at least 1"),
    ],
)
def test_errors_say_what_to_do(values, arguments, message):
    with pytest.raises(InputError, match=message):
        paired_differences(values, **arguments)
