"""The inference gap of a program, against closed forms and against the VAE of the same model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from programs import GaussianDecoder, covariances, linear_gaussian, state_space
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, constraints, kl_divergence
from z_test import assert_mean

from pyro_vae import VAE, Conditional, mlp
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, gap, inference_gap
from pyro_vae.program import Program
from pyro_vae.runtime.random_streams import isolated

DIAGONAL, OBLIQUE = LinearGaussian.random(5, 2), LinearGaussian.random(5, 2, diagonal=False)
N = 8
X = DIAGONAL.sample(N)
GAPS = ("log_marginal", "best_elbo", "elbo", "approximation", "amortization", "total")


def assert_estimate(estimate: Estimate, exact: Tensor, bias: Tensor | float = 0.0) -> None:
    assert_mean(estimate.pointwise - bias, exact.detach(), estimate.diagnostics["pointwise_error"])


def test_a_family_with_the_exact_posterior_leaves_kl_to_it_as_amortization_gap() -> None:
    """The encoder is off by 0.3 and 1.6 times too wide, with a scale that is the same for all data."""
    exact = DIAGONAL.exact_encoder(1.6)
    program = linear_gaussian(DIAGONAL, type(exact)(exact.V, exact.c + 0.3, exact.t))
    result = inference_gap(program, X, steps=100)
    assert float(result.approximation.pointwise.abs().max()) < 1e-3  # what the search leaves over
    torch.testing.assert_close(result.best_elbo.pointwise, DIAGONAL.log_marginal(X), rtol=0, atol=1e-3)
    loc, scale = exact(X)
    q = MultivariateNormal(loc + 0.3, scale_tril=scale.diag().expand(N, 2, 2))
    kl = kl_divergence(q, DIAGONAL.posterior(X))
    assert float(kl.mean()) > 0.3
    assert_estimate(result.amortization, kl)
    assert_estimate(result.total, kl)
    assert bool(result.best_elbo.diagnostics["converged"].all())


def both(model: LinearGaussian) -> tuple[VAE, Program]:
    """A VAE and a program with one network, which outputs locations and log scales."""
    exact = model.vae()
    posterior = Conditional(dist.Normal, (2,), given=mlp(5)).double()
    with isolated(3), torch.no_grad():
        posterior.head.weight.copy_(0.3 * torch.randn(4, 5))
    decode, encode = GaussianDecoder(model), nn.ModuleDict({"network": posterior})

    def generative(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(*decode(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc, log_scale = encode["network"].network_output(x).chunk(2, dim=-1)
        pyro.module("encoder", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return VAE(exact.prior, exact.likelihood, posterior), Program(generative, guide, X[:2])


def test_a_program_has_the_gap_of_the_vae_of_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap, "_RUNS", 2)
    vae, program = both(OBLIQUE)
    its, mine = (inference_gap(each, X, steps=60, num_samples=300) for each in (vae, program))
    assert its.amortization.value > 0.1
    for name in GAPS:
        a, b = getattr(mine, name), getattr(its, name)
        torch.testing.assert_close(a.pointwise, b.pointwise, rtol=1e-7, atol=1e-7)
        assert a.standard_error == pytest.approx(b.standard_error, rel=1e-6, abs=1e-9)


def filtering(x: Tensor) -> None:
    z = x.new_zeros(())
    with pyro.plate("data", x.shape[0]):
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Normal(-0.2 * z + 0.5 * x[:, t], x.new_tensor(0.45)))


def test_a_filtering_guide_keeps_its_dependence_on_earlier_states() -> None:
    r"""q(z_t|z_{t-1}) = N(-0.2 z_{t-1} + 0.5 x_t + a_t, (0.45 exp b_t)²): its best a and b in closed form.

    With z = L^{-1}(m + S^{1/2} e), L having ones and 0.2 below, and p(z|x) of precision P: the best mean is the
    exact one, the best variances are 1 / diag(A) with A = L^{-T} P L^{-1}, and KL(q* || p) is half of
    sum log diag(A) - log det P.
    """
    length = 3
    log_marginal, model = state_space(length)
    x = torch.randn(N, length, generator=torch.Generator().manual_seed(1)).double()
    states, observations = covariances(length, 0.8, 0.6, 0.5)
    gain = states @ torch.linalg.inv(observations)
    posterior = MultivariateNormal(x @ gain.T, states - gain @ states)
    precision = torch.linalg.inv(states - gain @ states)
    inverse = torch.linalg.inv(torch.eye(length).double() + 0.2 * torch.diag(torch.ones(length - 1), -1).double())
    approximation = ((inverse.T @ precision @ inverse).diagonal().log().sum() - precision.logdet()) / 2
    start = MultivariateNormal(0.5 * x @ inverse.T, 0.45**2 * inverse @ inverse.T)
    total = kl_divergence(start, posterior)
    assert float(approximation) > 0.1
    assert float((total - approximation).min()) > 0.02
    result = inference_gap(Program(model, filtering, x[:2]), x, num_samples=4000, steps=150)
    bias = -result.log_marginal.diagnostics["pointwise_error"].square() / 2
    assert_estimate(result.log_marginal, log_marginal(x), bias)
    assert_estimate(result.approximation, approximation.expand(N), bias)
    assert_estimate(result.amortization, total - approximation)
    assert_estimate(result.total, total, bias)


def shared(x: Tensor, half: str) -> None:
    r"""mu ~ N(0, 1); z_ij ~ N(mu, 1) and x_ij ~ N(z_ij, 1) in an inner plate of 3; a positive scale beside them."""
    loc, scale = (x.new_tensor(0.0), 1.0) if half == "model" else (x.new_tensor(0.4), 0.2)
    mu = pyro.sample("mu", dist.Normal(loc, scale))
    with pyro.plate("data", len(x), dim=-2):
        if half == "model":
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample("count", dist.Poisson(rate), obs=x[:, 3:])
        else:
            weight = pyro.param("weight", x.new_tensor(0.7), constraint=constraints.positive)
            pyro.sample("rate", dist.Gamma(weight * (1 + x[:, 3:]), x.new_tensor(1.0)))
        with pyro.plate("cells", 3, dim=-1):
            if half == "model":
                z = pyro.sample("z", dist.Normal(mu, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, :3])
            else:
                pyro.sample("z", dist.Normal(0.2 * x[:, :3], x.new_tensor(0.9)))


def log_weights(program: Program, x: Tensor, numbers: Tensor) -> Tensor:
    """Log weights of three draws from the posterior with these free numbers."""
    batch = program.check(x)
    assert program.local_parameters(batch).shape == numbers.shape
    assert torch.count_nonzero(program.local_parameters(batch)) == 0
    q = program.local_posterior(batch)(numbers)
    z = q.rsample((3,))
    torch.testing.assert_close(q.log_prob(z.clone()), q.log_prob(z), rtol=1e-9, atol=1e-9)
    return program.log_joint_of(z, batch) - q.log_prob(z)


def test_inner_plates_several_families_and_latents_that_all_data_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given mu, the family has the exact posterior: gamma for the rate, and a normal for each cell."""
    counts = torch.poisson(torch.full((N,), 2.0), generator=torch.Generator().manual_seed(5)).double()
    x = torch.cat([X[:, :3], counts.unsqueeze(-1)], dim=1)
    program = Program(lambda x: shared(x, "model"), lambda x: shared(x, "guide"), x[:2], size=N)
    given = program.at_globals(seed=4)
    mu, cells = given._fixed["mu"], x[:, :3]
    loc, scale = (mu + cells) / 2, x.new_tensor(math.sqrt(0.5))
    # The numbers of a datum: those of the rate's two parameters, and three for each of the two of z.
    numbers = torch.cat(
        [
            ((2 + counts).log() - (0.7 * (1 + counts)).log()).unsqueeze(-1),
            x.new_full((N, 1), math.log(2.0)),
            loc - 0.2 * cells,
            (scale / 0.9).log().expand(N, 3),
        ],
        dim=1,
    )
    # The count given its gamma rate is negative-binomial with r = 2 and probability 1 / 2.
    exact = dist.Normal(mu, math.sqrt(2)).log_prob(cells).sum(1)
    exact = exact + dist.NegativeBinomial(2.0, probs=x.new_tensor(0.5)).log_prob(counts)
    torch.testing.assert_close(log_weights(given, x, numbers), exact.expand(3, N), rtol=0, atol=1e-9)
    kl = kl_divergence(dist.Normal(0.2 * cells, x.new_tensor(0.9)), dist.Normal(loc, scale)).sum(1)
    kl = kl + kl_divergence(dist.Gamma(0.7 * (1 + counts), x.new_tensor(1.0)), dist.Gamma(2 + counts, x.new_tensor(2)))
    monkeypatch.setattr(gap, "_RUNS", 1)
    result = inference_gap(program, x, steps=20, seed=4)
    assert_estimate(result.elbo, exact - kl)
    assert result.best_elbo.value > result.elbo.value + 0.1


