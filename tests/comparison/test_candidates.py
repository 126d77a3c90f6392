"""Candidates that differ by more than the algorithm: their runs, measures, folder and verdict."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_comparisons import SMALL, few_digits, small

from pyro_vae import compare, load
from pyro_vae.comparison.candidate import declared_candidates
from pyro_vae.comparison.compare import prepare
from pyro_vae.comparison.folder import new_folder, write_run
from pyro_vae.comparison.report.page import write_report
from pyro_vae.comparison.report.tables import from_best_text, tables_text
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate
from pyro_vae.experiment import Experiment

GRID = {"vary": {"prior": ["Normal", "flow"], "latent": [2, 3]}, "inference": ["aevb"]}


@pytest.fixture(scope="module")
def grid():
    return small(few_digits(), **GRID)


def test_each_candidate_is_its_own_comparison_of_one(grid):
    """A candidate has the numbers of the experiment that it is, run by itself."""
    assert grid.labels == ["Normal, latent=2", "Normal, latent=3", "flow, latent=2", "flow, latent=3"]
    alone = small(few_digits(), prior="flow", latent=3, inference=["aevb"])
    for mine, its in zip(grid.runs_of("flow, latent=3"), alone.runs, strict=True):
        assert mine.elbo.value == its.elbo.value
        assert mine.log_marginal.value == its.log_marginal.value
    assert [run.seed for run in grid.runs] == [0] * 4 + [1] * 4


def test_its_folder_gives_every_candidate_back(grid, tmp_path):
    with new_folder(tmp_path / "run") as partial:
        write_report(grid, partial / "report.html")
        write_run(grid, partial)
    trained = load(tmp_path / "run", "flow, latent=3", 1)
    assert trained.vae.latent_shape == (3,)
    run = grid.runs_of("flow, latent=3")[1]
    assert all(torch.equal(a, b.cpu()) for a, b in zip(trained.vae.parameters(), run.vae.parameters(), strict=True))
    assert load(tmp_path / "run").vae.latent_shape == (2,)
    with pytest.raises(InputError, match=r"has no candidate `flow, latent=4`; did you mean `flow, latent="):
        load(tmp_path / "run", "flow, latent=4")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Verdict" in page
    assert "Best: " in page


def test_an_interrupted_grid_goes_on_and_takes_up_other_candidates(tmp_path):
    data = few_digits()
    first = small(data, tmp_path / "kept", models={"latent=2": {"latent": 2}}, inference=["aevb"])
    both = small(data, tmp_path / "kept", vary={"latent": [2, 3]}, inference=["aevb"])
    assert "resumed" in both.environment
    alone = small(data, vary={"latent": [2, 3]}, inference=["aevb"])
    assert [run.elbo.value for run in both.runs] == [run.elbo.value for run in alone.runs]
    assert first.labels == ["latent=2"]
    with pytest.raises(InputError, match="another comparison"):
        small(data, tmp_path / "kept", models={"latent=2": {"latent": 4}}, inference=["aevb"])


def test_combinations_that_cannot_work_are_left_out():
    data = few_digits()
    prepared = prepare(Experiment.parse({**SMALL, "vary": {"likelihood": ["Bernoulli", "Categorical"]}}), data)
    assert {candidate.experiment.likelihood.family for candidate in prepared.candidates} == {"Bernoulli"}
    assert all("Categorical" in label and "does not follow" in why for label, why in prepared.left_out.items())
    with pytest.raises(InputError, match="no combination can work"):
        prepare(Experiment.parse({**SMALL, "vary": {"likelihood": ["Categorical", "Multinomal"]}}), data)


@pytest.fixture
def counts_file(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.poisson(4.0, size=(120, 3)) + 1, columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "counts.csv", index=False)
    return tmp_path / "counts.csv"


def test_densities_and_probabilities_stand_in_different_tables(counts_file):
    content = {**SMALL, "data": {"name": str(counts_file), "scaling": "none"}, "inference": ["aevb"]}
    result = compare(Experiment.parse({**content, "vary": {"likelihood": ["Poisson", "Normal", "LogNormal"]}}))
    parts = result.by_measure()
    assert [part.labels for part in parts] == [["Poisson"], ["Normal", "LogNormal"]]
    assert [part.candidates[0].measure for part in parts] == [
        "probability of the values",
        "density in the data's own units",
    ]
    assert len(tables_text(result)) == 3  # one candidate has no differences
    with pytest.raises(InputError, match=r"2 measures .* not comparable; take the verdict of each"):
        result.verdict()
    assert result.record()["verdicts"][0]["best"] == "Poisson"


def test_likelihoods_of_columns_are_candidates_beside_one_for_all(counts_file):
    mixed = {"mixed": {"a": "Poisson", "b": "Normal", "c": "Poisson"}}
    content = {**SMALL, "data": str(counts_file), "inference": ["aevb"]}
    prepared = prepare(Experiment.parse({**content, "vary": {"likelihood": ["Normal", mixed]}}))
    assert [candidate.measure for candidate in prepared.candidates] == [
        "density in the data's own units",
        "probability of some columns and density of others (pdp)",
    ]


def test_the_same_normal_in_raw_and_standardised_units_has_the_same_density(counts_file):
    """N(loc, scale) of a model without latents: raw parameters are the standardised ones, moved and scaled."""
    content = {**SMALL, "data": str(counts_file), "likelihood": "Normal", "inference": ["aevb"], "seeds": 1}
    prepared = prepare(Experiment.parse({**content, "vary": {"data.scaling": ["none", "standardise"]}}))
    raw, standardised = prepared.candidates
    assert raw.measure == standardised.measure
    own = torch.as_tensor(raw.data.test).double()
    mean, scale = (own * 0 + value for value in (4.5, 2.0))
    inner = torch.as_tensor(standardised.data.test).double()
    moved = standardised.data.to_own_units(torch.stack([torch.zeros(3), torch.ones(3)])).double()
    spread = moved[1] - moved[0]
    of_raw = torch.distributions.Normal(mean, scale).log_prob(own).sum(-1)
    of_scaled = torch.distributions.Normal((mean - moved[0]) / spread, scale / spread).log_prob(inner).sum(-1)
    shifted = of_scaled + standardised.data.log_jacobian
    torch.testing.assert_close(shifted, of_raw + raw.data.log_jacobian, rtol=0, atol=1e-4)


def with_values(run, test, valid):
    """A run with other values of log p(x)."""
    k = torch.zeros(len(test))
    estimates = [Estimate.of(values, values * 0, pareto_k=k) for values in (test, valid)]
    return dataclasses.replace(run, log_marginal=estimates[0], valid=estimates[1])


def test_the_best_is_chosen_on_validation_data_and_reported_on_test_data(grid):
    """By validation data the second is best, by 1 nat; by test data the third is better, by 0.1 at noise 0.01."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(20, generator=generator).double()
    of_valid = dict(zip(grid.labels, (0.0, 1.0, 0.9, 0.0), strict=True))
    of_test = dict(zip(grid.labels, (0.0, 1.0, 1.1, 0.0), strict=True))

    def noisy(run, level):
        return shared + level + 0.01 * torch.randn(20, generator=generator).double()

    runs = [
        with_values(run, noisy(run, of_test[run.algorithm]), noisy(run, of_valid[run.algorithm])) for run in grid.runs
    ]
    changed = dataclasses.replace(grid, runs=runs)
    found = changed.verdict()
    assert found.best == changed.best() == "Normal, latent=3"
    assert found.chosen_by == "validation data"
    means = {pair.label: pair.mean for pair in found.differences.pairs}
    assert means == pytest.approx({"Normal, latent=2": -1.0, "flow, latent=2": 0.1, "flow, latent=3": -1.0}, abs=0.02)
    assert found.differences.num_comparisons == 6
    assert "Best: Normal, latent=3, chosen by validation data." in found.sentence
    assert "intervals of 95% hold together, over seeds and data" in found.sentence
    assert from_best_text(changed).rows[0][0] == "flow, latent=2"
    alone = dataclasses.replace(changed, runs=[run for run in runs if run.seed == 0])
    assert "over data, since there is one seed" in alone.verdict().sentence
    without = dataclasses.replace(changed, runs=[dataclasses.replace(run, valid=None) for run in runs])
    assert without.verdict().best == "flow, latent=2"
    assert without.verdict().chosen_by == "test data, since no validation data are there"


