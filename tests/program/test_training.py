"""A program in `fit` and in the estimates of a trained model, against exact answers and the VAE of the same model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from annealing import short_pilot
from linear_gaussian import LinearGaussian
from programs import covariances, exact_state_guide, linear_gaussian, state_space
from torch import Tensor, nn
from torch.distributions import constraints
from z_test import assert_mean

from pyro_vae import Training, fit
from pyro_vae.errors import InputError
from pyro_vae.evaluation import (
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    elbo,
    latent_kl,
    log_marginal,
    mutual_information,
    posterior_means,
    simulation_based_calibration,
)
from pyro_vae.inference import AEVB, ALGORITHMS, IWAE, MCEM, RWS, STL, AnalyticKL, FreeBits, WakeSleep
from pyro_vae.program import Program

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(60)
STEPS = Training(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), steps=8, batch_size=20)


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("inference", [AEVB(), AnalyticKL(), IWAE(), RWS(), WakeSleep()], ids=repr)
def test_compiled_and_replicated_steps_are_the_uncompiled_ones(inference) -> None:
    program = linear_gaussian(MODEL, MODEL.exact_encoder(1.5))
    runs = [copy.deepcopy(program) for _ in range(4)]
    start = parameters(program)
    fit(runs[0], X, copy.deepcopy(inference), STEPS, seed=1)
    fit(runs[1], X, copy.deepcopy(inference), replace(STEPS, compile=True), seed=1)
    fit(runs[2:], X, inference, replace(STEPS, compile=True), seed=[1, 2])
    assert float((parameters(runs[0]) - start).abs().max()) > 1e-2
    torch.testing.assert_close(parameters(runs[1]), parameters(runs[0]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parameters(runs[2]), parameters(runs[0]), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(parameters(runs[3]), parameters(runs[0]))
    assert torch.equal(parameters(program), start)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_trains_a_program_or_says_why_not(name) -> None:
    program = linear_gaussian(MODEL, MODEL.exact_encoder(1.5), size=60)
    if name in ("enumeration", "autoencoder", "m2"):
        with pytest.raises(InputError, match=r"use |declare "):
            fit(program, X, ALGORITHMS[name](), STEPS)
        return
    start = parameters(program)
    quick = {"mcem": {"transitions": 1, "updates": 1}}.get(name, {})
    fit(program, X, ALGORITHMS[name](**quick), replace(STEPS, steps=2))
    assert not torch.equal(parameters(program), start)


def test_free_bits_hold_the_kl_of_each_site() -> None:
    """Two sites, of which the second has no KL: below the threshold no gradient reaches its guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("idle", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("weight", x.new_tensor(0.5))
        idle = pyro.param("idle_loc", x.new_tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x, 0.7))
            pyro.sample("idle", dist.Normal(idle, 1.0))

    x = torch.linspace(-2, 2, 9).double()
    program = Program(model, guide, x)
    of_weight, of_idle = torch.autograd.grad(FreeBits(0.25).loss(program, x).value, list(program.phi.values()))
    assert of_idle == 0
    assert of_weight != 0


