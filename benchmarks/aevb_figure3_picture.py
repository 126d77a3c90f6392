"""The panels of figure 3, with the published curves dashed in the background."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from benchmarks import aevb
from benchmarks.aevb_figure3_summary import PAPERS, PARTS, REFERENCE, Contender, Group, curve, grouped, values
from pyro_vae.evaluation.intervals import interval

LIMITS = {
    "1000": {"train": (-150, -100), "test": (-155, -135)},
    "50000": {"train": (-170, -120), "test": (-170, -120)},
}


def draw(runs: dict[str, Any], path: Path) -> None:
    """Draws a column of panels for each N_train: training above test; published curves are dashed."""
    groups = grouped(runs)
    sizes = sorted({who.size for who in groups})
    figure = Figure(figsize=(4.6 * len(sizes) + 0.6, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(sizes), sharex="col", squeeze=False)
    for row, (part, title) in zip(grid, PARTS.items(), strict=True):
        for axes, size in zip(row, sizes, strict=True):
            panel(axes, size, part, {who: group for who, group in groups.items() if who.size == size})
            axes.set_title(f"{size:,} training data" if part == "train" else "", fontsize=11)
        row[0].set_ylabel(f"{title}\nlog p(x), nats per datum")
    for axes in grid[-1]:
        axes.set_xlabel("training samples evaluated, millions")
    names = [name for name in aevb.TITLES if any(who.algorithm == name for who in groups)]
    handles = [Line2D([], [], color=aevb.COLOURS[name], lw=2, label=aevb.TITLES[name]) for name in names]
    grey = "#666666"
    styles = [
        Line2D([], [], color=grey, lw=2, label="importance sampling (thin: with the given option)"),
        Line2D([], [], color=grey, lw=1.2, ls=":", marker=".", label="appendix D"),
        Line2D([], [], color=grey, lw=0, marker="o", ms=4, label="95 % over seeds"),
        Line2D([], [], color=grey, lw=1.6, ls="--", marker="o", ms=3.5, label="published (digitised)"),
    ]
    figure.legend(handles=[*handles, *styles], loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def panel(axes: Axes, size: int, part: str, groups: dict[Contender, Group]) -> None:
    """Draws the longest curves of one N_train on one part, with the interval over several seeds at the end."""
    reached = max(run["curve"][-1]["samples"] for group in groups.values() for run in group.values()) / 1e6
    published = aevb.published()["figure 3"].get(str(size), {})
    for algorithm, parts in published.items():
        style = {"ls": "--", "lw": 1.6, "marker": "o", "ms": 3.5, "alpha": 0.65}
        x, y = zip(*parts[part], strict=True)
        axes.plot([each / 1e6 for each in x], y, color=aevb.COLOURS[algorithm], zorder=1, **style)
    for who, group in groups.items():
        colour = aevb.COLOURS[who.algorithm]
        longest = max(group.values(), key=lambda run: run["curve"][-1]["samples"])
        looks = {REFERENCE: {"lw": 2.0, "zorder": 3}, PAPERS: {"lw": 1.2, "ls": ":", "marker": ".", "zorder": 4}}
        for estimator, look in ({REFERENCE: {"lw": 1.0, "zorder": 2}} if who.apart else looks).items():
            samples, height = zip(*curve(longest, part, estimator), strict=True)
            axes.plot([sample / 1e6 for sample in samples], height, color=colour, **look)
            end = interval(list(values(group, part, samples[-1], estimator).values()))
            if estimator == REFERENCE and not math.isnan(end.half_width):
                axes.errorbar(samples[-1] / 1e6, end.mean, end.half_width, color=colour, fmt="o", ms=4, capsize=4)
        if who.apart:
            beside = {"textcoords": "offset points", "xytext": (3, 3), "fontsize": 7, "zorder": 9}
            halo = [withStroke(linewidth=3, foreground="white")]
            axes.annotate(who.apart, (samples[-1] / 1e6, height[-1]), color=colour, path_effects=halo, **beside)
    axes.set_xlim(0, 70 if published else 1.02 * reached)
    if published:
        axes.set_ylim(LIMITS[str(size)][part])
    axes.grid(True, color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
