"""The VAE: its Pyro programs, derived posteriors, context, mask and offset, parameters, and Pyro's param store."""

import copy
import gc
import io
import math
import pickle

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Hierarchy, Learned, Mixture, Network, VampPrior, mlp
from pyro_vae.distributions.moments import centre, spread
from pyro_vae.errors import InputError
from pyro_vae.vae.parameter_prior import ParameterPrior


def fixed(family, event_shape, **values):
    return Conditional(family, event_shape, **{name: Fixed(value) for name, value in values.items()})


def standard_normal(size=2):
    return fixed(dist.Normal, (size,), loc=0.0, scale=1.0)


class Part(nn.Module):
    """A user's own module, whose forward returns what a function of its linear layer's output returns."""

    def __init__(self, in_features, out_features, function):
        super().__init__()
        self.linear, self.function = nn.Linear(in_features, out_features), function

    def forward(self, context=None):
        return self.function(self.linear.bias if context is None else self.linear(context))


def normal_of(raw):
    loc, log_scale = raw.chunk(2, dim=-1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def snapshot(module):
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def changed(module, before):
    return {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}


def trainable(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def train(vae, x, elbo=Trace_ELBO, steps=3):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), elbo())
    for _ in range(steps):
        assert math.isfinite(svi.step(x))


# ---------------------------------------------------------------------- shapes


def test_pyro_programs_have_one_site_each_in_the_data_plate(make_vae, x):
    vae = make_vae()
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    assert guide.nodes["z"]["fn"].batch_shape == (12,)
    assert guide.nodes["z"]["value"].shape == (12, 2)
    assert model.nodes["z"]["value"] is guide.nodes["z"]["value"]
    assert model.nodes["x"]["is_observed"]
    assert model.nodes["x"]["value"].shape == (12, 6)
    model.compute_log_prob()
    assert model.nodes["x"]["log_prob"].shape == (12,)


def test_predictive_draws_x_anew(make_vae, x):
    vae = make_vae()
    draws = pyro.infer.Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=5)(x)["x"]
    assert draws.shape == (5, 12, 6)
    assert not torch.equal(draws[0], x)


def test_log_weights_are_log_joint_minus_log_posterior(make_vae, x):
    vae = make_vae()
    torch.manual_seed(3)
    log_w = vae.log_weights(x, num_particles=4)
    torch.manual_seed(3)
    q = vae.posterior(x).base_dist
    z = q.rsample((4,))
    by_hand = (
        dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        + dist.Bernoulli(logits=vae.likelihood(z).base_dist.logits).log_prob(x).sum(-1)
        - q.log_prob(z).sum(-1)
    )
    assert log_w.shape == (4, 12)
    torch.testing.assert_close(log_w, by_hand)


def test_weights_are_neither_scaled_nor_weighted(make_vae, x):
    vae = make_vae(size=1000)
    plain = make_vae()
    plain.load_state_dict(vae.state_dict())
    weight = torch.rand(12)
    torch.manual_seed(3)
    log_w = vae.log_weights(Batch(x, weight=weight), 2)
    torch.manual_seed(3)
    assert torch.equal(log_w, plain.log_weights(x, 2))


