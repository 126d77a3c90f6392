"""Mixtures against torch's own and sums by hand, and the gradients of their draws against those of the components."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from scipy.stats import chi2
from torch import Tensor, nn
from z_test import FAILURE_RATE, assert_mean

from pyro_vae import VAE, Conditional, Fixed, Learned, Mixture, Network, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, STL
from pyro_vae.vae.mixture import MixtureDistribution


def learned(family: type = dist.Normal, latent: int = 2, components: int = 3, **sources: object) -> Mixture:
    torch.manual_seed(0)
    return Mixture(family, (latent,), components, **sources).double()


def by_hand(mixture: MixtureDistribution, z: Tensor) -> Tensor:
    """log p(z) as a sum over components, each of which is built alone."""
    cells = mixture.component_distribution.base_dist
    terms = []
    for k, weight in enumerate(mixture.mixture_distribution.probs.unbind(-1)):
        one = type(cells)(cells.loc.select(-2, k), cells.scale.select(-2, k))
        terms.append(weight.log() + one.log_prob(z).sum(-1))
    return torch.stack(terms).logsumexp(0)


# ------------------------------------------------------------------ the density


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_density_is_that_of_torch_and_the_sum_by_hand(family: type, conditional: bool) -> None:
    torch.manual_seed(0)
    module = Mixture(family, (2,), 3, given=mlp(4, 5) if conditional else None).double()
    p = module(torch.randn(6, 4).double()) if conditional else module()
    z = torch.cat([p.sample((50,)), 30 * torch.randn(50, *p.batch_shape, 2).double()])  # and far from all components
    torchs = torch.distributions.MixtureSameFamily(p.mixture_distribution, p.component_distribution)
    torch.testing.assert_close(p.log_prob(z), torchs.log_prob(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.log_prob(z), by_hand(p, z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_in_single_precision_the_density_is_exact_but_for_the_rounding_of_z_and_in_double_precision_exact(
    scale: float,
) -> None:
    torch.manual_seed(0)
    loc, spread = 3 * torch.randn(5, 2).double(), scale * torch.rand(5, 2).double() + scale
    for dtype in (torch.float32, torch.float64):
        normal = dist.Normal(loc.to(dtype), spread.to(dtype)).to_event(1)
        p = MixtureDistribution(dist.Categorical(logits=torch.randn(5).to(dtype)), normal)
        z = torch.cat([p.sample((200,)), 100 * torch.randn(20, 2).to(dtype)])
        exact = by_hand(_double(p), z.double())
        rounded = torch.finfo(dtype).eps * (1 + exact.abs() + z.double().abs().sum(-1) / scale)
        assert bool(((p.log_prob(z).double() - exact).abs() < 4 * rounded).all())


def _double(p: MixtureDistribution) -> MixtureDistribution:
    cells = p.component_distribution.base_dist
    normal = dist.Normal(cells.loc.double(), cells.scale.double()).to_event(1)
    return MixtureDistribution(dist.Categorical(logits=p.mixture_distribution.logits.double()), normal)


def test_in_single_precision_the_gradient_of_the_density_is_that_by_hand() -> None:
    module = learned().float()
    z = (3 * torch.randn(20, 2)).requires_grad_()
    parameters = [z, *module.parameters()]
    ours = torch.autograd.grad(module().log_prob(z).sum(), parameters)
    theirs = torch.autograd.grad(by_hand(_double(module()), z.double()).sum(), parameters)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ draws


def assert_fits(counts: Tensor, expected: Tensor) -> None:
    """Pearson's goodness of fit."""
    statistic = float(((counts - expected).square() / expected).sum())
    assert statistic < chi2.isf(FAILURE_RATE, counts.numel() - 1), statistic


