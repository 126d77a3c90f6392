"""A user's `.csv` file, whose dialect is checked before its cells."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_vae.datasets.errors import DataError, damaged
from pyro_vae.datasets.files import READ_ERRORS


def read_csv(path: Path, known: Collection[str] | None = None) -> pd.DataFrame:
    r"""Read a comma-separated file with names in its first line.

    Args:
        path: of the file.
        known: names of columns to be read; the text of others, such as identifiers, is kept as it stands. None: all.

    Raises:
        DataError: for a file that is damaged, empty or of another dialect, and for names that are missing or repeated.
    """
    try:
        with warnings.catch_warnings():
            # pandas drops surplus cells with a warning alone.
            warnings.simplefilter("error", pd.errors.ParserWarning)
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
            return frame
    except pd.errors.EmptyDataError as error:
        raise DataError(
            f"`{path}`: holds zero rows; a first line of column names and at least one row are needed"
        ) from error
    except DataError:
        raise
    except (*READ_ERRORS, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise damaged(path, error) from error


def _check_header(path: Path, names: list[str]) -> None:
    if "" in names:
        raise DataError(
            f"`{path}`: column {names.index('') + 1} has no name in the first line; name it, or leave an "
            "index out when writing the file (`index=False` in pandas)"
        )
    repeated = next((name for name in names if names.count(name) > 1), None)
    numbers = pd.to_numeric(pd.Series(names), errors="coerce").notna().all()
    if numbers and names != [str(index) for index in range(len(names))]:
        raise DataError(
            f"`{path}`: its first line holds numbers (`{','.join(names)[:60]}`); expected the columns' "
            "names: add a first line of names"
        )
    if repeated is not None:
        raise DataError(f"`{path}`: the column name `{repeated}` occurs twice; give each column its own name")
