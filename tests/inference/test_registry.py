"""What the losses of all algorithms share: units, scales, weights of the data, the prior over parameters."""

from __future__ import annotations

import copy
import functools

import pyro.distributions as dist
import pytest
import torch
from algorithm_cases import made
from linear_gaussian import LinearGaussian
from replicas import all_losses
from torch import Tensor
from torch.distributions import Normal

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, Training, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, ALGORITHMS, Inference, Loss, algorithm
from pyro_vae.inference.interface import check_choice, check_count, check_number, surrogate
from pyro_vae.vae.parameter_prior import ParameterPrior

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)
ONES = torch.ones(8, dtype=torch.float64)
WEIGHT = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def setting(name: str, **options: object) -> tuple[VAE, Tensor | Batch]:
    """The oracle's VAE with q 1.6 times too wide, and its data; another one where the algorithm needs that."""
    if name == "m2":
        return labelled(**options)
    if name != "enumeration":
        return MODEL.vae(MODEL.exact_encoder(1.6), **options), X
    torch.manual_seed(0)
    prior = Conditional(dist.Bernoulli, (2,), logits=Learned(0.3, shape=(2,)))
    likelihood = Conditional(dist.Bernoulli, (5,), given=mlp(2, 4))
    posterior = Conditional(dist.Bernoulli, (2,), given=mlp(5, 4))
    return VAE(prior.double(), likelihood.double(), posterior.double(), **options), (X > 0).double()


def labelled(**options: object) -> tuple[VAE, Batch]:
    """A VAE given a label, and data of which every other one has its label."""
    torch.manual_seed(0)
    likelihood = Conditional(dist.Normal, (5,), given=mlp(2 + 3), scale=Learned(0.7))
    posterior = Conditional(dist.Normal, (2,), given=mlp(5 + 3))
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    context = torch.eye(3, dtype=torch.float64).repeat(3, 1)[:8]
    context[::2] = torch.nan
    vae = VAE(prior, likelihood, posterior, context_features=3, **options)
    return vae.double(), Batch(X, context)


def numbers(inference: Inference, vae: VAE, data: Tensor | Batch, seed: int = 2) -> Tensor:
    """Values and bounds of all phases that move something, from the same state each time."""
    losses = all_losses(copy.deepcopy(inference), vae, data, seed)
    moving = [loss for phase, loss in zip(inference.phases, losses, strict=True) if phase.moves]
    return torch.stack([t for loss in moving for t in loss if t is not None]).detach()


# Whose bound puts the KL in closed form beside a draw of the reconstruction, so that draws do not cancel;
# the one of discrete latents, and the one of labels.
ELSEWHERE = {"analytic-kl", "beta-vae", "free-bits", "mmd", "vb", "enumeration", "m2"}


@pytest.mark.parametrize("name", [n for n, a in ALGORITHMS.items() if a.has_bound and n not in ELSEWHERE])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("size", [None, 50])
def test_at_the_exact_posterior_the_bound_is_the_mean_of_log_marginal(
    name: str, weight: Tensor | None, size: int | None
) -> None:
    exact = MODEL.log_marginal(X) if weight is None else MODEL.log_marginal(X) * weight
    loss = all_losses(algorithm(name)(), MODEL.vae(MODEL.exact_encoder(), size=size), Batch(X, weight=weight))[0]
    torch.testing.assert_close(loss.bound, exact.mean(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_losses_are_per_datum_whatever_the_size_of_the_data_set(name: str) -> None:
    """But for full variational Bayes, which weighs its KL of theta against all data, and only in its value."""
    (small, x), (large, _), inference = setting(name, size=8), setting(name, size=8000), algorithm(name)()
    if name == "vb":
        inference.check(small)
    one, other = (numbers(inference, vae, x) for vae in (small, large))
    if name == "vb":
        one, other = one[1:], other[1:]
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"mmd", "free-bits"}))
def test_losses_are_linear_in_the_weights_of_the_data(name: str) -> None:
    """All but those whose term of the batch is no mean over data; those are in tests/test_regularised.py."""
    (vae, x), inference = setting(name, size=50), made(name)
    inference.check(vae)

    def of(weight: Tensor | None) -> Tensor:
        return numbers(inference, vae, Batch.of(x)._replace(weight=weight))

    torch.testing.assert_close(of(ONES), of(None), rtol=0, atol=1e-12)
    each = torch.stack([of(ONES + e) - of(ONES) for e in 8 * torch.eye(8, dtype=torch.float64)])  # of each datum
    assert float(each.abs().min()) > 1e-6
    torch.testing.assert_close(of(WEIGHT), of(ONES) + ((WEIGHT - 1) / 8) @ each, rtol=0, atol=1e-11)
    if name != "vb":
        torch.testing.assert_close(of(2 * ONES), 2 * of(ONES), rtol=0, atol=1e-11)


