r"""Encoder and decoder networks: plain modules from features to features, without distributions.

Each network maps ``(..., in_features)`` to ``(..., out_features)`` and has these sizes as attributes. Its method
``to_spec()`` returns its description in an experiment file. None of them normalises over the batch: the output for a
datum must not depend on the other data, or log weights of different data would not be independent.
"""

from pyro_vae.networks.activation import ACTIVATIONS, Activation
from pyro_vae.networks.convolution import ConvDecoder, ConvEncoder, conv_decoder, conv_encoder
from pyro_vae.networks.gated import GatedMLP, gated_mlp
from pyro_vae.networks.log_scale import LogScale
from pyro_vae.networks.mlp import MLP, mlp
from pyro_vae.networks.preprocess import PREPROCESSING, Preprocess
from pyro_vae.networks.residual import ResidualMLP, residual_conv_decoder, residual_conv_encoder, residual_mlp
from pyro_vae.networks.specification import spec_of

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "PREPROCESSING",
    "Activation",
    "ConvDecoder",
    "ConvEncoder",
    "GatedMLP",
    "LogScale",
    "Preprocess",
    "ResidualMLP",
    "conv_decoder",
    "conv_encoder",
    "gated_mlp",
    "mlp",
    "residual_conv_decoder",
    "residual_conv_encoder",
    "residual_mlp",
    "spec_of",
]
