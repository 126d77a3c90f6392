"""Normalizing flows against quadrature, against uncached copies of themselves, and against zuko's global state."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed, Flow, Training, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, IWAE, RWS, STL, DReG, WakeSleep
from pyro_vae.vae.flow import FlowDistribution

KINDS = [("maf", 1), ("nsf", 1), ("maf", 2), ("nsf", 2), ("realnvp", 2)]
EVERY = pytest.mark.parametrize(("kind", "latent"), KINDS, ids=lambda value: str(value))


def warped(kind: str, latent: int, given: bool = False, fast: str | None = None, hidden: int = 8) -> Flow:
    """A flow that is far from the identity."""
    torch.manual_seed(0)
    flow = Flow((latent,), kind, given=mlp(4, 6) if given else None, hidden=(hidden,), fast=fast).double()
    with torch.no_grad():
        for parameter in flow.transform.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


def distribution(flow: Flow, rows: int = 3) -> FlowDistribution:
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return flow() if flow.given is None else flow(context)


def grid(latent: int) -> tuple[Tensor, float]:
    """Points of [-40, 40]^L, finer in the bulk, with their weights folded into one step by u = asinh(z)."""
    u = torch.linspace(-4.5, 4.5, 1001 if latent == 1 else 281, dtype=torch.float64)
    axes = torch.meshgrid(*[u] * latent, indexing="ij")
    return torch.stack([a.flatten() for a in axes], -1), float(u[1] - u[0]) ** latent


# ------------------------------------------------------------------ the density


@EVERY
@pytest.mark.parametrize(
    ("given", "fast"),
    [
        pytest.param(False, "density", id="prior-density"),
        pytest.param(True, "sampling", id="posterior-sampling"),
        pytest.param(False, "sampling", id="prior-sampling", marks=pytest.mark.slow),
        pytest.param(True, "density", id="posterior-density", marks=pytest.mark.slow),
    ],
)
def test_the_density_integrates_to_1_and_draws_follow_it(kind: str, latent: int, given: bool, fast: str) -> None:
    p = distribution(warped(kind, latent, given, fast), 1)
    u, step = grid(latent)
    z = u.sinh().unsqueeze(1) if given else u.sinh()
    with torch.no_grad():
        mass = (p.log_prob(z).reshape(len(u)) + u.cosh().log().sum(-1)).exp() * step
        assert abs(float(mass.sum()) - 1) < 1e-3
        z = z.reshape(len(u), latent)
        exact = (mass.unsqueeze(-1) * torch.cat([z, z.abs(), (z[:, :1] * z[:, -1:]).tanh()], -1)).sum(0)
        draws = p.sample((40_000,)).reshape(-1, latent)
        assert_mean(torch.cat([draws, draws.abs(), (draws[:, :1] * draws[:, -1:]).tanh()], -1), exact / mass.sum())


@EVERY
@pytest.mark.parametrize("given", [False, True], ids=["prior", "posterior"])
@pytest.mark.parametrize("fast", ["density", "sampling"])
def test_the_density_of_a_draw_is_that_of_a_copy_of_it(kind: str, latent: int, given: bool, fast: str) -> None:
    q = distribution(warped(kind, latent, given, fast))
    z = q.rsample((5,))
    assert q.log_prob(z).shape == ((5, 3) if given else (5,))
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-10, atol=1e-10)


@EVERY
def test_every_flow_starts_near_the_identity(kind: str, latent: int) -> None:
    """Within a tenth, and not at it, so that all parameters have a gradient."""
    u = torch.randn(200, latent)
    for given in (False, True):
        torch.manual_seed(0)
        flow = Flow((latent,), kind, given=mlp(4, 6) if given else None)
        z = flow(torch.randn(1, 4)).transform(u) if given else flow().transform(u)
        assert 1e-5 < float((z - u).detach().abs().max()) < 0.1


def test_an_unconditional_flow_takes_the_batch_shape_of_a_context_that_it_does_not_need() -> None:
    assert Flow((2,))(torch.randn(5, 3, 4)).batch_shape == (5, 3)
    assert Flow((2,))(torch.randn(5, 3, 4)).sample((7,)).shape == (7, 5, 3, 2)


def test_leading_dimensions_of_the_context() -> None:
    flow = warped("maf", 2, given=True)
    context, z = torch.randn(7, 3, 4).double(), torch.randn(7, 3, 2).double()
    q = flow(context)
    assert q.batch_shape == (7, 3)
    assert q.rsample((5,)).shape == (5, 7, 3, 2)
    torch.testing.assert_close(q.log_prob(z)[2], flow(context[2]).log_prob(z[2]), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ the memory of a draw


def test_what_is_drawn_without_a_graph_is_scored_with_one() -> None:
    q = distribution(warped("maf", 2, given=True))
    with torch.no_grad():
        z = q.rsample((5,))
    assert q.log_prob(z).requires_grad
    assert q.log_prob(q.sample((5,))).requires_grad


def passes(flow: Flow) -> Callable[[], int]:
    """Counts how often the hyper-networks run."""
    calls: list[int] = []
    for step in flow.transform.transforms:
        step.hyper.register_forward_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


@pytest.mark.parametrize("kind", ["maf", "nsf", "realnvp"])
def test_a_step_of_training_takes_no_sequential_passes(kind: str) -> None:
    """Three steps of the posterior, each once for a draw and its density; three of the prior, for the density."""
    prior, posterior = Flow((6,), kind, hidden=(8,)), Flow((6,), kind, given=mlp(6, 5), hidden=(8,))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(6, 7)), posterior)
    of_prior, of_posterior = passes(prior), passes(posterior)
    x = (torch.rand(4, 6) < 0.5).float()
    for inference in (AEVB(5), IWAE(5)):
        before = of_prior(), of_posterior()
        (loss,) = inference.losses(vae, x)
        loss.value.backward()
        assert (of_prior() - before[0], of_posterior() - before[1]) == (3, 3)


@pytest.mark.parametrize("kind", ["maf", "nsf"])
def test_the_slow_way_takes_a_pass_for_each_dimension(kind: str) -> None:
    flow = Flow((6,), kind, hidden=(8,))  # fast at its density
    count = passes(flow)
    flow().sample((2,))
    assert count() >= 6 * 3


# ------------------------------------------------------------------ training


class Uncached(FlowDistribution):
    """Forgets its draws."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.clone())


