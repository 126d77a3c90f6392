r"""What travels through every call: data and what is known about them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset, default_collate

from pyro_vae.errors import InputError

# Columns, and rows of these, of a data frame that are converted at once.
_COLUMNS, _ROWS = 16, 2**14

_FORMS = "a Tensor, an ndarray, a DataFrame, a Batch or a torch Dataset (for training, a DataLoader too)"


class ToNumpy(Protocol):
    """A data frame, or what else tells its values by ``to_numpy``."""

    def to_numpy(self) -> NDArray[Any]:
        """Returns the values."""
        ...


TensorLike = Tensor | NDArray[Any] | ToNumpy


class Batch(NamedTuple):
    r"""A minibatch: B data and, optionally, what is known about each of them.

    A `Tensor`, an ndarray, a DataFrame or a torch `Dataset` stands for ``Batch(x)`` wherever a batch is expected, and
    fields may be given as arrays; see `Batch.of`. Being a named tuple, it is a pytree.

    Attributes:
        x: Data, shape ``(B, *event_shape)`` of the likelihood. For a `Program` also a mapping or tuple of tensors
            with B rows.
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
    def of(
        cls,
        data: DataLike,
        caller: str = "Batch",
        name: str = "x",
        columns: Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Batch:
        """Returns ``data`` as a `Batch` of tensors; one that is that already is returned unchanged.

        Arguments:
            data: Shape ``(B, *event_shape)``: a tensor, an array, a data frame, or a data set (read once, as a
                whole); or a batch, whose fields may be arrays.
            caller: Who asks; begins the message of an error.
            name: What the data are called there.
            columns: Names of the cells of a datum, in whose order the columns of a data frame are put.
            dtype: Type for the floating-point numbers of a data frame, which are copied anyway; None for their own.

        Raises:
            InputError: For anything else, for cells that are not numbers, and for a data frame with other columns.
        """
        if isinstance(data, Tensor):
            return cls(data)
        if isinstance(data, Batch):
            if all(field is None or isinstance(field, Tensor) for field in data):
                return data
            rest = (_field(caller, *pair) for pair in zip(cls._fields[1:], data[1:], strict=True))
            return cls(cls.of(data.x, caller, name, columns, dtype).x, *rest)
        if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
            return cls.of(_collated(data, caller), caller, name, columns, dtype)
        return cls(as_tensor(data, f"{caller}: `{name}`", _FORMS, columns, dtype))

    @property
    def size(self) -> int:
        """The number of data B."""
        return _first(self.x).shape[0]

    @property
    def device(self) -> torch.device:
        """Where the data lie."""
        return _first(self.x).device

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the batch, in order."""
        return [leaf for leaf in pytree.tree_leaves(self) if leaf is not None]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Returns the batch with ``function`` applied to every tensor."""
        rest = (None if field is None else function(field) for field in self[1:])
        x = function(self.x) if isinstance(self.x, Tensor) else pytree.tree_map(function, self.x)
        return Batch(x, *rest)

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


def _first(x: Any) -> Tensor:
    """The data themselves, or the first tensor of a mapping or tuple."""
    first: Tensor = x if isinstance(x, Tensor) else pytree.tree_leaves(x)[0]
    return first


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


def as_tensor(
    values: Any,
    name: str,
    forms: str = "a Tensor, an ndarray or a DataFrame",
    columns: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Returns values as a tensor of their own type; a tensor as it is.

    The tensor shares the memory of an array, also of one that is read-only, such as a file's `numpy.memmap`.

    Arguments:
        values: A tensor, an array or a data frame.
        name: What they are called in errors.
        forms: What the caller takes.
        columns: Names of the columns, in whose order those of a data frame are put.
        dtype: Type for the floating-point numbers of a data frame; None for their own.

    Raises:
        InputError: For anything else, for cells that are not numbers, and for a data frame with other columns.
    """
    if isinstance(values, Tensor):
        return values
    if is_frame(values):
        order = None if columns is None else _order(values, columns, name)
        if _is_floating(values):
            return _by_blocks(values, order, dtype)
        array = values.to_numpy()
        array = array if order is None else array[:, order]
    else:
        array = values.to_numpy() if hasattr(values, "to_numpy") else values
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} is {forms}; got `{type(values).__name__}`.")
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"{name}: data must be numeric, got an array of dtype `{array.dtype}`; encode its cells as numbers."
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return _shared(np.ascontiguousarray(array))


def _shared(array: NDArray[Any]) -> Tensor:
    """Returns a tensor in the memory of an array; data are never written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _is_floating(frame: Any) -> bool:
    """Whether all columns of a pandas data frame have one of numpy's floating-point types that torch has too."""
    kinds = set(frame.dtypes) if hasattr(frame, "iloc") else set()
    return len(kinds) == 1 and kinds <= {np.dtype(np.float32), np.dtype(np.float64)}


def _by_blocks(frame: Any, order: Sequence[int] | None, dtype: torch.dtype | None) -> Tensor:
    """Returns the numbers of a data frame, converted some columns at a time, so that nothing is copied twice."""
    (own,) = set(frame.dtypes)
    if order is None and frame.shape[1] and frame.iloc[:, 0].to_numpy().strides[0] > own.itemsize:
        whole = frame.to_numpy()  # it lies row by row in memory, and is shared
        if whole.flags.c_contiguous:
            return _shared(whole) if dtype is None else _shared(whole).to(dtype)
    of_frame = torch.float32 if own == np.float32 else torch.float64
    positions = list(range(frame.shape[1])) if order is None else list(order)
    values = torch.empty(frame.shape, dtype=of_frame if dtype is None else dtype)
    for start in range(0, len(positions), _COLUMNS):
        block = frame.iloc[:, positions[start : start + _COLUMNS]].to_numpy()
        for rows in range(0, len(block), _ROWS):
            part = np.ascontiguousarray(block[rows : rows + _ROWS])
            values[rows : rows + _ROWS, start : start + _COLUMNS] = _shared(part)
    return values


def is_frame(values: Any) -> bool:
    """Whether values have columns with names."""
    return hasattr(values, "columns") and hasattr(values, "to_numpy")


def _order(frame: Any, columns: Sequence[str], name: str) -> list[int]:
    """Where the columns lie in a data frame."""
    given = [str(column) for column in frame.columns]
    if sorted(given) != sorted(columns):
        raise InputError(
            f"{name} has the columns {_listed(given)}, and the likelihood {_listed(columns)}; give the data frame "
            "these columns, in any order, or pass its values, in this order, by to_numpy()."
        )
    return [given.index(column) for column in columns]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
