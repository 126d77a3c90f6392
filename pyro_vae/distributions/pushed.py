r"""A distribution pushed through one bijection onto a support."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor


class Pushed(dist.TransformedDistribution):
    r"""A distribution pushed through one bijection T; it stores the u of its last draw z = T(u).

    In float32, z is rounded near the boundary of the support. There :math:`T^{-1}(z)` is far from u, and the density
    at that point is wrong by hundreds of nats. So the density of the last draw is computed at the stored u.
    """

    _last: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of z, through which gradients pass."""
        return self._remembered(self.base_dist.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of z without gradients."""
        with torch.no_grad():
            return self._remembered(self.base_dist.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log q(z|x)."""
        return self.log_prob_at(self.preimage(value))

    def fixed_log_prob(self, value: Tensor) -> Tensor:
        """Returns log q(z|x) at fixed z."""
        return self.log_prob_at(self.preimage(value).detach())

    def log_prob_at(self, u: Tensor) -> Tensor:
        """Returns log q(z|x) at z = T(u)."""
        (transform,) = self.transforms
        log_density: Tensor = self.base_dist.log_prob(u)
        log_jacobian = transform.log_abs_det_jacobian(u, transform(u))
        extra = log_jacobian.dim() - log_density.dim()
        return log_density - (log_jacobian.flatten(-extra).sum(-1) if extra else log_jacobian)

    def constrain(self, u: Tensor) -> Tensor:
        """Returns z = T(u)."""
        z: Tensor = self.transforms[0](u)
        return z

    def preimage(self, value: Tensor) -> Tensor:
        """Returns u with T(u) = z."""
        if self._last is not None and value is self._last[1]:
            return self._last[0]
        u_of_value: Tensor = self.transforms[0].inv(value)
        return u_of_value

    def shares_bijection(self, other: TorchDistribution) -> bool:
        """Whether another distribution is pushed by the same T, so that a draw of one has the same u in the other."""
        if not isinstance(other, Pushed):
            return False
        try:
            return bool(self.transforms == other.transforms)
        except RuntimeError:  # bounds of other shapes, one for each datum
            return False

    def renewed(self, z: Tensor) -> Tensor:
        """Returns z computed from a copy of its u, which is in no cache of the base distribution."""
        return self._remembered(self.preimage(z).clone())

    def _remembered(self, u: Tensor) -> Tensor:
        z = self.constrain(u)
        self._last = (u, z)
        return z
