"""`fit` starts a new VAE at the location and scale of its training data."""

from __future__ import annotations

import copy

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import VAE, Conditional, Fixed, Mixed, Training, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB

X = (torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + 10).exp()  # of size 2e4
OPTIONS = {"batch_size": 60, "compile": False}


def make(seed=0):
    torch.manual_seed(seed)
    return VAE(
        Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
        Mixed({"price": dist.LogNormal, "area": dist.Gamma}, given=mlp(2, 8)),
        Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
    )


def first_bound(vae, x=X, **options):
    return fit(vae, x, AEVB(), Training(steps=1, **{**OPTIONS, **options})).bound[0]


def test_the_first_bound_is_near_that_of_the_data_alone():
    alone = sum(float(dist.LogNormal(x.log().mean(), x.log().std()).log_prob(x).mean()) for x in X.unbind(1))
    assert first_bound(make(), start_at_data=False) < alone - 100
    assert alone - 3 < first_bound(make()) < alone + 0.1


def test_a_loader_and_transformed_data_start_at_their_first_minibatch():
    seen = []

    def transform(x, generator):
        seen.append(x.shape[0])
        return x * 10

    history = fit(make(), X / 10, AEVB(), Training(steps=3, batch_size=20, compile=False), transform=transform)
    assert seen == [20, 20, 20]  # no minibatch is drawn twice
    assert history.bound[0] > -30
    started = []
    for x in (X, DataLoader(TensorDataset(X), batch_size=60)):
        vae = make()
        first_bound(vae, x, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        started.append(torch.cat([group.head.bias for group in vae.likelihood.groups]).detach())
    torch.testing.assert_close(*started)


def test_a_trained_vae_is_not_started_again():
    vae = make()
    fit(vae, X, AEVB(), Training(steps=5, **OPTIONS))
    state = copy.deepcopy(vae.state_dict())
    fit(vae, 100 * X, AEVB(), Training(steps=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **OPTIONS))
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())


def test_replicates_start_as_runs_of_their_own():
    several = [make(0), make(1)]
    histories = fit(several, X, AEVB(), Training(steps=4, **OPTIONS), seed=[3, 4])
    for r, seed in enumerate((3, 4)):
        alone = make(r)
        history = fit([alone], X, AEVB(), Training(steps=4, **OPTIONS), seed=[seed])[0]
        np.testing.assert_allclose(histories[r].bound[0], history.bound[0], rtol=1e-5)
        torch.testing.assert_close(several[r].likelihood.groups[0].head.bias, alone.likelihood.groups[0].head.bias)


def test_a_resumed_run_is_that_of_one_piece(tmp_path):
    whole, parts = make(), make()
    fit(whole, X, AEVB(), Training(steps=6, batch_size=20, compile=False))
    for steps in (2, 6):
        again = make() if steps == 6 else parts
        fit(again, X, AEVB(), Training(steps=steps, batch_size=20, compile=False), checkpoint=tmp_path / "run")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_an_unusual_setting_is_refused():
    with pytest.raises(InputError, match="`start_at_data` is False or True"):
        Training(start_at_data="yes")