def test_a_posterior_over_what_all_data_share_finds_the_exact_one() -> None:
    """mu ~ N(0, 1), z_i ~ N(mu, 1), x_i ~ N(z_i, 1): mu given x is N(sum x / (N + 2), 2 / (N + 2))."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc, weight = pyro.param("loc", x.new_tensor(0.0)), pyro.param("weight", x.new_tensor(0.3))
        scale = pyro.param("scale", x.new_tensor(0.5), constraint=constraints.positive)
        mu = pyro.sample("mu", dist.Normal(loc, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x + (1 - weight) * mu, 0.5**0.5))

    x = torch.randn(30, generator=torch.Generator().manual_seed(2)).double() + 1
    program = Program(model, guide, x[:3], size=30)
    twin = copy.deepcopy(program)
    training = Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.02), steps=30, batch_size=10)
    fit(program, x, STL(num_particles=2), replace(training, compile=True), seed=1)
    fit(twin, x, STL(num_particles=2), training, seed=1)
    torch.testing.assert_close(parameters(program), parameters(twin), rtol=1e-9, atol=1e-9)
    fit(program, x, STL(num_particles=2), replace(training, steps=400, batch_size=30))
    loc, weight, log_scale = (p.item() for p in program.phi.values())
    assert loc == pytest.approx(float(x.sum()) / 32, abs=0.03)
    assert weight == pytest.approx(0.5, abs=0.02)
    assert math.exp(log_scale) == pytest.approx((2 / 32) ** 0.5, abs=0.02)
    given = program.at_globals(seed=0)
    exact = dist.Normal(given._fixed["mu"], 2**0.5).log_prob(x)
    torch.testing.assert_close(log_marginal(program, x, 500).pointwise, exact, rtol=0, atol=0.02)


def test_a_checkpoint_resumes_to_the_last_bit(tmp_path) -> None:
    program = linear_gaussian(MODEL, MODEL.exact_encoder(1.5))
    whole, first, second = (copy.deepcopy(program) for _ in range(3))
    fit(whole, X, AEVB(), STEPS, seed=3)
    fit(first, X, AEVB(), replace(STEPS, steps=5), seed=3, checkpoint=tmp_path / "run")
    fit(second, X, AEVB(), STEPS, seed=3, checkpoint=tmp_path / "run")
    assert torch.equal(parameters(second), parameters(whole))


def test_training_finds_the_exact_posterior() -> None:
    """The generative parameters fixed, AEVB takes the ELBO to log p(x)."""
    program = linear_gaussian(MODEL, MODEL.exact_encoder(2.0))
    for parameter in program.theta.values():
        parameter.requires_grad_(False)
    exact = MODEL.log_marginal(X).mean()
    before = elbo(program, X, 200).value
    fit(program, X, AEVB(), Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.02), steps=400, batch_size=60))
    after = elbo(program, X, 200).value
    assert before < exact - 0.3
    assert exact - 0.02 < after < exact + 0.02


def test_mcem_moves_the_model_alone() -> None:
    program = linear_gaussian(MODEL, MODEL.exact_encoder())
    theta, phi = (copy.deepcopy(list(group.values())) for group in (program.theta, program.phi))
    fit(program, X, MCEM(transitions=2, updates=1), STEPS)
    assert all(torch.equal(a, b) for a, b in zip(program.phi.values(), phi, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(program.theta.values(), theta, strict=True))


def sequences(length: int) -> tuple[Program, Tensor, Tensor]:
    """A state space with a guide that ignores what comes later, data, and their exact log p(x)."""
    exact, model = state_space(length)

    def filtering(x: Tensor) -> None:
        z = x.new_zeros(())
        with pyro.plate("data", x.shape[0]):
            for t in range(length):
                z = pyro.sample(f"z_{t}", dist.Normal(0.4 * z + 0.5 * x[:, t], x.new_tensor(0.45)))

    x = torch.randn(6, length, generator=torch.Generator().manual_seed(1)).double()
    return Program(model, filtering, x[:2]), x, exact(x)


def test_log_p_of_sequences_by_importance_sampling_and_by_annealing() -> None:
    program, x, exact = sequences(3)
    with short_pilot():
        annealed = annealed_importance_sampling(program, x, 15, 16)
    for estimate in (log_marginal(program, x, 2000), annealed):
        error = estimate.diagnostics["pointwise_error"]
        assert_mean(estimate.pointwise + estimate.diagnostics["bias"], exact, error)
    assert elbo(program, x, 500).value < exact.mean() - 0.01


def test_posterior_means_and_the_kl_of_each_site() -> None:
    """With the smoother as guide, means are the smoother's, and the KL of z is log p(x|z) - log p(x) on average."""
    _, model = state_space(3)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(5)).double()
    program = Program(model, exact_state_guide(3), x[:2])
    states, observations = covariances(3, 0.8, 0.6, 0.5)
    means = x @ (states @ torch.linalg.inv(observations)).T
    assert_mean(posterior_means(program, x).mean(0), means.mean(0), torch.full((3,), 0.45 / math.sqrt(40_000)).double())
    covariance = states - states @ torch.linalg.inv(observations) @ states
    prior = dist.MultivariateNormal(torch.zeros(3).double(), states)
    kl = torch.distributions.kl_divergence(dist.MultivariateNormal(means, covariance), prior).mean()
    found = latent_kl(program, x, 500)
    assert found.names == ("z_0", "z_1", "z_2")
    assert_mean(found.value.sum().reshape(1), kl.reshape(1), found.standard_error.norm().reshape(1))


