r"""What travels through every call: data and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from pyro_vae.errors import InputError
from pyro_vae.tensors import TensorLike, as_tensor

_FORMS = "a Tensor, an ndarray, a DataFrame, a Batch or a torch Dataset (for training, a DataLoader too)"


class Batch(NamedTuple):
    r"""A minibatch: B data and, optionally, what is known about each of them.

    A `Tensor`, an ndarray, a DataFrame or a torch `Dataset` stands for ``Batch(x)`` wherever a batch is expected, and
    fields may be given as arrays; see `Batch.of`. Being a named tuple, it is a pytree.

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
    def of(cls, data: DataLike, caller: str = "Batch", name: str = "x", columns: Sequence[str] | None = None) -> Batch:
        """Returns ``data`` as a `Batch` of tensors; one that is that already is returned unchanged.

        Arguments:
            data: Shape ``(B, *event_shape)``: a tensor, an array, a data frame, or a data set (read once, as a
                whole); or a batch, whose fields may be arrays.
            caller: Who asks; begins the message of an error.
            name: What the data are called there.
            columns: Names of the cells of a datum, in whose order the columns of a data frame are put.

        Raises:
            InputError: For anything else, for cells that are not numbers, and for a data frame with other columns.
        """
        if isinstance(data, Tensor):
            return cls(data)
        if isinstance(data, Batch):
            if all(field is None or isinstance(field, Tensor) for field in data):
                return data
            rest = (_field(caller, *pair) for pair in zip(cls._fields[1:], data[1:], strict=True))
            return cls(cls.of(data.x, caller, name, columns).x, *rest)
        if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
            return cls.of(_collated(data, caller), caller, name, columns)
        return cls(as_tensor(data, f"{caller}: `{name}`", _FORMS, columns))

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


DataLike = Union[TensorLike, Batch, "Dataset[Any]"]
"""Data in any of the forms that `Batch.of` takes."""


def x_of(item: Any) -> Any:
    """Returns x of an item such as (x, label), as data sets yield them."""
    return item[0] if isinstance(item, list | tuple) and not isinstance(item, Batch) and len(item) > 0 else item


def _collated(dataset: Any, caller: str) -> Any:
    """The x of all items of a data set."""
    items = [x_of(dataset[i]) for i in range(len(dataset))]
    try:
        data = default_collate(items) if items else torch.empty(0)
    except (TypeError, RuntimeError):  # of no known type, or of several shapes
        data = None
    if isinstance(data, Tensor | Batch):
        return data
    given = sorted({type(item).__name__ for item in items})
    shapes = sorted({tuple(item.shape) for item in items if isinstance(item, Tensor)})
    raise InputError(
        f"{caller}: the items of a data set, or the first of each item, are tensors, arrays or numbers of one shape; "
        "got "
        + ", ".join(f"`{name}`" for name in given)
        + (f" of shapes {', '.join(map(str, shapes[:3]))}" if len(shapes) > 1 else "")
        + "; convert them in its __getitem__ or its transform (images: torchvision's ToTensor())."
    )


def _field(caller: str, name: str, values: Any) -> Any:
    return None if values is None else as_tensor(values, f"{caller}: `{name}`")
