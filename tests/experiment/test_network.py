"""Networks in an experiment file: kinds and options, and code of the user's own, which needs permission."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import pyro.distributions as dist
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import pyro_vae
from pyro_vae import VAE, Batch, Conditional, Fixed
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment
from pyro_vae.experiment.network import NetworkSpec, code_allowed
from pyro_vae.networks import ConvEncoder, GatedMLP, Preprocess, ResidualMLP

OWN = """
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self, in_features, width=5, image_shape=None, context_features=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), nn.Dropout())
        self.sizes = (in_features, image_shape, context_features)

    def forward(self, x):
        return self.layers(x)


class Pair(nn.Module):  # neither a last Linear nor out_features would tell 2 x 3
    def __init__(self, in_features):
        super().__init__()
        self.layer = nn.Linear(in_features, 3)

    def forward(self, x):
        return torch.cat([self.layer(x), self.layer(x)], dim=-1)


class Features(Encoder):
    pass


class Normed(nn.Sequential):
    def __init__(self, in_features):
        super().__init__(nn.BatchNorm1d(in_features))


class Maps(nn.Module):
    def __init__(self, in_features, num_parameters, image_shape, extra=0):
        super().__init__()
        channels, height, width = image_shape
        self.layer = nn.Linear(in_features, num_parameters * channels * height * width + extra)

    def forward(self, z):
        return self.layer(z)


class Lazy(nn.Module):
    def __init__(self, in_features):
        super().__init__()
        self.layer = nn.LazyLinear(4)

    def forward(self, x):
        return self.layer(x)


class Liar(Encoder):
    out_features = 7


class Silent(Encoder):
    def forward(self, x):
        return None


class Summed(Encoder):
    def forward(self, x):
        return x.sum()


class Square(nn.Module):
    def __init__(self, width):
        super().__init__()


class Bare(nn.Module):
    pass


class Broken(Encoder):
    def forward(self, x):
        return x @ torch.zeros(3, 3)


class NoNetwork:
    def __init__(self, in_features):
        raise AssertionError("was called")


