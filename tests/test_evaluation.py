"""What every evaluation keeps to: evaluation mode, its own random stream, and all left as it was."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import Tensor, nn

from pyro_vae import VAE, Conditional, Fixed, Learned
from pyro_vae.evaluation import active_units, elbo, kl_per_dimension, log_marginal, posterior_means

X = LinearGaussian.random(5, 2).sample(25)


def vae_with_modes() -> VAE:
    """Dropout in the decoder, batch normalisation in the encoder, one part in evaluation mode, a sampled KL."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5))
    vae = VAE(
        Conditional(dist.StudentT, (2,), df=Fixed(5.0), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(dist.Normal, (5,), given=decoder, scale=Learned(0.7)),
        Conditional(dist.Normal, (2,), given=encoder),
    )
    vae.posterior.given[2].eval()
    return vae


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda vae, seed: log_marginal(vae, X, 30, seed=seed).pointwise,
        lambda vae, seed: elbo(vae, X, 30, seed=seed).pointwise,
        lambda vae, seed: kl_per_dimension(vae, X, seed=seed),
        lambda vae, seed: posterior_means(vae, X),
        lambda vae, seed: active_units(vae, X),
    ],
    ids=["log_marginal", "elbo", "kl_per_dimension", "posterior_means", "active_units"],
)
def test_evaluation_runs_in_evaluation_mode_and_leaves_everything_as_it_was(
    evaluate: Callable[[VAE, int], Tensor],
) -> None:
    vae = vae_with_modes()
    modes = [child.training for child in vae.modules()]
    assert len(set(modes)) == 2
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    result = evaluate(vae, 3)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])  # noqa: NPY002
    assert random.getstate() == random_states[2]
    assert [child.training for child in vae.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in vae.state_dict().items())
    assert not any(p.grad is not None for p in vae.parameters())
    assert not result.requires_grad
    assert not any(key.startswith(vae._name) for key in pyro.get_param_store().keys())  # noqa: SIM118
    assert torch.equal(evaluate(vae, 3), result)
    assert torch.equal(evaluate(vae.eval(), 3), result)  # no dropout, no batch statistics
