"""Models of algorithms that train no posterior, or its mean alone, as they come back from a run folder."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae
from pyro_vae.comparison import new_data as trained
from pyro_vae.comparison.folder import new_folder, write_run
from pyro_vae.errors import InputError
from pyro_vae.evaluation import annealed_importance_sampling
from pyro_vae.experiment import Experiment


@pytest.fixture(scope="module")
def run(everything, tmp_path_factory):
    labels = ("mcem", "autoencoder", "aevb", "vb")
    runs = [run for label in labels for run in everything.runs_of(label)]
    specs = [spec for label in labels for spec in everything.experiment.inference if spec.label == label]
    experiment = everything.experiment.model_copy(update={"inference": specs})
    comparison = replace(everything, experiment=experiment, runs=runs)
    folder = tmp_path_factory.mktemp("runs") / "run"
    with new_folder(folder) as partial:
        write_run(comparison, partial)
    return folder, comparison


@pytest.mark.parametrize("label", ["mcem", "autoencoder"])
def test_without_a_posterior_scores_are_by_annealing(run, label, monkeypatch):
    annealing = functools.partial(annealed_importance_sampling, compile=False)  # the same on slow machines
    monkeypatch.setattr(trained, "annealed_importance_sampling", annealing)
    monkeypatch.setattr(trained, "_TEMPERATURES", 5)
    vae = pyro_vae.load(run[0], label)
    x = Experiment.parse({}).load_data().test[:6]
    scores = trained.score(vae, x)
    assert list(scores.columns) == ["row", "log_p", "standard_error", "effective_sample_size"]
    estimate = annealing(vae, x, 5, 16)
    assert scores.log_p.tolist() == estimate.pointwise.tolist()
    assert scores.effective_sample_size.tolist() == estimate.diagnostics["effective_sample_size"].tolist()


def test_what_the_encoder_does_not_know_is_not_printed(run):
    x = torch.zeros(3, 64)
    whole = ["z0", "z1", "z2", "z0_sd", "z1_sd", "z2_sd"]
    assert list(trained.encode(pyro_vae.load(run[0], "aevb"), x).columns) == whole
    assert list(trained.encode(pyro_vae.load(run[0], "autoencoder"), x).columns) == ["z0", "z1", "z2"]
    with pytest.raises(InputError, match=r"`mcem` trains no posterior.*--algorithm"):
        trained.encode(pyro_vae.load(run[0]), x)


def test_every_algorithms_model_generates(run):
    for label in ("mcem", "autoencoder", "aevb"):
        assert trained.sample(pyro_vae.load(run[0], label), 4).shape == (4, 64)


def test_the_algorithms_state_comes_back(run):
    folder, comparison = run
    for label in ("mcem", "vb"):
        state = comparison.runs_of(label)[0].inference.state_dict()
        restored = pyro_vae.load_inference(folder, label).state_dict()
        assert len(state) > 0
        assert restored.keys() == state.keys()
        assert all(torch.equal(restored[name], value) for name, value in state.items())
    assert float(restored["kl_per_datum"]) > 0
    assert repr(pyro_vae.load_inference(folder, "aevb")) == "AEVB(num_particles=1)"
    assert not list((folder / "weights").glob("aevb*.inference.*"))


def test_the_value_is_that_of_the_file_not_the_scaled_one(tmp_path):
    random = np.random.default_rng(0)
    pd.DataFrame({"a": random.random(40) * 10, "b": random.random(40)}).to_csv(tmp_path / "t.csv", index=False)
    likelihood = {"family": "ContinuousBernoulli"}
    experiment = Experiment.parse(
        {"data": {"name": str(tmp_path / "t.csv"), "scaling": "unit"}, "likelihood": likelihood}
    )
    vae = experiment.build(data := experiment.load_data())
    vae.units = data.units
    path = tmp_path / "new.csv"
    path.write_text("b,a\n0.5,5\n0.5,77\n")
    with pytest.raises(InputError, match=r"^`.*new\.csv`: `77` in data row 2 .*, column `a` lies outside the support"):
        trained.read_rows(vae, path)
    np.save(tmp_path / "new.npy", np.array([[5, 0.5], [77, 0.5]]))
    with pytest.raises(InputError, match=r"^`.*new\.npy`: `77` in data row 2 .*, column `a` lies"):
        trained.read_rows(vae, tmp_path / "new.npy")
