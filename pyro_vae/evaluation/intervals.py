r"""Means over seeds with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNBOUNDED = (-math.inf, math.inf)


def finite_or_none(value: float) -> float | None:
    """Returns the number if it is finite, else None, which JSON writes as null."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its Student-t interval.

    Attributes:
        mean: Mean of the values that are not nan; nan if there are none.
        half_width: Half width of the Student-t interval; nan with fewer than two values.
        n: Number of values that are not nan.
        level: Coverage of the interval.
        bounds: Least and greatest value that the quantity can have; the interval's ends are not beyond them.

    Example:
        >>> interval([1.0, 2.0, 3.0])
        Interval(2.00 ± 2.48)
        >>> interval([1.0])
        Interval(1.00)
    """

    mean: float
    half_width: float
    n: int
    level: float = 0.95
    bounds: tuple[float, float] = UNBOUNDED

    @property
    def low(self) -> float:
        """Lower end; nan with fewer than two values."""
        return self._within(self.mean - self.half_width)

    @property
    def high(self) -> float:
        """Upper end; nan with fewer than two values."""
        return self._within(self.mean + self.half_width)

    def _within(self, end: float) -> float:
        return end if math.isnan(end) else min(max(end, self.bounds[0]), self.bounds[1])

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        if math.isnan(self.mean):
            return "-"
        if math.isnan(self.half_width):
            return f"{self.mean:{spec}}"
        if self.bounds != UNBOUNDED:
            return f"{self.mean:{spec}} ({self.low:{spec}} to {self.high:{spec}})"
        return f"{self.mean:{spec}} ± {self.half_width:{spec}}"

    def __repr__(self) -> str:
        return f"Interval({self:.2f})"

    def record(self) -> dict[str, float | int | None]:
        """Returns mean, ends and number of values, ready for JSON; the half width too if the quantity is unbounded."""
        ends = {"mean": self.mean, "low": self.low, "high": self.high}
        widths = {"half_width": self.half_width} if self.bounds == UNBOUNDED else {}
        return {name: finite_or_none(value) for name, value in (ends | widths).items()} | {"n": self.n}


def interval(values: Sequence[float], level: float = 0.95, bounds: tuple[float, float] = UNBOUNDED) -> Interval:
    """Returns the mean of independent values and its Student-t interval.

    Arguments:
        values: One value for each seed; nan for a run without a value.
        level: Coverage of the interval.
        bounds: Least and greatest value that the quantity can have, such as ``(0, math.inf)`` for seconds.
    """
    known = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    n = len(known)
    if n == 0:
        return Interval(math.nan, math.nan, 0, level, bounds)
    if n == 1 or not np.isfinite(known).all():
        return Interval(float(known.mean()), math.nan, n, level, bounds)
    from scipy.stats import t as student_t  # half a second to import

    half = float(student_t.ppf((1 + level) / 2, n - 1) * known.std(ddof=1) / math.sqrt(n))
    return Interval(float(known.mean()), half, n, level, bounds)