def gradients(inference: torch.nn.Module, cached: bool, prior: torch.nn.Module) -> list[Tensor]:
    torch.manual_seed(0)
    posterior = Flow((2,), "maf", given=mlp(6, 5), hidden=(8,))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), posterior).double()
    with torch.no_grad():
        for parameter in posterior.transform.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if not cached:
        forward = posterior.forward
        posterior.forward = lambda context: (lambda q: Uncached(q.base, q.transform))(forward(context))
    x = (torch.rand(8, 6, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    torch.manual_seed(3)
    for loss in inference.losses(vae, x):
        if loss.value.requires_grad:
            loss.value.backward()
    return [p.grad for p in vae.parameters() if p.grad is not None]


NORMAL = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
GAMMA = Conditional(dist.Gamma, (2,), concentration=Fixed(2.0), rate=Fixed(1.0))


@pytest.mark.parametrize("prior", [NORMAL, GAMMA], ids=["real", "pushed"])
@pytest.mark.parametrize("inference", [AEVB(3), IWAE(3), STL(3), DReG(3), RWS(3), WakeSleep()], ids=lambda i: i.name)
def test_the_memory_changes_no_gradient(inference: torch.nn.Module, prior: torch.nn.Module) -> None:
    """Also where the flow is pushed onto a bounded support."""
    for one, other in zip(*(gradients(inference, cached, prior) for cached in (True, False)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("single", "other", "prior"),
    [
        (STL(), AEVB(), NORMAL),
        pytest.param(DReG(4), IWAE(4), NORMAL, marks=pytest.mark.slow),
        (DReG(4), IWAE(4), GAMMA),
    ],
    ids=["stl", "dreg", "dreg-pushed"],
)
def test_estimators_of_one_gradient_agree_in_expectation(
    single: torch.nn.Module, other: torch.nn.Module, prior: torch.nn.Module
) -> None:
    torch.manual_seed(0)
    posterior = Flow((2,), "maf", given=mlp(6, 3), hidden=(3,), transforms=2)
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2)), posterior).double()
    x = (torch.rand(2, 6, generator=torch.Generator().manual_seed(2)) < 0.5).double().repeat(30, 1)
    phi = list(vae.phi.values())
    rows: list[Tensor] = []
    with pyro.validation_enabled(False):
        for _ in range(100):
            values = [next(inference.losses(vae, x)).value for inference in (single, other)]
            slopes = [torch.autograd.grad(v, phi, allow_unused=True, materialize_grads=True) for v in values]
            rows.append(torch.stack([torch.cat([s.flatten() for s in one]) for one in slopes]))
    ours, theirs = torch.stack(rows).unbind(1)
    difference = ours - theirs
    moved = difference.std(0) > 1e-9  # what is masked has no gradient
    assert int(moved.sum()) > 20
    assert_mean(difference[:, moved], torch.zeros(int(moved.sum())))


@EVERY
def test_every_parameter_moves(kind: str, latent: int) -> None:
    torch.manual_seed(0)
    prior, posterior = Flow((latent,), kind, hidden=(8,)), Flow((latent,), kind, given=mlp(6, 5), hidden=(8,))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(latent, 7)), posterior)
    x = (torch.rand(20, 6) < 0.4).float()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    fit(vae, x, AEVB(5), Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.01), steps=2, batch_size=20))
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []


