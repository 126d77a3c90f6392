r"""Report of `benchmarks.iwae_table1`: tables with the published values, paired differences, a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

from benchmarks.runs import command_of, over_seeds

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published" / "iwae.json").read_text(encoding="utf-8"))
DATA_SETS = ("dynamic", "fixed")
ROWS = ("vae", "iwae", "dreg", "stl", "rws")
TITLES = {"vae": "VAE", "iwae": "IWAE", "dreg": "DReG", "stl": "STL", "rws": "RWS"}
COLOURS = {"vae": "#000000", "iwae": "#0072B2", "dreg": "#D55E00", "stl": "#009E73", "rws": "#CC79A7"}
MARKERS = {"vae": "o", "iwae": "s", "dreg": "^", "stl": "D", "rws": "v"}
SHIFTS = {"vae": 0.97, "iwae": 1.0, "dreg": 1.03, "stl": 1.06, "rws": 1.09}  # factors of k, to separate equal values
WIDTHS = {1: 0.8, 5: 1.4, 50: 2.2}  # line widths of curves, by k
SHOWN = 30.0  # range of the curves in nats, from the best value on
GREY = "#8a8a8a"

Cell = tuple[str, int]  # row and k
Seeds = dict[int, dict[str, Any]]  # the runs of a cell, by seed

# ------------------------------------------------------------------ the summary


def summarise(runs: dict[str, Any], unfinished: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the tables with runs: their cells with the published ones, and claims about their differences.

    Arguments:
        runs: Results of `iwae_table1.run`, by key.
        unfinished: Last evaluation of each unfinished run, by key.
    """
    tables: dict[tuple[str, int], tuple[dict[Cell, Seeds], dict[Cell, Any]]] = {}
    for place, found in [(0, found) for found in runs.values()] + [(1, look) for look in unfinished.values()]:
        done, begun = tables.setdefault((found["data_set"], found["layers"]), ({}, {}))
        cell = found["row"], found["k"]
        if place:
            begun[cell] = found
        else:
            done.setdefault(cell, {})[found["seed"]] = found
    return [
        {
            "data_set": data_set,
            "layers": layers,
            "cells": [cell_of(data_set, layers, *cell, done.get(cell, {}), begun.get(cell)) for cell in ordered],
            "iwae_improves_with_k": claim(done, [(("iwae", few), ("iwae", many)) for few, many in ((1, 5), (5, 50))]),
            "iwae_beats_vae": claim(done, [(("vae", k), ("iwae", k)) for k in (5, 50)]),
            "vae_from_best_to_worst": sorted((k for row, k in done if row == "vae"), key=lambda k: nll(done["vae", k])),
        }
        for (data_set, layers), (done, begun) in sorted(tables.items())
        if (ordered := sorted({*done, *begun}, key=lambda cell: (ROWS.index(cell[0]), cell[1])))
    ]


def cell_of(data_set: str, layers: int, row: str, k: int, seeds: Seeds, look: dict[str, Any] | None) -> dict[str, Any]:
    """Returns a cell of a table for JSON; for an unfinished one, its last evaluation."""
    cell: dict[str, Any] = {"row": row, "k": k}
    told = [
        c for c in PUBLISHED["cells"] if (c["data_set"], c["layers"], c["row"], c["k"]) == (data_set, layers, row, k)
    ]
    if told:
        cell["published"] = {name: told[0][name] for name in ("nll", "active_units")}
    if not seeds:
        return cell | {"unfinished": look}
    units = torch.tensor([run["active_units"] for run in seeds.values()]).double().mean(0)
    cell |= {
        "seeds": sorted(seeds),
        "nll": over_seeds(run["nll"]["value"] for run in seeds.values()),
        "sampling_error": over_data(mean_over(seeds, sorted(seeds))),
        "standard_error": math.hypot(*(run["nll"]["standard_error"] for run in seeds.values())) / len(seeds),
        "share_of_pareto_k_above_0.7": max(run["nll"]["share_of_pareto_k_above_0.7"] for run in seeds.values()),
        "command": command_of(seeds),
        "active_units": [round(float(unit), 1) for unit in units],
    }
    if told:
        cell["minus_published"] = cell["nll"]["mean"] - told[0]["nll"]
    return cell


