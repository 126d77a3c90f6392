"""Hierarchies against their layers by hand, and against the closed form of a linear-Gaussian model of two layers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Flow, Hierarchy, Learned, Mixture, Reads, Training, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.evaluation import active_units, latent_kl, log_marginal
from pyro_vae.inference import ALGORITHMS, IWAE, STL
from pyro_vae.vae.hierarchy import HierarchicalDistribution

X = (torch.rand(12, 6, generator=torch.Generator().manual_seed(1)) < 0.4).double()


def prior(top: nn.Module | None = None, bottom: nn.Module | None = None) -> Hierarchy:
    return Hierarchy(
        z2=top or Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
        z1=bottom or Conditional(dist.Normal, (3,), given=mlp(2, 4)),
    )


def posterior() -> Hierarchy:
    return Hierarchy(
        z1=Conditional(dist.Normal, (3,), given=mlp(6, 5)), z2=Conditional(dist.Normal, (2,), given=mlp(3, 4))
    )


def two_layers(size: int | None = None) -> VAE:
    torch.manual_seed(0)
    likelihood = Reads(Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)), "z1")
    return VAE(prior(), likelihood, posterior(), size=size).double()


# ------------------------------------------------------------------ the density


def test_layers_lie_in_the_order_of_their_names_whatever_the_order_of_drawing() -> None:
    blocks = {"z1": slice(0, 3), "z2": slice(3, 5)}
    assert prior().blocks == prior()().blocks == posterior().blocks == blocks
    z = torch.arange(5.0)
    parts = prior()().split(z)
    assert parts["z1"].tolist() == [0, 1, 2]
    assert parts["z2"].tolist() == [3, 4]


def test_the_density_is_the_sum_of_the_layers() -> None:
    vae, z = two_layers(), torch.randn(7, 12, 5).double()
    z1, z2 = z[..., :3], z[..., 3:]
    p, q = vae.prior_given(None), vae.encode(X)
    of_p = {"z1": vae.prior.layers["z1"](z2).log_prob(z1), "z2": Normal(0.0, 1.0).log_prob(z2).sum(-1)}
    of_q = {
        "z1": vae.posterior.layers["z1"](X).log_prob(z1),
        "z2": vae.posterior.layers["z2"](z1).log_prob(z2),
    }
    for distribution, expected in ((p, of_p), (q, of_q)):
        blocks = distribution.block_log_prob(z)
        assert list(blocks) == ["z1", "z2"]
        for name, value in expected.items():
            torch.testing.assert_close(blocks[name], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(distribution.log_prob(z), sum(expected.values()), rtol=1e-12, atol=1e-12)
    assert p.batch_shape == ()
    assert q.batch_shape == (12,)


def test_draws_are_ancestral() -> None:
    """A chain of unit steps: the covariance of (z1, z2, z3) is that of a random walk from z3."""
    walk = {
        "z3": Conditional(dist.Normal, (1,), loc=Fixed(0.0), scale=Fixed(1.0)),
        "z2": Conditional(dist.Normal, (1,), given=nn.Identity(), head=None, scale=Fixed(1.0)),
        "z1": Conditional(dist.Normal, (1,), given=nn.Identity(), head=None, scale=Fixed(1.0)),
    }
    z = Hierarchy(**walk)().sample((20_000,)).double()
    pairs = z.unsqueeze(-1) * z.unsqueeze(-2)
    assert_mean(pairs, torch.tensor([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0], [1.0, 1.0, 1.0]]))
    assert_mean(z, torch.zeros(3))


def test_what_a_layer_is_given_can_be_declared() -> None:
    layers = {
        "z3": Conditional(dist.Normal, (1,), given=mlp(4)),
        "z2": Conditional(dist.Normal, (1,), given=mlp(1)),
        "z1": Conditional(dist.Normal, (1,), given=mlp(1 + 1 + 4)),
    }
    chain = Hierarchy({"z1": ("z2", "z3", "context")}, **layers).double()
    assert chain.inputs == {"z3": ("context",), "z2": ("z3",), "z1": ("z2", "z3", "context")}
    context, z = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    z1, z2, z3 = z.split(1, -1)
    expected = (
        chain.layers["z3"](context).log_prob(z3)
        + chain.layers["z2"](z3).log_prob(z2)
        + chain.layers["z1"](torch.cat([z2, z3, context], -1)).log_prob(z1)
    )
    torch.testing.assert_close(chain(context).log_prob(z), expected, rtol=1e-12, atol=1e-12)
    assert chain(context).rsample((7,)).shape == (7, 5, 3)


def passes(vae: VAE) -> Counter[str]:
    """Counts, from now on, the passes through each network of a VAE."""
    for part in (vae.encode(vae.probe_batch()), vae.prior_given(None)):
        assert part.has_rsample  # which takes a pass, the first time
    counted: Counter[str] = Counter()
    for name, part in vae.named_modules():
        if isinstance(part, Conditional) and part.given is not None:
            part.given.register_forward_hook(lambda *_, name=name: counted.update([name]))
    return counted


def test_a_draw_and_its_density_take_one_pass() -> None:
    vae = two_layers()
    counted = passes(vae)
    once = dict.fromkeys(("prior.layers.z1", "likelihood.likelihood", "posterior.layers.z1", "posterior.layers.z2"), 1)
    IWAE(4).loss(vae, Batch(X))
    assert counted == once
    counted.clear()
    Trace_ELBO().differentiable_loss(*vae.programs, X)
    assert counted == once
    counted.clear()
    with torch.no_grad():
        q = vae.encode(X)
        q.log_prob(q.sample())
        assert counted == {"posterior.layers.z1": 1, "posterior.layers.z2": 1}
    STL().loss(vae, Batch(X))  # the score at fixed z2 is of another pass
    assert counted["posterior.layers.z1"] == 2


@pytest.mark.parametrize("how", ["rsample", "sample", "no_grad"])
def test_the_density_of_a_draw_has_the_gradient_of_that_at_any_value(how: str) -> None:
    """Whether the layers of the draw serve or not: those of a draw without gradients must not."""
    vae = two_layers()

    def gradients(same: bool) -> list[Tensor]:
        torch.manual_seed(3)
        q = vae.encode(X)
        if how == "no_grad":
            with torch.no_grad():
                z = q.rsample((4,))
        else:
            z = getattr(q, how)((4,))
        log_q = q.log_prob(z if same else z.clone())
        return list(torch.autograd.grad(log_q.square().sum(), list(vae.phi.values())))

    for mine, its in zip(gradients(True), gradients(False), strict=True):
        assert its.abs().max() > 0
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)


def test_expanded_draws_are_independent_and_have_the_same_density() -> None:
    torch.manual_seed(0)
    one = prior()()
    many = one.expand((4,))
    assert many.sample((7,)).shape == (7, 4, 5)
    z = torch.randn(7, 4, 5)
    torch.testing.assert_close(many.log_prob(z), one.log_prob(z))
    assert one.log_prob(z[0, 0]).shape == ()
    assert many.log_prob(z[0, 0]).shape == (4,)
    given = posterior()(torch.randn(1, 6))  # a batch of one, made four
    assert len(given.expand((4,)).rsample().unique(dim=0)) == 4
    assert len(given.expand((3, 4)).rsample((2,)).flatten(0, -2).unique(dim=0)) == 24


# ------------------------------------------------------------------ the linear-Gaussian model of two layers


class Exact(nn.Module):
    """The conditional N(Ag + a, S) of a joint Normal: A, a and S are its parameters."""

    def __init__(self, weight: Tensor, bias: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.scale_tril = nn.Parameter(torch.linalg.cholesky(covariance))
        self.event_shape = bias.shape

    def forward(self, given: Tensor) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(given @ self.weight.T + self.bias, scale_tril=self.scale_tril)


class Gaussian:
    """z2 ~ N(0, I), z1 = A z2 + a + noise, x = B z1 + b + noise."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.A, self.a, self.s1 = torch.randn(3, 2).double(), torch.randn(3).double(), torch.tensor(0.75).double()
        self.B, self.b, self.s = torch.randn(6, 3).double(), torch.randn(6).double(), torch.tensor(0.5).double()
        self.of_z1 = self.A @ self.A.T + self.s1**2 * torch.eye(3)  # covariance of z1
        self.of_x = self.B @ self.of_z1 @ self.B.T + self.s**2 * torch.eye(6)
        self.mean = self.B @ self.a + self.b

    def marginal(self) -> MultivariateNormal:
        return MultivariateNormal(self.mean, self.of_x)

    def conditional(self, joint: Tensor, of_given: Tensor, prior: Tensor, mean: Tensor, given_mean: Tensor) -> Exact:
        weight = joint @ torch.linalg.inv(of_given)
        return Exact(weight, mean - weight @ given_mean, prior - weight @ joint.T)

    def exact_posterior(self) -> Hierarchy:
        z1 = self.conditional(self.of_z1 @ self.B.T, self.of_x, self.of_z1, self.a, self.mean)
        z2 = self.conditional(self.A.T, self.of_z1, torch.eye(2).double(), torch.zeros(2).double(), self.a)
        return Hierarchy(z1=z1, z2=z2)

    def vae(self, posterior: Hierarchy) -> VAE:
        z1 = Conditional(dist.Normal, (3,), given=mlp(2), scale=Fixed(self.s1))
        likelihood = Conditional(dist.Normal, (6,), given=mlp(3), scale=Fixed(self.s))
        for layer, weight, bias in ((z1, self.A, self.a), (likelihood, self.B, self.b)):
            layer.double()
            with torch.no_grad():
                layer.head.weight.copy_(weight)
                layer.head.bias.copy_(bias)
        return VAE(prior(bottom=z1).double(), Reads(likelihood, "z1"), posterior.double())

    def sample(self, n: int) -> Tensor:
        return self.marginal().sample((n,))


