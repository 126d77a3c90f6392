r"""Which of the choices that the AEVB paper leaves open meets its figure 2 best: AEVB on MNIST to 1e6 samples.

    python -m benchmarks.aevb_figure2_study                  # 20 runs of a minute; started twice, on two cores

Binarisation none (grey levels), threshold, dynamic and static, with and without Adagrad's warm-up of 100 steps without
update, and for grey levels initial values of variance 0.01 in place of standard deviation 0.01; N_z = 3 and 20, the
stepsize chosen after 1e5 samples as ever. The best setting has the least absolute difference from the published test
bound at 1e6 samples, mean over N_z; `benchmarks.aevb_figure2.SETTING` is that one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks import aevb
from benchmarks.aevb import Setting
from benchmarks.aevb_figure2 import QUICK, Curve, loaded, run, settings_of
from benchmarks.aevb_figure2_summary import PARTS, points, published_at
from benchmarks.runs import Runs, add_arguments
from pyro_vae.datasets import Data

SAMPLES = 1_000_000
LATENTS = (3, 20)
WIDE_STD = 0.1  # where N(0, 0.01) is read as a variance
SETTINGS = (
    *(Setting(binarisation, warmup) for binarisation in aevb.BINARISATIONS for warmup in (aevb.WARMUP, 0)),
    *(Setting("none", warmup, WIDE_STD) for warmup in (aevb.WARMUP, 0)),
)
COLOURS = {"none": "#000000", "threshold": "#D55E00", "dynamic": "#0072B2", "static": "#009E73", "wide": "#CC79A7"}


def name_of(setting: Setting) -> str:
    """Returns a setting in words."""
    wide = "" if setting.initial_std == aevb.INITIAL_STD else f"-std{setting.initial_std:g}"
    return f"{setting.binarisation}-{'warmup' if setting.warmup else 'nowarmup'}{wide}"


def planned() -> dict[str, tuple[Setting, int]]:
    """Returns setting and N_z of each run by its key, those with a warm-up first."""
    ordered = sorted(SETTINGS, key=lambda setting: not setting.warmup)
    return {f"{name_of(setting)}-{latents}": (setting, latents) for setting in ordered for latents in LATENTS}


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Returns how far each setting ends from the published curves, the nearest first."""
    end = min(run["curve"]["samples"][-1] for run in runs.values())
    settings: dict[str, Any] = {}
    for key, (setting, latents) in planned().items():
        if key not in runs:
            continue
        entry = settings.setdefault(name_of(setting), {"setting": asdict(setting), "latents": {}})
        row: dict[str, Any] = {"stepsize": runs[key]["stepsize"]}
        for part in PARTS:
            value = aevb.value_at(points(runs[key], part), end)
            known = published_at("mnist", latents, "aevb", part, end)
            missing = value is None or known is None
            row[part] = {"bound": value, "published": known, "difference": None if missing else value - known}
        entry["latents"][str(latents)] = row
    for entry in settings.values():
        off = [row["test"]["difference"] for row in entry["latents"].values()]
        complete = len(off) == len(LATENTS) and None not in off
        entry["mean_absolute_difference_test"] = sum(map(abs, off)) / len(off) if complete else None
    ranked = dict(sorted(settings.items(), key=lambda item: _last_if_none(item[1])))
    complete = [name for name, entry in ranked.items() if entry["mean_absolute_difference_test"] is not None]
    return {"samples": end, "best": complete[0] if complete else None, "study": ranked}


def _last_if_none(entry: dict[str, Any]) -> float:
    value = entry["mean_absolute_difference_test"]
    return float("inf") if value is None else value


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints the settings, the nearest to the published curves first."""
    table = Table(title=f"AEVB on MNIST at {summary['samples']:.2g} samples; in brackets: minus published, nats")
    table.add_column("setting")
    for latents in LATENTS:
        for column in ("stepsize", "training (running)", "test"):
            table.add_column(f"N_z = {latents}: {column}", justify="right")
    table.add_column("mean |difference|, test", justify="right")
    for name, entry in summary["study"].items():
        cells = []
        for latents in LATENTS:
            row = entry["latents"].get(str(latents))
            cells += ["-"] * 3 if row is None else [f"{row['stepsize']:g}", *(cell(row[part]) for part in PARTS)]
        value = entry["mean_absolute_difference_test"]
        table.add_row(name, *cells, "-" if value is None else f"{value:.2f}")
    console.print(table)
    console.print(f"best: {summary['best']}")


def cell(value: dict[str, Any]) -> str:
    if value["bound"] is None:
        return "-"
    return f"{value['bound']:.1f}" + ("" if value["difference"] is None else f" ({value['difference']:+.1f})")


def draw(runs: dict[str, Any], path: Path) -> None:
    """Draws the test curves of all settings for each N_z, with the published one dashed behind them."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    (grid,) = figure.subplots(1, len(LATENTS), squeeze=False)
    for axes, latents in zip(grid, LATENTS, strict=True):
        known = aevb.published()["figure 2"]["mnist"][str(latents)]["aevb"]["test"]
        style = {"color": "#666666", "ls": "--", "lw": 1.6, "marker": "o", "ms": 4, "zorder": 1}
        axes.plot(*zip(*known[:2], strict=True), label="published (digitised)", **style)
        for key, (setting, size) in planned().items():
            if size == latents and key in runs:
                curve = points(runs[key], "test")
                wide = setting.initial_std != aevb.INITIAL_STD
                colour = COLOURS["wide" if wide else setting.binarisation]
                label = setting.binarisation + (f", initial std {setting.initial_std:g}" if wide else "")
                dotted = {"ls": "-" if setting.warmup else ":", "lw": 1.8}
                shown = label + ("" if setting.warmup else ", no warm-up")
                axes.plot(*zip(*curve, strict=True), color=colour, label=shown, zorder=2, **dotted)
        axes.set(xscale="log", xlabel="training samples evaluated", title=f"$N_z$ = {latents}", ylim=(-200, -95))
        axes.grid(True, color="#e5e5e5", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("test bound, nats per datum")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Does the runs that are missing, prints the table, writes the result and draws it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(seeds=1, threads=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load: Callable[[str], Data] = cache(lambda binarisation: loaded("mnist", binarisation, given.quick))
    protocol = settings_of(given, SETTINGS[0])
    varied = [asdict(setting) for setting in SETTINGS]
    shared = {name: value for name, value in protocol.items() if name not in varied[0] and "frey" not in name}
    runs = Runs("aevb_figure2_study", {**shared, "studied": varied, "samples": SAMPLES, "latents": LATENTS}, given)
    samples, keys = QUICK["samples"] if given.quick else SAMPLES, planned()

    def one(key: str) -> dict[str, Any]:
        setting, latents = keys[key]
        curve = Curve("mnist", latents, "aevb", 0, samples)
        return run(curve, load(setting.binarisation), setting, given, runs.unfinished / key)

    runs.complete(keys, one, summarise)
    console = Console(width=150)
    show(summarise(runs.by_key), console)
    draw(runs.by_key, runs.path.with_suffix(".png"))
    console.print(runs.path)


if __name__ == "__main__":
    main()