@pytest.mark.parametrize("event_shape", [(), (6,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("latent_shape", [(), (2,), (2, 2)], ids=str)
def test_any_event_shapes(event_shape, latent_shape):
    cells, latents = math.prod(event_shape), math.prod(latent_shape)
    vae = VAE(
        fixed(dist.Normal, latent_shape, loc=0.0, scale=1.0),
        Conditional(dist.Normal, event_shape, given=mlp(latents, 7)),
        Conditional(dist.Normal, latent_shape, given=mlp(cells, 7)),
    )
    x = torch.randn(5, *event_shape)
    assert vae.log_weights(x, 3).shape == (3, 5)
    assert vae.generate(4).shape == (4, *event_shape)
    assert vae.encode(x).event_shape == latent_shape
    assert vae.reconstruct(x).shape == x.shape
    assert vae.reconstruct(x, num_samples=2).shape == (2, *x.shape)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float64])
def test_x_of_any_type_is_converted(make_vae, x, dtype):
    vae = make_vae()
    assert vae.check(x.to(dtype)).x.dtype == torch.float32
    assert torch.equal(vae.encode(x.to(dtype)).mean, vae.encode(x).mean)


def test_its_methods_take_arrays(conditional_vae, x):
    context = torch.eye(3)[torch.arange(len(x)) % 3]
    batch, arrays = Batch(x, context), Batch(x.double().numpy(), pd.DataFrame(context.numpy()))
    for method in (conditional_vae.reconstruct, lambda data: conditional_vae.encode(data).mean):
        assert torch.equal(method(arrays), method(batch))
    assert conditional_vae.generate(len(x), context.numpy()).shape == x.shape
    assert conditional_vae.check(arrays).context.dtype == torch.float32


def test_default_posterior_is_the_likelihoods_network_in_reverse():
    vae = VAE(standard_normal(), Conditional(dist.Bernoulli, (6,), given=mlp(2, 7, 9)))
    assert vae.posterior.given.hidden == (9, 7)
    assert vae.log_weights(torch.ones(5, 6)).shape == (1, 5)


# ---------------------------------------------------------------------- generate and reconstruct


def test_generated_data_have_the_models_mean():
    prior = fixed(dist.Normal, (1,), loc=3.0, scale=1.0)
    likelihood = Conditional(dist.Normal, (1,), given=nn.Identity(), head=None, scale=Fixed(0.5))
    vae = VAE(prior, likelihood, mlp(1, 4))
    draws = vae.generate(20000)
    assert_mean(torch.cat([draws, (draws - 3).square()], 1), [3.0, 1.25])


def test_reconstruction_is_the_mean_at_the_posterior_mean(make_vae, x):
    vae = make_vae()
    torch.testing.assert_close(vae.reconstruct(x), vae.decode(vae.encode(x).mean).mean)
    assert not vae.reconstruct(x).requires_grad


def test_reconstruction_is_the_mode_where_there_is_no_mean(make_vae):
    likelihood = Conditional(dist.Categorical, (6,), given=mlp(2, 7), logits=Network(shape=(4,)))
    vae = make_vae(likelihood=likelihood)
    x = torch.randint(4, (5, 6))
    assert torch.equal(vae.reconstruct(x), vae.decode(vae.encode(x).mean).base_dist.logits.argmax(-1))


def test_a_cell_that_is_not_finite_is_named(make_vae, x):
    vae, x = make_vae(), x.clone()
    x[3, 2] = math.nan
    with (
        pyro.validation_enabled(False),
        pytest.raises(InputError, match=r"reconstruct: the value nan in row 3, column 2"),
    ):
        vae.reconstruct(x)
    for method in (vae.encode, vae.log_weights, vae.guide):
        with pytest.raises(InputError, match=r"VAE: the value nan in row 3, column 2 .* hide it with Batch\(x, mask="):
            method(x)
    hidden = Batch(x, mask=~x.isnan())
    assert bool(vae.reconstruct(hidden).isfinite().all())
    assert torch.equal(vae.reconstruct(hidden), vae.reconstruct(x.nan_to_num(0.0)))


def test_what_the_posterior_refuses_at_finite_data_is_raised_as_it_is(make_vae, x):
    vae = make_vae()
    torch.nn.init.constant_(vae.posterior.head.bias, math.nan)
    with pytest.raises(ValueError, match="Expected parameter loc"):
        vae.encode(x)


def test_reconstruction_draws_differ_from_x_and_from_each_other(make_vae, x):
    vae = make_vae()
    draws = vae.reconstruct(x, num_samples=4000)
    assert draws.shape == (4000, 12, 6)
    assert not torch.equal(draws[0], x)
    with torch.no_grad():
        expected = vae.decode(vae.encode(x).sample((4000,))).mean
    assert_mean(draws - expected, torch.zeros(12, 6))


# ---------------------------------------------------------------------- derived posteriors

PRIORS = {
    "Dirichlet": fixed(dist.Dirichlet, (3,), concentration=[0.7, 1.5, 2.0]),
    "Beta": fixed(dist.Beta, (2,), concentration0=0.6, concentration1=2.0),
    "Gamma": fixed(dist.Gamma, (2,), concentration=2.0, rate=1.5),
    "LogNormal": fixed(dist.LogNormal, (2,), loc=0.5, scale=0.7),
    "Exponential": fixed(dist.Exponential, (2,), rate=0.8),
    "Laplace": fixed(dist.Laplace, (2,), loc=0.3, scale=0.9),
    "Uniform": fixed(dist.Uniform, (2,), low=-1.0, high=[2.0, 3.0]),
    "StudentT": fixed(dist.StudentT, (2,), df=1.0, loc=0.0, scale=1.0),
    "MultivariateNormal": fixed(dist.MultivariateNormal, (2,), loc=[0.0, 1.0], scale_tril=[[1.0, 0.0], [0.5, 1.0]]),
}


@pytest.mark.parametrize("name", PRIORS)
def test_derived_posterior_is_a_density_on_the_priors_support(name, x):
    prior = PRIORS[name]
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(math.prod(prior.event_shape), 7)), mlp(6, 7))
    assert vae.log_weights(x, 50).isfinite().all()
    p, q = prior(), vae.encode(x[:1]).expand((1,))
    z_p, z_q = p.sample((20000, 1)), q.rsample((20000,)).detach()
    assert p.support.check(z_q).all()
    # E_p[p/(p+q)] + E_q[p/(p+q)] = 1: E_q[p/q] = 1 with a bounded integrand, since p/q may have infinite variance.
    shares = [torch.sigmoid(p.log_prob(z) - q.log_prob(z)) for z in (z_p, z_q)]
    assert_mean(shares[0] + shares[1], [1.0])


