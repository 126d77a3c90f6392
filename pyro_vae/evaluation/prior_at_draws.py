r"""log p(z) at draws from q(z|x), also near the boundary of the prior's support."""

from __future__ import annotations

import copy

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class PriorAtDraws:
    r"""The prior's density at draws from the posterior.

    A posterior on a bounded support draws u and computes z = T(u). In float32, z is rounded near the boundary; for
    T(u) = sigmoid(u) it is 1 beyond u = 16.6, where log p(z) is wrong by nats. So z and its density are computed in
    float64 there.

    Arguments:
        vae: The VAE. It is copied if its posterior is pushed and its parameters are not float64.
    """

    def __init__(self, vae: LatentVariableModel) -> None:
        self.vae, self._precise = vae, vae if vae.dtype == torch.float64 else None

    def log_prob(self, batch: Batch, q: TorchDistribution, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, shape ``(S, B)``.

        Arguments:
            batch: The batch, on the VAE's device and in its dtype.
            q: Its posterior.
            z: The last draw from q, shape ``(S, B, *latent_shape)``.
        """
        if not isinstance(q, Pushed):
            return self.vae.prior_given(batch).log_prob(z)
        if self._precise is None:
            self._precise = copy.deepcopy(self.vae).double()
        p = self._precise.prior_given(batch.to(self._precise.device, self._precise.dtype))
        return p.log_prob(q.constrain(q.preimage(z).to(self._precise.dtype)))
