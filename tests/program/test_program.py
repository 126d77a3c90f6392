"""A Pyro program under a VAE's densities, against exact answers and against the VAE of the same model."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from programs import exact_state_guide, linear_gaussian, state_space
from torch import Tensor, nn
from torch.distributions import constraints
from z_test import assert_mean

from pyro_vae.errors import InputError
from pyro_vae.inference import (
    AEVB,
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    RWS,
    STL,
    AnalyticKL,
    BetaVAE,
    DReG,
    Inference,
    Renyi,
    ScoreFunction,
    WakeSleep,
)
from pyro_vae.inference.latents import Latents
from pyro_vae.program import Program
from pyro_vae.runtime.random_streams import isolated

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(25)

ALGORITHMS = [
    AEVB(),
    AEVB(num_particles=3),
    STL(num_particles=2),
    IWAE(),
    DReG(),
    MIWAE(num_outer=2, num_particles=3),
    PIWAE(num_outer=2, num_particles=3),
    CIWAE(),
    Renyi(),
    RWS(),
    WakeSleep(),
    ScoreFunction(),
    BetaVAE(beta=2.0),
]


def losses_and_gradients(inference: Inference, model: nn.Module, order: list[str]) -> list[Tensor]:
    """Values of all phases and gradients of all parameters, at the same noise for every model."""
    parameters = dict(model.named_parameters())
    found = []
    with isolated(3):
        for loss in copy.deepcopy(inference).losses(model, X):
            gradients = torch.autograd.grad(loss.value, [parameters[name] for name in order], allow_unused=True)
            found += [loss.value.detach(), *(torch.zeros(()) if g is None else g for g in gradients)]
    return found


OF_PROGRAM = [
    "model_modules.decoder.linear.weight",
    "model_modules.decoder.linear.bias",
    "model_modules.decoder.log_scale",
    "guide_modules.encoder.linear.weight",
    "guide_modules.encoder.linear.bias",
    "guide_modules.encoder.log_scale",
]


@pytest.mark.parametrize("inference", ALGORITHMS, ids=repr)
def test_a_program_has_the_losses_and_gradients_of_the_vae(inference: Inference) -> None:
    """The networks have the same parameters; the log scales are those of the declaration's softplus or exp."""
    encoder = MODEL.exact_encoder(1.3)
    vae, program = MODEL.vae(encoder), linear_gaussian(MODEL, encoder)
    of_vae = [name for name, p in vae.named_parameters() if p.dim() == 2 or name.endswith("bias")]
    mine = losses_and_gradients(inference, program, OF_PROGRAM[:2] + OF_PROGRAM[3:5])
    its = losses_and_gradients(inference, vae, of_vae)
    assert len(mine) == len(its)
    for a, b in zip(mine, its, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_log_weights_at_the_exact_guide_are_log_p() -> None:
    program = linear_gaussian(MODEL, MODEL.exact_encoder())
    log_weights = program.log_weights(X, 4)
    torch.testing.assert_close(log_weights, MODEL.log_marginal(X).expand(4, 25), rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_state_space_with_its_smoother_as_guide(length: int) -> None:
    log_marginal, model = state_space(length)
    x = torch.randn(7, length, generator=torch.Generator().manual_seed(1)).double()
    program = Program(model, exact_state_guide(length), x[:3])
    assert program.latent_shape == (length,)
    torch.testing.assert_close(program.log_weights(x, 3), log_marginal(x).expand(3, 7), rtol=0, atol=1e-10)


def nested(counts: Tensor) -> None:
    """Gamma-Poisson: a rate for each datum, with three counts in a plate inside; a Beta-Binomial beside it."""
    with pyro.plate("data", counts.shape[0], dim=-1):
        rate = pyro.sample("rate", dist.Gamma(counts.new_tensor(2.0), 1.5))
        with pyro.plate("cells", 3, dim=-2):
            pyro.sample("counts", dist.Poisson(rate), obs=counts.T)


def nested_guide(counts: Tensor) -> None:
    with pyro.plate("data", counts.shape[0], dim=-1):
        pyro.sample("rate", dist.Gamma(2.0 + counts.sum(1), counts.new_tensor(4.5)))


def test_a_plate_inside_the_plate_over_data() -> None:
    """Conjugate: the counts of a datum have a negative-multinomial mass."""
    counts = torch.tensor([[0.0, 1, 2], [4, 0, 1], [2, 2, 2], [7, 1, 0]]).double()
    program = Program(nested, nested_guide, counts[:2])
    total = counts.sum(1)
    exact = (
        torch.lgamma(2 + total)
        - math.lgamma(2.0)
        - torch.lgamma(counts + 1).sum(1)
        + 2 * math.log(1.5)
        - (2 + total) * math.log(4.5)
    )
    torch.testing.assert_close(program.log_weights(counts, 5), exact.expand(5, 4), rtol=0, atol=1e-10)


def test_latents_in_an_inner_plate_have_their_own_places_in_z() -> None:
    """Latents z of shape (3 cells,) for each datum, each observed by itself: log p(x) is a sum over cells."""

    def model(x: Tensor) -> None:
        with pyro.plate("cells", 3, dim=-1), pyro.plate("data", x.shape[0], dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("cells", 3, dim=-1), pyro.plate("data", x.shape[0], dim=-2):
            pyro.sample("z", dist.Normal(x / 1.25, x.new_tensor(0.2).sqrt()))

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2)).double()
    program = Program(model, guide, x[:2])
    assert program.latent_shape == (3,)
    exact = dist.Normal(0.0, x.new_tensor(1.25).sqrt()).log_prob(x).sum(1)
    torch.testing.assert_close(program.log_weights(x, 4), exact.expand(4, 6), rtol=0, atol=1e-10)
    z = program.posterior_given(program.check(x)).sample((2,))
    assert ((z[0] - x / 1.25).abs() < 5 * math.sqrt(0.2)).all()  # in the order of the data's cells


def test_a_mask_leaves_the_ends_of_ragged_sequences_out() -> None:
    lengths = torch.tensor([3, 1, 2, 3])
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).double()

    def model(batch: dict[str, Tensor]) -> None:
        with pyro.plate("data", len(batch["x"])):
            z = pyro.sample("z", dist.Normal(batch["x"].new_tensor(0.0), 1.0))
            for t in range(3):
                with pyro.poutine.mask(mask=t < batch["length"]):
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch["x"][:, t])

    def guide(batch: dict[str, Tensor]) -> None:
        known = torch.arange(3) < batch["length"].unsqueeze(-1)
        precision = 1.0 + batch["length"]
        with pyro.plate("data", len(batch["x"])):
            pyro.sample("z", dist.Normal((batch["x"] * known).sum(1) / precision, precision.double() ** -0.5))

    program = Program(model, guide, {"x": x[:2], "length": lengths[:2]})
    exact = torch.stack(
        [
            dist.MultivariateNormal(torch.zeros(n).double(), torch.eye(n).double() + 1).log_prob(row[:n])
            for row, n in zip(x, lengths.tolist(), strict=True)
        ]
    )
    found = program.log_weights({"length": lengths, "x": x}, 3)
    torch.testing.assert_close(found, exact.expand(3, 4), rtol=0, atol=1e-10)


