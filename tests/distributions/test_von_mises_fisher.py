"""Distributions on the sphere against quadrature, closed forms and draws."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from pyro.distributions import constraints
from scipy import integrate, special, stats
from torch import nn
from torch.distributions import kl_divergence, transform_to
from z_test import FAILURE_RATE, assert_mean

from pyro_vae import VAE, Conditional, Experiment, Fixed, Learned, Network, Training, fit, mlp
from pyro_vae.distributions.kl import analytic_kl
from pyro_vae.distributions.von_mises_fisher import Direction, SphericalUniform, VonMisesFisher, unit_vector
from pyro_vae.errors import InputError
from pyro_vae.evaluation import annealed_importance_sampling, log_marginal
from pyro_vae.experiment.to_spec import to_spec
from pyro_vae.inference import AEVB, IWAE, MCEM, STL, AnalyticKL, DReG
from pyro_vae.vae.families.quadrature import quadrature
from pyro_vae.vae.mixture import Mixture

DIMENSIONS = (2, 3, 5, 20, 50)
CONCENTRATIONS = (0.0, 0.3, 4.0, 60.0, 1e4)
ADAM = partial(torch.optim.Adam, lr=0.02)


def direction(dimension, dtype=torch.float64):
    """A location that is no axis."""
    return Direction()(torch.linspace(-1, 2, dimension, dtype=dtype))


def vmf(dimension, kappa, dtype=torch.float64):
    return VonMisesFisher(direction(dimension, dtype), torch.tensor(kappa, dtype=dtype))


def log_surface(dimension):
    return math.log(2) + dimension / 2 * math.log(math.pi) - special.gammaln(dimension / 2)


def marginal(dimension, kappa):
    """The unnormalised log density of the angle between z and mu, and edges of where it is concentrated."""
    mean = min(1.5, math.sqrt((dimension - 1) / max(kappa, 1e-3)))

    def log_density(a):
        return -2 * kappa * np.sin(a / 2) ** 2 + (dimension - 2) * np.log(np.sin(a))

    return log_density, [0.0, *(mean * share for share in (0.3, 0.7, 1, 1.4, 2) if mean * share < 3), math.pi]


def integral(function, edges):
    return sum(integrate.quad(function, low, high, epsabs=0, epsrel=1e-11)[0] for low, high in pairwise(edges))


# ------------------------------------------------------------------ density


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("kappa", [0.0, 0.3, 4.0, 60.0])
def test_the_density_integrates_to_one_and_draws_follow_it(dimension, kappa):
    torch.manual_seed(0)
    rule = quadrature(vmf(dimension, kappa))
    assert abs(float(rule.masses.sum()) - 1) < 2e-4
    assert rule.goodness_of_fit(vmf(dimension, kappa).rsample((4000,))) > FAILURE_RATE / 8


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_the_density_integrates_to_one_in_every_dimension(dimension, kappa):
    """By the angle, on which alone it depends: the ring at an angle has the measure of a smaller sphere."""
    d = vmf(dimension, kappa)
    across = torch.zeros(dimension, dtype=torch.float64)
    across[0], across[1] = d.loc[1], -d.loc[0]
    across = across / across.norm()

    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(200))
    total = 0.0
    for low, high in pairwise(marginal(dimension, kappa)[1]):
        a = low + (high - low) * (nodes.unsqueeze(-1) + 1) / 2
        with pyro.validation_enabled(False):
            log_density = d.log_prob(a.cos() * d.loc + a.sin() * across)
        mass = (log_density + log_surface(dimension - 1) + (dimension - 2) * a.squeeze(-1).sin().log()).exp()
        total += float((weights * mass).sum()) * (high - low) / 2
    assert abs(total - 1) < 1e-8


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kappa", [0.3, 4.0, 60.0, 1e4])
def test_log_prob_is_the_textbook_formula(dimension, kappa):
    torch.manual_seed(0)
    d = vmf(dimension, kappa)
    z = torch.cat([d.sample((5,)), SphericalUniform(dimension, torch.zeros((), dtype=torch.float64)).sample((5,))])
    order = dimension / 2 - 1
    if dimension == 3:
        log_constant = math.log(kappa / (2 * math.pi)) - kappa - math.log(-math.expm1(-2 * kappa))
    else:
        bessel = math.log(special.ive(order, kappa)) + kappa
        log_constant = order * math.log(kappa) - dimension / 2 * math.log(2 * math.pi) - bessel
    torch.testing.assert_close(d.log_prob(z), kappa * (z @ d.loc) + log_constant, rtol=1e-11, atol=1e-8)


def test_on_the_circle_it_is_von_mises_of_the_angle():
    angle, z_angle = torch.tensor(0.7, dtype=torch.float64), torch.linspace(-3, 3, 9, dtype=torch.float64)
    d = VonMisesFisher(torch.stack([angle.cos(), angle.sin()]), torch.tensor(2.5, dtype=torch.float64))
    z = torch.stack([z_angle.cos(), z_angle.sin()], dim=-1)
    # Pyro's normalising constant is a polynomial of seven digits.
    torch.testing.assert_close(d.log_prob(z), dist.VonMises(angle, 2.5).log_prob(z_angle), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_float32_holds_the_density_and_its_gradients(dimension, kappa):
    torch.manual_seed(0)
    loc, z = direction(dimension, torch.float32), vmf(dimension, kappa, torch.float32).sample((50,))
    found = []
    for dtype in (torch.float32, torch.float64):
        concentration = torch.tensor(kappa, dtype=dtype, requires_grad=True)
        with pyro.validation_enabled(False):
            value = VonMisesFisher(loc.to(dtype), concentration).log_prob(z.to(dtype))
        found.append((value, torch.autograd.grad(value.sum(), concentration)[0]))
    (value, slope), (exact, exact_slope) = found
    torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-4, atol=50 * 2e-6)


def test_zero_concentration_is_uniform():
    z = direction(7)
    uniform = SphericalUniform(7, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(vmf(7, 0.0).log_prob(z), uniform.log_prob(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(uniform.log_prob(z).item(), -log_surface(7), rtol=1e-12, atol=0)


# ------------------------------------------------------------------ draws


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_draws_have_the_distribution_of_the_height(dimension, kappa):
    torch.manual_seed(1)
    d = vmf(dimension, kappa)
    z = d.sample((4000,))
    angle = 2 * torch.arcsin(((z - d.loc).norm(dim=-1) / 2).clamp_max(1)).numpy()
    log_density, edges = marginal(dimension, kappa)
    grid = np.concatenate([np.linspace(low, high, 200)[:-1] for low, high in pairwise(edges)] + [[math.pi]])
    nodes, weights = np.polynomial.legendre.leggauss(8)
    log_mass = log_density(grid[:-1, None] + np.diff(grid)[:, None] * (nodes + 1) / 2)
    masses = (np.exp(log_mass - log_mass.max()) * weights).sum(-1) * np.diff(grid)
    cdf = np.concatenate([[0.0], masses.cumsum() / masses.sum()])
    p_value = stats.kstest(angle, lambda a: np.interp(a, grid, cdf)).pvalue
    assert p_value > FAILURE_RATE / 25


@pytest.mark.parametrize("dimension", [2, 3, 5])
@pytest.mark.parametrize("kappa", [0.0, 4.0, 1e4])
def test_moments_of_draws(dimension, kappa):
    torch.manual_seed(2)
    d = vmf(dimension, kappa)
    z = d.sample((20000,))
    assert_mean(z, d.mean)
    assert_mean((z - d.mean).square(), d.variance)
    length = 0.0 if kappa == 0 else special.ive(dimension / 2, kappa) / special.ive(dimension / 2 - 1, kappa)
    torch.testing.assert_close(d.mean.norm().item(), length, rtol=1e-9, atol=1e-12)
    assert torch.equal(d.mode, d.loc)
    # Around the location no direction is preferred: the covariance is along it, and the same across.
    across = (1 - length) / 1 if kappa == 0 else length / kappa
    across = 1 / dimension if kappa == 0 else across
    along = 1 - length**2 - (dimension - 1) * across
    outer = torch.outer(d.loc, d.loc)
    covariance = across * (torch.eye(dimension, dtype=torch.float64) - outer) + along * outer
    centred = z - d.mean
    assert_mean(centred.unsqueeze(-1) * centred.unsqueeze(-2), covariance)


def test_uniform_draws():
    torch.manual_seed(3)
    uniform = SphericalUniform(4)
    z = uniform.sample((20000,))
    assert_mean(z, uniform.mean)
    assert_mean(z.unsqueeze(-1) * z.unsqueeze(-2), torch.eye(4) / 4)
    assert_mean(z.pow(4), torch.full((4,), 3 / 24))
    torch.testing.assert_close(uniform.variance, torch.full((4,), 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kappa", [0.0, 1.0, 1e6])
def test_draws_lie_on_the_sphere(dtype, kappa):
    torch.manual_seed(4)
    for dimension in (2, 3, 50):
        axes = torch.cat([torch.eye(dimension), -torch.eye(dimension)]).to(dtype)
        z = VonMisesFisher(axes, torch.full((2 * dimension,), kappa, dtype=dtype)).sample((200,))
        assert z.dtype == dtype
        assert bool(VonMisesFisher.support.check(z).all())


def test_a_seed_repeats_draws_bit_for_bit_with_and_without_gradients():
    loc, kappa = direction(5), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    draws = []
    for draw in (VonMisesFisher(loc, kappa).rsample, VonMisesFisher(loc, kappa).sample, vmf(5, 3.0).rsample):
        torch.manual_seed(5)
        draws.append(draw((100,)).detach())
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_a_concentration_that_is_no_number_ends_in_draws_that_are_none():
    with pyro.validation_enabled(False):
        z = VonMisesFisher(direction(3), torch.tensor(math.nan, dtype=torch.float64), validate_args=False).sample((3,))
    assert bool(z.isnan().all())


# ------------------------------------------------------------------ gradients through draws


@pytest.mark.parametrize("dimension", [2, 3, 5])
@pytest.mark.parametrize("kappa", [0.05, 2.0, 40.0])
def test_gradients_of_an_expectation_are_unbiased(dimension, kappa):
    r"""E[exp(a z)] is a ratio of two normalising constants, whose derivatives are ratios of Bessel functions."""
    torch.manual_seed(6)
    n, order = 40000, dimension / 2 - 1
    a = torch.linspace(1.0, -0.6, dimension, dtype=torch.float64)
    u = (1.7 * direction(dimension)).expand(n, -1).clone().requires_grad_()
    concentration = torch.full((n,), kappa, dtype=torch.float64, requires_grad=True)
    z = VonMisesFisher(Direction()(u), concentration).rsample()
    of_u, of_kappa = torch.autograd.grad((z @ a).exp().sum(), (u, concentration))

    def ratio(x):
        return special.ive(order + 1, x) / special.ive(order, x)

    def log_scaled(x):
        return math.log(special.ive(order, x)) + x - order * math.log(x)

    mu = direction(dimension)
    r = float((kappa * mu + a).norm())
    value = math.exp(log_scaled(r) - log_scaled(kappa))
    assert_mean((z @ a).exp(), torch.tensor(value))
    assert_mean(of_kappa, torch.tensor(value * (ratio(r) * (kappa + float(mu @ a)) / r - ratio(kappa))))
    along_the_sphere = (a - (a @ mu) * mu) / 1.7
    assert_mean(of_u, value * ratio(r) / r * kappa * along_the_sphere)


def test_a_draw_moves_with_the_concentration_as_its_distribution_function_says_on_the_ordinary_sphere():
    """In three dimensions t = -log(u + (1 - u) exp(-2 kappa)) / kappa for uniform u."""
    torch.manual_seed(7)
    for value in (0.01, 1.0, 30.0, 1e4):
        kappa = torch.full((200,), value, dtype=torch.float64, requires_grad=True)
        d = VonMisesFisher(direction(3).expand(200, 3), kappa)
        z = d.rsample()
        t = 1 - z @ d.loc[0]
        (found,) = torch.autograd.grad(t.sum(), kappa)
        t = ((z - d.loc).square().sum(-1) / 2).detach()
        u = (torch.expm1(-value * (t - 2)) / math.expm1(2 * value) if value < 5 else (-value * t).exp()).detach()
        free = kappa.detach().clone().requires_grad_()
        inverse = -torch.log(u + (1 - u) * (-2 * free).exp()) / free
        (exact,) = torch.autograd.grad(inverse.sum(), free)
        # The differences of t in float64 are those of z near loc.
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9 / value)


@pytest.mark.parametrize("dimension", [2, 4, 20])
@pytest.mark.parametrize("kappa", [0.2, 5.0, 200.0])
def test_a_draw_moves_with_the_concentration_as_its_distribution_function_says(dimension, kappa):
    """Against the derivative of the distribution function, by adaptive quadrature."""
    torch.manual_seed(8)
    concentration = torch.full((8,), kappa, dtype=torch.float64, requires_grad=True)
    d = VonMisesFisher(direction(dimension).expand(8, -1), concentration)
    z = d.rsample()
    (found,) = torch.autograd.grad((1 - z @ d.loc[0]).sum(), concentration)
    log_density, edges = marginal(dimension, kappa)
    mean = 1 - float(d.mean_length[0].detach())
    angles = (2 * torch.arcsin((z - d.loc).norm(dim=-1) / 2)).tolist()
    for angle, slope in zip(angles, found.tolist(), strict=True):

        def moved(a, at=angle):
            return (2 * math.sin(a / 2) ** 2 - mean) * math.exp(log_density(a) - log_density(at)) * math.sin(at)

        below, above = [0.0, *(a for a in edges[1:] if a < angle), angle], [angle, *(a for a in edges if a > angle)]
        exact = integral(moved, below) if 1 - math.cos(angle) < mean else -integral(moved, above)
        assert slope == pytest.approx(exact, rel=1e-6)


def test_a_second_derivative_through_a_draw_is_refused():
    kappa = torch.tensor(2.0, requires_grad=True)
    z = VonMisesFisher(direction(3, torch.float32), kappa).rsample()
    (slope,) = torch.autograd.grad(z[0], kappa, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.backward()


# ------------------------------------------------------------------ divergences


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_entropy_and_divergences_against_draws(dimension, kappa):
    torch.manual_seed(9)
    q, p = vmf(dimension, kappa), SphericalUniform(dimension, torch.zeros((), dtype=torch.float64))
    other = VonMisesFisher(direction(dimension).flip(-1), torch.tensor(1.5, dtype=torch.float64))
    z = q.sample((10000,))
    log_q = q.log_prob(z)
    assert_mean(-log_q, q.entropy())
    assert_mean(log_q - p.log_prob(z), kl_divergence(q, p))
    assert_mean(log_q - other.log_prob(z), kl_divergence(q, other))
    torch.testing.assert_close(kl_divergence(q, p) + q.entropy(), p.entropy(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kl_divergence(q, q).item(), 0.0, rtol=0, atol=1e-11)


def test_the_divergence_from_the_uniform_is_zero_without_concentration_and_closed_in_three_dimensions():
    kappa = torch.tensor([0.0, 0.5, 7.0], dtype=torch.float64, requires_grad=True)
    q, p = VonMisesFisher(direction(3).expand(3, 3), kappa), SphericalUniform(3)
    value = kl_divergence(q, p)
    (slope,) = torch.autograd.grad(value.sum(), kappa)
    k = kappa.detach()[1:]
    torch.testing.assert_close(value[1:], k / k.tanh() - 1 + (k / k.sinh()).log(), rtol=1e-12, atol=0)
    torch.testing.assert_close(slope[1:], 1 / k - k / k.sinh().square(), rtol=1e-11, atol=0)
    assert value[0].item() == pytest.approx(0, abs=1e-13)
    assert slope[0].item() == 0.0


# ------------------------------------------------------------------ shapes, and how they are declared


def test_shapes():
    d = VonMisesFisher(direction(4).expand(3, 1, 4), torch.rand(5, dtype=torch.float64))
    assert d.batch_shape == (3, 5)
    assert d.event_shape == (4,)
    assert d.rsample((2,)).shape == (2, 3, 5, 4)
    assert d.mean.shape == d.variance.shape == (3, 5, 4)
    wide = d.expand((7, 3, 5)).to_event(1)
    assert wide.log_prob(wide.sample()).shape == (7, 3)
    uniform = SphericalUniform(4).expand((3, 5))
    assert uniform.sample((2,)).shape == (2, 3, 5, 4)
    assert uniform.log_prob(uniform.sample((2,))).shape == (2, 3, 5)
    assert kl_divergence(wide, uniform.expand((7, 3, 5)).to_event(1)).shape == (7, 3)
    with pyro.plate("data", 6, dim=-1):
        assert pyro.sample("z", vmf(4, 2.0)).shape == (6, 4)


def test_the_transform_to_the_sphere():
    transform = transform_to(unit_vector)
    u = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1e-30, 0.0, 0.0], [1e30, 0.0, 1e30]], requires_grad=True)
    z = transform(u)
    assert bool(unit_vector.check(z).all())
    (slope,) = torch.autograd.grad(z[:, 1].sum(), u)
    assert bool(slope.isfinite().all())
    # as at the vector that zero stands for, of length sqrt(3)
    torch.testing.assert_close(slope[1], torch.tensor([-1.0, 2.0, -1.0]) / 3**1.5)
    learned = Conditional(VonMisesFisher, (3,), loc=Learned([0.0, 0.6, 0.8]), concentration=Fixed(2.0))
    torch.testing.assert_close(learned().loc, torch.tensor([0.0, 0.6, 0.8]))


def test_a_direction_is_learned_from_a_start_without_one():
    torch.manual_seed(10)
    data = vmf(3, 20.0, torch.float32).sample((500,))
    conditional = Conditional(VonMisesFisher, (3,))
    optimizer = torch.optim.Adam(conditional.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-conditional().log_prob(data).mean()).backward()
        optimizer.step()
    best = data.mean(0)
    with torch.no_grad():
        fitted = conditional()
    assert float((fitted.loc - best / best.norm()).norm()) < 1e-3
    assert float(fitted.mean_length - best.norm()) == pytest.approx(0, abs=1e-3)


def test_the_prior_takes_its_dimension_from_the_event():
    prior = Conditional(SphericalUniform, (3,))
    assert prior.to_spec() == {"family": "SphericalUniform"}
    assert prior().event_shape == (3,)
    assert prior.double()().sample((2,)).dtype == torch.float64
    assert Conditional(SphericalUniform, (4, 3))().event_shape == (4, 3)
    with pytest.raises(InputError, match="1 dimension"):
        Conditional(SphericalUniform, ())
    with pytest.raises(InputError, match="at least 2"):
        Conditional(SphericalUniform, (1,))
    with pytest.raises(InputError, match=r"events of shape \(4,\)"):
        Conditional(SphericalUniform, (3,), dimension=Fixed(4))
    with pytest.raises(ValueError, match="`dimension`"):
        SphericalUniform(1)


def test_bad_parameters():
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        VonMisesFisher(torch.ones(1), torch.tensor(1.0))
    with pytest.raises(ValueError, match="loc"):
        VonMisesFisher(torch.ones(3), torch.tensor(1.0), validate_args=True)
    with pytest.raises(ValueError, match="concentration"):
        VonMisesFisher(direction(3), torch.tensor(-1.0).double(), validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        VonMisesFisher(direction(3), torch.tensor(1.0).double(), validate_args=True).log_prob(torch.ones(3).double())
    with pytest.raises(InputError, match="violates the constraint"):
        Conditional(VonMisesFisher, (3,), loc=Fixed([1.0, 1.0, 0.0]))


# ------------------------------------------------------------------ in a VAE

NOISE = 0.5


class ExactPosterior(nn.Module):
    """p(z|x) of x = W z + noise with orthogonal columns of one length, where z is uniform on the sphere."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        natural = x @ self.weight / NOISE**2
        kappa = natural.norm(dim=-1)
        return VonMisesFisher(Direction()(natural), kappa)


