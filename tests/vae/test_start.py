"""A likelihood starts at the location and scale of data, and only where it is as it was drawn."""

from __future__ import annotations

import copy
import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Batch, Conditional, Fixed, Learned, Mixed, Network, Reads, mlp
from pyro_vae.distributions.registry import FAMILIES
from pyro_vae.distributions.start import RULES
from pyro_vae.distributions.statistics import Statistics
from pyro_vae.vae.mixed import Column

T = torch.tensor
_WIDE = {"loc": T([50.0, -3.0]), "scale": T([10.0, 0.1])}
_COUNT = {"total_count": Fixed(10)}

# Family, sources, parameters of the data, and by how many nats the start may be worse than these.
CASES = [
    ("Normal", {}, {"loc": T([2e4, -3.0]), "scale": T([100.0, 0.01])}, 0.01),
    *((name, {}, _WIDE, 0.01) for name in ("Laplace", "Logistic", "SoftLaplace", "Gumbel", "Cauchy")),
    *((name, {}, {**_WIDE, "asymmetry": torch.ones(2)}, 0.01) for name in ("SkewLogistic", "AsymmetricLaplace")),
    ("StudentT", {}, {**_WIDE, "df": T([3.0, 5.0])}, 0.02),
    ("LogNormal", {}, {"loc": T([10.0, -3.0]), "scale": T([1.0, 0.1])}, 0.01),
    ("Gamma", {}, {"concentration": T([2.0, 50.0]), "rate": T([1e-4, 3.0])}, 0.01),
    ("Gamma", {"rate": Fixed(1.0)}, {"concentration": T([200.0, 50.0]), "rate": T([1.0, 1.0])}, 0.01),
    ("Gamma", {"concentration": Fixed(2.0)}, {"concentration": T([2.0, 2.0]), "rate": T([1e-4, 3.0])}, 0.01),
    ("InverseGamma", {}, {"concentration": T([3.0, 50.0]), "rate": T([1e4, 3.0])}, 0.01),
    ("Exponential", {}, {"rate": T([1e-4, 3.0])}, 0.01),
    ("Chi2", {}, {"df": T([20.0, 3.0])}, 0.01),
    ("HalfNormal", {}, {"scale": T([2e4, 3.0])}, 0.01),
    ("HalfCauchy", {}, {"scale": T([2e4, 3.0])}, 0.01),
    ("Weibull", {}, {"scale": T([2e4, 3.0]), "concentration": T([2.0, 0.7])}, 0.01),
    ("Beta", {}, {"concentration1": T([2.0, 0.7]), "concentration0": T([20.0, 0.7])}, 0.01),
    ("ContinuousBernoulli", {}, {"logits": T([2.0, -7.0])}, 0.01),
    ("Bernoulli", {}, {"logits": T([2.0, -7.0])}, 0.01),
    ("Bernoulli", {"probs": Network()}, {"logits": T([2.0, -7.0])}, 0.01),
    ("Categorical", {"logits": Network((3,))}, {"logits": T([[2.0, -2.0, 0.0], [0.0, 1.0, 3.0]])}, 0.01),
    ("OneHotCategorical", {}, {"logits": T([1.0, 2.0, -3.0])}, 0.01),
    ("Poisson", {}, {"rate": T([2.0, 2e4])}, 0.01),
    ("Geometric", {}, {"logits": T([1.0, -3.0])}, 0.01),
    ("Binomial", _COUNT, {"total_count": 10, "logits": T([1.0, -3.0])}, 0.01),
    (
        "BetaBinomial",
        _COUNT,
        {"total_count": 10, "concentration1": T([1.0, 3.0]), "concentration0": T([2.0, 8.0])},
        0.01,
    ),
    ("NegativeBinomial", {}, {"total_count": T([2.0, 5.0]), "logits": T([9.0, 3.0])}, 0.01),
    ("NegativeBinomial", {"total_count": Learned(2.0)}, {"total_count": T([2.0, 2.0]), "logits": T([9.0, 3.0])}, 0.01),
    ("GammaPoisson", {}, {"concentration": T([2.0, 5.0]), "rate": T([1e-3, 0.03])}, 0.01),
    ("ZeroInflatedPoisson", {}, {"rate": T([3.0, 30.0]), "gate": T([0.3, 0.1])}, 0.01),
    (
        "ZeroInflatedNegativeBinomial",
        {},
        {"total_count": T([3.0, 5.0]), "logits": T([1.0, 2.0]), "gate": T([0.3, 0.1])},
        0.2,
    ),
    ("VonMises", {}, {"loc": T([3.0, -2.0]), "concentration": T([3.0, 20.0])}, 0.01),
    ("Multinomial", {"total_count": Fixed(20)}, {"total_count": 20, "logits": T([1.0, 2.0, -3.0])}, 0.01),
    (
        "DirichletMultinomial",
        {"total_count": Fixed(20)},
        {"total_count": 20, "concentration": T([1.0, 2.0, 0.3])},
        0.05,
    ),
    ("Dirichlet", {}, {"concentration": T([1.0, 2.0, 10.0])}, 0.02),
    ("MultivariateNormal", {}, {"loc": T([1e3, 2.0]), "scale_tril": torch.diag(T([10.0, 0.1]))}, 0.01),
    (
        "LowRankMultivariateNormal",
        {"cov_factor": Network((2, 1))},
        {"loc": T([1e3, 2.0]), "cov_factor": torch.zeros(2, 1), "cov_diag": T([10.0, 0.1])},
        0.01,
    ),
    ("MultivariateStudentT", {}, {"df": T(4.0), "loc": T([1e3, 2.0]), "scale_tril": torch.diag(T([10.0, 0.1]))}, 0.01),
    (
        "DiscretizedLogisticMixture",
        {},
        {"logits": torch.zeros(2, 2), "locs": T([[0.0, 0.5], [-0.9, -0.8]]), "scales": T([[0.1, 0.1], [0.05, 0.05]])},
        0.15,
    ),
]


