r"""Differences of candidates that are evaluated on the same data, with simultaneous intervals over seeds and data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import InputError, near_match
from pyro_vae.evaluation.crossed_effects import Covers, CrossedMean, crossed_mean
from pyro_vae.evaluation.intervals import finite_or_none

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One candidate minus another: the mean over seeds and data with its interval, in nats per datum.

    Attributes:
        label: The candidate.
        baseline: The candidate that is subtracted.
        mean: Mean of the paired differences; nan if no datum has a value in both.
        half_width: Half width of the interval; nan if there is none.
        standard_error: Standard error of ``mean``, for new seeds and new data.
        seed_error: Part of ``standard_error`` that more seeds reduce; 0 with one seed.
        data_error: Part of ``standard_error`` that more data reduce.
        covers: ``"seeds and data"``; ``"data"`` with one seed, whose variation is unknown; None without an interval.
        method: Name of the interval and of its correction for several differences; or why there is no interval.
        num_seeds: Number of seeds that are compared.
        num_data: Number of data that are compared.
    """

    label: str
    baseline: str
    mean: float
    half_width: float
    standard_error: float
    seed_error: float
    data_error: float
    covers: Covers | None
    method: str
    num_seeds: int
    num_data: int

    @property
    def low(self) -> float:
        """Lower end; nan without an interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end; nan without an interval."""
        return self.mean + self.half_width

    @property
    def distinguishable(self) -> bool:
        """Whether there is an interval and 0 is outside it."""
        return self.low > 0 or self.high < 0

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:{spec}}" + ("" if self.covers is None else f" ± {self.half_width:{spec}}")

    def __repr__(self) -> str:
        extent = "no interval" if self.covers is None else f"over {self.covers}"
        return f"Difference({self.label} - {self.baseline}: {self:.2f}, {extent})"

    def record(self) -> dict[str, Any]:
        """Returns the difference, ready for JSON."""
        numbers = {
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "standard_error": self.standard_error,
            "seed_error": self.seed_error,
            "data_error": self.data_error,
        }
        return {
            "label": self.label,
            "baseline": self.baseline,
            **{name: finite_or_none(value) for name, value in numbers.items()},
            "distinguishable": self.distinguishable,
            "covers": self.covers,
            "method": self.method,
            "num_seeds": self.num_seeds,
            "num_data": self.num_data,
        }


@dataclass(frozen=True)
class PairedDifferences:
    """Differences of candidates; with probability ``level``, all their intervals hold the true differences.

    Attributes:
        pairs: The differences.
        baseline: The candidate that is subtracted; None if all pairs are compared.
        level: Coverage of all intervals together.
        num_comparisons: Number of differences that the correction counts.
    """

    pairs: tuple[Difference, ...]
    baseline: str | None
    level: float
    num_comparisons: int

    def __repr__(self) -> str:
        return f"PairedDifferences({', '.join(repr(pair) for pair in self.pairs)})"

    def record(self) -> dict[str, Any]:
        """Returns the differences, ready for JSON."""
        return {
            "baseline": self.baseline,
            "level": self.level,
            "num_comparisons": self.num_comparisons,
            "pairs": [pair.record() for pair in self.pairs],
        }