def loadings(features, dimension):
    torch.manual_seed(11)
    return 2.5 * torch.linalg.qr(torch.randn(features, dimension, dtype=torch.float64)).Q


def sphere_vae(weight, posterior):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight.data = weight.clone()
    likelihood = Conditional(
        dist.Normal, (weight.shape[0],), given=linear, head=None, features=weight.shape[0], scale=Fixed(NOISE)
    )
    return VAE(
        Conditional(SphericalUniform, (weight.shape[1],)).to(weight.dtype), likelihood.to(weight.dtype), posterior
    )


def exact_log_marginal(x, weight):
    features, dimension = weight.shape
    kappa, order = (x @ weight / NOISE**2).norm(dim=-1), dimension / 2 - 1
    log_bessel = torch.from_numpy(special.ive(order, kappa.numpy())).log() + kappa
    log_0f1 = log_bessel - order * (kappa / 2).log() + special.gammaln(order + 1)
    square = x.square().sum(-1) + weight.square().sum(0).mean()
    return log_0f1 - square / (2 * NOISE**2) - features / 2 * math.log(2 * math.pi * NOISE**2)


@pytest.mark.parametrize("dimension", [2, 3, 6])
def test_with_the_exact_posterior_every_weight_is_the_marginal_likelihood(dimension):
    weight = loadings(8, dimension)
    vae = sphere_vae(weight, ExactPosterior(weight))
    x = vae.generate(20)
    weights = vae.log_weights(x, num_particles=5)
    exact = exact_log_marginal(x, weight).expand(5, -1)
    torch.testing.assert_close(weights, exact, rtol=1e-10, atol=1e-10)
    z = vae.encode(x).sample()
    expected = vae.log_likelihood(z.expand(2000, -1, -1), x).shape
    assert expected == (2000, 20)


