"""Discrete latents: the exact ELBO as a sum over their values, and what trains them."""

from __future__ import annotations

import functools
import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from replicas import all_losses, seeded
from torch import Tensor
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, Network, Training, fit, mlp
from pyro_vae.distributions.enumeration import latent_values
from pyro_vae.errors import InputError
from pyro_vae.inference import ALGORITHMS, IWAE, RWS, Enumeration, Inference, ScoreFunction, WakeSleep, algorithm
from pyro_vae.inference.requirements import reparameterizable

X = (torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) < 0.5).double()


def bernoulli(latent: int = 3, cells: int = 5) -> VAE:
    torch.manual_seed(0)
    prior = Conditional(dist.Bernoulli, (latent,), logits=Learned(0.3, shape=(latent,)))
    likelihood = Conditional(dist.Bernoulli, (cells,), given=mlp(latent, 4))
    return VAE(prior, likelihood, Conditional(dist.Bernoulli, (latent,), given=mlp(cells, 4))).double()


def one_hot(values: int = 3, cells: int = 5) -> VAE:
    torch.manual_seed(0)
    prior = Conditional(dist.OneHotCategorical, (values,), logits=Learned(0.0, shape=(values,)))
    likelihood = Conditional(dist.Bernoulli, (cells,), given=mlp(values))
    return VAE(prior, likelihood, Conditional(dist.OneHotCategorical, (values,), given=mlp(cells, 4))).double()


def categorical(values: int = 4, cells: int = 5) -> VAE:
    """z is a whole number."""
    torch.manual_seed(0)
    prior = Conditional(dist.Categorical, (1,), logits=Learned(0.1, shape=(1, values)))
    likelihood = Conditional(dist.Bernoulli, (cells,), given=mlp(1, 4))
    posterior = Conditional(dist.Categorical, (1,), given=mlp(cells, 4), logits=Network(shape=(values,)))
    return VAE(prior, likelihood, posterior).double()


def by_hand(vae: VAE, x: Tensor, values: list[Tensor]) -> Tensor:
    """The ELBO of each datum, value by value."""
    q = vae.encode(x)
    total = torch.zeros(len(x)).double()
    for value in values:
        z = value.double().expand(len(x), -1)
        log_q = q.log_prob(z)
        total = total + log_q.exp() * (vae.prior().log_prob(z) + vae.decode(z).log_prob(x) - log_q)
    return total


BINARY = [torch.tensor(v) for v in itertools.product([0.0, 1.0], repeat=3)]
MODELS = pytest.mark.parametrize(
    ("make", "values"),
    [(bernoulli, BINARY), (one_hot, list(torch.eye(3))), (categorical, list(torch.arange(4.0).unsqueeze(-1)))],
    ids=["Bernoulli", "OneHotCategorical", "Categorical"],
)


def gradient(value: Tensor, vae: VAE) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(vae.parameters()))])


@MODELS
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.5, 1.5, 1.0, 2.0, 0.0]).double()])
def test_it_is_the_sum_over_all_values(make: type, values: list[Tensor], weight: Tensor | None) -> None:
    vae = make()
    (loss,) = all_losses(Enumeration(), vae, Batch(X, weight=weight))
    elbo = by_hand(vae, X, values)
    elbo = (elbo if weight is None else weight * elbo).mean()
    torch.testing.assert_close(loss.bound, elbo.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(-loss.value, vae), gradient(elbo, vae), rtol=0, atol=1e-12)


def test_it_is_pyros_own_enumeration() -> None:
    vae = one_hot()
    (loss,) = all_losses(Enumeration(), vae, X)
    theirs = TraceEnum_ELBO(max_plate_nesting=1)
    value = theirs.differentiable_loss(vae.programs.model, config_enumerate(vae.programs.guide), X) / len(X)
    torch.testing.assert_close(loss.value, value, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(loss.value, vae), gradient(value, vae), rtol=0, atol=1e-12)


@MODELS
@pytest.mark.parametrize(
    "inference", [ScoreFunction("none", 1), ScoreFunction("leave-one-out", 4)], ids=lambda i: i.baseline
)
def test_its_gradient_is_the_mean_of_the_score_functions(
    make: type, values: list[Tensor], inference: Inference
) -> None:
    vae = make()
    exact = gradient(all_losses(Enumeration(), vae, X)[0].value, vae)
    copies = X.repeat(200, 1)
    samples = torch.stack([gradient(all_losses(inference, vae, copies, seed)[0].value, vae) for seed in range(100)])
    assert_mean(samples, exact)


@MODELS
def test_draws_of_the_other_algorithms_have_its_bound_or_a_tighter_one(make: type, values: list[Tensor]) -> None:
    vae, copies = make(), X.repeat(100, 1)
    exact = all_losses(Enumeration(), vae, X)[0].bound
    log_p = torch.stack([vae.log_joint(v.double().expand(6, -1), X) for v in values]).logsumexp(0).mean()
    samples = {
        i: torch.stack([all_losses(i, vae, copies, seed)[0].bound for seed in range(50)])
        for i in (ScoreFunction(), WakeSleep(), RWS(20))
    }
    for inference in list(samples)[:2]:
        assert_mean(samples[inference], exact)
    assert float(exact) < float(samples[list(samples)[2]].mean()) < float(log_p.detach()) + 1e-3


# ------------------------------------------------------------------ what can be listed


