"""The best candidate, and those that are not distinguishable from it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.evaluation.best_candidate import best_candidate
from pyro_vae.evaluation.paired_differences import paired_differences


def crossed(mean, seed):
    rng = torch.Generator().manual_seed(seed)
    return mean + 0.1 * torch.randn(5, 1, generator=rng) + 0.1 * torch.randn(5, 50, generator=rng)


VALUES = {"far": crossed(-110.0, 0), "close": crossed(-100.0, 1), "best": crossed(-99.95, 2)}


def test_the_greatest_mean_is_the_best_and_the_intervals_are_those_of_all_pairs():
    result = best_candidate(VALUES)
    assert result.label == "best"
    assert result.not_distinguishable == ("close",)
    all_pairs = {(pair.label, pair.baseline): pair for pair in paired_differences(VALUES).pairs}
    far, close = result.differences.pairs
    for pair in (far, close):
        reverse = all_pairs["best", pair.label]
        assert (pair.mean, pair.half_width) == pytest.approx((-reverse.mean, reverse.half_width))


def test_all_are_compared_on_what_all_have():
    values = VALUES | {"partial": crossed(-99.0, 3).index_fill(1, torch.arange(10, 50), math.nan)}
    result = best_candidate(values | {"failed": torch.full((5, 50), math.nan)})
    assert (result.label, result.not_compared) == ("partial", ("failed",))
    assert {pair.num_data for pair in result.differences.pairs} == {10}
    assert result.differences.num_comparisons == 6


def test_one_candidate_with_values_has_no_rival():
    result = best_candidate({"a": torch.ones(2, 3), "failed": torch.full((2, 3), math.nan)})
    assert repr(result) == "BestCandidate(a; not distinguishable: none; not compared: failed)"


def test_an_infinite_mean_is_the_worst_but_has_no_interval():
    result = best_candidate({"a": torch.full((2, 3), -math.inf), "b": torch.zeros(2, 3)})
    assert (result.label, result.not_distinguishable) == ("b", ("a",))


def test_record():
    record = json.loads(json.dumps(best_candidate(VALUES).record(), allow_nan=False))
    assert (record["label"], record["not_distinguishable"], record["not_compared"]) == ("best", ["close"], [])
    assert [pair["label"] for pair in record["differences"]["pairs"]] == ["far", "close"]


def test_no_common_datum_is_an_error():
    first = torch.tensor([[1.0, math.nan]])
    with pytest.raises(InputError, match="no datum has a value in all candidates"):
        best_candidate({"a": first, "b": first.flip(1)})