MODEL = Gaussian()


def test_with_the_exact_posterior_every_log_weight_is_log_p() -> None:
    x = MODEL.sample(9)
    vae = MODEL.vae(MODEL.exact_posterior())
    exact = MODEL.marginal().log_prob(x)
    torch.testing.assert_close(vae.log_weights(x, 5), exact.expand(5, 9), rtol=0, atol=1e-10)
    result = log_marginal(vae, x, 50)
    torch.testing.assert_close(result.pointwise, exact, rtol=0, atol=1e-10)


def test_with_another_posterior_log_marginal_is_right_within_its_error() -> None:
    x = MODEL.sample(20)
    wide = MODEL.exact_posterior()
    with torch.no_grad():
        for layer in wide.layers.values():
            layer.scale_tril.mul_(1.4)
            layer.bias.add_(0.1)
    result, exact = log_marginal(MODEL.vae(wide), x, 20_000), MODEL.marginal().log_prob(x).mean()
    assert result.standard_error < 0.01
    assert_mean(torch.tensor(result.value), exact, torch.tensor(result.standard_error))


def test_generated_data_follow_the_marginal() -> None:
    x = MODEL.vae(MODEL.exact_posterior()).generate(20_000)
    centred = x - MODEL.mean
    assert_mean(centred, torch.zeros(6))
    assert_mean(centred.unsqueeze(-1) * centred.unsqueeze(-2), MODEL.of_x)


