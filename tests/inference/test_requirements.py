"""What algorithms need of a VAE, and the algorithm that a refusal names."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, Mixture, Training, VampPrior, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, ALGORITHMS, Inference, algorithm
from pyro_vae.inference import requirements as needs


class Detached(nn.Module):
    """A likelihood through which no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Conditional(dist.Bernoulli, (5,), given=mlp(2, 4))

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return self.inner(z.detach().round())


class Shared(nn.Module):
    """A posterior around the prior's own parameters."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior, self.own = prior, Conditional(dist.Normal, (2,), given=mlp(5))

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        q = self.own(x)
        return dist.Normal(q.mean + self.prior().mean, q.stddev).to_event(1)


class Tied(nn.Module):
    """A posterior whose dimensions depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return dist.MultivariateNormal(self.loc(x), torch.eye(2))


def normal(likelihood: nn.Module | None = None, posterior: nn.Module | None = None, **options: object) -> VAE:
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    labels = options.get("context_features", 0)
    likelihood = likelihood or Conditional(dist.Bernoulli, (5,), given=mlp(2 + labels, 4))
    return VAE(prior, likelihood, posterior or Conditional(dist.Normal, (2,), given=mlp(5 + labels, 4)), **options)


def meeting_all_needs(name: str) -> VAE:
    return normal(size=4, **({"context_features": 4} if name == "m2" else {}))


def bernoulli(latent: int = 2) -> VAE:
    prior = Conditional(dist.Bernoulli, (latent,), probs=Fixed(0.5))
    likelihood = Conditional(dist.Bernoulli, (5,), given=mlp(latent))
    return VAE(prior, likelihood, Conditional(dist.Bernoulli, (latent,), given=mlp(5)))


def shared() -> VAE:
    prior = Conditional(dist.Normal, (2,))
    return VAE(prior, Conditional(dist.Bernoulli, (5,), given=mlp(2)), Shared(prior))


def dirichlet() -> VAE:
    prior = Conditional(dist.Dirichlet, (3,), concentration=Fixed([1.0, 1.0, 1.0]))
    return VAE(prior, Conditional(dist.Bernoulli, (5,), given=mlp(3)))


def correlated_mixture() -> VAE:
    return VAE(Mixture(dist.MultivariateNormal, (2,), 3), Conditional(dist.Bernoulli, (5,), given=mlp(2, 4)))


# Need: a VAE that does not meet it, what the refusal says, and the algorithms that it names and that do train it.
CASES: dict[str, tuple[Callable[[], VAE], str, tuple[str, ...]]] = {
    "reparameterizable": (bernoulli, "needs a reparameterizable posterior", ("score-function", "rws", "wake-sleep")),
    "differentiable_likelihood": (
        lambda: normal(Detached()),
        "needs a likelihood whose log-density is differentiable in z",
        ("score-function", "rws", "wake-sleep"),
    ),
    "unshared": (shared, "the prior shares `.*` with the posterior", ("aevb",)),
    "movable_latents": (bernoulli, "needs the gradient in z", ("rws", "wake-sleep", "score-function")),
    "enumerable_latents": (normal, "needs latents with finitely many values", ("aevb",)),
    "closed_form_kl": (dirichlet, "has no closed form", ("aevb",)),
    "independent_latents": (
        lambda: normal(posterior=Tied()),
        "the posterior `MultivariateNormal` does not factorise",
        ("beta-vae",),
    ),
    "declared_size": (normal, r"declare the VAE with size=N", ()),
    "no_parameter_prior": (
        lambda: normal(size=4, parameter_prior=dist.Normal(0.0, 1.0)),
        "has its own prior over the generative parameters",
        ("aevb",),
    ),
    "labels_as_context": (normal, "needs a VAE whose context is a one-hot label", ("aevb",)),
    "trainable_draws": (correlated_mixture, "no gradient passes through draws from `Mixture`", ("aevb",)),
}
WHO = {
    "differentiable_likelihood": set(ALGORITHMS) - {"score-function", "enumeration", "wake-sleep", "rws"},
    "unshared": {"wake-sleep", "rws", "mcem", "vb"},
    "movable_latents": {"mcem"},
    "enumerable_latents": {"enumeration"},
    "closed_form_kl": {"analytic-kl"},
    "independent_latents": {"free-bits"},
    "declared_size": {"vb"},
    "no_parameter_prior": {"vb"},
    "trainable_draws": {"mmd"},
    "labels_as_context": {"m2"},
    "reparameterizable": set(ALGORITHMS) - {"score-function", "enumeration", "wake-sleep", "rws", "mcem"},
}


def needing(need: str) -> list[str]:
    return [name for name, made in ALGORITHMS.items() if getattr(needs, need) in made.needs]


