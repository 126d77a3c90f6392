"""What figure 3's runs say: the table against the published curves, the paper's estimator judged, and the panels."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import aevb
from benchmarks.runs import over_seeds
from pyro_vae.statistics import interval

# Samples at which the published curves were read off, and at which ours are compared with them.
MARKS = (5_000_000, 10_000_000, 20_000_000, 30_000_000, 40_000_000, 50_000_000, 60_000_000, 68_000_000)
PARTS = {"train": "first training data", "test": "first test data"}
PAPERS, OURS = "appendix_d", "ais"
FROM_Q = f"{PAPERS}_from_q_by_"  # before a number of chains that begin at q(z|x) and are not annealed
WITHIN = 3.0  # nats of the published value
ABOUT = 1.0  # nats that the paper's "about the same" is taken to mean
LIMITS = {"1000": (-160, -100), "50000": (-170, -120)}

NOTE = (
    "Appendix D's estimator is far too low for data whose chains end in a minor mode, which the difference from AIS "
    "shows; where the paper's chains begin, how many they are and their burn-in are not known. By chains that begin at "
    "q(z|x), which is far from the posterior of AEVB's test data, it is off by nats either way, with their number."
)
AGREED_NOTE = (
    f"At the end AIS and appendix D's estimator, wherever its chains began, agree to {ABOUT:g} nat: a distance is not "
    "the estimator's. What makes it is not known."
)
MCEM_NOTE = (
    " What a step of Monte Carlo EM counts for on the axis is not in the paper either; that a datum counts once "
    "for each of 10 leapfrog steps and 5 updates was chosen with the published curves in view."
)

Group = dict[int, dict[str, Any]]


def grouped(runs: dict[str, Any]) -> dict[tuple[int, str], Group]:
    """Returns the longest run of each seed, by N_train and algorithm, in the order of `aevb.TITLES`."""
    groups: dict[tuple[int, str], Group] = {}
    for run in runs.values():
        group = groups.setdefault((run["training_data"], run["algorithm"]), {})
        if run["seed"] not in group or run["samples"] > group[run["seed"]]["samples"]:
            group[run["seed"]] = run
    order = list(aevb.TITLES)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))


def curve(run: dict[str, Any], part: str, estimator: str) -> list[list[float]]:
    """Returns one of a run's curves as the published ones are: points ``[samples, value]``."""
    return [[point["samples"], point[part][estimator]["value"]] for point in run["curve"] if estimator in point[part]]


def marks_of(groups: dict[tuple[int, str], Group], size: int) -> list[int]:
    """Returns the marks that some run on so many training data reaches; where none does, the end of the shortest."""
    ends = [run["curve"][-1]["samples"] for key, group in groups.items() if key[0] == size for run in group.values()]
    return [mark for mark in MARKS if mark <= max(ends) * (1 + 1e-4)] or [min(ends)]