def test_the_kl_of_the_layers_is_the_closed_form() -> None:
    """Of a joint Normal posterior; layers sum to the whole, and z1's is the KL of q(z1|x) and E p(z1|z2)."""
    x = MODEL.sample(30)
    vae = MODEL.vae(MODEL.exact_posterior())
    result = latent_kl(vae, x, 400)
    assert result.names == ("z1", "z2")
    assert result.analytic == (False, False)
    assert bool((result.standard_error > 0).all())
    z1, z2 = (vae.posterior.layers[name] for name in ("z1", "z2"))
    q1 = z1(x)
    s1, s2 = q1.covariance_matrix, z2.scale_tril @ z2.scale_tril.T
    # log q(z2|z1) - log p(z2): its mean over z1 ~ q.
    mean = z2(q1.mean).mean
    spread = z2.weight @ s1 @ z2.weight.T
    of_z2 = ((s2 + spread).diagonal(dim1=-2, dim2=-1).sum(-1) + mean.square().sum(-1) - 2 - s2.logdet()) / 2
    # log q(z1|x) - log p(z1|z2): z1 - A z2 - a is Normal.
    through = torch.eye(3).double() - MODEL.A @ z2.weight
    residual = q1.mean @ through.T - MODEL.A @ z2.bias - MODEL.a
    variance = through @ s1 @ through.T + MODEL.A @ s2 @ MODEL.A.T
    distance = variance.diagonal(dim1=-2, dim2=-1).sum(-1) + residual.square().sum(-1)
    of_z1 = distance / (2 * MODEL.s1**2) + 3 * MODEL.s1.log() - s1.logdet() / 2 - 1.5
    exact = torch.stack([of_z1.mean(), of_z2.mean()])
    assert_mean(result.value, exact, result.standard_error)
    assert_mean(result.value.sum(), exact.sum(), result.standard_error.square().sum().sqrt() * 2**0.5)


