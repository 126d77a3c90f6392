r"""The wake-sleep algorithm."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_vae.batch import Batch
from pyro_vae.inference.interface import Inference, Loss, Phase
from pyro_vae.inference.requirements import unshared
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class WakeSleep(Inference):
    r"""The wake-sleep algorithm: each half of the VAE is trained on the other's draws.

    .. math::
        \text{wake, theta alone:}\quad & -\log p_\theta(x, z), & z &\sim q(z|x) \\
        \text{sleep, phi alone:}\quad & -\log q_\phi(z|x), & (z, x) &\sim p_\theta

    The wake phase ascends the ELBO in theta. The sleep phase descends KL(p(z|x) || q(z|x)) in phi, on draws from the
    model. The two objectives differ, so the final ELBO may be lower than that of `AEVB`. No reparameterization is
    needed: discrete latents are allowed.

    Reference: Hinton, Dayan, Frey and Neal, "The wake-sleep algorithm for unsupervised neural networks", 1995.

    Example:
        >>> [sorted(phase.moves) for phase in WakeSleep().phases]
        [['theta'], ['phi']]
    """

    name: ClassVar[str] = "wake-sleep"
    needs = (unshared,)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self._wake, frozenset({"theta"})), Phase(self._sleep, frozenset({"phi"})))

    def _wake(self, vae: LatentVariableModel, batch: Batch, carry: Any) -> tuple[Loss, Any]:
        with torch.no_grad():
            q = vae.posterior_given(batch)
            z = q.sample()
            log_q = q.log_prob(z)
        log_joint = vae.log_joint_of(z, batch)
        value = -batch.mean(log_joint) - vae.log_parameter_prior_per_datum()
        return Loss(value, batch.mean(log_joint.detach() - log_q)), None

    def _sleep(self, vae: LatentVariableModel, batch: Batch, carry: Any) -> tuple[Loss, Any]:
        return Loss(sleep_loss(vae, batch)), None


def sleep_loss(vae: LatentVariableModel, batch: Batch) -> Tensor:
    """Returns -log q(z|x) at dreams, draws (z, x) from the model: a scalar, in nats per datum, that moves phi.

    Arguments:
        vae: The VAE.
        batch: Whose size, context, mask and offset the dreams take.
    """
    z, dreams = vae.dreams(batch)
    density = _Density(vae)
    # Copies of the buffers, since running statistics are those of data, not of dreams.
    buffers = {name: buffer.clone() for name, buffer in density.named_buffers()}
    log_q: Tensor = functional_call(density, buffers, (dreams, z), tie_weights=False)
    return -batch.mean(log_q)


class _Density(nn.Module):
    """The density of the posterior as a module, because networks may run only when the density is computed."""

    def __init__(self, vae: LatentVariableModel) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, dreams: Batch, z: Tensor) -> Tensor:
        log_q: Tensor = self.vae.posterior_given(dreams).log_prob(z)
        return log_q
