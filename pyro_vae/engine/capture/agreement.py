r"""Check of a captured program: the second point, and the comparison of its results with those of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Relative and absolute distance of the second point from the first.
_RELATIVE, _ABSOLUTE = 0.05, 0.01
# Largest relative difference of graph and program, which run the same operations.
_TOLERANCE = {torch.float64: 1e-9}
_TOLERANCE_ELSE = 1e-4


def at_other_inputs(
    program: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the results at inputs with permuted rows, and these inputs; or at the examples, if the former fails."""
    others = [_other(tensor) for tensor in tensors]
    try:
        results = program(others)
        if all(bool(r.isfinite().all()) for r in results if r.dtype.is_floating_point):
            return results, others
    except (RuntimeError, ValueError, IndexError):  # for example, a matrix whose rows must stay in order
        pass
    return program(tensors), tensors


def _other(tensor: Tensor) -> Tensor:
    if tensor.dim():
        return tensor.roll(1, 0)
    return tensor * (1 - _RELATIVE) if tensor.dtype.is_floating_point else tensor.clone()


def perturbed(tensor: Tensor) -> Tensor:
    """Returns the value of a parameter at the second point."""
    if not tensor.dtype.is_floating_point:
        return tensor
    noise = torch.rand_like(tensor) - 0.5
    return tensor * (1 + _RELATIVE * noise) + _ABSOLUTE * noise


def tolerance(tensors: Iterable[Tensor]) -> float:
    """Returns the largest relative difference of graph and program for tensors of the coarsest type among these."""
    return max((_TOLERANCE.get(t.dtype, _TOLERANCE_ELSE) for t in tensors if t.dtype.is_floating_point), default=0.0)


def close(a: Tensor, b: Tensor, most: float) -> bool:
    """Returns whether two results agree: in their finite values, and in which values are finite.

    Arguments:
        a: A result.
        b: The other result.
        most: Largest relative difference.
    """
    if not a.dtype.is_floating_point:
        return bool((a == b).all())
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return False
    a, b = a[finite], b[finite]
    scale = a.abs().max().clamp_min(1.0) if a.numel() else a.new_ones(())
    return bool(((a - b).abs() <= most * scale).all())