def test_layer_kls_sum_to_the_whole_draw_by_draw() -> None:
    vae = two_layers()
    q, p = vae.encode(X), vae.prior_given(None)
    z = q.sample((5,))
    above, below = q.block_log_prob(z), p.block_log_prob(z)
    total = sum(above[name] - below[name] for name in above)
    torch.testing.assert_close(total, q.log_prob(z) - p.log_prob(z), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("num_particles", [1, 3])
def test_pyros_svi_sees_the_same_loss_and_trains_every_layer(num_particles: int) -> None:
    vae = two_layers()
    elbo = Trace_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(1)
    theirs = elbo.differentiable_loss(vae.model, vae.guide, X) / 12
    torch.manual_seed(1)
    (ours,) = ALGORITHMS["aevb"](num_particles).losses(vae, X)
    torch.testing.assert_close(ours.value, theirs, rtol=1e-10, atol=1e-10)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(X)
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_it_and_every_parameter_has_a_gradient(name: str) -> None:
    vae = two_layers(size=12)
    inference = ALGORITHMS[name]()
    try:
        inference.check(vae)
    except InputError as refusal:
        pytest.skip(str(refusal))
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    fit(vae, X, inference, Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.01), steps=3, batch_size=12))
    still = {name for name, p in vae.named_parameters() if torch.equal(p, before[name])}
    assert all(name.startswith(("posterior.", "prior.")) for name in still)
    if inference.trains_posterior and inference.trains_prior:
        assert still == set()


def test_deep_copies_and_state_dicts() -> None:
    vae, other = two_layers(), two_layers()
    twin = copy.deepcopy(vae)
    z = torch.randn(12, 5).double()
    assert torch.equal(vae.log_joint(z, X), twin.log_joint(z, X))
    fit(vae, X, IWAE(2), Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.01), steps=2, batch_size=12))
    assert not torch.equal(vae.log_joint(z, X), twin.log_joint(z, X))
    other.load_state_dict(vae.state_dict())
    assert torch.equal(vae.log_joint(z, X), other.log_joint(z, X))
    assert active_units(vae, X).shape == (5,)


# ------------------------------------------------------------------ layers of other kinds


@pytest.mark.parametrize(
    ("bottom", "inverse"),
    [
        (lambda: Conditional(dist.Gamma, (3,), given=mlp(2, 4)), torch.log),
        (lambda: Conditional(dist.Beta, (3,), given=mlp(2, 4)), torch.logit),
        (lambda: Mixture(dist.Normal, (3,), 2, given=mlp(2, 4)), None),
        (lambda: Flow((3,), given=mlp(2, 4), hidden=(8,), fast="density"), None),
        (lambda: Conditional(dist.MultivariateNormal, (3,), given=mlp(2, 4)), None),
    ],
    ids=["gamma", "beta", "mixture", "flow", "full"],
)
@pytest.mark.parametrize("declared", [True, False], ids=["hierarchical", "derived"])
def test_a_layer_of_another_family_gets_a_posterior_on_its_support(
    bottom: Callable[[], nn.Module], inverse: Callable[[Tensor], Tensor] | None, declared: bool
) -> None:
    """Of which the density is that of u, less the slope of z1 = T(u1) in its cells alone."""
    torch.manual_seed(0)
    likelihood = Reads(Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)), "z1")
    vae = VAE(prior(bottom=bottom()), likelihood, posterior() if declared else None).double()
    q = vae.encode(X)
    z = q.sample((20,))
    assert bool(vae.prior_given(None).support.check(z).all())
    if inverse is None:
        assert type(q) is type(vae.posterior(X))
        assert isinstance(q, HierarchicalDistribution) is declared
    else:
        z1 = z[..., :3].clone().requires_grad_()
        u1 = inverse(z1)
        (slope,) = torch.autograd.grad(u1.sum(), z1)
        base = vae.posterior.base(X)
        assert isinstance(base, HierarchicalDistribution) is declared
        expected = base.log_prob(torch.cat([u1, z[..., 3:]], -1)) + slope.log().sum(-1)
        torch.testing.assert_close(q.log_prob(z.clone()), expected, rtol=1e-8, atol=1e-8)
    vae.log_weights(X).mean().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_a_simplex_layer_needs_the_same_layer_in_the_posterior() -> None:
    p = prior(bottom=Conditional(dist.Dirichlet, (3,), given=mlp(2, 4)))
    likelihood = Reads(Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)), "z1")
    with pytest.raises(InputError, match="support"):
        VAE(p, likelihood, posterior())
    q = Hierarchy(
        z1=Conditional(dist.Dirichlet, (3,), given=mlp(6, 5)), z2=Conditional(dist.Normal, (2,), given=mlp(3, 4))
    )
    assert bool(torch.isfinite(VAE(p, likelihood, q).log_weights(X.float(), 3)).all())


