"""What every distribution of Pyro can be, found out by trying."""

import pyro.distributions as dist
import pytest
import torch
import yaml
from pyro.distributions import TorchDistribution, constraints

from pyro_vae import Conditional, cli, mlp
from pyro_vae.distributions.registry import FAMILIES
from pyro_vae.errors import InputError
from pyro_vae.experiment.distribution import DistributionSpec
from pyro_vae.vae.families import (
    ROLES,
    classifications,
    classify,
    counts,
    exported,
    family_page,
    python_example,
    yaml_example,
)

USABLE = [name for name, entry in classifications().items() if entry.usable]


def test_every_exported_class_has_a_verdict():
    classes = {name for name, member in vars(dist).items() if isinstance(member, type) and not name.startswith("_")}
    assert set(classifications()) == classes | set(FAMILIES) == set(exported())
    for name, entry in classifications().items():
        assert set(entry.roles) | set(entry.reasons) == set(ROLES), name
        assert not set(entry.roles) & set(entry.reasons), name
        assert all(entry.reasons.values()), name
        if entry.usable:
            assert entry.normalised in ("support", "period", "total"), name
            assert entry.support, name
        else:
            assert entry.instead, name


def test_the_counts():
    assert counts() == {
        "classes": 110,
        "families": 102,
        "usable": 65,
        "prior": 64,
        "likelihood": 60,
        "posterior": 59,
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Delta", "density integrates to 0, not to 1"),
        ("Stable", "not to 1"),
        ("VonMises3D", "has no sampler"),
        ("LogNormalNegativeBinomial", "has no sampler"),
        ("MixtureSameFamily", "made of other distributions: `mixture_distribution`"),
        ("GaussianHMM", "made of other distributions: `initial_dist`"),
        ("ExponentialFamily", "is a base class"),
        ("Distribution", "is no distribution of torch"),
        ("GaussianScaleMixture", "declares no support"),
        ("CoalescentTimes", "cannot be checked"),
        ("TruncatedPolyaGamma", "draws do not follow its density"),
        ("SineBivariateVonMises", "draws do not follow its density"),
        ("RelaxedBernoulliStraightThrough", "draws do not follow its density"),
        ("OneTwoMatching", "does not support batching"),
    ],
)
def test_why_a_class_is_refused(name, reason):
    entry = classifications()[name]
    assert entry.roles == ()
    assert reason in entry.reason


def test_constants_that_the_support_depends_on_make_no_likelihood():
    uniform, pareto = classifications()["Uniform"], classifications()["Pareto"]
    assert uniform.roles == ("prior",)
    assert "support depends on its parameters" in uniform.reasons["likelihood"]
    assert pareto.roles == ROLES
    assert {p.name: p.sources for p in pareto.parameters} == {
        "scale": ("fixed",),
        "alpha": ("network", "learned", "fixed"),
    }


@pytest.mark.parametrize(
    ("name", "posteriors"),
    [
        ("Normal", ("derived", "Normal")),
        ("Dirichlet", ("derived", "Dirichlet")),
        ("VonMises", ("VonMises",)),
        ("ProjectedNormal", ("ProjectedNormal",)),
        ("Categorical", ("Categorical",)),
        ("OMTMultivariateNormal", ("derived",)),
    ],
)
def test_which_posterior_fits_a_prior(name, posteriors):
    assert classifications()[name].posteriors == posteriors


def test_what_a_density_is_over():
    over = {name: entry.normalised for name, entry in classifications().items() if entry.normalised != "support"}
    unusual = {name: kind for name, kind in over.items() if kind is not None}
    assert unusual == {
        "VonMises": "period",
        "Multinomial": "total",
        "DirichletMultinomial": "total",
    }


@pytest.mark.filterwarnings("ignore:Low df values", "ignore:Singular sample", "ignore:.*LKJCorrCholesky")
@pytest.mark.parametrize("name", USABLE)
def test_examples_run(name):
    entry, namespace = classifications()[name], {}
    exec(python_example(entry), namespace)
    specs = yaml.safe_load(yaml_example(entry))
    assert list(specs) == list(entry.roles)
    for role in entry.roles:
        conditional = namespace[role]
        given = None if role == "prior" else mlp(2, 100)
        assert isinstance(conditional, Conditional)
        same = DistributionSpec.model_validate(specs[role]).build(tuple(conditional.event_shape), given)
        assert {k: v.shape for k, v in same.state_dict().items()} == {
            k: v.shape for k, v in conditional.state_dict().items()
        }
        same.load_state_dict(conditional.state_dict())
        context = [] if role == "prior" else [torch.randn(5, 2)]
        d = conditional(*context)
        x = d.sample() if context else d.sample((5,))
        torch.testing.assert_close(same(*context).log_prob(x), d.log_prob(x))
        assert d.log_prob(x).isfinite().all()


