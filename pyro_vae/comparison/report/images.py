"""Images as figures; each image pixel is a square of whole device pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_vae.comparison.report.style import DPI, Floats, png

_LARGE = 12  # font size for figures that are shown side by side, at a smaller size
# Largest side of a mosaic of images, in device pixels, and the gap between two images.
_SIDE, _GAP = 1000, 4


def image_grid(images: ArrayLike, *, columns: int = 10, limits: tuple[float, float] = (0.0, 1.0)) -> bytes:
    """Draws images in rows, grey from black to white.

    Arguments:
        images: Shape ``(N, H, W)``.
        columns: Images in a row.
        limits: Values that are black and white; values beyond them are clipped.

    Returns:
        A PNG without text or margin.
    """
    values = np.asarray(images, dtype=np.float64)
    rows = -(-len(values) // columns)
    return _mosaic_png(_mosaic(values, rows, min(columns, len(values))), limits)


def reconstructions(data: ArrayLike, reconstructed: ArrayLike, *, limits: tuple[float, float] = (0.0, 1.0)) -> bytes:
    """Draws data in a row over their reconstructions.

    Arguments:
        data: Shape ``(N, H, W)``.
        reconstructed: The same shape.
        limits: Values that are black and white.

    Returns:
        A PNG without text or margin.
    """
    both = np.concatenate([np.asarray(data, dtype=np.float64), np.asarray(reconstructed, dtype=np.float64)])
    return _mosaic_png(_mosaic(both, 2, len(both) // 2), limits)


def latent_manifold(
    images: ArrayLike, first: Sequence[float], second: Sequence[float], *, limits: tuple[float, float] = (0.0, 1.0)
) -> bytes:
    """Draws the images decoded from a grid of points in a two-dimensional latent space.

    Arguments:
        images: Shape ``(len(second), len(first), H, W)``.
        first: z₁ of each column of images, ascending.
        second: z₂ of each row, ascending; drawn upwards.
        limits: Values that are black and white.

    Returns:
        A PNG.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, figure 4.
    """
    grid = np.asarray(images, dtype=np.float64)[::-1]
    rows, columns, height, width = grid.shape
    mosaic = _mosaic(grid.reshape(-1, height, width), rows, columns, gap=2)
    left, bottom, margin = 190, 115, 16
    size = (mosaic.shape[1] + left + margin, mosaic.shape[0] + bottom + margin)
    figure = Figure(figsize=_inches(*size), dpi=DPI)
    axes = figure.add_axes(
        (left / size[0], bottom / size[1], mosaic.shape[1] / size[0], mosaic.shape[0] / size[1]),
    )
    extent = (-0.5, columns - 0.5, -0.5, rows - 0.5)
    axes.imshow(mosaic, cmap="gray", vmin=limits[0], vmax=limits[1], extent=extent, interpolation="none", aspect="auto")
    axes.set_xticks(*_ticks(first), fontsize=_LARGE)
    axes.set_yticks(*_ticks(second), fontsize=_LARGE)
    axes.set_xlabel("z₁", fontsize=_LARGE)
    axes.set_ylabel("z₂", fontsize=_LARGE, rotation=0)
    return png(figure)


def _ticks(values: Sequence[float]) -> tuple[list[int], list[str]]:
    """Places and names of at most five of the values."""
    places = np.unique(np.linspace(0, len(values) - 1, min(5, len(values))).round().astype(int)).tolist()
    return places, [f"{values[place]:.2g}".replace("-", "−") for place in places]


def _mosaic(images: Floats, rows: int, columns: int, gap: int = _GAP) -> np.ma.MaskedArray[Any, Any]:
    """Images side by side; each image pixel is a square of whole device pixels; gaps are masked."""
    _, height, width = images.shape
    stride = max(1, math.ceil(max(rows * height, columns * width) / (2 * _SIDE)))
    images = images[:, ::stride, ::stride]
    _, height, width = images.shape
    scale = max(1, (_SIDE // max(columns, 8) - gap) // width)
    tall, wide = height * scale + gap, width * scale + gap
    shape = (rows * tall - gap, columns * wide - gap)
    mosaic = np.ma.MaskedArray(np.zeros(shape), mask=np.ones(shape, dtype=bool))
    for index, image in enumerate(images):
        top, left = index // columns * tall, index % columns * wide
        mosaic[top : top + height * scale, left : left + width * scale] = image.repeat(scale, 0).repeat(scale, 1)
    return mosaic


def _mosaic_png(mosaic: np.ma.MaskedArray[Any, Any], limits: tuple[float, float]) -> bytes:
    height, width = mosaic.shape
    figure = Figure(figsize=_inches(width, height), dpi=DPI, facecolor="none")
    figure.figimage(mosaic, cmap="gray", vmin=limits[0], vmax=limits[1])
    return png(figure)


def _inches(width: int, height: int) -> tuple[float, float]:
    """The size in inches of a figure with this number of device pixels, which matplotlib rounds down."""
    return (width + 0.1) / DPI, (height + 0.1) / DPI
