r"""Encoder and decoder networks: plain modules from features to features, which know nothing of distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyro_vae.errors import InputError


class MLP(nn.Sequential):
    """Fully connected hidden layers, each followed by an activation; see `mlp`.

    Attributes:
        in_features: Size of the input.
        out_features: Size of the last hidden layer.
        hidden: Sizes of all hidden layers.
        activation: What made the activations.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], activation: Callable[[], nn.Module]) -> None:
        sizes = (in_features, *hidden)
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise InputError(f"mlp: layer sizes are positive integers, got {sizes}.")
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), activation()]
        super().__init__(*layers)
        self.in_features, self.out_features, self.hidden = in_features, sizes[-1], tuple(hidden)
        self.activation = activation


def mlp(in_features: int, *hidden: int, activation: Callable[[], nn.Module] = nn.Tanh) -> MLP:
    """Returns a multilayer perceptron from ``(..., in_features)`` to features ``(..., hidden[-1])``.

    Arguments:
        in_features: Size of the input.
        *hidden: Sizes of the hidden layers. The distribution's parameters are a linear layer on top, which
            `Conditional` adds; with no hidden layer that is a linear model.
        activation: Called once for each hidden layer.

    Example:
        >>> mlp(784, 500, 200).out_features
        200
    """
    return MLP(in_features, hidden, activation)


def _halved(size: int, times: int) -> list[int]:
    """A side's length before and after each strided convolution."""
    sizes = [size]
    for _ in range(times):
        sizes.append(sizes[-1] // 2)
    return sizes


def _check_image(image_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    if len(image_shape) != 3 or not all(isinstance(size, int) and size > 0 for size in image_shape):
        raise InputError(f"image_shape is (channels, height, width), such as (1, 28, 28); got {tuple(image_shape)}.")
    if not channels or not all(isinstance(size, int) and size > 0 for size in channels):
        raise InputError(f"channels are one positive integer for each convolution, got {tuple(channels)}.")
    if min(image_shape[1:]) < 2 ** len(channels):
        raise InputError(
            f"{len(channels)} convolutions halve an image of {image_shape[1]} x {image_shape[2]} to nothing; "
            f"use at most {int(math.log2(min(image_shape[1:])))}."
        )
    return image_shape[0], image_shape[1], image_shape[2]


class ConvEncoder(nn.Module):
    """Strided convolutions over a flattened image; see `conv_encoder`."""

    def __init__(
        self, image_shape: Sequence[int], channels: Sequence[int], activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        depth, height, width = _check_image(image_shape, channels)
        self.image_shape = (depth, height, width)
        layers: list[nn.Module] = []
        for before, after in zip((depth, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1), activation()]
        self.convolutions = nn.Sequential(*layers)
        n = len(channels)
        self.in_features = math.prod(self.image_shape)
        self.out_features = channels[-1] * _halved(height, n)[-1] * _halved(width, n)[-1]

    def forward(self, x: Tensor) -> Tensor:
        features = self.convolutions(x.reshape(-1, *self.image_shape))
        return features.reshape(*x.shape[:-1], self.out_features)


def conv_encoder(
    image_shape: Sequence[int], *channels: int, activation: Callable[[], nn.Module] = nn.ReLU
) -> ConvEncoder:
    """Returns a convolutional encoder from flattened images ``(..., C * H * W)`` to features ``(..., F)``.

    Arguments:
        image_shape: ``(C, H, W)``.
        *channels: Output channels of each 4 x 4 convolution of stride 2; each halves the image, rounding down.
        activation: Called once for each convolution.

    Raises:
        InputError: Where the convolutions would halve the image to nothing.

    Example:
        >>> conv_encoder((1, 28, 28), 32, 64).out_features  # 64 maps of 7 x 7
        3136
    """
    return ConvEncoder(image_shape, channels, activation)


class ConvDecoder(nn.Module):
    """Transposed convolutions to flattened images; see `conv_decoder`."""

    def __init__(
        self,
        in_features: int,
        image_shape: Sequence[int],
        channels: Sequence[int],
        num_parameters: int,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        depth, height, width = _check_image(image_shape, channels)
        n = len(channels)
        heights, widths = _halved(height, n)[::-1], _halved(width, n)[::-1]
        self.start = (channels[0], heights[0], widths[0])
        self.in_features, self.out_features = in_features, num_parameters * depth * height * width
        self.linear = nn.Linear(in_features, math.prod(self.start))
        layers: list[nn.Module] = [activation()]
        outputs = (*channels[1:], num_parameters * depth)
        for i, (before, after) in enumerate(zip(channels, outputs, strict=True)):
            odd = (heights[i + 1] % 2, widths[i + 1] % 2)
            layers.append(nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1, output_padding=odd))
            layers.append(activation())
        self.convolutions = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        maps = self.convolutions(self.linear(z).reshape(-1, *self.start))
        return maps.reshape(*z.shape[:-1], self.out_features)


def conv_decoder(
    in_features: int,
    image_shape: Sequence[int],
    *channels: int,
    num_parameters: int = 1,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> ConvDecoder:
    """Returns a convolutional decoder that emits a distribution's parameters itself; use it with ``head=None``.

    Arguments:
        in_features: Size of the latent (and context) ``(..., L)``.
        image_shape: ``(C, H, W)`` of the images.
        *channels: Input channels of each 4 x 4 transposed convolution of stride 2; each doubles the image.
        num_parameters: Parameters of the likelihood that the network outputs: 1 for Bernoulli logits, 2 for a
            Normal's location and scale. The output is ``(..., num_parameters * C * H * W)``, parameter after
            parameter.
        activation: Called once for each hidden layer.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import Conditional
        >>> decoder = conv_decoder(20, (1, 28, 28), 64, 32)
        >>> likelihood = Conditional(dist.Bernoulli, (1, 28, 28), given=decoder, head=None)
        >>> likelihood(torch.zeros(5, 20)).event_shape
        torch.Size([1, 28, 28])
    """
    return ConvDecoder(in_features, image_shape, channels, num_parameters, activation)
