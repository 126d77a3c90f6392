"""Summary of figure 3's runs: comparison with the published curves, errors of the estimators, the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import aevb
from benchmarks.aevb import Setting
from benchmarks.runs import command_of, over_seeds

# Numbers of samples for the comparison with the published curves, which were digitised there.
MARKS = (5_000_000, 10_000_000, 20_000_000, 40_000_000, 60_000_000, 68_000_000)
PARTS = {"train": "first training data", "test": "first test data"}
PAPERS, REFERENCE = "appendix_d", "shared"
ESTIMATORS = {PAPERS: "appendix D", "ais": "AIS", "bound": "ELBO", "importance": "importance sampling from q(z|x)"}
FROM_Q = f"{PAPERS}_from_q_by_"  # prefix of a number of chains that begin at q(z|x) and are not annealed
WITHIN = 3.0  # nats: largest distance from the published value
ABOUT = 1.0  # nats: our meaning of the paper's "about the same"

NOTE = (
    "MNIST's grey levels, of which a Bernoulli's log p(x) is a cross-entropy. In brackets log p(x) by importance "
    "sampling from a proposal that all data share, right to hundredths of a nat: how far the paper's estimator is off. "
    "Where its chains begin in the paper, how many they are and their burn-in are not known."
)
OWN_NOTES = {
    "wake-sleep": " The log variances of wake-sleep's q(z|x) are a tenth of the encoder's outputs, as in the first "
    "author's code and not in the paper, where the row says no other.",
    "mcem": " What a step of Monte Carlo EM counts for on the axis is not in the paper; that a datum counts once for "
    "each of 10 leapfrog steps and 5 updates was chosen with the published curves in view.",
}
UNKNOWN_NOTE = " What makes the distance is not known."

Group = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Contender:
    """The size, algorithm and options of a curve.

    Attributes:
        size: N_train, the number of training data.
        algorithm: One of `aevb.TITLES`.
        apart: Options that differ from the protocol; empty for the protocol.
    """

    size: int
    algorithm: str
    apart: str = ""

    @property
    def title(self) -> str:
        return f"{aevb.TITLES[self.algorithm]}, {self.apart}" if self.apart else aevb.TITLES[self.algorithm]


def contender(run: dict[str, Any]) -> Contender:
    """Returns the contender of a run; a stepsize from the command line has no scores."""
    usual = Setting().of(run["algorithm"]).encoder_log_variance
    factor = run["setting"]["encoder_log_variance"]
    apart = [] if run["scores"] else [f"stepsize {run['stepsize']:g}"]
    if run["algorithm"] == "mcem" and run["batch_size"] < run["training_data"]:
        apart.append(f"batches of {run['batch_size']:,}")
    apart += [] if factor == usual else ["whole log variances" if factor == 1 else f"log variances × {factor:g}"]
    return Contender(run["training_data"], run["algorithm"], ", ".join(apart))


def grouped(runs: dict[str, Any]) -> dict[Contender, Group]:
    """Returns the longest run of each seed of each contender, in the order of `aevb.TITLES`."""
    groups: dict[Contender, Group] = {}
    for run in runs.values():
        group = groups.setdefault(contender(run), {})
        if run["seed"] not in group or run["samples"] > group[run["seed"]]["samples"]:
            group[run["seed"]] = run
    order = list(aevb.TITLES)
    return dict(sorted(groups.items(), key=lambda item: (item[0].size, order.index(item[0].algorithm), item[0].apart)))


def curve(run: dict[str, Any], part: str, estimator: str) -> list[list[float]]:
    """Returns a curve of a run in the format of the published curves: points ``[samples, value]``."""
    return [[point["samples"], point[part][estimator]["value"]] for point in run["curve"] if estimator in point[part]]


def marks_of(*groups: Group) -> list[int]:
    """Returns the marks that some run reaches; if there are none, the end of the shortest run."""
    ends = [run["curve"][-1]["samples"] for group in groups for run in group.values()]
    return [mark for mark in MARKS if mark <= max(ends) * (1 + 1e-4)] or [min(ends)]


def values(group: Group, part: str, mark: int, estimator: str = PAPERS) -> dict[int, float]:
    """Returns by seed the values of the runs that reach a mark."""
    found = {seed: aevb.value_at(curve(run, part, estimator), mark) for seed, run in group.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def published_at(size: int, algorithm: str, part: str, mark: int) -> float | None:
    """Returns the published value; None if the curve was not digitised at that number of samples."""
    points = aevb.published()["figure 3"].get(str(size), {}).get(algorithm, {}).get(part, [])
    return aevb.digitised(points, mark)


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Returns for each N_train and algorithm both estimates at the marks and their difference; and the claims."""
    groups, summary = grouped(runs), {}
    for who, group in groups.items():
        row: dict[str, Any] = {"stepsize": next(iter(group.values()))["stepsize"], "at_samples": {}}
        for mark in marks_of(group):
            entry = {part: at_mark(who, group, part, mark) for part in PARTS}
            if found := {part: said for part, said in entry.items() if said}:
                row["at_samples"][str(mark)] = found
        row["final"] = {seed: run["final"] for seed, run in group.items()}
        summary.setdefault(str(who.size), {})[who.title] = row
    return {**summary, "errors_of_estimators": judged(groups), "claims": claims(groups)}


