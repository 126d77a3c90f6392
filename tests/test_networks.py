"""Networks: shapes at every image size, leading dimensions, and what is refused."""

import pytest
import torch
from torch import nn

from pyro_vae import conv_decoder, conv_encoder, mlp
from pyro_vae.errors import InputError

IMAGES = [((1, 28, 28), (4, 8)), ((3, 20, 28), (4, 8)), ((1, 105, 105), (2, 3, 4)), ((2, 7, 5), (3, 4))]


def leading_dimensions_are_kept(network, features):
    inputs = torch.randn(3, 5, network.in_features)
    outputs = network(inputs)
    assert outputs.shape == (3, 5, features)
    torch.testing.assert_close(network(inputs[2, 4]), outputs[2, 4])


def test_mlp_has_one_activation_behind_each_layer():
    network = mlp(6, 5, 4, activation=nn.ReLU)
    assert [type(layer) for layer in network] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert (network.in_features, network.hidden, network.out_features) == (6, (5, 4), 4)
    leading_dimensions_are_kept(network, 4)


def test_mlp_without_hidden_layers_is_the_identity():
    network = mlp(6)
    assert network.out_features == 6
    inputs = torch.randn(2, 6)
    assert torch.equal(network(inputs), inputs)


@pytest.mark.parametrize(("image_shape", "channels"), IMAGES, ids=str)
def test_conv_encoder(image_shape, channels):
    network = conv_encoder(image_shape, *channels)
    leading_dimensions_are_kept(network, network.out_features)


@pytest.mark.parametrize(("image_shape", "channels"), IMAGES, ids=str)
@pytest.mark.parametrize("num_parameters", [1, 2])
def test_conv_decoder(image_shape, channels, num_parameters):
    network = conv_decoder(4, image_shape, *channels[::-1], num_parameters=num_parameters)
    leading_dimensions_are_kept(network, num_parameters * image_shape[0] * image_shape[1] * image_shape[2])
    assert network.out_features == num_parameters * image_shape[0] * image_shape[1] * image_shape[2]


def test_image_is_read_in_row_major_order():
    network = conv_encoder((2, 8, 4), 3)
    image = torch.randn(5, 2, 8, 4)
    torch.testing.assert_close(network(image.flatten(1)), network.convolutions(image).flatten(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp(6, 0), r"mlp: layer sizes are positive integers, got \(6, 0\)"),
        (lambda: mlp(6, 2.5), r"mlp: layer sizes are positive integers"),
        (lambda: conv_encoder((28, 28), 4), r"image_shape is \(channels, height, width\).*got \(28, 28\)"),
        (lambda: conv_encoder((1, 28, 28)), r"channels are one positive integer for each convolution, got \(\)"),
        (lambda: conv_encoder((1, 28, 6), 2, 2, 2), r"3 convolutions halve .* 28 x 6 to nothing; use at most 2"),
        (lambda: conv_decoder(4, (1, 28, 28), -1), r"channels are one positive integer"),
        (lambda: conv_decoder(4, (1, 3, 3), 2, 2), r"2 convolutions halve an image of 3 x 3 to nothing"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(InputError, match=message):
        build()
