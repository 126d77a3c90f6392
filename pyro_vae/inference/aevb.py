r"""Auto-Encoding Variational Bayes: the ELBO with a Monte Carlo KL, by Pyro's own estimator."""

from __future__ import annotations

from typing import ClassVar

from pyro.infer import Trace_ELBO

from pyro_vae.batch import Batch
from pyro_vae.inference.interface import Inference, Loss, check_count
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class AEVB(Inference):
    r"""Auto-Encoding Variational Bayes: `pyro.infer.Trace_ELBO` on the VAE's model and guide.

    .. math:: \tilde{\mathcal{L}}^A = \frac{1}{K} \sum_k \log p(x, z_k) - \log q(z_k|x), \quad z_k = g(\epsilon_k, x)

    The estimate of the ELBO is unbiased; its gradient is pathwise. If KL(q||p) has a closed form, `AnalyticKL` has the
    same expectation and less variance.

    Arguments:
        num_particles: K, draws of z for each datum.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, equation 6 (estimator A).

    Example:
        >>> AEVB(num_particles=5)
        AEVB(num_particles=5)
    """

    name: ClassVar[str] = "aevb"
    trains_globals: ClassVar[bool] = True
    needs = PATHWISE

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__()
        self.num_particles = check_count("AEVB", "num_particles", num_particles)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the ELBO; see `Loss`."""
        if vae.enumerated_sites:  # Trace_ELBO sums over no site
            bound = batch.mean(vae.log_weights_of(batch, self.num_particles).mean(0))
            return Loss(-(bound + vae.log_parameter_prior_per_datum()), bound.detach())
        # max_plate_nesting is given, since finding it out runs model and guide once more.
        elbo = Trace_ELBO(
            self.num_particles,
            max_plate_nesting=vae.max_plate_nesting,
            vectorize_particles=self.num_particles > 1 and vae.vectorized and not vae.has_globals,
        )
        value = elbo.differentiable_loss(vae.model_of, vae.guide_of, batch) / (vae.size or batch.size)
        return Loss(value, -(value + vae.log_parameter_prior_per_datum()).detach())
