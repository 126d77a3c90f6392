"""A declared distribution: shapes, parameter sources, aliases, and what is refused."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import nn
from torch.distributions import transforms

from pyro_vae import Conditional, Fixed, Learned, Network, conv_decoder, mlp
from pyro_vae.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyro_vae.errors import InputError
from pyro_vae.experiment.distribution import DistributionSpec

# Event shape, and what must be declared: a tuple is the size of a parameter, anything else a constant.
FAMILIES = {
    dist.Normal: ((3,), {}),
    dist.Laplace: ((1, 2, 3), {}),
    dist.StudentT: ((3,), {}),
    dist.LogNormal: ((), {}),
    dist.Gamma: ((3,), {}),
    dist.Beta: ((3,), {}),
    dist.Exponential: ((3,), {}),
    dist.Bernoulli: ((2, 3), {}),
    dist.ContinuousBernoulli: ((3,), {}),
    dist.Categorical: ((3,), {"logits": (4,)}),
    dist.OneHotCategorical: ((2, 4), {}),
    dist.Poisson: ((3,), {}),
    dist.NegativeBinomial: ((3,), {}),
    dist.GammaPoisson: ((3,), {}),
    dist.Multinomial: ((4,), {"total_count": 10}),
    dist.Dirichlet: ((4,), {}),
    dist.MultivariateNormal: ((2, 3), {}),
    dist.LowRankMultivariateNormal: ((3,), {"cov_factor": (3, 2)}),
    dist.Binomial: ((3,), {"total_count": 10}),
    dist.ZeroInflatedNegativeBinomial: ((3,), {}),
    dist.RelaxedBernoulli: ((3,), {"temperature": 0.5}),
    dist.VonMises: ((3,), {}),
    dist.Weibull: ((3,), {}),
    dist.AffineBeta: ((3,), {"loc": 1.0, "scale": 2.0}),
    dist.MultivariateStudentT: ((3,), {}),
    dist.OrderedLogistic: ((2,), {"cutpoints": (3,)}),
    dist.MixtureOfDiagNormals: ((3,), {"locs": (2, 3), "coord_scale": (2, 3), "component_logits": (2,)}),
    dist.BetaBinomial: ((3,), {"total_count": 10}),
    dist.DirichletMultinomial: ((4,), {"total_count": 10}),
    dist.ZeroInflatedPoisson: ((3,), {}),
    dist.LKJCholesky: ((2, 2), {"dim": 2}),
    DiscretizedLogisticMixture: ((3,), {}),
}
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)


def declare(family, given=None):
    event_shape, needed = FAMILIES[family]
    sized = Learned if given is None else Network
    sources = {name: sized(shape=v) if isinstance(v, tuple) else Fixed(v) for name, v in needed.items()}
    return Conditional(family, event_shape, given=given, **sources)


@families
@pytest.mark.parametrize("batch_shape", [(5,), (2, 5)], ids=str)
def test_network_output_has_the_declared_shapes(family, batch_shape):
    conditional, context = declare(family, mlp(4, 8)), torch.randn(*batch_shape, 4)
    d = conditional(context)
    x = d.sample()
    assert d.batch_shape == batch_shape
    assert d.event_shape == FAMILIES[family][0]
    assert x.shape == d.batch_shape + d.event_shape
    log_prob = d.log_prob(x)
    assert log_prob.shape == batch_shape
    log_prob.sum().backward()
    for name, parameter in conditional.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    # Each datum's distribution depends on its own context alone.
    alone = conditional(context[..., :1, :]).log_prob(x[..., :1, *(slice(None) for _ in d.event_shape)])
    torch.testing.assert_close(alone, log_prob[..., :1])


@families
def test_learned_parameters_need_no_context(family):
    conditional = declare(family)
    d = conditional()
    assert d.batch_shape == ()
    assert d.event_shape == FAMILIES[family][0]
    d.log_prob(d.sample()).backward()
    gradients = [parameter.grad for parameter in conditional.parameters()]
    assert gradients
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert conditional(torch.zeros(2, 5, 4)).batch_shape == (2, 5)


@families
def test_double_precision_is_kept(family):
    d = declare(family, mlp(4, 8)).double()(torch.randn(5, 4, dtype=torch.float64))
    assert d.log_prob(d.sample()).dtype == torch.float64


@families
def test_state_dict_carries_every_parameter(family):
    context = torch.randn(5, 4)
    first, second = declare(family, mlp(4, 8)), declare(family, mlp(4, 8))
    x = first(context).sample()
    assert not torch.equal(first(context).log_prob(x), second(context).log_prob(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(context).log_prob(x), second(context).log_prob(x))


def test_network_slices_are_the_parameters_in_order():
    raw = torch.randn(5, 6)
    given = nn.Identity()
    normal = Conditional(dist.Normal, (3,), given=given, head=None)(raw).base_dist
    assert torch.equal(normal.loc, raw[:, :3])
    assert torch.equal(normal.scale, raw[:, 3:].exp())
    shared = Conditional(dist.Normal, (3,), given=given, head=None, scale=Learned(0.1))(raw[:, :3]).base_dist
    assert torch.equal(shared.loc, raw[:, :3])
    torch.testing.assert_close(shared.scale, torch.full((5, 3), 0.1))


def test_batch_norm_in_a_network_normalises_features_whatever_the_leading_dimensions():
    given = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    conditional = Conditional(dist.Normal, (3,), given=given, features=5)
    conditional(torch.randn(50, 4))  # gives it running statistics
    conditional.eval()
    context = torch.randn(2, 5, 4)  # as many data as features, which torch takes for (batch, channel, length)
    torch.testing.assert_close(conditional(context).mean.flatten(0, 1), conditional(context.flatten(0, 1)).mean)


def test_headless_convolutional_decoder_emits_parameter_after_parameter():
    decoder = conv_decoder(4, (2, 6, 6), 8, num_parameters=2)
    z = torch.randn(3, 5, 4)
    normal = Conditional(dist.Normal, (2, 6, 6), given=decoder, head=None)(z).base_dist
    maps = decoder.convolutions(decoder.linear(z.flatten(0, 1)).reshape(15, *decoder.start)).reshape(3, 5, 4, 6, 6)
    torch.testing.assert_close(normal.loc, maps[:, :, :2])
    torch.testing.assert_close(normal.scale, maps[:, :, 2:].exp())


def test_a_declared_size_makes_maps_of_a_headless_convolutional_decoder():
    likelihood = Conditional(DiscretizedLogisticMixture, (2, 6, 6), given=nn.Identity(), head=None, components=Fixed(4))
    maps = torch.randn(5, 3, 4, 2, 6, 6)  # parameter, component, channel, height, width
    cells = likelihood.distribution(maps.flatten(1)).base_dist
    for k in range(4):
        torch.testing.assert_close(cells.logits[..., k], maps[:, 0, k])
        torch.testing.assert_close(cells.locs[..., k], maps[:, 1, k])
        torch.testing.assert_close(cells.scales[..., k], maps[:, 2, k].exp())


@pytest.mark.parametrize(
    ("family", "named", "used"),
    [
        (dist.Bernoulli, {}, "logits"),
        (dist.Bernoulli, {"probs": Network()}, "probs"),
        (dist.NegativeBinomial, {}, "logits"),
        (dist.ZeroInflatedNegativeBinomial, {}, "gate_logits"),
        (dist.ZeroInflatedNegativeBinomial, {"gate": Fixed(0.2)}, "gate"),
        (dist.MultivariateNormal, {}, "scale_tril"),
        (dist.MultivariateNormal, {"covariance_matrix": Network()}, "covariance_matrix"),
    ],
)
def test_one_parametrisation_of_each_quantity_is_used(family, named, used):
    conditional = Conditional(family, (3,), given=mlp(4, 8), **named)
    groups = ({"probs", "logits"}, {"gate", "gate_logits"}, {"scale_tril", "covariance_matrix", "precision_matrix"})
    group = next(group for group in groups if used in group)
    assert set(conditional.sources) & group == {used}
    assert conditional(torch.randn(5, 4)).batch_shape == (5,)


def test_learned_scalar_is_shared_and_a_shape_expands_it():
    shared = Conditional(dist.Normal, (784,), given=mlp(4), features=4, scale=Learned(0.1))
    each = Conditional(dist.Normal, (784,), given=mlp(4), features=4, scale=Learned(0.1, shape=(784,)))
    assert shared.learned_scale.shape == ()
    assert each.learned_scale.shape == (784,)
    for conditional in (shared, each):
        scale = conditional(torch.zeros(2, 4)).base_dist.scale
        torch.testing.assert_close(scale, torch.full((2, 784), 0.1))


@pytest.mark.parametrize(
    ("family", "source", "parameter"),
    [
        (dist.Gamma, {"rate": Learned([0.5, 2.0, 7.0])}, "rate"),
        (dist.Beta, {"concentration0": Learned(3.0, transform=constraints.softplus_positive)}, "concentration0"),
        (dist.Bernoulli, {"probs": Learned(torch.tensor([0.1, 0.5, 0.9]))}, "probs"),
        (dist.Dirichlet, {"concentration": Learned([0.5, 2.0, 7.0])}, "concentration"),
        (dist.OneHotCategorical, {"probs": Learned([0.2, 0.3, 0.5])}, "probs"),
        (dist.MultivariateNormal, {"covariance_matrix": Learned(torch.eye(3) + 0.5)}, "covariance_matrix"),
    ],
)
def test_learned_init_is_recovered_through_the_transform(family, source, parameter):
    d = Conditional(family, (3,), **source)()
    value = getattr(getattr(d, "base_dist", d), parameter)
    expected = torch.as_tensor(source[parameter].init)
    torch.testing.assert_close(value, expected.expand_as(value))


def test_fixed_value_is_a_buffer():
    conditional = Conditional(dist.Normal, (3,), loc=Fixed([0.0, 1.0, 2.0]), scale=Fixed(2))
    assert list(conditional.parameters()) == []
    assert {name: b.dtype for name, b in conditional.named_buffers()} == dict.fromkeys(
        ("fixed_loc", "fixed_scale"), torch.float32
    )
    normal = conditional.to(torch.float64)().base_dist
    assert (normal.loc.dtype, normal.scale.dtype) == (torch.float64, torch.float64)
    assert normal.loc.tolist() == [0.0, 1.0, 2.0]
    assert normal.scale.tolist() == [2.0, 2.0, 2.0]


def test_fixed_value_does_not_follow_the_callers_tensor():
    loc = torch.zeros(3)
    conditional = Conditional(dist.Normal, (3,), loc=Fixed(loc), scale=Fixed(1.0))
    loc += 7
    assert conditional().mean.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("width", [1, 3])
def test_offset_multiplies_the_rate_by_its_exponential(width):
    conditional = Conditional(dist.Poisson, (3,), given=mlp(4, 8), rate=Network(offset=True))
    context, offset = torch.randn(2, 5, 4), torch.randn(5, width)
    torch.testing.assert_close(conditional(context, offset).mean, conditional(context).mean * offset.exp())


def test_offset_leaves_other_parameters_alone():
    conditional = Conditional(dist.Gamma, (3,), given=mlp(4, 8), rate=Network(offset=True))
    context = torch.randn(5, 4)
    without, with_it = conditional(context).base_dist, conditional(context, torch.ones(5, 1)).base_dist
    assert torch.equal(without.concentration, with_it.concentration)
    torch.testing.assert_close(with_it.rate, without.rate * math.e)


@pytest.mark.parametrize(
    ("parameter", "transform", "function"),
    [
        ("loc", transforms.SigmoidTransform(), torch.sigmoid),
        ("loc", constraints.unit_interval, torch.sigmoid),
        ("scale", constraints.softplus_positive, nn.functional.softplus),
    ],
)
def test_network_transform_replaces_the_default(parameter, transform, function):
    raw = torch.randn(5, 6)
    sources = {parameter: Network(transform=transform)}
    normal = Conditional(dist.Normal, (3,), given=nn.Identity(), head=None, **sources)(raw).base_dist
    torch.testing.assert_close(getattr(normal, parameter), function(raw[:, :3] if parameter == "loc" else raw[:, 3:]))


def test_uniform_works_where_both_bounds_are_fixed():
    d = Conditional(dist.Uniform, (3,), low=Fixed(0), high=Fixed([1.0, 2.0, 4.0]))()
    torch.testing.assert_close(d.log_prob(torch.full((3,), 0.5)), torch.tensor(-math.log(8)))


def test_declared_sizes_make_an_event_larger_than_the_parameters():
    sizes = {"loc": Network(shape=(2,)), "scale": Network(shape=(2,))}
    d = Conditional(dist.LogisticNormal, (3,), given=mlp(4, 8), **sizes)(torch.randn(5, 4))
    torch.testing.assert_close(d.sample().sum(-1), torch.ones(5))


@pytest.mark.filterwarnings("ignore:Low df values", "ignore:Singular sample")
def test_constraints_that_follow_from_the_event_shape_are_known():
    d = Conditional(dist.Wishart, (3, 3), df=Learned(7.0), scale_tril=Fixed(torch.eye(3)))()
    torch.testing.assert_close(d.df, torch.tensor(7.0))
    with pytest.raises(InputError, match=r"`Wishart.df`: .*violates the constraint GreaterThan\(lower_bound=2\)"):
        Conditional(dist.Wishart, (3, 3), df=Learned(1.5))


def test_lower_triangular_parameters_have_a_positive_diagonal():
    d = Conditional(dist.OMTMultivariateNormal, (3,), loc=Learned(torch.zeros(3)), scale_tril=Learned(noise=1.0))()
    assert (d.scale_tril.diagonal() > 0).all()
    assert torch.equal(d.scale_tril, d.scale_tril.tril())


class Untold(dist.Dirichlet):
    """Tells its event dimension only once it is built."""

    @constraints.dependent_property
    def support(self):
        return constraints.simplex


@pytest.mark.parametrize("event_shape", [(4,), (2, 4)], ids=str)
def test_a_family_that_hides_its_event_dimension(event_shape):
    conditional = Conditional(Untold, event_shape, given=mlp(4, 8))
    d = conditional(torch.randn(5, 4))
    assert (d.batch_shape, d.event_shape, conditional.family_event_dim) == ((5,), event_shape, 1)
    assert {name: p.shape for name, p in Conditional(Untold, event_shape).named_parameters()} == {
        "learned_concentration": event_shape
    }


def test_network_sizes_count_the_heads_outputs():
    likelihood = Conditional(dist.Categorical, (6,), given=mlp(2, 7), logits=Network((256,)))
    assert likelihood.network_sizes == {"logits": 6 * 256}
    assert likelihood.head.out_features == 6 * 256


def test_noise_tells_the_components_of_a_mixture_apart():
    source = Learned([1.0, 2.0, 4.0], noise=0.5)
    torch.manual_seed(3)
    rate = Conditional(dist.Poisson, (3,), rate=source)().mean
    torch.manual_seed(3)
    noise = 0.5 * torch.randn(3)
    torch.testing.assert_close(rate, torch.tensor([1.0, 2.0, 4.0]) * noise.exp())
    without = Conditional(dist.Poisson, (3,), rate=Learned([1.0, 2.0, 4.0]))
    assert without.learned_rate.exp().tolist() == pytest.approx([1.0, 2.0, 4.0])


SPECS = {
    "numbers": (
        (dist.Normal, (3,), {"loc": Fixed(0.0), "scale": Learned(0.1)}),
        {"family": "Normal", "loc": 0.0, "scale": {"learned": 0.1}},
    ),
    "tensors": (
        (dist.Normal, (3,), {"loc": Fixed(torch.tensor([1.0, 2.0, 3.0])), "scale": Learned([0.5, 1.0, 2.0])}),
        {"family": "Normal", "loc": [1.0, 2.0, 3.0], "scale": {"learned": [0.5, 1.0, 2.0]}},
    ),
    "one for each element": (
        (dist.Normal, (3,), {"loc": Fixed(0), "scale": Learned(0.1, shape=(3,))}),
        {"family": "Normal", "loc": 0, "scale": {"learned": {"init": 0.1, "shape": [3]}}},
    ),
    "networks": (
        (
            dist.Normal,
            (3,),
            {"given": True, "loc": Network(offset=True), "scale": Network(transform=constraints.softplus_positive)},
        ),
        {"family": "Normal", "loc": {"network": {"offset": True}}, "scale": {"network": {"transform": "softplus"}}},
    ),
    "sizes": (
        (dist.Categorical, (3,), {"given": True, "logits": Network((256,))}),
        {"family": "Categorical", "logits": {"network": {"shape": [256]}}},
    ),
    "omitted": ((dist.Gamma, (3,), {}), {"family": "Gamma", "concentration": "learned", "rate": "learned"}),
    "counts": (
        (dist.Multinomial, (3,), {"given": True, "total_count": Fixed(9)}),
        {"family": "Multinomial", "total_count": 9, "logits": "network"},
    ),
    "replaced": ((dist.ContinuousBernoulli, (3,), {}), {"family": "ContinuousBernoulli", "logits": "learned"}),
    "alias": ((dist.Bernoulli, (3,), {"probs": Fixed([0.1, 0.2, 0.3])}), {"family": "Bernoulli", "probs": None}),
}


@pytest.mark.parametrize("name", SPECS)
def test_to_spec_is_what_an_experiment_file_says(name):
    (family, event_shape, sources), expected = SPECS[name]
    given = mlp(2, 5) if sources.get("given") else None
    conditional = Conditional(family, event_shape, **{**sources, "given": given})
    spec = conditional.to_spec()
    assert list(spec) == list(expected)
    assert {**expected, **{k: v for k, v in spec.items() if expected[k] is None}} == spec
    same = DistributionSpec.model_validate(spec).build(event_shape, given)
    assert same.to_spec() == spec
    assert list(same.state_dict()) == list(conditional.state_dict())
    for key, value in conditional.state_dict().items():
        if key.startswith(("learned_", "fixed_")):
            assert torch.equal(same.state_dict()[key], value), key
    same.load_state_dict(conditional.state_dict())
    context = [torch.randn(5, 2)] if given is not None else []
    x = conditional(*context).sample()
    torch.testing.assert_close(same(*context).log_prob(x), conditional(*context).log_prob(x))


@pytest.mark.parametrize(
    ("constraint", "name"),
    [
        (constraints.positive, "exp"),
        (constraints.unit_interval, "sigmoid"),
        (constraints.softplus_positive, "softplus"),
        (transforms.TanhTransform(), "tanh"),
    ],
)
def test_transforms_have_names(constraint, name):
    assert Network(transform=constraint).to_spec() == {"network": {"transform": name}}
    assert Learned(transform=constraint).to_spec() == {"learned": {"transform": name}}


def test_noise_round_trips_through_a_spec():
    conditional = Conditional(dist.Normal, (3,), loc=Learned(noise=2.0), scale=Fixed(1.0))
    assert conditional.to_spec() == {"family": "Normal", "loc": {"learned": {"noise": 2.0}}, "scale": 1.0}
    torch.manual_seed(1)
    first = DistributionSpec.model_validate(conditional.to_spec()).build((3,))
    torch.manual_seed(1)
    assert torch.equal(first.learned_loc, Conditional(dist.Normal, (3,), **conditional.sources).learned_loc)


def test_a_transform_without_a_name_has_no_spec():
    affine = transforms.AffineTransform(0.0, 2.0)
    with pytest.raises(InputError, match=r"the transform AffineTransform.* has no name in an experiment file"):
        Conditional(dist.Normal, (3,), given=mlp(2, 5), loc=Network(transform=affine)).to_spec()


NETWORK = {"given": nn.Linear(4, 8)}


class OfTorch(torch.distributions.Normal):
    """No class of Pyro's."""


