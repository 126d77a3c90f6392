"""Description of a table's columns, as a basis for the choice of their likelihoods."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_vae.datasets.cells import Levels
from pyro_vae.datasets.context import TOTAL, Asked, asked_for
from pyro_vae.datasets.number_format import NumberFormat
from pyro_vae.datasets.user_file import Wanted, read_file


@dataclass(frozen=True)
class Content:
    r"""Description of the observed cells of one column.

    Attributes:
        name: Name of the column.
        levels: Sorted levels of a column of words; None for a column of numbers.
        distinct: Number of distinct values.
        whole: Whether all values are whole numbers.
        low: Least value (0 for words).
        high: Greatest value (number of levels - 1 for words).
        mean: Mean of the values.
        variance: Variance of the values.
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
        r"""Number of levels that a Categorical needs: the greatest code plus 1, or the number of distinct values."""
        return int(self.high) + 1 if self.whole and self.low == 0 and self.high < self.distinct else self.distinct

    @classmethod
    def of(cls, name: str, values: NDArray[np.float64], levels: Levels | None) -> Content:
        r"""Returns the description of a column's numbers or codes; NaN where a cell is missing."""
        seen = values[~np.isnan(values)]
        seen = seen if len(seen) else np.zeros(1)
        whole = bool((np.rint(seen) == seen).all())
        numbers = (float(seen.min()), float(seen.max()), float(seen.mean()), float(seen.var()))
        return cls(name, levels, len(np.unique(seen)), whole, *numbers)


def describe(
    path: str | os.PathLike[str],
    *,
    missing: str | None = None,
    context: Asked = None,
    offset: str | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
) -> tuple[Content, ...]:
    r"""Returns a description of each modelled column of a table, in the file's order.

    Arguments:
        path: Path of a `.csv` or `.parquet` file.
        missing: As for `load`.
        context: As for `load`; these columns are not described.
        offset: As for `load`; this column is not described.
        decimal: As for `load`.
        thousands: As for `load`.

    Raises:
        InputError: As `load`.

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
    numbers = NumberFormat.of(decimal, thousands)
    wanted = Wanted(None, tuple(dict.fromkeys(others)), missing == "mask", all_words=True, numbers=numbers)
    raw = read_file(path, wanted)
    names = raw.columns or tuple(str(index) for index in range(raw.dim))
    array, levels = next(iter(raw.arrays.values())).astype(np.float64), raw.levels or (None,) * raw.dim
    return tuple(Content.of(name, array[:, index], levels[index]) for index, name in enumerate(names))
