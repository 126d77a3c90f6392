r"""The discretized mixture of logistic distributions, for grey levels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.nn.functional import logsigmoid

# Number of levels whose tail probabilities the moments keep in memory at one time.
_CHUNK = 32


class DiscretizedLogisticMixture(TorchDistribution):
    r"""A mixture of K logistic distributions, each cut into one bin for every grey level.

    .. math::
        p(x) = \sum_{k=1}^K \pi_k \left[\sigma\left(\frac{u + h - \mu_k}{s_k}\right)
        - \sigma\left(\frac{u - h - \mu_k}{s_k}\right)\right], \qquad u = \frac{2x}{L-1} - 1, \quad h = \frac{1}{L-1}

    for levels x = 0 ... L-1; the lowest bin reaches to :math:`-\infty` and the highest to :math:`\infty`, so that the
    masses sum to 1. Locations and scales are in units of half the range: -1 is level 0, 1 is level L-1. If a network
    outputs zeros, :math:`\mu = 0, s = 1`: a broad distribution around grey. The mass of a bin is computed in log
    space. Its gradient is accurate in float32, also for a narrow bin and for a level far from the location.

    The cells of an image are independent given the parameters. Unlike in PixelCNN++, a colour channel does not depend
    on the other channels. Data are whole numbers; do not scale them.

    Arguments:
        logits: Unnormalised log weights of the components, shape ``(..., K)``.
        locs: Locations, shape ``(..., K)``, in units of half the range.
        scales: Scales, shape ``(..., K)``, in units of half the range.
        levels: Number L of grey levels.
        components: Number K of components. `Conditional` gives the parameters this size; without `Conditional` it
            must agree with the parameters.

    Reference: Salimans et al., "PixelCNN++: improving the PixelCNN with discretized logistic mixture likelihood and
    other modifications", 2017, equations 1-2.

    Example:
        >>> import torch
        >>> d = DiscretizedLogisticMixture(torch.zeros(2), torch.tensor([-0.5, 0.5]), torch.full((2,), 0.1))
        >>> d.log_prob(d.enumerate_support()).exp().sum()
        tensor(1.0000)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "locs": constraints.real_vector,
        "scales": constraints.independent(constraints.positive, 1),
    }
    has_enumerate_support = True

    def __init__(
        self,
        logits: Tensor,
        locs: Tensor,
        scales: Tensor,
        levels: int = 256,
        components: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(levels, int) or levels < 2:
            raise ValueError(f"`levels` must be an integer of at least 2, got `{levels!r}`")
        self.logits, self.locs, self.scales = torch.broadcast_tensors(logits, locs, scales)
        if components is not None and components != self.logits.shape[-1]:
            raise ValueError(f"`components` is {components}, but the parameters have {self.logits.shape[-1]}")
        self.levels, self.components = levels, self.logits.shape[-1]
        super().__init__(self.logits.shape[:-1], validate_args=validate_args)

    @staticmethod
    def parameter_shapes(components: int = 10) -> dict[str, tuple[int, ...]]:
        """Returns the size of each parameter for one cell, for `Conditional`."""
        return dict.fromkeys(("logits", "locs", "scales"), (components,))

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels 0 ... L-1."""
        return constraints.integer_interval(0, self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(x), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x = value.unsqueeze(-1)
        half = 1 / (self.levels - 1)
        u = 2 * x * half - 1
        upper = logsigmoid((u + half - self.locs) / self.scales)
        lower = logsigmoid((self.locs - u + half) / self.scales)
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), and a - b is known without subtraction
        width = 2 * half / self.scales
        inner = upper + lower + torch.log(-torch.expm1(-width))
        mass = torch.where(x < 0.5, upper, torch.where(x > self.levels - 1.5, lower, inner))
        return torch.logsumexp(self.logits.log_softmax(-1) + mass, dim=-1)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Returns draws: picks a component, draws from its logistic, and rounds to the nearest level."""
        with torch.no_grad():
            shape = torch.Size(sample_shape)
            which = Categorical(logits=self.logits).sample(shape).unsqueeze(-1)
            locs, scales = (
                value.expand(shape + value.shape).gather(-1, which).squeeze(-1) for value in (self.locs, self.scales)
            )
            tiny = torch.finfo(locs.dtype).tiny
            uniform = torch.rand(locs.shape, dtype=locs.dtype, device=locs.device).clamp(tiny, 1 - 2**-24)
            u = locs + scales * uniform.logit()
            return ((u + 1) * (self.levels - 1) / 2).round().clamp(0, self.levels - 1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Returns the L levels, along a first dimension."""
        levels = torch.arange(self.levels, dtype=self.locs.dtype, device=self.locs.device)
        levels = levels.reshape(-1, *(1 for _ in self.batch_shape))
        return levels.expand(-1, *self.batch_shape) if expand else levels

    @property
    def mean(self) -> Tensor:
        """E[x], in levels."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Var[x], in squared levels."""
        mean, square = self._moments()
        return (square - mean.square()).clamp_min(0)

    def _moments(self) -> tuple[Tensor, Tensor]:
        r"""E[x] and E[x^2], from the tails: the sums over l of P(x > l) and of (2l + 1) P(x > l)."""
        weights = self.logits.softmax(-1).unsqueeze(-1)
        mean, square = torch.zeros_like(self.locs[..., 0]), torch.zeros_like(self.locs[..., 0])
        for levels in torch.arange(self.levels - 1, device=self.locs.device).split(_CHUNK):
            edges = (2 * levels + 1) / (self.levels - 1) - 1
            tails = torch.sigmoid((self.locs.unsqueeze(-1) - edges) / self.scales.unsqueeze(-1))
            tail = (weights * tails).sum(-2)
            mean, square = mean + tail.sum(-1), square + (tail * (2 * levels + 1)).sum(-1)
        return mean, square

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticMixture:
        """Returns the distribution with the parameters of each datum repeated over a larger batch."""
        new = self._get_checked_instance(DiscretizedLogisticMixture, _instance)
        shape = torch.Size(batch_shape)
        for name in ("logits", "locs", "scales"):
            setattr(new, name, getattr(self, name).expand((*shape, self.components)))
        new.levels, new.components = self.levels, self.components
        super(DiscretizedLogisticMixture, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new