def test_a_bijection_and_a_mask_of_the_guide_stay_as_they_are() -> None:
    """z = exp(u), with the exact posterior of u in the family; the second datum has no likelihood at all."""
    seen = torch.arange(N) != 1

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.log(), 0.5).to_event(1).mask(seen[: len(x)]), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(x.new_zeros(2), 1.0).expand((len(x), 2)).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [torch.distributions.ExpTransform()]))

    x = X[:, :2]
    best = torch.cat([0.8 * x, x.new_full((N, 2), math.log(0.2) / 2)], dim=1)
    numbers = torch.where(seen.unsqueeze(-1), best, 0.0)  # without a likelihood, the posterior is the prior
    exact = torch.where(seen, dist.Normal(0.0, x.new_tensor(1.25).sqrt()).log_prob(x).sum(1), 0.0)
    found = log_weights(Program(model, guide, x), x, numbers)
    torch.testing.assert_close(found, exact.expand(3, N), rtol=0, atol=1e-9)


def test_repeats_are_bit_equal_and_the_program_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap, "_RUNS", 1)
    program = linear_gaussian(OBLIQUE, DIAGONAL.exact_encoder(1.3)).train()
    before, state = {k: v.clone() for k, v in program.state_dict().items()}, torch.get_rng_state()
    first, again = (inference_gap(program, X, steps=10, num_samples=50, seed=3) for _ in range(2))
    assert torch.equal(first.approximation.pointwise, again.approximation.pointwise)
    assert all(torch.equal(before[name], value) for name, value in program.state_dict().items())
    assert all(parameter.grad is None for parameter in program.parameters())
    assert program.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store())


