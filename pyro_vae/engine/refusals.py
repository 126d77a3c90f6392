r"""What a program must not do if it is to be a fixed list of tensor operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.nn.functional import batch_norm, one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        named = named or {}
        if function in _READS:
            frame = caller_outside_torch()
            if is_pyros(frame) and frame.f_code.co_name == "torch_item":
                return arguments[0].detach()
            if is_pyros(frame) and frame.f_code.co_name == "warn_if_nan":
                return False
            if function not in (Tensor.item, Tensor.__bool__, Tensor.register_hook):
                raise CaptureError(
                    f"capture: values are read out of a tensor at {where()}; keep to tensor operations, or leave the "
                    "program uncompiled (compile=False)."
                )
        if function in _FACTORIES and _holds_tensor(arguments, named):
            raise CaptureError(
                f"capture: values are read out of tensors in a list at {where()}; use torch.stack, or leave the "
                "program uncompiled (compile=False)."
            )
        if function in _BATCH_NORM:
            named = dict(zip(_BATCH_NORM[function], arguments, strict=False)) | named
            return function(**_with_declared_statistics(named))
        if function is one_hot and _number_of_classes(arguments, named) > 0:
            return _one_hot(arguments[0] if arguments else named["tensor"], _number_of_classes(arguments, named))
        return function(*arguments, **named)


_READS = {
    Tensor.item,
    Tensor.__bool__,
    Tensor.register_hook,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.tolist,
    Tensor.__repr__,
    Tensor.__format__,
}
_FACTORIES = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}


def _holds_tensor(arguments: Sequence[Any], named: dict[str, Any]) -> bool:
    """Whether a factory is given tensors within a list, which it would make one tensor of by reading them."""
    given = [*arguments, *(named[name] for name in ("data", "obj") if name in named)]
    return any(isinstance(leaf, Tensor) for a in given if isinstance(a, list | tuple) for leaf in tree_leaves(a))


def _number_of_classes(arguments: Sequence[Any], named: dict[str, Any]) -> int:
    return int(arguments[1] if len(arguments) > 1 else named.get("num_classes", -1))


def _one_hot(index: Tensor, classes: int) -> Tensor:
    """torch's own reads the indices to check them."""
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).long()


_BATCH_NORM = {
    batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled"),
    ),
}


def _with_declared_statistics(named: dict[str, Any]) -> dict[str, Any]:
    """Moves the running statistics by operators that say so; torch's own does it without a word to the dispatcher."""
    mean, var = named["running_mean"], named["running_var"]
    if mean is None or var is None or not named.get("training"):
        return named
    x, momentum = named["input"], named.get("momentum", 0.1)
    with torch.no_grad():
        new_var, new_mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1])
        mean.mul_(1 - momentum).add_(momentum * new_mean)
        var.mul_(1 - momentum).add_(momentum * new_var)
    return named | {"running_mean": None, "running_var": None}


class _Shapes(TorchDispatchMode):
    """Refuses operators whose result is no tensor of a shape that is known beforehand."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(function, HigherOrderOperator):
            raise CaptureError(
                f"capture: `{function.name()}` runs programs of its own at {where()}; use torch.where, or leave the "
                "program uncompiled (compile=False)."
            )
        if named and named.get("generator") is not None:
            raise CaptureError(
                f"capture: {where()} draws from a generator of its own, whose stream would be left behind; draw "
                "without `generator=`, from torch's random stream."
            )
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
