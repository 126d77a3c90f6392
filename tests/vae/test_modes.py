"""Outside training everything is computed in evaluation mode, whatever the modules' mode."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Batch, Conditional, Fixed, Flow, Hierarchy, Reads, Training, fit
from pyro_vae.inference import AEVB, M2

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


def dropout(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 20), nn.Dropout(0.5), nn.BatchNorm1d(20), nn.Linear(20, outputs))


def normal(size, given, features):
    return Conditional(dist.Normal, (size,), given=given, features=features, scale=Fixed(1e-6))


def plain():
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    return VAE(prior, normal(5, dropout(2, 6), 6), normal(2, dropout(5, 6), 6))


def layered():
    """Layers whose networks run when z is drawn, not when q is made."""
    prior = Hierarchy(
        z2=Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1e-6)), z1=normal(2, dropout(2, 6), 6)
    )
    posterior = Hierarchy(z1=normal(2, dropout(5, 6), 6), z2=normal(2, dropout(2, 6), 6))
    return VAE(prior, Reads(normal(5, dropout(2, 6), 6), "z1"), posterior)


def flow():
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    return VAE(prior, normal(5, dropout(2, 6), 6), Flow((2,), "maf", given=dropout(5, 6)))


def seeded(call):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return call()


CALLS = {
    "encode": lambda vae: vae.encode(X).sample(),
    "decode": lambda vae: vae.decode(torch.ones(vae.latent_shape).expand(8, -1)).mean,
    "reconstruct": lambda vae: vae.reconstruct(X),
    "reconstruct with draws": lambda vae: vae.reconstruct(X, 2),
    "generate": lambda vae: vae.generate(8),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("make", [plain, layered, flow])
def test_numbers_are_those_of_evaluation_mode(make, name):
    torch.manual_seed(1)
    vae = make().train()
    buffers = {key: value.clone() for key, value in vae.named_buffers()}
    in_training = seeded(lambda: CALLS[name](vae))
    assert all(module.training for module in vae.modules())
    assert all(torch.equal(value, buffers[key]) for key, value in vae.named_buffers())
    in_evaluation = seeded(lambda: CALLS[name](vae.eval()))
    torch.testing.assert_close(in_training, in_evaluation, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_dropped_after_fit(name):
    vae = plain()
    fit(vae, X, AEVB(), Training(steps=3, batch_size=4))
    assert not any(module.training for module in vae.modules())
    first, second = (seeded(lambda: CALLS[name](vae)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_distribution_made_in_training_mode_stays_in_it():
    """Its layers run when it is evaluated, in the mode in which it was made."""
    vae = layered().train()
    q = vae.posterior_given(vae.check(X))
    vae.eval()
    first, second = (q.sample() for _ in range(2))
    assert float((first - second).abs().max()) > 1e-3  # dropout
    assert not vae.posterior.training


def test_an_algorithms_modules_are_in_evaluation_mode_after_fit():
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae, m2 = VAE(prior, normal(5, dropout(4, 6), 6), normal(2, dropout(7, 6), 6), context_features=2), M2((3,))
    fit(vae, Batch(X, context=torch.eye(2).repeat(4, 1)), m2, Training(steps=2, batch_size=4))
    assert not any(module.training for module in (*m2.modules(), *vae.modules()))
    m2.classifier.given = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5))
    expected = m2.classify(vae, X)
    assert torch.equal(m2.train().classify(vae.train(), X), expected)


@pytest.mark.parametrize("z", [torch.zeros(3, 4), torch.zeros(()), [0.0, 0.0]])
def test_decode_names_the_shape_that_it_needs(z):
    with pytest.raises(ValueError, match=r"^VAE: decode needs a tensor z of shape \(\.\.\., \*\(2,\)\); got"):
        plain().decode(z)
