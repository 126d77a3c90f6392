r"""The combination of the ELBO with the importance-weighted bound."""

from __future__ import annotations

from typing import ClassVar

from pyro_vae.batch import Batch
from pyro_vae.inference.interface import Inference, Loss, check_count, check_number
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.inference.weights import log_mean_exp
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class CIWAE(Inference):
    r"""A mix of the ELBO and the importance-weighted bound.

    .. math:: \beta \, \frac{1}{K} \sum_k \log w_k + (1 - \beta) \log \frac{1}{K} \sum_k w_k

    It is a lower bound for every beta: `IWAE` at 0, `AEVB` with K particles at 1. The ELBO gives phi a useful gradient
    where the gradient of the tight bound is mostly noise.

    Arguments:
        num_particles: K, draws of z for each datum.
        beta: Share of the ELBO, from 0 to 1.

    Reference: Rainforth et al., "Tighter variational bounds are not necessarily better", 2018, section 5.

    Example:
        >>> CIWAE(beta=0.05)
        CIWAE(num_particles=5, beta=0.05)
    """

    name: ClassVar[str] = "ciwae"
    trains_globals: ClassVar[bool] = True
    needs = PATHWISE

    def __init__(self, num_particles: int = 5, beta: float = 0.5) -> None:
        super().__init__()
        self.num_particles = check_count("CIWAE", "num_particles", num_particles)
        self.beta = check_number("CIWAE", "beta", beta, 0.0, 1.0)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the mixed bound; see `Loss`."""
        log_weights = vae.log_weights_of(batch, self.num_particles)
        bound = batch.mean(self.beta * log_weights.mean(0) + (1 - self.beta) * log_mean_exp(log_weights))
        return Loss(-(bound + vae.log_parameter_prior_per_datum()), bound.detach())
