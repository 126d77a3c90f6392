r"""The hand-derived estimator: the ELBO with its KL in closed form, in plain torch."""

from __future__ import annotations

from typing import ClassVar

from pyro_vae.batch import Batch
from pyro_vae.distributions.kl import kl
from pyro_vae.inference.interface import Inference, Loss, check_count
from pyro_vae.inference.requirements import PATHWISE, closed_form_kl
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class AnalyticKL(Inference):
    r"""The hand-derived estimator of the ELBO: KL in closed form, reconstruction by Monte Carlo, without `pyro.infer`.

    .. math:: \tilde{\mathcal{L}}^B = -\mathrm{KL}(q(z|x) \| p(z)) + \frac{1}{K} \sum_k \log p(x|z_k)

    Value and gradient have the same expectations as those of `AEVB`. The variance is smaller if the variance of the
    Monte Carlo KL is more than twice its covariance with the reconstruction, as it is early in training. The KL is
    never sampled.

    Arguments:
        num_particles: K, draws of z for each datum.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, equation 7 (estimator B) and equation 10.

    Example:
        >>> AnalyticKL()
        AnalyticKL(num_particles=1)
    """

    name: ClassVar[str] = "analytic-kl"
    trains_globals: ClassVar[bool] = True
    needs = (*PATHWISE, closed_form_kl)

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__()
        self.num_particles = check_count("AnalyticKL", "num_particles", num_particles)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the ELBO; see `Loss`."""
        q = vae.posterior_given(batch)
        z = q.rsample((self.num_particles,))
        elbo = batch.mean(vae.log_likelihood_of(z, batch)) - batch.mean(kl(q, vae.prior_given(batch), z))
        return Loss(-(elbo + vae.log_parameter_prior_per_datum()), elbo.detach())
