"""Every algorithm's losses, gradients and optima against the exact answers of the linear-Gaussian oracle."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, ALGORITHMS, AnalyticKL, Inference, Loss, WakeSleep, algorithm
from pyro_vae.inference.analytic_kl import analytic_kl
from pyro_vae.parameter_prior import ParameterPrior

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)
REPLICATES = 4000


def adam(rate: float = 0.03) -> functools.partial[torch.optim.Optimizer]:
    return functools.partial(torch.optim.Adam, lr=rate)


def all_losses(inference: Inference, vae: VAE, data: Tensor | Batch, seed: int = 0) -> list[Loss]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return list(inference.losses(vae, data))


# ------------------------------------------------------------------ the weights and the KL


@pytest.mark.parametrize("diagonal", [True, False])
def test_at_the_exact_posterior_every_log_weight_is_log_marginal(diagonal: bool) -> None:
    model = LinearGaussian.random(5, 2, diagonal=diagonal)
    vae = model.vae(model.exact_encoder() if diagonal else None)
    weights = vae.log_weights(X, num_particles=50)
    torch.testing.assert_close(weights, model.log_marginal(X).expand(50, 8), rtol=0, atol=1e-10)


def test_analytic_kl_of_diagonal_normals_is_kl_divergence_and_equation_10() -> None:
    torch.manual_seed(0)
    loc, log_scale = 2 * torch.randn(2, 100, 3, 4, dtype=torch.float64), torch.randn(2, 100, 3, 4, dtype=torch.float64)
    q, p = (dist.Normal(m, s.exp()).to_event(2) for m, s in zip(loc, log_scale, strict=True))
    torch.testing.assert_close(analytic_kl(q, p), kl_divergence(q, p), rtol=1e-12, atol=1e-12)
    standard = dist.Normal(torch.zeros(3, 4).double(), 1.0).to_event(2)
    m, s2 = loc[0], (2 * log_scale[0]).exp()
    equation_10 = 0.5 * (1 + s2.log() - m**2 - s2).sum((-1, -2))
    torch.testing.assert_close(-analytic_kl(q, standard), equation_10, rtol=1e-12, atol=1e-12)


def _positive(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64) + 0.5


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (dist.Gamma(_positive(6, 3), 1.0).to_event(1), dist.Gamma(_positive(3), 2.0).to_event(1)),
        (dist.Beta(_positive(6, 3), 1.0).to_event(1), dist.Beta(_positive(3), 2.0).to_event(1)),
        (dist.Laplace(_positive(6, 3), 1.0).to_event(1), dist.Normal(_positive(3), 2.0).to_event(1)),
        (dist.LogNormal(_positive(6, 3), 1.0).to_event(1), dist.LogNormal(_positive(3), 2.0).to_event(1)),
        (dist.Dirichlet(_positive(6, 3)), dist.Dirichlet(_positive(3))),
        (
            dist.MultivariateNormal(_positive(6, 3), scale_tril=torch.eye(3).double() * _positive(6, 1, 3)),
            dist.MultivariateNormal(_positive(3), scale_tril=2 * torch.eye(3).double()),
        ),
    ],
    ids=lambda d: type(getattr(d, "base_dist", d)).__name__,
)
def test_analytic_kl_of_other_pairs_is_kl_divergence_of_each_datum(
    q: dist.TorchDistribution, p: dist.TorchDistribution
) -> None:
    torch.testing.assert_close(analytic_kl(q, p), kl_divergence(q, p.expand((6,))), rtol=1e-12, atol=1e-12)


def test_analytic_kl_refuses_a_pair_without_closed_form_by_name() -> None:
    likelihood = Conditional(dist.Normal, (5,), given=mlp(3), scale=Fixed(1.0))
    vae = VAE(Conditional(dist.Dirichlet, (3,), concentration=Fixed([1.0, 1.0, 1.0])), likelihood)
    for refuse in (AnalyticKL().check, lambda v: fit(v, torch.zeros(4, 5), AnalyticKL(), optimizer=adam(), steps=1)):
        with pytest.raises(InputError, match=r"KL\(TransformedDistribution\(.*\) \|\| Dirichlet\).*use aevb"):
            refuse(vae)
    AEVB().check(vae)


# ------------------------------------------------------------------ values at the same noise


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("size", [None, 50])
def test_aevb_and_analytic_kl_are_the_hand_written_estimators(num_particles: int, size: int | None) -> None:
    encoder = MODEL.exact_encoder(wider=1.6)
    vae = MODEL.vae(encoder, size=size)
    loc, scale = encoder(X)
    torch.manual_seed(3)
    z = loc + scale * Normal(torch.zeros(num_particles, 8, 2).double(), 1.0).sample()
    log_likelihood = Normal(z @ MODEL.W.T + MODEL.b, MODEL.s).log_prob(X).sum(-1)
    log_ratio = Normal(0.0, 1.0).log_prob(z).sum(-1) - Normal(loc, scale).log_prob(z).sum(-1)
    kl = (loc**2 + scale**2 - 1) / 2 - scale.log()
    estimator_a, estimator_b = (log_likelihood + log_ratio).mean(), (log_likelihood - kl.sum(-1)).mean()
    for inference, elbo in ((AEVB(num_particles), estimator_a), (AnalyticKL(num_particles), estimator_b)):
        (loss,) = all_losses(inference, vae, X, seed=3)
        torch.testing.assert_close(loss.value, -elbo, rtol=0, atol=1e-12)
        torch.testing.assert_close(loss.bound, elbo, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("inference", "elbo"),
    [
        (AEVB(), Trace_ELBO()),
        (AEVB(3), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)),
        (AnalyticKL(), TraceMeanField_ELBO()),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("size", [None, 50])
def test_an_algorithm_is_pyros_own_elbo_on_model_and_guide(
    inference: Inference, elbo: Trace_ELBO, size: int | None
) -> None:
    vae = MODEL.vae(MODEL.exact_encoder(wider=1.6), size=size, parameter_prior=size and dist.Normal(0.0, 1.0))
    parameters = [*vae.theta.values(), *vae.phi.values()]
    torch.manual_seed(4)
    theirs = elbo.differentiable_loss(vae.model, vae.guide, X) / (size or len(X))
    (ours,) = all_losses(inference, vae, X, seed=4)
    torch.testing.assert_close(ours.value, theirs, rtol=0, atol=1e-12)
    for mine, its in zip(*(torch.autograd.grad(v, parameters) for v in (ours.value, theirs)), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-11)


# ------------------------------------------------------------------ expectations


class Gradients(NamedTuple):
    """Of one phase: replicates of its gradient and its bound, and the exact gradient of its objective."""

    samples: Tensor  # (n, P)
    exact: Tensor  # (P,)
    of_phi: Tensor  # (P,)
    bounds: Tensor | None  # (n,)

    @property
    def phi_variance(self) -> float:
        """Trace of the covariance over all phi."""
        return float(self.samples.var(0)[self.of_phi].sum())


def flat_gradient(value: Tensor, parameters: dict[str, nn.Parameter]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(parameters.values()), retain_graph=True)])


def exact_objective(vae: VAE, x: Tensor, moves: frozenset[str]) -> Tensor:
    model, encoder = LinearGaussian.of(vae)
    return model.dream_cross_entropy(encoder) if moves == {"phi"} else -model.elbo(x, *encoder(x)).mean()


@functools.cache
def gradients(name: str, outlying: bool) -> list[Gradients]:
    """Of each phase, where q is the exact posterior made 1.6 times as wide.

    Where ``outlying``, for data whose z lies far from the prior's bulk, and which the encoder sees as x = 0.
    """
    model, x = MODEL, X
    if outlying:
        model, x = LinearGaussian(MODEL.W, -MODEL.W.sum(1) * 8, MODEL.s), torch.zeros_like(X)
    vae, inference = model.vae(model.exact_encoder(1.6)), algorithm(name)()
    moved = [inference.moved(vae, phase) for phase in inference.phases]
    losses: list[list[Loss]] = [[] for _ in moved]
    samples: list[list[Tensor]] = [[] for _ in moved]
    with pyro.validation_enabled(False), torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(REPLICATES // 4 if outlying else REPLICATES):
            for i, loss in enumerate(inference.losses(vae, x)):
                samples[i].append(flat_gradient(loss.value, moved[i]))
                losses[i].append(loss)
    return [
        Gradients(
            torch.stack(rows),
            flat_gradient(exact_objective(vae, x, phase.moves), parameters),
            torch.cat([torch.full((p.numel(),), n in vae.phi) for n, p in parameters.items()]),
            None if draws[0].bound is None else torch.stack([loss.bound for loss in draws]),
        )
        for phase, parameters, rows, draws in zip(inference.phases, moved, samples, losses, strict=True)
    ]


@pytest.mark.parametrize("name", ["aevb", "analytic-kl", "wake-sleep"])
def test_the_gradient_of_every_phase_is_unbiased_for_its_exact_objective(name: str) -> None:
    """Of the ELBO for all of theta and phi that it moves; of E_p(x) KL(p(z|x) || q(z|x)) for sleep."""
    phases = gradients(name, False)
    assert sum(len(phase.exact) for phase in phases) == 20 + 14  # all of theta and phi, each once
    for phase in phases:
        assert_mean(phase.samples, phase.exact)
        if phase.bounds is not None:
            assert_mean(phase.bounds, MODEL.elbo(X, *MODEL.exact_encoder(1.6)(X)).mean())


@pytest.mark.parametrize(("outlying", "least", "most"), [(False, 0.4, 0.7), (True, 1.2, 3.0)])
def test_gradients_of_both_elbo_estimators_agree_and_the_analytic_kl_has_less_variance(
    outlying: bool, least: float, most: float
) -> None:
    """Variance: the trace of the covariance over all phi, at q 1.6 times as wide as the exact posterior.

    The analytic KL has about half of it at data from the model; at data whose z is far from the prior's bulk it has
    more, for there the Monte Carlo KL cancels noise of the reconstruction.
    """
    (a,), (b,) = (gradients(name, outlying) for name in ("aevb", "analytic-kl"))
    assert_mean(a.samples - b.samples, torch.zeros_like(a.exact))  # paired: both have the same noise
    assert least < b.phi_variance / a.phi_variance < most


def test_minibatch_losses_of_pyros_svi_are_unbiased_for_the_full_data() -> None:
    """The N/M scale belongs to the data's plate alone, not to the parameter prior."""
    x = MODEL.sample(20)
    vae = MODEL.vae(MODEL.exact_encoder(1.6), size=20, parameter_prior=dist.Normal(0.0, 0.7))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        losses = [svi.evaluate_loss(x[torch.randperm(20)[:5]]) for _ in range(REPLICATES)]
    full = MODEL.elbo(x, *MODEL.exact_encoder(1.6)(x)).sum() + Normal(0.0, 0.7).log_prob(MODEL.W).sum()
    assert_mean(torch.tensor(losses, dtype=torch.float64), -full)


