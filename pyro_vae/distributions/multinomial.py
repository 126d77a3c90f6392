r"""Counts of words in documents, or of items in baskets, of different lengths."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class CountVector(constraints.Constraint):  # type: ignore[misc, unused-ignore]
    r"""Vectors of non-negative whole numbers whose sum is at most ``total_count``."""

    is_discrete = True
    event_dim = 1

    def __init__(self, total_count: int | Tensor) -> None:
        self.total_count = total_count

    def check(self, value: Tensor) -> Tensor:
        """Returns whether each vector satisfies the constraint."""
        whole = ((value >= 0) & (value == value.floor())).all(-1)
        return whole & (value.sum(-1) <= self.total_count)

    def complaint(self, value: Tensor) -> str:
        """Returns what is wrong with one vector outside the constraint."""
        if bool((value < 0).any()) or bool((value != value.floor()).any()):
            bad = int(((value < 0) | (value != value.floor())).nonzero()[0])
            return f"has {value[bad].item():g} in column {bad} (from 0); counts are whole numbers, none negative"
        n, largest = int(value.sum()), int(torch.as_tensor(self.total_count).max())
        return f"sums to {n}, more than total_count={largest}; declare total_count, the largest sum, as {n} or more"

    def __repr__(self) -> str:
        largest = int(torch.as_tensor(self.total_count).max())
        return f"CountVector(whole numbers, none negative, with a sum of at most total_count={largest})"


class Multinomial(dist.Multinomial):
    r"""Counts of V words in a document of n words, given n.

    .. math:: \log p(x | n) = \log n! - \sum_v \log x_v! + \sum_v x_v \log p_v, \qquad n = \sum_v x_v

    For every length n the density is normalised: it sums to 1 over the documents of that length. The length itself is
    not modelled. Documents of up to ``total_count`` words are accepted. Draws are documents of ``total_count`` words,
    and ``mean`` is the mean of such documents. Unlike torch's, the support contains whole numbers only. `Conditional`
    puts this class in the place of the original.

    Arguments:
        total_count: The largest length n, a Python integer.
        probs: Word probabilities, shape ``(..., V)``.
        logits: Logarithms of ``probs`` up to a constant, shape ``(..., V)``.

    Example:
        >>> import torch
        >>> documents = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0], [1.0, 0.0]])
        >>> Multinomial(total_count=2, probs=torch.tensor([0.5, 0.5])).log_prob(documents).exp()
        tensor([0.2500, 0.5000, 0.2500, 0.5000])
    """

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Documents of at most ``total_count`` words."""
        return CountVector(self.total_count)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Multinomial:
        return super().expand(batch_shape, self._get_checked_instance(Multinomial, _instance))


class DirichletMultinomial(dist.DirichletMultinomial):
    r"""Counts of V words in a document of n words, given n; the probabilities are drawn from a Dirichlet.

    .. math::
        \log p(x | n) = \log\frac{n!\,\Gamma(a)}{\Gamma(n + a)}
        + \sum_v \log\frac{\Gamma(x_v + a_v)}{x_v!\,\Gamma(a_v)}, \qquad a = \sum_v a_v

    For n and ``total_count`` see `Multinomial`.

    Arguments:
        concentration: Concentrations :math:`a_v`, shape ``(..., V)``.
        total_count: The largest length n, a Python integer.
        is_sparse: Whether to compute ``log_prob`` from the non-zero cells alone.

    Example:
        >>> import torch
        >>> documents = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> DirichletMultinomial(torch.ones(2), total_count=2).log_prob(documents).exp()
        tensor([0.3333, 0.3333, 0.3333])
    """

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Documents of at most ``total_count`` words."""
        return CountVector(self.total_count)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DirichletMultinomial:
        return super().expand(batch_shape, self._get_checked_instance(DirichletMultinomial, _instance))
