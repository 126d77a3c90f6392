"""Networks in fewer bits, densities in all."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae import VAE, Conditional, Fixed, Mixture, Training, fit, mlp
from pyro_vae.engine import Lifted, interpreted
from pyro_vae.errors import InputError
from pyro_vae.evaluation import elbo
from pyro_vae.inference import AEVB
from pyro_vae.runtime.precision import network_output, networks_in

X = (torch.rand(200, 784, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def vae(dtype: torch.dtype = torch.float32) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = Conditional(dist.Normal, (5,), loc=Fixed(0.0), scale=Fixed(1.0))
        likelihood = Conditional(dist.Bernoulli, (784,), given=mlp(5, 50))
        return VAE(prior, likelihood, Conditional(dist.Normal, (5,), given=mlp(784, 50))).to(dtype)


def log_weights(model: VAE, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return model.log_weights(x)


def test_bfloat16_networks_round_and_densities_do_not() -> None:
    model = vae()
    exact = log_weights(model, X)
    with networks_in("bfloat16"):
        logits = model.decode(torch.ones(3, 5)).base_dist.logits
        rounded = log_weights(model, X)
    assert logits.dtype == rounded.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())  # all that a network in bfloat16 can tell
    error = (rounded - exact).abs().mean()
    assert 1e-4 < error < 0.1  # a sum in bfloat16 would be off by 0.5 nats
    assert torch.equal(log_weights(model, X), exact)


def test_tf32_is_set_within_the_block_alone_and_changes_nothing_on_a_cpu() -> None:
    model, before = vae(), torch.backends.cuda.matmul.allow_tf32
    exact = log_weights(model, X)
    with networks_in("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.equal(log_weights(model, X), exact)
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_trunks_of_several_heads_round_too() -> None:
    mixture = Mixture(dist.Normal, (3,), components=2, given=mlp(4, 10))
    z = torch.randn(6, 4)
    with networks_in("bfloat16"):
        features = mixture.features(z)
    assert features is not None
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())


def test_float64_stays() -> None:
    model, x = vae(torch.float64), X.double()
    with networks_in("bfloat16"):
        assert log_weights(model, x).dtype == torch.float64


def test_training_compiled_and_uncompiled_agree_in_bfloat16() -> None:
    trained = []
    for compiled in (False, True):
        model = vae()
        with Lifted(), interpreted():
            fit(
                *(model, X, AEVB()),
                Training(
                    optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), steps=5, compile=compiled, precision="bfloat16"
                ),
            )
        trained.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-5)
    assert all(p.dtype == torch.float32 for p in trained[0])


def test_an_unknown_precision_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown `precision` 'bfloat'.*bfloat16"), networks_in("bfloat"):  # type: ignore[arg-type]
        pass
    linear = torch.nn.Linear(2, 3)
    assert torch.equal(network_output(linear, torch.ones(2)), linear(torch.ones(2)))


def test_what_was_compiled_in_bfloat16_is_not_used_outside() -> None:
    model = vae()
    with interpreted():
        before = elbo(model, X, 2, compile=True).value
        with networks_in("bfloat16"):
            rounded = elbo(model, X, 2, compile=True).value
        assert elbo(model, X, 2, compile=True).value == before != rounded