# ------------------------------------------------------------------ optima


@pytest.mark.parametrize(
    ("name", "tolerance", "s"),
    [("aevb", 0.01, None), ("analytic-kl", 0.01, None), ("wake-sleep", 0.05, None), ("analytic-kl", 0.01, 1.5)],
)
def test_fit_reaches_the_closed_form_optimum_of_the_exact_elbo(name: str, tolerance: float, s: float | None) -> None:
    """Probabilistic PCA: the maximum likelihood is the maximum of the ELBO. At s = 1.5 one component collapses."""
    data = LinearGaussian.random(6, 2, seed=3).sample(200)
    best = LinearGaussian.maximum_likelihood(data, 2, s)
    assert int(best.W.abs().amax(0).gt(0).sum()) == (2 if s is None else 1)
    optimum = best.log_marginal(data).mean()
    generator = torch.Generator().manual_seed(1)
    w, v = (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 2), (2, 6)))
    zeros, ones = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    start = LinearGaussian(w, zeros, ones[0] * (s or 1.0)), Encoder(v, zeros[:2], ones[:2])
    vae = start[0].vae(start[1], fixed_scale=s is not None)
    steps = 1000
    fit(vae, data, algorithm(name)(), optimizer=adam(), steps=steps, batch_size=200, schedule=lambda i: 1 - i / steps)

    def gap(model: LinearGaussian, encoder: Encoder) -> float:
        return float((optimum - model.elbo(data, *encoder(data)).mean()).detach())

    assert gap(*start) > 0.5
    assert -1e-9 < gap(*LinearGaussian.of(vae)) < tolerance