def test_derived_posterior_follows_a_learned_support(x):
    class Pareto(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self):
            return dist.Pareto(self.scale, 2.0).to_event(1)

    vae = VAE(Pareto(), Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), mlp(6, 7))
    assert set(vae.theta) & set(vae.phi) == set()
    assert not any("prior" in name for name in vae.phi)
    with torch.no_grad():
        vae.prior.scale += 5.0
    assert (vae.encode(x).sample() > vae.prior.scale).all()
    assert (copy.deepcopy(vae).encode(x).sample() > vae.prior.scale).all()


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (fixed(dist.VonMises, (2,), loc=0.0, concentration=1.0), r"density of the prior `VonMises` does not integrate"),
        (fixed(dist.Bernoulli, (2,), logits=0.0), r"no posterior follows from the discrete prior `Bernoulli`"),
        (fixed(dist.Poisson, (2,), rate=1.0), r"no posterior follows from the discrete prior `Poisson`"),
    ],
)
def test_priors_without_a_derived_posterior_name_the_remedy(prior, message):
    family = prior.family.__name__
    with pytest.raises(InputError, match=rf"{message}.*posterior=Conditional\(dist.{family}, \(2,\), given="):
        VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)))


def test_discrete_latent_with_a_posterior(x):
    posterior = Conditional(dist.Bernoulli, (2,), given=mlp(6, 7))
    vae = VAE(fixed(dist.Bernoulli, (2,), logits=0.0), Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), posterior)
    # The mean weight over all four latents is p(x), exactly.
    z = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[:, None].expand(4, 12, 2)
    q = vae.encode(x)
    log_w = vae.prior().log_prob(z) + vae.log_likelihood(z, x) - q.log_prob(z)
    evidence = torch.logsumexp(vae.log_likelihood(z, x), 0) - math.log(4)
    torch.testing.assert_close(torch.logsumexp(log_w + q.log_prob(z), 0), evidence)
    assert vae.log_weights(x, 3).shape == (3, 12)


# ---------------------------------------------------------------------- a user's own modules


@pytest.mark.parametrize("part", ["prior", "likelihood", "posterior"])
def test_own_module_may_stand_for_any_part(make_vae, x, part):
    own = {
        "prior": Part(1, 4, normal_of),
        "likelihood": Part(2, 6, lambda raw: dist.Bernoulli(logits=raw).to_event(1)),
        "posterior": Part(6, 4, normal_of),
    }
    vae = make_vae(**{part: own[part]})
    before = snapshot(vae)
    train(vae, x)
    assert f"{part}.linear.bias" in changed(vae, before)
    assert vae.generate(3).shape == (3, 6)
    assert vae.reconstruct(x).shape == x.shape


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"likelihood": Conditional(dist.Bernoulli, (6,), given=mlp(3, 7))}, r"the likelihood fails on \(2, 2\): "),
        ({"posterior": Conditional(dist.Normal, (2,), given=mlp(5, 7))}, r"the posterior fails on \(2, 6\): "),
        ({"posterior": Conditional(dist.Normal, (3,), given=mlp(6, 7))}, r"z has shape \(3,\), the prior's \(2,\)"),
        ({"likelihood": mlp(2, 6)}, r"forward of the likelihood must return a distribution, got `Tensor`"),
        ({"prior": dist.Normal(0.0, 1.0)}, r"`prior` must be an nn.Module, got `Normal`"),
        ({"likelihood": Part(2, 6, lambda raw: dist.Bernoulli(logits=raw))}, r"batch_shape \(2, 6\).*\.to_event"),
        (
            {"posterior": Part(6, 4, lambda raw: dist.Normal(raw[:, :2], 1.0))},
            r"posterior returns batch_shape \(2, 2\)",
        ),
        ({"parameter_prior": dist.Normal(0.0, 1.0)}, r"`parameter_prior` is weighed.*pass size=N"),
        ({"size": 0}, r"`size` is the number of training data, a positive integer; got `0`"),
        ({"size": 10.0}, r"`size` is the number of training data"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_construction(make_vae, parts, message):
    with pytest.raises(InputError, match=message):
        make_vae(**parts)


def test_prior_whose_latents_are_a_batch_is_refused():
    prior = Part(1, 2, lambda raw: dist.Normal(raw, 1.0))
    with pytest.raises(InputError, match=r"prior returns batch_shape \(2,\).*\.to_event"):
        VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(1, 7)))