def test_the_values_are_all_joint_values_whether_or_not_cells_are_independent() -> None:
    independent = dist.Bernoulli(torch.full((4, 3), 0.2)).to_event(1)
    assert latent_values(independent).shape == (8, 4, 3)
    assert {tuple(v.tolist()) for v in latent_values(independent)[:, 0]} == set(itertools.product([0.0, 1.0], repeat=3))
    torch.testing.assert_close(independent.log_prob(latent_values(independent)).exp().sum(0), torch.ones(4))
    joint = dist.OneHotCategorical(torch.rand(4, 3))
    assert latent_values(joint).shape == (3, 4, 3)
    rows = dist.OneHotCategorical(torch.rand(4, 2, 3)).to_event(1)
    assert latent_values(rows).shape == (9, 4, 2, 3)
    torch.testing.assert_close(rows.log_prob(latent_values(rows)).exp().sum(0), torch.ones(4))
    cell = dist.Categorical(torch.rand(4, 5))
    assert latent_values(cell).tolist() == [[i] * 4 for i in range(5)]


def test_continuous_unbounded_and_too_many_values_are_refused() -> None:
    normal = VAE(Conditional(dist.Normal, (2,)), Conditional(dist.Bernoulli, (5,), given=mlp(2)))
    with pytest.raises(InputError, match=r"^Enumeration: needs latents with finitely many values.*aevb for continuous"):
        Enumeration().check(normal)
    with pytest.raises(InputError, match=r"of `Poisson` cannot be listed; use score-function or rws"):
        latent_values(dist.Poisson(torch.ones(4, 2)).to_event(1))
    latent_values(dist.Bernoulli(torch.full((1, 12), 0.5)).to_event(1))
    with pytest.raises(InputError, match=r"^Enumeration: z has 2\^13 values, more than the 4096.*use score-function"):
        Enumeration().check(bernoulli(latent=13))


class Impossible(torch.nn.Module):
    """A posterior in which the last of three values has probability 0."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([0.3, 0.0]).double())

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        logits = torch.cat([self.logits, torch.full((1,), -torch.inf).double()])
        return dist.OneHotCategorical(logits=logits.expand(*x.shape[:-1], 3))


def test_a_value_of_probability_zero_adds_nothing() -> None:
    whole = one_hot()
    vae = VAE(whole.prior, whole.likelihood, Impossible())
    with seeded(0):
        loss = next(Enumeration().losses(vae, X))
    elbo = by_hand(vae, X, list(torch.eye(3))[:2]).mean()
    torch.testing.assert_close(loss.bound, elbo.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(-loss.value, vae), gradient(elbo, vae), rtol=0, atol=1e-12)


# ------------------------------------------------------------------ what trains them


@pytest.mark.parametrize("name", ALGORITHMS)
def test_pathwise_algorithms_refuse_them_and_name_one_that_works(name: str) -> None:
    inference = algorithm(name)()
    if reparameterizable in inference.needs:
        message = rf"^{type(inference).__name__}: needs a reparam.*use score-function, rws or wake-sleep"
    elif name == "mcem":
        message = r"^MCEM: Hamiltonian .* discrete; use rws, wake-sleep or score-function"
    else:
        assert name in ("score-function", "enumeration", "rws", "wake-sleep")
        fit(bernoulli(), X, inference, Training(optimizer=torch.optim.SGD, steps=1))
        return
    with pytest.raises(InputError, match=message):
        fit(bernoulli(), X, inference, Training(optimizer=torch.optim.SGD, steps=1))


def patterns(kind: str) -> tuple[VAE, Tensor, list[Tensor]]:
    """As many equally frequent patterns as z has values."""
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]).double()
    likelihood = Conditional(dist.Bernoulli, (4,), given=mlp(2 if kind == "Bernoulli" else 4))
    if kind == "Bernoulli":
        prior = Conditional(dist.Bernoulli, (2,), probs=Fixed(0.5))
        vae = VAE(prior, likelihood, Conditional(dist.Bernoulli, (2,), given=mlp(4)))
        return vae.double(), x, [torch.tensor(v) for v in itertools.product([0.0, 1.0], repeat=2)]
    prior = Conditional(dist.OneHotCategorical, (4,), probs=Fixed([0.25] * 4))
    vae = VAE(prior, likelihood, Conditional(dist.OneHotCategorical, (4,), given=mlp(4)))
    return vae.double(), x, list(torch.eye(4))


TRAINED = [ScoreFunction(num_particles=10), RWS(10), WakeSleep(), Enumeration()]
KINDS = dict.fromkeys(("score-function", "wake-sleep", "enumeration"), "Bernoulli") | {"rws": "OneHotCategorical"}


@pytest.mark.parametrize(
    ("inference", "kind"),
    [
        pytest.param(i, kind, id=f"{i.name}-{kind}", marks=() if KINDS[i.name] == kind else pytest.mark.slow)
        for i in TRAINED
        for kind in ("Bernoulli", "OneHotCategorical")
    ],
)
def test_they_train_a_discrete_posterior_to_the_entropy_of_the_data(inference: Inference, kind: str) -> None:
    """The best ELBO is minus the log of the number of patterns; it is summed exactly over all values of z."""
    vae, x, values = patterns(kind)
    adam, steps = functools.partial(torch.optim.Adam, lr=0.15), 500 if inference.name == "wake-sleep" else 200
    fit(vae, x.repeat(10, 1), inference, Training(optimizer=adam, steps=steps, batch_size=40))
    elbo = float(by_hand(vae, x, values).mean().detach())
    assert -math.log(4) - 0.05 < elbo < -math.log(4)


def test_iwae_is_refused_where_rws_is_the_same_bound() -> None:
    with pytest.raises(InputError, match="rws"):
        IWAE().check(bernoulli())
    with seeded(0):
        assert next(RWS(4).losses(bernoulli(), X)).bound is not None
