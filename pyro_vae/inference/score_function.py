r"""The score-function estimator of the ELBO's gradient."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.inference.interface import Inference, Loss, check_choice, check_count, surrogate
from pyro_vae.inference.weights import fixed_log_prob
from pyro_vae.vae.latent_variable_model import LatentVariableModel

BASELINES = ("none", "running", "leave-one-out")
# Share of the running baseline that a step keeps.
_DECAY = 0.9


class ScoreFunction(Inference):
    r"""The ELBO's gradient by the score function, without the reparameterization trick.

    .. math:: \nabla_\phi = \frac{1}{K} \sum_k (\log w_k - b_k) \nabla_\phi \log q_\phi(z_k|x), \quad z_k \sim q

    It is unbiased for every baseline b that does not depend on z_k. It needs only the density of q, so discrete latents
    are allowed. Do not use it if q is reparameterizable: the pathwise gradient of `AEVB` has far less variance.

    Arguments:
        baseline: ``"none"``, the naive Monte Carlo gradient; ``"running"``, the moving mean of the ELBO;
            ``"leave-one-out"``, the mean log weight of the datum's other particles.
        num_particles: K, draws of z for each datum; at least 2 for leave-one-out.

    Reference: Paisley, Blei and Jordan, "Variational Bayesian inference with stochastic search", 2012, equation 4;
    Mnih and Rezende, "Variational inference for Monte Carlo objectives", 2016, section 2.4 (leave-one-out).

    Example:
        >>> ScoreFunction("none", num_particles=1)
        ScoreFunction(baseline='none', num_particles=1)
    """

    name: ClassVar[str] = "score-function"

    def __init__(self, baseline: str = "leave-one-out", num_particles: int = 5) -> None:
        super().__init__()
        self.num_particles = check_count("ScoreFunction", "num_particles", num_particles)
        self.baseline = check_choice("ScoreFunction", "baseline", baseline, BASELINES)
        if baseline == "leave-one-out" and num_particles < 2:
            raise InputError(
                "ScoreFunction: baseline='leave-one-out' needs `num_particles` of at least 2, got 1; raise it, or use "
                "baseline='running'."
            )
        self.register_buffer("running_sum", torch.zeros(()))
        self.register_buffer("running_weight", torch.zeros(()))
        self.running_sum: Tensor
        self.running_weight: Tensor

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the ELBO, with the gradient above; see `Loss`."""
        q = vae.posterior_given(batch)
        z = q.sample((self.num_particles,))
        log_q, log_joint = fixed_log_prob(q, z), vae.log_joint_of(z, batch)
        log_weights = (log_joint - log_q).detach()
        signal = log_weights - self._baseline(log_weights)
        elbo = batch.mean(log_weights)
        self._remember(elbo)
        prior = vae.log_parameter_prior_per_datum()
        followed = batch.mean(log_joint + signal * log_q) + prior
        return Loss(surrogate(-(elbo + prior), -followed), elbo)

    def _baseline(self, log_weights: Tensor) -> Tensor:
        """The baseline; it broadcasts to the log weights, shape ``(K, B)``."""
        if self.baseline == "leave-one-out":
            return (log_weights.sum(0) - log_weights) / (self.num_particles - 1)
        if self.baseline == "running":
            return self.running_sum / self.running_weight.clamp_min(1e-12)
        return torch.zeros_like(log_weights)

    @torch.no_grad()
    def _remember(self, elbo: Tensor) -> None:
        if self.training and self.baseline == "running":
            self.running_sum.mul_(_DECAY).add_((1 - _DECAY) * elbo.to(self.running_sum))
            self.running_weight.mul_(_DECAY).add_(1 - _DECAY)
