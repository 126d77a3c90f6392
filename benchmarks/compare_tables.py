r"""Tables and figures of `benchmarks.compare_inference`, for one result or for the results of two machines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from rich.console import Console
from rich.table import Table

from benchmarks.runs import over_seeds

Result = dict[str, Any]

COLOURS = {
    **{"aevb": "#D55E00", "analytic-kl": "#009E73", "wake-sleep": "#0072B2", "mcem": "#CC79A7", "stl": "#E69F00"},
    **{"iwae": "#56B4E9", "dreg": "#000000", "rws": "#8A6D3B"},
}
OTHERS = ("#7F3C8D", "#A5AA99", "#666666", "#B8860B")  # for other algorithms, in turn
LINES = ("-", "--")  # for two machines
QUALITY = ("elbo", "log_p")
# Settings that may differ between the results of two machines for the same model and data.
FREE_SETTINGS = {"threads", "compile"}


def by_data(runs: Result) -> dict[str, list[Result]]:
    """Returns the runs of each data set, in the order of their seeds."""
    found: dict[str, list[Result]] = {}
    for run in sorted(runs.values(), key=lambda run: run["seed"]):
        found.setdefault(run["data"], []).append(run)
    return found


def summarise(runs: Result) -> Result:
    """Returns for each data set and algorithm means over seeds with Student-t 95 % intervals.

    Differences and time ratios to the first algorithm are paired by seed. Variances are those at the first algorithm's
    trained parameters. Diverged runs, listed in ``stopped``, are evaluated at their last good parameters.
    """
    return {
        name: {label: _summary(label, of_data) for label in of_data[0]["contenders"]}
        for name, of_data in by_data(runs).items()
    }


def _summary(label: str, runs: list[Result]) -> Result:
    mine = [run["contenders"][label] for run in runs]
    seconds = [run["seconds_per_epoch"]["median"] for run in mine]
    row: Result = {
        "seeds": [run["seed"] for run in runs],
        "stopped": [run["seed"] for run, of in zip(runs, mine, strict=True) if of["stopped"]],
        "seconds_per_epoch": over_seeds(seconds),
        "steps_per_second": over_seeds(of["steps_per_epoch"] / each for of, each in zip(mine, seconds, strict=True)),
        "time_over_baseline": over_seeds(of["time_over_baseline"]["median"] for of in mine),
        "compile_seconds": max(of["compile_seconds"] for of in mine),  # later seeds reuse the compiled program
        "peak_mib": max(of["memory_mib"]["peak"] for of in mine),
        "minus": {},
    }
    for what in QUALITY:
        known = [of[what] for of in mine if of[what]]
        row[what] = over_seeds(estimate["value"] for estimate in known)
        row[what]["standard_error"] = statistics.mean(each["standard_error"] for each in known) if known else None
        row["minus"][what] = over_seeds(
            of["minus_baseline"][what]["value"] for of in mine if of["minus_baseline"][what]
        )
    shares = [of["log_p"].get("share_of_pareto_k_above_0.7") for of in mine]
    row["share_of_pareto_k_above_0.7"] = None if None in shares else statistics.mean(shares)
    row["gradients"] = {
        group: {
            what: over_seeds(of["gradients"]["trained"][group][what] for of in mine)
            for what in ("variance", "signal_to_noise")
        }
        for group in mine[0]["gradients"]["trained"]
    }
    return row


def cell(value: Result | None, form: str = ".2f") -> str:
    """Returns the text of a mean with its half width."""
    if value is None or not value["seeds"]:
        return "-"
    width = value["half_width"]
    return f"{value['mean']:{form}}" + (f" ± {width:{form}}" if width is not None and width == width else "")


def show(runs: Result, console: Console) -> None:
    """Prints the cost, the quality and the gradient noise of each algorithm."""
    for name, rows in summarise(runs).items():
        baseline, seeds = next(iter(rows)), len(next(iter(rows.values()))["seeds"])
        over = f"{seeds} seed{'s' if seeds > 1 else ''}, ± Student-t 95 %"
        speed = Table(title=f"{name}: cost; {over}")
        heads = ("seconds per epoch", f"time over {baseline}", "steps per second", "compilation, s", "peak memory, MiB")
        _columns(speed, heads)
        quality = Table(title=f"{name}: quality, nats per datum; {over}")
        heads = ("test ELBO", f"minus {baseline}", "log p(x)", "± Monte Carlo", f"minus {baseline}", "k-hat > 0.7")
        _columns(quality, heads)
        gradient = Table(title=f"{name}: gradients at the trained parameters of {baseline}; {over}")
        _columns(gradient, ("variance, theta", "variance, phi", "signal to noise, theta", "signal to noise, phi"))
        for label, row in rows.items():
            stopped = f" (diverged: {len(row['stopped'])})" if row["stopped"] else ""
            times = cell(row["seconds_per_epoch"], ".3g"), cell(row["time_over_baseline"])
            costs = f"{row['compile_seconds']:.1f}", f"{row['peak_mib']:.1f}"
            speed.add_row(label, *times, cell(row["steps_per_second"], ".0f"), *costs)
            quality.add_row(label + stopped, *_quality(row, label == baseline))
            gradient.add_row(label, *_gradients(row["gradients"]))
        for table in (speed, quality, gradient):
            console.print(table)


def _columns(table: Table, heads: Iterable[str]) -> None:
    table.add_column("algorithm")
    for head in heads:
        table.add_column(head, justify="right")


def _quality(row: Result, is_baseline: bool) -> list[str]:
    minus = {what: "" if is_baseline else cell(row["minus"][what]) for what in QUALITY}
    error, share = row["log_p"]["standard_error"], row["share_of_pareto_k_above_0.7"]
    of_log_p = ["-" if error is None else f"{error:.2f}", minus["log_p"], "-" if share is None else f"{share:.0%}"]
    return [cell(row["elbo"]), minus["elbo"], cell(row["log_p"]), *of_log_p]


def _gradients(groups: Result) -> list[str]:
    pairs = [(group, what) for what in ("variance", "signal_to_noise") for group in ("theta", "phi")]
    return [cell(groups.get(group, {}).get(what), ".3g") for group, what in pairs]


# ---------------------------------------------------------------------- pictures


def colours(labels: Iterable[str]) -> dict[str, str]:
    """Returns a colour for each algorithm."""
    unknown = [label for label in dict.fromkeys(labels) if label not in COLOURS]
    return {**COLOURS, **{label: OTHERS[i % len(OTHERS)] for i, label in enumerate(unknown)}}


def draw(runs: Result, path: Path) -> None:
    """Draws for each data set the test ELBO against wall time and epochs, and paired differences of log p(x)."""
    sets, summary = by_data(runs), summarise(runs)
    figure = Figure(figsize=(12, 3.7 * len(sets)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(sets), 3, squeeze=False, width_ratios=(4, 4, 3))
    for (name, of_data), (clock, epochs, minus) in zip(sets.items(), grid, strict=True):
        for axes, x in ((clock, "training_seconds"), (epochs, "epoch")):
            curves(axes, of_data, x, "-", label=x == "epoch")
        _frame(clock, [of_data], "seconds of training, without compilation")
        clock.set_title(f"{name}: test ELBO against wall-clock", fontsize=10, loc="left")
        _frame(epochs, [of_data], "epochs")
        epochs.set_title(f"{name}: against epochs (band: seeds)", fontsize=10, loc="left")
        epochs.legend(frameon=False, fontsize=8)
        differences(minus, summary[name])
    figure.savefig(path, dpi=120)


def curves(axes: Axes, runs: list[Result], x: str, style: str, label: bool) -> None:
    """Draws the mean over seeds of the test ELBO of each algorithm, and the range of the seeds."""
    colour = colours(runs[0]["contenders"])
    for name in runs[0]["contenders"]:
        of_seeds = [[p for p in run["contenders"][name]["curve"] if p["test_elbo"] is not None] for run in runs]
        points = [at for at in zip(*of_seeds, strict=False) if at]
        if not points:
            continue
        at = [statistics.mean(p[x] for p in point) for point in points]
        values = [[p["test_elbo"] for p in point] for point in points]
        title = name if label else None
        axes.plot(at, list(map(statistics.mean, values)), style, color=colour[name], lw=1.6, label=title)
        axes.fill_between(at, list(map(min, values)), list(map(max, values)), color=colour[name], alpha=0.2, lw=0)


def _frame(axes: Axes, machines: list[list[Result]], label: str) -> None:
    """Sets scales and labels; early values below all later ones are cut off."""
    of_contenders = [
        [point["test_elbo"] for point in contender["curve"] if point["test_elbo"] is not None]
        for runs in machines
        for run in runs
        for contender in run["contenders"].values()
    ]
    shown = [value for curve in of_contenders for value in curve[len(curve) // 2 :]]
    if shown:
        low, high = min(shown), max(shown)
        axes.set_ylim(low - 0.15 * (high - low), high + 0.05 * (high - low))
    axes.set(xscale="log", xlabel=label, ylabel="nats per datum")
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:g}", minor_locator=NullLocator())
    axes.spines[["top", "right"]].set_visible(False)


def differences(axes: Axes, rows: Result) -> None:
    """Draws log p(x) of each algorithm minus that of the first, for each seed, with the interval of the mean."""
    baseline, *others = rows
    for i, label in enumerate(others):
        value = rows[label]["minus"]["log_p"]
        if not value["seeds"]:
            continue
        colour, width = colours(rows)[label], value["half_width"]
        axes.errorbar(i, value["mean"], width if width == width and width else 0, fmt="o", color=colour, capsize=4)
        axes.annotate(cell(value), (i, value["mean"]), (8, 6), textcoords="offset points", fontsize=8)
        axes.plot([i - 0.15] * len(value["seeds"]), value["seeds"], "_", color="#8a8a8a", ms=9)
    axes.axhline(0, color="#8a8a8a", lw=0.8)
    axes.set_xticks(range(len(others)), others, fontsize=8)
    axes.set(xlim=(-0.5, len(others) - 0.2), ylabel="nats per datum")
    axes.set_title(f"log p(x) minus that of {baseline}, 95 %", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------------- two machines


def overlay(first: Path, second: Path, picture: Path, console: Console) -> None:
    """Draws two results in one figure, and prints how much faster the second machine is.

    Raises:
        SystemExit: If the results have different settings or no common data set.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (first, second)]
    a, b = (result["settings"] for result in results)
    other = sorted(key for key in (a | b).keys() - FREE_SETTINGS - {"inference"} if a.get(key) != b.get(key))
    if other:
        raise SystemExit(
            f"{first} and {second} have different settings ({', '.join(other)}), so they cannot be compared."
        )
    machines = [by_data(result["runs"]) for result in results]
    common = [name for name in machines[0] if name in machines[1]]
    if not common:
        raise SystemExit(f"{first} and {second} have no data set in common.")
    for number, (path, result) in enumerate(zip((first, second), results, strict=True), 1):
        console.print(f"{number}: {path}: {machine(result)}", highlight=False)
    console.print(ratios(common, results))
    figure = Figure(figsize=(5.6 * len(common), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for name, axes in zip(common, figure.subplots(1, len(common), squeeze=False)[0], strict=True):
        for runs, style in zip(machines, LINES, strict=True):
            curves(axes, runs[name], "training_seconds", style, label=style == LINES[0])
        _frame(axes, [runs[name] for runs in machines], "seconds of training, without compilation")
        axes.set_title(f"{name}: test ELBO (band: seeds)", fontsize=10, loc="left")
        devices = [
            Line2D([], [], color="#444444", ls=style, label=result["environment"]["device"])
            for style, result in zip(LINES, results, strict=True)
        ]
        axes.legend(handles=[*axes.get_legend_handles_labels()[0], *devices], frameon=False, fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    console.print(picture)


def machine(result: Result) -> str:
    """Returns a description of a result's machine: device, threads and versions."""
    about = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    steps = "" if result["settings"]["compile"] else ", uncompiled"
    return f"{about['device']}, {about['threads']} threads{steps}; Python {about['python']}, {versions}"


def ratios(names: list[str], results: list[Result]) -> Table:
    """Returns the table of seconds per epoch on both machines and their ratio: median and range over seeds."""
    table = Table(title="median seconds per epoch; least and greatest of seeds")
    table.add_column("data")
    _columns(table, ("1", "2", "1 over 2", "test ELBO, 1", "test ELBO, 2"))
    for name in names:
        both = [by_data(result["runs"])[name] for result in results]
        for label in both[0][0]["contenders"]:
            if label not in both[1][0]["contenders"]:
                continue
            mine = [[run["contenders"][label] for run in runs] for runs in both]
            first, second = ([of["seconds_per_epoch"]["median"] for of in each] for each in mine)
            times = [_range(each, ".3g") for each in (first, second)]
            quotient = f"{statistics.median(first) / statistics.median(second):.2f}"
            quotient += f" ({min(first) / max(second):.2f} to {max(first) / min(second):.2f})"
            bounds = [cell(over_seeds(of["elbo"]["value"] for of in each if of["elbo"])) for each in mine]
            table.add_row(name, label, *times, quotient, *bounds)
    return table


def _range(values: list[float], form: str) -> str:
    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.median(values):{form}}{spread}"
