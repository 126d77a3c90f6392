"""Evaluation of a trained VAE, with errors: log p(x), the ELBO, the gap between them, and the use of the latents.

Differences of several trained candidates have intervals over seeds and data.
"""

from pyro_vae.evaluation.annealed import annealed_importance_sampling
from pyro_vae.evaluation.best_candidate import BestCandidate, best_candidate
from pyro_vae.evaluation.bidirectional import Sandwich, bidirectional_monte_carlo
from pyro_vae.evaluation.calibration import Calibration, simulation_based_calibration
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.gap import InferenceGap, inference_gap
from pyro_vae.evaluation.gradients import GradientNoise, gradient_variance
from pyro_vae.evaluation.importance import elbo, log_marginal
from pyro_vae.evaluation.information import (
    AggregatePosterior,
    RateDistortion,
    aggregate_posterior,
    mutual_information,
    rate_distortion,
)
from pyro_vae.evaluation.interpolation import Interpolation, interpolate
from pyro_vae.evaluation.latent import LatentKL, active_units, kl_per_dimension, latent_kl, posterior_means
from pyro_vae.evaluation.latent_map import latent_map
from pyro_vae.evaluation.paired_differences import Difference, PairedDifferences, paired_differences
from pyro_vae.evaluation.pareto import pareto_k
from pyro_vae.evaluation.posterior_density import posterior_density_estimator
from pyro_vae.evaluation.site_probabilities import site_probabilities
from pyro_vae.evaluation.traversal import Traversal, traverse

__all__ = [
    "AggregatePosterior",
    "BestCandidate",
    "Calibration",
    "Difference",
    "Estimate",
    "GradientNoise",
    "InferenceGap",
    "Interpolation",
    "LatentKL",
    "PairedDifferences",
    "RateDistortion",
    "Sandwich",
    "Traversal",
    "active_units",
    "aggregate_posterior",
    "annealed_importance_sampling",
    "best_candidate",
    "bidirectional_monte_carlo",
    "elbo",
    "gradient_variance",
    "inference_gap",
    "interpolate",
    "kl_per_dimension",
    "latent_kl",
    "latent_map",
    "log_marginal",
    "mutual_information",
    "paired_differences",
    "pareto_k",
    "posterior_density_estimator",
    "posterior_means",
    "rate_distortion",
    "simulation_based_calibration",
    "site_probabilities",
    "traverse",
]
