"""For each inference algorithm by name: a small VAE that it can train, data and the algorithm itself."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, mlp
from pyro_vae.inference import Inference, algorithm


def small_vae(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> VAE:
    """A VAE that the algorithm can train, whose prior, likelihood and posterior all have parameters."""
    prior, family = Conditional(dist.Normal, (2,), loc=Learned(0.1, shape=(2,)), scale=Fixed(1.0)), dist.Normal
    if name == "enumeration":
        prior, family = Conditional(dist.Bernoulli, (2,), logits=Learned(0.1, shape=(2,))), dist.Bernoulli
    labels = 3 if name == "m2" else 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2 + labels, 5))
        posterior = Conditional(family, (2,), given=mlp(6 + labels, 5))
        return VAE(prior, likelihood, posterior, size=10, context_features=labels).to(dtype)


def tiny_vae(seed: int = 0, dtype: torch.dtype = torch.float64) -> VAE:
    """A VAE of the same data with a single layer in each network, whose programs are captured in half the time."""
    prior = Conditional(dist.Normal, (2,), loc=Learned(0.1, shape=(2,)), scale=Fixed(1.0))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        likelihood = Conditional(dist.Bernoulli, (6,), given=nn.Identity(), features=2)
        return VAE(prior, likelihood, Conditional(dist.Normal, (2,), given=nn.Identity(), features=6)).to(dtype)


def data(name: str, dtype: torch.dtype = torch.float32) -> Batch:
    """With labels, of which every other one is known, where the algorithm is about such."""
    x = torch.rand(10, 6, generator=torch.Generator().manual_seed(1)).round().to(dtype)
    labels = torch.eye(3, dtype=dtype).repeat(4, 1)[:10]
    labels[::2] = torch.nan
    return Batch(x, labels if name == "m2" else None)


def made(name: str) -> Inference:
    """The algorithm with its defaults, but for a threshold that a small VAE exceeds and for fewer moves."""
    own = {"free-bits": {"free_nats": 1e-4}, "mcem": {"transitions": 3, "leapfrog_steps": 4, "updates": 2}}
    return algorithm(name)(**own.get(name, {}))