# ------------------------------------------------------------------ units, weights, parameter prior


@pytest.mark.parametrize("size", [None, 50])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_bound_is_the_mean_over_the_batch_in_nats_per_datum(num_particles: int, size: int | None) -> None:
    weight = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    vae = MODEL.vae(MODEL.exact_encoder(), size=size)
    for data, exact in ((X, MODEL.log_marginal(X)), (Batch(X, weight=weight), MODEL.log_marginal(X) * weight)):
        (loss,) = all_losses(AEVB(num_particles), vae, data)
        torch.testing.assert_close(loss.bound, exact.mean(), rtol=0, atol=1e-10)
        torch.testing.assert_close(loss.value, -exact.mean(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_losses_are_linear_in_the_weights_of_the_data(name: str) -> None:
    vae, inference = MODEL.vae(MODEL.exact_encoder(1.6), size=50), algorithm(name)()
    weight = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5

    def values(weight: Tensor | None) -> Tensor:
        losses = all_losses(inference, vae, Batch(X, weight=weight), seed=2)
        return torch.stack([t for loss in losses for t in loss if t is not None]).detach()

    ones = torch.ones(8, dtype=torch.float64)
    torch.testing.assert_close(values(ones), values(None), rtol=0, atol=1e-12)
    one_hot = 8 * torch.eye(8, dtype=torch.float64)
    each = torch.stack([values(ones + e) - values(ones) for e in one_hot])  # the share of each datum
    torch.testing.assert_close(values(weight), (weight / 8) @ each, rtol=0, atol=1e-11)


def test_fit_accepts_data_of_weight_zero_and_ignores_them() -> None:
    weights = torch.tensor([1.0] * 7 + [0.0])
    trained = []
    for last in (0.0, 5.0):
        vae = MODEL.vae(MODEL.exact_encoder(1.6))
        data = torch.cat([X[:7], X[7:] + last])
        fit(vae, data, AEVB(), optimizer=adam(), steps=3, batch_size=8, weights=weights)
        trained.append([p.detach() for p in vae.parameters()])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("biases", [False, True])
def test_the_parameter_prior_enters_the_phases_that_move_theta_as_log_p_theta_over_n(name: str, biases: bool) -> None:
    inference, prior = algorithm(name)(), ParameterPrior(dist.Normal(0.0, 0.7), biases)
    encoder = MODEL.exact_encoder(1.6)
    plain = all_losses(inference, MODEL.vae(encoder, size=50), X)
    penalised = all_losses(inference, MODEL.vae(encoder, size=50, parameter_prior=prior), X)
    theta = [MODEL.W, *([MODEL.b, MODEL.s.log()] if biases else [])]
    log_p = sum(Normal(0.0, 0.7).log_prob(t).sum() for t in theta)
    for phase, without, with_prior in zip(inference.phases, plain, penalised, strict=True):
        expected = without.value - log_p / 50 if "theta" in phase.moves else without.value
        torch.testing.assert_close(with_prior.value, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(with_prior.bound, without.bound, rtol=0, atol=1e-12)


# ------------------------------------------------------------------ what is refused, and what wake-sleep alone can do


class Sharing(nn.Module):
    """A posterior that uses a part of the generative model."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.own = part, Conditional(dist.Normal, (2,), given=mlp(2))

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return self.own(x + self.part(x).mean)


@pytest.mark.parametrize("shared", ["prior", "likelihood"])
def test_wake_sleep_refuses_a_generative_part_that_shares_parameters_with_the_posterior(shared: str) -> None:
    parts = {"prior": Conditional(dist.Normal, (2,)), "likelihood": Conditional(dist.Normal, (2,), given=mlp(2))}
    vae = VAE(parts["prior"], parts["likelihood"], Sharing(parts[shared]))
    with pytest.raises(InputError, match=rf"the {shared} shares `.*` with the posterior.*use aevb"):
        fit(vae, torch.zeros(4, 2), WakeSleep(), optimizer=adam(), steps=1)
    AEVB().check(vae)


def discrete_vae() -> VAE:
    prior = Conditional(dist.Bernoulli, (1,), probs=Fixed(0.5))
    likelihood = Conditional(dist.Bernoulli, (3,), given=mlp(1))
    return VAE(prior, likelihood, Conditional(dist.Bernoulli, (1,), given=mlp(3)))


@pytest.mark.parametrize("inference", [AEVB(), AnalyticKL()], ids=repr)
def test_a_discrete_posterior_is_refused_by_pathwise_algorithms_with_the_name_of_one_that_works(
    inference: Inference,
) -> None:
    with pytest.raises(InputError, match=rf"^{type(inference).__name__}: needs a reparam.*use wake-sleep"):
        fit(discrete_vae(), torch.zeros(4, 3), inference, optimizer=adam(), steps=1)


def test_wake_sleep_trains_a_discrete_posterior_to_the_entropy_of_the_data() -> None:
    """Two patterns, equally frequent: the best ELBO is -log 2; it is summed here over both values of z."""
    torch.manual_seed(0)
    vae, x = discrete_vae(), torch.tensor([[0.0, 0, 0], [1, 1, 1]]).repeat(10, 1)
    fit(vae, x, WakeSleep(), optimizer=adam(0.1), steps=1000, batch_size=20)
    z = torch.tensor([0.0, 1.0]).reshape(2, 1, 1).expand(2, 20, 1)
    with torch.no_grad():
        q = vae.encode(x)
        log_w = vae.prior().log_prob(z) + vae.log_likelihood(z, x) - q.log_prob(z)
        elbo = float((q.log_prob(z).exp() * log_w).sum(0).mean())
    assert -math.log(2) - 0.05 < elbo < -math.log(2)
