"""Reading of a user's files, data frames and arrays; errors name the first bad cell."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.datasets.cells import Levels, read_cells
from pyro_vae.datasets.csv_file import read_csv
from pyro_vae.datasets.errors import suggestion
from pyro_vae.datasets.files import checksum
from pyro_vae.datasets.number_format import NumberFormat
from pyro_vae.datasets.numpy_file import KEPT, read_numpy
from pyro_vae.datasets.raw_data import RawData, check_finite
from pyro_vae.errors import InputError
from pyro_vae.runtime.outside_file import MOST_EXPANDED, OutsideFile

FORMATS = (".csv", ".parquet", ".npy", ".npz")
# Rows in own units: the path of a file, or an object in memory.
Source = str | os.PathLike[str] | pd.DataFrame | Tensor | NDArray[Any]
_PARTS = ("train", "valid", "test")


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    decimal: str | None = None,
    thousands: str | None = None,
) -> tuple[Tensor, tuple[str, ...] | None]:
    r"""Reads a file as `load` does, but without split and scaling.

    Arguments:
        path: Path of a `.csv` (comma-separated, names in its first line), `.parquet`, `.npy` or `.npz` file. From
            an `.npz` file, the array `x` or `images` is read, or the only array.
        columns: Names of the columns to read, in the wanted order; other columns are left out. If the file has no
            names, only their number is checked.
        decimal: As for `load`.
        thousands: As for `load`.

    Returns:
        The rows, N x D float64 in own units (images are flattened), and the columns' names, if any.

    Raises:
        InputError: If the file is absent, damaged or empty, a cell is not a finite number (the message names its row,
            counted from 1 without the header, and its column), or a column is missing.

    Example:
        >>> import pathlib, tempfile
        >>> from pyro_vae.datasets import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "new.csv"
        ...     _ = path.write_text("height,weight\n1.8,75\n1.7,68\n")
        ...     read_table(path, columns=["weight"])
        (tensor([[75.],
                [68.]], dtype=torch.float64), ('weight',))
    """
    raw = read_file(path, Wanted(columns, numbers=NumberFormat.of(decimal, thousands)))
    if "all" not in raw.arrays:
        sets = ", ".join(f"`{part}`" for part in raw.arrays)
        raise InputError(f"`{path}`: holds the sets {sets}; expected one array: save the rows as the array `x`")
    names = raw.columns if raw.columns is not None else (None if columns is None else tuple(columns))
    return torch.from_numpy(raw.arrays["all"].astype(np.float64)), names


def _level(arrays: Mapping[str, NDArray[Any]]) -> float | None:
    """Returns the greatest possible grey level of images, guessed from their values; None if some are negative."""
    low, high = (float(f([f(array) for array in arrays.values()])) for f in (np.nanmin, np.nanmax))
    if not low >= 0:
        return None
    if high <= 1:
        return 1.0
    return 255.0 if 127 < high <= 255 else high


@dataclass(frozen=True)
class Wanted:
    r"""Requirements on a user's file.

    Attributes:
        columns: Names of the modelled columns of a table, in order; None: all except `others`.
        others: Names of columns that are read but not modelled, such as covariates.
        missing: Whether cells may be missing.
        words: Names of modelled columns that may hold words.
        all_words: Whether all modelled columns may hold words.
        exhaustive: Whether `columns` and `others` must be all of the table's columns.
        levels: Known levels of columns, by name.
        numbers: How numbers are written in a `.csv` file; None for decimal points alone.
    """

    columns: Sequence[str] | None = None
    others: Sequence[str] = ()
    missing: bool = False
    words: frozenset[str] = frozenset()
    all_words: bool = False
    exhaustive: bool = False
    levels: Mapping[str, Levels] = field(default_factory=dict)
    numbers: NumberFormat | None = None

    @property
    def known(self) -> frozenset[str] | None:
        r"""Names of `columns` and `others`; None where all columns of the table are read."""
        return None if self.columns is None or self.exhaustive else frozenset((*self.columns, *self.others))


def read_file(path: str | os.PathLike[str], wanted: Wanted = Wanted()) -> RawData:
    r"""Reads a user's file, without split and scaling; see `read_table` for formats and errors."""
    columns = wanted.columns
    path, suffix = _checked(path, FORMATS)
    files = {path.name: checksum(path)}
    if suffix in (".csv", ".parquet"):
        text = wanted.numbers is not None
        frame = read_csv(path, wanted.known, text) if suffix == ".csv" else _parquet(path)
        raw = replace(_table(str(path), frame, wanted), name=path.stem, files=files)
    else:
        if by_name := [*wanted.others, *(columns or () if wanted.exhaustive else ())]:
            raise InputError(
                f"`{path}`: column `{by_name[0]}` is wanted by name, but a `{suffix}` file has no names; save "
                "the table as `.csv` or `.parquet`"
            )
        arrays = _arrays(path)
        shapes = {array.shape[1:] for array in arrays.values()}
        if len(shapes) > 1:
            raise InputError(
                f"`{path}`: its arrays have rows of different shapes {sorted(shapes)}; save arrays with rows of "
                "one shape"
            )
        shape = shapes.pop()
        flat = {part: array.reshape(len(array), -1) for part, array in arrays.items() if array.size}
        if len(flat) < len(arrays):
            empty = next(part for part in arrays if part not in flat)
            raise InputError(f"`{path}`: array `{empty}` holds zero rows or columns; save at least one of each")
        image = tuple(int(size) for size in shape) if len(shape) > 1 else None
        level = None if image is None else _level(flat)
        raw = RawData(path.stem, flat, files, image_shape=image, level=level, path=str(path), missing=wanted.missing)
        if columns is not None and len(columns) != raw.dim:
            raise InputError(f"`{path}`: got {raw.dim} columns; expected the {len(columns)} of the training data")
    return check_finite(raw)


