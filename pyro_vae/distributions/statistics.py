r"""Statistics of the observed values of each cell, as a basis for initial parameters of a distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.batch import Batch


@dataclass(frozen=True, eq=False)
class Statistics:
    r"""Weighted statistics of data, cell by cell; hidden cells and data of weight 0 do not enter.

    Each result has the event's shape. It is nan in a cell that no datum shows.

    Attributes:
        x: Data, float64, shape ``(N, *event_shape)``.
        seen: Which cells are observed, boolean, shape of ``x``.
        weight: Weight of each datum, float64, shape ``(N,)``, mean 1 where it is not 0.
        offset: Mean of the data's offset, shape ``(1,)`` or ``(D,)``; None without offset.
    """

    x: Tensor
    seen: Tensor
    weight: Tensor
    offset: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch) -> Statistics:
        """Returns the statistics of a batch.

        Example:
            >>> data = Statistics.of(Batch(torch.tensor([[1.0, 0.0], [3.0, 0.0]])))
            >>> data.mean().tolist(), data.variance().tolist()
            ([2.0, 0.0], [1.0, 0.0])
        """
        x = batch.x.double()
        weight = x.new_ones(len(x)) if batch.weight is None else batch.weight.to(x)
        seen = x.isfinite() if batch.mask is None else batch.mask & x.isfinite()
        seen = seen & (weight > 0).reshape(-1, *(1 for _ in x.shape[1:]))
        offset = None
        if batch.offset is not None:
            offset = (batch.offset.to(x) * weight.unsqueeze(-1)).sum(0) / weight.sum()
        return cls(x, seen, weight / weight[weight > 0].mean(), offset)

    def select(self, index: Tensor) -> Statistics:
        """Returns the statistics of some columns.

        Arguments:
            index: Numbers of the columns, shape ``(n,)``.
        """
        index = index.to(self.x.device)
        offset = self.offset if self.offset is None or len(self.offset) == 1 else self.offset[index]
        return replace(self, x=self.x[..., index], seen=self.seen[..., index], offset=offset)

    def where(self, shown: Tensor) -> Statistics:
        """Returns the statistics of the observed cells where ``shown`` (shape of ``x``) is True too."""
        return replace(self, seen=self.seen & shown)

    @property
    def count(self) -> Tensor:
        """The sum of the weights of the data that show a cell."""
        return self._total(torch.ones_like(self.x))

    def total(self) -> Tensor:
        """The weighted sum of the values."""
        return self._total(self.x)

    def mean(self, of: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the mean of the values, or of a function of them."""
        return self._total(self.x if of is None else of(self.x)) / self.count

    def variance(self, of: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the variance of the values, or of a function of them; 0 where all are equal."""
        values = self.x if of is None else of(self.x)
        centred = values - self.mean(of)
        return self._total(centred.square()) / self.count

    def median(self, of: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the median of the values, or of a function of them; weights other than 0 do not count."""
        values = self.x if of is None else of(self.x)
        return torch.where(self.seen, values, torch.nan).nanmedian(0).values

    def frequencies(self, levels: int) -> Tensor:
        """Returns how often each of the values 0, 1, ..., levels - 1 occurs, shape ``(*event_shape, levels)``.

        Half an occurrence is added to each, so that none is impossible.
        """
        cells = self.x[0].numel()
        code = torch.where(self.seen, self.x, 0.0).round().long().clamp(0, levels - 1).flatten(1)
        place = code + levels * torch.arange(cells, device=code.device)
        weight = torch.where(self.seen, 1.0, 0.0).flatten(1) * self.weight.unsqueeze(-1)
        counts = torch.bincount(place.flatten(), weight.flatten(), cells * levels).reshape(*self.x.shape[1:], levels)
        return (counts + 0.5) / (counts + 0.5).sum(-1, keepdim=True)

    def _total(self, values: Tensor) -> Tensor:
        weighted = torch.where(self.seen, values, 0.0).flatten(1)
        return (self.weight @ weighted).reshape(self.x.shape[1:])
