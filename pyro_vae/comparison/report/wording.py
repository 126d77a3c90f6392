"""Numbers and names as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.gradients import GradientNoise
from pyro_vae.evaluation.intervals import Interval

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# A gradient with a larger signal-to-noise ratio counts as free of noise.
NOISELESS = 1e6


def count(n: int, noun: str) -> str:
    """Returns ``one seed``, ``2 seeds``."""
    return f"one {noun}" if n == 1 else f"{n} {noun}s"


def enumerated(names: Sequence[str]) -> str:
    """Returns ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def some_of(n: int, total: int, drawn: bool) -> str:
    """Returns ``all 20 test data``, ``the first 5 of 20 test data`` or ``5 of 20 test data, drawn at random``."""
    if n >= total:
        return f"all {total} test data"
    return f"{n} of {total} test data, drawn at random" if drawn else f"the first {n} of {total} test data"


def number(value: float, spec: str) -> str:
    """Returns a number in the format ``spec``; a dash if it is nan."""
    return "-" if math.isnan(value) else format(value, spec)


def intervals(column: Sequence[Interval], *, sign: bool = False) -> list[str]:
    """Formats a column with two to four decimals: enough for two digits of the widest half width, if possible."""
    sizes = [interval.half_width for interval in column if interval.half_width > 0]
    sizes = [size for size in sizes if math.isfinite(size)]
    decimals = 1 - math.floor(math.log10(max(sizes))) if sizes else 2
    spec = f"{'+' if sign else ''}.{min(max(decimals, 2), 4)}f"
    return [_signed(interval, spec) for interval in column]


def _signed(interval: Interval, spec: str) -> str:
    """Formats an interval with a sign, if any, on its mean only; a mean that is written as 0 has no sign."""
    mean, separator, width = format(interval, spec).partition(" ± ")
    if mean != "-" and float(mean) == 0:
        mean = mean.lstrip("+-")
    return mean + separator + width.removeprefix("+")


def significant(interval: Interval) -> str:
    """Formats one interval of any magnitude: two digits of its half width, and a power of ten if needed.

    An interval that ends where the quantity ends is given by its ends.

    Example:
        >>> significant(Interval(30.26, 5.48, 50)), significant(Interval(1234567.0, 45678.0, 50))
        ('30.3 ± 5.5', '(1.235 ± 0.046)×10⁶')
        >>> significant(Interval(0.0, 0.0, 50)), significant(Interval(float("nan"), float("nan"), 0))
        ('0', '-')
        >>> significant(Interval(0.3, 0.5, 50, bounds=(0.0, math.inf)))
        '0.30 (0 to 0.80)'
    """
    mean, half = interval.mean, interval.half_width
    largest = max(abs(mean), half if math.isfinite(half) else 0.0)
    if not math.isfinite(mean) or largest == 0:
        return number(mean, "g")
    power = math.floor(math.log10(largest))
    power = power if not -4 <= power < 5 else 0
    cut, low, high = interval.low > mean - half, interval.low / 10.0**power, interval.high / 10.0**power
    mean, half = mean / 10.0**power, half / 10.0**power
    known = half > 0
    size = half if known else abs(mean)
    decimals = min(max((1 if known else 2) - math.floor(math.log10(size)), 0), 6)
    text = f"{mean:.{decimals}f}"
    if known and cut:
        text += f" ({low:g} to {high:.{decimals}f})"
    elif known:
        text += f" ± {half:.{decimals}f}"
    if not power:
        return text
    return f"{f'({text})' if known else text}×10{str(power).translate(_SUPERSCRIPTS)}"


def noise(gradient: GradientNoise) -> tuple[str, str]:
    """Formats the variance and the signal-to-noise ratio of a gradient."""
    if gradient.signal_to_noise.mean > NOISELESS:
        return "0", "no noise"
    return significant(gradient.variance), significant(gradient.signal_to_noise)


def estimate(value: Estimate | None) -> tuple[str, str, str]:
    """Formats a value, its Monte Carlo error and its sampling error over data."""
    if value is None:
        return "-", "-", "-"
    return f"{value.value:.3f}", error(value.standard_error), error(value.sampling_error)


def with_errors(value: Estimate) -> str:
    """Formats value ± Monte Carlo error ± sampling error, to two digits of the greater error or three decimals."""
    sizes = [e for e in (value.standard_error, value.sampling_error) if math.isfinite(e) and e > 0]
    decimals = min(max(1 - math.floor(math.log10(max(sizes))), 2), 3) if sizes else 3
    parts = (value.value, value.standard_error, value.sampling_error)
    return " ± ".join(number(part, f".{decimals}f") for part in parts)


def error(value: float) -> str:
    """Formats a standard error to two digits."""
    if not math.isfinite(value) or value <= 0:
        return number(value, "g")
    return f"{value:.{max(1 - math.floor(math.log10(value)), 0)}f}"