@pytest.mark.parametrize(
    "inference",
    [AEVB(), *(pytest.param(i, marks=pytest.mark.slow) for i in (STL(), IWAE(5), DReG(5), AnalyticKL()))],
    ids=lambda i: type(i).__name__,
)
def test_a_vae_on_the_sphere_is_recovered(inference):
    """Within 0.06 nats of the exact log p(x) of the model that made the data, on data held out."""
    weight = loadings(6, 3).float()
    truth = sphere_vae(weight, ExactPosterior(weight))
    x, held_out = truth.generate(3000), truth.generate(500)
    torch.manual_seed(12)
    vae = VAE(
        Conditional(SphericalUniform, (3,)),
        Conditional(dist.Normal, (6,), given=nn.Linear(3, 6), head=None, features=6, scale=Fixed(NOISE)),
        Conditional(
            VonMisesFisher,
            (3,),
            given=mlp(6, 32),
            concentration=Network(transform=constraints.softplus_positive),
        ),
    )
    fit(vae, x, inference, Training(optimizer=partial(ADAM, lr=0.03), steps=150, batch_size=100), seed=0)
    estimate = log_marginal(vae, held_out, 100)
    best = exact_log_marginal(held_out.double(), weight.double())
    lost = best - torch.as_tensor(estimate.pointwise).double()
    assert float(lost.mean()) < 0.06
    # By Jensen no model is better in expectation.
    assert float(lost.mean()) > -4.3 * float(lost.std()) / len(lost) ** 0.5
    # Far from what a latent that says nothing would reach
    flat = dist.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(held_out).double()
    assert float((best - flat).mean()) > 0.2


