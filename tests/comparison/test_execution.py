"""Within one comparison all runs execute alike, and it says how."""

from __future__ import annotations

import json

import pytest
import torch

from pyro_vae import compare
from pyro_vae.comparison import execution
from pyro_vae.comparison.compare import prepare
from pyro_vae.comparison.execution import Execution, decide
from pyro_vae.comparison.report.tables import summary_text
from pyro_vae.engine.compilation.cost import Saving
from pyro_vae.experiment import Experiment
from pyro_vae.inference import AEVB, ALGORITHMS, Loss

QUICK = {
    "data": "digits",
    "latent": 2,
    "networks": {"encoder": {"mlp": [5]}, "decoder": {"mlp": [5]}},
    "training": {"steps": 7, "batch_size": 10},
    "evaluation": {"num_samples": 3, "elbo_samples": 2, "posterior_checks": 0},
    "inference": ["aevb", "analytic-kl"],
    "seeds": [0, 1],
}


class Branching(AEVB):
    """An algorithm whose program depends on values, so that it cannot be captured."""

    name = "branching"

    def loss_of(self, vae, batch) -> Loss:
        loss = super().loss_of(vae, batch)
        return loss if float(loss.value.detach()) > 0 else Loss(2 * loss.value, loss.bound)


@pytest.fixture
def it_pays(monkeypatch):
    """Compiling saves hours."""
    monkeypatch.setattr(execution, "STEP", Saving(1e3, 0.0, 1e9))


def ways(comparison) -> set[str]:
    return {run.history.execution.split(" in ")[0] for run in comparison.runs}


def test_all_are_compiled_where_that_saves_time_over_all(it_pays):
    comparison = compare(Experiment.parse(QUICK))
    assert ways(comparison) == {"compiled"}
    said = comparison.execution.said
    assert said.startswith("All runs took their steps compiled in ")
    assert said.endswith("s, which no time contains: that saves time over all runs.")
    assert said in summary_text(comparison).caption
    record = json.loads(json.dumps(comparison.record()))["execution"]
    assert (record["compiled"], record["seconds"] > 0) == (True, True)


def test_none_is_compiled_where_one_cannot_be(it_pays, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "branching", Branching)
    comparison = compare(Experiment.parse({**QUICK, "inference": ["aevb", "branching"]}))
    assert ways(comparison) == {"uncompiled"}
    assert "the step of branching cannot be compiled" in comparison.execution.said


def test_none_is_compiled_where_that_does_not_pay():
    comparison = compare(Experiment.parse(QUICK))
    assert ways(comparison) == {"uncompiled"}
    assert comparison.execution.said == (
        "All runs took their steps uncompiled: 7 steps a run would not repay the compilation."
    )


@pytest.mark.parametrize("asked", [True, False])
def test_what_the_experiment_says_is_done(asked):
    experiment = Experiment.parse({**QUICK, "training": {**QUICK["training"], "compile": asked}})
    found = decide(prepare(experiment).candidates)
    assert found == Execution(asked, f"the experiment says `compile: {str(asked).lower()}`")


def test_an_interrupted_comparison_goes_on_as_it_began(it_pays, monkeypatch, tmp_path):
    one = {**QUICK, "inference": ["aevb"]}
    first = compare(Experiment.parse({**one, "seeds": [0]}), checkpoints=tmp_path)
    monkeypatch.setattr(execution, "STEP", Saving(0.0, 0.0, 0.0))
    both = compare(Experiment.parse(one), checkpoints=tmp_path)
    assert ways(both) == ways(first) == {"compiled"}
    assert both.execution.reason == first.execution.reason


def test_the_decision_changes_no_result(it_pays):
    """The pilots are other models, with random streams of their own."""
    one = {**QUICK, "inference": ["aevb"], "seeds": [0]}
    asked = Experiment.parse({**one, "training": {**QUICK["training"], "compile": True}})
    decided, told = compare(Experiment.parse(one)), compare(asked)
    for mine, its in zip(decided.runs, told.runs, strict=True):
        for a, b in zip(mine.vae.parameters(), its.vae.parameters(), strict=True):
            assert torch.equal(a, b)