@pytest.mark.parametrize("shape", [(12, 5), (6,), (0, 6), (12, 2, 3), ()], ids=str)
def test_data_of_another_shape_are_refused(make_vae, shape):
    with pytest.raises(InputError, match=r"expected data of shape \(B, 6\) with B >= 1, got"):
        make_vae().log_weights(torch.zeros(shape))


# ---------------------------------------------------------------------- context


@pytest.fixture
def conditional_vae():
    return VAE(
        Conditional(dist.Normal, (2,), given=mlp(3, 7)),
        Conditional(dist.Bernoulli, (6,), given=mlp(2 + 3, 7)),
        Conditional(dist.Normal, (2,), given=mlp(6 + 3, 7)),
        context_features=3,
    )


def test_context_reaches_all_three_parts(conditional_vae, x):
    vae, c = conditional_vae, torch.randn(12, 3)
    z = torch.randn(4, 12, 2)
    batch = Batch(x, context=c)
    torch.testing.assert_close(vae.prior_given(batch).mean, vae.prior(c).mean)
    torch.testing.assert_close(vae.encode(batch).mean, vae.posterior(torch.cat([x, c], 1)).mean)
    joined = torch.cat([z, c.expand(4, 12, 3)], -1)
    torch.testing.assert_close(vae.decode(z, batch).mean, vae.likelihood(joined).mean)
    assert vae.log_weights(batch, 4).shape == (4, 12)
    assert vae.reconstruct(batch, 4).shape == (4, 12, 6)
    before = snapshot(vae)
    train(vae, batch)
    assert changed(vae, before) == trainable(vae)


def test_generation_uses_each_rows_own_context(conditional_vae):
    vae, c = conditional_vae, torch.randn(2, 3) * 5
    draws = vae.generate(20000, context=c.repeat(10000, 1)).reshape(10000, 2, 6)
    with torch.no_grad():
        z = vae.prior(c).sample((10000,))
        expected = vae.decode(z, Batch(draws[0], context=c)).mean
    assert_mean(draws - expected, torch.zeros(2, 6))


@pytest.mark.parametrize("context", [None, torch.zeros(12, 2)], ids=["none", "of the wrong size"])
def test_context_of_another_size_is_refused(conditional_vae, x, context):
    with pytest.raises(InputError, match=r"declared with context_features=3, got a context of shape (None|\(12, 2\))"):
        conditional_vae.encode(Batch(x, context=context))


def test_undeclared_context_is_refused(make_vae, x):
    with pytest.raises(InputError, match=r"declared with context_features=0, got a context of shape \(12, 3\)"):
        make_vae().encode(Batch(x, context=torch.zeros(12, 3)))


def test_posterior_is_derived_from_a_prior_given_context(x):
    prior = Conditional(dist.Gamma, (2,), given=mlp(3, 7))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(5, 7)), mlp(9, 7), context_features=3)
    assert vae.log_weights(Batch(x, context=torch.randn(12, 3)), 4).isfinite().all()


# ---------------------------------------------------------------------- mask and offset

