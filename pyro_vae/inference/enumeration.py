r"""The ELBO of discrete latents, summed exactly over their values."""

from __future__ import annotations

from typing import ClassVar

from pyro_vae.batch import Batch
from pyro_vae.distributions.enumeration import latent_values
from pyro_vae.inference.interface import Inference, Loss
from pyro_vae.inference.requirements import enumerable_latents
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Enumeration(Inference):
    r"""The exact ELBO of latents with few values: a sum over all values instead of draws.

    .. math:: \sum_z q(z|x) \left[\log p(x, z) - \log q(z|x)\right]

    Value and gradient have no Monte Carlo error. The cost grows with the number of joint values, at most 4,096.

    Reference: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", 2014,
    equation 7, which sums over labels in the same way.

    Example:
        >>> Enumeration()
        Enumeration()
    """

    name: ClassVar[str] = "enumeration"
    needs = (enumerable_latents,)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the ELBO; see `Loss`."""
        q = vae.posterior_given(batch)
        z = latent_values(q, "Enumeration")
        log_q = q.log_prob(z)
        probability = log_q.exp()
        possible = probability > 0  # 0 log 0 is 0
        terms = probability * (vae.log_joint_of(z, batch) - log_q).where(possible, 0.0)
        elbo = batch.mean(terms.sum(0))
        return Loss(-(elbo + vae.log_parameter_prior_per_datum()), elbo.detach())
