"""Axes to draw on: those of the user, or new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyro_vae.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Panels in a row of a figure.
ACROSS = 3


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Returns the given axes, or those of a new figure.

    Arguments:
        ax: Axes, or None.
        size: Width and height of a new figure, in inches.
    """
    return panels("", ax, 1, size)[0]


def panels(caller: str, ax: Axes | Sequence[Axes] | None, n: int, size: tuple[float, float]) -> list[Axes]:
    """Returns n axes: the given ones, or those of a new figure, at most three in a row.

    Arguments:
        caller: Name of the calling function, for errors.
        ax: Axes, several of them, or None.
        n: Number of axes.
        size: Width and height of each new panel, in inches.

    Raises:
        InputError: If another number of axes is given.
    """
    if ax is not None:
        given = list(np.asarray(ax, dtype=object).flatten())
        if len(given) != n:
            raise InputError(f"{caller}: `ax` has {len(given)} axes, and {n} are drawn on; leave it out, or give {n}.")
        return given
    import matplotlib.pyplot as plt

    across = min(n, ACROSS)
    down = -(-n // across)
    figure = plt.figure(figsize=(size[0] * across, size[1] * down), layout="constrained")
    return [figure.add_subplot(down, across, index + 1) for index in range(n)]


def figure_of(axes: Axes) -> Figure:
    """Returns the figure in which axes lie."""
    figure: Figure | None = axes.get_figure(root=True)
    if figure is None:
        raise InputError("`ax` lies in no figure any more; pass axes of a figure, such as plt.subplots()[1].")
    return figure