def apart(dtype: torch.dtype = torch.float64) -> MixtureDistribution:
    """Three components that do not overlap."""
    loc = torch.tensor([[-100.0, 0.0], [0.0, 0.0], [100.0, 0.0]], dtype=dtype)
    scale = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 0.5]], dtype=dtype)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=dtype)
    return MixtureDistribution(dist.Categorical(weights), dist.Normal(loc, scale).to_event(1))


def test_draws_come_from_each_component_as_often_as_its_weight_says_in_any_order() -> None:
    p = apart()
    z = p.sample((20_000,))
    which = (z[:, 0] / 100).round().long() + 1
    weights, cells = p.mixture_distribution.probs, p.component_distribution.base_dist
    assert_fits(which.bincount(minlength=3), 20_000 * weights)
    # In every prefix, and pair by pair: draws that lie side by side are independent.
    assert_fits(which[:2000].bincount(minlength=3), 2000 * weights)
    pairs = (3 * which[0::2] + which[1::2]).bincount(minlength=9)
    assert_fits(pairs, 10_000 * torch.outer(weights, weights).flatten())
    u = (z - cells.loc[which]) / cells.scale[which]  # of each component N(0, I)
    for k in range(3):
        deciles = (dist.Normal(0.0, 1.0).cdf(u[which == k]) * 10).long()
        joint = (10 * deciles[:, 0] + deciles[:, 1]).bincount(minlength=100)
        assert_fits(joint, torch.full((100,), float((which == k).sum()) / 100))
    assert_mean(u[1:] * u[:-1], torch.zeros(2))
    assert len(z.unique(dim=0)) == len(z)


@pytest.mark.parametrize("batch_shape", [(), (4,)])
@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3)])
def test_shapes_of_draws(batch_shape: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    p = apart().expand(batch_shape) if batch_shape else apart()
    for z in (p.sample(sample_shape), p.rsample(sample_shape)):
        assert z.shape == (*sample_shape, *batch_shape, 2)
        assert p.log_prob(z).shape == (*sample_shape, *batch_shape)


def test_draws_of_a_batch_come_from_their_own_mixtures() -> None:
    torch.manual_seed(0)
    p = Mixture(dist.Normal, (2,), 3, given=mlp(4, 5)).double()(3 * torch.randn(5, 4).double())
    assert_mean(p.sample((20_000,)), p.mean)
    assert_mean((p.sample((20_000,)) - p.mean).square(), p.variance)


@pytest.mark.parametrize("family", [dist.Dirichlet, dist.MultivariateNormal, dist.Bernoulli, dist.Gamma])
def test_components_of_other_families(family: type) -> None:
    p = learned(family, 3, 4)()
    z = p.sample((20_000,))
    assert z.shape == (20_000, 3)
    assert_mean(z, p.mean)
    torchs = torch.distributions.MixtureSameFamily(p.mixture_distribution, p.component_distribution)
    torch.testing.assert_close(p.log_prob(z), torchs.log_prob(z), rtol=1e-12, atol=1e-12)
    assert not p.has_rsample
    with pytest.raises(NotImplementedError, match=rf"mixture of `{family.__name__}`.*pathwise"):
        p.rsample()


# ------------------------------------------------------------------ pathwise gradients


def moments(z: Tensor) -> Tensor:
    """Functions whose expectations tell all cells, and pairs of them, apart."""
    return torch.stack([z.sum(-1).sin(), z.prod(-1).cos(), (z.square().sum(-1) / 4 + 1).log()], -1)


@pytest.mark.parametrize(
    ("family", "latent"),
    [
        (dist.Normal, 2),
        (dist.Laplace, 1),
        *(
            pytest.param(family, latent, marks=pytest.mark.slow)
            for family, latent in ((dist.Normal, 1), (dist.Normal, 5), (dist.Laplace, 2), (dist.Laplace, 5))
        ),
    ],
)
def test_the_gradient_of_draws_is_that_of_the_expectation(family: type, latent: int) -> None:
    """Against a stratified estimate: each component reparameterized alone, and weighed by its weight."""
    module = learned(family, latent)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.7)
    parameters = list(module.parameters())
    estimates: dict[str, list[Tensor]] = {"mixture": [], "strata": []}
    for _ in range(400):
        p = module()
        strata = (moments(p.component_distribution.rsample((50,))) * p.mixture_distribution.probs.unsqueeze(-1)).sum(1)
        for name, values in (("mixture", moments(p.rsample((50,)))), ("strata", strata)):
            slopes = [torch.autograd.grad(v, parameters, retain_graph=True) for v in values.mean(0)]
            estimates[name].append(torch.stack([torch.cat([s.flatten() for s in one]) for one in slopes]))
    ours, theirs = (torch.stack(estimates[name]) for name in ("mixture", "strata"))
    assert float(theirs.mean(0).abs().amax()) > 0.05
    error = ((ours.var(0) + theirs.var(0)) / 400).sqrt()
    assert_mean(ours.mean(0), theirs.mean(0), error)