def test_fit_accepts_data_of_weight_zero_and_ignores_them() -> None:
    weights = torch.tensor([1.0] * 7 + [0.0])
    adam = functools.partial(torch.optim.Adam, lr=0.03)
    trained = []
    for last in (0.0, 5.0):
        vae = MODEL.vae(MODEL.exact_encoder(1.6))
        data = torch.cat([X[:7], X[7:] + last])
        fit(vae, data, AEVB(), Training(optimizer=adam, steps=3, batch_size=8), weights=weights)
        trained.append([p.detach() for p in vae.parameters()])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"vb"}))  # which refuses it
@pytest.mark.parametrize("biases", [False, True])
def test_the_parameter_prior_enters_the_phases_that_move_theta_as_log_p_theta_over_n(name: str, biases: bool) -> None:
    """In value and gradient; never in the bound."""
    inference, prior = algorithm(name)(), ParameterPrior(dist.Normal(0.0, 0.7), biases)
    (plain, x), (penalised, _) = setting(name, size=50), setting(name, size=50, parameter_prior=prior)
    theta = [p for p in penalised.theta.values() if biases or p.dim() > 1]
    log_p = sum(Normal(0.0, 0.7).log_prob(p).sum() for p in theta) / 50
    slopes = torch.autograd.grad(log_p, theta)
    without, with_prior = (all_losses(copy.deepcopy(inference), vae, x) for vae in (plain, penalised))
    for phase, one, other in zip(inference.phases, without, with_prior, strict=True):
        moved = bool(phase.moves & {"theta", "likelihood"})
        expected = one.value - log_p if moved else one.value
        torch.testing.assert_close(other.value, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(other.bound, one.bound, rtol=0, atol=1e-12)
        if moved:
            its = [p for p in plain.theta.values() if biases or p.dim() > 1]
            pair = zip(gradient(other, theta), gradient(one, its), slopes, strict=True)
            for mine, before, slope in pair:
                torch.testing.assert_close(mine, before - slope, rtol=0, atol=1e-10)


def gradient(loss: Loss, parameters: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


# ------------------------------------------------------------------ what algorithms are written with


def test_a_surrogate_has_the_value_of_one_and_the_gradient_of_another() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    made = surrogate(a * 5, b * 7)
    assert float(made.detach()) == 10.0
    by_a, by_b = torch.autograd.grad(made, [a, b], allow_unused=True)
    assert by_a is None
    assert float(by_b) == 7.0


def test_arguments_are_checked_by_kind_and_range() -> None:
    assert check_count("A", "n", 3) == 3
    assert check_number("A", "x", 0.5, 0.0, 1.0) == 0.5
    assert check_choice("A", "c", "b", ("a", "b")) == "b"
    for refuse, message in (
        (lambda: check_count("A", "n", True), "A: `n` is a positive integer, got `True`"),
        (lambda: check_number("A", "x", 2.0, 0.0, 1.0), "A: `x` is a number from 0 to 1, got `2.0`"),
        (lambda: check_number("A", "x", -1, 0.0), "A: `x` is a number of at least 0, got `-1`"),
        (lambda: check_choice("A", "c", "z", ("a", "b")), 'A: `c` is one of "a", "b"; got `\'z\'`'),
    ):
        with pytest.raises(InputError) as raised:
            refuse()
        assert message in str(raised.value)


def test_an_algorithm_without_a_loss_and_a_phase_that_returns_none_are_named() -> None:
    class Nothing(Inference):
        pass

    class Number(Inference):
        def loss(self, vae: VAE, batch: Batch) -> Loss:
            return torch.zeros(())  # type: ignore[return-value]

    with pytest.raises(NotImplementedError, match="Nothing implements neither `loss_of` nor `phases`"):
        next(Nothing().losses(*setting("aevb")))
    with pytest.raises(InputError, match=r"^Number: a phase must return Loss\(value, bound\).*returned a `Tensor`"):
        next(Number().losses(*setting("aevb")))
