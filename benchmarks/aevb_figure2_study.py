r"""A study of the choices that the AEVB paper does not specify: which of them fits figure 2 best (MNIST, 1e6 samples).

    python -m benchmarks.aevb_figure2_study                  # 26 runs of minutes; start it twice for two cores

AEVB: binarisation none (grey levels), threshold, dynamic and static, with and without Adagrad's warm-up of 100 steps
without update; for grey levels also initial values of variance 0.01 instead of standard deviation 0.01. N_z is 3 and
20, and the stepsize is chosen after 1e5 samples. The best setting has the least absolute difference from the published
test bound at 1e6 samples, mean over N_z; it is `benchmarks.aevb_figure2.SETTING`.

Wake-sleep, with N_z = 3, 20 and 200: the encoder's log variances are its outputs, as in the paper, or a tenth of them,
as in the first author's code for wake-sleep.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
WIDE_STD = 0.1  # if the 0.01 of N(0, 0.01) is a variance
WAKE_SLEEP_LATENTS = (3, 20, 200)
SETTINGS = (  # for AEVB
    *(Setting(binarisation, warmup) for binarisation in aevb.BINARISATIONS for warmup in (aevb.WARMUP, 0)),
    *(Setting("none", warmup, WIDE_STD) for warmup in (aevb.WARMUP, 0)),
)
WAKE_SLEEP_SETTINGS = tuple(
    Setting("none", aevb.WARMUP, encoder_log_variance=factor) for factor in (aevb.WAKE_SLEEP_LOG_VARIANCE, 1.0)
)
COLOURS = {"none": "#000000", "threshold": "#D55E00", "dynamic": "#0072B2", "static": "#009E73", "wide": "#CC79A7"}


@dataclass(frozen=True)
class Choice:
    """One run."""

    algorithm: str
    setting: Setting
    latents: int


def name_of(algorithm: str, setting: Setting) -> str:
    """Returns the name of an algorithm's setting."""
    if algorithm == "wake-sleep":
        return f"wake-sleep-log-variance-{setting.encoder_log_variance:g}"
    wide = "" if setting.initial_std == aevb.INITIAL_STD else f"-std{setting.initial_std:g}"
    return f"{setting.binarisation}-{'warmup' if setting.warmup else 'nowarmup'}{wide}"


def planned() -> dict[str, Choice]:
    """Returns the runs by key: first AEVB with a warm-up, then AEVB without, then wake-sleep."""
    ordered = sorted(SETTINGS, key=lambda setting: not setting.warmup)
    choices = [Choice("aevb", setting, latents) for setting in ordered for latents in LATENTS]
    choices += [Choice("wake-sleep", s, latents) for s in WAKE_SLEEP_SETTINGS for latents in WAKE_SLEEP_LATENTS]
    return {f"{name_of(choice.algorithm, choice.setting)}-{choice.latents}": choice for choice in choices}


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Returns the distance of each setting from the published curves at the end, the nearest first."""
    end = min(run["curve"]["samples"][-1] for run in runs.values())
    settings: dict[str, Any] = {}
    for key, choice in planned().items():
        if key not in runs:
            continue
        said = {"algorithm": choice.algorithm, "setting": asdict(choice.setting), "latents": {}}
        entry = settings.setdefault(name_of(choice.algorithm, choice.setting), said)
        row: dict[str, Any] = {"stepsize": runs[key]["stepsize"]}
        for part in PARTS:
            value = aevb.value_at(points(runs[key], part), end)
            known = published_at("mnist", choice.latents, choice.algorithm, part, end)
            missing = value is None or known is None
            row[part] = {"bound": value, "published": known, "difference": None if missing else value - known}
        entry["latents"][str(choice.latents)] = row
    for entry in settings.values():
        off = [row["test"]["difference"] for row in entry["latents"].values()]
        wanted = WAKE_SLEEP_LATENTS if entry["algorithm"] == "wake-sleep" else LATENTS
        complete = len(off) == len(wanted) and None not in off
        entry["mean_absolute_difference_test"] = sum(map(abs, off)) / len(off) if complete else None
    ranked = dict(sorted(settings.items(), key=lambda item: _last_if_none(item[1])))

    def best(algorithm: str) -> str | None:
        mine = (name for name, entry in ranked.items() if entry["algorithm"] == algorithm)
        return next((name for name in mine if ranked[name]["mean_absolute_difference_test"] is not None), None)

    return {"samples": end, "best": best("aevb"), "best_wake_sleep": best("wake-sleep"), "study": ranked}


def _last_if_none(entry: dict[str, Any]) -> float:
    value = entry["mean_absolute_difference_test"]
    return float("inf") if value is None else value


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints the settings; the nearest to the published curves comes first."""
    table = Table(title=f"MNIST at {summary['samples']:.2g} samples; test bound (minus published), stepsize")
    table.add_column("setting", no_wrap=True)
    for latents in WAKE_SLEEP_LATENTS:
        table.add_column(f"N_z = {latents}", justify="right")
    table.add_column("mean |difference|, test", justify="right")
    for name, entry in summary["study"].items():
        cells = []
        for latents in WAKE_SLEEP_LATENTS:
            row = entry["latents"].get(str(latents))
            cells.append("-" if row is None else f"{cell(row['test'])}, {row['stepsize']:g}")
        value = entry["mean_absolute_difference_test"]
        table.add_row(name, *cells, "-" if value is None else f"{value:.2f}")
    console.print(table)
    console.print(f"best: {summary['best']}, {summary['best_wake_sleep']}")


