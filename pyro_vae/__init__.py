"""Variational autoencoders, declared once in Pyro, trained and compared by any inference algorithm."""

from pyro_vae.batch import Batch
from pyro_vae.comparison.comparison import compare
from pyro_vae.comparison.folder import load, load_inference
from pyro_vae.comparison.trained_vae import TrainedVAE
from pyro_vae.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyro_vae.distributions.von_mises_fisher import SphericalUniform, VonMisesFisher
from pyro_vae.engine import CompiledSVI
from pyro_vae.evaluation import Estimate
from pyro_vae.evaluation.arviz_export import to_arviz
from pyro_vae.experiment import Experiment
from pyro_vae.networks import (
    conv_decoder,
    conv_encoder,
    gated_mlp,
    mlp,
    residual_conv_decoder,
    residual_conv_encoder,
    residual_mlp,
)
from pyro_vae.training.fit import fit
from pyro_vae.training.history import History
from pyro_vae.training.options import Training
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.flow import Flow
from pyro_vae.vae.hierarchy import Hierarchy, Reads
from pyro_vae.vae.mixed import Column, Mixed
from pyro_vae.vae.mixture import Mixture
from pyro_vae.vae.sources import Fixed, Learned, Network
from pyro_vae.vae.vae import VAE
from pyro_vae.vae.vamp_prior import VampPrior

__all__ = [
    "VAE",
    "Batch",
    "Column",
    "CompiledSVI",
    "Conditional",
    "DiscretizedLogisticMixture",
    "Estimate",
    "Experiment",
    "Fixed",
    "Flow",
    "Hierarchy",
    "History",
    "Learned",
    "Mixed",
    "Mixture",
    "Network",
    "Reads",
    "SphericalUniform",
    "TrainedVAE",
    "Training",
    "VampPrior",
    "VonMisesFisher",
    "compare",
    "conv_decoder",
    "conv_encoder",
    "fit",
    "gated_mlp",
    "load",
    "load_inference",
    "mlp",
    "residual_conv_decoder",
    "residual_conv_encoder",
    "residual_mlp",
    "to_arviz",
]