def at_mark(who: Contender, group: Group, part: str, mark: int) -> dict[str, Any]:
    """Returns the values of one contender's runs on one part at a mark; empty if no run reaches it."""
    papers, exact = (values(group, part, mark, estimator) for estimator in (PAPERS, REFERENCE))
    if not papers:
        return {}
    known, mean = published_at(who.size, who.algorithm, part, mark), over_seeds(papers.values())
    return {
        PAPERS: mean,
        REFERENCE: over_seeds(exact.values()),
        "published": known,
        "difference": None if known is None else mean["mean"] - known,
    }


def against_published(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of `benchmarks.published_table`: each curve at its last mark with a published value."""
    rows, groups = [], grouped(runs)
    for who, group in groups.items():
        for part in PARTS:
            there = [m for m in marks_of(group) if published_at(who.size, who.algorithm, part, m) is not None]
            if not there or not (said := at_mark(who, group, part, there[-1])):
                continue
            where = f"{who.size:,} data, {who.title}, {part}, {there[-1]:.2g} samples"
            what = f"figure 3: {where}, appendix D (log p(x): {said[REFERENCE]['mean']:.1f})"
            row = {"what": what, "unit": "nats", "source": aevb.SOURCE, "command": command_of(group)}
            row |= {"published": round(said["published"], 1), "ours": round(said[PAPERS]["mean"], 1)}
            others = otherwise(groups, who, part)
            nearest = min(abs(off) for off in (said["difference"], *others.values()))
            unknown = "" if who.apart or nearest <= WITHIN else UNKNOWN_NOTE
            note = "".join((NOTE, OWN_NOTES.get(who.algorithm, ""), *others, unknown))
            rows.append({**row, "note": note})
    return rows


def otherwise(groups: dict[Contender, Group], who: Contender, part: str) -> dict[str, float]:
    """Returns the distances from the published value with other options than the protocol's, by a sentence for each.

    The distances are at the last mark of these runs. There are none for a contender with such options itself.
    """
    sentences = {}
    for other, group in groups.items():
        if (other.size, other.algorithm) != (who.size, who.algorithm) or who.apart or not other.apart:
            continue
        mark = marks_of(group)[-1]
        theirs, own = at_mark(other, group, part, mark), at_mark(who, groups[who], part, mark)
        if theirs and own and own["published"] is not None:
            distances = f"{theirs['difference']:+.1f} in place of {own['difference']:+.1f}"
            sentences[f" With {other.apart} it is {distances} at {mark:.2g} samples."] = theirs["difference"]
    return sentences


def judged(groups: dict[Contender, Group]) -> dict[str, Any]:
    """Returns the errors of the estimators at the ends of the runs, by contender and part."""
    return {
        f"{who.size} data, {who.title}, seed {seed}": {
            part: {name: said["error"] for name, said in run["final"][part].items() if "error" in said}
            for part in PARTS
        }
        for who, group in groups.items()
        for seed, run in group.items()
    }


def claims(groups: dict[Contender, Group]) -> list[dict[str, Any]]:
    """Returns the claims of the paper's figure, and whether the runs of the protocol confirm them.

    Distances from published values use the paper's estimator at the last mark that all algorithms reach. Orderings use
    importance sampling at the ends of runs with equal numbers of samples, with the Student-t interval over seeds. For
    a single seed, the interval is 1.96 paired standard errors over data, which does not cover other seeds.
    """
    found: list[dict[str, Any]] = []
    for size in sorted({who.size for who in groups if not who.apart}):
        mine = {who.algorithm: group for who, group in groups.items() if who.size == size and not who.apart}
        marks = [
            mark
            for mark in marks_of(*mine.values())
            if all(values(group, "test", mark) for group in mine.values())
            and any(published_at(size, algorithm, "test", mark) is not None for algorithm in mine)
        ]
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
    """Returns True (False) if the whole interval of a difference is above (below) 0, else None."""
    return True if mean > half_width else False if mean < -half_width else None


def about(mean: float, half_width: float) -> bool | None:
    """Returns True (False) if the whole interval of a difference is within (outside) `ABOUT` of 0, else None."""
    return True if abs(mean) + half_width <= ABOUT else False if abs(mean) - half_width > ABOUT else None


def orderings(size: int) -> list[tuple[str, str, str, str, Callable[[float, float], bool | None]]]:
    """Returns the orderings of the published curves: text, part, two algorithms, and the test of their difference."""
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
    """Returns the difference of the final log p(x) of runs with equal numbers of samples that did not diverge."""
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
    return np.array(run["final"][part][REFERENCE]["pointwise"])


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints both estimates at the marks with the published values, the errors of the estimators, and the claims."""
    table = Table(title="log p(x), nats per datum, ± 95 % over seeds; in brackets: appendix D minus published")
    for column in ("N_train", "algorithm", "stepsize", "samples"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")
    for part in PARTS:
        table.add_column(f"{part}, appendix D", justify="right")
        table.add_column("log p(x)", justify="right")
    sizes = [name for name in summary if name.isdigit()]
    for size in sizes:
        for title, row in summary[size].items():
            for mark, entry in row["at_samples"].items():
                cells = [text for part in PARTS for text in cells_of(entry.get(part))]
                samples = f"{int(mark):,}"
                table.add_row(size, title, f"{row['stepsize']:g}", samples, *cells)
    console.print(table)
    console.print("errors of estimators at the end, mean over data (median; share of data a nat low):")
    for name, parts in summary["errors_of_estimators"].items():
        for part, errors in parts.items():
            said = [
                f"{ESTIMATORS.get(estimator, estimator.replace('_', ' '))} {error['value']:+.2f} "
                f"({error['quantile_0.5']:+.2f}; {error['share_a_nat_low']:.0%})"
                for estimator, error in errors.items()
            ]
            console.print(f"  {name}, {part}: {', '.join(said)}", highlight=False)
    for claim in summary["claims"]:
        width = claim["half_width"]
        text = "" if width is None or math.isnan(width) else f" ± {width:.2f}"
        text += f" ({claim['half_width_of']})" if text and "half_width_of" in claim else ""
        said = {True: "yes", False: "NO", None: "?"}[claim["holds"]]
        console.print(f"{said:>4}  {claim['claim']}, {claim['samples']:.2g} samples: {claim['value']:.2f}{text}")


def cells_of(entry: dict[str, Any] | None) -> list[str]:
    if entry is None:
        return ["-", "-"]
    difference = "" if entry["difference"] is None else f" ({entry['difference']:+.2f})"
    return [f"{cell(entry[PAPERS])}{difference}", cell(entry[REFERENCE])]


def cell(value: dict[str, Any]) -> str:
    width = value["half_width"]
    return f"{value['mean']:.2f}" + ("" if math.isnan(width) else f" ± {width:.2f}")