def test_a_layer_whose_density_does_not_vanish_is_not_hidden_by_the_others() -> None:
    """A von Mises density is periodic on the real line that it declares."""
    p = prior(top=Conditional(dist.VonMises, (2,), loc=Fixed(0.0), concentration=Fixed(1.0)))
    likelihood = Reads(Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)), "z1")
    for q in (posterior(), None, Conditional(dist.Normal, (5,), given=mlp(6, 5))):
        with pytest.raises(InputError, match="does not integrate to 1"):
            VAE(p, likelihood, q)
    q = Hierarchy(
        z1=Conditional(dist.Normal, (3,), given=mlp(6, 5)), z2=Conditional(dist.VonMises, (2,), given=mlp(3, 4))
    )
    assert not VAE(p, likelihood, q).encode(X.float()).has_rsample


def test_a_support_that_depends_on_theta_is_refused_by_those_that_part_theta_from_phi() -> None:
    torch.manual_seed(0)
    p = prior(top=Conditional(dist.Pareto, (2,), scale=Learned(1.0), alpha=Fixed(3.0)))
    vae = VAE(p, Reads(Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)), "z1"))
    with pytest.raises(InputError, match=r"support, which depends on.*use aevb"):
        ALGORITHMS["rws"]().check(vae)


# ------------------------------------------------------------------ what does not fit


def normal(size: int, given: nn.Module | None = None) -> Conditional:
    return Conditional(dist.Normal, (size,), given=given)


def reading(*names: str, p: nn.Module | None = None) -> VAE:
    return VAE(p or prior(), Reads(Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)), *names), None)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Hierarchy(z1=normal(2)), "at least two layers"),
        (lambda: Hierarchy(z2=normal(2), z1=nn.Linear(2, 3)), "layer `z1` must be a module with an attribute"),
        (lambda: Hierarchy(z2=normal(2), z1=Conditional(dist.Normal, (2, 3), given=mlp(2))), "layer `z1`"),
        (lambda: Hierarchy({"z3": ()}, z2=normal(2), z1=normal(3, mlp(2))), "names the layer `z3`"),
        (lambda: Hierarchy({"z2": ("z1",)}, z2=normal(2), z1=normal(3, mlp(2))), "cannot be given `z1`"),
        (lambda: Reads(normal(6, mlp(3))), "expected names of layers"),
        (lambda: reading("z3"), r"reads `z3`.*no such layer"),
        (lambda: reading("z_1"), "did you mean `z1`"),
        (lambda: reading("z1", p=normal(3)), "use a Hierarchy"),
        (lambda: VAE(prior(), normal(6, mlp(5)), Hierarchy(z1=normal(2, mlp(6)), z2=normal(3, mlp(2)))), "layers"),
        (lambda: VAE(prior(), normal(6, mlp(5)), Hierarchy(a=normal(3, mlp(6)), b=normal(2, mlp(3)))), "layers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_the_likelihood_is_given_the_layers_that_it_reads_in_the_order_in_which_it_names_them() -> None:
    seen: list[Tensor] = []
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(5, 7))
    likelihood.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    vae = VAE(prior(), Reads(likelihood, "z2", "z1"), posterior())
    z = torch.randn(2, 5)
    vae.decode(z)
    assert torch.equal(seen[-1], torch.cat([z[:, 3:], z[:, :3]], -1))


def test_with_covariates_every_part_sees_them() -> None:
    torch.manual_seed(0)
    p = Hierarchy({"z1": ("z2", "context")}, z2=normal(2, mlp(4)), z1=normal(3, mlp(2 + 4)))
    q = Hierarchy(z1=normal(3, mlp(6 + 4)), z2=normal(2, mlp(3)))
    vae = VAE(p, Reads(Conditional(dist.Bernoulli, (6,), given=mlp(3 + 4)), "z1"), q, context_features=4).double()
    context = torch.randn(12, 4).double()
    (loss,) = IWAE(3).losses(vae, Batch(X, context))
    loss.value.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    assert vae.generate(12, context).shape == (12, 6)
    assert isinstance(vae.prior_given(context), HierarchicalDistribution)
    assert vae.prior_given(context).sample().shape == (12, 5)
