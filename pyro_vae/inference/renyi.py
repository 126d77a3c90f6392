r"""The variational Rényi bound."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.inference.interface import Inference, Loss, check_count, check_number
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Renyi(Inference):
    r"""The variational Rényi bound, computed from the weights of each datum separately.

    .. math:: \hat{\mathcal{L}}_\alpha = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k w_k^{1 - \alpha}

    It is `AEVB` at alpha = 1 and `IWAE` at alpha = 0; other bounds lie between these. At K = 1 all are the ELBO.

    Arguments:
        alpha: Order of the bound, from 0 to 1, where the estimate is a lower bound in expectation. Below 0 it may
            exceed log p(x); above 1 its bias has the other sign.
        num_particles: K, draws of z for each datum.

    Reference: Li and Turner, "Rényi divergence variational inference", 2016, equation 10.

    Example:
        >>> Renyi(alpha=0.2)
        Renyi(alpha=0.2, num_particles=5)
    """

    name: ClassVar[str] = "renyi"
    trains_globals: ClassVar[bool] = True
    needs = PATHWISE

    def __init__(self, alpha: float = 0.5, num_particles: int = 5) -> None:
        super().__init__()
        self.alpha = check_number("Renyi", "alpha", alpha, 0.0, 1.0)
        self.num_particles = check_count("Renyi", "num_particles", num_particles)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the bound; see `Loss`."""
        log_weights = vae.log_weights_of(batch, self.num_particles)
        bound = batch.mean(_log_power_mean(log_weights, 1 - self.alpha))
        return Loss(-(bound + vae.log_parameter_prior_per_datum()), bound.detach())


def _log_power_mean(log_weights: Tensor, power: float) -> Tensor:
    """Returns the log of the power mean of K weights, shape ``(B,)``; accurate also near power 0, the mean of logs."""
    if power == 0:
        return log_weights.mean(0)
    largest = log_weights.detach().amax(0)
    excess = (power * (log_weights - largest)).expm1().mean(0)
    return largest + excess.log1p() / power
