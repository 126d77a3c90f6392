r"""The beta-VAE: the ELBO with a weight on its KL."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.distributions.kl import kl
from pyro_vae.errors import InputError
from pyro_vae.inference.interface import Inference, Loss, check_count, check_number
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class BetaVAE(Inference):
    r"""The ELBO with its KL weighted by beta, which may rise from 0 over the first steps.

    .. math:: \frac{1}{K} \sum_k \log p(x|z_k) - \beta_t \, \mathrm{KL}(q(z|x) \| p(z)), \qquad
        \beta_t = \beta \min(1, t / \text{warmup})

    The KL is in closed form if there is one. The reported bound is the true ELBO, at beta = 1. With a weight above 1
    the objective is a lower bound too, but a looser one. With a weight below 1 it is not a lower bound; `remark`
    reports a run that ends with such a weight.

    Arguments:
        beta: Weight of the KL after the warm-up. Above 1, z contains less information and the latents are more
            independent.
        warmup: Number of steps in which the weight rises linearly from 0.
        num_particles: K, draws of z for each datum.

    Reference: Higgins et al., "beta-VAE: learning basic visual concepts with a constrained variational framework",
    2017, equation 4; Bowman et al., "Generating sentences from a continuous space", 2016, section 3.1 (warm-up).

    Example:
        >>> BetaVAE(beta=1.0, warmup=1000)
        BetaVAE(beta=1.0, warmup=1000, num_particles=1)
    """

    name: ClassVar[str] = "beta-vae"
    trains_globals: ClassVar[bool] = True
    needs = PATHWISE

    def __init__(self, beta: float = 4.0, warmup: int = 0, num_particles: int = 1) -> None:
        super().__init__()
        self.num_particles = check_count("BetaVAE", "num_particles", num_particles)
        self.beta = check_number("BetaVAE", "beta", beta, 0.0)
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
            raise InputError(f"BetaVAE: `warmup` is a number of steps, got `{warmup!r}`.")
        self.warmup = warmup
        self.register_buffer("steps", torch.zeros(()))
        self.steps: Tensor

    def weight(self, like: Tensor) -> Tensor:
        """Returns the weight of the KL at the present step, a scalar of the type and device of ``like``."""
        return (
            self.beta * (self.steps.to(like) / self.warmup).clamp_max(1.0)
            if self.warmup
            else like.new_tensor(self.beta)
        )

    @property
    def warming_up(self) -> bool:
        """Whether the weight of the KL still rises."""
        return float(self.steps) < self.warmup

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the weighted ELBO, and the true one as bound; see `Loss`."""
        q = vae.posterior_given(batch)
        z = q.rsample((self.num_particles,))
        reconstruction = batch.mean(vae.log_likelihood_of(z, batch))
        divergence = batch.mean(kl(q, vae.prior_given(batch), z))
        weight = self.weight(divergence)
        if self.training:
            self.steps.add_(1)
        penalty = weight * divergence if self.beta else 0.0  # then no gradient reaches the prior, as `fit` says
        value = penalty - reconstruction - vae.log_parameter_prior_per_datum()
        return Loss(value, (reconstruction - divergence).detach())

    def remark(self) -> str:
        weight = float(self.weight(self.steps))
        if weight >= 1:
            return ""
        return (
            f"ended at a KL weight of {weight:.3g}, below 1, so it did not maximise a lower bound on log p(x); the "
            "ELBO shown is the true one"
        )