def statistics(x, **fields):
    return Statistics.of(Batch(torch.as_tensor(x), **fields))


def without_latents(conditional):
    """The distribution of a network whose head is its bias alone."""
    with torch.no_grad():
        conditional.head.weight.zero_()
        return conditional(torch.zeros(1, 2))


@pytest.mark.parametrize(("name", "sources", "parameters", "worse"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("source", ["network", "learned"])
def test_every_family_starts_near_the_distribution_of_its_data(name, sources, parameters, worse, source):
    family = FAMILIES[name]
    torch.manual_seed(0)
    true = family(**parameters)
    x = true.sample((4000,))
    if source == "learned":
        shapes = {n: value.shape for n, value in parameters.items() if torch.is_tensor(value)}
        sources = {n: Learned(shape=shapes.get(n)) if isinstance(s, Network) else s for n, s in sources.items()}
    conditional = Conditional(family, x.shape[1:], given=None if source == "learned" else mlp(2, 5), **sources)
    conditional.start_at(statistics(x))
    with torch.no_grad():
        started = conditional() if source == "learned" else without_latents(conditional)
        gap = true.to_event(len(true.batch_shape)).log_prob(x).mean() - started.log_prob(x).mean()
    assert gap < worse


def test_the_rules_are_all_tested():
    relaxed = {name for name in FAMILIES if name.startswith("Relaxed")} | {"SoftAsymmetricLaplace"}
    assert {kind.__name__ for kind in RULES} - relaxed == {case[0] for case in CASES}


def test_a_location_varies_in_units_of_its_data():
    torch.manual_seed(0)
    plain = Conditional(dist.Normal, (2,), given=mlp(2, 5))
    scaled, z, x = copy.deepcopy(plain), torch.randn(7, 2), torch.randn(50, 2)
    factor, shift = T([1e3, 1e-3]), T([2e4, -5.0])
    plain.start_at(statistics(x))
    scaled.start_at(statistics(x * factor + shift))
    # The start is equivariant: it commutes with a change of the data's units.
    torch.testing.assert_close(scaled(z).base_dist.loc, plain(z).base_dist.loc * factor + shift, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled(z).base_dist.scale, plain(z).base_dist.scale * factor, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("family", "sources"),
    [
        (dist.MultivariateNormal, {}),
        (dist.MultivariateNormal, {"covariance_matrix": Network()}),
        (dist.LowRankMultivariateNormal, {"cov_factor": Network((3, 2))}),
    ],
)
def test_a_covariance_varies_in_units_of_its_data(family, sources):
    torch.manual_seed(0)
    plain = Conditional(family, (3,), given=mlp(2, 5), **sources).double()
    scaled, z, x = copy.deepcopy(plain), torch.randn(7, 2).double(), torch.randn(50, 3).double()
    factor = T([1e3, 1e-3, 1.0]).double()
    plain.start_at(statistics(x))
    scaled.start_at(statistics(x * factor))
    expected = plain(z).covariance_matrix * factor * factor.unsqueeze(-1)
    torch.testing.assert_close(scaled(z).covariance_matrix, expected, rtol=1e-5, atol=0)


def test_hidden_cells_weights_and_offsets_count_as_they_should():
    x = T([[1.0, math.nan], [3.0, 5.0], [100.0, 7.0]])
    mask, weight = ~x.isnan(), T([1.5, 1.5, 0.0])
    conditional = Conditional(dist.Normal, (2,), given=mlp(2, 5))
    conditional.start_at(statistics(x, mask=mask, weight=weight))
    assert conditional.head.bias[:2].tolist() == [2.0, 5.0]
    counts = Conditional(dist.Poisson, (2,), given=mlp(2, 5), rate=Network(offset=True))
    counts.start_at(statistics(torch.full((1000, 2), 20.0), offset=torch.full((1000, 1), math.log(10.0))))
    torch.testing.assert_close(counts.head.bias.exp(), T([2.0, 2.0]), rtol=1e-2, atol=0)


def test_cells_that_do_not_vary_or_are_never_seen_keep_a_finite_start():
    x = T([[5.0, 0.0, math.nan, 1e9]]).repeat(20, 1)
    x[0, 3] = 0.0
    conditional = Conditional(dist.Normal, (4,), given=mlp(2, 5))
    drawn = copy.deepcopy(conditional)
    conditional.start_at(statistics(x, mask=~x.isnan()))
    loc, scale = conditional.head.bias.split(4)
    assert loc[:2].tolist() == [5.0, 0.0]
    assert scale[:2].exp().tolist() == pytest.approx([5.0, 1.0])
    assert [loc[2].item(), scale[2].item()] == drawn.head.bias[[2, 6]].tolist()
    assert torch.equal(conditional.head.weight[2], drawn.head.weight[2])
    for family in (dist.Poisson, dist.NegativeBinomial, dist.ZeroInflatedPoisson, dist.Bernoulli, dist.Gamma):
        zeros = Conditional(family, (1,), given=mlp(2, 5))
        zeros.start_at(statistics(torch.zeros(20, 1)))
        assert zeros.head.bias.isfinite().all()


def test_outliers_do_not_move_families_with_heavy_tails():
    x = torch.randn(1001, 1, generator=torch.Generator().manual_seed(0))
    x[0] = 1e9
    for family in (dist.StudentT, dist.Cauchy):
        conditional = Conditional(family, (1,), loc=Learned(), scale=Learned())
        conditional.start_at(statistics(x))
        assert abs(conditional().base_dist.loc.item()) < 0.1
        assert 0.5 < conditional().base_dist.scale.item() < 1.5


def test_every_column_of_a_table_starts_at_its_own_data():
    torch.manual_seed(0)
    columns = {"a": dist.LogNormal, "b": dist.Poisson, "c": dist.LogNormal, "d": Column(dist.Normal, scale=Learned())}
    x = torch.stack([torch.randn(500).exp() * 2e4, torch.randint(9, (500,)), torch.rand(500), torch.randn(500)], 1)
    for wrapped in (False, True):
        mixed = Mixed(columns, given=mlp(2, 5))
        (Reads(mixed, "z") if wrapped else mixed).start_at(statistics(x))
        with torch.no_grad():
            for group in mixed.groups:
                group.head.weight.zero_()
            row = mixed(torch.zeros(2))
        parts = list(row.parts.values())
        torch.testing.assert_close(parts[0].loc.double(), x[:, [0, 2]].double().log().mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts[1].rate, x[:, 1:2].mean(0), rtol=1e-2, atol=0)
        torch.testing.assert_close(parts[2].scale, x[:, 3:].std(0, correction=0), rtol=1e-5, atol=0)


def set_bias(conditional):
    conditional.head.bias.data.fill_(0.25)


def load(conditional):
    conditional.load_state_dict(Conditional(dist.Normal, (2,), given=mlp(2, 5), scale=Learned()).state_dict())


def train(conditional):
    optimizer = torch.optim.Adam(conditional.parameters())
    conditional(torch.ones(3, 2)).log_prob(torch.ones(3, 2)).sum().backward()
    optimizer.step()


def freeze(conditional):
    conditional.head.requires_grad_(False)


@pytest.mark.parametrize("change", [set_bias, load, train, freeze])
def test_what_was_set_trained_restored_or_frozen_is_left_alone(change):
    torch.manual_seed(0)
    conditional = Conditional(dist.Normal, (2,), given=mlp(2, 5), scale=Learned())
    change(conditional)
    before = copy.deepcopy(conditional.state_dict())
    conditional.start_at(statistics(50 + 10 * torch.randn(30, 2)))
    assert all(torch.equal(value, before[name]) for name, value in conditional.state_dict().items())


def test_declared_values_and_own_networks_are_left_alone():
    data = statistics(50 + 10 * torch.randn(30, 2))
    declared = Conditional(dist.Normal, (2,), given=mlp(2, 5), scale=Learned(0.1))
    declared.start_at(data)
    assert declared.learned_scale.exp().item() == pytest.approx(0.1)
    own = Conditional(dist.Normal, (2,), given=torch.nn.Linear(2, 4), head=None)
    before = copy.deepcopy(own.state_dict())
    own.start_at(data)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    shared = Conditional(dist.Normal, (2,), given=mlp(2, 5), scale=Learned(shape=()))
    shared.start_at(statistics(T([[1.0, 10.0], [3.0, 30.0]])))  # deviations 1 and 10
    assert shared.learned_scale.exp().item() == pytest.approx(math.sqrt(10))


def test_a_copy_and_another_precision_still_start():
    for of in (copy.deepcopy, torch.nn.Module.double):
        conditional = of(Conditional(dist.Poisson, (2,), given=mlp(2, 5)))
        conditional.start_at(statistics(torch.full((999, 2), 2e4)))
        assert conditional.head.bias.exp().tolist() == pytest.approx([2e4] * 2, rel=1e-2)


def test_a_family_states_its_own_start():
    class Own(dist.Normal):
        @staticmethod
        def start(data, known):
            return type(RULES[dist.Normal](data, known))({"loc": data.mean() + 1, "scale": data.mean() * 0 + 2})

    conditional = Conditional(Own, (1,), loc=Learned(), scale=Learned())
    conditional.start_at(statistics([[1.0], [3.0]]))
    assert conditional().base_dist.loc.item() == 3.0
    assert conditional().base_dist.scale.item() == pytest.approx(2.0)
