r"""Encoder and decoder networks: plain modules from features to features, which know nothing of distributions.

Each maps ``(..., in_features)`` to ``(..., out_features)``, has these two as attributes, and says with ``to_spec()``
what an experiment file would say of it. None normalises over the batch: what a datum is mapped to does not depend on
the data beside it, without which log weights per datum would not be independent.
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
