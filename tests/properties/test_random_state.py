"""No call but a draw that is asked for changes the global random states: torch's, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from algorithm_cases import data, made, small_vae
from evaluations import EVALUATIONS

import pyro_vae
from pyro_vae import VAE, Conditional, Fixed, Hierarchy, Learned, Reads, Training, compare, fit, mlp
from pyro_vae.comparison.folder import new_folder, write_run
from pyro_vae.engine import interpreted
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment
from pyro_vae.experiment.to_spec import to_spec
from pyro_vae.inference import ALGORITHMS


@contextmanager
def unchanged() -> Iterator[None]:
    """A block that leaves every global random state as it is found."""
    torch.manual_seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


def pushed(name: str) -> VAE:
    """A posterior on the real line that is mapped to the prior's support."""
    labels = 3 if name == "m2" else 0
    prior = Conditional(dist.Gamma, (2,), concentration=Learned(2.0, shape=(2,)), rate=Fixed(1.5))
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2 + labels, 5))
    return VAE(prior, likelihood, mlp(6 + labels, 5), size=10, context_features=labels)


def layered(name: str) -> VAE:
    """Two layers of latents."""
    labels = 3 if name == "m2" else 0
    prior = Hierarchy(
        z2=Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        if not labels
        else Conditional(dist.Normal, (2,), given=mlp(labels, 4)),
        z1=Conditional(dist.Normal, (2,), given=mlp(2, 4)),
    )
    posterior = Hierarchy(
        z1=Conditional(dist.Normal, (2,), given=mlp(6 + labels, 4)), z2=Conditional(dist.Normal, (2,), given=mlp(2, 4))
    )
    likelihood = Reads(Conditional(dist.Bernoulli, (6,), given=mlp(2 + labels, 4)), "z1")
    return VAE(prior, likelihood, posterior, size=10, context_features=labels)


MODELS = {"plain": small_vae, "pushed": pushed, "layered": layered}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("model", MODELS)
def test_training(model, name):
    vae, inference, x = MODELS[model](name), made(name), data(name)
    with unchanged():
        try:
            inference.check(vae)
        except InputError:
            return  # a refusal draws nothing either
        fit(vae, x, inference, Training(steps=2, batch_size=5), validation=None if name == "m2" else x)


@pytest.mark.parametrize("name", ["aevb", "mcem", "rws"])
def test_captured_training(name):
    vae, x = small_vae(name), data(name)
    with unchanged(), interpreted():
        fit(vae, x, made(name), Training(steps=3, batch_size=5, compile=True))


@pytest.mark.parametrize("model", ["pushed", "layered"])
@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation(name, model):
    vae = MODELS[model]("aevb")
    with unchanged():
        try:
            EVALUATIONS[name](vae, data("aevb").x, 0)
        except InputError:
            return


def test_an_experiment_and_what_it_leaves(tmp_path):
    experiment = Experiment.parse(
        {"data": "digits", "latent": 2, "prior": "Gamma", "inference": ["rws"], "seeds": 1}
        | {"networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}}}
        | {"training": {"steps": 3}, "evaluation": {"num_samples": 5, "posterior_checks": 2}}
    )
    with unchanged():
        comparison = compare(experiment)
        with new_folder(tmp_path / "run") as partial:
            write_run(comparison, partial)
    with unchanged():
        trained = pyro_vae.load(tmp_path / "run")
        frame = trained.sample(3)
        trained.score(frame)
        trained.encode(frame)
        trained.reconstruct(frame)
        to_spec(trained.vae)
