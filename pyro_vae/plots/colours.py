"""Colours that colour-blind readers can distinguish, on a light and on a dark ground."""

from __future__ import annotations

from typing import NamedTuple

# Okabe and Ito's colours without yellow and black, then two of Tol's.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#AA4499")
_MARKERS = ("o", "s", "^", "D", "v")
# Colour map of quantities: lightness rises evenly, also for colour-blind readers.
QUANTITY = "viridis"
GREY = "#8a8a8a"
# Number of different pairs of colour and marker.
MOST = len(_PALETTE) * len(_MARKERS)


class Ink(NamedTuple):
    """How one of several things is drawn: things of the same colour differ in marker."""

    colour: str
    marker: str


def ink(index: int) -> Ink:
    """Returns the ink of a position in a list; they repeat after forty.

    Example:
        >>> ink(0), ink(8)
        (Ink(colour='#0072B2', marker='o'), Ink(colour='#0072B2', marker='s'))
    """
    return Ink(_PALETTE[index % len(_PALETTE)], _MARKERS[index // len(_PALETTE) % len(_MARKERS)])