def test_parameters_of_statements_are_the_programs_own_and_the_store_stays_as_it_is() -> None:
    pyro.clear_param_store()
    pyro.param("weight", torch.tensor(9.0))

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", lambda: torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x, 0.8**0.5))

    x = torch.tensor([-1.0, 0.5, 3.0])
    program = Program(model, guide, x)
    assert dict(pyro.get_param_store().items()) == {"weight": torch.tensor(9.0)}
    pyro.clear_param_store()
    exact = dist.Normal(0.0, 5**0.5).log_prob(x)
    torch.testing.assert_close(program.log_weights(x, 2), exact.expand(2, 3), rtol=0, atol=1e-5)
    assert [p.item() for p in program.phi.values()] == pytest.approx([0.2])
    assert [p.item() for p in program.theta.values()] == pytest.approx([math.log(2.0)])
    bound = AEVB().loss(program, x).value
    assert all(g is not None for g in torch.autograd.grad(bound, list(program.parameters())))


def test_pyro_modules_with_constrained_parameters() -> None:
    class Generative(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = pyro.nn.PyroParam(torch.tensor(2.0), constraint=constraints.positive)
            self.loc = nn.Parameter(torch.tensor(1.0))
            self.network = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0))
                pyro.sample("x", dist.Normal(self.network(z.unsqueeze(-1)).squeeze(-1), self.scale), obs=x)

    class Guide(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> None:
            loc, log_scale = self.network(x.unsqueeze(-1)).unbind(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    x = torch.tensor([-1.0, 0.5, 3.0])
    program = Program(Generative(), Guide(), x)
    assert not list(pyro.get_param_store())
    assert {name.rsplit(".", 1)[1] for name in program.theta} == {"scale_unconstrained", "loc", "weight", "bias"}
    value = AEVB().loss(program, x).value
    assert all(g is not None for g in torch.autograd.grad(value, list(program.parameters())))
    with torch.no_grad():
        for p in program.parameters():
            p.add_(0.5)
    assert not torch.equal(AEVB().loss(program, x).value, value)


def test_a_copy_has_its_own_parameters_and_leaves_the_functions_modules_alone() -> None:
    program = linear_gaussian(MODEL, MODEL.exact_encoder(1.3))
    twin = copy.deepcopy(program)
    with isolated(1):
        before = program.log_weights(X, 2)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    with isolated(1):
        changed = twin.log_weights(X, 2)
        twin.eval()
        assert next(iter(program.model_modules.values())).training
    with isolated(1):
        assert torch.equal(program.log_weights(X, 2), before)
    assert not torch.allclose(changed, before)


def test_particles_run_at_once_or_one_after_the_other() -> None:
    """A guide that fixes its number of dimensions cannot run K particles at once."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1))
            rows, _ = z.shape
            pyro.sample("x", dist.Normal(z.reshape(rows, 2) @ MODEL.W.T, MODEL.s).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    with pytest.warns(UserWarning, match="particles do not run at once"):
        looped = Program(model, guide, X[:2])
    assert not looped.vectorized
    q = looped.posterior_given(looped.check(X))
    z = q.sample((3,))
    assert z.shape == (3, 25, 2)
    exact = [looped.log_joint_of(each, looped.check(X)) for each in z]
    torch.testing.assert_close(looped.log_joint_of(z, looped.check(X)), torch.stack(exact), rtol=0, atol=0)
    assert IWAE().loss(looped, X).value.isfinite()


def test_a_permuted_batch_permutes_the_densities() -> None:
    program, order = linear_gaussian(MODEL, MODEL.exact_encoder(1.3)), torch.randperm(25)
    batch = program.check(X)
    z = program.posterior_given(batch).sample((3,))
    mine = program.log_joint_of(z[:, order], program.check(X[order]))
    torch.testing.assert_close(mine, program.log_joint_of(z, batch)[:, order], rtol=0, atol=1e-12)


def test_discrete_latents_keep_their_type() -> None:
    locs = torch.tensor([-2.0, 0.0, 3.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = -0.5 * (x.unsqueeze(-1) - locs).square()
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits))

    x = torch.tensor([-1.0, 0.5, 3.0])
    program = Program(model, guide, x)
    exact = torch.stack([dist.Normal(loc, 1.0).log_prob(x) for loc in locs]).logsumexp(0) - math.log(3.0)
    torch.testing.assert_close(program.log_weights(x, 4), exact.expand(4, 3), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="discrete"):
        Latents(program, program.check(x))


def test_the_unconstrained_map_of_all_sites() -> None:
    """A positive number, two cells of a simplex of three, and a real number."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.Gamma(x.new_tensor(2.0), 1.0))
            share = pyro.sample("share", dist.Dirichlet(x.new_ones(3)))
            shift = pyro.sample("shift", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(shift + share[..., 0], scale), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("scale", dist.LogNormal(x.new_tensor(0.0), 0.3))
            pyro.sample("share", dist.Dirichlet(x.new_ones(3)))
            pyro.sample("shift", dist.Normal(x, 1.0))

    x = torch.tensor([-1.0, 0.5, 3.0]).double()
    program = Program(model, guide, x)
    latents = Latents(program, program.check(x))
    assert tuple(latents.shape) == (4,)
    u = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4)).double()
    z = latents.constrain(u)
    assert z.shape == (2, 3, 5)
    torch.testing.assert_close(z[..., 1:4].sum(-1), torch.ones(2, 3).double())
    torch.testing.assert_close(latents.unconstrain(z), u)
    exact = u[..., 0] + torch.distributions.biject_to(constraints.simplex).log_abs_det_jacobian(
        u[..., 1:3], z[..., 1:4]
    )
    torch.testing.assert_close(latents.log_jacobian(u), exact)


def test_a_program_with_a_global_latent_has_the_elbo_by_hand() -> None:
    r"""mu ~ N(0, 1), z_i ~ N(mu, 1), x_i ~ N(z_i, 1); q(mu) = N(m, s²), q(z_i|x_i) = N(a x_i, t²).

    By hand, per datum: -E[(x - z)² + (z - mu)²] / 2 - log 2 pi + H(q(z)) - KL(q(mu) || p(mu)) / N.
    """

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        m, s = (pyro.param(name, x.new_tensor(value)) for name, value in (("m", 0.3), ("s", 0.6)))
        a, t = (pyro.param(name, x.new_tensor(value)) for name, value in (("a", 0.4), ("t", 0.8)))
        pyro.sample("mu", dist.Normal(m, s))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x, t))

    x = torch.linspace(-1, 2, 10).double()
    with pytest.raises(InputError, match=r"`mu` lies outside the plate `data`.*pass size=N"):
        Program(model, guide, x[:3])
    program = Program(model, guide, x[:3], size=10)
    assert program.latent_shape == (2,)
    assert [site.name for site in program.shared_sites] == ["mu"]
    m, s, a, t = (p.detach().requires_grad_() for p in program.phi.values())
    expected = (
        -((x - a * x).square() + t**2 + (a * x - m).square() + t**2 + s**2).mean() / 2
        - math.log(2 * math.pi)
        + 0.5 * math.log(2 * math.pi * math.e)
        + t.log()
        - ((m**2 + s**2 - 1) / 2 - s.log()) / 10
    )
    exact = torch.cat(
        [expected.detach().reshape(1), *(g.reshape(1) for g in torch.autograd.grad(expected, [m, s, a, t]))]
    )
    parameters = list(program.phi.values())
    for inference in (AEVB(num_particles=2), IWAE(num_particles=1), AnalyticKL()):
        draws = []
        for _ in range(300):
            value = inference.loss(program, x).value
            gradients = torch.autograd.grad(value, parameters)
            draws.append(torch.stack([-value.detach(), *(-g for g in gradients)]))
        assert_mean(torch.stack(draws), exact)