MASKED = {
    "Bernoulli": (Conditional(dist.Bernoulli, (2, 3), given=mlp(2, 7)), torch.ones(5, 2, 3)),
    "Normal": (Conditional(dist.Normal, (6,), given=mlp(2, 7)), torch.randn(5, 6)),
    "Gamma": (Conditional(dist.Gamma, (6,), given=mlp(2, 7)), torch.rand(5, 6) + 0.1),
    "Beta": (Conditional(dist.Beta, (6,), given=mlp(2, 7)), torch.rand(5, 6) * 0.8 + 0.1),
    "Poisson": (Conditional(dist.Poisson, (6,), given=mlp(2, 7)), torch.arange(30.0).reshape(5, 6)),
    "Categorical": (
        Conditional(dist.Categorical, (6,), given=mlp(2, 7), logits=Network(shape=(4,))),
        torch.arange(30.0).reshape(5, 6) % 4,
    ),
}


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -77.5], ids=str)
@pytest.mark.parametrize("family", MASKED)
def test_masked_cells_contribute_nothing(make_vae, family, hidden):
    likelihood, x = MASKED[family]
    vae = make_vae(likelihood=copy.deepcopy(likelihood))
    mask = torch.rand(x.shape) < 0.6
    mask[0] = False  # a datum of which nothing is observed
    z = torch.randn(3, 5, 2)
    cells = vae.decode(z).base_dist.log_prob(x)
    batch = Batch(torch.where(mask, x, hidden), mask=mask)
    log_likelihood = vae.log_likelihood(z, batch)
    torch.testing.assert_close(log_likelihood, (cells * mask).flatten(2).sum(2))
    assert (log_likelihood[:, 0] == 0).all()
    assert torch.equal(vae.encode(batch).mean, vae.encode(x * mask).mean)
    svi_loss = Trace_ELBO(max_plate_nesting=1).differentiable_loss(*vae.programs, batch)
    for value in (vae.log_weights(batch, 2).sum(), svi_loss):
        for gradient in torch.autograd.grad(value, list(vae.parameters())):
            assert gradient.isfinite().all()


def test_mask_of_ones_equals_no_mask(make_vae, x):
    vae = make_vae()
    torch.manual_seed(3)
    masked = vae.log_weights(Batch(x, mask=torch.ones_like(x, dtype=torch.bool)), 4)
    torch.manual_seed(3)
    assert torch.equal(masked, vae.log_weights(x, 4))


@pytest.mark.parametrize(
    "likelihood",
    [
        Conditional(dist.MultivariateNormal, (6,), given=mlp(2, 7)),
        Conditional(dist.Multinomial, (6,), given=mlp(2, 7), total_count=Fixed(3)),
        Conditional(dist.OneHotCategorical, (2, 3), given=mlp(2, 7)),
    ],
    ids=lambda likelihood: likelihood.family.__name__,
)
def test_mask_is_refused_where_cells_depend_on_each_other(make_vae, likelihood):
    vae = make_vae(likelihood=likelihood)
    batch = vae.probe_batch()
    with pytest.raises(InputError, match=rf"cells of `{likelihood.family.__name__}` depend on each other"):
        vae.log_weights(batch._replace(mask=torch.ones_like(batch.x, dtype=torch.bool)))


def test_offset_reaches_the_likelihood(make_vae):
    vae = make_vae(likelihood=Conditional(dist.Poisson, (6,), given=mlp(2, 7), rate=Network(offset=True)))
    x, offset, z = torch.ones(5, 6), torch.randn(5, 1), torch.randn(4, 5, 2)
    batch = Batch(x, offset=offset)
    torch.testing.assert_close(vae.decode(z, batch).mean, vae.decode(z).mean * offset.exp())
    assert vae.log_weights(batch, 4).shape == (4, 5)
    far = Batch(x, offset=offset + 3)
    assert (vae.reconstruct(far) > vae.reconstruct(batch)).all()


# ---------------------------------------------------------------------- parameters


def test_theta_and_phi_partition_the_parameters(make_vae):
    vae = make_vae(prior=Conditional(dist.Normal, (2,), loc=Learned(), scale=Learned()))
    assert {name.split(".")[0] for name in vae.theta} == {"prior", "likelihood"}
    assert set(vae.phi) == {f"posterior.{name}" for name, _ in vae.posterior.named_parameters()}
    assert {**vae.theta, **vae.phi} == dict(vae.named_parameters())


