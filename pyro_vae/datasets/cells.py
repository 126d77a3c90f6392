"""The cells of one column of a table: numbers, or words stored as codes with their levels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_vae.datasets.errors import quoted, suggestion
from pyro_vae.datasets.number_format import NumberFormat, advice, is_plain
from pyro_vae.errors import InputError

Level = str | float
Levels = tuple[Level, ...]


@dataclass(frozen=True, eq=False)
class Cells:
    r"""The cells of one column.

    Attributes:
        values: Numbers, or the codes 0, 1, ... of `levels`; NaN where the cell is missing. (N,) float64.
        levels: Meanings of the codes 0, 1, ..., sorted; None where `values` are the column's own numbers.
    """

    values: NDArray[np.float64]
    levels: Levels | None = None


def read_cells(
    title: str,
    name: str,
    series: pd.Series,
    *,
    missing: bool = False,
    words: bool = False,
    levels: Levels | None = None,
    modelled: bool = True,
    numbers: NumberFormat | None = None,
) -> Cells:
    r"""Returns the cells of a column.

    Arguments:
        title: Name of the file or table in errors.
        name: Name of the column.
        series: The column as pandas reads it.
        missing: Whether cells may be missing.
        words: Whether cells may be words, which become codes.
        levels: Levels of the training data, the only cells that are allowed; None to take those of the column.
        modelled: Whether the column is modelled. If not, it conditions the model, and no cell may be missing.
        numbers: How numbers are written in cells of text; None for decimal points alone.

    Raises:
        InputError: If a cell is missing, a word or an unknown level where that is not allowed; the message names the
            first such cell.
    """
    empty = series.isna().to_numpy()
    if pd.api.types.is_numeric_dtype(series.dtype) and series.dtype.kind != "c":
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        empty = np.isnan(values)
    else:
        series = series.map(lambda cell: float(cell) if isinstance(cell, bool | np.bool_) else cell)
        if numbers is None:
            values = pd.to_numeric(series.map(str), errors="coerce").to_numpy(dtype=np.float64, copy=True)
        else:
            values = _written(title, name, series, empty, numbers)
    if empty.any() and not missing:
        remedy = (
            "every cell must be a finite number: fill in or drop missing values, or hide them with `missing: mask`"
            if modelled
            else "a column of `context` or `offset` cannot have missing cells, even with `missing: mask`: fill them "
            "in, or drop the row; for `m2`, which takes unknown labels, pass rows of nan in Python: "
            "fit(vae, Batch(x, context=labels), M2())"
        )
        raise InputError(f"`{title}`: found an empty or missing cell in {_place(int(empty.argmax()), name)}; {remedy}")
    if levels is not None:
        return Cells(_codes(title, name, series, values, empty, levels), levels)
    word = np.isnan(values) & ~empty
    if not word.any():
        return Cells(values)
    if not words:
        row = int(word.argmax())
        advice = not_numbers([str(cell) for cell in series[word]], int((~word & ~empty).sum())) or (
            "encode words as numbers, or make them levels: give each column its own likelihood (`mixed: "
            f"{{{name}: Categorical}}`)"
        )
        given = f"found `{quoted(series.iloc[row])}` in {_place(row, name)}"
        raise InputError(f"`{title}`: {given}; every cell must be a finite number: {advice}")
    found: Levels = tuple(sorted({str(cell) for cell in series[~empty]}))
    return Cells(_codes(title, name, series, values, empty, found), found)


def is_number(cell: Level) -> bool:
    r"""Returns whether a cell can be read as a number."""
    return bool(pd.notna(pd.to_numeric(pd.Series([str(cell)]), errors="coerce")).all())


def has_decimal_comma(cell: str) -> bool:
    r"""Returns whether a cell is a number with a comma in place of the decimal point."""
    return re.fullmatch(r"\s*[-+]?\d+(\.\d{3})*,\d+\s*", cell) is not None


# Numbers with commas between thousands.
THOUSANDS = r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?"
# Longest cell that may be meant as a number.
_LONGEST = 100


def not_numbers(words: Sequence[str], numbers: int) -> str | None:
    r"""Returns advice on the cells that are no numbers in a column of numbers; None if the column holds mostly words.

    Arguments:
        words: The cells that are no numbers, or the different ones of them.
        numbers: Number of the column's cells that are numbers.
    """
    # The time of the patterns is quadratic in the length of a cell.
    found = advice([word[:_LONGEST] for word in words], numbers)
    if found is not None or numbers <= len(words):
        return found
    return (
        "most cells of the column are numbers; write the number alone, without a unit, or leave the cell empty "
        "(`missing: mask`)"
    )


def with_levels(cells: Cells) -> Cells:
    r"""Returns a column of numbers as codes: its distinct numbers, in ascending order, are the levels."""
    if cells.levels is not None:
        return cells
    observed = ~np.isnan(cells.values)
    levels, codes = np.unique(cells.values[observed], return_inverse=True)
    values = np.full(len(cells.values), np.nan)
    values[observed] = codes
    return Cells(values, tuple(float(level) for level in levels))


def decoded(values: NDArray[np.float64], levels: Levels | None) -> pd.Series:
    r"""Returns the levels in place of their codes, or the numbers unchanged where ``levels`` is None; NaN stays."""
    if levels is None:
        return pd.Series(values)
    codes = np.where(np.isnan(values), -1, np.clip(np.rint(np.nan_to_num(values)), 0, len(levels) - 1)).astype(int)
    cells = np.array([*levels, None], dtype=object)[codes]
    return pd.Series(cells) if isinstance(levels[0], str) else pd.Series(cells.astype(np.float64))


def _written(
    title: str, name: str, series: pd.Series, empty: NDArray[np.bool_], numbers: NumberFormat
) -> NDArray[np.float64]:
    """Returns the numbers of cells of text; refuses a number that is written in another way than is declared."""
    values = numbers.numbers(series.tolist())
    other = np.isnan(values) & ~empty & np.array([is_plain(cell) for cell in series], dtype=bool)
    if other.any():
        row = int(other.argmax())
        raise InputError(
            f"`{title}`: found `{series.iloc[row]}` in {_place(row, name)}, which is no number with "
            f"`{numbers.keys()}`; between two thousands signs there are three digits: write all numbers in one way"
        )
    return values


def _codes(
    title: str,
    name: str,
    series: pd.Series,
    values: NDArray[np.float64],
    empty: NDArray[np.bool_],
    levels: Levels,
) -> NDArray[np.float64]:
    """Returns the code of each cell; NaN where the cell is empty."""
    if all(isinstance(level, str) for level in levels):
        numeric = pd.api.types.is_numeric_dtype(series.dtype)
        cells: Sequence[Level] = [f"{cell:g}" if numeric else str(cell) for cell in series]
    else:
        cells = list(values)
    code = {level: float(index) for index, level in enumerate(levels)}
    codes = np.array([np.nan if gap else code.get(cell, -1.0) for cell, gap in zip(cells, empty, strict=True)])
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        said = [f"{level:g}" if isinstance(level, float) else level for level in levels]
        given = str(series.iloc[row])
        raise InputError(
            f"`{title}`: found `{quoted(given)}` in {_place(row, name)}, which is no level of the training data"
            f"{suggestion(given, said)}; the levels are {', '.join(f'`{level}`' for level in said)[:300]}"
        )
    return codes


def _place(row: int, name: str) -> str:
    return f"data row {row + 1} (counted from 1, without the header), column `{name}`"
