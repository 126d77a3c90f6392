"""The grammar of priors, likelihoods and posteriors in an experiment file: what is read, written and refused."""

from __future__ import annotations

import json

import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment, parse_yaml, spelled_out
from pyro_vae.experiment.composites import FlowSpec, MixtureSpec, VampSpec
from pyro_vae.experiment.distribution import DistributionSpec
from pyro_vae.experiment.mixed import ColumnSpec, MixedSpec
from pyro_vae.experiment.to_spec import to_spec
from pyro_vae.runtime.random_streams import isolated

CELLS = 4
LAYERS = "z2: {size: 2, family: Normal, loc: 0, scale: 1}, z1: {size: 3, mixture: {components: 2}, network: {mlp: [5]}}"
TABLE = "a: Normal, b: Poisson, c: {Categorical: 3}, d: {family: Normal, scale: learned}"

# What stands in a file, and the fields that it means.
READ = [
    ("prior: Normal", DistributionSpec(family="Normal")),
    ("prior: {family: Normal, loc: 0}", DistributionSpec(family="Normal", loc=0)),
    ("prior: mixture", MixtureSpec()),
    ("prior: {mixture: }", MixtureSpec(of=DistributionSpec(family="Normal"), components=10)),
    ("prior: {mixture: {components: 3, weights: learned}}", MixtureSpec(components=3, weights="learned")),
    ("prior: {mixture: {family: Laplace, scale: 2}}", MixtureSpec(of=DistributionSpec(family="Laplace", scale=2))),
    ("prior: flow", FlowSpec()),
    ("prior: {flow: nsf}", FlowSpec(kind="nsf")),
    ("prior: {flow: {transforms: 2, hidden: [8]}}", FlowSpec(transforms=2, hidden=[8])),
    ("prior: vamp", VampSpec()),
    ("prior: {vamp: {components: 3, pseudo_inputs: [0, 9]}}", VampSpec(components=3, pseudo_inputs=[0, 9])),
    ("likelihood: mixed", MixedSpec(columns="auto")),
    ("likelihood: {mixed: auto}", MixedSpec()),
    ("likelihood: {mixed: {1: Normal}}", MixedSpec(columns={"1": ColumnSpec(family="Normal")})),
]

# Files that build; the posterior is what to_spec(vae) has to say again.
FILES = [
    "prior: Laplace",
    "prior: {family: Gamma, concentration: 2, rate: {learned: 1.0}}",
    "prior: mixture",
    "prior: {mixture: {family: Laplace, components: 3, weights: learned, scale: {learned: {init: 0.5}}}}",
    "prior: flow",
    "prior: {flow: nsf}",
    "prior: {flow: {kind: realnvp, hidden: [8]}}",
    "{prior: vamp, posterior: Normal}",
    "{prior: {vamp: {components: 3, mean: 0.4, std: 0.1}}, posterior: {mixture: {components: 2}}}",
    "{prior: {hierarchy: {LAYERS}}}",
    "{prior: {hierarchy: {LAYERS}}, likelihood: {family: Bernoulli, reads: [z1]}}",
    "{prior: {hierarchy: {LAYERS}}, likelihood: {mixture: {family: Normal}, reads: [z1, z2]}}",
    "{prior: {hierarchy: {LAYERS, inputs: {z1: [z2]}}}, latent: 5}",
    "{latent: {shape: [3, 3]}}",
    "{latent: {shape: [3, 3]}, prior: mixture, posterior: {family: Normal, network: {gated: [5]}}}",
    "{latent: {shape: [2, 3]}, prior: {vamp: {components: 3}}, posterior: Normal}",
    "posterior: {family: MultivariateNormal, network: {residual: [5]}}",
    "posterior: {flow: nsf, network: {mlp: [5], activation: relu}}",
    "posterior: {mixture: {components: 2}, network: {mlp: [5], input: log1p}}",
    "likelihood: {family: Normal, scale: learned, network: {mlp: [5, 5]}}",
    "likelihood: {mixture: {components: 2}, network: {gated: [5]}}",
    "likelihood: flow",
    "likelihood: {mixed: {TABLE}, network: {mlp: [5]}}",
]


