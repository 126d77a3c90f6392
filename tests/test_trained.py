"""Models of algorithms that train no posterior, or its mean alone, as they come back from a run folder."""

from __future__ import annotations

import pytest
import torch

import pyro_vae
from pyro_vae import trained
from pyro_vae.comparison import compare
from pyro_vae.errors import InputError
from pyro_vae.evaluation import annealed_importance_sampling
from pyro_vae.experiment import Experiment
from pyro_vae.run_folder import new_folder, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    experiment = Experiment.parse(
        {
            "latent": 2,
            "networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}},
            "inference": [{"mcem": {"transitions": 2, "updates": 2}}, "autoencoder", "aevb"],
            "training": {"epochs": 4},
            "evaluation": {"num_samples": 30, "temperatures": 5, "posterior_checks": 0},
            "seeds": 1,
        }
    )
    folder = tmp_path_factory.mktemp("runs") / "run"
    with new_folder(folder) as partial:
        write_run(compare(experiment), partial)
    return folder


@pytest.mark.parametrize("label", ["mcem-transitions=2-updates=2", "autoencoder"])
def test_without_a_posterior_scores_are_by_annealing(folder, label, monkeypatch):
    monkeypatch.setattr(trained, "_TEMPERATURES", 60)
    vae = pyro_vae.load(folder, label)
    x = Experiment.parse({}).load_data().test[:6]
    scores = trained.score(vae, x)
    assert list(scores.columns) == ["row", "log_p", "standard_error", "effective_sample_size"]
    estimate = annealed_importance_sampling(vae, x, 60, 16)
    assert scores.log_p.tolist() == estimate.pointwise.tolist()
    assert scores.effective_sample_size.tolist() == estimate.diagnostics["effective_sample_size"].tolist()


def test_what_the_encoder_does_not_know_is_not_printed(folder):
    x = torch.zeros(3, 64)
    assert list(trained.encode(pyro_vae.load(folder, "aevb"), x).columns) == ["z0", "z1", "z0_sd", "z1_sd"]
    assert list(trained.encode(pyro_vae.load(folder, "autoencoder"), x).columns) == ["z0", "z1"]
    with pytest.raises(InputError, match="`mcem` trains no posterior.*--algorithm"):
        trained.encode(pyro_vae.load(folder), x)


def test_every_algorithms_model_generates(folder):
    for label in ("mcem-transitions=2-updates=2", "autoencoder", "aevb"):
        assert trained.sample(pyro_vae.load(folder, label), 4).shape == (4, 64)
