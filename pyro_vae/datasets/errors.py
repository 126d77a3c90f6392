"""Parts of error messages about data: near matches, choices, damaged files."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_vae.errors import InputError, nearest


def suggestion(given: str, allowed: Sequence[str]) -> str:
    r"""Returns " (did you mean `x`?)" for the allowed name nearest to `given`; an empty string where none is near."""
    near = nearest(given, allowed)
    return "" if near is None else f" (did you mean `{near}`?)"


def check_choice(argument: str, given: object, allowed: Sequence[str]) -> None:
    r"""Checks that the value of an argument is None or one of the allowed words.

    Raises:
        InputError: If it is neither; the message names the argument, the value and the allowed words.
    """
    if given is not None and given not in allowed:
        words = ", ".join(f"`{word}`" for word in allowed)
        raise InputError(
            f"`{argument}`: got `{given}`{suggestion(str(given), allowed)}; pass one of {words}, "
            "or leave it out for the default of the likelihood's support"
        )


def quoted(cell: object) -> str:
    r"""Returns a cell as an error shows it: on one line, and at most 80 characters of it."""
    text = str(cell)[:1000]
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:80]}…"


def first_line(error: BaseException) -> str:
    r"""Returns the first line of an error's message (of its root cause, if named): at most 160 characters."""
    lines = str(error).split("(Caused by ")[-1].strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