def read(text):
    """What a file says, with LAYERS and TABLE spelled out."""
    return parse_yaml(text.replace("LAYERS", LAYERS).replace("TABLE", TABLE), "file")


def parsed(text):
    return Experiment.parse(({} if "LAYERS" in text else {"latent": 3}) | read(text))


def assembled(experiment, **sizes):
    with isolated(0):
        return experiment.assemble(CELLS, None, 10, **sizes)


@pytest.mark.parametrize(("text", "spec"), READ, ids=str)
def test_what_is_read(text, spec):
    ((key, content),) = read(text).items()
    assert getattr(Experiment.parse({key: content}), key) == spec
    if isinstance(content, str):
        assert getattr(Experiment.parse({key: spelled_out(key, content)}), key) == spec


@pytest.mark.parametrize("text", FILES)
def test_what_is_written_is_read_again(text, tmp_path):
    experiment = parsed(text)
    experiment.to_yaml(tmp_path / "experiment.yaml")
    again = Experiment.from_yaml(tmp_path / "experiment.yaml")
    assert again == experiment
    again.to_yaml(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "experiment.yaml").read_text()


@pytest.mark.parametrize("text", FILES)
def test_what_is_built_says_what_builds_it(text):
    vae = assembled(parsed(text))
    described = Experiment.parse(to_spec(vae))
    again = assembled(described)
    assert to_spec(again) == to_spec(vae)
    assert again.state_dict().keys() == vae.state_dict().keys()
    again.load_state_dict(vae.state_dict())
    with isolated(1):
        x = vae.generate(6)
    weights = []
    for one in (vae, again):
        with isolated(2), torch.no_grad():
            weights.append(one.log_weights(x, 2))
    assert torch.equal(*weights)
    assert bool(weights[0].isfinite().all())


def test_what_is_said_is_built_for_data_of_the_same_size_alone():
    spec = to_spec(assembled(parsed("{}"), context_features=2))
    assert (spec["cells"], spec["covariates"]) == (4, 2)
    experiment = Experiment.parse(spec)
    assert experiment.assemble(4, None, 20, 2).event_shape == (4,)
    with pytest.raises(InputError, match=r"cells: the experiment is for data with 4 cells, but these have 64; name"):
        experiment.build()  # for digits, the default
    with pytest.raises(InputError, match=r"covariates: the experiment is for data with 2 covariates, but these have 0"):
        experiment.assemble(4, None, 20)


def test_a_network_beside_the_key_is_the_parts_own():
    vae = assembled(
        parsed("{likelihood: {mixture: , network: {gated: [6]}}, posterior: {flow: maf, network: {mlp: [7]}}}")
    )
    spec = to_spec(vae)
    assert spec["likelihood"]["network"] == {"gated": [6]}
    assert spec["posterior"]["network"] == {"mlp": [7]}
    conditioned = assembled(parsed("prior: {family: Normal, network: {mlp: [3]}}"), context_features=2)
    assert conditioned.prior.given.in_features == 2


def test_the_likelihood_receives_the_layers_that_it_reads():
    vae = assembled(parsed("{prior: {hierarchy: {LAYERS}}, likelihood: {family: Bernoulli, reads: [z1]}}"))
    assert vae.likelihood.likelihood.given.in_features == 3
    whole = assembled(parsed("{prior: {hierarchy: {LAYERS}}}"))
    assert whole.likelihood.given.in_features == 5


