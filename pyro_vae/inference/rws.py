r"""Reweighted wake-sleep."""

from __future__ import annotations

from typing import ClassVar

import torch

from pyro_vae.batch import Batch
from pyro_vae.inference.interface import Inference, Loss, check_count, check_number, surrogate
from pyro_vae.inference.requirements import unshared
from pyro_vae.inference.wake_sleep import sleep_loss
from pyro_vae.inference.weights import fixed_log_prob, log_mean_exp
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class RWS(Inference):
    r"""Reweighted wake-sleep; the weights are normalised for each datum separately.

    .. math::
        \text{wake theta:}\quad & \log \frac{1}{K} \sum_k w_k \\
        \text{wake phi:}\quad & \sum_k \tilde w_k \log q_\phi(z_k|x), \qquad \tilde w_k = w_k \Big/ \sum_j w_j \\
        \text{sleep phi:}\quad & \log q_\phi(z|x'), \qquad (z, x') \sim p_\theta

    No gradient passes through z, so discrete latents are allowed. The theta gradient is that of `IWAE`. The phi
    gradient descends KL(p(z|x) || q(z|x)): with K weighted draws on data (wake), and without bias on draws from the
    model (sleep).

    Arguments:
        num_particles: K, draws of z for each datum.
        insomnia: Share of wake phi in the phi loss; the rest is sleep phi.

    Reference: Bornschein and Bengio, "Reweighted wake-sleep", 2015, equations 6 and 7; Le et al., "Revisiting
    reweighted wake-sleep for models with stochastic control flow", 2019, section 3.

    Example:
        >>> RWS(insomnia=0.5)
        RWS(num_particles=5, insomnia=0.5)
    """

    name: ClassVar[str] = "rws"
    needs = (unshared,)

    def __init__(self, num_particles: int = 5, insomnia: float = 0.5) -> None:
        super().__init__()
        self.num_particles = check_count("RWS", "num_particles", num_particles)
        self.insomnia = check_number("RWS", "insomnia", insomnia, 0.0, 1.0)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the bound, with the three gradients above; see `Loss`."""
        q = vae.posterior_given(batch)
        with torch.no_grad():
            z = q.sample((self.num_particles,))
        log_q, log_joint = fixed_log_prob(q, z), vae.log_joint_of(z, batch)
        log_weights = (log_joint - log_q).detach()
        bound = batch.mean(log_mean_exp(log_weights))
        share = log_weights.softmax(0)
        prior = vae.log_parameter_prior_per_datum()
        followed = -batch.mean((share * log_joint).sum(0)) - prior
        if self.insomnia > 0:
            followed = followed - self.insomnia * batch.mean((share * log_q).sum(0))
        if self.insomnia < 1:
            followed = followed + (1 - self.insomnia) * sleep_loss(vae, batch)
        return Loss(surrogate(-(bound + prior), followed), bound)