def paired_differences(
    values: Mapping[str, Tensor],
    baseline: str | None = None,
    level: float = 0.95,
    num_comparisons: int | None = None,
) -> PairedDifferences:
    r"""Returns each candidate minus a baseline, or all pairs, with simultaneous intervals over seeds and data.

    The true difference is the expectation for new seeds and new data. Each interval is Banerjee's (see
    `CrossedMean`), at level 1 - (1 - ``level``) / ``num_comparisons`` (Bonferroni): for all variances of seeds and
    data and all correlations of the differences, the coverage of all intervals together is at least ``level`` if the
    effects of seeds are normal, and those of data are normal or N is large. Few seeds make wide intervals: for seven
    differences, the t quantile over seeds is 11.8 with three seeds, 5.1 with five and 3.0 with twenty.

    A run without a value is left out. Of the data, those are compared that have a value in all remaining runs of
    both candidates: if one candidate has values for the first n data, these n data.

    Arguments:
        values: Values of each candidate, such as log p(x), shape ``(R, N)``, in nats. Row r is the same seed and
            column n the same datum in all candidates. nan marks a missing value.
        baseline: Candidate that is subtracted from each other one; None for all pairs, later minus earlier.
        level: Coverage of all intervals together.
        num_comparisons: Number of differences that the correction counts, if it is more than the number of differences
            with an interval, which is the default. If the baseline was chosen as the best of C candidates by the same
            runs, it is C(C - 1)/2: the choice is among all pairs.

    Raises:
        InputError: If ``values`` is not a mapping of two or more tensors of one shape ``(R, N)``, the baseline is none
            of the candidates, or ``level`` or ``num_comparisons`` is out of range.

    Example:
        >>> import torch
        >>> values = {"A": torch.zeros(2, 3), "B": torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])}
        >>> paired_differences(values, baseline="A").pairs[0]
        Difference(B - A: 2.00 ± 2.48, over seeds and data)
    """
    tables = checked_tables(values)
    if not 0 < level < 1:
        raise InputError(f"paired_differences: `level` is {level}; pass a number between 0 and 1, such as 0.95.")
    if baseline is None:
        labels = [(later, earlier) for earlier, later in itertools.combinations(tables, 2)]
    elif baseline in tables:
        labels = [(label, baseline) for label in tables if label != baseline]
    else:
        raise InputError(f"paired_differences: `{baseline}` is no candidate; {near_match(baseline, tables)}")
    means = [_mean_difference(tables[label], tables[other]) for label, other in labels]
    known = sum(mean.covers is not None for mean in means)
    count = max(known, 1) if num_comparisons is None else num_comparisons
    if count < max(known, 1):
        raise InputError(
            f"paired_differences: `num_comparisons` is {count}, but {known} differences have an interval; pass at "
            f"least {max(known, 1)}."
        )
    each = 1 - (1 - level) / count
    pairs = [_difference(*pair, mean, each, count) for pair, mean in zip(labels, means, strict=True)]
    return PairedDifferences(tuple(pairs), baseline, level, count)


def checked_tables(values: Mapping[str, Tensor]) -> dict[str, Table]:
    """Returns each candidate's values in double precision, shape ``(R, N)``.

    Raises:
        InputError: If ``values`` is not a mapping of tensors, there are fewer than two candidates, or their shapes
            differ or are not ``(R, N)``.
    """
    if not (isinstance(values, Mapping) and all(isinstance(value, Tensor) for value in values.values())):
        raise InputError(
            f"A comparison needs the values of each candidate, got `{type(values).__name__}`; pass a dict of labels "
            "and tensors of shape (seeds, data)."
        )
    if len(values) < 2:
        raise InputError(f"A comparison needs two candidates or more; `values` has {len(values)}. Add a candidate.")
    shapes = {label: tuple(value.shape) for label, value in values.items()}
    (first, expected), *others = shapes.items()
    if len(expected) != 2:
        raise InputError(f"The values of `{first}` have shape {expected}; pass shape (seeds, data).")
    for label, shape in others:
        if shape != expected:
            raise InputError(
                f"The values of `{label}` have shape {shape}, those of `{first}` {expected}; pass one shape (seeds, "
                "data) for all, with nan for missing values."
            )
    return {label: value.detach().double().cpu().numpy() for label, value in values.items()}


def common_cells(tables: Sequence[Table]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns the seeds in which all tables have values, and the data that have a value in all these runs.

    Example:
        >>> a, b = np.array([[1.0, 2.0, math.nan], [1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 3.0], [math.nan] * 3])
        >>> [cells.tolist() for cells in common_cells([a, b])]
        [[0], [0, 1]]
    """
    known = ~np.isnan(tables)
    seeds = known.any(2).all(0)
    data = known[:, seeds].all((0, 1)) if seeds.any() else np.zeros(known.shape[2], dtype=bool)
    return np.flatnonzero(seeds), np.flatnonzero(data)


def _mean_difference(mine: Table, its: Table) -> CrossedMean:
    cells = np.ix_(*common_cells([mine, its]))
    with np.errstate(invalid="ignore"):  # inf - inf is nan: two infinite values, not a missing one
        return crossed_mean(mine[cells] - its[cells])


def _difference(label: str, baseline: str, mean: CrossedMean, level: float, count: int) -> Difference:
    return Difference(
        label=label,
        baseline=baseline,
        mean=mean.mean,
        half_width=mean.half_width(level),
        standard_error=mean.standard_error,
        seed_error=mean.seed_error,
        data_error=mean.data_error,
        covers=mean.covers,
        method=_method(mean, count),
        num_seeds=mean.num_seeds,
        num_data=mean.num_data,
    )


def _method(mean: CrossedMean, count: int) -> str:
    if mean.covers is None:
        return "no interval: " + ("fewer than two common data" if mean.num_data < 2 else "a value is infinite")
    interval = "Banerjee's t interval" if mean.covers == "seeds and data" else "Student's t interval"
    return interval if count == 1 else f"{interval}, Bonferroni for {count} differences"