def test_in_one_dimension_the_gradient_is_that_of_the_inverse_cdf() -> None:
    """By finite differences at one u."""
    torch.manual_seed(0)
    module = Mixture(dist.Normal, (), 3).double()
    z = module().rsample((7,))
    u = module().cdf(z).detach()
    parameters = list(module.parameters())
    slopes = [torch.autograd.grad(one, parameters, retain_graph=True) for one in z]
    for which, parameter in enumerate(parameters):
        for i in range(parameter.numel()):
            slope = torch.stack([one[which].flatten()[i] for one in slopes])
            moved = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[i] += step
                    moved.append(_inverse_cdf(module(), u))
                    parameter.view(-1)[i] -= step
            torch.testing.assert_close(slope, (moved[0] - moved[1]).flatten() / 2e-5, rtol=1e-4, atol=1e-7)


def _inverse_cdf(p: MixtureDistribution, u: Tensor) -> Tensor:
    low, high = torch.full_like(u, -50.0), torch.full_like(u, 50.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = p.cdf(middle) > u
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def test_the_gradient_is_finite_where_components_are_narrow_and_far_apart() -> None:
    loc = torch.tensor([[-1e4, 0.0], [1e4, 1.0]], requires_grad=True)
    scale = torch.tensor([[1e-3, 1.0], [5.0, 1e-3]], requires_grad=True)
    p = MixtureDistribution(dist.Categorical(logits=torch.zeros(2)), dist.Normal(loc, scale).to_event(1))
    z = p.rsample((500,))
    slope = torch.autograd.grad(z.sum(), [loc])[0] / 500
    # A component's draws move with it, here by 1: with its share of them.
    share = (z[:, 0] > 0).double().mean()
    torch.testing.assert_close(slope[:, 0].double(), torch.stack([1 - share, share]), rtol=1e-3, atol=1e-3)
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("inference", [AEVB(5), STL(5)], ids=repr)
def test_the_gradient_of_the_elbo_with_a_mixture_posterior(inference: AEVB | STL) -> None:
    """That of an ELBO of which z is integrated out by quadrature."""
    torch.manual_seed(0)
    posterior = Mixture(dist.Normal, (1,), 2, given=mlp(3))
    prior = Conditional(dist.Normal, (1,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae = VAE(prior, Conditional(dist.Normal, (3,), given=mlp(1, 4), scale=Fixed(1.0)), posterior).double()
    x = torch.randn(4, 3).double()
    z = torch.linspace(-12, 12, 4001).double().reshape(-1, 1, 1).expand(-1, 4, 1)
    log_q = vae.encode(x).log_prob(z)
    elbo = (log_q.exp() * (vae.log_joint(z, x) - log_q)).sum(0).mean() * (z[1, 0, 0] - z[0, 0, 0])
    parameters = [*vae.phi.values(), *vae.theta.values()]
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-elbo, parameters)])
    samples, copies = [], x.repeat(3, 1)
    with pyro.validation_enabled(False):
        for _ in range(200):
            (loss,) = inference.losses(vae, copies)
            samples.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss.value, parameters)]))
    assert_mean(torch.stack(samples), exact)


