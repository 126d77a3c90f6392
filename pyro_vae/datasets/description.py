"""What the columns of a table hold, from which a likelihood of each can be chosen."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_vae.datasets.cells import Levels
from pyro_vae.datasets.context import TOTAL, Asked, asked_for
from pyro_vae.datasets.user_file import Wanted, read_file


@dataclass(frozen=True)
class Content:
    r"""What the observed cells of one column are.

    Attributes:
        name: of the column.
        levels: sorted, where the cells are words; else None.
        distinct: number of distinct values.
        whole: whether all are whole numbers.
        low: least value (of words: 0).
        high: greatest value (of words: number of levels - 1).
        mean: of the values.
        variance: of the values.
    """

    name: str
    levels: Levels | None
    distinct: int
    whole: bool
    low: float
    high: float
    mean: float
    variance: float

    @property
    def num_codes(self) -> int:
        r"""How many levels a Categorical needs: one more than the greatest code, or the number of distinct values."""
        return int(self.high) + 1 if self.whole and self.low == 0 and self.high < self.distinct else self.distinct

    @classmethod
    def of(cls, name: str, values: NDArray[np.float64], levels: Levels | None) -> Content:
        r"""Describe a column's numbers or codes, NaN where a cell is missing."""
        seen = values[~np.isnan(values)]
        seen = seen if len(seen) else np.zeros(1)
        whole = bool((np.rint(seen) == seen).all())
        numbers = (float(seen.min()), float(seen.max()), float(seen.mean()), float(seen.var()))
        return cls(name, levels, len(np.unique(seen)), whole, *numbers)


def describe(
    path: str | os.PathLike[str], *, missing: str | None = None, context: Asked = None, offset: str | None = None
) -> tuple[Content, ...]:
    r"""Describe the columns of a table that are modelled, in the file's order.

    Args:
        path: a `.csv` or `.parquet` file.
        missing: as for `load`.
        context: as for `load`; these columns are left out.
        offset: as for `load`; so is this one.

    Raises:
        DataError: as `load`.

    Example:
        >>> import pathlib, tempfile
        >>> from pyro_vae.datasets import describe
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "people.csv"
        ...     _ = path.write_text("smoker,visits\nyes,3\nno,0\nno,8\n")
        ...     [(column.name, column.levels, column.high) for column in describe(path)]
        [('smoker', ('no', 'yes'), 1.0), ('visits', None, 8.0)]
    """
    others = [*asked_for(context), *([] if offset in (None, TOTAL) else [str(offset)])]
    raw = read_file(path, Wanted(None, tuple(dict.fromkeys(others)), missing == "mask", all_words=True))
    names = raw.columns or tuple(str(index) for index in range(raw.dim))
    array, levels = next(iter(raw.arrays.values())).astype(np.float64), raw.levels or (None,) * raw.dim
    return tuple(Content.of(name, array[:, index], levels[index]) for index, name in enumerate(names))