def test_the_number_of_latents_follows_from_the_layers():
    experiment = parsed("prior: {hierarchy: {LAYERS}}")
    assert experiment.latent == 5
    assert assembled(experiment).latent_shape == (5,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prior: {mixture: {famly: Normal}}", "`prior.mixture`: `famly` is no key here; did you mean `family`?"),
        ("prior: {mixture: {lco: 1}}", "`prior.mixture`: `lco` is no key here; did you mean `loc`?"),
        ("prior: {mixture: {family: Norml}}", "`prior.mixture`: unknown family `Norml`; did you mean `Normal`?"),
        ("prior: {mixture: {components: 0}}", "`prior.mixture.components`: .*greater than 0 .got 0."),
        ("prior: {mixture: {weights: lerned}}", "`prior.mixture`: `weights`: .*did you mean `learned`"),
        ("prior: {mixture: 3}", "`prior.mixture`: expected a mapping, such as .*got 3"),
        ("prior: {vamp: {component: 3}}", "`prior.vamp.component` is no key here; did you mean `components`?"),
        ("prior: {vamp: 3}", "`prior.vamp`: expected a mapping with keys among `components`, .*got 3"),
        ("prior: {flow: nfs}", "`prior.flow`: unknown flow `nfs`; did you mean `nsf`?"),
        ("prior: vamps", "`prior`: unknown family `vamps`; did you mean `vamp`?"),
        ("prior: {vamps: {components: 3}}", "`prior`: `vamps` is no key here; did you mean `vamp`?"),
        ("prior: {family: vamps}", "`prior`: unknown family `vamps`; did you mean `vamp: ...` in place of `family`?"),
        ("prior: {family: flow}", "`prior`: unknown family `flow`; did you mean `flow: ...` in place of `family`?"),
        ("prior: Qqqqq", "`prior`: unknown family `Qqqqq`; .*such as `Normal`, or one of `mixture`, `flow`, `vamp`"),
        ("prior: {flow: nsf, netwerk: {mlp: [3]}}", "`prior.flow`: `netwerk` is no key beside `flow`; .*`network`?"),
        (
            "prior: {flow: {kind: nsf, transform: 3}}",
            "`prior.flow.transform` is no key here; did you mean `transforms`",
        ),
        ("prior: {family: Normal, netwerk: {mlp: [3]}}", "`prior`: `Normal` has no parameter `netwerk`; .*`network`?"),
        ("prior: {family: Normal, network: {mpl: [3]}}", "`prior.network.mpl` is no key here; did you mean `mlp`?"),
        ("prior: {vamp: {}, flow: {}}", "`vamp` is no key beside `flow`"),
        ("prior: {network: {mlp: [3]}}", "`prior.family` is missing"),
        (
            "prior: {hierarchy: {z1: {size: 3, family: Norml}, z2: Normal}}",
            "`prior.hierarchy.z1`: .*`Norml`; .*`Normal`",
        ),
        ("prior: {hierarchy: {z1: {size: 3, family: Normal}, z2: 4}}", "`prior.hierarchy.z2`: expected a part .*got 4"),
        (
            "prior: {hierarchy: {z1: {size: 3, flow: nfs}, z2: {size: 2, family: Normal}}}",
            "`prior.hierarchy.z1.flow`: ",
        ),
        (
            "prior: {hierarchy: {z1: {family: Normal}, z2: {size: 2, family: Normal}}}",
            "`prior.hierarchy.z1.size` is miss",
        ),
        (
            "prior: {hierarchy: {LAYERS, input: {z1: [z2]}}}",
            "`input` is no layer with a size.*did you mean `inputs`?",
        ),
        ("prior: {hierarchy: {z1: {size: 3, vamp: }, z2: {size: 2, family: Normal}}}", "`vamp` is no layer of a hier"),
        ("prior: hierarchy", "`prior.hierarchy`: expected at least two layers, got 0; write "),
        ("prior: {hierarchy: 3}", "`prior.hierarchy`: expected layers, such as .*got 3"),
        ("{latent: 8, prior: {hierarchy: {LAYERS}}}", "`latent`: got 8, but the prior's layers have 5"),
        ("{latent: {shape: [5, 1]}, prior: {hierarchy: {LAYERS}}}", r"`latent`: got \{.shape.: \[5, 1\]\}"),
        ("prior: {flow: nsf, reads: [z1]}", "`prior`: `reads` is a key of the likelihood"),
        ("posterior: {family: Normal, reads: [z1]}", "`posterior`: `reads` is a key of the likelihood"),
        (
            "likelihood: {mixed: {a: {Categorial: 3}}}",
            r"`likelihood.mixed.a`: expected a family .*got {'Categorial': 3}",
        ),
        (
            "likelihood: {mixed: {named: Norml}}",
            "`likelihood.mixed.named`: unknown family `Norml`; did you mean `Normal`",
        ),
        ("likelihood: {mixed: {a: {family: Normal, scael: 1}}}", "`likelihood.mixed.a`: .*did you mean `scale`?"),
        ("likelihood: {mixed: {a: {family: Normal, network: {mlp: [3]}}}}", "`network` is no key of a column"),
        (
            "likelihood: {mixed: Normal}",
            "`likelihood.mixed`: expected `auto`, or a family for each column.*got 'Normal'",
        ),
        (
            "likelihood: {mixed: {a: Normal}, netwrk: 3}",
            "`likelihood.mixed`: `netwrk` is no key beside `mixed`; .*`network`",
        ),
    ],
)
def test_refused_when_it_is_read(text, message):
    with pytest.raises(InputError, match=f"^experiment: .*{message}") as error:
        Experiment.parse(read(text))
    assert len(str(error.value).splitlines()) == (2 if "z2: Normal" in text else 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "likelihood: {family: Bernoulli, reads: [z3]}",
            "^likelihood: `reads` names layers .* no `z3`; .*no `hierarchy`",
        ),
        (
            "{prior: {hierarchy: {LAYERS}}, likelihood: {family: Bernoulli, reads: [z3]}}",
            "^likelihood: `reads` names layers of the prior, and it has no `z3`; ",
        ),
        ("likelihood: {hierarchy: {LAYERS}}", "^likelihood: `hierarchy` is a prior or a posterior"),
        ("likelihood: vamp", "^likelihood: `vamp` is a prior"),
        ("posterior: vamp", "^posterior: `vamp` is a prior; use a Normal, a mixture or a flow here"),
        ("prior: mixed", "^prior: `mixed` is a likelihood of tables"),
        ("posterior: {mixed: {a: Normal}}", "^posterior: `mixed` is a likelihood of tables"),
        ("likelihood: mixed", "^likelihood: mixed: `auto` chooses by the data, which are not read"),
        ("likelihood: {mixed: {a: Normal}}", "^likelihood: mixed: declares 1 columns, but the data have 4"),
        ("{prior: {family: Bernoulli, logits: 0}, posterior: flow}", "the posterior has support .*outside the prior's"),
        ("{prior: flow, posterior: Bernoulli}", "the prior has support .*outside the posterior's"),
        ("{latent: {shape: [3, 3]}, prior: flow}", r"^prior: Flow: an event is a vector, such as \(8,\)"),
        (
            "prior: {family: Normal, network: {mlp: [3]}}",
            "^prior: network: a network here has no input; declare a context",
        ),
        (
            "{likelihood: {mixture: {components: 2}}, networks: {decoder: {conv: [3]}}}",
            "^likelihood: networks.decoder: .*`conv` emits the parameters of one family .*a mixture, a flow or `mixed`",
        ),
        ("likelihood: {flow: nsf, network: {residual_conv: [3]}}", "^likelihood: network: .*`residual_conv` emits"),
        ("likelihood: {mixture: , network: {mlp: [3], input: log1p}}", "`input: log1p` is for an encoder"),
    ],
)
def test_refused_when_it_is_built(text, message):
    experiment = Experiment.parse(read(text))
    with pytest.raises(InputError, match=message):
        experiment.assemble(CELLS, (2, 2), 10)