def against_published(summary: list[dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of `benchmarks.published_table`: one for each finished cell with a published value."""
    share = f"{100 * settings['fraction']:.3g} % of the published {settings['published_epochs']:,} passes over the data"
    rows = []
    for table in summary:
        for cell in table["cells"]:
            if "minus_published" not in cell:
                continue
            trusted = f"Monte Carlo {cell['standard_error']:.3f}, k-hat above 0.7: {share_above(cell)}"
            error = {
                "value": cell["sampling_error"],
                "of": f"standard error over {settings['test_data']:,} test data; {trusted}",
            }
            rows.append(
                {
                    "what": f"-log p(x), {named(table)}, {TITLES[cell['row']]}, k = {cell['k']}",
                    "published": cell["published"]["nll"],
                    "ours": round(cell["nll"]["mean"], 2),
                    "error": error,
                    "unit": "nats",
                    "source": PUBLISHED["source"],
                    "command": cell["command"],
                    **({} if settings["fraction"] == 1 else {"note": f"Ours after {share}."}),
                }
            )
    return rows


def share_above(cell: dict[str, Any]) -> str:
    """Returns the share of data whose log p(x) is too low by an unknown amount, in the worst seed."""
    return f"{100 * cell['share_of_pareto_k_above_0.7']:.0f} %"


def claim(done: dict[Cell, Seeds], pairs: list[tuple[Cell, Cell]]) -> dict[str, Any]:
    """Returns whether the second cell of each pair has the smaller -log p(x), and the paired differences.

    A difference is significant beyond 1.96 standard errors over data. ``holds`` is False if a significant one has the
    wrong sign, True if all are significant with the right sign, else None.
    """
    known = [(one(done, worse), one(done, better), worse, better) for worse, better in pairs]
    differences = [
        {"of": list(better), "minus": list(worse), **paired(its, mine)}
        for mine, its, worse, better in known
        if set(mine) & set(its)
    ]
    sides = [
        None if abs(d["value"]) <= 1.96 * d["sampling_error"] else d["value"] < 0  # None: within its error
        for d in differences
    ]
    whole = len(differences) == len(pairs)
    holds = False if False in sides else True if whole and None not in sides else None
    return {"holds": holds, "all_cells": whole, "differences": differences}


def one(done: dict[Cell, Seeds], cell: Cell) -> Seeds:
    """Returns the runs of a cell; IWAE at k = 1 is VAE."""
    return done.get(("vae", 1) if cell == ("iwae", 1) else cell, {})


def paired(mine: Seeds, its: Seeds) -> dict[str, Any]:
    """Returns the difference of -log p(x) on the same data, and its standard error over data."""
    common = sorted(set(mine) & set(its))
    difference = mean_over(mine, common) - mean_over(its, common)
    return {"value": float(difference.mean()), "sampling_error": over_data(difference), "seeds": common}


def mean_over(seeds: Seeds, common: list[int]) -> torch.Tensor:
    """Returns -log p(x) of each datum, mean over seeds."""
    return torch.tensor([seeds[seed]["nll"]["pointwise"] for seed in common]).double().mean(0)


def over_data(values: torch.Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


def nll(seeds: Seeds) -> float:
    return float(mean_over(seeds, sorted(seeds)).mean())


# ------------------------------------------------------------------ the table


def show(summary: list[dict[str, Any]], settings: dict[str, Any], console: Console) -> None:
    """Prints the tables and the claims."""
    for table in summary:
        shown = Table(title=f"{named(table)}; {passes(settings)}")
        shown.add_column("row")
        columns = ("k", "-log p(x)", "± over data", "± sampling", "k-hat > 0.7", "published", "difference")
        for column in (*columns, "active units", "published"):
            shown.add_column(column, justify="right")
        for cell in table["cells"]:
            shown.add_row(*written(cell))
        console.print(shown)
        for what, title in (("iwae_improves_with_k", "IWAE improves with k"), ("iwae_beats_vae", "IWAE beats VAE")):
            console.print(f"{title}: {said(table[what])}")
        if table["vae_from_best_to_worst"]:
            console.print(f"VAE from best to worst: k = {', '.join(map(str, table['vae_from_best_to_worst']))}")
    console.print(
        f"Nats per datum, {settings['test_data']:,} test data, {settings['samples']:,} samples. ± over data is the "
        "standard error over data (in claims, that of the paired difference); ± sampling is the error of importance "
        "sampling. Where k-hat is above 0.7, log p(x) is too low by an unknown amount."
    )


def passes(settings: dict[str, Any]) -> str:
    return f"{settings['fraction'] * settings['published_epochs']:.3g} of {settings['published_epochs']:,} passes"


def named(table: dict[str, Any]) -> str:
    layers = {1: "one stochastic layer", 2: "two stochastic layers"}[table["layers"]]
    return f"{table['data_set']} MNIST, {layers}"


def written(cell: dict[str, Any]) -> list[str]:
    """Returns the texts of a table row."""
    first = ["VAE = IWAE" if (cell["row"], cell["k"]) == ("vae", 1) else TITLES[cell["row"]], str(cell["k"])]
    published = cell.get("published")
    its = [f"{published['nll']:.2f}", units_in(published["active_units"])] if published else ["-", "-"]
    if "nll" not in cell:
        look = cell["unfinished"]
        stage = f"unfinished: stage {look['stages']} of 8"
        return [*first, f"[{look['nll']:.2f}]", "-", "-", "-", its[0], stage, "-", its[1]]
    difference = f"{cell['minus_published']:+.2f}" if published else "-"
    return [
        *first,
        spread(cell["nll"]),
        f"{cell['sampling_error']:.2f}",
        f"{cell['standard_error']:.3f}",
        share_above(cell),
        its[0],
        difference,
        units_in(cell["active_units"]),
        its[1],
    ]


def spread(value: dict[str, Any]) -> str:
    width = value["half_width"]
    return f"{value['mean']:.2f}" + ("" if width is None or math.isnan(width) else f" ± {width:.2f}")


def units_in(units: list[float]) -> str:
    return " + ".join(f"{unit:g}" for unit in units)


def said(what: dict[str, Any]) -> str:
    """Returns the text of a claim."""
    parts = [
        f"{TITLES[d['of'][0]]} {d['of'][1]} - {TITLES[d['minus'][0]]} {d['minus'][1]}: "
        f"{d['value']:+.2f} ± {d['sampling_error']:.2f}"
        for d in what["differences"]
    ]
    open_ = "a difference is within its error" if what["all_cells"] else "not all cells are finished"
    return "; ".join([{True: "yes", False: "NO", None: open_}[what["holds"]], *parts])


# ------------------------------------------------------------------ the figure


def draw(runs: dict[str, Any], summary: list[dict[str, Any]], settings: dict[str, Any], path: Path) -> None:
    """Draws -log p(x) by k, with published values dashed, and its curve in training."""
    figure = Figure(figsize=(10, 1.0 + 3.3 * max(1, len(summary))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(summary)), 2, squeeze=False)
    for (left, right), table in zip(axes, summary, strict=False):
        draw_table(left, table)
        left.set_title(named(table), fontsize=10, loc="left")
        place = table["data_set"], table["layers"]
        draw_curves(right, [run for run in runs.values() if (run["data_set"], run["layers"]) == place])
    data = f"{settings['test_data']:,} test data, {settings['samples']:,} samples"
    figure.suptitle(f"{passes(settings)} over the data; {data}", fontsize=9, color=GREY)
    rows = [row for row in ROWS if any(cell["row"] == row for table in summary for cell in table["cells"])]
    handles = [Line2D([], [], color=COLOURS[row], marker=MARKERS[row], ms=4, label=TITLES[row]) for row in rows]
    handles.append(Line2D([], [], color=GREY, ls="--", lw=1, marker="o", ms=4, mfc="white", label="published"))
    if any("nll" not in cell for table in summary for cell in table["cells"]):
        handles.append(Line2D([], [], color=GREY, ls="", marker="x", label="not finished"))
    handles += [Line2D([], [], color=GREY, lw=width, label=f"k = {k}") for k, width in WIDTHS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def draw_table(axes: Axes, table: dict[str, Any]) -> None:
    """Draws the rows of a table by k, with the published ones in the background."""
    for row in ROWS:
        cells = [
            cell for cell in PUBLISHED["cells"] if all(cell[name] == table[name] for name in ("data_set", "layers"))
        ]
        told = [(cell["k"] * SHIFTS[row], cell["nll"]) for cell in cells if cell["row"] == row]
        if told:
            axes.plot(*zip(*told, strict=True), **look_of(row), ls="--", lw=1, alpha=0.55, mfc="white", zorder=1)
        draw_row(axes, row, [cell for cell in table["cells"] if cell["row"] == row], table["cells"])
    axes.set_xscale("log")
    axes.set_xticks([1, 5, 50], ["1", "5", "50"])
    axes.minorticks_off()
    axes.set(xlabel="k", ylabel="-log p(x), nats per datum")
    axes.spines[["top", "right"]].set_visible(False)


def look_of(row: str) -> dict[str, Any]:
    return {"color": COLOURS[row], "marker": MARKERS[row], "ms": 4}


def draw_row(axes: Axes, row: str, cells: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Draws the cells of a row by k, with their intervals over seeds; IWAE starts at VAE's value for k = 1."""
    if row == "iwae" and cells:
        cells = [cell for cell in others if (cell["row"], cell["k"]) == ("vae", 1)] + cells
    done = [cell for cell in cells if "nll" in cell]
    if done:
        widths = [cell["nll"]["half_width"] for cell in done]
        errors = [0.0 if width is None or math.isnan(width) else width for width in widths]
        places = [cell["k"] * SHIFTS[row] for cell in done]
        axes.errorbar(places, [cell["nll"]["mean"] for cell in done], errors, **look_of(row), lw=1.6, zorder=3)
    for cell in cells:
        if "nll" not in cell and cell["row"] == row:
            axes.plot(cell["k"] * SHIFTS[row], cell["unfinished"]["nll"], "x", color=COLOURS[row])


def draw_curves(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Draws -log p(x) against the passes over the data."""
    for run in runs:
        epochs, values = [look["epochs"] for look in run["curve"]], [look["nll"] for look in run["curve"]]
        axes.plot(epochs, values, color=COLOURS[run["row"]], lw=WIDTHS[run["k"]], alpha=0.8)
    looks = [look for run in runs for look in run["curve"]]
    if looks:
        top = min(look["nll"] for look in looks) + SHOWN
        axes.set_ylim(top - 1.05 * SHOWN, top)
        axes.set_xlim(left=0.7 * min(look["epochs"] for look in looks if look["nll"] < top))
        axes.set_xscale("log")
    axes.set(xlabel="passes over the data", ylabel="-log p(x), 100 samples")
    axes.spines[["top", "right"]].set_visible(False)
