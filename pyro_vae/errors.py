"""What the library raises when an input cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Names up to which an error lists all of them.
_LISTED = 25
# Characters of a name that are compared: the time is quadratic in their number.
_COMPARED = 100


class InputError(ValueError):
    """An input that cannot be used: the message says what was given, what is expected and what to do."""


class WriteError(OSError):
    """A file cannot be written: the message says which, why and what to do; what stood there stands as it was."""


class NonFiniteError(ArithmeticError):
    """Training met a loss or a gradient that is not finite; the last good parameters are in place."""


def shown(value: float) -> str:
    """Returns a number with as few digits as tell it from its neighbours, six or more: `61959.03`, not `61959`.

    Example:
        >>> shown(0.5), shown(61959.03), shown(2.0)
        ('0.5', '61959.03', '2')
    """
    texts = [f"{value:.{digits}g}" for digits in range(6, 17)]
    return next((text for text in texts if abs(float(text) - value) <= 3e-8 * abs(value)), texts[-1])


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Returns the allowed name that is nearest to a mistyped one; None where none is near."""
    lowered = {candidate.lower(): candidate for candidate in allowed}
    near = difflib.get_close_matches(name[:_COMPARED].lower(), list(lowered), n=1)
    return lowered[near[0]] if near else None


def near_match(name: str, allowed: Iterable[str]) -> str:
    """Returns `` did you mean `x`?`` for the nearest of ``allowed``; where none is near, the list (or three).

    Example:
        >>> near_match("Bernouli", ["Bernoulli", "Normal"])
        'did you mean `Bernoulli`?'
        >>> near_match("q", ["Bernoulli", "Normal"])
        'expected one of `Bernoulli`, `Normal`.'
    """
    names = list(allowed)
    near = nearest(name, names)
    if near is not None:
        return f"did you mean `{near}`?"
    if len(names) > _LISTED:
        likely = difflib.get_close_matches(name[:_COMPARED], names, n=3, cutoff=0.0)
        return f"expected one of {len(names)} names, such as {', '.join(f'`{candidate}`' for candidate in likely)}."
    return "expected one of " + ", ".join(f"`{candidate}`" for candidate in names) + "."
