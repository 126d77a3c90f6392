"""Posteriors that are pushed onto a bounded support: their densities in float32, and every algorithm's gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed, Flow, Learned, Mixture, mlp
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_marginal
from pyro_vae.inference import ALGORITHMS, RWS, STL, DReG, ScoreFunction
from pyro_vae.inference.weights import fixed_log_prob, path_log_prob
from pyro_vae.vae.derived_posterior import Pushforward


def dirichlet_vae() -> VAE:
    """Whose prior piles up at the corners, and whose posterior reaches far into them."""
    torch.manual_seed(0)
    vae = VAE(
        Conditional(dist.Dirichlet, (3,), concentration=Fixed([0.3, 0.3, 0.3])),
        Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)),
    )
    with torch.no_grad():
        vae.posterior.base.head.bias.copy_(torch.tensor([3.0, 2.0, 1.5, 1.5]))
    return vae


X = (torch.rand(50, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def test_in_single_precision_a_corner_of_the_simplex_has_the_right_weight() -> None:
    vae = dirichlet_vae()
    single = log_marginal(vae, X, 20_000)
    double = log_marginal(copy.deepcopy(vae).double(), X.double(), 20_000)
    assert float(single.pointwise.max()) < 0  # a log-probability
    error = (single.standard_error**2 + double.standard_error**2) ** 0.5
    assert abs(single.value - double.value) < 5 * error + 1e-3


def test_the_density_of_a_draw_is_that_at_its_own_u() -> None:
    base = dist.Normal(torch.full((2, 3), 30.0), 1.0).to_event(1)
    q = Pushed(base, [torch.distributions.transforms.SigmoidTransform()])
    z = q.rsample((4,))
    u = q.preimage(z)
    assert len(z.unique()) == 1  # rounded: nothing could tell u from z
    expected = base.log_prob(u) - (nn.functional.logsigmoid(u) + nn.functional.logsigmoid(-u)).sum(-1)
    torch.testing.assert_close(q.log_prob(z), expected)
    torch.testing.assert_close(q.fixed_log_prob(z), expected)
    inside = torch.full((2, 3), 0.25)
    plain = dist.TransformedDistribution(base, [torch.distributions.transforms.SigmoidTransform()])
    torch.testing.assert_close(q.log_prob(inside), plain.log_prob(inside))


@pytest.mark.parametrize("name", ["wake-sleep", "rws", "mcem", "vb"])
@pytest.mark.parametrize("learned", [True, False])
def test_a_support_that_depends_on_theta_is_refused_by_those_that_part_theta_from_phi(name: str, learned: bool) -> None:
    scale = Learned(1.0) if learned else Fixed(1.0)
    prior = Conditional(dist.Pareto, (2,), scale=scale, alpha=Fixed(3.0))  # z > scale

    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), size=50)
    ALGORITHMS["aevb"]().check(vae)
    if not learned:
        ALGORITHMS[name]().check(vae)
        return
    with pytest.raises(InputError, match=r"support, which depends on.*use aevb"):
        ALGORITHMS[name]().check(vae)


class Affine(nn.Module):
    """q(z|x) through a transform whose parameters are phi, with or without a cache, as Pyro's flows have."""

    def __init__(self, cache_size: int) -> None:
        super().__init__()
        self.cache_size, self.head = cache_size, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dist.TransformedDistribution:
        m, s = self.head(x).chunk(2, dim=-1)
        base = dist.Normal(torch.zeros_like(m), 1.0).to_event(1)
        transform = torch.distributions.transforms.AffineTransform(m, (s / 4).exp(), 1, self.cache_size)
        return dist.TransformedDistribution(base, [transform])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_transforms_cache_changes_no_gradient(name: str) -> None:
    gradients = []
    for cache_size in (0, 1):
        torch.manual_seed(0)
        prior = Conditional(dist.Normal, (2,), loc=Learned(0.1, shape=(2,)), scale=Fixed(1.0))
        likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2, 7))
        vae, inference = VAE(prior, likelihood, Affine(cache_size), size=50).double(), ALGORITHMS[name]()
        try:
            inference.check(vae)
        except InputError as refusal:
            pytest.skip(str(refusal))
        torch.manual_seed(1)
        for loss in inference.losses(vae, X.double()):
            if loss.value.requires_grad:
                loss.value.backward()
        gradients.append([p.grad for p in vae.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inference", [STL(), DReG(), RWS(), ScoreFunction()], ids=lambda i: i.name)
def test_pushed_and_plain_transformed_posteriors_have_the_same_gradient(inference, monkeypatch) -> None:
    """In double precision, where the inverse is exact enough."""

    def gradient() -> list[Tensor]:
        vae = dirichlet_vae().double()
        with torch.no_grad():
            vae.posterior.base.head.bias.zero_()
        torch.manual_seed(2)
        (loss,) = inference.losses(vae, X.double())
        return list(torch.autograd.grad(loss.value, list(vae.phi.values())))

    pushed = gradient()
    monkeypatch.setattr("pyro_vae.vae.derived_posterior.Pushed", dist.TransformedDistribution)
    for one, other in zip(pushed, gradient(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_path_and_fixed_densities_have_the_value_of_the_density() -> None:
    q = dirichlet_vae().encode(X)
    z = q.rsample((5,))
    torch.testing.assert_close(path_log_prob(q, z), q.log_prob(z))
    torch.testing.assert_close(fixed_log_prob(q, z), q.log_prob(z))


# ------------------------------------------------------------------ posteriors over the real space that are declared

SIMPLEX = Conditional(dist.Dirichlet, (3,), concentration=Fixed([1.5, 1.0, 2.0]))
BOUNDED = {
    "gamma": Conditional(dist.Gamma, (2,), concentration=Fixed(2.0), rate=Fixed(1.0)),
    "beta": Conditional(dist.Beta, (2,), concentration1=Fixed(2.0), concentration0=Fixed(3.0)),
    "dirichlet": SIMPLEX,
    "log-normal": Conditional(dist.LogNormal, (2,), loc=Fixed(0.0), scale=Fixed(0.7)),
}
DECLARED = {
    "full": lambda: Conditional(dist.MultivariateNormal, (2,), given=mlp(6, 5)),
    "mixture": lambda: Mixture(dist.Normal, (2,), 3, given=mlp(6, 5)),
    "flow": lambda: Flow((2,), "maf", given=mlp(6, 5), hidden=(8,)),
}


@pytest.mark.parametrize("posterior", DECLARED)
@pytest.mark.parametrize("prior", BOUNDED)
def test_a_declared_posterior_over_the_real_space_is_pushed_onto_the_support(prior: str, posterior: str) -> None:
    """Its density integrates to 1 over u, and its draws have the moments of that density."""
    torch.manual_seed(0)
    p = BOUNDED[prior]
    size = p().event_shape[0]
    vae = VAE(p, Conditional(dist.Bernoulli, (6,), given=mlp(size, 7)), DECLARED[posterior]()).double()
    q = vae.encode(X[:1].double())
    assert isinstance(q, Pushed)
    axis = torch.linspace(-9, 9, 181).double()
    u = torch.stack([a.flatten() for a in torch.meshgrid(axis, axis, indexing="ij")], -1).unsqueeze(1)
    transform = torch.distributions.biject_to(p().support)
    z = transform(u)
    slope = transform.log_abs_det_jacobian(u, z)
    with torch.no_grad():
        log_mass = q.log_prob(z) + (slope if slope.shape == u.shape[:-1] else slope.sum(-1))
        mass = (log_mass.exp() * float(axis[1] - axis[0]) ** 2).reshape(-1)
        assert abs(float(mass.sum()) - 1) < 1e-3
        draws = q.sample((20_000,)).squeeze(1)
        functions = [torch.cat([t.sqrt(), (t[..., :1] + 2 * t[..., 1:2]).sin()], -1) for t in (draws, z.squeeze(1))]
        assert bool(p().support.check(draws).all())
        exact = (mass.unsqueeze(-1) * functions[1]).sum(0) / mass.sum()
        assert_mean(functions[0], exact)


@pytest.mark.parametrize(
    "posterior",
    [
        lambda: Conditional(dist.Normal, (2,), given=mlp(6, 5)),
        lambda: Conditional(dist.MultivariateNormal, (2,), given=mlp(6, 5)),
        lambda: Mixture(dist.Normal, (2,), 3, given=mlp(6, 5)),
        lambda: Flow((2,), given=mlp(6, 5), hidden=(8,)),
        lambda: None,
        lambda: mlp(6, 5),
    ],
    ids=["normal", "full", "mixture", "flow", "derived", "encoder"],
)
@pytest.mark.parametrize("mixture", [False, True])
def test_a_prior_that_is_periodic_on_the_real_line_refuses_posteriors_that_are_not(
    posterior: Callable[[], nn.Module | None], mixture: bool
) -> None:
    """The von Mises family declares the whole line as its support, over which its density has no integral."""
    prior = (
        Mixture(dist.VonMises, (2,), 2)
        if mixture
        else Conditional(dist.VonMises, (2,), loc=Fixed(0.0), concentration=Fixed(1.0))
    )
    with pytest.raises(InputError, match="does not integrate to 1"):
        VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), posterior())


def test_a_periodic_posterior_fits_a_periodic_prior() -> None:
    prior = Conditional(dist.VonMises, (2,), loc=Fixed(0.0), concentration=Fixed(1.0))
    posterior = Conditional(dist.VonMises, (2,), given=mlp(6, 5))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), posterior)
    assert bool(torch.isfinite(vae.log_weights(X, 3)).all())


def test_a_posterior_that_is_pushed_already_is_not_pushed_again() -> None:
    prior = Conditional(dist.LogNormal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    posterior = Pushforward(Conditional(dist.Normal, (2,), given=mlp(6, 5)), prior)
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 5)), posterior)
    assert vae.posterior is posterior