def test_the_divergence_of_a_posterior_is_analytic():
    weight = loadings(6, 3)
    vae = sphere_vae(weight, ExactPosterior(weight))
    x = vae.generate(4)
    q = vae.encode(x)
    torch.testing.assert_close(analytic_kl(q, vae.prior()), kl_divergence(q, vae.prior().expand((4,))))


def test_no_posterior_follows_and_one_of_another_support_is_refused():
    prior, likelihood = (
        Conditional(SphericalUniform, (3,)),
        Conditional(dist.Normal, (6,), given=mlp(3, 8), scale=Fixed(1.0)),
    )
    named = r"pass posterior=Conditional\(VonMisesFisher, \(3,\), given=...\)"
    with pytest.raises(InputError, match=rf"no bijection.*`SphericalUniform`.*{named}"):
        VAE(prior, likelihood)
    with pytest.raises(InputError, match=rf"`Normal` is over the real space.*{named}"):
        VAE(prior, likelihood, Conditional(dist.Normal, (3,), given=mlp(6, 8)))
    with pytest.raises(InputError, match="draws outside the"):
        VAE(prior, likelihood, Conditional(dist.Dirichlet, (3,), given=mlp(6, 8)))
    with pytest.raises(InputError, match="declare both with the same event_shape"):
        VAE(prior, likelihood, Conditional(VonMisesFisher, (4,), given=mlp(6, 8)))
    with pytest.raises(InputError, match="would never be used"):
        Conditional(SphericalUniform, (3,), given=mlp(3, 8))


