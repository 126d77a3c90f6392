r"""How numbers are written in a text file: the decimal sign, and the sign between thousands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pyro_vae.errors import InputError

# A thousands sign that is a space or an apostrophe stands for its typographic forms too.
_FORMS = {" ": " \u00a0\u202f\u2009", "'": "'\u2019"}
_SIGN = r"[€$£¥₹%]|USD|EUR|GBP|CHF"
_MINUS = "-\u2212\u2013"


@dataclass(frozen=True)
class NumberFormat:
    r"""The signs in numbers, such as ``1.070,50`` or ``1 070.50``.

    Groups between thousands signs have exactly three digits, and the first one to three; other cells are no numbers.

    Attributes:
        decimal: Decimal sign.
        thousands: Sign between thousands; None for none.

    Raises:
        InputError: If a sign is no single character, can be part of a number otherwise, or is both.

    Example:
        >>> NumberFormat(",", ".").number("1.070,50"), NumberFormat(thousands=",").number("1,07")
        (1070.5, None)
    """

    decimal: str = "."
    thousands: str | None = None

    def __post_init__(self) -> None:
        for name, sign in (("decimal", self.decimal), ("thousands", self.thousands)):
            if sign is None and name == "thousands":
                continue
            if not isinstance(sign, str) or len(sign) != 1 or sign.isalnum() or sign in '+"_' + _MINUS:
                raise InputError(
                    f'`{name}`: got {sign!r}; expected one character, no digit, letter or minus, such as ","'
                )
            if sign.isspace() and (name == "decimal" or sign not in _FORMS[" "]):
                raise InputError(f'`{name}`: got {sign!r}; expected a sign, such as ","')
        if self.thousands == self.decimal:
            raise InputError(
                f"`thousands`: got {self.thousands!r}, which is the decimal sign too; give `decimal` another sign, "
                f"such as {',' if self.decimal == '.' else '.'!r}"
            )

    @classmethod
    def of(cls, decimal: str | None, thousands: str | None) -> NumberFormat | None:
        """Returns the format with the given signs; None where neither is given."""
        return None if decimal is None and thousands is None else cls("." if decimal is None else decimal, thousands)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        point = re.escape(self.decimal)
        whole = r"\d+"
        if self.thousands is not None:
            between = "".join(map(re.escape, _FORMS.get(self.thousands, self.thousands)))
            whole = rf"[1-9]\d{{0,2}}(?:[{between}]\d{{3}})+|\d+"
        return re.compile(rf"([-+]?)({whole})?(?:{point}(\d*))?(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)

    def number(self, cell: str) -> float | None:
        """Returns the number that a cell writes; None where it writes none in this format."""
        found = self._pattern.fullmatch(cell.strip())
        if found is None or not (found[2] or found[3]):
            return None
        whole = re.sub(r"\D", "", found[2] or "")
        return float(f"{found[1]}{whole or 0}.{found[3] or 0}{found[4] or ''}")

    def keys(self) -> str:
        """Returns the keys of the data section that declare this format."""
        keys = {"decimal": None if self.decimal == "." else self.decimal, "thousands": self.thousands}
        return ", ".join(f'{name}: "{sign}"' for name, sign in keys.items() if sign is not None)

    def numbers(self, cells: Sequence[object]) -> NDArray[np.float64]:
        """Returns the numbers that cells write, nan elsewhere; a cell that is a number already stays as it is."""
        found = [self.number(cell) if isinstance(cell, str) else _plain(str(cell)) for cell in cells]
        return np.array([np.nan if number is None else number for number in found])


def _plain(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def is_plain(cell: object) -> bool:
    """Whether a cell is a finite number with a decimal point, without any other sign."""
    number = _plain(str(cell))
    return number is not None and np.isfinite(number)


# In the order in which they are tried; the first under which all cells are numbers is advised.
_FORMATS = (
    *(NumberFormat(".", thousands) for thousands in (",", " ", "'")),
    NumberFormat(","),
    *(NumberFormat(",", thousands) for thousands in (".", " ", "'")),
)


def advice(words: Sequence[str], numbers: int) -> str | None:
    r"""Returns which keys read the cells that are no numbers, or how to write them; None if they are words.

    Arguments:
        words: The cells that are no numbers, or the different ones of them.
        numbers: Number of the column's cells that are numbers.
    """
    if not words:
        return None
    bare, remarks = list(words), []
    sign = next((found.group() for word in words if (found := re.search(_SIGN, word))), None)
    if sign is not None:
        bare = [re.sub(rf"^(\s*[-+(]?)\s*(?:{_SIGN})\s*|\s*(?:{_SIGN})(\s*[-)]?\s*)$", r"\1\2", word) for word in words]
        remarks.append(
            f"leave out the sign `{sign}` and write the number alone (in pandas, "
            f"frame[column].str.replace({sign!r}, '', regex=False))"
        )
    signed = [_with_minus_in_front(word) for word in bare]
    if signed != bare:
        example = next(word for word, own in zip(bare, signed, strict=True) if word != own)
        remarks.append(
            f"write a negative number with a `-` in front, `{_with_minus_in_front(example)}` for `{example}`"
        )
    plain = all(is_plain(cell) for cell in signed)
    key = None if plain else _keys(signed, numbers)
    if not plain and key is None:
        return None
    return "; ".join([*remarks, *([key] if key else [])]) or None


def _keys(cells: Sequence[str], numbers: int) -> str | None:
    """Returns the keys for cells of which some are no plain numbers; None where no format reads all of them."""
    found = next((each for each in _FORMATS if all(each.number(cell) is not None for cell in cells)), None)
    if found is None:
        return None
    first = next(cell.strip() for cell in cells if not is_plain(cell))
    read = found.number(first)
    said = f"`{found.keys()}` in the data section of the experiment file reads `{first}` as {read:.15g}"
    other = NumberFormat(",")
    if found == _FORMATS[0] and not numbers and all(other.number(cell) is not None for cell in cells):
        return f"{said}; `{other.keys()}` reads it as {other.number(first):.15g}: choose the one that is meant"
    return said


def _with_minus_in_front(cell: str) -> str:
    """Returns a number with a minus behind it, or in parentheses, or with a typographic minus, as ``-`` and number."""
    found = re.fullmatch(rf"\s*(?:\(\s*(\d.*?)\s*\)|(\d.*?)\s*[{_MINUS}]|[\u2212\u2013]\s*(\d.*?))\s*", cell)
    return cell if found is None else "-" + next(part for part in found.groups() if part)