# ---------------------------------------------------------------------- the JSON schema

SCHEMA = json.loads(json.dumps(Experiment.model_json_schema()))
TYPES = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "null": type(None)}


def valid(value, schema):
    """Whether a value satisfies the part of JSON schema that pydantic and this library write."""
    if "$ref" in schema:
        return valid(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema and not any(valid(value, one) for one in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(valid(value, one) for one in schema["oneOf"]) != 1:
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(isinstance(value, bool) if kind == "boolean" else isinstance(value, TYPES[kind]) for kind in kinds):
            return False
    if isinstance(value, int | float) and value <= schema.get("exclusiveMinimum", -1e9):
        return False
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(valid(one, schema.get("items", {})) for one in value)
    return not isinstance(value, dict) or _valid_mapping(value, schema)


def _valid_mapping(value, schema):
    own, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if set(schema.get("required", [])) - set(value):
        return False
    for key, one in value.items():
        allowed = own.get(str(key), others)
        if allowed is False or (allowed is not True and not valid(one, allowed)):
            return False
    return True


@pytest.mark.parametrize("text", [*FILES, *(text for text, _ in READ)])
def test_the_schema_accepts_what_is_read(text, tmp_path):
    content = json.loads(json.dumps(read(text)))
    assert valid(content, SCHEMA)
    parsed(text).to_yaml(tmp_path / "experiment.yaml")
    assert valid(json.loads(json.dumps(parse_yaml((tmp_path / "experiment.yaml").read_text(), ""))), SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "prior: vamps",
        "prior: {flow: nfs}",
        "prior: {vamp: {component: 3}}",
        "prior: {vamp: {components: 0}}",
        "prior: {vamp: {pseudo_inputs: reals}}",
        "prior: {mixture: {family: Norml}}",
        "prior: {mixture: {components: 0}}",
        "prior: {hierarchy: {z1: {family: Normal}, z2: {size: 2, family: Normal}}}",
        "prior: {flow: nsf, netwerk: 3}",
        "likelihood: {mixed: {a: Norml}}",
        "latent: 0",
        "latent: []",
        "networks: {encoder: {mlp: [3], input: logs}}",
    ],
)
def test_the_schema_refuses_what_is_not_read(text):
    assert not valid(read(text), SCHEMA)


def test_a_layer_is_normal_unless_it_says_otherwise_and_one_layer_is_read_by_its_name():
    content = {"prior": {"hierarchy": {"z2": {"size": 2}, "z1": {"size": 3}}}}
    experiment = Experiment.parse({**content, "likelihood": {"family": "Bernoulli", "reads": "z1"}})
    spelled = {"hierarchy": {name: {"size": size, "family": "Normal"} for name, size in (("z2", 2), ("z1", 3))}}
    assert experiment == Experiment.parse({"prior": spelled, "likelihood": {"family": "Bernoulli", "reads": ["z1"]}})
    assert experiment.assemble(6, None, 10).prior.blocks == {"z1": slice(0, 3), "z2": slice(3, 5)}


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (
            [4, 8],
            r"expected one number of latents \(got \[4, 8\]\); for latents of that shape write \{shape: \[4, 8\]\}",
        ),
        ([8], "expected one number of latents"),
        ({"shape": []}, "expected a positive integer up to 10,000,000, or a shape such as"),
        ({"shape": [2, 0]}, "expected a positive integer up to 10,000,000, or a shape such as"),
        ({"shape": 4}, "expected a positive integer up to 10,000,000, or a shape such as"),
        ({"size": 4}, "expected a positive integer up to 10,000,000, or a shape such as"),
        (True, "expected a positive integer up to 10,000,000, or a shape such as"),
    ],
)
def test_a_list_of_latents_is_not_taken_for_a_shape(latent, message):
    """Two numbers of latents are no matrix of 32."""
    with pytest.raises(InputError, match=message):
        Experiment.parse({"latent": latent})
