"""Fixtures that the tests share: one thread, a seed and a small VAE."""

import signal

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.engine import interpreted
from pyro_vae.engine.compilation import backend

torch.set_num_threads(1)  # the problems are so small that a second thread only waits


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _operation_by_operation():
    """Captured programs run operation by operation: to compile each takes ten times as long as its test."""
    with interpreted():
        yield


@pytest.fixture(autouse=True)
def _machine_code(request, monkeypatch):
    """Where a test is of machine code, captured programs are compiled."""
    if any(request.node.get_closest_marker(name) for name in ("machine_code", "gpu")):
        monkeypatch.setattr(backend, "_interpreted", False)


@pytest.fixture
def x():
    """Twelve binary data of six cells."""
    return (torch.rand(12, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@pytest.fixture
def make_vae():
    """Makes a VAE with two Normal latents and six Bernoulli cells; any part may be replaced."""

    def make(prior=None, likelihood=None, posterior=None, **options):
        return VAE(
            prior or Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
            likelihood or Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)),
            posterior or Conditional(dist.Normal, (2,), given=mlp(6, 7)),
            **options,
        )

    return make


@pytest.fixture
def interruptible():
    """Ctrl-C is ignored by a process that was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