def test_shared_parameters_belong_to_the_posterior(make_vae):
    shared = nn.Linear(7, 7)
    likelihood = Conditional(dist.Bernoulli, (6,), given=nn.Sequential(nn.Linear(2, 7), shared))
    posterior = Conditional(dist.Normal, (2,), given=nn.Sequential(nn.Linear(6, 7), shared))
    vae = make_vae(likelihood=likelihood, posterior=posterior)
    theta, phi = {id(p) for p in vae.theta.values()}, {id(p) for p in vae.phi.values()}
    assert id(shared.weight) in phi
    assert not theta & phi
    assert theta | phi == {id(p) for p in vae.parameters()}


# ---------------------------------------------------------------------- Pyro's SVI


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_trains_every_instance_and_only_its_own(make_vae, x, elbo):
    vaes = [make_vae(), make_vae()]
    for moved in (0, 1, 0):
        before = [snapshot(vae) for vae in vaes]
        train(vaes[moved], x, elbo)
        for i, vae in enumerate(vaes):
            assert changed(vae, before[i]) == (trainable(vae) if i == moved else set())


def test_svi_leaves_a_frozen_parameter(make_vae, x):
    vae = make_vae()
    frozen = "likelihood.given.0.weight"
    vae.get_parameter(frozen).requires_grad_(False)
    before = snapshot(vae)
    train(vae, x)
    assert changed(vae, before) == trainable(vae)
    assert frozen not in trainable(vae)


def test_param_store_entries_go_with_their_instance(make_vae, x):
    gc.collect()  # what the tests before this one left
    store = pyro.get_param_store()
    before = set(store.keys())
    kept, vae = make_vae(), make_vae()
    train(kept, x)
    with_kept = set(store.keys())
    train(vae, x)
    assert len(set(store.keys()) - with_kept) == len(list(vae.parameters()))
    del vae
    gc.collect()
    assert set(store.keys()) == with_kept
    del kept
    gc.collect()
    assert set(store.keys()) == before


@pytest.mark.parametrize("assign", [False, True])
def test_svi_trains_after_loading_into_a_registered_instance(make_vae, x, assign):
    vae, other = make_vae(), make_vae()
    train(vae, x)
    vae.load_state_dict(snapshot(other), assign=assign)
    assert not changed(vae, snapshot(other))
    train(vae, x)
    assert changed(vae, snapshot(other)) == trainable(vae)


def test_non_contiguous_parameter_is_refused_by_name(make_vae, x):
    vae = make_vae()
    vae.likelihood.given[0].weight = nn.Parameter(torch.randn(2, 7).t())
    with pytest.raises(InputError, match=r"`likelihood.given.0.weight` is not contiguous.*replace it by"):
        train(vae, x)


def test_saved_state_gives_the_same_weights(make_vae, x):
    vae, loaded = make_vae(), make_vae()
    train(vae, x)
    file = io.BytesIO()
    torch.save(vae.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    torch.manual_seed(3)
    log_w = vae.log_weights(x)
    torch.manual_seed(3)
    assert torch.equal(loaded.log_weights(x), log_w)


@pytest.mark.parametrize(
    "reproduce", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))], ids=["copy", "pickle"]
)
def test_copy_after_svi_is_an_instance_of_its_own(make_vae, x, reproduce):
    vae = make_vae()
    train(vae, x)
    loaded = reproduce(vae)
    torch.manual_seed(3)
    log_w = vae.log_weights(x)
    torch.manual_seed(3)
    assert torch.equal(loaded.log_weights(x), log_w)
    entries = set(pyro.get_param_store().keys())
    train(loaded, x)
    assert len(set(pyro.get_param_store().keys()) - entries) == len(trainable(loaded))  # under a new name
    for moved, other in ((loaded, vae), (vae, loaded)):
        before = snapshot(moved), snapshot(other)
        train(moved, x)
        assert changed(moved, before[0]) == trainable(moved)
        assert not changed(other, before[1])


def test_running_statistics_are_saved(make_vae, x):
    encoder = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh())
    vae = make_vae(posterior=Conditional(dist.Normal, (2,), given=encoder, features=7))
    assert vae.state_dict()["posterior.given.1.num_batches_tracked"] == 0  # the probe leaves no trace
    before = snapshot(vae)
    train(vae, x)
    assert {f"posterior.given.1.running_{moment}" for moment in ("mean", "var")} <= changed(vae, before)
    assert vae.state_dict()["posterior.given.1.num_batches_tracked"] == 3


