r"""Positive numbers of any unit, brought to a logarithmic scale that a network can read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Below this part of the greatest value nothing is told apart, so that float32 does not overflow.
_SMALLEST = 1e-30


def log1p(x: Tensor) -> Tensor:
    r"""Returns :math:`\mathrm{sign}(x) \log(1 + |x|)`: log(1 + x) of counts, and finite for every x."""
    return x.sign() * x.abs().log1p()


class LogScale(nn.Module):
    r"""The logs of positive numbers, standardised on the training rows.

    .. math:: f(x) = \mathrm{asinh}\left(\frac{\log(1 + x / u) - c}{s}\right)

    where u is the smallest positive training value of a column, and c and s are the mean and the standard deviation of
    the logs. Grams and tonnes give the same features. A 0, as of a hidden cell, lies below all training values; asinh
    leaves those near the mean as they are and brings far ones near, so that nothing saturates. Before `fit`
    :math:`u = s = 1` and :math:`c = 0`. The three are part of the state_dict.

    Arguments:
        cells: Number D of columns.

    Example:
        >>> x = torch.tensor([[1.0], [10.0], [100.0]])
        >>> scale = LogScale(1).fit(x)
        >>> torch.allclose(scale(x), LogScale(1).fit(1000 * x)(1000 * x))
        True
    """

    unit: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, cells: int) -> None:
        super().__init__()
        for name, start in (("unit", 1.0), ("centre", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((cells,), start))

    @torch.no_grad()
    def fit(self, x: Tensor) -> LogScale:
        """Takes unit, centre and scale from training rows, ``(N, D)`` with nan where a cell is hidden; returns self."""
        x = x.double()
        greatest = torch.where(x.isnan(), 0, x).amax(0)
        unit = torch.where(x > 0, x, torch.inf).amin(0).maximum(_SMALLEST * greatest)
        unit = torch.where(unit.isfinite() & (unit > 0), unit, 1)
        logs = log1p(x / unit)
        centre = logs.nanmean(0).nan_to_num()
        scale = (logs - centre).square().nanmean(0).sqrt().nan_to_num()
        for name, value in (("unit", unit), ("centre", centre), ("scale", torch.where(scale > 1e-6, scale, 1))):
            getattr(self, name).copy_(value)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of ``(..., D)``."""
        return ((log1p(x / self.unit) - self.centre) / self.scale).asinh()