def encoder(in_features):
    raise AssertionError("was called")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package `own_package` with a module `nets`."""
    folder = tmp_path / "own_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "nets.py").write_text(OWN)
    (folder / "needy.py").write_text("import not_installed_anywhere")
    (folder / "faulty.py").write_text("1 / 0")
    (folder / "wrong.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_package.nets"
    for name in [name for name in sys.modules if name.split(".")[0] == "own_package"]:
        del sys.modules[name]


def allowed(**content):
    with code_allowed():
        return NetworkSpec.model_validate(content)


# ---------------------------------------------------------------------- the kinds of this library

SPECS = [
    {"mlp": [9]},
    {"mlp": []},
    {"gated": [9, 8], "activation": "tanh"},
    {"residual": [9], "blocks": 2},
    {"conv": [3, 4], "activation": "elu"},
    {"residual_conv": [3, 4]},
    {"residual_conv": [3, 4], "blocks": 2, "activation": "gelu"},
]


@pytest.mark.parametrize("context_features", [0, 3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_kind_makes_a_vae(spec, context_features):
    spec = NetworkSpec.model_validate(spec)
    encoder = NetworkSpec.model_validate({**spec.to_spec(), "input": "log1p"}).build_encoder(
        54, (9, 6), context_features
    )
    decoder, head = spec.build_decoder(2 + context_features, (9, 6), 2)
    vae = VAE(
        Conditional(dist.Normal, (2,), loc=Fixed([0.0, 0.0]), scale=Fixed(1.0)),
        Conditional(dist.Normal, (54,), given=decoder, head=head),
        Conditional(dist.Normal, (2,), given=encoder),
        context_features=context_features,
    )
    assert encoder.in_features == 54 + context_features
    x = torch.rand(5, 54)
    context = torch.randn(5, context_features) if context_features else None
    vae.log_weights(Batch(x, context), 2).sum().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    if context is not None:
        moved = Batch(x, context + torch.tensor([1.0, 0.0, 0.0]))
        assert not torch.allclose(vae.encode(moved).mean, vae.encode(Batch(x, context)).mean)


def test_the_kind_and_its_options_reach_the_network():
    gated = NetworkSpec.model_validate({"gated": [9]}).build_encoder(6, None, 2)
    assert isinstance(gated, GatedMLP)
    assert (gated.in_features, gated.activation) == (8, None)
    residual = NetworkSpec.model_validate({"residual": [9], "blocks": 3}).build_encoder(6, None)
    assert isinstance(residual, ResidualMLP)
    assert (residual.blocks, residual.activation) == (3, nn.ReLU)
    conv = NetworkSpec.model_validate({"residual_conv": [3]}).build_encoder(192, (3, 8, 8), 2)
    assert isinstance(conv, ConvEncoder)
    assert (conv.blocks, conv.context_features, conv.image_shape) == (1, 2, (3, 8, 8))
    counts = NetworkSpec.model_validate({"mlp": [9], "input": "normalise"}).build_encoder(6, None, 2)
    assert isinstance(counts, Preprocess)
    assert (counts.kind, counts.context_features, counts.in_features, counts.out_features) == ("normalise", 2, 8, 9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "exactly one of .*got none"),
        ({"mlp": [3], "gated": [3]}, "exactly one of .*got `mlp` and `gated`"),
        ({"gated": [0]}, "greater than 0"),
        ({"residual": []}, "at least 1 item"),
        ({"residual_conv": []}, "at least 1 item"),
        ({"mlp": [3], "activation": "rlu"}, "unknown activation `rlu`; did you mean `relu`"),
        ({"conv": [3], "blocks": 2}, "`blocks` are those of `residual` and `residual_conv`; `conv` has none"),
        ({"residual": [3], "blocks": 0}, "greater than 0"),
        ({"mlp": [3], "arguments": {"width": 3}}, "`arguments` are those of `module`; `mlp` has none"),
        ({"mlp": [3], "input": "logs"}, "'log1p', 'log', 'normalise', 'unit', 'columns' or 'raw'"),
    ],
    ids=str,
)
def test_refused_when_it_is_read(spec, message):
    with pytest.raises(ValidationError, match=message):
        NetworkSpec.model_validate(spec)
    with pytest.raises(InputError, match=message):
        Experiment.parse({"networks": {"encoder": spec}})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NetworkSpec(residual_conv=[3]).build_encoder(6, None), "`residual_conv` is for images"),
        (lambda: NetworkSpec(conv=[3]).build_encoder(6, (6,)), "`conv` is for images"),
        (lambda: NetworkSpec(conv=[3]).build_encoder(108, (6, 6, 3)), "height x width x channels"),
        (lambda: NetworkSpec(mlp=[3], input="log1p").build_decoder(2, None, 1), "`input: log1p` is for an encoder"),
    ],
)
def test_refused_when_it_is_built(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_the_schema_offers_every_key():
    schema = json.loads(json.dumps(Experiment.model_json_schema()))
    properties = schema["$defs"]["NetworkSpec"]["properties"]
    assert set(properties) == set(NetworkSpec.model_fields)
    assert {"enum": ["log1p", "log", "normalise", "unit", "columns", "raw"], "type": "string"} in properties["input"][
        "anyOf"
    ]


# ---------------------------------------------------------------------- permission


def test_code_is_refused_unless_allowed_and_nothing_is_imported(own):
    content = {"networks": {"encoder": {"module": f"{own}.Encoder"}}}
    with pytest.raises(InputError, match=r"`networks.encoder`: .*imports and runs code.*--allow-code.*allow_code=True"):
        Experiment.parse(content)
    assert "own_package" not in sys.modules
    with code_allowed(False), pytest.raises(InputError, match="--allow-code"):
        Experiment.parse(content)
    with code_allowed():
        experiment = Experiment.parse(content)
    assert "own_package" not in sys.modules  # reading a file imports nothing, allowed or not
    with pytest.raises(InputError, match="--allow-code"):
        Experiment.parse(content)  # the permission ends with its block
    experiment.build()
    assert "own_package" in sys.modules


def test_permission_passes_through_a_flag_that_is_off(own):
    with code_allowed(), code_allowed(False):
        NetworkSpec(module=f"{own}.Encoder")


def test_a_path_is_read_before_permission_is_asked():
    for path in ("Encoder", "my nets.Encoder", ".nets.Encoder", "nets.", "os.system('x')"):
        with pytest.raises(ValidationError, match="names a class by its import path"):
            NetworkSpec(module=path)


def test_a_run_folder_that_names_code_is_refused_unless_allowed(own, tmp_path):
    with code_allowed():
        experiment = Experiment.parse(
            {"networks": {"encoder": {"module": f"{own}.Encoder", "arguments": {"width": 4}}}}
        )
    experiment.to_yaml(tmp_path / "experiment.yaml")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match="--allow-code"):
        pyro_vae.load(tmp_path)
    assert "own_package" not in sys.modules
    with code_allowed():
        assert Experiment.from_yaml(tmp_path / "experiment.yaml") == experiment
        with pytest.raises(InputError, match="damaged"):
            pyro_vae.load(tmp_path)


# ---------------------------------------------------------------------- a network of the user's own


def test_the_class_receives_sizes_and_arguments(own):
    network = allowed(module=f"{own}.Encoder", arguments={"width": 9}).build_encoder(54, (9, 6), 3)
    assert network.sizes == (57, (1, 9, 6), 3)
    assert network.out_features == 9
    assert network.training  # as it was made
    assert allowed(module=f"{own}.Encoder").build_encoder(6, None).sizes == (6, None, 0)


def test_out_features_is_what_the_run_shows(own):
    network = allowed(module=f"{own}.Pair").build_encoder(6, None)
    posterior = Conditional(dist.Normal, (2,), given=network)
    assert posterior.head.in_features == 6
    assert posterior(torch.zeros(4, 6)).batch_shape == (4,)


def test_the_check_leaves_running_statistics_alone(own):
    (normalisation,) = allowed(module=f"{own}.Normed").build_encoder(6, None)
    assert normalisation.num_batches_tracked == 0
    assert normalisation.training


def test_a_decoder_emits_parameters_where_it_knows_their_number(own):
    maps, head = allowed(module=f"{own}.Maps").build_decoder(2, (9, 6), 2)
    assert (maps.out_features, head) == (108, None)
    likelihood = Conditional(dist.Normal, (54,), given=maps, head=head)
    assert likelihood(torch.zeros(4, 2)).event_shape == (54,)
    features, head = allowed(module=f"{own}.Features").build_decoder(2, (9, 6), 2)
    assert (features.out_features, head) == (5, "linear")


@pytest.mark.parametrize("name", ["Encoder", "Lazy"])
def test_parameters_come_from_the_global_stream_and_the_check_draws_nothing(own, name):
    spec = allowed(module=f"{own}.{name}")
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network = spec.build_encoder(6, None)
        drawn.append((next(network.parameters()).clone(), torch.rand(1)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[2][0])
    torch.manual_seed(0)
    kind = getattr(sys.modules[own], name)(in_features=6)
    kind(torch.zeros(2, 6)) if name == "Lazy" else None
    assert torch.equal(next(kind.parameters()), drawn[0][0])
    assert torch.equal(torch.rand(1), drawn[0][1])


@pytest.mark.parametrize("options", [{}, {"arguments": {"width": 9}}, {"arguments": {"width": 9}, "input": "log1p"}])
def test_spec_round_trip(own, options):
    spec = allowed(module=f"{own}.Encoder", **options)
    network = spec.build_encoder(6, None, 2)
    for same in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert NetworkSpec.of(same) == spec
        assert same.to_spec() == spec.to_spec() == {"module": f"{own}.Encoder", **options}
    network.to_spec().setdefault("arguments", {})["width"] = 1
    assert NetworkSpec.of(network) == spec  # a spec is the caller's own


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"module": "own_package.nets.Encodr"}, r"`own_package.nets` has no `Encodr`; did you mean `Encoder`"),
        (
            {"module": "own_package.nets.Qqqq"},
            r"`own_package.nets` has no `Qqqq`; it has 12 nn.Module classes, none of a similar",
        ),
        ({"module": "own_package.Encoder"}, r"`own_package` has no `Encoder`; it has no nn.Module class"),
        ({"module": "own_package.netz.Encoder"}, r"no module `own_package.netz`; did you mean `own_package.nets`"),
        ({"module": "own_packag.nets.Encoder"}, r"no module `own_packag`; did you mean `own_package`.*PYTHONPATH"),
        ({"module": "zzqqxx.nets.Encoder"}, r"no module `zzqqxx`; Install its package"),
        ({"module": "own_package.needy.Encoder"}, r"it needs `not_installed_anywhere`, which is not installed"),
        ({"module": "own_package.faulty.Encoder"}, r"`own_package.faulty` cannot be imported: ZeroDivisionError"),
        ({"module": "own_package.wrong.Encoder"}, r"`own_package.wrong` cannot be imported: SyntaxError"),
        ({"module": "own_package.nets.NoNetwork"}, r"is the class `NoNetwork`, and no nn.Module"),
        ({"module": "own_package.nets.encoder"}, r"is a function, and no nn.Module"),
        ({"module": "own_package.nets.Square"}, r"no argument `in_features`, .*Its arguments are `width`"),
        ({"module": "own_package.nets.Bare"}, r"`own_package.nets.Bare` cannot be made: TypeError"),
        (
            {"module": "own_package.nets.Encoder", "arguments": {"widht": 1}},
            r"`widht`; did you mean `width`",
        ),
        ({"module": "own_package.nets.Pair", "arguments": {"width": 1}}, r"no argument `width`; it has none except"),
        (
            {"module": "own_package.nets.Encoder", "arguments": {"in_features": 1}},
            r"`in_features` comes from",
        ),
        ({"module": "own_package.nets.Encoder", "arguments": {"width": "x"}}, r"Encoder` cannot be made: TypeError"),
        ({"module": "own_package.nets.Broken"}, r"Broken` fails on \(2, 6\): RuntimeError: mat1 and mat2"),
        ({"module": "own_package.nets.Silent"}, r"Silent` maps \(2, 6\) to NoneType; expected a tensor"),
        ({"module": "own_package.nets.Summed"}, r"Summed` maps \(2, 6\) to \(\); expected a tensor"),
        ({"module": "own_package.nets.Liar"}, r"maps \(2, 6\) to \(2, 5\), but its out_features is 7"),
    ],
    ids=str,
)
def test_refusals_of_code(own, spec, message):
    spec = allowed(**spec)
    with pytest.raises(InputError, match=message) as error:
        spec.build_encoder(6, None)
    assert "\n" not in str(error.value)


def test_refusals_of_decoders(own):
    with pytest.raises(InputError, match=r"emits maps of parameters, but these data are a table"):
        allowed(module=f"{own}.Maps").build_decoder(2, None, 1)
    with pytest.raises(InputError, match=r"expected \(2, 108\) for an input of \(2, 4\), got \(2, 109\)"):
        allowed(module=f"{own}.Maps", arguments={"extra": 1}).build_decoder(4, (9, 6), 2)


def test_activation_and_other_kinds_beside_a_module_are_refused(own):
    with pytest.raises(ValidationError, match="`activation` is no key beside `module`"):
        allowed(module=f"{own}.Encoder", activation="relu")
    with pytest.raises(ValidationError, match="got `mlp` and `module`"):
        allowed(module=f"{own}.Encoder", mlp=[3])


def test_an_experiment_with_networks_of_the_users_own(own):
    with code_allowed():
        experiment = Experiment.parse(
            {
                "latent": 2,
                "networks": {"encoder": {"module": f"{own}.Encoder"}, "decoder": {"module": f"{own}.Maps"}},
            }
        )
    vae = experiment.build()
    assert vae.generate(3).shape == (3, 64)
    assert type(vae.likelihood.given).__name__ == "Maps"