def cell(value: dict[str, Any]) -> str:
    if value["bound"] is None:
        return "-"
    return f"{value['bound']:.1f}" + ("" if value["difference"] is None else f" ({value['difference']:+.1f})")


def draw(runs: dict[str, Any], path: Path) -> None:
    """Draws the test curves of all settings for each N_z; published curves are dashed, in the background."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(WAKE_SLEEP_LATENTS), squeeze=False, sharey=True)
    for row, algorithm in zip(grid, ("aevb", "wake-sleep"), strict=True):
        for axes, latents in zip(row, WAKE_SLEEP_LATENTS, strict=True):
            known = aevb.published()["figure 2"]["mnist"][str(latents)][algorithm]["test"]
            style = {"color": "#666666", "ls": "--", "lw": 1.6, "marker": "o", "ms": 4, "zorder": 1}
            axes.plot(*zip(*known[:2], strict=True), label="published (digitised)", **style)
            for key, choice in planned().items():
                if (choice.algorithm, choice.latents) == (algorithm, latents) and key in runs:
                    label, how = looks_of(choice)
                    axes.plot(*zip(*points(runs[key], "test"), strict=True), label=label, zorder=2, lw=1.8, **how)
            title = f"{aevb.TITLES[algorithm]}, $N_z$ = {latents}"
            axes.set(xscale="log", xlim=(9e4, 3.5e6), ylim=(-200, -95), title=title)
            axes.grid(True, color="#e5e5e5", lw=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("test bound, nats per datum")
    for axes in grid[-1]:
        axes.set_xlabel("training samples evaluated")
    free = grid[0, -1]  # AEVB was not studied with this N_z
    free.clear()
    free.axis("off")
    small = {"frameon": False, "fontsize": 8}
    free.legend(*grid[0, 0].get_legend_handles_labels(), loc="center left", title="AEVB", **small)
    grid[1, 0].legend(loc="lower right", title="wake-sleep: log variances of q are", **small)
    figure.savefig(path, dpi=120)


def looks_of(choice: Choice) -> tuple[str, dict[str, Any]]:
    """Returns the label and the line style of a curve."""
    setting = choice.setting
    if choice.algorithm == "wake-sleep":
        whole = setting.encoder_log_variance == 1.0
        label = "the encoder's outputs" if whole else "a tenth of its outputs, as in the first author's code"
        return label, {"color": COLOURS["threshold" if whole else "dynamic"]}
    wide = setting.initial_std != aevb.INITIAL_STD
    label = setting.binarisation + (f", initial std {setting.initial_std:g}" if wide else "")
    colour = COLOURS["wide" if wide else setting.binarisation]
    return label + ("" if setting.warmup else ", no warm-up"), {"color": colour, "ls": "-" if setting.warmup else ":"}


def main() -> None:
    """Runs what is missing, prints the table, writes the result and draws it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, seeds=False)
    parser.set_defaults(threads=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load: Callable[[str], Data] = cache(lambda binarisation: loaded("mnist", binarisation, given.quick))
    protocol = settings_of(given, SETTINGS[0])
    varied = [asdict(setting) for setting in (*SETTINGS, *WAKE_SLEEP_SETTINGS)]
    shared = {name: value for name, value in protocol.items() if name not in varied[0] and "frey" not in name}
    runs = Runs(
        "aevb_figure2_study", {**shared, "studied": varied, "samples": SAMPLES, "latents": WAKE_SLEEP_LATENTS}, given
    )
    samples, keys = QUICK["samples"] if given.quick else SAMPLES, planned()

    def one(key: str) -> dict[str, Any]:
        choice = keys[key]
        curve = Curve("mnist", choice.latents, choice.algorithm, 0, samples)
        return run(curve, load(choice.setting.binarisation), choice.setting, given, runs.unfinished / key)

    runs.complete(keys, one, summarise)
    console = Console(width=150)
    show(summarise(runs.by_key), console)
    draw(runs.by_key, runs.path.with_suffix(".png"))
    console.print(runs.path)


if __name__ == "__main__":
    main()