def test_doubts_name_what_still_rises_and_what_is_not_trusted(grid):
    rising = dataclasses.replace(grid.runs[0].history, validation_bound=np.arange(10.0))
    flat = dataclasses.replace(grid.runs[0].history, validation_bound=np.zeros(10))
    runs = [dataclasses.replace(run, history=rising if run.algorithm == grid.labels[0] else flat) for run in grid.runs]
    found = dataclasses.replace(grid, runs=runs).verdict()
    assert any(
        "The validation bound of Normal, latent=2 still rises, by up to 2.00 nats" in doubt
        and "train for 2 epochs" in doubt
        for doubt in found.doubts
    )
    bad = torch.full((20,), 2.0)
    runs = [
        dataclasses.replace(
            run,
            log_marginal=dataclasses.replace(
                run.log_marginal, diagnostics={**run.log_marginal.diagnostics, "pareto_k": bad}
            ),
        )
        for run in grid.runs
    ]
    found = dataclasses.replace(grid, runs=runs).verdict()
    assert any("is not to be trusted (Pareto k-hat)" in doubt for doubt in found.doubts)


def test_the_result_as_a_frame_and_in_words(grid):
    frame = grid.table()
    assert list(frame.index) == grid.labels
    row = frame.loc["flow, latent=2"]
    assert row["elbo"] == grid.summary("flow, latent=2")["elbo"].mean
    assert row["elbo_low"] <= row["elbo"] <= row["elbo_high"] or math.isnan(row["elbo_low"])
    assert "flow, latent=2" in repr(grid)
    assert "Best: " in repr(grid)


def test_labels_name_the_algorithm_where_several_are_compared():
    declared = declared_candidates(Experiment.parse({"vary": {"latent": [2, 3]}, "inference": ["aevb", "iwae"]}))
    assert [each.label for each in declared] == ["latent=2, aevb", "latent=2, iwae", "latent=3, aevb", "latent=3, iwae"]
    varied = declared_candidates(Experiment.parse({"vary": {"inference": ["aevb", "iwae"], "latent": [2]}}))
    assert [each.label for each in varied] == ["aevb", "iwae"]
    with pytest.raises(InputError, match="no candidate `x`"):
        small(few_digits(), inference=["aevb"]).only("x")