def train(vae: VAE, inference: Inference) -> None:
    context = torch.eye(4)[:, : vae.context_features] if vae.context_features else None
    fit(vae, Batch(torch.ones(4, 5), context), inference, Training(optimizer=torch.optim.SGD, steps=1))


def test_every_need_has_its_case_and_is_some_algorithms() -> None:
    declared = {need.__name__ for made in ALGORITHMS.values() for need in made.needs}
    assert declared == set(CASES) == set(WHO)
    assert {need: set(needing(need)) for need in CASES} == WHO


@pytest.mark.parametrize(("need", "name"), [(need, name) for need in CASES for name in needing(need)])
def test_a_vae_that_does_not_meet_a_need_is_refused_before_the_first_step(need: str, name: str) -> None:
    make, says, others = CASES[need]
    vae, inference = make(), algorithm(name)()
    parameters = [p.detach().clone() for p in vae.parameters()]
    with pytest.raises(InputError, match=f"^{type(inference).__name__}: .*{says}") as raised:
        train(vae, inference)
    for other in others:
        assert other in str(raised.value).replace("`", "")
    for before, after in zip(parameters, vae.parameters(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(("need", "other"), [(need, other) for need in CASES for other in CASES[need][2]])
def test_the_algorithms_that_a_refusal_names_do_work(need: str, other: str) -> None:
    train(CASES[need][0](), algorithm(other)())


@pytest.mark.parametrize("family", [dist.LogNormal, dist.Dirichlet, dist.Beta, dist.Poisson], ids=lambda f: f.__name__)
def test_data_need_no_zeros_in_their_support(family: type[dist.TorchDistribution]) -> None:
    """What is checked is checked at draws of the model's own."""
    needs.differentiable_likelihood("AEVB", normal(Conditional(family, (5,), given=mlp(2, 4))))


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"enumeration"}))
def test_a_vae_that_meets_all_needs_is_trained(name: str) -> None:
    train(meeting_all_needs(name), algorithm(name)())


def test_what_is_checked_leaves_the_random_stream_and_the_mode_alone() -> None:
    for training in (True, False):
        for name in sorted(set(ALGORITHMS) - {"enumeration"}):
            vae = meeting_all_needs(name).train(training)
            state = torch.random.get_rng_state()
            algorithm(name)().check(vae)
            assert vae.training is training
            assert torch.equal(torch.random.get_rng_state(), state)


def test_a_shared_posterior_trains_by_aevb() -> None:
    vae = shared()
    AEVB().check(vae)
    assert set(vae.theta).isdisjoint(vae.phi)


# ------------------------------------------------------------------ what a phase moves, moves


def pseudo_inputs(posterior: nn.Module) -> VAE:
    return VAE(VampPrior(5, 3), Conditional(dist.Bernoulli, (5,), given=mlp(2, 4)), posterior)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pseudo_inputs(Conditional(dist.MultivariateNormal, (2,), given=mlp(5, 4))),
        correlated_mixture,
    ],
)
def test_draws_that_have_no_gradient_are_refused_where_they_are_compared(make: Callable[[], VAE]) -> None:
    """The prior's parameters would not move: nothing else in the loss depends on them."""
    vae = make()
    with pytest.raises(InputError, match=r"^MMD: compares draws from the prior, and no gradient passes.*use aevb"):
        algorithm("mmd")().check(vae)
    vae.requires_grad_(False)
    algorithm("mmd")().check(vae)


def test_draws_that_have_a_gradient_move_the_pseudo_inputs() -> None:
    vae = pseudo_inputs(Conditional(dist.Normal, (2,), given=mlp(5, 4)))
    before = vae.prior.raw.detach().clone()
    fit(vae, torch.ones(10, 5), algorithm("mmd")(), Training(steps=3, batch_size=5))
    assert bool((vae.prior.raw != before).all())


@pytest.mark.parametrize(
    ("name", "options"), [("mmd", {"weight": 0.0}), ("beta-vae", {"beta": 0.0}), ("beta-vae", {"beta": 0, "warmup": 3})]
)
def test_a_term_of_weight_zero_moves_nothing_and_that_is_said(name: str, options: dict[str, float]) -> None:
    prior = Conditional(dist.Normal, (2,), loc=Learned(0.0, shape=(2,)), scale=Fixed(1.0))
    vae = VAE(prior, Conditional(dist.Bernoulli, (5,), given=mlp(2, 4)))
    with pytest.raises(InputError, match=r"its loss does not depend on `prior\.learned_loc`"):
        fit(vae, torch.ones(10, 5), algorithm(name)(**options), Training(steps=3, batch_size=5))
    vae.prior.requires_grad_(False)
    fit(vae, torch.ones(10, 5), algorithm(name)(**options), Training(steps=3, batch_size=5))
