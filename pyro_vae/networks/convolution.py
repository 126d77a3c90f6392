r"""Convolutional encoders and decoders, with or without residual blocks between the convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.networks.activation import Activation, activation_spec
from pyro_vae.networks.residual_block import convolution_block
from pyro_vae.networks.sizes import check_count


def _halved(size: int, times: int) -> list[int]:
    """Returns the length of a side before and after each strided convolution."""
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


def _spec(channels: Sequence[int], activation: Activation, blocks: int) -> dict[str, Any]:
    kind: dict[str, Any] = {"residual_conv": list(channels)} if blocks else {"conv": list(channels)}
    if blocks > 1:
        kind["blocks"] = blocks
    return kind | activation_spec(activation, nn.ReLU)


class ConvEncoder(nn.Module):
    """Strided convolutions over a flattened image; see `conv_encoder` and `residual_conv_encoder`.

    Attributes:
        in_features: Number of cells of an image, plus ``context_features``.
        out_features: Number of cells of the last maps.
        image_shape: Shape of an image, ``(C, H, W)``.
        channels: Output channels of each strided convolution.
        activation: Class or function that makes the activations.
        context_features: Number of covariates at the end of the input.
        blocks: Number of residual blocks after each strided convolution.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        activation: Activation,
        context_features: int = 0,
        blocks: int = 0,
    ) -> None:
        super().__init__()
        depth, height, width = _check_image(image_shape, channels)
        check_count("conv_encoder", "context_features", context_features, 0)
        self.image_shape, self.channels, self.activation = (depth, height, width), tuple(channels), activation
        self.context_features, self.blocks = context_features, blocks
        n = len(channels)
        layers: list[nn.Module] = []
        for before, after in zip((depth, *channels), channels, strict=False):
            layers.append(nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1))
            layers += [convolution_block(after, activation, n * blocks) for _ in range(blocks)]
            layers.append(activation())
        self.convolutions = nn.Sequential(*layers)
        self.context = nn.Linear(context_features, channels[0], bias=False) if context_features else None
        self.in_features = math.prod(self.image_shape) + context_features
        self.out_features = channels[-1] * _halved(height, n)[-1] * _halved(width, n)[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features, shape ``(..., F)``, of flattened images followed by their context."""
        if x.shape[-1] != self.in_features:
            raise InputError(
                f"conv_encoder: expected (..., {self.in_features}), the cells of an image of {self.image_shape} and "
                f"context_features={self.context_features}; got {tuple(x.shape)}."
            )
        cells = self.in_features - self.context_features
        first, *rest = self.convolutions
        maps: Tensor = first(x[..., :cells].reshape(-1, *self.image_shape))
        if self.context is not None:
            shift = self.context(x[..., cells:].reshape(-1, self.context_features))
            maps = maps + shift[:, :, None, None]
        for layer in rest:
            maps = layer(maps)
        return maps.reshape(*x.shape[:-1], self.out_features)

    def to_spec(self) -> dict[str, Any]:
        """Returns the description in an experiment file: ``{"conv": [32, 64]}`` or ``{"residual_conv": [32, 64]}``."""
        return _spec(self.channels, self.activation, self.blocks)


def conv_encoder(
    image_shape: Sequence[int], *channels: int, activation: Activation = nn.ReLU, context_features: int = 0
) -> ConvEncoder:
    """Returns a convolutional encoder from flattened images ``(..., C * H * W)`` to features ``(..., F)``.

    Arguments:
        image_shape: Shape of an image, ``(C, H, W)``.
        *channels: Output channels of each 4 x 4 convolution of stride 2; each halves the image, rounding down.
        activation: Class or function that makes an activation; called once for each convolution.
        context_features: Number of labels or covariates after the image, ``(..., C * H * W + context_features)``. A
            linear map of them is added to every position of the first convolution's maps. Away from the borders, this
            equals constant input maps, at less cost; so the context acts at every position of the image.

    Raises:
        InputError: If the image is too small for so many convolutions.

    Example:
        >>> conv_encoder((1, 28, 28), 32, 64).out_features  # 64 maps of 7 x 7
        3136
        >>> conv_encoder((1, 28, 28), 32, 64, context_features=10).in_features
        794
    """
    return ConvEncoder(image_shape, channels, activation, context_features)


class ConvDecoder(nn.Module):
    """Transposed convolutions to flattened images; see `conv_decoder` and `residual_conv_decoder`.

    Attributes:
        in_features: Size of the latent plus the context.
        out_features: Number of cells of an image times the number of parameters.
        start: Shape of the first maps, ``(C, H, W)``.
        channels: Input channels of each transposed convolution.
        activation: Class or function that makes the activations.
        blocks: Number of residual blocks before each transposed convolution.
    """

    def __init__(
        self,
        in_features: int,
        image_shape: Sequence[int],
        channels: Sequence[int],
        num_parameters: int,
        activation: Activation,
        blocks: int = 0,
    ) -> None:
        super().__init__()
        depth, height, width = _check_image(image_shape, channels)
        check_count("conv_decoder", "in_features", in_features, 1)
        check_count("conv_decoder", "num_parameters", num_parameters, 1)
        n = len(channels)
        heights, widths = _halved(height, n)[::-1], _halved(width, n)[::-1]
        self.start = (channels[0], heights[0], widths[0])
        self.channels, self.activation, self.blocks = tuple(channels), activation, blocks
        self.in_features, self.out_features = in_features, num_parameters * depth * height * width
        self.linear = nn.Linear(in_features, math.prod(self.start))
        layers: list[nn.Module] = []
        outputs = (*channels[1:], num_parameters * depth)
        for i, (before, after) in enumerate(zip(channels, outputs, strict=True)):
            layers += [convolution_block(before, activation, n * blocks) for _ in range(blocks)]
            odd = (heights[i + 1] % 2, widths[i + 1] % 2)
            layers.append(activation())
            layers.append(nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1, output_padding=odd))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Returns flattened images, parameter by parameter, for latents of shape ``(..., in_features)``."""
        maps = self.convolutions(self.linear(z).reshape(-1, *self.start))
        return maps.reshape(*z.shape[:-1], self.out_features)

    def to_spec(self) -> dict[str, Any]:
        """Returns the description in an experiment file: ``{"conv": [64, 32]}`` or ``{"residual_conv": [64, 32]}``."""
        return _spec(self.channels, self.activation, self.blocks)


def conv_decoder(
    in_features: int,
    image_shape: Sequence[int],
    *channels: int,
    num_parameters: int = 1,
    activation: Activation = nn.ReLU,
) -> ConvDecoder:
    """Returns a convolutional decoder that outputs a distribution's parameters itself; use it with ``head=None``.

    Arguments:
        in_features: Size of the latent (and context) ``(..., L)``.
        image_shape: Shape of an image, ``(C, H, W)``.
        *channels: Input channels of each 4 x 4 transposed convolution of stride 2; each doubles the image.
        num_parameters: Number of parameters of the likelihood for each cell: 1 for Bernoulli logits, 2 for a Normal's
            location and scale. The output is ``(..., num_parameters * C * H * W)``, parameter by parameter.
        activation: Class or function that makes an activation; called once for each hidden layer.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import Conditional
        >>> decoder = conv_decoder(20, (1, 28, 28), 64, 32)
        >>> likelihood = Conditional(dist.Bernoulli, (1, 28, 28), given=decoder, head=None)
        >>> likelihood(torch.zeros(5, 20)).event_shape
        torch.Size([1, 28, 28])
    """
    return ConvDecoder(in_features, image_shape, channels, num_parameters, activation)
