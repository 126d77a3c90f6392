r"""What travels through every call: data and what is known about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    r"""A minibatch: B data and, optionally, what is known about each of them.

    A `Tensor` stands for ``Batch(x)`` wherever a batch is expected. Being a named tuple, it is a pytree.

    Attributes:
        x: Data, shape ``(B, *event_shape)`` of the likelihood.
        context: Labels or covariates, shape ``(B, C)``; concatenated to what the prior, the likelihood and
            the posterior receive.
        mask: Which cells of ``x`` are observed, boolean, shape of ``x``. It multiplies the per-cell
            log p(x|z) and zero-fills the posterior's input.
        offset: Added to the unconstrained value of each parameter declared ``Network(offset=True)`` (the
            offset of a generalised linear model, such as a log library size), shape ``(B, 1)`` or ``(B, D)``.
        weight: Weight of each datum in every mean over the batch, shape ``(B,)``, mean 1 over the data set.

    Example:
        >>> import torch
        >>> batch = Batch.of(torch.zeros(5, 3))
        >>> batch.size, batch.context is None
        (5, True)
    """

    x: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None
    offset: Tensor | None = None
    weight: Tensor | None = None

    @classmethod
    def of(cls, data: Tensor | Batch) -> Batch:
        """Returns ``data`` as a `Batch`.

        Arguments:
            data: A tensor of shape ``(B, *event_shape)``, or a batch, which is returned unchanged.

        Raises:
            TypeError: Where ``data`` is neither.
        """
        if isinstance(data, Batch):
            return data
        if isinstance(data, Tensor):
            return cls(data)
        raise TypeError(f"Batch: expected a Tensor or a Batch, got `{type(data).__name__}`; pass Batch(x, ...).")

    @property
    def size(self) -> int:
        """The number of data B."""
        return self.x.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Returns the batch with ``function`` applied to every field that is present."""
        rest = (None if field is None else function(field) for field in self[1:])
        return Batch(function(self.x), *rest)

    def select(self, index: Tensor | slice) -> Batch:
        """Returns the data at ``index`` (positions or a slice along the first dimension)."""
        if isinstance(index, slice) or index.dtype != torch.int64 or index.dim() != 1:
            return self.map(lambda field: field[index])
        return self.map(lambda field: field.index_select(0, index))  # several times as fast for rows in any order

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Returns the batch on ``device``, its floating-point fields in ``dtype``."""
        return self.map(lambda field: field.to(device, dtype if field.dtype.is_floating_point else field.dtype))

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean of per-datum ``values`` of shape ``(..., B)`` over the batch, weighted by ``weight``."""
        return (values if self.weight is None else values * self.weight).mean()
