"""Figures as PNG: drawn through matplotlib's objects alone, so that no global figure or style is touched."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Okabe and Ito's colours without the yellow, then three of Tol's: told apart by colour-blind readers, on white.
_PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_PALETTE += ["#332288", "#882255", "#999933"]
# Figures are sized at 100 page pixels an inch and drawn at twice that, for dense screens.
_DPI = 200
_TEXT, _SMALL = 9, 8
_LARGE = 12  # of figures that are shown side by side, made smaller
_GREY, _LIGHT = "#8a8a8a", "#c9c9c9"
# Largest side of a mosaic of images, in device pixels, and the gap between two images.
_SIDE, _GAP = 1000, 4
_MOST_COLUMNS, _MOST_DIMENSIONS = 12, 64


def colours(labels: Sequence[str]) -> dict[str, str]:
    """Returns one colour for each label, in the order given; they repeat after ten."""
    return dict(zip(labels, itertools.cycle(_PALETTE), strict=False))


def learning_curves(
    curves: pd.DataFrame, axis: Literal["samples", "seconds"] = "samples", *, quantity: str = "bound on log p(x)"
) -> bytes:
    """Draws the bound during training: the mean over seeds, within a band from the least to the greatest seed.

    The vertical axis is zoomed to what follows the first tenth of the training, so that the first steps do not
    squash the rest. A curve ends where the first of its seeds stopped. Against seconds, each point of a curve lies
    at the seeds' mean time.

    Arguments:
        curves: What `pyro_vae.run_folder.curves` returns: columns ``algorithm, seed, part, samples, seconds, bound``.
        axis: Training data seen, or seconds of training.
        quantity: What is drawn, for the vertical axis.

    Returns:
        A PNG.
    """
    figure, axes = _figure(6.0, 3.8)
    settled: list[Floats] = []
    colour = colours(list(curves["algorithm"].unique()))
    handles = [Line2D([], [], color=value, label=label) for label, value in colour.items()]
    for label, part in itertools.product(colour, ("train", "validation")):
        band = _band(curves[(curves["algorithm"] == label) & (curves["part"] == part)], axis)
        if band is None:
            continue
        x, mean, low, high = band
        dashed, marker = part == "validation", "o" if len(x) == 1 else ""
        axes.plot(x, mean, color=colour[label], linewidth=1.4, linestyle="--" if dashed else "-", marker=marker)
        if dashed:
            low = high = mean
        axes.fill_between(x, low, high, color=colour[label], alpha=0.2, linewidth=0)
        settled += [low[x >= x[-1] / 10], high[x >= x[-1] / 10]]
    if (curves["part"] == "validation").any():
        handles += [Line2D([], [], color=_GREY, label="training")]
        handles += [Line2D([], [], color=_GREY, linestyle="--", label="validation")]
    _limit(axes, settled)
    axes.set_xlabel("training data seen" if axis == "samples" else "training time (s)", fontsize=_TEXT)
    axes.set_ylabel(f"{quantity} (nats per datum)", fontsize=_TEXT)
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if axis == "samples" else axes.xaxis.get_major_formatter())
    axes.grid(alpha=0.25, linewidth=0.6)
    _legend(axes, handles, loc="lower right")
    return _png(figure)


def image_grid(images: ArrayLike, *, columns: int = 10, limits: tuple[float, float] = (0.0, 1.0)) -> bytes:
    """Draws images in rows, grey from black to white.

    Arguments:
        images: Shape ``(N, H, W)``.
        columns: Images in a row.
        limits: Values that are black and white; what lies beyond is clipped.

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
    """Draws what a two-dimensional latent space decodes to, over a grid of its points.

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
    figure = Figure(figsize=_inches(*size), dpi=_DPI)
    axes = figure.add_axes(
        (left / size[0], bottom / size[1], mosaic.shape[1] / size[0], mosaic.shape[0] / size[1]),
    )
    extent = (-0.5, columns - 0.5, -0.5, rows - 0.5)
    axes.imshow(mosaic, cmap="gray", vmin=limits[0], vmax=limits[1], extent=extent, interpolation="none", aspect="auto")
    axes.set_xticks(*_ticks(first), fontsize=_LARGE)
    axes.set_yticks(*_ticks(second), fontsize=_LARGE)
    axes.set_xlabel("z₁", fontsize=_LARGE)
    axes.set_ylabel("z₂", fontsize=_LARGE, rotation=0)
    return _png(figure)


def kl_bars(kl: Mapping[str, ArrayLike]) -> bytes:
    """Draws the KL of each latent dimension, in descending order.

    Arguments:
        kl: For each algorithm, shape ``(seeds, L)`` or ``(L,)``, in nats. Each seed is sorted by itself, since
            dimensions of different seeds have nothing to do with each other; bars are means over seeds.

    Returns:
        A PNG; of more than 64 dimensions the 64 largest are drawn.
    """
    figure, axes = _figure(9.0, 3.2)
    width, most = 0.8 / len(kl), 1
    for index, (label, values) in enumerate(kl.items()):
        ranked = -np.sort(-np.atleast_2d(np.asarray(values, dtype=np.float64)), axis=1).mean(0)[..., :_MOST_DIMENSIONS]
        most = max(most, len(ranked))
        place = np.arange(1, len(ranked) + 1) - 0.4 + width * (index + 0.5)
        axes.bar(place, ranked, width=width * 0.92, color=colours(list(kl))[label], label=label)
    axes.set_xlabel("latent dimension, by rank", fontsize=_TEXT)
    axes.set_ylabel("KL (nats)", fontsize=_TEXT)
    axes.set_xlim(0.4, most + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True, min_n_ticks=1))
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(axes, axes.get_legend_handles_labels()[0], loc="upper right")
    return _png(figure)


def marginals(test: ArrayLike, samples: Mapping[str, ArrayLike], columns: Sequence[str] | None = None) -> bytes:
    """Draws a histogram of each column: test data filled, each algorithm's samples as a line.

    Arguments:
        test: Shape ``(N, D)``.
        samples: For each algorithm, shape ``(S, D)``.
        columns: Names of the columns.

    Returns:
        A PNG; of more than 12 columns the first 12 are drawn.
    """
    data = np.asarray(test, dtype=np.float64)
    drawn = {label: np.asarray(values, dtype=np.float64) for label, values in samples.items()}
    count = min(data.shape[1], _MOST_COLUMNS)
    names = list(columns) if columns is not None else [f"column {index + 1}" for index in range(count)]
    across = min(count, 3)
    down = -(-count // across)
    figure = Figure(figsize=(0.6 + 2.95 * across, 0.5 + 1.9 * down), dpi=_DPI, layout="constrained")
    for index in range(count):
        axes = figure.add_subplot(down, across, index + 1)
        _style(axes)
        _histogram(axes, data[:, index], {label: values[:, index] for label, values in drawn.items()})
        name = names[index] if len(names[index]) <= 32 else f"{names[index][:31]}…"
        axes.set_title(name, fontsize=_TEXT, parse_math=False)
    colour = colours(list(drawn))
    handles = [Line2D([], [], color=_LIGHT, linewidth=6, label="test data")]
    handles += [Line2D([], [], color=colour[label], linewidth=1.4, label=label) for label in drawn]
    legend = figure.legend(
        handles=handles, loc="outside upper center", ncols=min(across + 1, 4), fontsize=_SMALL, frameon=False
    )
    _plain(legend.get_texts())
    figure.supylabel("density", fontsize=_TEXT)
    return _png(figure)


def _ticks(values: Sequence[float]) -> tuple[list[int], list[str]]:
    """Places and names of at most five of the values."""
    places = np.unique(np.linspace(0, len(values) - 1, min(5, len(values))).round().astype(int)).tolist()
    return places, [f"{values[place]:.2g}".replace("-", "−") for place in places]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    axes.tick_params(labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, handles: Sequence[Any], loc: Literal["lower right", "upper right"]) -> None:
    legend = axes.legend(handles=handles, loc=loc, fontsize=_SMALL, frameon=True, framealpha=0.85, edgecolor="none")
    _plain(legend.get_texts())


def _plain(texts: Sequence[Any]) -> None:
    """Keeps a dollar sign in a name from being read as mathematics."""
    for text in texts:
        text.set_parse_math(False)


def _band(curves: pd.DataFrame, axis: str) -> tuple[Floats, Floats, Floats, Floats] | None:
    """x, mean, least and greatest over seeds, over the stretch that all seeds have; None where nothing is finite."""
    runs = []
    for _, run in curves[np.isfinite(curves["bound"])].groupby("seed"):
        ordered = run.sort_values("samples")
        runs.append([ordered[name].to_numpy(np.float64) for name in ("samples", axis, "bound")])
    if not runs:
        return None
    start, end = max(samples[0] for samples, _, _ in runs), min(samples[-1] for samples, _, _ in runs)
    grid = np.unique(np.concatenate([samples for samples, _, _ in runs]))
    grid = grid[(grid >= start) & (grid <= end)]
    if not len(grid):
        return None
    x = np.mean([np.interp(grid, samples, place) for samples, place, _ in runs], axis=0)
    values = np.stack([np.interp(grid, samples, bound) for samples, _, bound in runs])
    return x, values.mean(0), values.min(0), values.max(0)


def _limit(axes: Axes, settled: Sequence[Floats]) -> None:
    """Zooms the vertical axis to the values that the curves have once training is under way."""
    values = np.concatenate(settled) if settled else np.zeros(0)
    if not len(values):
        axes.text(0.5, 0.5, "no bound was recorded", ha="center", transform=axes.transAxes, fontsize=_TEXT)
        return
    low, high = float(np.quantile(values, 0.01)), float(np.quantile(values, 0.999))
    pad = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - pad, high + pad)


def _histogram(axes: Axes, data: Floats, samples: Mapping[str, Floats]) -> None:
    few = min(max(math.ceil(2 * len(data) ** (1 / 3)), 8), 40)  # Rice's rule: there may be few data, and many samples
    axes.hist(data, bins=_edges(data, {}, few), density=True, color=_LIGHT)
    edges = _edges(data, samples, 30)
    colour = colours(list(samples))
    for label, values in samples.items():
        kept = values[(values >= edges[0]) & (values <= edges[-1])]
        if len(kept):
            # Weights, so that what lies beyond the axis still counts.
            weights = np.full(len(kept), 1 / (len(values) * (edges[1] - edges[0])))
            axes.hist(kept, bins=edges, weights=weights, histtype="step", color=colour[label], linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _edges(data: Floats, samples: Mapping[str, Floats], bins: int) -> list[float]:
    """Edges of bins over the data and the central 98 % of the samples; around whole numbers where there are few.

    Samples with heavy tails widen the axis to three times the data's range at most.
    """
    ends = [np.array([data.min(), data.max()])]
    ends += [np.quantile(finite, [0.01, 0.99]) for v in samples.values() if len(finite := v[np.isfinite(v)])]
    span = float(np.ptp(data)) or math.inf
    low, high = max(float(np.min(ends)), data.min() - span), min(float(np.max(ends)), data.max() + span)
    whole = all(np.array_equal(v, np.round(v)) for v in (data, *samples.values()))
    if whole and high - low < 30:
        return [edge - 0.5 for edge in range(math.floor(low), math.ceil(high) + 2)]
    if high - low <= 1e-12 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1).tolist()


def _mosaic(images: Floats, rows: int, columns: int, gap: int = _GAP) -> np.ma.MaskedArray[Any, Any]:
    """Images side by side, each of its pixels a square of whole device pixels; masked in the gaps."""
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
    figure = Figure(figsize=_inches(width, height), dpi=_DPI, facecolor="none")
    figure.figimage(mosaic, cmap="gray", vmin=limits[0], vmax=limits[1])
    return _png(figure)


def _inches(width: int, height: int) -> tuple[float, float]:
    """The size of a figure of so many device pixels, which matplotlib rounds down."""
    return (width + 0.1) / _DPI, (height + 0.1) / _DPI


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks is drawn as boxes
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