def test_a_minibatch_is_unbiased_and_particles_share_the_globals() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("components", 2):
            loc = pyro.sample("loc", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc[..., 0], 1.0))
            pyro.sample("x", dist.Normal(z + loc[..., 1], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("components", 2):
            pyro.sample("loc", dist.Normal(x.new_tensor([0.1, -0.2]), 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, x.new_tensor(0.7)))

    x = torch.linspace(-1, 2, 8).double()
    program = Program(model, guide, x[:3], size=8)
    z = program.posterior_given(program.check(x)).rsample((4,))
    assert z.shape == (4, 8, 3)
    assert torch.equal(z[..., 1:], z[:1, :1, 1:].expand(4, 8, 2))
    whole = program.log_joint_of(z, program.check(x))
    halves = [program.log_joint_of(z[:, part], program.check(x[part])) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves, 1), whole)
    with pytest.raises(InputError, match=r"latents that all data share.*use aevb, stl"):
        RWS().check(program)
    given = program.at_globals(seed=3)
    assert given.latent_shape == (1,)
    assert given.log_weights(x, 5).shape == (5, 8)
    assert torch.equal(program.at_globals(seed=3)._fixed["loc"], given._fixed["loc"])


def test_a_subsampled_plate_counts_each_datum_once() -> None:
    """The usual Pyro way: plate("data", N, subsample=x); N/M is applied once, and N need not be declared."""
    n = 40

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", n, subsample=x):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(x.new_tensor(0.3), 0.5))
        with pyro.plate("data", n, subsample=x):
            pyro.sample("z", dist.Normal(0.5 * x, 0.7))

    x = torch.linspace(-1, 2, 8).double()
    program = Program(model, guide, x)
    assert program.size == n
    with isolated(4):
        mine = AEVB().loss(program, x).value
    with isolated(4):
        its = pyro.infer.Trace_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, x) / n
    torch.testing.assert_close(mine, its, rtol=1e-12, atol=0)
    with isolated(4):
        log_weights = program.log_weights(x, 1)
    torch.testing.assert_close(-log_weights.mean(), its, rtol=1e-12, atol=0)
    with pytest.raises(InputError, match="`size` is 50, and the plate `data` is a sample of 40 rows"):
        Program(model, guide, x, size=50)


