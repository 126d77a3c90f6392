r"""Checks that a running program is a fixed list of tensor operations, with an error for everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.nn.functional import batch_norm, one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from pyro_vae.engine.capture.location import (
    caller_outside_engine,
    caller_outside_torch,
    current_location,
    families_here,
    is_librarys,
    is_pyros,
)
from pyro_vae.engine.capture.origins import GIVEN, Origins, Read, Sources, changed_by
from pyro_vae.engine.errors import CaptureError
from pyro_vae.runtime.random_streams import depth

aten = torch.ops.aten

# The file in which distributions validate, and the function that they use.
_VALIDATING = str(torch.distributions.distribution.__file__)
# Further checks, by file and function: they raise unless a tensor is true.
_CHECKS = {
    ("constraints.py", "check"),
    ("geometric.py", "__init__"),
    ("power.py", "__init__"),
    ("von_mises_3d.py", "log_prob"),
}
_ALL_TRUE = torch._is_all_true


class Static:
    """A block in which the operations of a program must not depend on the values of its tensors.

    Pyro's losses return a number and warn if it is nan; within the block they return the detached tensor and do not
    warn. Distributions do not validate within the block, even if they were made before it.

    Arguments:
        given: Tensors that the program is a function of. Draws count as given too.

    Raises:
        CaptureError: Within the block, if a value that depends on given tensors is read or determines a shape, or a
            held tensor is changed in place. The message names line and site.
    """

    def __init__(self, given: Sequence[Tensor] = ()) -> None:
        self._origins = Origins()
        self._origins.give(given)
        self._modes = (_Shapes(self._origins), _Values())

    @property
    def reads(self) -> list[Read]:
        """Held tensors whose values were read within the block."""
        return self._origins.reads

    def __enter__(self) -> None:
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *exception: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exception)


class _Values(TorchFunctionMode):
    """Refuses reads of values that the dispatcher does not see; adapts Pyro's losses, batch norm and `one_hot`."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if validates(function):
            return True
        if function in _READS:
            frame = caller_outside_torch()
            if is_pyros(frame) and frame.f_code.co_name == "torch_item":
                return arguments[0].detach()
            if is_pyros(frame) and frame.f_code.co_name == "warn_if_nan":
                return False
            if function not in (Tensor.item, Tensor.__bool__, Tensor.register_hook):
                advice = _advice("use tensor operations")
                raise CaptureError(f"capture: values are read out of a tensor at {current_location()}; {advice}.")
        if function in _FACTORIES and _holds_tensor(arguments, named):
            raise CaptureError(
                f"capture: values are read out of tensors in a list at {current_location()}; use torch.stack, or leave "
                "the program uncompiled (compile=False)."
            )
        if function in _BATCH_NORM:
            named = dict(zip(_BATCH_NORM[function], arguments, strict=False)) | named
            return function(**_with_declared_statistics(named))
        if function is one_hot and _number_of_classes(arguments, named) > 0:
            return _one_hot(arguments[0] if arguments else named["tensor"], _number_of_classes(arguments, named))
        return function(*arguments, **named)


def validates(function: Any) -> bool:
    """Returns whether a call of a function, made just now, is a distribution's check of a parameter or a value."""
    if function is not _ALL_TRUE and function is not Tensor.__bool__:
        return False
    code = caller_outside_engine().f_code
    if function is _ALL_TRUE:
        return code.co_filename == _VALIDATING
    return (Path(code.co_filename).name, code.co_name) in _CHECKS and is_librarys(code)


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
    """Returns whether a factory gets a list with tensors, whose values it would read."""
    given = [*arguments, *(named[name] for name in ("data", "obj") if name in named)]
    return any(isinstance(leaf, Tensor) for a in given if isinstance(a, list | tuple) for leaf in tree_leaves(a))


def _number_of_classes(arguments: Sequence[Any], named: dict[str, Any]) -> int:
    return int(arguments[1] if len(arguments) > 1 else named.get("num_classes", -1))


def _one_hot(index: Tensor, classes: int) -> Tensor:
    """Returns the one-hot encoding; torch's own function reads the indices to check them."""
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).long()


_BATCH_NORM = {
    batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled"),
    ),
}