def values(group: Group, part: str, mark: int, estimator: str = PAPERS) -> dict[int, float]:
    """Returns by seed what the runs are at a mark, where they reach it."""
    found = {seed: value_at(curve(run, part, estimator), mark) for seed, run in group.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def value_at(points: list[list[float]], mark: int) -> float | None:
    """Returns a curve's value at a number of samples, of a curve of one point too; None outside of it."""
    exact = [value for samples, value in points if math.isclose(samples, mark, rel_tol=1e-6)]
    return exact[0] if exact else aevb.value_at(points, mark)


def published_at(size: int, algorithm: str, part: str, mark: int) -> float | None:
    """Returns the published value, where the published curve is at that number of samples."""
    points = aevb.published()["figure 3"].get(str(size), {}).get(algorithm, {}).get(part, [])
    return aevb.digitised(points, mark)


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Returns for each N_train and algorithm both estimates at the marks, their difference, and the paper's claims."""
    groups, summary = grouped(runs), {}
    for (size, algorithm), group in groups.items():
        row: dict[str, Any] = {"stepsize": next(iter(group.values()))["stepsize"], "at_samples": {}}
        for mark in marks_of(groups, size):
            entry = {part: at_mark(size, algorithm, group, part, mark) for part in PARTS}
            if found := {part: said for part, said in entry.items() if said}:
                row["at_samples"][str(mark)] = found
        row["final"] = {seed: run["final"] for seed, run in group.items()}
        summary.setdefault(str(size), {})[algorithm] = row
    return {**summary, "appendix_d_minus_ais": judged(groups), "claims": claims(groups)}


def at_mark(size: int, algorithm: str, group: Group, part: str, mark: int) -> dict[str, Any]:
    """Returns what the runs of one algorithm are on one part at a mark; empty where none reaches it."""
    papers, ours = (values(group, part, mark, estimator) for estimator in (PAPERS, OURS))
    if not papers:
        return {}
    known, mean = published_at(size, algorithm, part, mark), over_seeds(papers.values())
    return {
        PAPERS: mean,
        OURS: over_seeds(ours.values()),
        "published": known,
        "difference": None if known is None else mean["mean"] - known,
    }


def against_published(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of `benchmarks.published_table`: both estimators at the last mark of each curve."""
    rows, groups = [], grouped(runs)
    for (size, algorithm), group in groups.items():
        mark = marks_of({(size, algorithm): group}, size)[-1]
        for part in PARTS:
            said = at_mark(size, algorithm, group, part, mark)
            if not said or said["published"] is None:
                continue
            where = f"{size:,} data, {aevb.TITLES[algorithm]}, {part}, {mark:.2g} samples"
            ends = [r["final"][part][OURS]["value"] for r in group.values() if math.isclose(r["samples"], mark)]
            ais = over_seeds(ends)["mean"] if ends else said[OURS]["mean"]  # at the end it is more exact
            row = {"what": f"figure 3: {where}, appendix D (AIS: {ais:.1f})", "unit": "nats"}
            row |= {"published": round(said["published"], 1), "ours": round(said[PAPERS]["mean"], 1)}
            command = group[max(group)]["made_by"]["command"]  # which gives the seeds before it too
            note = (AGREED_NOTE if agreed(group, part) else NOTE) + (MCEM_NOTE if algorithm == "mcem" else "")
            rows.append({**row, "source": aevb.SOURCE, "note": note, "command": command})
    return rows


def agreed(group: Group, part: str) -> bool:
    """Returns whether the paper's estimator, wherever its chains began, is within `ABOUT` of AIS at the runs' ends."""
    return all(
        abs(said["value"] - run["final"][part][OURS]["value"]) <= ABOUT
        for run in group.values()
        for name, said in run["final"][part].items()
        if name == PAPERS or name.startswith(FROM_Q)
    )


def judged(groups: dict[tuple[int, str], Group]) -> dict[str, Any]:
    """Returns the paper's estimator less AIS at the ends of the runs, where AIS is most exact."""
    return {
        f"{size} data, {aevb.TITLES[algorithm]}, seed {seed}": {
            part: {
                **run["final"][part]["appendix_d_minus_ais"],
                "ais_standard_error": run["final"][part][OURS]["standard_error"],
                "ais_bias": run["final"][part][OURS]["bias"],
                "begun_at_q_minus_ais": {
                    name.removeprefix(FROM_Q): said["value"] - run["final"][part][OURS]["value"]
                    for name, said in run["final"][part].items()
                    if name.startswith(FROM_Q)
                },
            }
            for part in PARTS
        }
        for (size, algorithm), group in groups.items()
        for seed, run in group.items()
    }


def claims(groups: dict[tuple[int, str], Group]) -> list[dict[str, Any]]:
    """Returns what the paper's figure says, with what the runs say to it.

    Distances from published values are by the paper's estimator at the last mark that all algorithms reach; orderings
    by AIS at the ends of the runs, where these are the same number of samples: with the Student-t interval over seeds,
    or of one seed 1.96 standard errors over data, paired.
    """
    found: list[dict[str, Any]] = []
    for size in sorted({key[0] for key in groups}):
        mine = {algorithm: group for (n, algorithm), group in groups.items() if n == size}
        marks = [m for m in marks_of(groups, size) if all(values(group, "test", m) for group in mine.values())]
        name = f"{size} training data"
        for algorithm, group in mine.items():
            for part in PARTS if marks else ():
                known, own = published_at(size, algorithm, part, marks[-1]), values(group, part, marks[-1])
                if known is not None:
                    off = over_seeds(value - known for value in own.values())
                    unit = " (its axis is an assumption)" if algorithm == "mcem" else ""
                    text = f"{name}: {aevb.TITLES[algorithm]} ({part}) within {WITHIN:g} nats of the published value"
                    said = {"claim": text + unit, "samples": marks[-1], "value": off["mean"]}
                    found.append({**said, "half_width": off["half_width"], "holds": abs(off["mean"]) <= WITHIN})
        for text, part, left, right, holds in orderings(size):
            if left in mine and right in mine and (apart := paired(mine[left], mine[right], part)):
                said = {"claim": f"{name}: {text}", **apart}
                found.append({**said, "holds": holds(apart["value"], apart["half_width"])})
    return found


def above(mean: float, half_width: float) -> bool | None:
    """Returns whether a difference is above 0 beyond its interval, or below it; None in between."""
    return True if mean > half_width else False if mean < -half_width else None


def about(mean: float, half_width: float) -> bool | None:
    """Returns whether a difference is within `ABOUT` with all of its interval, or none of it; None in between."""
    return True if abs(mean) + half_width <= ABOUT else False if abs(mean) - half_width > ABOUT else None


def orderings(size: int) -> list[tuple[str, str, str, str, Callable[[float, float], bool | None]]]:
    """Returns the orderings of the published curves: text, part, two algorithms, and when their difference agrees."""
    if size <= 1_000:
        return [
            (f"AEVB about MCEM (train, within {ABOUT:g})", "train", "aevb", "mcem", about),
            ("AEVB above wake-sleep (train)", "train", "aevb", "wake-sleep", above),
            ("MCEM above wake-sleep (train)", "train", "mcem", "wake-sleep", above),
            ("MCEM above AEVB (test)", "test", "mcem", "aevb", above),
            ("AEVB above wake-sleep (test)", "test", "aevb", "wake-sleep", above),
        ]
    pairs = (("aevb", "wake-sleep"), ("wake-sleep", "mcem"))
    return [
        (f"{aevb.TITLES[left]} above {aevb.TITLES[right]} ({part})", part, left, right, above)
        for part in PARTS
        for left, right in pairs
    ]


def paired(mine: Group, other: Group, part: str) -> dict[str, Any] | None:
    """Returns the difference of the final AIS estimates of runs that evaluated as many samples and did not diverge."""
    seeds = sorted(seed for seed in set(mine) & set(other) if _comparable(mine[seed], other[seed]))
    if not seeds:
        return None
    each = np.array([_final(mine[seed], part) - _final(other[seed], part) for seed in seeds])
    if len(seeds) > 1:
        half, of = over_seeds(each.mean(1).tolist())["half_width"], "95 % over seeds"
    else:
        half, of = float(1.96 * each.std(ddof=1) / math.sqrt(each.shape[1])), "1.96 standard errors over data, one seed"
    samples = mine[seeds[0]]["curve"][-1]["samples"]
    return {"samples": samples, "value": float(each.mean()), "half_width": half, "half_width_of": of}


def _comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    ends = one["curve"][-1]["samples"], other["curve"][-1]["samples"]
    return one["stopped"] == other["stopped"] == "completed" and math.isclose(*ends, rel_tol=0.01)


def _final(run: dict[str, Any], part: str) -> NDArray[np.float64]:
    return np.array(run["final"][part][OURS]["pointwise"])


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints both estimates at the marks beside the published ones, the paper's estimator judged, and the claims."""
    table = Table(title="log p(x), nats per datum, ± 95 % over seeds; in brackets: appendix D minus published")
    for column in ("N_train", "algorithm", "stepsize", "samples"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")
    for part in PARTS:
        table.add_column(f"{part}, appendix D", justify="right")
        table.add_column("AIS", justify="right")
    sizes = [name for name in summary if name.isdigit()]
    for size in sizes:
        for algorithm, row in summary[size].items():
            for mark, entry in row["at_samples"].items():
                cells = [text for part in PARTS for text in cells_of(entry.get(part))]
                samples = f"{int(mark):,}"
                table.add_row(size, aevb.TITLES[algorithm], f"{row['stepsize']:g}", samples, *cells)
    console.print(table)
    console.print(
        "appendix D minus AIS at the end, ± s.e. over data (median over data, share of data a nat low; s.e. and bias "
        "of AIS):"
    )
    for name, parts in summary["appendix_d_minus_ais"].items():
        said = [
            f"{part} {value['value']:+.3f} ± {value['standard_error']:.3f} ({value['quantile_0.5']:+.3f}, "
            f"{value['share_a_nat_low']:.0%}; "
            f"{value['ais_standard_error']:.3f}, {value['ais_bias']:.3f})"
            + "".join(f"; {v:+.1f} begun at q by {n} chains" for n, v in value["begun_at_q_minus_ais"].items())
            for part, value in parts.items()
        ]
        console.print(f"  {name}: {', '.join(said)}", highlight=False)
    for claim in summary["claims"]:
        width = claim["half_width"]
        text = "" if width is None or math.isnan(width) else f" ± {width:.2f}"
        said = {True: "yes", False: "NO", None: "?"}[claim["holds"]]
        console.print(f"{said:>4}  {claim['claim']}, {claim['samples']:.2g} samples: {claim['value']:.2f}{text}")


def cells_of(entry: dict[str, Any] | None) -> list[str]:
    if entry is None:
        return ["-", "-"]
    difference = "" if entry["difference"] is None else f" ({entry['difference']:+.2f})"
    return [f"{cell(entry[PAPERS])}{difference}", cell(entry[OURS])]


def cell(value: dict[str, Any]) -> str:
    width = value["half_width"]
    return f"{value['mean']:.2f}" + ("" if math.isnan(width) else f" ± {width:.2f}")


def draw(runs: dict[str, Any], path: Path) -> None:
    """Draws a column of panels for each N_train: training above test, the published curves dashed behind ours."""
    groups = grouped(runs)
    sizes = sorted({size for size, _ in groups})
    figure = Figure(figsize=(4.6 * len(sizes) + 0.6, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(sizes), sharex="col", sharey="col", squeeze=False)
    for row, (part, title) in zip(grid, PARTS.items(), strict=True):
        for axes, size in zip(row, sizes, strict=True):
            panel(axes, size, part, {key[1]: group for key, group in groups.items() if key[0] == size})
            axes.set_title(f"{size:,} training data" if part == "train" else "", fontsize=11)
        row[0].set_ylabel(f"{title}\nlog p(x), nats per datum")
    for axes in grid[-1]:
        axes.set_xlabel("training samples evaluated, millions")
    names = [name for name in aevb.TITLES if any(key[1] == name for key in groups)]
    handles = [Line2D([], [], color=aevb.COLOURS[name], lw=2, label=aevb.TITLES[name]) for name in names]
    grey = "#666666"
    styles = [
        Line2D([], [], color=grey, lw=2, label="AIS"),
        Line2D([], [], color=grey, lw=1.2, ls=":", marker=".", label="appendix D"),
        Line2D([], [], color=grey, lw=1.6, ls="--", marker="o", ms=3.5, label="published (digitised)"),
    ]
    figure.legend(handles=[*handles, *styles], loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def panel(axes: Axes, size: int, part: str, groups: dict[str, Group]) -> None:
    """Draws the curves of one N_train on one part, with the interval over seeds where there are several."""
    reached = max(run["curve"][-1]["samples"] for group in groups.values() for run in group.values()) / 1e6
    published = aevb.published()["figure 3"].get(str(size), {})
    for algorithm, parts in published.items():
        style = {"ls": "--", "lw": 1.6, "marker": "o", "ms": 3.5, "alpha": 0.65}
        x, y = zip(*parts[part], strict=True)
        axes.plot([each / 1e6 for each in x], y, color=aevb.COLOURS[algorithm], zorder=1, **style)
    for algorithm, group in groups.items():
        for estimator, look in (
            (OURS, {"lw": 2.0, "zorder": 3}),
            (PAPERS, {"lw": 1.2, "ls": ":", "marker": ".", "zorder": 4}),
        ):
            longest = max(group.values(), key=lambda run: run["curve"][-1]["samples"])
            samples = [point[0] for point in curve(longest, part, estimator)]
            at = [values(group, part, sample, estimator).values() for sample in samples]
            over, x = [interval(list(here)) for here in at], [sample / 1e6 for sample in samples]
            colour = aevb.COLOURS[algorithm]
            axes.plot(x, [each.mean for each in over], color=colour, **look)
            if estimator == OURS:
                low, high = [each.low for each in over], [each.high for each in over]
                axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0, zorder=2)
    axes.set_xlim(0, 70 if published else 1.02 * reached)
    if published:
        axes.set_ylim(LIMITS[str(size)])
    axes.grid(True, color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