def test_particles_one_after_the_other_have_the_same_family() -> None:
    """The free numbers have no dimension of particles."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1))
            rows, _ = z.shape
            pyro.sample("x", dist.Normal(z.reshape(rows, 2) @ DIAGONAL.W.T + DIAGONAL.b, DIAGONAL.s).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    with pytest.warns(UserWarning, match="particles do not run at once"):
        looped = Program(model, guide, X[:2])
    best = DIAGONAL.posterior(X)
    numbers = torch.cat([best.mean - X[:, :2], best.stddev.log().expand(N, 2)], dim=1).detach()
    exact = DIAGONAL.log_marginal(X).expand(3, N)
    torch.testing.assert_close(log_weights(looped, X, numbers), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (lambda x: dist.Uniform(x - 1, x + 1), r"`z` has none: there is no transform onto the constraint of `Uniform"),
        (lambda x: dist.Delta(x), r"`z` has none: there is no transform onto the constraint of `Delta\.v`"),
    ],
)
def test_a_site_without_free_parameters_is_named(q: Callable[[Tensor], Any], message: str) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    x = X[:, 0]
    with pytest.raises(InputError, match=r"^inference_gap: needs free parameters of each datum, .*site " + message):
        inference_gap(Program(model, guide, x), x)


def test_a_site_without_gradient_is_named() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=x))

    with pytest.raises(InputError, match="site `k` has none: draws of `Bernoulli` have no gradient; draw it from"):
        inference_gap(Program(model, guide, X[:, 0]), X[:, 0])
