"""Small comparisons that several files use, each trained once for all processes that share the tests."""

import functools
import os
import pickle

import pytest
from filelock import FileLock
from small_comparisons import checked_hardly, few_digits, small

NINE = ["aevb", "analytic-kl", "stl", "iwae", "dreg", "rws", "wake-sleep", "score-function", "mcem"]


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Returns the pickle of what a function makes; the first process that asks for the name calls it."""

    @functools.cache
    def kept(name, make):
        if "PYTEST_XDIST_WORKER" not in os.environ:
            return pickle.dumps(make())
        path = tmp_path_factory.getbasetemp().parent / f"{name}.pickle"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_bytes(pickle.dumps(make()))
        return path.read_bytes()

    return kept


def _digits():
    return small(few_digits(), latent=3, seeds=[4, 7])


def _everything():
    with checked_hardly():
        changes = {"num_samples": 50, "temperatures": 5, "chains": 3, "ais_data": 15, "posterior_checks": 4}
        inference = [*NINE, "autoencoder", {"beta-vae": {"beta": 0.5}}, "vb"]
        return small(few_digits(), latent=3, inference=inference, seeds=1, evaluation=changes)


@pytest.fixture(scope="module")
def digits(kept):
    """Three algorithms under two seeds on images; a copy for each file."""
    return pickle.loads(kept("digits", _digits))


@pytest.fixture(scope="module")
def everything(kept):
    """Twelve algorithms on images, hardly trained and hardly checked; a copy for each file."""
    return pickle.loads(kept("everything", _everything))
