r"""The importance-weighted autoencoder."""

from __future__ import annotations

from typing import ClassVar

from pyro_vae.batch import Batch
from pyro_vae.inference.interface import Inference, Loss, check_count
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.inference.weights import log_mean_exp
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class IWAE(Inference):
    r"""The importance-weighted bound; the weights are normalised for each datum separately.

    .. math:: \mathcal{L}_K = \log \frac{1}{K} \sum_k w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q

    In expectation it does not decrease with K and is never above log p(x). At K = 1 it is `AEVB`.

    The signal-to-noise ratio of its phi gradient falls as 1/sqrt(K): with many particles the gradient of the encoder
    is mostly noise. `DReG`, `MIWAE` and `PIWAE` reduce this noise.

    Arguments:
        num_particles: K, draws of z for each datum.

    Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015, equation 8; Rainforth et
    al., "Tighter variational bounds are not necessarily better", 2018, theorem 1.

    Example:
        >>> IWAE()
        IWAE(num_particles=5)
    """

    name: ClassVar[str] = "iwae"
    trains_globals: ClassVar[bool] = True
    needs = PATHWISE

    def __init__(self, num_particles: int = 5) -> None:
        super().__init__()
        self.num_particles = check_count("IWAE", "num_particles", num_particles)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the bound; see `Loss`."""
        bound = batch.mean(log_mean_exp(vae.log_weights_of(batch, self.num_particles)))
        return Loss(-(bound + vae.log_parameter_prior_per_datum()), bound.detach())
