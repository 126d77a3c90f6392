"""Passes over large arrays, some rows at a time, so that they take little memory beside the data."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Number of cells that are read or computed with at once.
_CELLS = 2**20


def row_blocks(array: NDArray[Any] | Tensor) -> Iterator[slice]:
    """Yields slices that cover the rows of a table in order; at the end of each, what was read of a file is released.

    Arguments:
        array: Shape ``(N, D)``; maybe a file's `numpy.memmap`.
    """
    step = max(1, _CELLS // max(1, array.shape[1]))
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))
        release(array)


def release(array: Any) -> None:
    """Lets the process forget the pages of a file that an array maps; they are read again where they are needed."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


def taken(array: NDArray[Any], rows: Tensor | None) -> Tensor:
    """Returns rows of an array as a tensor: a copy of the chosen ones, or the array itself.

    Arguments:
        array: Shape ``(N, ...)``.
        rows: Indices of the rows, without repetition; None for all, in order.
    """
    with warnings.catch_warnings():  # nothing is written to it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        x = torch.from_numpy(np.asarray(array))
    if rows is None:
        return x
    if not isinstance(array, np.memmap):
        return x[rows]
    found = torch.empty((len(rows), *x.shape[1:]), dtype=x.dtype)
    in_file, order = rows.sort()
    for block in row_blocks(array):
        first, last = torch.searchsorted(in_file, torch.tensor([block.start, block.stop])).tolist()
        found[order[first:last]] = x[in_file[first:last]]
    return found
