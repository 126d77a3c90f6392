"""Reading of a user's `.csv` file, with a check of its separator, names and encoding."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_vae.datasets.cells import THOUSANDS, has_decimal_comma
from pyro_vae.datasets.errors import first_line
from pyro_vae.errors import InputError
from pyro_vae.runtime.outside_file import OutsideFile

# Wrong separators that are recognised, for the error message.
_SEPARATORS = (";", "\t", "|")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# Longest line in bytes, longest name, largest number of columns, and bytes that are looked at in one go.
_MOST_LINE, _MOST_NAME, _MOST_COLUMNS, _CHUNK = 2**24, 1_000, 100_000, 2**20


def read_csv(path: Path, known: Collection[str] | None = None, as_text: bool = False) -> pd.DataFrame:
    r"""Reads a comma-separated file with names in its first line.

    Arguments:
        path: Path of the file.
        known: Names of the columns to parse; the cells of others, such as identifiers, stay text. None: all.
        as_text: Whether the cells of parsed columns stay text too, for numbers in another format; empty cells are NaN.

    Raises:
        InputError: If the file is damaged, empty or in another dialect, or a column name is missing or repeated.
    """
    source = OutsideFile(path, "`.csv`", "it may be truncated or damaged; write or copy it again")
    with source.reading():
        _check_lines(source)
        _check_width(path)
        return _parsed(path, known, as_text)


def _parsed(path: Path, known: Collection[str] | None, as_text: bool) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # pandas drops surplus cells and only warns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            _check_separator(path)
            options: dict[str, Any] = {"skipinitialspace": True, "encoding": "utf-8-sig"}
            head = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **options)
            names = [str(name) for name in head.iloc[0]]
            _check_header(path, names)
            options |= {"index_col": False, "low_memory": False, "skip_blank_lines": len(names) > 1}
            frame = pd.read_csv(path, **options)
            rest = [] if known is None else [name for name in frame.columns if name not in known]
            if rest:
                text = pd.read_csv(path, dtype=str, keep_default_na=False, **options)
                frame = frame.assign(**{name: text[name] for name in rest})
            if as_text:
                text = pd.read_csv(path, dtype=str, **options)
                kept = [name for name in frame.columns if name not in rest and frame[name].dtype != np.bool_]
                frame = frame.assign(**{name: text[name] for name in kept})
            return frame
    except pd.errors.EmptyDataError as error:
        raise InputError(
            f"`{path}`: holds zero rows; write a first line of column names and at least one row"
        ) from error
    except UnicodeDecodeError as error:
        encoding = _encoding(path)
        raise InputError(
            f"`{path}` is not in UTF-8 (byte {error.object[error.start]:#x}); "
            + _advice({"encoding": encoding, **_dialect(path, encoding, "replace")})
        ) from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise InputError(
            f"`{path}` cannot be read: each row needs as many cells as the first line has names ({first_line(error)}); "
            "write decimal points, not commas, and quotes around a cell that has a comma; copy a damaged file again"
        ) from error


def _check_lines(source: OutsideFile) -> None:
    """Refuses a file with a NUL byte, at which pandas would cut a cell, or with an endless line."""
    length, place = 0, 0
    with source.path.open("rb") as stream:
        if stream.read(2) in _UTF_16:  # another error says how to write it again
            return
        stream.seek(0)
        while chunk := stream.read(_CHUNK):
            if (found := chunk.find(b"\0")) >= 0:
                raise source.error(f"is no text in UTF-8: byte {place + found + 1:,} is NUL")
            ends = [end for end in (chunk.find(b"\n"), chunk.find(b"\r")) if end >= 0]
            length += min(ends, default=len(chunk))
            if length > _MOST_LINE:
                raise source.error(f"has a line of more than {_MOST_LINE:,} bytes")
            if ends:
                length = len(chunk) - max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) - 1
            place += len(chunk)


def _check_width(path: Path) -> None:
    with path.open("rb") as stream:
        columns = stream.readline(_MOST_LINE).count(b",") + 1
    if columns > _MOST_COLUMNS:
        raise InputError(
            f"`{path}`: has {columns:,} columns, and at most {_MOST_COLUMNS:,} are read; save the rows with "
            "`numpy.save`"
        )


def _check_separator(path: Path) -> None:
    if dialect := _dialect(path, "utf-8-sig"):
        raise InputError(
            f"`{path}`: its first line and its rows look separated by {dialect['sep']!r}, not by commas; "
            + _advice(dialect)
        )


def _dialect(path: Path, encoding: str, errors: str = "strict") -> dict[str, str]:
    """Returns the options of `read_csv` for a file with another separator than the comma; else an empty dictionary."""
    with path.open(encoding=encoding, errors=errors) as lines:
        head, *rows = [line.rstrip("\n") for line in islice(lines, 20)] or [""]
    separator = next((each for each in _SEPARATORS if each in head and all(each in row for row in rows if row)), None)
    if separator is None or "," in head:
        return {}
    commas = [cell.strip() for row in rows for cell in row.split(separator) if has_decimal_comma(cell)]
    name = "thousands" if all(re.fullmatch(THOUSANDS, cell) for cell in commas) else "decimal"
    return {"sep": separator, **({name: ","} if commas else {})}


def _encoding(path: Path) -> str:
    """Returns the likely encoding of a file that is not in UTF-8."""
    with path.open("rb") as stream:
        return "utf-16" if stream.read(2) in _UTF_16 else "latin-1"


def _advice(dialect: Mapping[str, str]) -> str:
    """Returns how to rewrite a file of another dialect, given the options of `read_csv` for it."""
    options = ", ".join(f"{name}={value!r}" for name, value in dialect.items())
    return (
        "write it with commas between cells, decimal points, and in UTF-8: in pandas, "
        f"read_csv(path, {options}).to_csv(path, index=False)"
    )


def _check_header(path: Path, names: list[str]) -> None:
    if "" in names:
        raise InputError(
            f"`{path}`: column {names.index('') + 1} has no name in the first line; name it, or write the file "
            "without an index (`index=False` in pandas)"
        )
    longest = max(names, key=len)
    if len(longest) > _MOST_NAME:
        raise InputError(
            f"`{path}`: column {names.index(longest) + 1} has a name of {len(longest):,} characters; name it by "
            f"{_MOST_NAME:,} at most"
        )
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    numbers = pd.to_numeric(pd.Series(names), errors="coerce").notna().all()
    if numbers and names != [str(index) for index in range(len(names))]:
        raise InputError(
            f"`{path}`: its first line holds numbers (`{','.join(names)[:60]}`), not column names; add a first line of "
            "names"
        )
    if repeated is not None:
        raise InputError(f"`{path}`: the column name `{repeated}` occurs twice; give each column its own name")
