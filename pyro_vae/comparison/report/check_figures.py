"""Figures of the posterior checks and of the noise of the gradients, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from pyro_vae.comparison.report.style import (
    BLUE,
    GREY,
    LIGHT,
    RED,
    SMALL,
    TEXT,
    Floats,
    legend_above,
    new_figure,
    panels,
    png,
)
from pyro_vae.comparison.report.wording import NOISELESS
from pyro_vae.evaluation.calibration import Calibration
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.gap import InferenceGap
from pyro_vae.evaluation.gradients import GradientNoise

# Least and greatest Pareto k-hat that are drawn; the outermost bars contain values beyond them.
K_RANGE = (-1.0, 2.0)


def gap_bars(gaps: Mapping[str, InferenceGap]) -> bytes:
    """Draws approximation and amortization gap as stacked bars, each with its sampling error at its end.

    Estimates below zero are stacked to the left of zero; those that are not finite are not drawn.

    Arguments:
        gaps: Inference gap by algorithm.

    Returns:
        A PNG.
    """
    figure, axes = new_figure(8.0, 0.9 + 0.34 * len(gaps))
    parts = (("approximation", BLUE, -0.17), ("amortization", RED, 0.17))
    for row, gap in enumerate(gaps.values()):
        ends = {True: 0.0, False: 0.0}  # ends of the bars stacked above zero, and below it
        for name, colour, offset in parts:
            part: Estimate = getattr(gap, name)
            if not math.isfinite(part.value):
                continue
            positive = part.value >= 0
            axes.barh(row, part.value, left=ends[positive], height=0.72, color=colour, alpha=0.75, linewidth=0)
            ends[positive] += part.value
            error = part.sampling_error if math.isfinite(part.sampling_error) else 0.0
            axes.errorbar(ends[positive], row + offset, xerr=error, color="black", lw=1.0, capsize=2, capthick=1.0)
    axes.axvline(0, color="black", linewidth=0.8)
    _name_rows(axes, list(gaps))
    axes.set_xlabel("log p(x) − ELBO (nats per datum)", fontsize=TEXT)
    legend_above(figure, [Patch(color=colour, alpha=0.75, label=f"{name} gap") for name, colour, _ in parts], 2)
    return png(figure)


def calibration_panels(calibrations: Mapping[str, Calibration]) -> bytes:
    """Draws the ECDF of each latent dimension's ranks minus the uniform CDF, over the band of a calibrated posterior.

    Arguments:
        calibrations: Calibration by algorithm.

    Returns:
        A PNG with a panel for each algorithm; dimensions that leave the band are red.
    """
    figure, drawn = panels([f"{label}: {leaving(c)}" for label, c in calibrations.items()], 1.9, bottom=0.7)
    for axes, calibration in zip(drawn, calibrations.values(), strict=True):
        x = np.concatenate([[0.0], calibration.points.numpy(), [1.0]])
        lower, upper = (_less_uniform(end.numpy(), x) for end in (calibration.lower, calibration.upper))
        axes.fill_between(x, lower, upper, color=LIGHT, alpha=0.7, linewidth=0)
        for ecdf, inside in zip(calibration.ecdf.numpy(), calibration.uniform.tolist(), strict=True):
            axes.plot(x, _less_uniform(ecdf, x), color=BLUE if inside else RED, linewidth=0.8, alpha=0.8)
        axes.axhline(0, color=GREY, linewidth=0.6)
    drawn[0].set_xlim(0, 1)
    drawn[0].set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "¼", "½", "¾", "1"])
    drawn[0].yaxis.set_major_locator(MaxNLocator(5))
    figure.supxlabel("rank of the simulated latent among draws from q, as a fraction", fontsize=TEXT)
    figure.supylabel("ECDF − uniform", fontsize=TEXT)
    handles = [
        Line2D([], [], color=BLUE, label="dimension inside the band"),
        Line2D([], [], color=RED, label="dimension that leaves it"),
        Patch(color=LIGHT, label="band"),
    ]
    legend_above(figure, handles, 3)
    return png(figure)


def leaving(calibration: Calibration) -> str:
    """Returns how many latent dimensions leave the band: ``3 of 8 leave the band``."""
    outside, total = int((~calibration.uniform).sum()), calibration.uniform.numel()
    return f"{outside or 'none'} of {total} {'leaves' if outside == 1 else 'leave'} the band"


def signal_to_noise_dots(gradients: Mapping[str, Mapping[str, GradientNoise]]) -> bytes:
    """Draws the signal-to-noise ratio of each algorithm's gradients, with its interval, on a logarithmic axis.

    Arguments:
        gradients: Noise by algorithm and group of parameters.

    Returns:
        A PNG. An arrow at the left edge is a ratio of 0; an arrow at the right edge is a gradient without noise.
    """
    figure, axes = new_figure(8.0, 0.9 + 0.34 * len(gradients))
    ratios = [noise.signal_to_noise for groups in gradients.values() for noise in groups.values()]
    drawable = [ratio.mean for ratio in ratios if 0 < ratio.mean < NOISELESS]
    lowest = min([ratio.low for ratio in ratios if 0 < ratio.low < NOISELESS] + drawable, default=0.5)
    highest = max([ratio.high for ratio in ratios if ratio.high < NOISELESS] + drawable, default=2.0)
    left, right = max(lowest, min(drawable, default=lowest) / 10) / 1.4, max(highest, lowest) * 1.4
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if right > 300 * left else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    kinds = {"theta": ("o", BLUE, -0.13), "phi": ("s", RED, 0.13)}
    for row, groups in enumerate(gradients.values()):
        for group, noise in groups.items():
            marker, colour, offset = kinds[group]
            ratio = noise.signal_to_noise
            if not left <= ratio.mean <= right:
                edge, arrow = (right, ">") if ratio.mean > right else (left, "<")
                axes.plot(edge, row + offset, arrow, color=colour, markersize=6, clip_on=False)
                continue
            half = ratio.half_width if math.isfinite(ratio.half_width) else 0.0
            errors = [[min(half, ratio.mean - left)], [half]]
            axes.errorbar(
                ratio.mean, row + offset, xerr=errors, fmt=marker, color=colour, markersize=4, lw=1, capsize=2
            )
    _name_rows(axes, list(gradients))
    axes.set_xlabel("signal-to-noise ratio of the gradient", fontsize=TEXT)
    axes.grid(axis="x", which="both", alpha=0.2, linewidth=0.6)
    names = (("theta", "θ, generative parameters"), ("phi", "φ, inference parameters"))
    handles = [
        Line2D([], [], marker=kinds[group][0], color=kinds[group][1], linestyle="", markersize=4, label=name)
        for group, name in names
    ]
    legend_above(figure, handles, 2)
    return png(figure)


def pareto_panels(k: Mapping[str, ArrayLike], limit: float) -> bytes:
    """Draws a histogram of each algorithm's Pareto k-hat, with lines at 0.5 and at ``limit``.

    Arguments:
        k: Pareto k-hat by algorithm; values that are not finite are left out.
        limit: Largest k-hat of an estimate that can be trusted; bars above it are orange.

    Returns:
        A PNG with a panel for each algorithm.
    """
    finite = {label: (v := np.asarray(values, dtype=np.float64))[np.isfinite(v)] for label, values in k.items()}
    titles = [
        f"{label}: {int((values > limit).sum())} of {len(values)} above {limit}" for label, values in finite.items()
    ]
    edges = _k_edges(np.concatenate(list(finite.values())), limit)
    figure, drawn = panels(titles, 1.8, bottom=0.7)
    for axes, values in zip(drawn, finite.values(), strict=True):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1] - 1e-9), bins=edges)
        ink = [RED if edge >= limit - 1e-9 else BLUE for edge in edges[:-1]]
        axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color=ink)
        for place, line in ((0.5, ":"), (limit, "--")):
            axes.axvline(place, color="black", linestyle=line, linewidth=0.9)
    drawn[0].set_xlim(edges[0], edges[-1])
    drawn[0].xaxis.set_major_locator(MaxNLocator(6))
    drawn[0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("Pareto k-hat", fontsize=TEXT)
    figure.supylabel("test data", fontsize=TEXT)
    lines = ((":", "below 0.5: weights have finite variance"), ("--", f"above {limit}: not to be trusted"))
    legend_above(figure, [Line2D([], [], color="black", lw=0.9, ls=line, label=name) for line, name in lines], 2)
    return png(figure)


def _k_edges(values: Floats, limit: float) -> Floats:
    """Edges of bins of width 0.1; the limit is one of the edges."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    low, high = max(min(low, 0.0), K_RANGE[0]), min(max(high, 1.0), K_RANGE[1])
    start, stop = math.floor(round((low - limit) * 10, 6)), math.ceil(round((high - limit) * 10, 6))
    return limit + np.arange(start, stop + 1) / 10


def _less_uniform(ecdf: Floats, x: Floats) -> Floats:
    return np.concatenate([[0.0], ecdf, [1.0]]) - x


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=SMALL, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
