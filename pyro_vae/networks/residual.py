r"""Residual networks: fully connected, and convolutional encoders and decoders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.networks.activation import Activation, activation_spec
from pyro_vae.networks.convolution import ConvDecoder, ConvEncoder
from pyro_vae.networks.residual_block import linear_block
from pyro_vae.networks.sizes import check_count, check_sizes


class ResidualMLP(nn.Sequential):
    """Fully connected residual blocks; see `residual_mlp`.

    Attributes:
        in_features: Size of the input.
        out_features: Width of the last blocks.
        hidden: Width of each stage.
        blocks: Number of blocks of each stage.
        activation: Class or function that makes the activations.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], blocks: int, activation: Activation) -> None:
        sizes = (in_features, *hidden)
        check_sizes("residual_mlp", sizes)
        check_count("residual_mlp", "blocks", blocks, 1)
        if not hidden:
            raise InputError("residual_mlp: expected at least one width of residual blocks, got none.")
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            layers.append(nn.Linear(size, next_size))
            layers += [linear_block(next_size, activation, len(hidden) * blocks) for _ in range(blocks)]
            layers.append(activation())
        super().__init__(*layers)
        self.in_features, self.out_features, self.hidden = in_features, sizes[-1], tuple(hidden)
        self.blocks, self.activation = blocks, activation

    def to_spec(self) -> dict[str, Any]:
        """Returns the description in an experiment file: ``{"residual": [256], "blocks": 3}``."""
        blocks = {} if self.blocks == 1 else {"blocks": self.blocks}
        return {"residual": list(self.hidden), **blocks, **activation_spec(self.activation, nn.ReLU)}


def residual_mlp(in_features: int, *hidden: int, blocks: int = 1, activation: Activation = nn.ReLU) -> ResidualMLP:
    r"""Returns fully connected residual blocks from ``(..., in_features)`` to features ``(..., hidden[-1])``.

    A linear map to each width is followed by blocks :math:`y = x + W_2 f(W_1 f(x))` and an activation. There is no
    normalisation: the blocks' initialisation keeps the size of a signal at any depth (see
    `pyro_vae.networks.residual_block.ResidualBlock`).

    Arguments:
        in_features: Size of the input.
        *hidden: Width of each stage; most often a single one. `Conditional` adds a linear layer for the
            distribution's parameters.
        blocks: Number of blocks of each stage; a block has two layers.
        activation: Class or function that makes an activation; called twice for each block and once for each stage.

    Reference: He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016, eq. 3.

    Example:
        >>> residual_mlp(784, 256, blocks=3).to_spec()
        {'residual': [256], 'blocks': 3}
    """
    return ResidualMLP(in_features, hidden, blocks, activation)


def residual_conv_encoder(
    image_shape: Sequence[int],
    *channels: int,
    blocks: int = 1,
    activation: Activation = nn.ReLU,
    context_features: int = 0,
) -> ConvEncoder:
    """Returns a residual convolutional encoder from flattened images ``(..., C * H * W)`` to features ``(..., F)``.

    It is a `conv_encoder` with pre-activation residual blocks of two 3 x 3 convolutions after each strided
    convolution. There is no normalisation (see `pyro_vae.networks.residual_block.ResidualBlock`).

    Arguments:
        image_shape: Shape of an image, ``(C, H, W)``.
        *channels: Output channels of each 4 x 4 convolution of stride 2; each halves the image, rounding down.
        blocks: Number of residual blocks after each strided convolution.
        activation: Class or function that makes an activation; called twice for each block and once for each strided
            convolution.
        context_features: Number of labels or covariates after the image; they are used as in `conv_encoder`.

    Raises:
        InputError: If the image is too small for so many convolutions.

    Reference: He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016, eq. 3.

    Example:
        >>> residual_conv_encoder((1, 28, 28), 32, 64, blocks=2).out_features  # 64 maps of 7 x 7
        3136
    """
    check_count("residual_conv_encoder", "blocks", blocks, 1)
    return ConvEncoder(image_shape, channels, activation, context_features, blocks)


def residual_conv_decoder(
    in_features: int,
    image_shape: Sequence[int],
    *channels: int,
    blocks: int = 1,
    num_parameters: int = 1,
    activation: Activation = nn.ReLU,
) -> ConvDecoder:
    """Returns a residual convolutional decoder that outputs a distribution's parameters; use it with ``head=None``.

    It is a `conv_decoder` with pre-activation residual blocks of two 3 x 3 convolutions before each transposed
    convolution.

    Arguments:
        in_features: Size of the latent (and context) ``(..., L)``.
        image_shape: Shape of an image, ``(C, H, W)``.
        *channels: Input channels of each 4 x 4 transposed convolution of stride 2; each doubles the image.
        blocks: Number of residual blocks before each transposed convolution.
        num_parameters: Number of parameters of the likelihood for each cell, as for `conv_decoder`.
        activation: Class or function that makes an activation; called twice for each block and once for each
            transposed convolution.

    Raises:
        InputError: If the image is too small for so many convolutions.

    Reference: He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016, eq. 3.

    Example:
        >>> residual_conv_decoder(20, (3, 32, 32), 64, 32, num_parameters=2).out_features
        6144
    """
    check_count("residual_conv_decoder", "blocks", blocks, 1)
    return ConvDecoder(in_features, image_shape, channels, num_parameters, activation, blocks)
