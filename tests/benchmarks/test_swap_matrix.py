"""Prior x likelihood x posterior from one line of YAML each: a sample by default, all of it under `slow`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks is no part of the package

from benchmarks import swap_matrix as matrix

SAMPLE = matrix.sample(30)


def check(cell: matrix.Cell) -> None:
    record = matrix.outcome(cell)
    assert record["outcome"] != "defect", record["reason"]


@pytest.mark.parametrize("cell", SAMPLE, ids=str)
def test_a_sample_of_cells_trains_and_round_trips_or_is_refused_by_name(cell):
    check(cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for cell in matrix.cells() if cell not in SAMPLE], ids=str)
def test_every_cell_trains_and_round_trips_or_is_refused_by_name(cell):
    check(cell)


def test_the_sample_has_every_prior_likelihood_and_posterior():
    for part, names in (("prior", matrix.PRIORS), ("likelihood", matrix.LIKELIHOODS), ("posterior", matrix.POSTERIORS)):
        assert {getattr(cell, part) for cell in SAMPLE} == set(names)
    assert len(SAMPLE) == len(set(SAMPLE)) == 30


def test_a_defect_is_told_from_a_refusal(monkeypatch):
    cell = matrix.Cell("VonMises", "Bernoulli", "derived")
    assert matrix.outcome(cell)["outcome"] == "refused"
    monkeypatch.setitem(matrix.REFUSED, "VonMises", "another reason")
    assert matrix.outcome(cell)["outcome"] == "defect"
    monkeypatch.setitem(matrix.REFUSED, "Normal, fixed", "a reason")
    assert "should be refused" in matrix.outcome(matrix.Cell("Normal, fixed", "Bernoulli", "derived"))["reason"]
    monkeypatch.setattr(matrix.VAE, "generate", lambda vae, n: torch.full((n, matrix.CELLS), 0.5))
    assert "outside" in matrix.outcome(matrix.Cell("Laplace", "Bernoulli", "derived"))["reason"]
