"""What a trained VAE is worth: log p(x), the ELBO and the use of its latents, each with its error."""

from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.importance import elbo, log_marginal
from pyro_vae.evaluation.latent import active_units, kl_per_dimension, posterior_means
from pyro_vae.evaluation.pareto import pareto_k

__all__ = [
    "Estimate",
    "active_units",
    "elbo",
    "kl_per_dimension",
    "log_marginal",
    "pareto_k",
    "posterior_means",
]
