r"""The mean of a table of seeds and data, with an interval over both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Covers = Literal["seeds and data", "data"]


@dataclass(frozen=True)
class CrossedMean:
    r"""The mean of a table d of R seeds and N data, as an estimate for new seeds and new data.

    Seeds and data are crossed random effects, with one value in each cell:

    .. math:: d_{rn} = \mu + a_r + b_n + e_{rn}, \qquad
        \operatorname{Var}(\bar d) = \frac{\sigma_a^2}{R} + \frac{\sigma_b^2}{N} + \frac{\sigma_e^2}{RN}

    With the mean squares of seeds, data and error, this variance is estimated by

    .. math:: \underbrace{\frac{MS_a}{RN}}_{\text{seeds}} +
        \underbrace{\frac{\max(MS_b - MS_e, 0)}{RN}}_{\text{data}}

    as in studies where all readers read all cases (Hillis, Berbaum and Metz, 2008, "Recent developments in the
    Dorfman-Berbaum-Metz procedure for multireader ROC study analysis"). The first part contains
    :math:`\sigma_e^2/RN`. With one seed, the first part is 0, and the second is the sample variance over N.

    Attributes:
        mean: Mean of the table.
        seed_error: Square root of the first part; 0 with one seed.
        data_error: Square root of the second part.
        num_seeds: R.
        num_data: N.

    Example:
        >>> mean = crossed_mean(np.array([[0.0, 2.0], [2.0, 4.0]]))
        >>> mean.mean, mean.seed_error, mean.data_error
        (2.0, 1.0, 1.0)
    """

    mean: float
    seed_error: float
    data_error: float
    num_seeds: int
    num_data: int

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; nan if it is unknown."""
        return math.hypot(self.seed_error, self.data_error)

    @property
    def covers(self) -> Covers | None:
        """The variation that the standard error covers; None if it is unknown."""
        if math.isnan(self.standard_error):
            return None
        return "seeds and data" if self.num_seeds > 1 else "data"

    def half_width(self, level: float) -> float:
        r"""Returns the half width of Banerjee's interval; nan if the standard error is unknown.

        .. math:: h^2 = t_{R-1}^2 \, \frac{MS_a}{RN} + t_{N-1}^2 \, \frac{\max(MS_b - MS_e, 0)}{RN}

        With normal effects and known degrees of freedom, its coverage is at least ``level``, for all variances:
        P(Z² ≤ x) is concave in x, so the coverage is at least the weighted mean of the coverages of the parts. (The
        maximum makes the second part an approximation.) Without variance over data it is Student's t interval of the
        seeds' means; with one seed it is Student's t interval over data. Satterthwaite's degrees of freedom give
        shorter intervals, but these cover too little with two or three seeds: the part of the seeds is often
        estimated near 0, and the degrees of freedom are then too many.

        Source: Banerjee (1960), "Approximate confidence interval for linear functions of means of k populations when
        the population variances are not equal", Sankhyā 22.

        Arguments:
            level: Coverage of the interval.
        """
        if self.covers is None:
            return math.nan
        over_data = _student_quantile(level, self.num_data - 1) * self.data_error
        if self.covers == "data":
            return over_data
        return math.hypot(_student_quantile(level, self.num_seeds - 1) * self.seed_error, over_data)


def crossed_mean(table: NDArray[np.float64]) -> CrossedMean:
    """Returns the mean of a table and its errors; the errors are nan with fewer than two data or an infinite value.

    Arguments:
        table: One value for each seed and datum, shape ``(R, N)``, without nan.
    """
    num_seeds, num_data = table.shape
    if table.size == 0:
        return CrossedMean(math.nan, math.nan, math.nan, num_seeds, num_data)
    with np.errstate(invalid="ignore"):  # the mean of inf and -inf is nan
        mean = float(table.mean())
    if num_data < 2 or not np.isfinite(table).all():
        return CrossedMean(mean, math.nan, math.nan, num_seeds, num_data)
    of_seeds, of_data = table.mean(1) - mean, table.mean(0) - mean
    over_data = float(np.square(of_data).sum()) / (num_data - 1) / num_data
    if num_seeds < 2:
        return CrossedMean(mean, 0.0, math.sqrt(over_data), num_seeds, num_data)
    rest = table - mean - of_seeds[:, None] - of_data
    over_seeds = float(np.square(of_seeds).sum()) / (num_seeds - 1) / num_seeds
    error = float(np.square(rest).sum()) / ((num_seeds - 1) * (num_data - 1)) / table.size
    return CrossedMean(mean, math.sqrt(over_seeds), math.sqrt(max(over_data - error, 0.0)), num_seeds, num_data)


def _student_quantile(level: float, degrees_of_freedom: int) -> float:
    """Returns the t with P(abs(T) < t) = level."""
    from scipy.special import stdtrit  # a tenth of a second to import

    return -float(stdtrit(degrees_of_freedom, (1 - level) / 2))
