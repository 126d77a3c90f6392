"""Networks: shapes at every image size, gradients, formulas by hand, context, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from z_test import assert_mean

from pyro_vae import conv_decoder, conv_encoder, mlp
from pyro_vae.errors import InputError
from pyro_vae.experiment.network import NetworkSpec
from pyro_vae.networks import (
    ACTIVATIONS,
    ConvDecoder,
    Preprocess,
    gated_mlp,
    residual_conv_decoder,
    residual_conv_encoder,
    residual_mlp,
    spec_of,
)
from pyro_vae.networks.residual_block import linear_block

IMAGES = [
    ((1, 28, 28), (4, 8)),
    ((1, 28, 20), (4, 8)),
    ((1, 8, 8), (4, 3, 2)),
    ((3, 20, 28), (4, 8)),
    ((1, 105, 105), (2, 3, 4)),
    ((2, 7, 5), (3, 4)),
    ((1, 2, 9), (3,)),
]
DENSE = {
    "mlp": lambda: mlp(6, 5, 4),
    "mlp, relu": lambda: mlp(6, 5, activation=nn.ReLU),
    "gated": lambda: gated_mlp(6, 5, 4),
    "gated, tanh": lambda: gated_mlp(6, 5, activation=nn.Tanh),
    "residual": lambda: residual_mlp(6, 5, 4),
    "residual, 3 blocks": lambda: residual_mlp(6, 8, blocks=3, activation=nn.GELU),
    "log1p": lambda: Preprocess("log1p", gated_mlp(6, 5), context_features=2),
    "normalise": lambda: Preprocess("normalise", mlp(6, 5), context_features=2),
    "log": lambda: Preprocess("log", mlp(6, 5), context_features=2, cells=4),
}
ENCODERS = {
    "conv": lambda shape, channels: conv_encoder(shape, *channels),
    "conv, context": lambda shape, channels: conv_encoder(shape, *channels, activation=nn.ELU, context_features=3),
    "residual_conv": lambda shape, channels: residual_conv_encoder(shape, *channels),
    "residual_conv, 2 blocks, context": lambda shape, channels: residual_conv_encoder(
        shape, *channels, blocks=2, activation=nn.SiLU, context_features=3
    ),
}
DECODERS = {
    "conv": lambda shape, channels: conv_decoder(4, shape, *channels),
    "conv, 2": lambda shape, channels: conv_decoder(4, shape, *channels, num_parameters=2, activation=nn.Tanh),
    "residual_conv": lambda shape, channels: residual_conv_decoder(4, shape, *channels),
    "residual_conv, 2": lambda shape, channels: residual_conv_decoder(
        4, shape, *channels, num_parameters=2, blocks=2, activation=nn.GELU
    ),
}
SMALL = ((2, 9, 6), (6, 5))
EVERY = (
    DENSE
    | {f"{name} encoder": lambda build=build: build(*SMALL) for name, build in ENCODERS.items()}
    | {f"{name} decoder": lambda build=build: build(*SMALL) for name, build in DECODERS.items()}
)


@pytest.fixture(params=EVERY, ids=str)
def network(request):
    return EVERY[request.param]()


def leading_dimensions_are_kept(network, features):
    inputs = torch.randn(3, 5, network.in_features)
    outputs = network(inputs)
    assert outputs.shape == (3, 5, features)
    torch.testing.assert_close(network(inputs[2, 4]), outputs[2, 4])
    assert network(inputs[:, :0]).shape == (3, 0, features)


def test_leading_dimensions_are_kept(network):
    leading_dimensions_are_kept(network, network.out_features)


def test_gradients_reach_every_parameter(network):
    network(torch.randn(50, network.in_features)).sin().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_datum_is_mapped_without_regard_to_the_data_beside_it(network):
    network.double().train()
    x = torch.randn(7, network.in_features, dtype=torch.float64)
    parts = torch.cat([network(x[:1]), network(x[1:3]), network(x[3:])])
    torch.testing.assert_close(parts, network(x), rtol=1e-12, atol=1e-12)


def test_every_input_and_every_output_is_connected(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()  # no rectifier is shut
    influence = torch.autograd.functional.jacobian(network, torch.rand(network.in_features)).abs()
    assert (influence.amax(0) > 0).all()
    assert (influence.amax(1) > 0).all()


# ---------------------------------------------------------------------- fully connected


def test_mlp_has_one_activation_behind_each_layer():
    network = mlp(6, 5, 4, activation=nn.ReLU)
    assert [type(layer) for layer in network] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert (network.in_features, network.hidden, network.out_features) == (6, (5, 4), 4)
    leading_dimensions_are_kept(network, 4)


@pytest.mark.parametrize("build", [mlp, gated_mlp], ids=["mlp", "gated_mlp"])
def test_without_hidden_layers_it_is_the_identity(build):
    network = build(6)
    assert network.out_features == 6
    inputs = torch.randn(2, 6)
    assert torch.equal(network(inputs), inputs)


@pytest.mark.parametrize("activation", [None, nn.Tanh])
def test_gated_mlp_is_its_formula(activation):
    network = gated_mlp(6, 5, 4, activation=activation).double()
    f = torch.tanh if activation else lambda x: x
    x = torch.randn(8, 6, dtype=torch.float64)
    h = x
    for layer, width in zip(network, (5, 4), strict=True):
        weight, bias = layer.linear.weight, layer.linear.bias
        value, gate = h @ weight[:width].T + bias[:width], h @ weight[width:].T + bias[width:]
        h = f(value) / (1 + torch.exp(-gate))
    torch.testing.assert_close(network(x), h, rtol=1e-13, atol=1e-13)


def test_gated_weights_start_as_he_has_them():
    weight = gated_mlp(50, 400)[0].linear.weight.flatten()
    assert_mean(torch.stack([weight, weight**2], dim=1), torch.tensor([0.0, 2 / 50]))


def test_a_residual_block_is_its_formula():
    block = linear_block(5, nn.Tanh, num_blocks=3).double()
    x = torch.randn(8, 5, dtype=torch.float64)
    w1, b1, w2, b2 = (p for layer in (block.first, block.second) for p in (layer.weight, layer.bias))
    expected = x + (torch.tanh(torch.tanh(x) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(block(x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("num_blocks", [1, 7])
def test_a_residual_block_starts_with_the_stated_size(num_blocks):
    x = torch.randn(6, dtype=torch.float64)
    with torch.no_grad():
        sizes = torch.stack([linear_block(6, nn.ReLU, num_blocks).double()(x).square().sum() for _ in range(1000)])
    assert_mean(sizes, x.square().sum() + 2 / num_blocks * x.relu().square().sum())


@pytest.mark.parametrize("blocks", [1, 8, 64])
def test_depth_does_not_change_the_size_of_a_signal(blocks):
    network = residual_mlp(10, 256, blocks=blocks)
    first, *rest, _ = network
    start = first(torch.randn(20, 10))
    ratio = nn.Sequential(*rest)(start).square().sum() / start.square().sum()
    assert 1 < ratio < math.e**2  # (1 + 2 / N) ** N at most, in expectation; without the factor it would be 2**N


# ---------------------------------------------------------------------- images


@pytest.mark.parametrize(("image_shape", "channels"), IMAGES, ids=str)
@pytest.mark.parametrize("kind", ENCODERS)
def test_conv_encoder(kind, image_shape, channels):
    network = ENCODERS[kind](image_shape, channels)
    sides = [side // 2 ** len(channels) for side in image_shape[1:]]
    leading_dimensions_are_kept(network, channels[-1] * math.prod(sides))
    assert network.in_features == math.prod(image_shape) + (3 if "context" in kind else 0)


@pytest.mark.parametrize(("image_shape", "channels"), IMAGES, ids=str)
@pytest.mark.parametrize("kind", DECODERS)
def test_conv_decoder(kind, image_shape, channels):
    network = DECODERS[kind](image_shape, channels[::-1])
    assert isinstance(network, ConvDecoder)
    leading_dimensions_are_kept(network, (2 if kind.endswith("2") else 1) * math.prod(image_shape))


def test_image_is_read_in_row_major_order():
    network = conv_encoder((2, 8, 4), 3)
    image = torch.randn(5, 2, 8, 4)
    torch.testing.assert_close(network(image.flatten(1)), network.convolutions(image).flatten(1))


def test_a_context_of_zeros_changes_nothing():
    with_context, without = conv_encoder((2, 8, 4), 3, 2, context_features=3), conv_encoder((2, 8, 4), 3, 2)
    assert not without.load_state_dict(with_context.state_dict(), strict=False).missing_keys
    image = torch.randn(5, 64)
    assert torch.equal(with_context(torch.cat([image, torch.zeros(5, 3)], dim=1)), without(image))


def test_context_enters_as_constant_maps_do():
    network = conv_encoder((2, 10, 12), 4, activation=nn.Identity, context_features=3).double()
    image, context = torch.randn(5, 2, 10, 12, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    kernels = network.context.weight[:, :, None, None].expand(4, 3, 4, 4) / 16
    constant = context[:, :, None, None].expand(5, 3, 10, 12)
    first = network.convolutions[0]
    expected = nn.functional.conv2d(
        torch.cat([image, constant], dim=1),
        torch.cat([first.weight, kernels], dim=1),
        first.bias,
        stride=2,
        padding=1,
    )
    maps = network(torch.cat([image.flatten(1), context], dim=1)).unflatten(1, (4, 5, 6))
    interior = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(maps[interior], expected[interior], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("build", [conv_encoder, residual_conv_encoder], ids=["conv", "residual_conv"])
def test_context_acts_on_what_is_seen_in_the_image(build):
    network = build((1, 8, 8), 8, context_features=2)
    image, context = torch.randn(2, 64), torch.tensor([[1.0, -2.0]]).expand(2, 2)
    change = network(torch.cat([image, context], 1)) - network(torch.cat([image, 0 * context], 1))
    assert not torch.allclose(change[0], change[1])  # a head behind features and context would add the same to both


# ---------------------------------------------------------------------- preprocessing


def test_log1p_of_counts_and_its_context():
    x = torch.tensor([[0.0, 1.0, 1e6, -5.0, 7.0]])
    features = Preprocess("log1p", nn.Identity(), context_features=2)(x)
    torch.testing.assert_close(features, torch.tensor([[0.0, math.log(2), math.log(1e6 + 1), -5.0, 7.0]]))
    assert Preprocess("log1p", nn.Identity())(torch.tensor([-5.0])) == -math.log(6)


def test_normalised_rows_sum_to_one_and_empty_ones_stay_empty():
    x = torch.tensor([[1.0, 3.0, 0.0, 9.0], [0.0, 0.0, 0.0, 9.0], [0.001, 0.0, 0.0, 9.0]])
    features = Preprocess("normalise", nn.Identity(), context_features=1)(x)
    expected = torch.tensor([[0.25, 0.75, 0.0, 9.0], [0.0, 0.0, 0.0, 9.0], [1.0, 0.0, 0.0, 9.0]])
    torch.testing.assert_close(features, expected)


def test_unit_takes_bounds_to_0_and_1_whatever_their_dtype():
    x = torch.tensor([[0.0, 51.0, 255.0, 7.0]])
    module = Preprocess("unit", nn.Identity(), context_features=1, bounds=(0, 255))
    torch.testing.assert_close(module(x), torch.tensor([[0.0, 0.2, 1.0, 7.0]]))
    assert module.double()(x.double())[0, 1] == 0.2
    assert module.state_dict() == {}  # what an experiment file says again
    own = Preprocess("unit", nn.Identity(), bounds=(torch.tensor([1, 0, 3]), torch.tensor([5, 2, 3])))
    assert own(torch.tensor([[2.0, 2.0, 3.0]])).tolist() == [[0.25, 1.0, 0.0]]  # a cell of one value: 0


def test_columns_each_have_their_own_function():
    columns = ("raw", "log1p", 3, (2.0, 6.0))
    x = torch.tensor([[-0.7, 4.0, 2.0, 3.0, 9.0], [0.5, 0.0, 0.0, 6.0, 9.0]])
    module = Preprocess("columns", nn.Identity(), context_features=1, columns=columns)
    expected = [[-0.7, math.log(5), 0.0, 0.0, 1.0, 0.25, 9.0], [0.5, 0.0, 1.0, 0.0, 0.0, 1.0, 9.0]]
    torch.testing.assert_close(module(x), torch.tensor(expected))
    assert module.in_features == 5
    assert Preprocess.width(columns) == 6
    assert module(x.reshape(2, 1, 5)).shape == (2, 1, 7)


def test_positive_numbers_have_one_scale_whatever_their_unit():
    x = torch.randn(500, 2).mul(torch.tensor([0.1, 2.0])).exp()
    for unit in (1e-6, 1.0, 1e6):
        module = Preprocess("columns", nn.Identity(), columns=("raw", "log", "log"))
        rows = torch.cat([torch.zeros(500, 1), unit * x], 1)
        rows[:5, 1] = torch.nan
        features = module.fit(rows)(torch.cat([torch.full((500, 1), 7.0), unit * x], 1))
        assert (features[:, 0] == 7).all()
        torch.testing.assert_close(features[:, 1:].mean(0), torch.zeros(2), atol=0.1, rtol=0)
        assert (features[:, 1:].std(0) > 0.7).all()
        far = module(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1e9 * unit, 1e9 * unit]]))
        assert (far.abs() < 8).all()
        assert (far[0, 1:] < features[:, 1:].amin(0)).all()


def test_codes_are_one_hot_and_between_them_a_mixture_with_gradients():
    module = Preprocess("columns", nn.Identity(), columns=(4,))
    assert torch.equal(module(torch.arange(4.0).unsqueeze(-1)), torch.eye(4))
    between = torch.tensor([[1.25]], requires_grad=True)
    features = module(between)
    assert features.tolist() == [[0.0, 0.75, 0.25, 0.0]]
    assert torch.autograd.grad(features[0, 2], between)[0] == 1
    assert module(torch.tensor([[-9.0], [9.0]])).tolist() == [[0.0] * 4] * 2


# ---------------------------------------------------------------------- what an experiment file says


def rebuilt(network, context_features=0):
    """The network that an experiment file with ``network.to_spec()`` builds."""
    spec = NetworkSpec.model_validate(network.to_spec())
    assert spec == NetworkSpec.of(network)
    assert spec.to_spec() == network.to_spec()
    if isinstance(network, ConvDecoder):
        num_parameters = network.out_features // math.prod(SMALL[0])
        decoder, head = spec.build_decoder(network.in_features, SMALL[0], num_parameters)
        assert head is None
        return decoder
    return spec.build_encoder(network.in_features - context_features, SMALL[0], context_features)


def test_spec_round_trip(network):
    other = rebuilt(network, getattr(network, "context_features", 0))
    assert type(other) is type(network)
    other.load_state_dict(network.state_dict())
    x = torch.randn(4, network.in_features)
    assert torch.equal(other(x), network(x))
    assert other.to_spec() == network.to_spec()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("build", [mlp, gated_mlp, residual_mlp], ids=["mlp", "gated", "residual"])
def test_spec_names_every_activation(build, name):
    network = build(6, 5, activation=ACTIVATIONS[name])
    other = rebuilt(network)
    other.load_state_dict(network.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(other(x), network(x))


@pytest.mark.parametrize(
    ("network", "spec"),
    [
        (mlp(6, 5), {"mlp": [5]}),
        (mlp(6, 5, activation=nn.ReLU), {"mlp": [5], "activation": "relu"}),
        (gated_mlp(6, 5, 4), {"gated": [5, 4]}),
        (residual_mlp(6, 5, blocks=2), {"residual": [5], "blocks": 2}),
        (conv_encoder((1, 8, 8), 3, 4), {"conv": [3, 4]}),
        (residual_conv_decoder(2, (1, 8, 8), 4, 3, activation=nn.ELU), {"residual_conv": [4, 3], "activation": "elu"}),
        (Preprocess("log1p", mlp(6, 5)), {"mlp": [5], "input": "log1p"}),
    ],
    ids=str,
)
def test_spec_leaves_defaults_out(network, spec):
    assert network.to_spec() == spec_of(network) == spec


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp(6, 0), r"mlp: layer sizes are positive integers, got \(6, 0\)"),
        (lambda: mlp(6, 2.5), r"mlp: layer sizes are positive integers"),
        (lambda: gated_mlp(6, -1), r"gated_mlp: layer sizes are positive integers, got \(6, -1\)"),
        (lambda: residual_mlp(6, 0), r"residual_mlp: layer sizes are positive integers"),
        (lambda: residual_mlp(6), r"residual_mlp: expected at least one width"),
        (lambda: residual_mlp(6, 5, blocks=0), r"residual_mlp: `blocks` is an integer of at least 1, got `0`"),
        (lambda: residual_conv_encoder((1, 8, 8), 4, blocks=0), r"`blocks` is an integer of at least 1"),
        (lambda: residual_conv_decoder(2, (1, 8, 8), 4, blocks=0), r"`blocks` is an integer of at least 1"),
        (lambda: conv_encoder((28, 28), 4), r"image_shape is \(channels, height, width\).*got \(28, 28\)"),
        (lambda: conv_encoder((1, 28, 28)), r"channels are one positive integer for each convolution, got \(\)"),
        (lambda: conv_encoder((1, 28, 6), 2, 2, 2), r"3 convolutions halve .* 28 x 6 to nothing; use at most 2"),
        (lambda: conv_encoder((1, 8, 8), 4, context_features=-1), r"`context_features` is an integer of at least 0"),
        (lambda: conv_encoder((1, 8, 8), 4, context_features=2)(torch.zeros(5, 64)), r"\(\.\.\., 66\).*got \(5, 64\)"),
        (lambda: conv_decoder(4, (1, 28, 28), -1), r"channels are one positive integer"),
        (lambda: conv_decoder(4, (1, 3, 3), 2, 2), r"2 convolutions halve an image of 3 x 3 to nothing"),
        (lambda: conv_decoder(4, (1, 8, 8), 2, num_parameters=0), r"`num_parameters` is an integer of at least 1"),
        (lambda: conv_decoder(0, (1, 8, 8), 2), r"`in_features` is an integer of at least 1"),
        (lambda: Preprocess("log1", mlp(6)), r"Preprocess: unknown kind `log1`; did you mean `log1p`"),
        (lambda: Preprocess("unit", mlp(6)), r"Preprocess: `unit` needs `bounds`"),
        (lambda: Preprocess("columns", mlp(6)), r"Preprocess: `columns` needs `columns`"),
        (lambda: Preprocess("log", mlp(6)), r"Preprocess: `log` needs `cells`"),
        (lambda: Preprocess("log1p", mlp(6), bounds=(0, 1)), r"`log1p` has no `bounds`; `bounds` are for `unit`"),
        (lambda: Preprocess("unit", mlp(6), bounds=(0, 1), columns=("raw",)), r"`unit` has no `columns`"),
        (lambda: Preprocess("columns", mlp(6), columns=("raw", 1)), r"a column is `raw`, .*got `1`"),
        (lambda: Preprocess("columns", mlp(6), columns=((2.0, 2.0),)), r"a pair of bounds, got `\(2.0, 2.0\)`"),
        (lambda: Preprocess("columns", mlp(6), columns=("logs",)), r"a column is .*got `'logs'`"),
        (lambda: mlp(6, 5, activation=nn.PReLU).to_spec(), r"activation `PReLU` has no name .*use one of elu"),
        (lambda: conv_encoder((1, 8, 8), 3, activation=lambda: nn.ELU(2.0)).to_spec(), r"`<lambda>` has no name"),
        (lambda: spec_of(nn.Linear(3, 4)), r"cannot describe `Linear`; give it a method `to_spec`"),
        (lambda: Preprocess("log1p", nn.Linear(3, 4)).to_spec(), r"cannot describe `Linear`"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(InputError, match=message):
        build()
