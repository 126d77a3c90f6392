r"""A network in an experiment file: ``{mlp: [200]}`` or ``{conv: [32, 64]}``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.named import Strict
from pyro_vae.networks import conv_decoder, conv_encoder, mlp

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class NetworkSpec(Strict):
    """Either hidden layers (`mlp`) or convolution channels (`conv`, for images)."""

    mlp: list[PositiveInt] | None = None
    conv: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    activation: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> NetworkSpec:
        if (self.mlp is None) == (self.conv is None):
            raise ValueError("expected exactly one of `mlp: [sizes of hidden layers]` and `conv: [channels]`")
        if self.activation is not None and self.activation not in _ACTIVATIONS:
            raise ValueError(f"unknown activation `{self.activation}`; {near_match(self.activation, _ACTIVATIONS)}")
        return self

    def _activation(self, default: type[nn.Module]) -> type[nn.Module]:
        return default if self.activation is None else _ACTIVATIONS[self.activation]

    def build_encoder(self, in_features: int, image_shape: Sequence[int] | None) -> nn.Module:
        """Returns the encoder of flattened data."""
        if self.mlp is not None:
            return mlp(in_features, *self.mlp, activation=self._activation(nn.Tanh))
        shape, channels = self._image(image_shape)
        return conv_encoder(shape, *channels, activation=self._activation(nn.ReLU))

    def build_decoder(
        self, in_features: int, image_shape: Sequence[int] | None, num_parameters: int
    ) -> tuple[nn.Module, str | None]:
        """Returns the decoder of latents, and the head that `Conditional` adds."""
        if self.mlp is not None:
            return mlp(in_features, *self.mlp, activation=self._activation(nn.Tanh)), "linear"
        shape, channels = self._image(image_shape)
        activation = self._activation(nn.ReLU)
        return conv_decoder(in_features, shape, *channels, num_parameters=num_parameters, activation=activation), None

    def _image(self, image_shape: Sequence[int] | None) -> tuple[tuple[int, ...], list[int]]:
        """(C, H, W) and the channels."""
        if image_shape is None or len(image_shape) < 2:
            raise InputError("networks: `conv` is for images, and these data are a table; use `mlp`.")
        *channels, height, width = image_shape
        if len(image_shape) == 3 and width in (1, 3, 4) and height > 4:
            raise InputError(
                f"networks: images of shape {tuple(image_shape)} look like height x width x channels; give them "
                "channels first, as (channels, height, width)."
            )
        return (math.prod(channels), height, width), list(self.conv or [])