def test_a_family_of_torch_stands_for_that_of_pyro():
    for name in ("Normal", "Multinomial", "LogNormal"):
        constants = {"total_count": Fixed(3)} if name == "Multinomial" else {}
        given, of_pyro = (
            Conditional(getattr(package, name), (4,), **constants) for package in (torch.distributions, dist)
        )
        assert given.family is of_pyro.family
        assert isinstance(given(), type(of_pyro()))


@pytest.mark.parametrize(
    ("family", "event_shape", "arguments", "message"),
    [
        (dist.Binomial, (3,), NETWORK, r"`Binomial.total_count` has an integer constraint.*total_count=Fixed"),
        (dist.Uniform, (3,), {}, r"`Uniform.low` has the constraint.*low=Fixed"),
        (dist.ImproperUniform, (3,), {}, r"`ImproperUniform.support` has no constraint of its own.*support=Fixed"),
        (
            dist.Categorical,
            (3,),
            NETWORK,
            r"size of `Categorical.logits` does not.*logits=Network\(shape=.*1 dim",
        ),
        (dist.LowRankMultivariateNormal, (3,), {}, r"cov_factor=Learned\(shape=...\) with 2 dim"),
        (dist.LogisticNormal, (3,), NETWORK, r"`LogisticNormal` has events of shape \(2,\), but event_shape \(3,\)"),
        (dist.RelaxedBernoulli, (3,), NETWORK, r"`RelaxedBernoulli.temperature`.*temperature=Fixed"),
        (dist.Delta, (3,), NETWORK, r"`Delta.v` has the constraint Dependent\(\).*v=Fixed"),
        (dist.Normal, (3,), {"loc": Learned(noise=-1.0)}, r"`Normal.loc`: `noise` is a standard deviation.*-1.0"),
        (dist.Normal, (3,), {"scales": Learned()}, r"`Normal` has no parameter `scales`; did you mean `scale`\?"),
        (
            dist.Bernoulli,
            (3,),
            {"probs": Fixed(0.5), "logits": Fixed(0.0)},
            r"`Bernoulli` takes only one of logits, probs",
        ),
        (dist.Normal, (3,), {"scale": Fixed(-1.0)}, r"`Normal.scale`: Fixed\(value=-1.0\) violates the constraint"),
        (dist.Normal, (3,), {"scale": Learned(-1.0)}, r"`Normal.scale`: Learned\(init=-1.0.* violates the constraint"),
        (dist.Normal, (3,), {"loc": Fixed(math.nan)}, r"`Normal.loc`: .* is not finite"),
        (dist.Normal, (3,), {"loc": Fixed("one")}, r"`Normal.loc`: Fixed\('one'\) is not numeric"),
        (dist.Bernoulli, (3,), {"probs": Learned(0.0)}, r"`Bernoulli.probs`: .* lies on the boundary"),
        (dist.Poisson, (3,), {"rate": Learned(0.0)}, r"`Poisson.rate`: .* lies on the boundary"),
        (dist.Normal, (3,), {"loc": Network()}, r"a `Network` parameter of `Normal` needs given="),
        (dist.Normal, (3,), {**NETWORK, "loc": Fixed(0.0), "scale": Learned()}, r"given= would never be used"),
        (dist.Normal, (3,), {"loc": 0.0}, r"`Normal.loc` must be Network\(\).*write loc=Fixed\(0.0\)"),
        (dist.Normal, (3,), {"loc": Fixed(torch.zeros(4))}, r"`Normal` cannot be built for event_shape \(3,\)"),
        (dist.Dirichlet, (), NETWORK, r"`Dirichlet` has 1 dimension\(s\), got event_shape \(\)"),
        (dist.Normal, 3, {}, r"a shape is a tuple of positive integers, such as \(20,\); got `3`"),
        (dist.Normal, (0,), {}, r"a shape is a tuple of positive integers"),
        (dist.Normal(0.0, 1.0), (3,), {}, r"`family` must be a class of pyro.distributions, got `Normal\("),
        (OfTorch, (3,), {}, r"`OfTorch` is no class of pyro.distributions; make it one by a subclass, .*Mixin\)"),
        (nn.Linear, (3,), {}, r"`family` must be a class of pyro.distributions, got `<class"),
        (dist.Normal, (3,), {"given": nn.Identity()}, r"output size of `Identity` is unknown; pass features="),
        (dist.Normal, (3,), {**NETWORK, "head": "mlp"}, r'`head` must be "linear" or None, got `\'mlp\'`'),
    ],
)
def test_refusals_say_what_to_do(family, event_shape, arguments, message):
    with pytest.raises(InputError, match=message):
        Conditional(family, event_shape, **arguments)


def test_refusals_of_a_call_say_what_to_do():
    conditional = Conditional(dist.Normal, (3,), given=mlp(4, 8))
    with pytest.raises(InputError, match="has a network, which needs a context"):
        conditional()
    headless = Conditional(dist.Normal, (3,), given=mlp(4, 8), head=None)
    with pytest.raises(InputError, match=r"must emit 6 values per datum \(2 parameter\(s\) of `Normal`\), got 8"):
        headless(torch.zeros(5, 4))


def test_one_number_for_a_vector_is_each_of_its_entries():
    flat = Conditional(dist.Dirichlet, (4,), concentration=Fixed(2.0))()
    torch.testing.assert_close(flat.concentration, torch.full((4,), 2.0), rtol=0, atol=0)
    rows = Conditional(dist.Dirichlet, (3, 4), concentration=Fixed(2))()
    assert rows.event_shape == (3, 4)
    with pytest.raises(InputError, match="violates the constraint"):
        Conditional(dist.OneHotCategorical, (4,), probs=Fixed(0.5))
