r"""Random draws that are no function of standard noise, as graph operators with a batching rule for replicates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


@torch.library.custom_op("pyro_vae::standard_gamma", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def standard_gamma(concentration: Tensor) -> Tensor:
    """Returns draws from Gamma(concentration, 1)."""
    return torch._standard_gamma(concentration)


@torch.library.custom_op("pyro_vae::dirichlet", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def dirichlet(concentration: Tensor) -> Tensor:
    """Returns draws from Dirichlet(concentration), over the last dimension."""
    return torch._sample_dirichlet(concentration)


@torch.library.custom_op("pyro_vae::poisson", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def poisson(rate: Tensor) -> Tensor:
    """Returns draws from Poisson(rate)."""
    return torch.poisson(rate)


@torch.library.custom_op("pyro_vae::binomial", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def binomial(count: Tensor, probability: Tensor) -> Tensor:
    """Returns draws from Binomial(count, probability)."""
    return torch.binomial(count, probability)


def _vmap_elementwise(operator: Any) -> Callable[..., tuple[Tensor, int]]:
    """Returns the batching rule of an operator that draws independently along additional leading dimensions."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        width = max(t.dim() - (d is not None) for t, d in zip(tensors, in_dims, strict=True))
        moved = []
        for tensor, d in zip(tensors, in_dims, strict=True):
            front = tensor.unsqueeze(0) if d is None else tensor.movedim(d, 0)
            missing = width - (front.dim() - 1)
            front = front.reshape(front.shape[0], *(1 for _ in range(missing)), *front.shape[1:])
            moved.append(front.expand(info.batch_size, *front.shape[1:]).contiguous())
        return operator(*moved), 0

    return rule


for _operator in (standard_gamma, dirichlet, poisson, binomial):
    _operator.register_vmap(_vmap_elementwise(_operator))
for _operator in (standard_gamma, dirichlet, poisson):
    _operator.register_fake(lambda parameter: torch.empty_like(parameter))
binomial.register_fake(
    lambda count, probability: count.new_empty(torch.broadcast_shapes(count.shape, probability.shape))
)

# Replacements for torch's own operators, which have no batching rule.
OPAQUE: dict[Any, Any] = {
    aten._standard_gamma.default: standard_gamma,
    aten._sample_dirichlet.default: dirichlet,
    aten.poisson.default: poisson,
    aten.binomial.default: binomial,
}
