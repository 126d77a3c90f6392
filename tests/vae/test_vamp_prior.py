"""The VampPrior against the mixture written out, and its two-fold gradient in phi against quadrature."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Flow, Mixture, Training, VampPrior, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import ALGORITHMS, IWAE, STL, DReG, Inference, ScoreFunction


def vae(latent: int = 2, posterior: nn.Module | None = None, **options: object) -> VAE:
    torch.manual_seed(0)
    return VAE(
        VampPrior(6, 4, std=1.0),
        Conditional(dist.Bernoulli, (6,), given=mlp(latent, 7)),
        posterior or Conditional(dist.Normal, (latent,), given=mlp(6, 5)),
        **options,
    ).double()


X = (torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.4).double()


@pytest.mark.parametrize(
    "posterior",
    [
        lambda: Conditional(dist.Normal, (2,), given=mlp(6, 5)),
        lambda: Conditional(dist.MultivariateNormal, (2,), given=mlp(6, 5)),
        lambda: Mixture(dist.Normal, (2,), 3, given=mlp(6, 5)),
        lambda: Flow((2,), given=mlp(6, 5), hidden=(8,)),
    ],
    ids=["normal", "full", "mixture", "flow"],
)
def test_the_density_is_the_mean_of_the_posteriors_at_the_pseudo_inputs(posterior: Callable[[], nn.Module]) -> None:
    model = vae(posterior=posterior())
    p, z = model.prior_given(None), torch.randn(7, 5, 2).double()
    each = torch.stack([model.posterior(u).log_prob(z) for u in model.prior.pseudo_inputs])
    torch.testing.assert_close(p.log_prob(z), each.logsumexp(0) - math.log(4), rtol=1e-10, atol=1e-10)
    assert p.batch_shape == ()
    draws = p.sample((20_000,))
    picked = torch.stack([model.posterior(u).sample((20_000,)) for u in model.prior.pseudo_inputs])
    error = (draws.var(0) / 20_000 + picked.flatten(0, 1).var(0) / 80_000).sqrt()
    assert_mean(draws.mean(0), picked.mean((0, 1)), error)


def test_theta_is_pseudo_inputs_and_likelihood_and_phi_the_posterior_alone() -> None:
    model = vae()
    assert [name for name in model.theta if not name.startswith("likelihood.")] == ["prior.raw"]
    assert all(name.startswith("posterior.") for name in model.phi)
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(pointers) == len(set(pointers))
    assert len(model.theta) + len(model.phi) == len(list(model.parameters()))


def test_a_deep_copy_is_made_of_its_own_posterior() -> None:
    model = vae()
    twin = copy.deepcopy(model)
    z = torch.randn(5, 2).double()
    before = model.prior_given(None).log_prob(z)
    with torch.no_grad():
        twin.posterior.head.bias.add_(1.0)
    assert torch.equal(model.prior_given(None).log_prob(z), before)
    assert not torch.equal(twin.prior_given(None).log_prob(z), before)
    other = vae()
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other.prior_given(None).log_prob(z), twin.prior_given(None).log_prob(z))


def test_the_gradient_of_log_p_reaches_phi_and_pseudo_inputs() -> None:
    """By finite differences."""
    model, z = vae(), torch.randn(5, 2).double()
    parameters = [model.prior.raw, *model.phi.values()]
    slopes = torch.autograd.grad(model.prior_given(None).log_prob(z).sum(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        assert float(slope.abs().max()) > 0
        for i in range(parameter.numel()):
            values = []
            for step in (1e-6, -2e-6, 1e-6):
                with torch.no_grad():
                    parameter.view(-1)[i] += step
                    values.append(model.prior_given(None).log_prob(z).sum())
            difference = (values[0] - values[1]) / 2e-6
            torch.testing.assert_close(slope.flatten()[i], difference, rtol=1e-5, atol=1e-6)


def expectation(model: VAE, inference: Inference, x: Tensor) -> Tensor:
    """The ELBO by quadrature over the one latent; for more than one particle, the bound from two of them."""
    z = torch.linspace(-12, 12, 501).double()
    step = float(z[1] - z[0])
    at = z.reshape(-1, 1, 1).expand(-1, len(x), 1)
    log_q = model.encode(x).log_prob(at)
    log_w = model.log_joint(at, x) - log_q
    if getattr(inference, "num_particles", 1) == 1 or isinstance(inference, ScoreFunction):
        return (log_q.exp() * log_w).sum(0).mean() * step
    pair = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2)
    return ((log_q.unsqueeze(0) + log_q.unsqueeze(1)).exp() * pair).sum((0, 1)).mean() * step**2


@pytest.mark.parametrize(
    "inference", [ALGORITHMS["aevb"](), STL(), IWAE(2), DReG(2), ScoreFunction(num_particles=2)], ids=repr
)
def test_the_gradient_in_phi_is_that_of_the_bound_also_through_the_prior(inference: Inference) -> None:
    model = vae(latent=1)
    parameters = [*model.theta.values(), *model.phi.values()]
    exact = torch.autograd.grad(-expectation(model, inference, X), parameters)
    samples = []
    with pyro.validation_enabled(False):
        for _ in range(150):
            (loss,) = inference.losses(model, X.repeat(20, 1))
            samples.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss.value, parameters)]))
    assert_mean(torch.stack(samples), torch.cat([g.flatten() for g in exact]))


@pytest.mark.parametrize("name", ["wake-sleep", "rws", "mcem", "vb"])
def test_algorithms_that_part_theta_from_phi_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"`VampPrior` contains the posterior.*use aevb"):
        ALGORITHMS[name]().check(vae(size=5))


def test_every_parameter_moves_and_the_bound_rises() -> None:
    model = vae(size=5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    history = fit(
        model, X, IWAE(5), Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.02), steps=100, batch_size=5), seed=1
    )
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    assert history.bound[-20:].mean() > history.bound[:20].mean() + 0.5


def test_with_a_context_the_pseudo_inputs_have_the_datums_own() -> None:
    torch.manual_seed(0)
    model = VAE(
        VampPrior(6, 4, std=1.0),
        Conditional(dist.Bernoulli, (6,), given=mlp(2 + 3, 7)),
        Conditional(dist.Normal, (2,), given=mlp(6 + 3, 5)),
        context_features=3,
    ).double()
    context, z = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    p = model.prior_given(context)
    assert p.batch_shape == (5,)
    for i in range(5):
        each = torch.stack(
            [model.posterior(torch.cat([u, context[i]])).log_prob(z[i]) for u in model.prior.pseudo_inputs]
        )
        torch.testing.assert_close(p.log_prob(z)[i], each.logsumexp(0) - math.log(4), rtol=1e-10, atol=1e-10)
    (loss,) = ALGORITHMS["aevb"]().losses(model, Batch(X, context))
    assert bool(torch.isfinite(loss.value))
    assert model.generate(5, context).shape == (5, 6)


@pytest.mark.parametrize("support", [constraints.real, constraints.unit_interval], ids=str)
def test_pseudo_inputs_start_at_data(support: constraints.Constraint) -> None:
    data = torch.rand(4, 6) * 0.9 + 0.05
    torch.testing.assert_close(VampPrior(6, 4, initial=data, support=support).pseudo_inputs, data)


def test_pseudo_inputs_at_the_boundary_can_move() -> None:
    prior = VampPrior(6, 5, initial=X.float(), support=constraints.unit_interval)
    torch.testing.assert_close(prior.pseudo_inputs, X.float(), rtol=0, atol=1e-3)
    (slope,) = torch.autograd.grad(prior.pseudo_inputs.sum(), [prior.raw])
    assert float(slope.min()) > 1e-4
    counts = torch.tensor([[0.5, 3.0, 1e5, 1e8]])
    torch.testing.assert_close(VampPrior(4, 1, initial=counts, support=constraints.positive).pseudo_inputs, counts)
    edge = VampPrior(2, 1, initial=torch.tensor([[0.0, 2.0]]), support=constraints.nonnegative)
    assert bool(torch.isfinite(edge.raw).all())


def test_default_pseudo_inputs_lie_inside_the_support() -> None:
    for support in (constraints.unit_interval, constraints.positive):
        prior = VampPrior(6, 100, std=3.0, support=support)
        assert bool(support.check(prior.pseudo_inputs).all())
        assert bool(torch.isfinite(prior.raw).all())
    torch.testing.assert_close(VampPrior(6, 5, mean=0.3, std=0.0).pseudo_inputs, torch.full((5, 6), 0.3))


def declared(posterior: nn.Module | None) -> VAE:
    return VAE(VampPrior(6, 4), Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), posterior)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: declared(None), "`VampPrior` is made of the posterior, which must be declared"),
        (lambda: declared(mlp(6, 5)), "must be a distribution and not the features of an encoder"),
        (lambda: declared(Conditional(dist.Bernoulli, (2,), given=mlp(6, 5))), "needs continuous latents"),
        (lambda: declared(Mixture(dist.Bernoulli, (2,), 2, given=mlp(6, 5))), "needs continuous latents"),
        (lambda: declared(Conditional(dist.Normal, (2,), given=mlp(7, 5))), "the prior fails on no context"),
        (lambda: VampPrior(0, 3), "`features` is a positive integer"),
        (lambda: VampPrior(6, 2.5), "`components` is a positive integer"),
        (lambda: VampPrior(6, 3, initial=torch.zeros(3, 5)), r"of shape \(3, 6\); got \(3, 5\)"),
        (lambda: VampPrior(6, 1, initial=torch.full((1, 6), 2.0), support=constraints.unit_interval), "outside"),
        (lambda: VampPrior(6, 3, support=constraints.boolean), "cannot be learned within"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_a_fixed_posterior_of_a_bounded_support_gives_a_prior_on_it() -> None:
    posterior = Conditional(dist.Gamma, (2,), given=mlp(6, 5), rate=Fixed(1.0))
    model = VAE(VampPrior(6, 4), Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), posterior)
    assert float(model.prior_given(None).sample((100,)).min()) > 0
    assert bool(torch.isfinite(model.log_weights(X.float(), 3)).all())
