r"""A network in an experiment file: ``{mlp: [200]}``, ``{conv: [32, 64]}``, ``{module: my_package.nets.Encoder}``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import nn

from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.choices import Strict
from pyro_vae.experiment.encoder_input import EncoderInput
from pyro_vae.experiment.user_code import code_allowed
from pyro_vae.experiment.user_network import accepts, build_user_network, check_path
from pyro_vae.networks.activation import ACTIVATIONS
from pyro_vae.networks.convolution import conv_decoder, conv_encoder
from pyro_vae.networks.gated import gated_mlp
from pyro_vae.networks.mlp import mlp
from pyro_vae.networks.residual import residual_conv_decoder, residual_conv_encoder, residual_mlp
from pyro_vae.networks.specification import spec_of

__all__ = ["NetworkSpec", "code_allowed"]

# The largest size and number of layers or transforms that a file can name, far beyond what memory holds.
MOST = 10_000_000
Size = Annotated[int, Field(gt=0, le=MOST)]
Depth = Annotated[int, Field(gt=0, le=1_000)]
_Sizes = Annotated[list[Size], Field(min_length=1)]
_DENSE: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "gated": gated_mlp, "residual": residual_mlp}
_IMAGE: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "conv": (conv_encoder, conv_decoder),
    "residual_conv": (residual_conv_encoder, residual_conv_decoder),
}
_KINDS = (*_DENSE, *_IMAGE, "module")


class NetworkSpec(Strict):
    """One kind of network with its sizes and options.

    Attributes:
        mlp: Sizes of hidden layers; see `pyro_vae.networks.mlp`.
        gated: Sizes of gated hidden layers; see `pyro_vae.networks.gated_mlp`.
        residual: Widths of residual blocks; see `pyro_vae.networks.residual_mlp`.
        conv: Channels, for images; see `pyro_vae.networks.conv_encoder` and `conv_decoder`.
        residual_conv: Channels, for images; see `pyro_vae.networks.residual_conv_encoder` and
            `residual_conv_decoder`.
        module: Import path of the user's own `nn.Module` class. It is called with ``in_features=`` (size of the
            input, with the context) and, if its signature has them, ``image_shape=`` ((C, H, W), None for a table),
            ``context_features=`` (for an encoder) and ``num_parameters=`` (for a decoder, which then outputs the
            parameters of the likelihood itself; otherwise a linear layer is added). Only within `code_allowed`.
        arguments: Further arguments of that class.
        activation: Name in `pyro_vae.networks.ACTIVATIONS`.
        blocks: Number of residual blocks for each width or convolution; 1 by default.
        input: Preprocessing of an encoder's data: ``raw`` or a kind of `pyro_vae.networks.Preprocess`. The default
            depends on the likelihood; see `default_input`. It is ``raw`` for the user's own network.

    Example:
        >>> spec = NetworkSpec.model_validate({"gated": [300, 300]})
        >>> spec.build_encoder(784, None).to_spec()
        {'gated': [300, 300]}
    """

    mlp: list[Size] | None = None
    gated: list[Size] | None = None
    residual: _Sizes | None = None
    conv: _Sizes | None = None
    residual_conv: _Sizes | None = None
    module: str | None = None
    arguments: dict[str, Any] | None = None
    activation: str | None = None
    blocks: Depth | None = None
    input: Literal["log1p", "log", "normalise", "unit", "columns", "raw"] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> NetworkSpec:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                "expected exactly one of `mlp: [sizes of hidden layers]`, `gated: [sizes]`, `residual: [widths]`, "
                "`conv: [channels]`, `residual_conv: [channels]` and `module: my_package.nets.Encoder`; got "
                + (" and ".join(f"`{kind}`" for kind in given) or "none")
            )
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation `{self.activation}`; {near_match(self.activation, ACTIVATIONS)}")
        if self.blocks is not None and self.kind not in ("residual", "residual_conv"):
            raise ValueError(f"`blocks` are those of `residual` and `residual_conv`; `{self.kind}` has none")
        if self.arguments is not None and self.module is None:
            raise ValueError(f"`arguments` are those of `module`; `{self.kind}` has none")
        if self.module is not None:
            if self.activation is not None:
                raise ValueError("`activation` is no key beside `module`; pass it in `arguments`")
            check_path(self.module)
        return self

    @property
    def kind(self) -> str:
        """The kind of network: ``mlp``, ``gated``, ``residual``, ``conv``, ``residual_conv`` or ``module``."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @classmethod
    def of(cls, network: nn.Module) -> NetworkSpec:
        """Returns the specification of a network.

        Raises:
            InputError: If an experiment file cannot describe it.
        """
        with code_allowed():  # the network exists, so its code has run already
            return cls.model_validate(spec_of(network))

    def to_spec(self) -> dict[str, Any]:
        """Returns the description in an experiment file."""
        return self.model_dump(mode="json", exclude_none=True)

    def build_encoder(
        self,
        in_features: int,
        image_shape: Sequence[int] | None,
        context_features: int = 0,
        data: EncoderInput | None = None,
    ) -> nn.Module:
        """Returns the encoder of flattened data followed by their context.

        Arguments:
            in_features: D, the size of flattened data.
            image_shape: Shape of an image, ``(C, H, W)`` or ``(H, W)``; None for a table.
            context_features: C, the size of the context. The network maps ``(..., D + C)`` to features.
            data: Description of the data; by default there is none, and the data are not preprocessed.

        Raises:
            InputError: If the network cannot be made for these sizes, or ``input`` does not fit the data.
        """
        data = EncoderInput() if data is None else data
        kind = data.kind(self.input, own=self.module is not None)
        width = data.width(kind, in_features)
        network = self._encoder(width, None if kind == "columns" else image_shape, context_features)
        return data.preprocessed(network, kind, context_features, in_features)

    def _encoder(self, in_features: int, image_shape: Sequence[int] | None, context_features: int) -> nn.Module:
        width = in_features + context_features
        if self.module is not None:
            sizes = {
                "in_features": width,
                "image_shape": _channels_first(image_shape),
                "context_features": context_features,
            }
            return build_user_network(self.module, self.arguments or {}, sizes)
        if self.kind in _DENSE:
            return _DENSE[self.kind](width, *getattr(self, self.kind), **self._options())
        shape, channels = self._image(image_shape)
        return _IMAGE[self.kind][0](shape, *channels, context_features=context_features, **self._options())

    def build_decoder(
        self, in_features: int, image_shape: Sequence[int] | None, num_parameters: int
    ) -> tuple[nn.Module, str | None]:
        """Returns the decoder of latents, and the head that `Conditional` adds.

        Arguments:
            in_features: L, the size of the latent plus the context.
            image_shape: Shape of an image, ``(C, H, W)`` or ``(H, W)``; None for a table.
            num_parameters: Number of values for each cell of x, for a decoder that outputs the likelihood's parameters
                itself.

        Raises:
            InputError: If the network cannot be made for these sizes.
        """
        if self.input is not None:
            raise InputError(f"networks: `input: {self.input}` is for an encoder; a decoder receives latents.")
        if self.module is not None:
            return self._user_decoder(self.module, in_features, image_shape, num_parameters)
        if self.kind in _DENSE:
            return _DENSE[self.kind](in_features, *getattr(self, self.kind), **self._options()), "linear"
        shape, channels = self._image(image_shape)
        build = _IMAGE[self.kind][1]
        return build(in_features, shape, *channels, num_parameters=num_parameters, **self._options()), None

    def check_features(self) -> None:
        """Raises an `InputError` if this kind of decoder outputs parameters itself, without a linear layer."""
        if self.input is not None:
            raise InputError(f"networks: `input: {self.input}` is for an encoder; a decoder receives latents.")
        emits = self.kind in _IMAGE or (self.module is not None and accepts(self.module, "num_parameters"))
        if emits:
            raise InputError(
                f"networks: as a decoder `{self.module or self.kind}` emits the parameters of one family for each cell "
                "itself, but a mixture, a flow or `mixed` needs a linear layer on top; use `mlp`, `gated` or "
                "`residual`, or a single family."
            )

    def _user_decoder(
        self, path: str, in_features: int, image_shape: Sequence[int] | None, num_parameters: int
    ) -> tuple[nn.Module, str | None]:
        shape = _channels_first(image_shape)
        emits = accepts(path, "num_parameters")
        if emits and shape is None:
            raise InputError(
                f"networks: `{path}` has the argument `num_parameters`, so it emits maps of parameters, but these data "
                "are a table; leave that argument out and return features: a linear layer is added."
            )
        sizes = {"in_features": in_features, "image_shape": shape, "num_parameters": num_parameters}
        expected = num_parameters * math.prod(shape) if emits and shape is not None else None
        network = build_user_network(path, self.arguments or {}, sizes, expected)
        return network, None if emits else "linear"

    def _options(self) -> dict[str, Any]:
        """Returns the declared options; for others, each network has its own defaults."""
        options: dict[str, Any] = {} if self.blocks is None else {"blocks": self.blocks}
        return options if self.activation is None else {**options, "activation": ACTIVATIONS[self.activation]}

    def _image(self, image_shape: Sequence[int] | None) -> tuple[tuple[int, int, int], list[int]]:
        """Returns (C, H, W) and the channels."""
        shape = _channels_first(image_shape)
        if shape is None:
            raise InputError(
                f"networks: `{self.kind}` is for images, but these data are a table; use `mlp`, `gated` or `residual`."
            )
        _, height, width = shape
        if image_shape is not None and len(image_shape) == 3 and width in (1, 3, 4) and height > 4:
            raise InputError(
                f"networks: images of shape {tuple(image_shape)} look like height x width x channels; give them "
                "channels first, as (channels, height, width)."
            )
        return shape, list(getattr(self, self.kind))


def _channels_first(image_shape: Sequence[int] | None) -> tuple[int, int, int] | None:
    """Returns (C, H, W), or None for a table."""
    if image_shape is None or len(image_shape) < 2:
        return None
    *channels, height, width = image_shape
    return math.prod(channels), height, width
