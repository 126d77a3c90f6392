r"""The distribution of a row whose columns have families of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.masking import filled
from pyro_vae.distributions.moments import centre, spread


class ColumnSupport(Constraint):
    r"""A support for each column.

    Arguments:
        supports: Supports of the columns, in the order of the columns.
        names: Names of the columns, for error messages.
    """

    event_dim = 1

    def __init__(self, supports: Sequence[Constraint], names: Sequence[str]) -> None:
        super().__init__()
        self.supports, self.names = tuple(supports), tuple(names)
        self.is_discrete = all(support.is_discrete for support in self.supports)

    def check_cells(self, value: Tensor) -> Tensor:
        """Returns which cells lie in the support of their column, boolean, shape of ``value``."""
        inside = [support.check(value[..., index]) for index, support in enumerate(self.supports)]
        return torch.stack(torch.broadcast_tensors(*inside), dim=-1)

    def check(self, value: Tensor) -> Tensor:
        """Returns which rows have all cells in the support, boolean, shape ``(...)``."""
        return self.check_cells(value).all(-1)

    def __repr__(self) -> str:
        return f"ColumnSupport({', '.join(f'{n}: {s}' for n, s in zip(self.names, self.supports, strict=True))})"


class Columns(TorchDistribution):
    r"""Independent columns of different families; some cells may be hidden.

    .. math:: \log p(x) = \sum_d m_d \log p_d(x_d)

    where m is the mask of observed cells.

    Arguments:
        parts: Distributions of single cells with ``batch_shape == (..., n)``. The key of each is a tensor of shape
            ``(n,)`` with the numbers of its columns.
        names: Names of the columns.
        mask: Boolean mask, True for observed cells, that broadcasts to ``batch_shape + (D,)``; None if all are
            observed.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012 (as in torch)

    def __init__(
        self, parts: Mapping[Tensor, TorchDistribution], names: Sequence[str], mask: Tensor | None = None
    ) -> None:
        self.parts, self.names, self.observed = dict(parts), tuple(names), mask
        batch_shapes = [part.batch_shape[:-1] for part in self.parts.values()]
        super().__init__(torch.broadcast_shapes(*batch_shapes), torch.Size((len(self.names),)), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether gradients pass through the draws of every column."""
        return all(part.has_rsample for part in self.parts.values())

    @property
    def support(self) -> ColumnSupport:
        """The support of each column."""
        supports: list[Any] = [None] * len(self.names)
        for index, part in self.parts.items():
            for column in index.tolist():
                supports[column] = _support_of_column(part.support, index.tolist().index(column))
        return ColumnSupport(supports, self.names)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of the observed cells, in nats, shape ``(...)``."""
        total: Any = 0.0
        for index, part in self.parts.items():
            cells = part.log_prob(value[..., index])
            total = total + self._observed(cells, index).sum(-1)
        result: Tensor = total
        return result

    def log_prob_cells(self, value: Tensor) -> Tensor:
        """Returns the log-density of each cell, 0 where it is hidden, in nats, shape ``(..., D)``."""
        return self._joined(lambda index, part: self._observed(part.log_prob(value[..., index]), index))

    def observing(self, x: Tensor, mask: Tensor) -> tuple[Columns, Tensor]:
        """Returns the distribution of the observed cells, and x with hidden cells filled by values of their supports.

        Arguments:
            x: Data, shape ``(..., D)``.
            mask: True where a cell is observed, shape of ``x``.
        """
        inside = x.clone()
        for index, part in self.parts.items():
            inside[..., index] = filled(x[..., index], mask[..., index], part.support)
        seen = mask if self.observed is None else mask & self.observed
        return Columns(self.parts, self.names, seen), inside

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of whole rows, including hidden cells, shape ``sample_shape + (..., D)``."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            return self._joined(lambda index, part: part.sample(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws through which gradients pass; every column must have such draws."""
        if not self.has_rsample:
            raise NotImplementedError("Columns: some columns have no draws through which gradients pass.")
        shape = torch.Size(sample_shape)
        return self._joined(lambda index, part: part.rsample(shape))

    @property
    def mean(self) -> Tensor:
        """The mean of each column, or its mode if it has no mean, shape ``(..., D)``."""
        return self._joined(lambda index, part: centre(part))

    @property
    def variance(self) -> Tensor:
        """The variance of each column, nan if it has none, shape ``(..., D)``."""
        return self._joined(lambda index, part: _variance(part))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Columns:
        """Returns the distribution with another batch shape."""
        shape = torch.Size(batch_shape)
        return Columns(
            {index: part.expand((*shape, len(index))) for index, part in self.parts.items()}, self.names, self.observed
        )

    def _observed(self, cells: Tensor, index: Tensor) -> Tensor:
        if self.observed is None:
            return cells
        return torch.where(self.observed[..., index], cells, torch.zeros_like(cells))

    def _joined(self, of_part: Callable[[Tensor, TorchDistribution], Tensor]) -> Tensor:
        """Returns the values of ``of_part`` for all parts, in the order of the columns."""
        values = [of_part(index, part) for index, part in self.parts.items()]
        dtype = next((value.dtype for value in values if value.dtype.is_floating_point), torch.get_default_dtype())
        order = torch.cat(list(self.parts)).argsort()
        return torch.cat([value.to(dtype) for value in values], dim=-1)[..., order]


def _variance(part: TorchDistribution) -> Tensor:
    scale = spread(part)
    return torch.full(part.batch_shape, torch.nan) if scale is None else scale.square()


def _support_of_column(support: Constraint, index: int) -> Constraint:
    """The support of one of a part's columns."""
    if isinstance(support, constraints.integer_interval | constraints.interval):
        low, high = (torch.as_tensor(getattr(support, f"{end}_bound")) for end in ("lower", "upper"))
        if low.dim() or high.dim():
            kind = type(support)
            return kind(*(end[..., index] if end.dim() else end for end in (low, high)))
    return support