def test_a_flow_prior_learns_a_warped_density() -> None:
    """A banana: -E log p(z) comes within 0.05 nats of the entropy, where a Normal ends 0.3 above it."""
    torch.manual_seed(0)
    u = torch.randn(4000, 2)
    z = torch.stack([u[:, 0], 0.5 * u[:, 1] + 0.7 * (u[:, 0].square() - 1)], -1)
    entropy = float((1 + torch.log(torch.tensor(2 * torch.pi))) + torch.log(torch.tensor(0.5)))
    flow = Flow((2,), "maf", hidden=(32,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    for i in range(300):
        optimizer.zero_grad()
        (-flow().log_prob(z[(i * 500) % 4000 :][:500]).mean()).backward()
        optimizer.step()
    test = torch.randn(4000, 2)
    test = torch.stack([test[:, 0], 0.5 * test[:, 1] + 0.7 * (test[:, 0].square() - 1)], -1)
    gaussian = torch.distributions.MultivariateNormal(z.mean(0), z.T.cov())
    assert -float(flow().log_prob(test).mean().detach()) - entropy < 0.05
    assert -float(gaussian.log_prob(test).mean()) - entropy > 0.3


def test_pyros_svi_sees_the_same_loss() -> None:
    torch.manual_seed(0)
    vae = VAE(
        Flow((2,), "maf", hidden=(8,)),
        Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)),
        Flow((2,), "maf", given=mlp(6, 5), hidden=(8,)),
    ).double()
    x = (torch.rand(12, 6) < 0.4).double()
    elbo = Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(1)
    theirs = elbo.differentiable_loss(vae.model, vae.guide, x) / 12
    torch.manual_seed(1)
    (ours,) = AEVB(3).losses(vae, x)
    torch.testing.assert_close(ours.value, theirs, rtol=1e-10, atol=1e-10)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(x)
    moved = [name for name, p in vae.named_parameters() if not torch.equal(before[name], p)]
    assert {name.split(".")[0] for name in moved} == {"prior", "likelihood", "posterior"}


# ------------------------------------------------------------------ the module


def test_state_dict_deep_copy_and_floating_point_type() -> None:
    one, other = Flow((2,), "nsf"), Flow((2,), "nsf")
    z = torch.randn(5, 2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one().log_prob(z), other().log_prob(z))
    assert torch.equal(copy.deepcopy(one)().log_prob(z), one().log_prob(z))
    pointers = [tensor.data_ptr() for tensor in one.state_dict().values()]
    assert len(pointers) == len(set(pointers))
    assert one.double()().sample((3,)).dtype == torch.float64
    torch.testing.assert_close(one().log_prob(z.double()), other().log_prob(z).double(), rtol=1e-4, atol=1e-4)
    assert Flow((2,), given=mlp(4, 5).double())(torch.randn(3, 4).double()).rsample().dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Flow((2,), "mafs"), "unknown kind `mafs`; did you mean `maf`"),
        (lambda: Flow((1,), "realnvp"), "couples two halves.*use maf"),
        (lambda: Flow((2, 3)), "an event is a vector"),
        (lambda: Flow(()), "an event is a vector"),
        (lambda: Flow(2), "a shape is a tuple"),
        (lambda: Flow((2,), fast="both"), '`fast` must be "density" or "sampling"'),
        (lambda: Flow((2,), transforms=0), "`transforms` counts from 1"),
        (lambda: Flow((2,), hidden=(0,)), "`hidden` counts from 1"),
        (lambda: Flow((2,), given=mlp(4))(), "needs a context"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_a_flow_over_discrete_latents_is_refused() -> None:
    prior = Conditional(dist.Bernoulli, (2,), logits=Fixed(0.0))
    with pytest.raises(InputError, match="support"):
        VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), Flow((2,), given=mlp(6, 5)))


STATE = """
import torch, pyro, pyro.distributions as dist
from torch.distributions import Distribution, transforms
def state():
    owners = [Distribution, transforms.Transform, transforms._InverseTransform, dist.Normal, torch.distributions.Normal]
    found = {(o, n): repr(v) for o in owners for n, v in vars(o).items()}
    return found | {"inverse": repr(transforms.ExpTransform().inv)}
import pyro_vae.vae.flow
before, streams = state(), torch.get_rng_state()
pyro_vae.vae.flow._zuko_flows()
assert torch.equal(streams, torch.get_rng_state())
after = state()
changed = [n for n in before if after.get(n) != before[n]]  # what it adds, a method, harms nobody
assert not changed, changed
try:
    dist.Normal(0.0, -1.0)
except ValueError:
    print("validated")
"""


def test_importing_zuko_changes_no_global_state() -> None:
    """Which switches validation off for the whole process; in a process of its own, as it is imported once."""
    result = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "validated", result.stderr
