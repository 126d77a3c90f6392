r"""At which second point a captured program is compared with the program itself, and when both agree."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# By how much the second point, at which a capture is checked, differs from the first.
_RELATIVE, _ABSOLUTE = 0.05, 0.01
# How far graph and program may be apart there: they run the same operations.
_TOLERANCE = {torch.float64: 1e-9}
_TOLERANCE_ELSE = 1e-4


def at_other_inputs(
    program: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Results at inputs whose rows have changed places, and these inputs; at the examples where that means nothing."""
    others = [_other(tensor) for tensor in tensors]
    try:
        results = program(others)
        if all(bool(r.isfinite().all()) for r in results if r.dtype.is_floating_point):
            return results, others
    except (RuntimeError, ValueError, IndexError):  # a matrix whose rows must stay in order, say
        pass
    return program(tensors), tensors


def _other(tensor: Tensor) -> Tensor:
    if tensor.dim():
        return tensor.roll(1, 0)
    return tensor * (1 - _RELATIVE) if tensor.dtype.is_floating_point else tensor.clone()


def moved(tensor: Tensor) -> Tensor:
    """Returns a parameter's second value."""
    if not tensor.dtype.is_floating_point:
        return tensor
    noise = torch.rand_like(tensor) - 0.5
    return tensor * (1 + _RELATIVE * noise) + _ABSOLUTE * noise


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results agree, also in where they are not finite."""
    if not a.dtype.is_floating_point:
        return bool((a == b).all())
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return False
    a, b = a[finite], b[finite]
    scale = a.abs().max().clamp_min(1.0) if a.numel() else a.new_ones(())
    return bool(((a - b).abs() <= _TOLERANCE.get(a.dtype, _TOLERANCE_ELSE) * scale).all())