def test_what_moves_in_unconstrained_space_is_refused_by_name():
    vae = sphere_vae(loadings(6, 3), ExactPosterior(loadings(6, 3)))
    x = vae.generate(2)
    with pytest.raises(InputError, match=r"no bijection onto the support .* of the prior `SphericalUniform`"):
        annealed_importance_sampling(vae, x)
    with pytest.raises(InputError, match=r"no bijection onto the support .* of the prior `SphericalUniform`"):
        list(MCEM().losses(vae, x))


def test_a_learned_prior_and_a_mixture_of_von_mises_fisher():
    torch.manual_seed(13)
    likelihood = Conditional(dist.Normal, (6,), given=mlp(3, 8), scale=Fixed(1.0))
    for prior in (
        Conditional(VonMisesFisher, (3,)),
        Mixture(VonMisesFisher, (3,), 4, loc=Learned(noise=1.0)),
    ):
        vae = VAE(prior, likelihood, Conditional(VonMisesFisher, (3,), given=mlp(6, 8)))
        vae.log_weights(torch.randn(5, 6), 3).mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in vae.parameters())
        assert bool((vae.generate(5).isfinite()).all())
        vae.zero_grad()


def test_pyro_infers_with_it():
    vae = VAE(
        Conditional(SphericalUniform, (3,)),
        Conditional(dist.Normal, (6,), given=mlp(3, 8), scale=Fixed(1.0)),
        Conditional(VonMisesFisher, (3,), given=mlp(6, 8)),
    )
    torch.manual_seed(14)
    x = 2 + torch.randn(50, 6)
    for elbo in (pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO()):
        svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        losses = [svi.step(x) for _ in range(40)]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 10


