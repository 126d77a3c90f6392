r"""Free bits: the KL of each latent dimension counts only above a threshold."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.distributions.kl import kl_of_dimensions
from pyro_vae.inference.interface import Inference, Loss, check_count, check_number
from pyro_vae.inference.requirements import PATHWISE, independent_latents
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class FreeBits(Inference):
    r"""The ELBO, but the KL of each latent dimension (mean over the batch) has no effect below a threshold.

    For a `Program` it is the KL of each site.

    .. math:: \frac{1}{K} \sum_k \log p(x|z_k)
        - \sum_j \max\left(\lambda, E_x \mathrm{KL}(q(z_j|x) \| p(z_j))\right)

    It prevents dimensions from collapsing to the prior early in training. The reported bound is the true ELBO, which is
    never below the objective. Do not use it for a final model that needs fewer dimensions: dimensions at the threshold
    stay there.

    Arguments:
        free_nats: lambda, in nats for each latent dimension.
        num_particles: K, draws of z for each datum.

    Reference: Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016, equation 15.

    Example:
        >>> FreeBits()
        FreeBits(free_nats=0.25, num_particles=1)
    """

    name: ClassVar[str] = "free-bits"
    needs = (*PATHWISE, independent_latents)

    def __init__(self, free_nats: float = 0.25, num_particles: int = 1) -> None:
        super().__init__()
        self.num_particles = check_count("FreeBits", "num_particles", num_particles)
        self.free_nats = check_number("FreeBits", "free_nats", free_nats, 0.0)
        self.register_buffer("held", torch.zeros(()))
        self.held: Tensor

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the objective, and the true ELBO as bound; see `Loss`."""
        q = vae.posterior_given(batch)
        z = q.rsample((self.num_particles,))
        reconstruction = batch.mean(vae.log_likelihood_of(z, batch))
        terms = kl_of_dimensions(q, vae.prior_given(batch), z).reshape(batch.size, -1)
        each = terms.mean(0) if batch.weight is None else (batch.weight.unsqueeze(-1) * terms).mean(0)
        if self.training:
            self.held.copy_((each < self.free_nats).sum())
        value = each.clamp_min(self.free_nats).sum() - reconstruction - vae.log_parameter_prior_per_datum()
        return Loss(value, (reconstruction - each.sum()).detach())

    def remark(self) -> str:
        held = int(self.held)
        if not held:
            return ""
        return (
            f"ended with {held} latent dimension(s) below {self.free_nats:g} free nats, whose KL was not minimised; "
            "the ELBO shown is the true one"
        )