def test_construction_leaves_the_random_streams_alone(make_vae):
    parts = make_vae()
    state = torch.get_rng_state()
    VAE(parts.prior, parts.likelihood, parts.posterior)
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------- the scales of Pyro's ELBO


def loss_at(vae, z, batch):
    """Pyro's loss with the guide's z replaced, so that no noise is left."""
    guide = poutine.trace(vae.guide).get_trace(batch)
    guide.nodes["z"]["value"] = z
    return Trace_ELBO(max_plate_nesting=1).loss(vae.model, poutine.replay(vae.guide, trace=guide), batch)


def test_minibatch_is_scaled_to_the_data_set(make_vae, x):
    vae, plain = make_vae(size=120).double(), make_vae().double()
    plain.load_state_dict(vae.state_dict())
    z = torch.randn(12, 2, dtype=torch.float64)
    batch = x.double()
    assert loss_at(vae, z, batch) == pytest.approx(10 * loss_at(plain, z, batch), rel=1e-12)


def test_minibatch_losses_average_to_the_loss_of_all_data(make_vae, x):
    vae = make_vae(size=12, parameter_prior=dist.Normal(0.0, 1.0)).double()
    z, rows = torch.randn(12, 2, dtype=torch.float64), torch.randperm(12).split(4)
    parts = [loss_at(vae, z[part], x[part].double()) for part in rows]
    assert sum(parts) / 3 == pytest.approx(loss_at(vae, z, x.double()), rel=1e-12)


def test_weights_scale_each_datum(make_vae, x):
    vae = make_vae().double()
    z, weight = torch.randn(12, 2, dtype=torch.float64), torch.rand(12, dtype=torch.float64)
    each = [loss_at(vae, z[i : i + 1], x[i : i + 1].double()) for i in range(12)]
    expected = float(torch.tensor(each, dtype=torch.float64) @ weight)
    assert loss_at(vae, z, Batch(x.double(), weight=weight)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_parameter_prior_enters_pyros_loss_once(make_vae, x, biases, num_particles):
    normal = dist.Normal(torch.tensor(0.5, dtype=torch.float64), 2.0)
    vae = make_vae(size=120, parameter_prior=ParameterPrior(normal, biases=biases)).double()
    plain = make_vae(size=120).double()
    plain.load_state_dict(vae.state_dict())
    losses = []
    for each in (vae, plain):
        torch.manual_seed(3)
        elbo = Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True)
        losses.append(elbo.loss(each.model, each.guide, x.double()))
    theta = [p for p in (*vae.prior.parameters(), *vae.likelihood.parameters()) if biases or p.dim() > 1]
    assert len(theta) == (4 if biases else 2)
    expected = float(sum(normal.log_prob(p.detach()).sum() for p in theta))
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-9)
    assert vae.log_parameter_prior_per_datum().item() == pytest.approx(expected / 120, rel=1e-12)


@pytest.mark.parametrize(
    "prior",
    [
        lambda: Mixture(dist.Normal, (2,), components=4),  # its means are a matrix, but no weights
        lambda: VampPrior(6, components=5),
        lambda: Conditional(dist.MultivariateNormal, (2,)),
    ],
    ids=["mixture", "vamp", "conditional"],
)
@pytest.mark.parametrize("biases", [False, True])
def test_the_parameter_prior_is_of_the_networks_weights_and_with_biases_of_all(prior, biases):
    normal = dist.Normal(0.0, 2.0)
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2, 7))
    posterior = Conditional(dist.Normal, (2,), given=mlp(6, 7))
    vae = VAE(prior(), likelihood, posterior, size=10, parameter_prior=ParameterPrior(normal, biases))
    weights = [likelihood.given[0].weight, likelihood.head.weight]
    expected = sum(normal.log_prob(p).sum() for p in (vae.theta.values() if biases else weights))
    torch.testing.assert_close(vae.log_parameter_prior(), expected)


@pytest.mark.parametrize("field", ["x", "context", "offset"])
def test_batches_of_another_type_do_not_change_that_of_the_model(field):
    likelihood = Conditional(dist.Poisson, (6,), given=mlp(3, 7), rate=Network(offset=True))
    vae = VAE(standard_normal(), likelihood, Conditional(dist.Normal, (2,), given=mlp(7, 7)), context_features=1)
    batch = Batch(torch.ones(5, 6), context=torch.ones(5, 1), offset=torch.zeros(5, 1))
    other = batch._replace(**{field: getattr(batch, field).double()})
    assert vae.check(other)._asdict()[field].dtype == torch.float32
    assert vae.log_weights(other).dtype == torch.float32