# ------------------------------------------------------------------ the declaration


def test_components_start_different_and_weights_equal() -> None:
    p = Mixture(dist.Normal, (4,), 5)()
    assert len(p.component_distribution.base_dist.loc.unique()) == 20
    assert len(p.component_distribution.base_dist.scale.unique()) == 20
    torch.testing.assert_close(p.mixture_distribution.probs, torch.full((5,), 0.2))


@pytest.mark.parametrize(
    ("weights", "probabilities"),
    [
        (Fixed([0.2, 0.3, 0.5]), [0.2, 0.3, 0.5]),
        (Fixed(torch.tensor([2.0, 3.0, 5.0])), [0.2, 0.3, 0.5]),
        (Learned([0.2, 0.3, 0.5]), [0.2, 0.3, 0.5]),
        (Learned(), [1 / 3, 1 / 3, 1 / 3]),
        (None, [1 / 3, 1 / 3, 1 / 3]),
    ],
    ids=str,
)
def test_weights_are_probabilities(weights: Fixed | Learned | None, probabilities: list[float]) -> None:
    mixture = Mixture(dist.Normal, (2,), 3, weights=weights)
    torch.testing.assert_close(mixture().mixture_distribution.probs, torch.tensor(probabilities))
    assert sum(name.startswith("weights") for name, _ in mixture.named_parameters()) == (not isinstance(weights, Fixed))