def read_rows_of(source: Source, wanted: Wanted) -> RawData:
    r"""Reads rows from a file or from memory, with the columns and errors of `read_file`."""
    if isinstance(source, str | os.PathLike):
        return read_file(source, wanted)
    if isinstance(source, pd.DataFrame):
        return from_frame(source, wanted, title_of(source))
    array = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    if wanted.others:
        raise InputError(
            f"`{title_of(source)}`: column `{wanted.others[0]}` is wanted by name, but an array has no names; pass "
            "a DataFrame"
        )
    _check_array(title_of(source), "rows", array)
    raw = RawData("array", {"all": _plain(array).reshape(len(array), -1)}, {}, path="array", missing=wanted.missing)
    if wanted.columns is not None and len(wanted.columns) != raw.dim:
        raise InputError(f"`array`: got {raw.dim} columns; expected the {len(wanted.columns)} of the training data")
    return check_finite(raw)


def from_frame(frame: pd.DataFrame, wanted: Wanted, title: str) -> RawData:
    r"""Reads a data frame as `read_file` reads a file.

    Columns without names (numbered by pandas from 0) are the wanted columns in their order.

    Arguments:
        frame: Rows in own units.
        wanted: Requirements on the frame.
        title: Name of the frame in errors.

    Raises:
        InputError: As `read_table`.
    """
    names = list(wanted.columns or ())
    if names and not wanted.others and frame.columns.tolist() == [*range(len(names))]:
        frame = frame.set_axis(names, axis=1)
    if len(repeated := frame.columns[frame.columns.duplicated()]):
        raise InputError(f"`{title}`: the column name `{repeated[0]}` occurs twice; give each column its own name")
    return check_finite(_table(title, frame, wanted))


