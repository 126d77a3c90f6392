r"""The multiply importance-weighted autoencoder."""

from __future__ import annotations

from typing import ClassVar

from pyro_vae.batch import Batch
from pyro_vae.inference.interface import Inference, Loss, check_count
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.inference.weights import log_mean_exp
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class MIWAE(Inference):
    r"""The mean of several importance-weighted bounds.

    .. math:: \frac{1}{M} \sum_m \log \frac{1}{K} \sum_k w_{mk}

    Its expectation is the bound of `IWAE` with K particles; the variance of its gradient is 1/M of that of `IWAE`.
    `PIWAE` uses it for phi alone, and a tighter bound for theta.

    Arguments:
        num_outer: M, number of bounds in the mean.
        num_particles: K, draws of z in each bound.

    Reference: Rainforth et al., "Tighter variational bounds are not necessarily better", 2018, section 5.

    Example:
        >>> MIWAE(num_outer=4, num_particles=16)
        MIWAE(num_outer=4, num_particles=16)
    """

    name: ClassVar[str] = "miwae"
    trains_globals: ClassVar[bool] = True
    needs = PATHWISE

    def __init__(self, num_outer: int = 8, num_particles: int = 8) -> None:
        super().__init__()
        self.num_particles = check_count("MIWAE", "num_particles", num_particles)
        self.num_outer = check_count("MIWAE", "num_outer", num_outer)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the bound; see `Loss`."""
        log_weights = vae.log_weights_of(batch, self.num_outer * self.num_particles)
        bound = batch.mean(log_mean_exp(log_weights.reshape(self.num_outer, self.num_particles, -1), 1))
        return Loss(-(bound + vae.log_parameter_prior_per_datum()), bound.detach())
