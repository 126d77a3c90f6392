r"""A logarithmic scale for positive numbers in any unit, as input of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Values below this share of the greatest are treated as equal, so that float32 does not overflow.
_SMALLEST = 1e-30


def log1p(x: Tensor) -> Tensor:
    r"""Returns :math:`\mathrm{sign}(x) \log(1 + |x|)`: log(1 + x) for counts, and finite for every x."""
    return x.sign() * x.abs().log1p()


class LogScale(nn.Module):
    r"""The logs of positive numbers, standardised on the training rows.

    .. math:: f(x) = \mathrm{asinh}\left(\frac{\log(1 + x / u) - c}{s}\right)

    where u is the smallest positive training value of a column, and c and s are the mean and the standard deviation of
    the logs. The features do not depend on the unit (grams or tonnes). A 0, as for a hidden cell, is below all training
    values. asinh hardly changes values near the mean and compresses distant ones, so no activation saturates. Before
    `fit`, :math:`u = s = 1` and :math:`c = 0`. The three are part of the state_dict.

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
        """Fits unit, centre and scale to training rows, ``(N, D)``, nan where a cell is hidden; returns self."""
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
        """Returns the features of x, shape ``(..., D)``."""
        return ((log1p(x / self.unit) - self.centre) / self.scale).asinh()
