r"""The partially importance-weighted autoencoder."""

from __future__ import annotations

from typing import ClassVar

import torch

from pyro_vae.batch import Batch
from pyro_vae.inference.interface import Inference, Loss, check_count, surrogate
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.inference.weights import log_mean_exp
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class PIWAE(Inference):
    r"""A tight bound for theta and a less noisy one for phi, on the same draws of z.

    .. math::
        \text{theta:}\quad \log \frac{1}{MK} \sum_{mk} w_{mk}, \qquad
        \text{phi:}\quad \frac{1}{M} \sum_m \log \frac{1}{K} \sum_k w_{mk}

    The theta gradient is that of `IWAE` with MK particles, the phi gradient that of `MIWAE`. The decoder runs forward
    once and backward twice.

    Arguments:
        num_outer: M, number of bounds in the mean for phi.
        num_particles: K, draws of z in each of these bounds.

    Reference: Rainforth et al., "Tighter variational bounds are not necessarily better", 2018, section 5.

    Example:
        >>> PIWAE(num_outer=4, num_particles=16)
        PIWAE(num_outer=4, num_particles=16)
    """

    name: ClassVar[str] = "piwae"
    trains_globals: ClassVar[bool] = True
    needs = PATHWISE

    def __init__(self, num_outer: int = 8, num_particles: int = 8) -> None:
        super().__init__()
        self.num_particles = check_count("PIWAE", "num_particles", num_particles)
        self.num_outer = check_count("PIWAE", "num_outer", num_outer)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the bound of theta; see `Loss`."""
        q = vae.posterior_given(batch)
        z = q.rsample((self.num_outer * self.num_particles,))
        log_q = q.log_prob(z)
        at = z.detach().requires_grad_()
        log_joint = vae.log_joint_of(at, batch)
        bound = batch.mean(log_mean_exp(log_joint - log_q.detach()))
        of_phi = batch.mean(
            log_mean_exp((log_joint - log_q).reshape(self.num_outer, self.num_particles, batch.size), 1)
        )
        # Phi reaches its bound through z in log p(x, z), and through log q; not where the posterior is frozen.
        ways = [(place, way) for place, way in ((at, z), (log_q, log_q)) if way.requires_grad]
        slopes = torch.autograd.grad(of_phi, [place for place, _ in ways], retain_graph=True) if ways else ()
        followed = bound + sum((slope * way).sum() for slope, (_, way) in zip(slopes, ways, strict=True))
        prior = vae.log_parameter_prior_per_datum()
        return Loss(surrogate(-(bound + prior), -(followed + prior)), bound.detach())