def title_of(source: Source) -> str:
    r"""Returns the name of a user's rows in errors: the path of a file, `DataFrame` or `array`."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    return "DataFrame" if isinstance(source, pd.DataFrame) else "array"


def read_frame(path: str | os.PathLike[str], as_text: bool = False) -> pd.DataFrame:
    r"""Reads a `.csv` or `.parquet` file as a data frame, without a check of its cells; see `read_csv`."""
    path, suffix = _checked(path, (".csv", ".parquet"))
    return (read_csv(path, as_text=as_text) if suffix == ".csv" else _parquet(path)).rename(columns=str)


def _checked(path: str | os.PathLike[str], formats: Sequence[str]) -> tuple[Path, str]:
    """Returns the path of a file that exists, and its suffix, one of ``formats``."""
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in formats:
        raise InputError(
            f"`{path}`: got a file of type `{suffix or 'none'}`; expected one of "
            f"{', '.join(f'`{form}`' for form in formats)}: save the data in one of these"
        )
    if not path.exists():
        raise InputError(f"`{path}`: there is no such file; check the path (current folder: `{Path.cwd()}`)")
    _outside(path).check()
    return path, suffix


def _outside(path: Path) -> OutsideFile:
    return OutsideFile(path, f"`{path.suffix.lower()}`", "it may be truncated or damaged; write or copy it again")


def _parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(
            f"`{path}`: reading `.parquet` needs pyarrow; install it by `pip install pyro-vae[parquet]`, or "
            "save the table as `.csv`"
        ) from error
    source = _outside(path)
    with source.reading():
        about = pq.read_metadata(path)
        expanded = 8 * about.num_rows * about.num_columns
        if expanded > MOST_EXPANDED:
            raise InputError(
                f"`{path}`: its {about.num_rows:,} rows of {about.num_columns:,} columns take {expanded:,} bytes, and "
                f"at most {MOST_EXPANDED:,} are read from a compressed file; save the rows with `numpy.save`."
            )
        source.check_memory(expanded)
        return pd.read_parquet(path, engine="pyarrow")


def _select(title: str, frame: pd.DataFrame, columns: Sequence[str], why: str = "") -> pd.DataFrame:
    frame = frame.rename(columns=str)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        have = ", ".join(f"`{name}`" for name in frame.columns)
        raise InputError(
            f"`{title}`: lacks the columns {', '.join(f'`{name}`' for name in missing)}"
            f"{why}{suggestion(missing[0], list(frame.columns))}; it has {have[:300]}: name the columns as in the "
            "training data"
        )
    return frame[list(columns)]


def _table(title: str, frame: pd.DataFrame, wanted: Wanted) -> RawData:
    """Returns the table's modelled columns as one array, with its other columns."""
    frame = frame.rename(columns=str)
    others = _select(title, frame, wanted.others, " of `context` or `offset`")
    if wanted.columns is None:
        modelled = frame.drop(columns=list(wanted.others))
    else:
        modelled = _select(title, frame, wanted.columns)
    names = tuple(str(name) for name in modelled.columns)
    if wanted.exhaustive:
        _check_exhaustive(title, frame, wanted)
    if not names:
        raise InputError(f"`{title}`: no column is left to be modelled; leave one out of `context` and `offset`")
    cells = {
        name: read_cells(
            title,
            name,
            modelled[name],
            missing=wanted.missing,
            words=name in wanted.words or wanted.all_words,
            levels=wanted.levels.get(name),
            numbers=wanted.numbers,
        )
        for name in names
    }
    beside = {
        name: read_cells(
            title,
            name,
            others[name],
            words=True,
            levels=wanted.levels.get(name),
            modelled=False,
            numbers=wanted.numbers,
        )
        for name in wanted.others
    }
    levels = tuple(column.levels for column in cells.values())
    return RawData(
        title,
        {"all": np.stack([column.values for column in cells.values()], axis=1)},
        {},
        columns=names,
        path=title,
        missing=wanted.missing,
        levels=levels if any(level is not None for level in levels) else None,
        others=beside,
        order=tuple(frame.columns),
        rest=frame.drop(columns=[*names, *wanted.others]).reset_index(drop=True),
        numbers=wanted.numbers,
    )


def _check_exhaustive(title: str, frame: pd.DataFrame, wanted: Wanted) -> None:
    """Checks that each column either has a likelihood or conditions the model, not both."""
    names = list(wanted.columns or ())
    if both := [name for name in names if name in wanted.others]:
        raise InputError(
            f"`{title}`: column `{both[0]}` has a likelihood and is in `context` or `offset` too; leave it out of one "
            "of them: a column is modelled or conditions the model"
        )
    if left := [name for name in frame.columns if name not in names and name not in wanted.others]:
        raise InputError(
            f"`{title}`: column `{left[0]}` has no likelihood{suggestion(left[0], names)}; give it one in `mixed`, "
            "name it in `context`, or drop it"
        )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    arrays = read_numpy(path, lambda names: _choose_arrays(path, names))
    for name, array in arrays.items():
        _check_array(str(path), name, array)
    return {name: _plain(array) for name, array in arrays.items()}


def _check_array(title: str, name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind not in "biuf":
        raise InputError(f"`{title}`: array `{name}` is of dtype `{array.dtype}`; save real numbers")
    if array.ndim < 2:
        raise InputError(
            f"`{title}`: array `{name}` has shape {array.shape}; expected rows of columns, N x D, or N images: reshape "
            "a single column to (N, 1)"
        )


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    # Torch lacks kernels for other integers, half and long precision, and other byte orders.
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    return array if array.dtype in KEPT else array.astype(np.float64)


def _choose_arrays(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns the names of the arrays to read, by the name of their set, or by `all`."""
    if path.suffix.lower() == ".npy" and names:
        return {"all": names[0]}
    parts = {part: part for part in _PARTS if part in names}
    if len(parts) > 1 and "train" in parts:
        return parts
    singles: list[str] = [name for name in ("x", "images", "train") if name in names]
    if not singles and len(names) == 1:
        singles = list(names)
    if not singles:
        if {"indices", "indptr", "shape", "format"} <= set(names):
            raise InputError(
                f"`{path}`: holds a sparse matrix of scipy; write it dense, in Python: np.save('dense.npy', "
                "scipy.sparse.load_npz(path).toarray())"
            )
        have = ", ".join(f"`{given}`" for given in names)[:300] or "none"
        raise InputError(
            f"`{path}`: its arrays are {have}; expected `train` with `valid` or `test`, or one array `x` or "
            "`images`: save it under one of these names"
        )
    return {"all": singles[0]}
