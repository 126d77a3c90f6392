"""Figures of training, of the latent dimensions and of a table's columns, as PNG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike

from pyro_vae.comparison.report.style import (
    BLUE,
    DPI,
    GREY,
    LIGHT,
    SMALL,
    TEXT,
    Dashes,
    Floats,
    colours,
    inks,
    legend_above,
    new_figure,
    panels,
    png,
    spread,
    style,
)

_MOST_COLUMNS, _MOST_DIMENSIONS = 12, 64
# A curve is off the axis if it lies below the middle curve by more than this multiple of that curve's range.
_FAR = 2


def learning_curves(
    curves: pd.DataFrame, axis: Literal["samples", "seconds"] = "samples", *, quantity: str = "bound on log p(x)"
) -> bytes:
    """Draws the bound during training: the mean over seeds, within a band from the least to the greatest seed.

    The vertical axis shows the values after the first tenth of the training, and leaves out curves far below the
    others; the final value of such a curve follows its name. A curve ends when the first of its seeds stopped. On an
    axis of seconds, each point of a curve lies at the seeds' mean time.

    Arguments:
        curves: Table that `curves` returns: columns ``algorithm, seed, part, samples, seconds, bound``.
        axis: Quantity of the horizontal axis: training data seen, or seconds of training.
        quantity: Name of the bound, for the vertical axis.

    Returns:
        A PNG.
    """
    figure, axes = new_figure(9.0, 3.9)
    settled: dict[str, list[Floats]] = {}
    ends: dict[str, tuple[float, float]] = {}
    ink = inks(list(curves["algorithm"].unique()))
    for label, part in itertools.product(ink, ("train", "validation")):
        band = _band(curves[(curves["algorithm"] == label) & (curves["part"] == part)], axis)
        if band is None:
            continue
        x, mean, low, high = band
        colour, marker, _ = ink[label]
        dashed, marker = part == "validation", "o" if len(x) == 1 else marker
        line = "--" if dashed else "-"
        axes.plot(x, mean, color=colour, lw=1.2, ls=line, marker=marker, markersize=3, markevery=0.1)
        if dashed:
            low = high = mean
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        settled.setdefault(label, []).extend((low[x >= x[-1] / 10], high[x >= x[-1] / 10]))
        ends.setdefault(label, (float(x[-1]), float(mean[-1])))
    _limit(axes, {label: np.concatenate(parts) for label, parts in settled.items()})
    _label_ends(axes, ends, colours(list(ink)))
    axes.set_xlabel("training data seen" if axis == "samples" else "training time (s)", fontsize=TEXT)
    axes.set_ylabel(f"{quantity} (nats per datum)", fontsize=TEXT)
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if axis == "samples" else axes.xaxis.get_major_formatter())
    axes.grid(alpha=0.25, linewidth=0.6)
    if (curves["part"] == "validation").any():
        kinds: tuple[tuple[Dashes, str], ...] = (("-", "training"), ("--", "validation"))
        legend_above(figure, [Line2D([], [], color=GREY, linestyle=line, label=name) for line, name in kinds], 2)
    return png(figure)


def kl_bars(kl: Mapping[str, ArrayLike], layers: Sequence[str] = (), kind: str = "layer") -> bytes:
    """Draws the KL of each latent dimension, in descending order, or of each layer, a panel for each algorithm.

    Arguments:
        kl: KL by algorithm, shape ``(seeds, L)`` or ``(L,)``, in nats; bars are means over seeds. Each seed is
            sorted by itself, because dimensions of different seeds are unrelated.
        layers: Names of the L layers of a hierarchy, or of the L sites of a program, drawn in their order; empty for
            latent dimensions.
        kind: Word for a layer.

    Returns:
        A PNG, with at most 64 dimensions, those with the largest KL.
    """
    figure, drawn = panels(list(kl), 1.9)
    most = 1
    for axes, values in zip(drawn, kl.values(), strict=True):
        each = np.atleast_2d(np.asarray(values, dtype=np.float64))
        ranked = (each if layers else -np.sort(-each, axis=1)).mean(0)[:_MOST_DIMENSIONS]
        most = max(most, len(ranked))
        axes.bar(np.arange(1, len(ranked) + 1), ranked, width=0.8, color=BLUE)
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    drawn[0].set_xlim(0.4, most + 0.6)
    if layers:
        drawn[0].set_xticks(np.arange(1, most + 1), layers[:most])
    else:
        drawn[0].xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    figure.supxlabel(kind if layers else "latent dimension, by rank", fontsize=TEXT)
    figure.supylabel("KL (nats)", fontsize=TEXT)
    return png(figure)


def marginals(test: ArrayLike, samples: Mapping[str, ArrayLike], columns: Sequence[str] | None = None) -> bytes:
    """Draws a histogram of each column: test data filled, each algorithm's samples as a line.

    Arguments:
        test: Shape ``(N, D)``.
        samples: Samples by algorithm, shape ``(S, D)``.
        columns: Names of the columns.

    Returns:
        A PNG, with at most 12 columns, the first ones.
    """
    data = np.asarray(test, dtype=np.float64)
    drawn = {label: np.asarray(values, dtype=np.float64) for label, values in samples.items()}
    count = min(data.shape[1], _MOST_COLUMNS)
    names = list(columns) if columns is not None else [f"column {index + 1}" for index in range(count)]
    across = min(count, 3)
    down = -(-count // across)
    figure = Figure(figsize=(0.6 + 2.95 * across, 0.5 + 1.9 * down), dpi=DPI, layout="constrained")
    for index in range(count):
        axes = figure.add_subplot(down, across, index + 1)
        style(axes)
        observed = data[~np.isnan(data[:, index]), index]
        _histogram(axes, observed, {label: values[:, index] for label, values in drawn.items()})
        name = names[index] if len(names[index]) <= 32 else f"{names[index][:31]}…"
        axes.set_title(name, fontsize=TEXT, parse_math=False)
    handles = [Line2D([], [], color=LIGHT, linewidth=6, label="test data")]
    handles += [
        Line2D([], [], color=ink.colour, ls=ink.dashes, lw=1.4, label=label) for label, ink in inks(list(drawn)).items()
    ]
    legend_above(figure, handles, min(across + 1, 4))
    figure.supylabel("density", fontsize=TEXT)
    return png(figure)


def _band(curves: pd.DataFrame, axis: str) -> tuple[Floats, Floats, Floats, Floats] | None:
    """x; mean, least and greatest bound over seeds, in the range that all seeds share; None if nothing is finite."""
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


def _limit(axes: Axes, settled: Mapping[str, Floats]) -> None:
    """Limits the vertical axis to the values of the curves after the start of training.

    Curves that lie far below the middle curve are left below the axis.
    """
    if not settled:
        axes.text(0.5, 0.5, "no bound was recorded", ha="center", transform=axes.transAxes, fontsize=TEXT)
        return
    middles = {label: float(np.median(values)) for label, values in settled.items()}
    middle = sorted(middles, key=middles.__getitem__)[len(middles) // 2]
    reach = max(float(np.ptp(settled[middle])), max(middles.values()) - middles[middle])
    near = [label for label in settled if middles[middle] - middles[label] <= _FAR * reach]
    values = np.concatenate([settled[label] for label in near or settled])
    low, high = float(np.quantile(values, 0.01)), float(np.quantile(values, 0.999))
    pad = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - pad, high + pad)


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], colour: Mapping[str, str]) -> None:
    """Writes each curve's name right of the axes, near the curve's end and apart from other names, with a thin line."""
    low, high = axes.get_ylim()
    axes.set_xlim(axes.get_xlim()[0], max((x for x, _ in ends.values()), default=1.0))
    heights = [(y - low) / (high - low) for _, y in ends.values()]
    points = axes.get_window_extent().height / DPI * 72
    places = spread(heights, 1.25 * SMALL / points)
    line = {"arrowstyle": "-", "lw": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
    for (label, (x, y)), height, place in zip(ends.items(), heights, places, strict=True):
        name = label if 0 <= height <= 1 else f"{label} ({y:.0f})".replace("-", "−")
        axes.annotate(
            name,
            xy=(x, min(max(y, low), high)),
            xytext=(1.04, float(place)),
            textcoords="axes fraction",
            color=colour[label],
            fontsize=SMALL,
            va="center",
            annotation_clip=False,
            arrowprops=line | {"color": colour[label]},
            parse_math=False,
        )


def _histogram(axes: Axes, data: Floats, samples: Mapping[str, Floats]) -> None:
    few = min(max(math.ceil(2 * len(data) ** (1 / 3)), 8), 40)  # Rice's rule: there may be few data, and many samples
    axes.hist(data, bins=_edges(data, {}, few), density=True, color=LIGHT)
    edges = _edges(data, samples, 30)
    ink = inks(list(samples))
    for label, values in samples.items():
        kept = values[(values >= edges[0]) & (values <= edges[-1])]
        if len(kept):
            # Weights: samples beyond the axis count in the density too.
            weights = np.full(len(kept), 1 / (len(values) * (edges[1] - edges[0])))
            colour, _, dashes = ink[label]
            axes.hist(kept, bins=edges, weights=weights, histtype="step", color=colour, ls=dashes, lw=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _edges(data: Floats, samples: Mapping[str, Floats], bins: int) -> list[float]:
    """Edges of bins over the data and the central 98 % of the samples; around whole numbers if there are few.

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
