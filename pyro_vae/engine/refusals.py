r"""What a program must not do if it is to be a fixed list of tensor operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.engine.errors import CaptureError
from pyro_vae.engine.where import caller_outside_torch, is_pyros, where

aten = torch.ops.aten


class Static:
    """A block in which a program may only do what does not depend on the values of its tensors.

    Pyro's own losses read their value out of the graph to return a number, and warn where it is nan; within the
    block they get the detached tensor, and do not look.

    Raises:
        CaptureError: Within the block, where a value is read, or decides about a shape; names line and site.
    """

    def __init__(self) -> None:
        self._modes = (_Shapes(), _Values())

    def __enter__(self) -> None:
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *exception: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exception)


class _Values(TorchFunctionMode):
    """Refuses conversions that would read values without the dispatcher's knowledge; serves Pyro's losses."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if function in _READS:
            frame = caller_outside_torch()
            if is_pyros(frame) and frame.f_code.co_name == "torch_item":
                return arguments[0].detach()
            if is_pyros(frame) and frame.f_code.co_name == "warn_if_nan":
                return False
            if function in (Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.__repr__, Tensor.__format__):
                raise CaptureError(
                    f"capture: values are read out of a tensor at {where()}; keep to tensor operations, or leave the "
                    "program uncompiled (compile=False)."
                )
        return function(*arguments, **(named or {}))


_READS = {
    Tensor.item,
    Tensor.__bool__,
    Tensor.register_hook,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.tolist,
    Tensor.__repr__,
    Tensor.__format__,
}


class _Shapes(TorchDispatchMode):
    """Refuses operators whose result is no tensor of a shape that is known beforehand."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if _selects(arguments) if function is aten.index.Tensor else torch.Tag.dynamic_output_shape in function.tags:
            raise CaptureError(
                f"capture: a shape depends on values at {where()}; use torch.where or a mask, which keep the shape, "
                "or leave the program uncompiled (compile=False)."
            )
        if torch.Tag.data_dependent_output not in function.tags:
            return function(*arguments, **(named or {}))
        try:
            return function(*arguments, **(named or {}))  # constants may be read
        except RuntimeError as error:
            if "tracing tensor" not in str(error):
                raise
            raise CaptureError(
                f"capture: a value decides what the program does at {where()}; use torch.where in place of a branch "
                "and a tensor in place of .item(), or leave the program uncompiled (compile=False)."
            ) from None


def _selects(arguments: Sequence[Any]) -> bool:
    """Whether a tensor is indexed by a boolean mask."""
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in arguments[1])
