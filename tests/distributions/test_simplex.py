"""Stick breaking in log space against torch's in float64, against 50 digits, and in float32 where torch's fails."""

from __future__ import annotations

import copy
import math
import pickle

import mpmath
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import IndependentTransform, StickBreakingTransform
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, Training, fit, mlp
from pyro_vae.distributions.kl import analytic_kl
from pyro_vae.distributions.simplex import LogisticNormal, StickBreaking, bijection_onto
from pyro_vae.inference import AEVB, ALGORITHMS
from pyro_vae.inference.latents import Latents
from pyro_vae.vae.derived_posterior import unconstrained_shape

CELLS, SCALE = 50, 3.0
T, TORCH = StickBreaking(), StickBreakingTransform()


def draws(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ------------------------------------------------------------------ the map


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_it_is_torchs_map_in_double_precision(n: int) -> None:
    u = draws(3, 40, n)
    z = TORCH(u)
    torch.testing.assert_close(T(u), z, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(T.inv(z), TORCH.inv(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(T.log_abs_det_jacobian(u, z), TORCH.log_abs_det_jacobian(u, z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(T.log_simplex(u), z.log(), rtol=1e-12, atol=1e-12)


def exactly(u: list[float]) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    """log z, and the log determinant of the triangular Jacobian, from products of what is left of the stick."""
    with mpmath.workdps(60 + int(sum(abs(v) for v in u))):
        left, z, slope = mpmath.mpf(1), [], mpmath.mpf(0)
        for i, v in enumerate(u):
            share = 1 / (1 + mpmath.exp(mpmath.log(len(u) - i) - mpmath.mpf(v)))
            z.append(left * share)
            slope += mpmath.log(left * share * (1 - share))
            left *= 1 - share
        return [mpmath.log(v) for v in (*z, left)], slope


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize(
    "u", [[0.0, 0.0], [40.0, 30.0, -30.0], [-200.0, 150.0, 0.5, 90.0], [12.0, -11.0, 20.0, 19.0, -3.0, 7.0]]
)
def test_logarithms_and_log_determinant_are_those_of_exact_arithmetic(
    u: list[float], dtype: torch.dtype, tolerance: float
) -> None:
    log_z, slope = exactly(u)
    given = torch.tensor(u, dtype=dtype)
    expected = torch.tensor([float(v) for v in log_z], dtype=torch.float64)
    torch.testing.assert_close(T.log_simplex(given).double(), expected, rtol=tolerance, atol=tolerance)
    got = float(T.log_abs_det_jacobian(given, T(given)))
    assert abs(got - float(slope)) <= tolerance * max(1, abs(float(slope)))


def test_the_log_determinant_is_that_of_the_jacobian() -> None:
    u = draws(5, scale=2.0)
    jacobian = torch.autograd.functional.jacobian(lambda v: T(v)[:-1], u)
    sign, log_det = torch.linalg.slogdet(jacobian)
    assert float(sign) == T.sign == 1
    torch.testing.assert_close(T.log_abs_det_jacobian(u, T(u)), log_det, rtol=1e-12, atol=1e-12)


def test_u_comes_back_in_single_precision_where_torchs_does_not() -> None:
    u = draws(2000, CELLS - 1, scale=SCALE).float()
    z = T(u)
    error, theirs = ((inverse(z) - u).abs() for inverse in (T.inv, TORCH.inv))
    assert float(error.median()) < 1e-6  # measured 2.4e-7
    assert float(error.max()) < 2e-5  # measured 6.8e-6
    assert float(theirs.max()) > 1
    assert bool(constraints.simplex.check(z).all())


def test_z_sums_to_one_in_single_precision_over_a_thousand_cells() -> None:
    z = T(draws(500, 999).float())
    assert float((z.double().sum(-1) - 1).abs().max()) < 1e-6
    assert bool(constraints.simplex.check(z).all())


def test_what_a_transform_tells_about_itself() -> None:
    assert StickBreaking() == T == TORCH
    assert TORCH == T
    assert biject_to(constraints.positive) != T
    assert T.bijective
    assert T.domain.event_dim == T.codomain.event_dim == 1
    assert (T.domain, T.codomain) == (constraints.real_vector, constraints.simplex)
    assert T.forward_shape((4, 2)) == (4, 3)
    assert T.inverse_shape((4, 3)) == (4, 2)
    with pytest.raises(ValueError, match="Too few"):
        T.inverse_shape(())
    for same in (copy.deepcopy(T), pickle.loads(pickle.dumps(T)), T.with_cache(1)):
        assert same == T
    cached, u = T.with_cache(1), draws(2)
    assert cached.inv(cached(u)) is u
    for dtype in (torch.float32, torch.float64):
        u = draws(2, 3).to(dtype)
        assert (T(u).dtype, T.inv(T(u)).dtype, T.log_abs_det_jacobian(u, T(u)).dtype) == (dtype, dtype, dtype)
        assert torch.equal(torch.func.vmap(T)(u), T(u))


def test_gradients_in_single_precision_are_those_of_double() -> None:
    def gradients(u: Tensor) -> list[Tensor]:
        u = u.clone().requires_grad_()
        z = T(u)
        weights = torch.arange(CELLS, dtype=u.dtype).sin()
        functions = [
            (z * weights).sum(),
            (z.log() * weights).sum(),
            T.log_abs_det_jacobian(u, z).sum(),
            T.inv(z).square().sum(),
        ]
        return [torch.autograd.grad(f, u, retain_graph=True)[0] for f in functions]

    u = draws(200, CELLS - 1, scale=SCALE).float()
    for single, double in zip(gradients(u), gradients(u.double()), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    # In double precision too, what goes there and back is the identity.
    torch.testing.assert_close(gradients(u.double())[3], 2 * u.double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [100.0, 300.0, 1e4])
def test_values_and_gradients_are_finite_where_cells_underflow(dtype: torch.dtype, scale: float) -> None:
    u = draws(50, CELLS - 1, scale=scale).to(dtype).requires_grad_()
    z = T(u)
    assert float(z.detach().min()) == torch.finfo(dtype).tiny
    assert bool(constraints.simplex.check(z).all())
    prior = LogisticNormal(torch.zeros(CELLS - 1, dtype=dtype), torch.full((CELLS - 1,), 0.1, dtype=dtype))
    sparse = dist.Dirichlet(torch.full((CELLS,), 0.1, dtype=dtype))
    for value in (prior.log_prob(z), sparse.log_prob(z), T.log_abs_det_jacobian(u, z), T.inv(z).square().sum(-1)):
        assert bool(value.isfinite().all())
        (gradient,) = torch.autograd.grad(value.sum(), u, retain_graph=True)
        assert bool(gradient.isfinite().all())
    zeros = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5]], dtype=dtype, requires_grad=True)
    back = T.inv(zeros)
    (gradient,) = torch.autograd.grad(back.square().sum(), zeros)
    assert bool(back.isfinite().all() and gradient.isfinite().all())


def test_the_bijection_onto_a_support() -> None:
    assert type(bijection_onto(constraints.simplex)) is StickBreaking
    inside = bijection_onto(constraints.independent(constraints.simplex, 2))
    assert isinstance(inside, IndependentTransform)
    assert type(inside.base_transform) is StickBreaking
    assert inside.codomain.event_dim == 3
    assert inside.inverse_shape((2, 3, 4)) == (2, 3, 3)
    for other in (constraints.positive, constraints.interval(-1.0, 2.0), constraints.real_vector):
        mine, its = bijection_onto(other), biject_to(other)
        assert type(mine) is type(its)
        torch.testing.assert_close(mine(draws(3)), its(draws(3)), rtol=0, atol=0)
    with pytest.raises(NotImplementedError):
        bijection_onto(constraints.nonnegative_integer)
    assert type(biject_to(constraints.simplex)) is StickBreakingTransform  # torch's registry is left as it is


# ------------------------------------------------------------------ the logistic normal


def test_its_density_in_single_precision_is_that_of_double_where_torchs_is_wrong() -> None:
    u = draws(2000, CELLS - 1, scale=SCALE).float()
    z = T(u)
    normal = dist.Normal(torch.zeros(CELLS - 1).double(), SCALE).to_event(1)
    expected = normal.log_prob(u.double()) - TORCH.log_abs_det_jacobian(u.double(), T.log_simplex(u.double()).exp())

    def error(family: type[dist.TorchDistribution]) -> Tensor:
        p = family(torch.zeros(CELLS - 1), torch.full((CELLS - 1,), SCALE))
        return (p.log_prob(z).double() - expected).abs()

    mine = error(LogisticNormal)
    assert float(mine.max()) < 1e-3  # nats, of about 400; measured 2.9e-4
    assert float((mine / expected.abs()).max()) < 1e-6  # measured 3.3e-7
    assert float(error(dist.LogisticNormal).median()) > 100


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.0])
def test_its_density_integrates_to_one_over_the_simplex(scale: float) -> None:
    """By Gauss-Legendre quadrature of (s, t) in the unit square, z = (s, (1 - s) t, (1 - s) (1 - t))."""
    p = LogisticNormal(torch.tensor([0.3, -0.5]).double(), torch.tensor([scale, 0.8 * scale]).double())
    n = 400
    x, w = torch.linalg.eigh(torch.diag((k := torch.arange(1.0, n).double()) / (4 * k**2 - 1).sqrt(), -1))
    x, w = (x + 1) / 2, w[0].square()
    s, t = torch.meshgrid(x, x, indexing="ij")
    z = torch.stack([s, (1 - s) * t, (1 - s) * (1 - t)], -1)
    weight = w.unsqueeze(-1) * w * (1 - s)
    density = p.log_prob(z).exp() * weight
    assert abs(float(density.sum()) - 1) < 1e-6
    exact = (density.unsqueeze(-1) * z).sum((0, 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert_mean(p.sample((20_000,)), exact)
        assert_mean(p.rsample((20_000,)), exact)


def test_it_is_a_family_as_torchs() -> None:
    loc, scale = draws(4, 1, 5), draws(5).exp()
    mine, its = LogisticNormal(loc, scale), dist.LogisticNormal(loc, scale)
    assert mine.arg_constraints == its.arg_constraints
    assert (mine.batch_shape, mine.event_shape) == (its.batch_shape, its.event_shape) == ((4, 1), (6,))
    assert mine.support is constraints.simplex
    assert mine.has_rsample
    z = its.sample((3,))
    torch.testing.assert_close(mine.log_prob(z), its.log_prob(z), rtol=1e-9, atol=1e-9)
    wide = mine.expand((4, 2))
    assert isinstance(wide, LogisticNormal)
    assert (wide.batch_shape, wide.loc.shape) == ((4, 2), (4, 2, 5))
    assert type(wide.transforms[0]) is StickBreaking
    torch.testing.assert_close(wide.log_prob(z.expand(3, 4, 2, 6)), mine.log_prob(z).expand(3, 4, 2))
    assert LogisticNormal(0.0, 1.0).event_shape == (2,)
    with pytest.raises(ValueError, match="scale"):
        LogisticNormal(torch.zeros(2), -torch.ones(2), validate_args=True)
    with pytest.raises(ValueError, match="Simplex"):
        LogisticNormal(torch.zeros(2), torch.ones(2), validate_args=True).log_prob(torch.tensor([0.9, 0.9, 0.9]))


def test_a_declaration_puts_it_in_the_place_of_torchs() -> None:
    p = Conditional(dist.LogisticNormal, (3,), loc=Learned(shape=(2,)), scale=Learned(shape=(2,)))
    assert p.family is LogisticNormal
    assert type(p()) is LogisticNormal
    assert p.to_spec()["family"] == "LogisticNormal"


# ------------------------------------------------------------------ in a VAE


def logistic_normal(cells: int, scale: float = SCALE) -> Conditional:
    loc, scales = torch.zeros(cells - 1).tolist(), torch.full((cells - 1,), scale).tolist()
    return Conditional(dist.LogisticNormal, (cells,), loc=Fixed(loc), scale=Fixed(scales))


def dirichlet(cells: int) -> Conditional:
    return Conditional(dist.Dirichlet, (cells,), concentration=Fixed([0.3] * cells))


X = (torch.rand(40, 12, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def vae_with(prior: Conditional) -> VAE:
    torch.manual_seed(0)
    return VAE(prior, Conditional(dist.Bernoulli, (12,), given=mlp(prior.event_shape[0], 7)))


@pytest.mark.parametrize("prior", [logistic_normal, dirichlet])
def test_log_weights_in_single_precision_are_those_of_double(prior) -> None:
    """At the same u; with torch's transform some of them are infinite."""
    vae = vae_with(prior(CELLS))
    with torch.no_grad():
        vae.posterior.base.head.bias[CELLS - 1 :] = math.log(2.0)  # a wide posterior
    double = copy.deepcopy(vae).double()
    u = vae.encode(X).base_dist.sample((200,))
    weights = []
    for model, at in ((vae, u), (double, u.double())):
        latents = Latents(model, Batch(X.to(at.dtype)))
        assert type(latents.transform) is StickBreaking
        with torch.no_grad():
            weights.append(latents.log_joint(at) - latents.log_posterior(at))
    error = (weights[0].double() - weights[1]).abs() / weights[1].abs().clamp_min(1)
    assert float(error.max()) < 1e-4


@pytest.mark.parametrize(
    ("prior", "name"),
    [
        *((logistic_normal, "aevb"), (dirichlet, "iwae"), (logistic_normal, "mcem")),
        *(pytest.param(dirichlet, name, marks=pytest.mark.slow) for name in ("aevb", "mcem")),
        pytest.param(logistic_normal, "iwae", marks=pytest.mark.slow),
    ],
)
def test_a_vae_on_fifty_cells_trains(prior, name: str) -> None:
    vae = vae_with(prior(CELLS))
    assert unconstrained_shape(vae.prior, vae.latent_shape) == (CELLS - 1,)
    before = {k: v.clone() for k, v in vae.named_parameters()}
    steps = 5 if name == "mcem" else 20  # of which each makes a hundred leapfrog steps
    training = Training(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), steps=steps, batch_size=20)
    history = fit(vae, X, ALGORITHMS[name](), training)
    assert history.stopped == "completed"
    assert ALGORITHMS[name]().has_bound is False or bool(torch.as_tensor(history.bound).isfinite().all())
    assert all(bool(v.isfinite().all()) for v in vae.parameters())
    reached = vae.theta if name == "mcem" else before
    assert reached
    assert all(not torch.equal(v, before[k]) for k, v in vae.named_parameters() if k in reached)
    assert bool(constraints.simplex.check(vae.encode(X).sample()).all())


def test_aevb_with_a_logistic_normal_prior_improves_its_bound() -> None:
    vae = vae_with(logistic_normal(CELLS, 1.0))

    def bound() -> float:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            return float(vae.log_weights(X, 200).mean())

    first = bound()
    fit(vae, X, AEVB(), Training(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), steps=60, batch_size=40))
    assert bound() > first + 1


@pytest.mark.parametrize("prior", [dist.LogisticNormal, LogisticNormal])
def test_the_kl_from_a_logistic_normal_prior_is_that_of_the_normals(prior) -> None:
    vae = vae_with(logistic_normal(5, 0.7)).double()
    p = prior(torch.zeros(4).double(), torch.full((4,), 0.7).double())
    q = vae.encode(X.double())
    expected = analytic_kl(q.base_dist, dist.Normal(torch.zeros(4).double(), 0.7).to_event(1))
    torch.testing.assert_close(analytic_kl(q, p), expected)
    z = q.sample((5000,))
    assert_mean(q.log_prob(z) - p.log_prob(z), expected)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, p.expand((40,))), expected)
