"""Style of all figures, set on matplotlib objects only: no global figure or style is changed."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Okabe and Ito's colours without yellow, then three of Tol's; colour-blind readers can distinguish them on white.
_PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_PALETTE += ["#332288", "#882255", "#999933"]
BLUE, RED = _PALETTE[:2]
# An inch of a figure is 100 page pixels; it is drawn with 200 pixels, for high-resolution screens.
DPI = 200
TEXT, SMALL = 9, 8
GREY, LIGHT = "#8a8a8a", "#c9c9c9"


Dashes = Literal["-", "--", ":"]


class Ink(NamedTuple):
    """How an algorithm is drawn; algorithms of the same colour differ in marker and dashes.

    Attributes:
        colour: One of ten.
        marker: Marker of points along a curve; empty for the first ten algorithms.
        dashes: Dashes of a line without points.
    """

    colour: str
    marker: str
    dashes: Dashes


def inks(labels: Sequence[str]) -> dict[str, Ink]:
    """Returns one ink for each label, in the order given; up to thirty inks are all different."""
    rounds: tuple[tuple[str, Dashes], ...] = (("", "-"), ("o", "--"), ("s", ":"))
    return {
        label: Ink(_PALETTE[index % len(_PALETTE)], *rounds[index // len(_PALETTE) % len(rounds)])
        for index, label in enumerate(labels)
    }


def colours(labels: Sequence[str]) -> dict[str, str]:
    """Returns one colour for each label, in the order given; they repeat after ten."""
    return {label: ink.colour for label, ink in inks(labels).items()}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure with one pair of axes; width and height are in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    style(axes)
    return figure, axes


# Number of characters in the titles of all panels in a row.
_CHARACTERS = 120


def panels(titles: Sequence[str], height: float, *, bottom: float = 0.45) -> tuple[Figure, list[Axes]]:
    """Returns a figure with one panel for each title, three or four in a row; all panels share both axes.

    Arguments:
        titles: Titles of the panels.
        height: Height of a panel, in inches.
        bottom: Height of labels and legend below or above all panels, in inches.
    """
    n = len(titles)
    across = n if n <= 3 else 3 if n in (5, 6, 9) else 4
    down = -(-n // across)
    size = (10.2 if across > 1 else 6.0, bottom + height * down)
    figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1))
    drawn: list[Axes] = []
    for index, title in enumerate(titles):
        shared = drawn[0] if drawn else None
        axes = figure.add_subplot(down, across, index + 1, sharex=shared, sharey=shared)
        style(axes)
        axes.set_title(textwrap.fill(str(title), _CHARACTERS // across), fontsize=TEXT, parse_math=False)
        axes.tick_params(labelleft=index % across == 0, labelbottom=index + across >= n)
        drawn.append(axes)
    return figure, drawn


def style(axes: Axes) -> None:
    """Sets small tick labels, and removes the upper and the right line."""
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """Draws a legend above all axes."""
    drawn = figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=SMALL, frameon=False)
    plain(drawn.get_texts())


def plain(texts: Sequence[Any]) -> None:
    """Keeps a dollar sign in a name from being read as mathematics."""
    for text in texts:
        text.set_parse_math(False)


def spread(wanted: Sequence[float], gap: float) -> Floats:
    """Returns places in [0, 1] near the ``wanted`` places of labels, at least ``gap`` apart if there is room.

    Example:
        >>> spread([0.5, 0.0, 0.5], 0.1).round(2).tolist()
        [0.45, 0.0, 0.55]
    """
    order = np.argsort(wanted, kind="stable")
    places = np.clip(np.asarray(wanted, dtype=np.float64)[order], 0.0, 1.0)
    steps = min(gap, 1.0 / max(len(places) - 1, 1)) * np.arange(len(places))
    # The mean of two solutions without overlap: places moved up, and places moved down.
    up = np.maximum.accumulate(places - steps) + steps
    up = np.minimum(up, 1.0 - steps[::-1])
    down = np.minimum.accumulate((places + steps[::-1])[::-1])[::-1] - steps[::-1]
    down = np.maximum(down, steps)
    result = np.empty_like(places)
    result[order] = (up + down) / 2
    return result


def png(figure: Figure) -> bytes:
    """Returns the figure as a PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks is drawn as a box
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
