"""The experiment file: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import json
import re

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Fixed, Learned, Network
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment
from pyro_vae.experiment.distribution import DistributionSpec

README_FILE = """
data: digits
latent: 8
prior: {family: Normal, loc: 0, scale: 1}
likelihood: {family: Bernoulli}
networks: {encoder: {mlp: [200]}, decoder: {mlp: [200]}}
inference: [aevb, analytic-kl, wake-sleep]
training: {epochs: 50, batch_size: 100, optimizer: {Adam: {lr: 1e-3}}, schedule: {cosine: {}}}
seeds: 3
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return Experiment.from_yaml(path)

    return read


def test_the_readme_file_and_its_resolved_form_say_the_same(read, tmp_path):
    experiment = read(README_FILE)
    assert experiment.training.optimizer.arguments == {"lr": 0.001}  # 1e-3 is a number, in YAML 1.2
    assert [spec.label for spec in experiment.inference] == ["aevb", "analytic-kl", "wake-sleep"]
    assert experiment.seeds == [0, 1, 2]
    experiment.to_yaml(tmp_path / "resolved.yaml")
    assert Experiment.from_yaml(tmp_path / "resolved.yaml") == experiment
    vae = experiment.build()
    assert (vae.latent_shape, vae.event_shape, vae.size) == ((8,), (64,), 1437)


@pytest.mark.parametrize(
    ("yaml_source", "source"),
    [
        ("0.5", Fixed(0.5)),
        ("[1, 2]", Fixed([1, 2])),
        ("learned", Learned()),
        ("{learned: 0.1}", Learned(0.1)),
        ("{learned: {init: 0.1, shape: [3]}}", Learned(0.1, shape=[3])),
        ("network", Network()),
        ("{network: [256]}", Network(shape=[256])),
        ("{network: {offset: true}}", Network(offset=True)),
        ("{fixed: 2}", Fixed(2)),
    ],
)
def test_parameter_sources(read, yaml_source, source):
    experiment = read(f"likelihood: {{family: Normal, scale: {yaml_source}}}")
    assert experiment.likelihood.sources() == {"scale": source}