def normalised(in_features):
    return nn.Sequential(nn.Linear(in_features, 5), nn.BatchNorm1d(5), nn.Tanh())


@pytest.mark.parametrize(
    "parts",
    [
        lambda: (
            Hierarchy(z2=standard_normal(1), z1=Conditional(dist.Normal, (1,), given=normalised(1), features=5)),
            Hierarchy(
                z1=Conditional(dist.Normal, (1,), given=normalised(6), features=5),
                z2=Conditional(dist.Normal, (1,), given=normalised(1), features=5),
            ),
        ),
        lambda: (VampPrior(6, components=4), Conditional(dist.Normal, (2,), given=normalised(6), features=5)),
    ],
    ids=["hierarchy", "vamp"],
)
def test_construction_teaches_batch_normalisation_nothing(parts):
    prior, posterior = parts()
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)), posterior)
    running = {name: t for name, t in vae.named_buffers() if "running_mean" in name or "batches" in name}
    assert running
    assert all(bool((t == 0).all()) for t in running.values())
    assert all(module.training for module in vae.modules())


# ---------------------------------------------------------------------- supports, fields and moments


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [(dist.Normal, dist.Gamma), (dist.Gamma, dist.Beta), (dist.Beta, dist.Gamma), (dist.Bernoulli, dist.Normal)],
)
def test_a_posterior_of_another_support_is_refused(prior, posterior):
    with pytest.raises(InputError, match=r"draws outside the (prior|posterior)'s"):
        VAE(
            Conditional(prior, (2,)),
            Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)),
            Conditional(posterior, (2,), given=mlp(6, 7)),
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": torch.ones(12, 1)}, r"`weight` has shape \(12, 1\); expected \(12,\)"),
        ({"mask": torch.ones(12, 6)}, r"`mask` is torch.float32"),
        ({"mask": torch.ones(12, 5, dtype=torch.bool)}, r"`mask` .* of shape \(12, 5\)"),
        ({"offset": torch.ones(12)}, r"`offset` has shape \(12,\)"),
        ({"offset": torch.ones(12, 1)}, r"has an offset, but the likelihood `Conditional` takes none"),
    ],
)
def test_fields_that_do_not_fit_are_refused(make_vae, x, fields, message):
    with pytest.raises(InputError, match=message):
        make_vae().log_weights(Batch(x, **fields))


def test_the_mean_of_a_derived_posterior_is_its_mean():
    prior = Conditional(dist.Gamma, (2,), concentration=Fixed(2.0), rate=Fixed(1.0))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)))
    q = vae.encode(torch.zeros(3, 6))
    base = q.base_dist.base_dist
    torch.testing.assert_close(centre(q), (base.loc + base.scale**2 / 2).exp())  # exp of a Normal
    torch.testing.assert_close(spread(q), centre(q) * torch.expm1(base.scale**2).sqrt(), rtol=1e-3, atol=1e-4)


def test_the_mean_of_a_posterior_on_the_simplex_is_close_to_its_mean():
    vae = VAE(Conditional(dist.Dirichlet, (3,)), Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)))
    q = vae.encode(torch.zeros(3, 6))
    draws = q.sample((4000,))
    error = draws.std(0) * (1 / 4000 + 1 / 1000) ** 0.5
    assert_mean(centre(q) - draws.mean(0), torch.zeros(3, 3), error)


def test_cells_without_a_mean_get_the_mode():
    df = torch.tensor([0.5, 3.0])
    student = dist.StudentT(df, torch.tensor([1.0, 2.0]), 1.0)
    assert centre(student).tolist() == [1.0, 2.0]


def test_the_default_encoder_mirrors_the_decoder():
    decoder = mlp(2, 5, 9, activation=nn.ReLU)
    vae = VAE(
        Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(dist.Bernoulli, (6,), given=decoder),
    )
    assert vae.posterior.given.hidden == (9, 5)
    assert isinstance(vae.posterior.given[1], nn.ReLU)


def test_a_mixture_prior_has_a_normal_posterior(x):
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))

        def forward(self):
            parts = dist.Normal(self.loc, 1.0).to_event(1)
            return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2)), parts)

    vae = VAE(Mixture(), Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)))
    assert isinstance(vae.encode(x).base_dist, dist.Normal)
    assert vae.log_weights(x, 3).isfinite().all()