FILE = """
seeds: [0]
data: digits
latent: 3
prior: SphericalUniform
likelihood: {family: Bernoulli, network: {mlp: [16]}}
posterior: {family: VonMisesFisher, concentration: {network: {transform: softplus}}, network: {mlp: [16]}}
inference: analytic-kl
"""


def test_from_an_experiment_file():
    experiment = Experiment.parse(yaml.safe_load(FILE))
    vae = experiment.build()
    assert vae.prior().event_shape == (3,)
    spec = to_spec(vae)
    assert spec["prior"] == {"family": "SphericalUniform"}
    again = Experiment.parse({**yaml.safe_load(FILE), **spec}).build()
    assert str(again.posterior) == str(vae.posterior)
    again.load_state_dict(vae.state_dict())
    assert bool(vae.generate(5).isfinite().all())


def test_a_reconstruction_decodes_a_point_of_the_sphere():
    likelihood = Conditional(dist.Normal, (6,), given=mlp(3, 8), scale=Fixed(1.0))
    posterior = Conditional(VonMisesFisher, (3,), given=mlp(6, 8))
    vae = VAE(Conditional(SphericalUniform, (3,)), likelihood, posterior)
    x = torch.randn(4, 6)
    expected = vae.decode(vae.encode(x).mode).mean
    torch.testing.assert_close(vae.reconstruct(x), expected, rtol=0, atol=0)
    assert bool((vae.encode(x).mean.norm(dim=-1) < 0.99).all())