def test_modules_that_both_halves_register_are_of_the_half_that_needs_them() -> None:
    """Pyro's tutorials register one module with the networks of model and guide in both."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.encoder, self.idle = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)

        def model(self, x: Tensor) -> None:
            pyro.module("both", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.module("both", self)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 0.7).to_event(1))

    both, x = Both(), torch.randn(5, 1)
    program = Program(both.model, both.guide, x)
    assert [name.split(".")[-2] for name in program.phi] == ["encoder", "encoder"]
    assert {name.split(".")[-2] for name in program.theta} == {"decoder", "idle"}
    assert program.shared == []
    for twin in (program, copy.deepcopy(program)):
        RWS().check(twin)
        loss = RWS().loss(twin, x).value
        names = [*twin.theta, *twin.phi]
        found = torch.autograd.grad(loss, [dict(twin.named_parameters())[name] for name in names], allow_unused=True)
        assert all((g is None) == ("idle" in name) for name, g in zip(names, found, strict=True))


def test_a_beta_binomial_has_its_conjugate_log_p() -> None:
    """A rate of successes for each datum, in two plates of trials with different numbers."""
    trials, a, b = torch.tensor([5.0, 9.0]).double(), 1.5, 2.5

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            rate = pyro.sample("rate", dist.Beta(x.new_tensor(a), b))
            with pyro.plate("groups", 2, dim=-1):
                pyro.sample("x", dist.Binomial(trials, rate), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            successes = x.sum(-1, keepdim=True)
            pyro.sample("rate", dist.Beta(a + successes, b + trials.sum() - successes))

    x = torch.tensor([[0.0, 3], [5, 9], [2, 0]]).double()
    program = Program(model, guide, x)
    chosen = (torch.lgamma(trials + 1) - torch.lgamma(x + 1) - torch.lgamma(trials - x + 1)).sum(-1)
    total, successes = trials.sum(), x.sum(-1)

    def log_beta(first: Tensor, second: Tensor) -> Tensor:
        return torch.lgamma(first) + torch.lgamma(second) - torch.lgamma(first + second)

    exact = chosen + log_beta(a + successes, b + total - successes) - log_beta(x.new_tensor(a), x.new_tensor(b))
    torch.testing.assert_close(program.log_weights(x, 4), exact.expand(4, 3), rtol=0, atol=1e-10)


def test_loadings_with_a_posterior_have_the_elbo_by_hand() -> None:
    """Factor analysis: given W the guide is exact, so the bound is log p(x | W) minus the log ratio of W over N."""
    n, noise = 50, 0.5

    def model(x: Tensor) -> None:
        loadings = pyro.sample("loadings", dist.Normal(x.new_zeros(2, 4), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loadings, noise).to_event(1), obs=x)

    loc = torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).double()

    def guide(x: Tensor) -> None:
        loadings = pyro.sample("loadings", dist.Normal(loc, x.new_tensor(0.2)).to_event(2))
        covariance = torch.linalg.inv(torch.eye(2).double() + loadings @ loadings.mT / noise**2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ loadings.mT @ covariance / noise**2, covariance))

    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(2)).double()
    program = Program(model, guide, x[:3], size=n)
    batch = program.check(x)
    q = program.posterior_given(batch)
    z = q.sample((3,))
    loadings = z[0, 0, 2:].reshape(2, 4)
    marginal = dist.MultivariateNormal(torch.zeros(4).double(), loadings.mT @ loadings + noise**2 * torch.eye(4))
    ratio = (dist.Normal(loc, 0.2).log_prob(loadings) - dist.Normal(0.0, 1.0).log_prob(loadings)).sum()
    exact = (marginal.log_prob(x) - ratio / n).expand(3, 7)
    torch.testing.assert_close(program.log_joint_of(z, batch) - q.log_prob(z), exact, rtol=0, atol=1e-9)
    given = program.at_globals(seed=1)
    loadings = given._fixed["loadings"]
    marginal = dist.MultivariateNormal(torch.zeros(4).double(), loadings.mT @ loadings + noise**2 * torch.eye(4))
    torch.testing.assert_close(given.log_weights(x, 2), marginal.log_prob(x).expand(2, 7), rtol=0, atol=1e-9)
