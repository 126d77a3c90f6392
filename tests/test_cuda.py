"""Training, evaluation and the param store on a CUDA device."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_vae import VAE, Conditional, Fixed, Learned, conv_decoder, conv_encoder, fit, mlp
from pyro_vae.comparison import compare
from pyro_vae.evaluation import elbo, log_marginal
from pyro_vae.experiment import Experiment
from pyro_vae.inference import ALGORITHMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _normal(size):
    return Conditional(dist.Normal, (size,), loc=Fixed(0.0), scale=Fixed(1.0))


MODELS = {
    "mlp": lambda: VAE(_normal(4), Conditional(dist.Bernoulli, (64,), given=mlp(4, 50)), mlp(64, 50)),
    "conv": lambda: VAE(
        _normal(4),
        Conditional(dist.Normal, (64,), given=conv_decoder(4, (1, 8, 8), 8), head=None, scale=Learned(0.5)),
        Conditional(dist.Normal, (4,), given=conv_encoder((1, 8, 8), 8)),
    ),
    "bounded prior": lambda: VAE(
        Conditional(dist.Uniform, (4,), low=Fixed(0.0), high=Fixed(1.0)),
        Conditional(dist.ContinuousBernoulli, (64,), given=mlp(4, 50)),
    ),
}


@pytest.fixture
def x():
    return (torch.rand(300, 64, generator=torch.Generator().manual_seed(0)) < 0.3).float()


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_trains_and_evaluates(name, model, x):
    if name == "analytic-kl" and model == "bounded prior":
        pytest.skip("no closed form, by design")
    torch.manual_seed(0)
    vae = MODELS[model]().cuda()
    before = [parameter.clone() for parameter in vae.parameters()]
    state = torch.cuda.get_rng_state()
    history = fit(
        vae, x, ALGORITHMS[name](), optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), epochs=5, validation=x[:50]
    )
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert history.bound[-1] > history.bound[0]
    assert all(not torch.equal(b, p) and p.is_cuda for b, p in zip(before, vae.parameters(), strict=True))
    marginal, bound = log_marginal(vae, x[:50], 100), elbo(vae, x[:50], 100)
    assert marginal.value > bound.value
    assert vae.generate(3).is_cuda


def test_agrees_with_the_cpu(x):
    torch.manual_seed(0)
    vae = MODELS["mlp"]()
    z = torch.randn(7, 300, 4)
    expected = vae.log_likelihood(z, x)
    torch.testing.assert_close(vae.cuda().log_likelihood(z.cuda(), x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-2)


def test_pyros_svi(x):
    torch.manual_seed(0)
    vae = MODELS["mlp"]().cuda()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x.cuda()) for _ in range(50)]
    assert losses[-1] < losses[0]


def test_compare():
    quick = {"latent": 2, "training": {"epochs": 1}, "evaluation": {"num_samples": 50}, "seeds": [0], "device": "cuda"}
    result = compare(Experiment.parse(quick))
    assert result.environment["device"].startswith("cuda (")
    assert len(result.runs) == 3
