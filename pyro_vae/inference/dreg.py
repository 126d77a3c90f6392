r"""The doubly reparameterized gradient of the importance-weighted bound."""

from __future__ import annotations

from typing import ClassVar

from pyro_vae.batch import Batch
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.inference.interface import Inference, Loss, check_count, surrogate
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.inference.weights import log_mean_exp, path_log_prob, root_of
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class DReG(Inference):
    r"""The importance-weighted bound of `IWAE` with the doubly reparameterized phi gradient.

    .. math::
        \nabla_\phi = E_\epsilon\left[\sum_k \tilde w_k^2 \, \nabla_{z_k} \log w_k \, \nabla_\phi z_k\right], \qquad
        \nabla_\theta = E_\epsilon\left[\sum_k \tilde w_k \nabla_\theta \log w_k\right], \qquad
        \tilde w_k = w_k \Big/ \sum_j w_j

    It is unbiased for the gradient of the bound, and exactly 0 in phi at q = p(z|x). If q is wider than p(z|x), its
    signal-to-noise ratio rises with many particles, while that of `IWAE` falls. Do not use it if q is much too narrow.
    If q has half the scale of a Normal posterior, its variance is 9 times that of `IWAE` with one particle and 2.6
    times with 64 (2 latents). At 0.6 times the scale, it is 3.2 times with one particle, and not above that of `IWAE`
    from 8 particles on.

    Arguments:
        num_particles: K, draws of z for each datum; with one draw, the algorithm is `STL`.

    Reference: Tucker, Lawson, Gu and Maddison, "Doubly reparameterized gradient estimators for Monte Carlo
    objectives", 2018, equation 8.

    Example:
        >>> DReG()
        DReG(num_particles=5)
    """

    name: ClassVar[str] = "dreg"
    needs = PATHWISE

    def __init__(self, num_particles: int = 5) -> None:
        super().__init__()
        self.num_particles = check_count("DReG", "num_particles", num_particles)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the bound; see `Loss`."""
        q = vae.posterior_given(batch)
        z = q.rsample((self.num_particles,))
        z = q.renewed(z) if isinstance(q, Pushed) else z.clone()  # so that no transform's cache bypasses z
        log_weights = vae.log_joint_of(z, batch) - path_log_prob(q, z)
        share = log_weights.detach().softmax(0)
        root = root_of(q, z)
        if root.requires_grad:
            # The gradient that arrives has one factor of the normalised weight; this is the second.
            shape = (*share.shape, *(1 for _ in root.shape[share.dim() :]))
            root.register_hook(lambda gradient: gradient * share.reshape(shape))
        bound = batch.mean(log_mean_exp(log_weights.detach()))
        followed = batch.mean((share * log_weights).sum(0)) + vae.log_parameter_prior_per_datum()
        return Loss(surrogate(-(bound + vae.log_parameter_prior_per_datum()), -followed), bound)