def _with_declared_statistics(named: dict[str, Any]) -> dict[str, Any]:
    """Updates the running statistics by operators that the dispatcher sees; returns the other arguments."""
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
    """Refuses operators that return numbers or tensors of unknown shape, or that change held tensors.

    Values that depend on no given tensor are computed outside the recording, and are constants of the graph.
    """

    supports_higher_order_operators = True

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self.origins, self._seed, self._depth = origins, torch.initial_seed(), depth()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if isinstance(function, HigherOrderOperator):
            raise CaptureError(
                f"capture: `{function.name()}` runs programs of its own at {current_location()}; use torch.where, or "
                "leave the program uncompiled (compile=False)."
            )
        if named.get("generator") is not None:
            raise CaptureError(
                f"capture: {current_location()} draws from a generator of its own, which the captured program would "
                "not advance; draw without `generator=`, from torch's random stream."
            )
        if function is aten.lift_fresh.default:  # a tensor made of numbers
            result = function(*arguments)
            self.origins.record([result], [], frozenset())
            return result
        given, changed = _tensors((arguments, named)), _tensors(changed_by(function, arguments, named))
        sources = self.origins.of(given)
        if torch.Tag.nondeterministic_seeded in function.tags:
            sources |= GIVEN
            # Draws within `isolated` only find out a shape or a support.
            if torch.initial_seed() != self._seed and depth() == self._depth:
                raise CaptureError(
                    f"capture: {current_location()} draws from a seed that the program itself sets (torch.manual_seed, "
                    "or poutine.seed around a part of it); set the seed outside, or draw beforehand."
                )
        self._refuse_change_of_held(changed)
        result = self._run(function, arguments, named, sources)
        self.origins.record((*_tensors(result), *changed), given, sources)
        if function is aten._pack_padded_sequence.default:  # the sizes depend on the lengths alone
            self.origins.record([result[1]], [], self.origins.of([arguments[1]]))
        return result

    def _run(self, function: Any, arguments: Sequence[Any], named: dict[str, Any], sources: Sources) -> Any:
        if function in _INDEXING and any(_is_mask(index) for index in arguments[1] if index is not None):
            return self._masked(function, arguments, named)
        if torch.Tag.dynamic_output_shape in function.tags and function not in _INDEXING:
            if function is aten.masked_select.default:
                return self._masked(aten.index.Tensor, _indexed(*arguments), named)
            return self._constant(function, arguments, named, sources)
        if torch.Tag.data_dependent_output not in function.tags:
            return function(*arguments, **named)
        if sources.isdisjoint(GIVEN):
            return self._constant(function, arguments, named, sources)
        try:
            return function(*arguments, **named)
        except RuntimeError as error:
            if "tracing tensor" not in str(error):
                raise
            advice = _advice("use torch.where in place of a branch and a tensor in place of .item()")
            line = current_location()
            raise CaptureError(f"capture: a value decides what the program does at {line}; {advice}.") from None

    def _constant(self, function: Any, arguments: Sequence[Any], named: dict[str, Any], sources: Sources) -> Any:
        """Returns the result of an operation outside the recording; it must depend on no given tensor."""
        if not sources.isdisjoint(GIVEN):
            raise _shape_depends()
        self.origins.read(sources, current_location())
        with _disable_current_modes():
            return function(*arguments, **named)

    def _masked(self, function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        """Replaces indexing by boolean masks with indexing by the numbers of their true cells."""
        tensor, indices, *rest = arguments
        sources = self.origins.of(index for index in indices if index is not None and _is_mask(index))
        if not sources.isdisjoint(GIVEN):
            if function is aten.index.Tensor:
                raise _shape_depends()
            return function(*arguments, **named)
        self.origins.read(sources, current_location())
        with _disable_current_modes():
            numbers = [_numbers(index) for index in indices]
        return function(tensor, [number for own in numbers for number in own], *rest, **named)

    def _refuse_change_of_held(self, changed: Sequence[Tensor]) -> None:
        for tensor in changed:
            if self.origins.holds(tensor):
                raise CaptureError(
                    f"capture: a tensor of shape {tuple(tensor.shape)} that belongs to none of the program's modules "
                    f"is changed in place at {current_location()}; change a copy (.clone()), or make it a buffer of a "
                    "module."
                )


_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def _shape_depends() -> CaptureError:
    advice = _advice("use torch.where or a mask, which keep the shape")
    return CaptureError(f"capture: a shape depends on values at {current_location()}; {advice}.")


# Replacements for distributions whose code depends on values.
_INSTEAD = {
    "VonMises": "it draws by rejection: take the angle of a Normal draw in the plane, torch.atan2(y, x)",
    "Wishart": "it draws until a matrix is definite: use LKJCholesky and a scale for each dimension",
    "NanMaskedNormal": "use Normal(...).mask(x.isfinite()) with obs=x.nan_to_num()",
    "NanMaskedMultivariateNormal": "use one masked Normal for each dimension, or complete rows",
}


def _advice(otherwise: str) -> str:
    named = (_INSTEAD[family] for family in families_here() if family in _INSTEAD)
    return f"{next(named, otherwise)}, or leave the program uncompiled (compile=False)"


def _tensors(value: Any) -> list[Tensor]:
    """Returns the tensors among an operator's arguments or results, also in lists; faster than tree_leaves."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for entry in value for tensor in _tensors(entry)]


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _numbers(index: Tensor | None) -> Sequence[Tensor | None]:
    """Returns a mask as one index for each of its dimensions, and other indices unchanged."""
    return index.nonzero().unbind(-1) if index is not None and _is_mask(index) else [index]


def _indexed(tensor: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the arguments of an indexing that equals `masked_select`: tensor and mask of one shape."""
    shape = torch.broadcast_shapes(tensor.shape, mask.shape, (1,) if not tensor.dim() and not mask.dim() else ())
    return tensor.expand(shape), [mask.expand(shape)]


def refuse_foreign(constants: Sequence[Tensor], changed: Mapping[str, Tensor]) -> None:
    """Raises a `CaptureError` for held tensors that compiled steps would treat differently than the program does.

    Arguments:
        constants: All held tensors.
        changed: Parameters and buffers that steps change in place, by name.
    """
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in changed.items() if tensor.numel()}
    for tensor in constants:
        name = names.get(tensor.untyped_storage().data_ptr())
        if name is not None:
            raise CaptureError(
                f"capture: the program holds a tensor of shape {tuple(tensor.shape)} that shares its memory with "
                f"`{name}`, which is changed in place; use `{name}` itself, detached, or a copy (.clone())."
            )
        if tensor.requires_grad:
            raise CaptureError(
                f"capture: the program uses a trainable tensor of shape {tuple(tensor.shape)} that is no parameter of "
                "its modules, so it would never be trained; make it an nn.Parameter of one of them."
            )
