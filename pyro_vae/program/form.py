r"""The form of a program's data: a tensor, a batch, or a mapping or tuple of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.batch import Batch, as_tensor
from pyro_vae.errors import InputError

Kind = Literal["tensor", "batch", "mapping", "tuple"]
_FORMS = "a tensor, a Batch, or a mapping or tuple of tensors with one first dimension"


class Form:
    """What a program's model and guide are given.

    Arguments:
        example: Data of this form.
        caller: Name at the start of error messages.

    Attributes:
        like: Tensor of the example's floating-point type.

    Raises:
        InputError: For an example of no known form, or of fewer than two rows.
    """

    def __init__(self, example: Any, caller: str = "Program") -> None:
        self.kind: Kind = _kind(example)
        self.keys = list(example) if isinstance(example, Mapping) else None
        batch = self._batch(example, caller, "example")
        leaves, self.structure = _flat(batch._replace(weight=None))
        self.leaves = [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        floating = (leaf.dtype for leaf in leaves if leaf.is_floating_point())
        self.like = torch.empty((), dtype=next(floating, torch.get_default_dtype()))
        if batch.size < 2:
            raise InputError(f"{caller}: `example` is a batch of at least two data, got one.")

    def given(self, batch: Batch) -> Any:
        """Returns a batch as model and guide take it."""
        if self.kind == "batch":
            return batch if batch.weight is None else batch._replace(weight=None)
        return batch.x

    def batch(self, data: Any, caller: str, name: str = "x") -> Batch:
        """Returns data of this form as a `Batch`, after a check of their structure and shapes."""
        if self.kind != "batch" and isinstance(data, Batch):
            batch = data
        elif _kind(data) == self.kind or self.kind == "tensor":
            batch = self._batch(data, caller, name)
        else:
            raise InputError(
                f"{caller}: `{name}` has the form of the example, a {self.kind}; got `{type(data).__name__}`."
            )
        leaves, structure = _flat(batch._replace(weight=None))
        if structure != self.structure:
            raise InputError(f"{caller}: `{name}` has the structure {_said(batch)}, and the example another one.")
        for leaf, (shape, _) in zip(leaves, self.leaves, strict=True):
            if leaf.shape[1:] != shape or not len(leaf):
                raise InputError(
                    f"{caller}: a tensor of `{name}` has shape {tuple(leaf.shape)}; expected (B, "
                    f"{', '.join(map(str, shape))}) with B >= 1, as in the example."
                )
        return batch

    def typed(self, batch: Batch, dtype: torch.dtype) -> Batch:
        """Returns a batch with floating-point tensors in ``dtype``, and others in the example's type."""
        leaves = [leaf for leaf in pytree.tree_leaves(batch) if leaf is not None]
        types = [dtype if own.is_floating_point else own for _, own in self.leaves]
        types += [dtype] * (len(leaves) - len(types))  # those behind the example's are weights
        if all(leaf.dtype is kind for leaf, kind in zip(leaves, types, strict=True)):
            return batch
        wanted = iter(types)
        return batch.map(lambda leaf: leaf.to(next(wanted)))

    def tensors(self, batch: Batch) -> list[Tensor]:
        """Returns the tensors of a batch, in order."""
        return _flat(batch)[0]

    def replaced(self, batch: Batch, values: Mapping[int, Tensor]) -> Batch:
        """Returns a batch with other values of some of its tensors, which are numbered in their order."""
        places = iter(range(len(self.leaves)))

        def other(leaf: Tensor) -> Tensor:
            value = values.get(next(places, -1))
            return leaf if value is None else value.reshape(leaf.shape).to(leaf.dtype)

        return batch.map(other)

    def _batch(self, data: Any, caller: str, name: str) -> Batch:
        if isinstance(data, Mapping):
            if set(data) != set(self.keys or data):
                raise InputError(
                    f"{caller}: `{name}` has the keys {', '.join(map(repr, data))}; expected those of the example, "
                    f"{', '.join(map(repr, self.keys or ()))}."
                )
            tensors = {key: as_tensor(data[key], f"{caller}: `{key}`") for key in self.keys or data}
            batch = Batch(cast(Tensor, tensors))
        elif type(data) in (tuple, list):
            batch = Batch(
                cast(Tensor, tuple(as_tensor(each, f"{caller}: `{name}[{i}]`") for i, each in enumerate(data)))
            )
        else:
            batch = Batch.of(data, caller, name)
        leaves = _flat(batch)[0]
        sizes = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
        if not leaves or len(sizes) != 1 or None in sizes:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
            raise InputError(f"{caller}: `{name}` is {_FORMS}; got tensors of shapes {shapes or 'none'}.")
        return batch


def _flat(batch: Batch) -> tuple[list[Tensor], Any]:
    """The tensors of a batch, in order, and its structure."""
    leaves, spec = pytree.tree_flatten(batch)
    return [leaf for leaf in leaves if leaf is not None], (str(spec), [leaf is None for leaf in leaves])


def _kind(data: Any) -> Kind:
    if isinstance(data, Batch):
        return "batch"
    if isinstance(data, Mapping):
        return "mapping"
    return "tuple" if type(data) in (tuple, list) else "tensor"


def _said(batch: Batch) -> str:
    x: Any = batch.x
    if isinstance(x, Mapping):
        return f"{{{', '.join(map(repr, x))}}}"
    return ", ".join(name for name, field in zip(batch._fields, batch, strict=True) if field is not None)