def test_weights_of_a_network_differ_from_datum_to_datum() -> None:
    for weights in (None, Network(), Network((3,))):
        probs = Mixture(dist.Normal, (2,), 3, given=mlp(4, 5), weights=weights)(torch.randn(6, 4)).mixture_distribution
        assert len(probs.probs.unique()) == 18
    shared = Mixture(dist.Normal, (2,), 3, given=mlp(4, 5), weights=Fixed([0.2, 0.3, 0.5]))(torch.randn(6, 4))
    torch.testing.assert_close(shared.mixture_distribution.probs, torch.tensor([0.2, 0.3, 0.5]).expand(6, 3))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Mixture(dist.Normal, (2,), 3, weights=Fixed([0.5, 0.5])), "`weights` are 3 positive numbers"),
        (lambda: Mixture(dist.Normal, (2,), 3, weights=Fixed([0.5, 0.5, 0.0])), "`weights` are 3 positive numbers"),
        (lambda: Mixture(dist.Normal, (2,), 3, weights=Fixed(0.5)), "`weights` are 3 positive numbers"),
        (lambda: Mixture(dist.Normal, (2,), 3, weights=Learned([0.5, -0.5, 1.0])), "`weights` are 3 positive numbers"),
        (lambda: Mixture(dist.Normal, (2,), 3, weights=Learned(shape=(2,))), "`weights` are 3 positive numbers"),
        (lambda: Mixture(dist.Normal, (2,), 3, given=mlp(4), weights=Network((2,))), "`weights` are 3 positive"),
        (lambda: Mixture(dist.Normal, (2,), 3, weights=Network()), "needs given="),
        (lambda: Mixture(dist.Normal, (2,), 0), "`components` is a positive integer"),
        (lambda: Mixture(dist.Normal, (2,), 2.0), "`components` is a positive integer"),
        (lambda: Mixture(dist.Normal, 2, 3), "a shape is a tuple"),
        (lambda: Mixture(dist.Normal, (2,), 3, loc=Learned(0.0), scale=Learned(1.0)), "3 components are equal"),
        (lambda: Mixture(dist.Categorical, (2,), 3, logits=Learned(shape=(5,))), "3 components are equal"),
        (
            lambda: Mixture(
                dist.Normal, (2,), 3, given=mlp(4), weights=Fixed([1, 1, 1]), loc=Learned(noise=1.0), scale=Fixed(1.0)
            ),
            "given= would not be used",
        ),
        (lambda: Mixture(dist.Normal, (2,), 3, given=mlp(4))(), "needs a context"),
        (lambda: Mixture(dist.Normal, (2,), 3, mean=Fixed(0.0)), "no parameter `mean`"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()


@pytest.mark.parametrize(
    "sources",
    [
        {"loc": Learned(noise=1.0), "scale": Learned(1.0)},
        {"loc": Learned(0.0, shape=(3, 2), noise=1.0), "scale": Learned(1.0)},
        {"loc": Fixed([[0.0], [1.0], [2.0]]), "scale": Learned(1.0)},
        {"loc": Fixed(0.0)},  # a scale mixture
    ],
)
def test_components_that_differ_in_one_parameter_are_accepted(sources: dict[str, Fixed | Learned]) -> None:
    p = Mixture(dist.Normal, (2,), 3, **sources)()
    assert p.batch_shape == ()
    assert p.component_distribution.batch_shape == (3,)


class Counting(nn.Module):
    """Counts its calls."""

    out_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(4, 5), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def test_the_network_runs_once_for_all_heads_and_is_in_the_state_dict_once() -> None:
    network = Counting().double()
    mixture = Mixture(dist.Normal, (2,), 3, given=network)
    network.calls = 0
    mixture(torch.randn(6, 4).double())
    assert network.calls == 1
    assert {p.dtype for p in mixture.parameters()} == {torch.float64}  # the heads follow the network
    pointers = [tensor.data_ptr() for tensor in mixture.state_dict().values()]
    assert len(pointers) == len(set(pointers)) == 6


def test_leading_dimensions_of_the_context() -> None:
    mixture = Mixture(dist.Normal, (2,), 3, given=mlp(4, 5))
    context = torch.randn(7, 6, 4)
    assert mixture(context).batch_shape == (7, 6)
    torch.testing.assert_close(
        mixture(context).component_distribution.mean[3], mixture(context[3]).component_distribution.mean
    )
    assert Mixture(dist.Normal, (2,), 3)(context).batch_shape == (7, 6)


def test_state_dict_and_deep_copy() -> None:
    one, other = Mixture(dist.Normal, (2,), 3), Mixture(dist.Normal, (2,), 3)
    z = torch.randn(5, 2)
    assert not torch.equal(one().log_prob(z), other().log_prob(z))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one().log_prob(z), other().log_prob(z))
    twin = copy.deepcopy(one)
    assert torch.equal(one().log_prob(z), twin().log_prob(z))
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in twin.parameters()}


@pytest.mark.parametrize("num_particles", [1, 3])
def test_pyros_svi_trains_prior_and_posterior(num_particles: int) -> None:
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2, 7))
    vae = VAE(Mixture(dist.Normal, (2,), 3), likelihood, Mixture(dist.Normal, (2,), 4, given=mlp(6, 5)))
    x = (torch.rand(12, 6) < 0.4).float()
    elbo = Trace_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=1)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    torch.manual_seed(1)
    expected = elbo.differentiable_loss(vae.model, vae.guide, x)
    torch.manual_seed(1)
    (loss,) = AEVB(num_particles).losses(vae, x)
    assert math.isfinite(expected.item())
    torch.testing.assert_close(loss.value, expected / 12)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(x)
    assert all(not torch.equal(before[name], p) for name, p in vae.named_parameters())


def test_in_a_plate_the_density_and_the_draws_are_those_of_each_datum() -> None:
    p = apart()
    expanded = p.expand((7,))
    z = expanded.sample((5,))
    assert z.shape == (5, 7, 2)
    torch.testing.assert_close(expanded.log_prob(z), p.log_prob(z))
    assert isinstance(expanded, MixtureDistribution)