def test_classification_leaves_the_random_stream_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    classify(dist.Gamma)
    assert torch.equal(torch.rand(3), expected)


# ------------------------------------------------------------------ families that Pyro may have one day


class Rayleigh(TorchDistribution):
    """x exp(-x^2 / (2 s^2)) / s^2, by inversion."""

    arg_constraints = {"scale": constraints.positive}  # noqa: RUF012
    support = constraints.positive
    has_rsample = True
    factor = 1.0

    def __init__(self, scale, validate_args=None):
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.scale.expand(batch_shape))

    def rsample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.scale * (-2 * torch.log1p(-torch.rand(shape, dtype=self.scale.dtype).clamp(min=1e-6))).sqrt()

    def log_prob(self, value):
        log_prob = value.log() - 2 * self.scale.log() - 0.5 * (value / self.scale).square()
        return log_prob + torch.tensor(self.factor).log()


class Unnormalised(Rayleigh):
    factor = 1.01


class OfAnotherScale(Rayleigh):
    def rsample(self, sample_shape=()):
        return 1.2 * super().rsample(sample_shape)


class WithoutSampler(Rayleigh):
    def rsample(self, sample_shape=()):
        raise NotImplementedError


class Shifted(Rayleigh):
    """Its support starts at a parameter."""

    arg_constraints = {"scale": constraints.positive, "start": constraints.real}  # noqa: RUF012

    def __init__(self, scale, start, validate_args=None):
        scale, self.start = torch.broadcast_tensors(scale, start)
        super().__init__(scale, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        return constraints.greater_than(self.start)

    def expand(self, batch_shape, _instance=None):
        return Shifted(self.scale.expand(batch_shape), self.start.expand(batch_shape))

    def rsample(self, sample_shape=()):
        return self.start + super().rsample(sample_shape)

    def log_prob(self, value):
        return super().log_prob(value - self.start)


class Tempered(dist.Normal):
    """Has an argument without a constraint, and does not tell its event dimension before it is built."""

    def __init__(self, loc, scale, temperature, validate_args=None):
        if temperature <= 0:
            raise ValueError("temperature")
        super().__init__(loc, scale * temperature, validate_args=validate_args)

    @constraints.dependent_property
    def support(self):
        return constraints.real


@pytest.mark.parametrize(
    ("family", "roles", "reason"),
    [
        (Rayleigh, ROLES, ""),
        (Unnormalised, (), "integrates to 1.01, not to 1"),
        (OfAnotherScale, (), "draws do not follow its density"),
        (WithoutSampler, (), "has no sampler"),
        (Shifted, ROLES, ""),
        (Tempered, ROLES, ""),
    ],
)
def test_a_new_family_is_classified_without_a_line_of_ours(family, roles, reason):
    entry = classify(family)
    assert entry.roles == roles
    assert reason in entry.reason
    assert bool(reason) is not entry.usable


def test_a_new_familys_parameters():
    assert [(p.name, p.constraint, p.sources) for p in classify(Shifted).parameters] == [
        ("scale", "> 0", ("network", "learned", "fixed")),
        ("start", "real", ("fixed",)),
    ]
    entry = classify(Tempered)
    assert entry.event_dim == 0
    assert entry.spec("prior") == {"family": "Tempered", "temperature": 1.0}


# ------------------------------------------------------------------ one entry


def test_a_page_of_one_family():
    page = family_page("Categorical")
    assert "support: 0 ... 3 (discrete), event_dim 0" in page
    assert "logits (real, a vector): network, learned, fixed; size to be declared, here (4,)" in page
    assert "prior: yes; posterior: the family itself, amortised" in page
    assert "likelihood: {family: Categorical, logits: {network: {shape: [4]}}}" in page
    refused = family_page("StableWithLogProb")
    assert "prior: no: its density integrates to" in refused
    assert "instead: " in refused


def test_a_role_that_a_family_has_not_is_refused():
    with pytest.raises(InputError, match="`Uniform` can be no likelihood: its support depends"):
        classifications()["Uniform"].spec("likelihood")


# ------------------------------------------------------------------ the command


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["pyro-vae", "families", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return exit_info.value.code


def test_the_table_fits_100_columns_and_names_every_class(monkeypatch, capsys):
    assert run(monkeypatch) in (0, None)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "post." in out  # the last column
    assert out.startswith(f"{counts()['usable']} of {counts()['families']} families are usable")
    for name in classifications():
        assert name[:20] in out, name


def test_one_family(monkeypatch, capsys):
    assert run(monkeypatch, "Normal") in (0, None)
    assert "likelihood: {family: Normal}" in capsys.readouterr().out


def test_an_unknown_family_is_refused_with_its_near_match(monkeypatch, capsys):
    assert run(monkeypatch, "Nomal") == 2
    assert "unknown family `Nomal`; did you mean `Normal`?" in capsys.readouterr().err