def test_mutual_information_and_calibration() -> None:
    program, vae = linear_gaussian(MODEL, MODEL.exact_encoder()), MODEL.vae(MODEL.exact_encoder())
    mine, its = (mutual_information(each, X[:20], 20) for each in (program, vae))
    torch.testing.assert_close(mine.pointwise, its.pointwise, rtol=1e-9, atol=1e-9)
    mine, its = (simulation_based_calibration(each, 50, 9) for each in (program, vae))
    assert torch.equal(mine.ranks, its.ranks)
    with short_pilot():
        sandwich = bidirectional_monte_carlo(program, 2, temperatures=2, chains=2)
    assert sandwich.data.shape == (2, 5)


def test_data_of_named_tensors_are_trained_and_evaluated() -> None:
    """A mapping of ragged sequences and their lengths, compiled and in replicates too."""
    lengths = torch.tensor([3, 1, 2, 3, 2, 1])
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(3)).double()
    data = {"x": x, "length": lengths}

    def model(batch: dict[str, Tensor]) -> None:
        with pyro.plate("data", len(batch["x"])):
            z = pyro.sample("z", dist.Normal(batch["x"].new_tensor(0.0), 1.0))
            for t in range(3):
                with pyro.poutine.mask(mask=t < batch["length"]):
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch["x"][:, t])

    def guide(batch: dict[str, Tensor]) -> None:
        weight = pyro.param("weight", batch["x"].new_tensor(0.1))
        known = torch.arange(3) < batch["length"].unsqueeze(-1)
        precision = 1.0 + batch["length"]
        with pyro.plate("data", len(batch["x"])):
            loc = weight * (batch["x"] * known).sum(1) * 4 / precision
            pyro.sample("z", dist.Normal(loc, precision.double() ** -0.5))

    program = Program(model, guide, {name: field[:2] for name, field in data.items()})
    runs = [copy.deepcopy(program) for _ in range(4)]
    steps = replace(STEPS, batch_size=3)
    fit(runs[0], data, STL(), steps, seed=1, validation=data)
    fit(runs[1], data, STL(), replace(steps, compile=True), seed=1)
    fit(runs[2:], data, STL(), replace(steps, compile=True), seed=[1, 2])
    torch.testing.assert_close(parameters(runs[1]), parameters(runs[0]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parameters(runs[2]), parameters(runs[0]), rtol=1e-9, atol=1e-9)
    exact = torch.stack(
        [
            dist.MultivariateNormal(torch.zeros(n).double(), torch.eye(n).double() + 1).log_prob(row[:n])
            for row, n in zip(x, lengths.tolist(), strict=True)
        ]
    )
    with torch.no_grad():
        next(iter(program.phi.values())).fill_(0.25)  # the exact posterior
    for estimate in (log_marginal(program, data, 10), elbo(program, data, 2)):
        torch.testing.assert_close(estimate.pointwise, exact, rtol=0, atol=1e-10)
    with short_pilot():
        annealed = annealed_importance_sampling(program, data, 3, 16, start="encoder")
    torch.testing.assert_close(annealed.pointwise, exact, rtol=0, atol=1e-10)
