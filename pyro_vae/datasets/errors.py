"""The one error of the data sets, and the suggestion of a near match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_vae.errors import InputError, nearest


class DataError(InputError):
    r"""Data that cannot be used: one line that says what was given, what was expected and what to do."""


def suggestion(given: str, allowed: Sequence[str]) -> str:
    r"""Return " (did you mean `x`?)" for the allowed name nearest to `given`, or an empty string."""
    near = nearest(given, allowed)
    return "" if near is None else f" (did you mean `{near}`?)"


def check_choice(argument: str, given: object, allowed: Sequence[str]) -> None:
    r"""Refuse a value of an argument that is not one of the allowed words.

    Raises:
        DataError: naming the argument, the value, the allowed values and the nearest of them.
    """
    if given is not None and given not in allowed:
        words = ", ".join(f"`{word}`" for word in allowed)
        raise DataError(
            f"`{argument}`: got `{given}`{suggestion(str(given), allowed)}; pass one of {words}, "
            "or leave it out for the default of the likelihood's support"
        )


def damaged(path: Path, error: BaseException) -> DataError:
    r"""Return the error of a file that cannot be read as its name says."""
    return DataError(
        f"`{path}` cannot be read as `{path.suffix.lower()}` ({first_line(error)}): it may be truncated or "
        "damaged; write or copy it again"
    )


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or its root cause's: at most 160 characters."""
    lines = str(error).split("(Caused by ")[-1].strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
