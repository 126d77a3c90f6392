"""A short run with a checkpoint, which may die after a step."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from fitting import fit_with

from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.engine import interpreted
from pyro_vae.inference import AEVB

X = (torch.rand(70, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def model(size=None, activation=torch.nn.Tanh, scale=1.0) -> VAE:
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(scale))
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2, 5, activation=activation))
    return VAE(prior, likelihood, mlp(6, 5), size=size)


def flipped(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.where(torch.rand(x.shape, generator=generator) < 0.1, 1 - x, x)


class Stop(Exception):
    """What a callback raises in place of a kill."""


def train(checkpoint=None, stop=None, steps=25, x=X, **given):
    """A run of 25 steps, three epochs and a half; ``stop`` is the step after which it dies."""
    inference = given.pop("inference", AEVB())
    declared = {name: given.pop(name) for name in ("activation", "scale") if name in given}
    vae, called = model(70 if inference.name == "vb" else None, **declared), []

    def callback(step, metrics):
        called.append((step, metrics["bound"]))
        if step == stop:
            raise Stop

    options = {
        "optimizer": lambda p: torch.optim.Adam(p, 1e-2),
        "batch_size": 10,
        "transform": flipped,
        "compile": False,
        "schedule": lambda step: 1 / (1 + step),
        "callback": callback,
        "callback_steps": {7, 8, 20, 25},
        "checkpoint": checkpoint,
        "checkpoint_seconds": 0.0,
    }
    try:
        with interpreted():
            history = fit_with(vae, x, inference, steps=steps, **options | given)
    except Stop:
        return None
    return vae, inference, history, called
