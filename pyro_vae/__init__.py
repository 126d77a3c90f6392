"""Variational autoencoders, declared once in Pyro, trained and compared by any inference algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vae import datasets as datasets
    from pyro_vae import distributions as distributions
    from pyro_vae import engine as engine
    from pyro_vae import evaluation as evaluation
    from pyro_vae import experiment as experiment
    from pyro_vae import inference as inference
    from pyro_vae import networks as networks
    from pyro_vae import plots as plots
    from pyro_vae import training as training
    from pyro_vae.batch import Batch as Batch
    from pyro_vae.comparison.compare import compare as compare
    from pyro_vae.comparison.folder import load as load
    from pyro_vae.comparison.folder import load_inference as load_inference
    from pyro_vae.comparison.trained_vae import TrainedVAE as TrainedVAE
    from pyro_vae.distributions.discretized_logistic import DiscretizedLogisticMixture as DiscretizedLogisticMixture
    from pyro_vae.distributions.von_mises_fisher import SphericalUniform as SphericalUniform
    from pyro_vae.distributions.von_mises_fisher import VonMisesFisher as VonMisesFisher
    from pyro_vae.engine.svi.svi import CompiledSVI as CompiledSVI
    from pyro_vae.evaluation.arviz_export import to_arviz as to_arviz
    from pyro_vae.evaluation.estimate import Estimate as Estimate
    from pyro_vae.experiment.experiment import Experiment as Experiment
    from pyro_vae.networks.convolution import conv_decoder as conv_decoder
    from pyro_vae.networks.convolution import conv_encoder as conv_encoder
    from pyro_vae.networks.gated import gated_mlp as gated_mlp
    from pyro_vae.networks.mlp import mlp as mlp
    from pyro_vae.networks.residual import residual_conv_decoder as residual_conv_decoder
    from pyro_vae.networks.residual import residual_conv_encoder as residual_conv_encoder
    from pyro_vae.networks.residual import residual_mlp as residual_mlp
    from pyro_vae.program.auto_guide import auto_guide as auto_guide
    from pyro_vae.program.program import Program as Program
    from pyro_vae.training.fit import fit as fit
    from pyro_vae.training.history import History as History
    from pyro_vae.training.options import Training as Training
    from pyro_vae.vae.conditional import Conditional as Conditional
    from pyro_vae.vae.flow import Flow as Flow
    from pyro_vae.vae.hierarchy import Hierarchy as Hierarchy
    from pyro_vae.vae.hierarchy import Reads as Reads
    from pyro_vae.vae.mixed import Column as Column
    from pyro_vae.vae.mixed import Mixed as Mixed
    from pyro_vae.vae.mixture import Mixture as Mixture
    from pyro_vae.vae.sources import Fixed as Fixed
    from pyro_vae.vae.sources import Learned as Learned
    from pyro_vae.vae.sources import Network as Network
    from pyro_vae.vae.vae import VAE as VAE
    from pyro_vae.vae.vamp_prior import VampPrior as VampPrior

# The file that defines each public name. It is imported when the name is first asked for, not by `import pyro_vae`.
_FILES = {
    "Batch": "batch",
    "Column": "vae.mixed",
    "CompiledSVI": "engine.svi.svi",
    "Conditional": "vae.conditional",
    "DiscretizedLogisticMixture": "distributions.discretized_logistic",
    "Estimate": "evaluation.estimate",
    "Experiment": "experiment.experiment",
    "Fixed": "vae.sources",
    "Flow": "vae.flow",
    "Hierarchy": "vae.hierarchy",
    "History": "training.history",
    "Learned": "vae.sources",
    "Mixed": "vae.mixed",
    "Mixture": "vae.mixture",
    "Network": "vae.sources",
    "Program": "program.program",
    "Reads": "vae.hierarchy",
    "SphericalUniform": "distributions.von_mises_fisher",
    "TrainedVAE": "comparison.trained_vae",
    "Training": "training.options",
    "VAE": "vae.vae",
    "VampPrior": "vae.vamp_prior",
    "VonMisesFisher": "distributions.von_mises_fisher",
    "auto_guide": "program.auto_guide",
    "compare": "comparison.compare",
    "conv_decoder": "networks.convolution",
    "conv_encoder": "networks.convolution",
    "fit": "training.fit",
    "gated_mlp": "networks.gated",
    "load": "comparison.folder",
    "load_inference": "comparison.folder",
    "mlp": "networks.mlp",
    "residual_conv_decoder": "networks.residual",
    "residual_conv_encoder": "networks.residual",
    "residual_mlp": "networks.residual",
    "to_arviz": "evaluation.arviz_export",
}

# Rooms that are reached as attributes, such as `pyro_vae.inference.AEVB`.
_ROOMS = (
    "datasets",
    "distributions",
    "engine",
    "evaluation",
    "experiment",
    "inference",
    "networks",
    "plots",
    "training",
)


def __dir__() -> list[str]:
    return sorted([*_FILES, *_ROOMS])


if not TYPE_CHECKING:  # a type checker reads the imports above; with `__getattr__` it would accept any name
    __all__ = [*_FILES]

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        if name not in _FILES:
            raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
        return value
