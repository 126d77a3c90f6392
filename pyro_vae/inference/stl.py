r"""Sticking the landing: the ELBO's path derivative."""

from __future__ import annotations

from typing import ClassVar

from pyro_vae.batch import Batch
from pyro_vae.inference.inference import Inference, Loss, check_count
from pyro_vae.inference.needs import reparameterizable
from pyro_vae.inference.weights import path_log_prob
from pyro_vae.vae import VAE


class STL(Inference):
    r"""Sticking the landing: `AEVB` whose phi gradient leaves out the score of q.

    .. math:: \nabla_\phi = E_\epsilon\left[\nabla_z \left(\log p(x, z) - \log q_\phi(z|x)\right) \nabla_\phi z\right]

    Unbiased, and exactly 0 at q = p(z|x), whatever the noise. Not for a q that is far too narrow, as it may be where
    the family is poor: the score that is left out is then a control variate, and `AEVB` has less variance.

    Arguments:
        num_particles: K, draws of z for each datum.

    Reference: Roeder, Wu and Duvenaud, "Sticking the landing: simple, lower-variance gradient estimators for
    variational inference", 2017, equation 8.

    Example:
        >>> STL()
        STL(num_particles=1)
    """

    name: ClassVar[str] = "stl"
    needs = (reparameterizable,)

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__()
        self.num_particles = check_count("STL", "num_particles", num_particles)

    def loss(self, vae: VAE, batch: Batch) -> Loss:
        """Returns minus the ELBO; see `Loss`."""
        q = vae.encode(batch)
        z = q.rsample((self.num_particles,))
        elbo = batch.mean(vae.log_joint(z, batch) - path_log_prob(q, z))
        return Loss(-(elbo + vae.log_parameter_prior_per_datum()), elbo.detach())

    def extra_repr(self) -> str:
        return f"num_particles={self.num_particles}"