def test_a_transform_by_name():
    spec = DistributionSpec.model_validate({"family": "Normal", "loc": {"network": {"transform": "sigmoid"}}})
    likelihood = spec.build((3,), torch.nn.Linear(2, 4))
    loc = likelihood(10 * torch.randn(50, 2)).base_dist.loc
    assert loc.min() >= 0
    assert loc.max() <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dta: digits", "`dta` is no key here; did you mean `data`"),
        ("training: {epoch: 3}", "`training.epoch` is no key here; did you mean `epochs`"),
        ("training: {optimizer: Adm}", "`training.optimizer`: unknown optimizer `Adm`; did you mean `Adam`"),
        ("training: {optimizer: {Adam: {lrr: 1}}}", "no argument `lrr`; did you mean `lr`"),
        ("training: {optimizer: {Adam: {lr: -1}}}", "Invalid learning rate"),
        (
            "training: {optimizer: {Adam: {lr: fast}}}",
            "`lr`: expected a number such as 0.001, got `fast`",
        ),
        ("training: {optimizer: {Adam: {}, SGD: {}}}", "one name with its arguments"),
        ("training: {schedule: cosin}", "unknown schedule `cosin`; did you mean `cosine`"),
        ("training: {epochs: 1, steps: 1}", "exactly one of `epochs` and `steps`"),
        ("training: {batch_size: 0}", r"`training.batch_size`: .*greater than 0 \(got 0\)"),
        ("likelihood: {family: Bernouli}", "unknown family `Bernouli`; did you mean `Bernoulli`"),
        ("likelihood: Gaussian", "unknown family `Gaussian`; did you mean `Normal`"),
        ("likelihood: {family: Normal, sclae: 1}", "no parameter `sclae`; did you mean `scale`"),
        ("likelihood: {family: Normal, scale: learnd}", "got `learnd`; did you mean `learned`"),
        ("likelihood: {family: Normal, scale: true}", "expected a number"),
        ("likelihood: {family: Normal, scale: {lerned: 1}}", "expected one of"),
        ("likelihood: {family: Normal, loc: {network: {transform: logit}}}", "unknown transform `logit`"),
        ("likelihood: 3", r"`likelihood`: expected a mapping with keys among `network`, `reads`, `family` \(got 3\)"),
        ("training: 3", "`training`: expected a mapping with keys among `epochs`, `steps`"),
        ("training: {optimizer: {Adam: {learning_rate: 1}}}", "no argument `learning_rate`; expected one of `lr`"),
        ("inference: [aevbb]", "unknown inference algorithm `aevbb`; did you mean `aevb`"),
        ("inference: [{aevb: {num_particles: 0}}]", "positive integer, got `0`"),
        ("inference: [aevb, aevb]", "`aevb` is listed twice"),
        ("inference: []", "inference"),
        ("seeds: 0", "number of seeds from 1 to 10,000"),
        ("seeds: [1, 1]", "listed twice"),
        ("latent: two", r"`latent`: .* \(got 'two'\)"),
        ("networks: {encoder: {mlp: [200], conv: [3]}}", "exactly one of"),
        ("networks: {encoder: {mlp: [200], activation: rlu}}", "did you mean `relu`"),
        ("data: {name: digits, binarisation: dynmic}", "'none', 'static', 'dynamic' or 'threshold'"),
        ("evaluation: {num_samples: 1}", "greater than or equal to 2"),
        ("data: digits\ndata: mnist", "line 2, column 1: the key `data` is given twice|given twice"),
        ("data: [", "experiment.yaml, line"),
        ("data:\n\tname: digits", "experiment.yaml, line 2, column 1: .*; indent with spaces, not with tabs"),
        ("", "experiment.yaml: is empty; name at least the data: `data: digits`"),
        ("# data: digits\n", "is empty"),
        ("{}", "is empty"),
        ("- aevb", "expected a mapping"),
    ],
)
def test_refusals_name_the_path_the_value_and_what_is_allowed(read, text, message):
    with pytest.raises(InputError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_each_mistake_has_its_line(read):
    with pytest.raises(InputError) as error:
        read("latent: 0\nseeds: 0")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood": {"family": "Normal", "scale": -1}}, "likelihood: .*violates the constraint"),
        (
            {"latent": 4, "prior": {"family": "Normal", "loc": [0, 0]}},
            "prior: .*`loc` has 2 values; give .* 4 c",
        ),
        ({"likelihood": {"family": "Categorical"}}, "likelihood: .*declare it"),
        ({"prior": {"family": "VonMises"}}, "does not integrate to 1"),
        ({"prior": {"family": "Bernoulli"}}, "no posterior follows from the discrete prior"),
        ({"networks": {"decoder": {"conv": [4] * 9}}}, "networks.decoder: .*halve"),
        ({"device": "cda"}, "device: `cda` is unknown"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(changes, message):
    experiment = Experiment.parse(changes)
    with pytest.raises(InputError, match=message):
        (experiment.build(), experiment.torch_device)


@pytest.mark.parametrize(
    ("changes", "support"),
    [
        ({"prior": {"family": "Dirichlet"}}, dist.constraints.simplex),
        ({"prior": {"family": "Gamma"}}, dist.constraints.positive),
        ({"posterior": {"family": "Laplace"}}, dist.constraints.real),
        ({"likelihood": {"family": "Normal", "scale": "learned"}}, dist.constraints.real),
        ({"likelihood": {"family": "Categorical", "logits": {"network": [17]}}}, dist.constraints.real),
        ({"likelihood": {"family": "Poisson"}}, dist.constraints.real),
        (
            {
                "networks": {"encoder": {"conv": [4, 8]}, "decoder": {"conv": [8, 4]}},
                "likelihood": {"family": "Normal"},
            },
            dist.constraints.real,
        ),
    ],
    ids=str,
)
def test_a_swap_is_one_line(changes, support):
    experiment = Experiment.parse(changes)
    data = experiment.load_data()
    vae = experiment.build(data)
    x = data.test[:5]
    z = vae.encode(x).sample()
    assert support.check(z).all()
    assert vae.log_weights(x, 2).isfinite().all()
    assert vae.generate(3).shape == (3, 64)


def test_data_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n" + "\n".join(f"{i},{i * i % 7}" for i in range(20)))
    (tmp_path / "experiment.yaml").write_text("data: rows.csv\nlikelihood: {family: Normal}")
    experiment = Experiment.from_yaml(tmp_path / "experiment.yaml")
    assert experiment.load_data().columns == ("a", "b")


def test_parameter_prior():
    experiment = Experiment.parse({"parameter_prior": {"family": "Normal", "loc": 0, "scale": 1}})
    vae = experiment.build()
    weights = [p for p in vae.theta.values() if p.dim() > 1]
    expected = sum(dist.Normal(0.0, 1.0).log_prob(p).sum() for p in weights)
    torch.testing.assert_close(vae.log_parameter_prior(), expected)


def test_the_schema_offers_the_shorthands():
    schema = Experiment.model_json_schema()
    text = json.dumps(schema)
    assert {"aevb", "Adam", "Bernoulli", "cosine"} <= set(re.findall(r'"([\w-]+)"', text))
    assert {"type": "string"} in schema["$defs"]["DataSpec"]["anyOf"]


def test_shorthands(read):
    experiment = read("prior: {family: Laplace, loc: 0, scale: 1}\nlikelihood: Poisson\ninference: aevb, wake-sleep")
    assert experiment.likelihood.family == "Poisson"
    assert [spec.name for spec in experiment.inference] == ["aevb", "wake-sleep"]
