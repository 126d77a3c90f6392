"""The tables of a comparison: as text that the page sets, and as `rich` tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from pyro_vae.comparison import Comparison, Run
from pyro_vae.evaluation import Estimate
from pyro_vae.statistics import Interval

# Above this Pareto k-hat an importance-sampled log p(x), and its error, are not to be trusted.
PARETO_LIMIT = 0.7
_CROSS_ENTROPY = "cross-entropy bound (not a log-likelihood)"


@dataclass(frozen=True)
class TableText:
    """A table as text.

    Attributes:
        title: One phrase.
        header: Name of each column.
        rows: Cells of each row; the first is the row's name.
        caption: Units, what the intervals are, and warnings; one paragraph.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    caption: str


def summary_table(comparison: Comparison) -> Table:
    """Returns the metrics of each algorithm, mean over seeds ± 95 % Student-t half width, for a terminal.

    Arguments:
        comparison: What was run.

    Returns:
        One row for each algorithm: ELBO and log p(x) of the test data, active units, seconds per epoch. It fits
        100 columns.
    """
    return _rich(summary_text(comparison))


def difference_table(comparison: Comparison) -> Table:
    """Returns the paired differences of each algorithm against the first, for a terminal.

    Arguments:
        comparison: What was run.

    Returns:
        One row for each algorithm but the first: the difference of ELBO and log p(x), mean over seeds ± 95 %
        Student-t half width, and whether the interval contains 0. It fits 100 columns.
    """
    return _rich(difference_text(comparison))


def summary_text(comparison: Comparison) -> TableText:
    """Returns what `summary_table` shows."""
    labels = comparison.labels
    summaries = [comparison.summary(label) for label in labels]
    units = [comparison.runs_of(label)[0].active.numel() for label in labels]
    columns = [
        labels,
        _intervals([summary["elbo"] for summary in summaries]),
        _intervals([summary["log_marginal"] for summary in summaries]),
        [_active(summary["active_units"], n) for summary, n in zip(summaries, units, strict=True)],
        _intervals([summary["seconds_per_epoch"] for summary in summaries], digits=3, most=6),
    ]
    header = ("algorithm", f"test {_bound(comparison)}", _marginal(comparison), "active units", "seconds per epoch")
    caption = f"{_caption(comparison)} {_ACTIVE} {_sampling(comparison)}"
    return TableText("Test data, by algorithm", header, _rows(columns), caption.strip())


def difference_text(comparison: Comparison) -> TableText:
    """Returns what `difference_table` shows."""
    baseline, *others = comparison.labels
    differences = [comparison.difference(label, baseline) for label in others]
    columns: list[list[str]] = [others]
    for metric in ("elbo", "log_marginal"):
        intervals = [difference[metric] for difference in differences]
        columns += [_intervals(intervals, sign=True), [_contains_zero(interval) for interval in intervals]]
    header = ("algorithm", _bound(comparison), "interval contains 0", "log p(x)", "interval contains 0")
    if not others:
        return TableText(f"Difference from {baseline}", header, [], "Only one algorithm: there is nothing to compare.")
    caption = f"{_caption(comparison)} Differences are between runs of the same seed; above 0 is better."
    return TableText(f"Difference from {baseline}, paired by seed", header, _rows(columns), caption)


def seeds_text(comparison: Comparison) -> TableText:
    """Returns every metric of every run, with its errors."""
    errors = ("± Monte Carlo", "± data")
    header = ("algorithm", "seed", _bound(comparison), *errors, "log p(x)", *errors)
    others = ("k-hat > 0.7", "median k-hat", "active units", "s / epoch", "steps", "stopped")
    caption = (
        "Nats per datum. ± Monte Carlo: standard error given these test data; ± data: standard error as an estimate "
        "of the mean over the data's population. k-hat: Pareto k-hat of the importance weights, counted over the "
        "test data."
    )
    return TableText("Every run", header + others, [_run(run) for run in comparison.runs], caption)


def data_phrase(comparison: Comparison) -> str:
    """Returns the data set's name and what was done to it, such as ``digits (dynamic binarisation)``."""
    data = comparison.data
    done = [{"none": "", "unit": "scaled to [0, 1]", "standardise": "standardised"}[data.scaling]]
    if data.binarisation != "none":
        done = [f"{data.binarisation} binarisation"]
    elif data.image_shape is not None:
        done = ["not binarised", *done]
    said = ", ".join(filter(None, done))
    return f"{data.name} ({said})" if said else data.name


def count(n: int, noun: str) -> str:
    """Returns ``one seed``, ``2 seeds``."""
    return f"one {noun}" if n == 1 else f"{n} {noun}s"


def enumerated(names: Sequence[str]) -> str:
    """Returns ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _bound(comparison: Comparison) -> str:
    return _CROSS_ENTROPY if comparison.data.cross_entropy else "ELBO"


def _marginal(comparison: Comparison) -> str:
    if comparison.data.cross_entropy:
        return "log p(x)"
    return f"log p(x), {comparison.experiment.evaluation.num_samples} importance samples"


def _caption(comparison: Comparison) -> str:
    n = len(comparison.experiment.seeds)
    over = f"mean ± 95 % Student-t interval over {n} seeds" if n > 1 else "one seed, so without intervals"
    units = " in the data's own units" if comparison.data.log_jacobian else ""
    return f"Nats per datum{units}; {over}; {data_phrase(comparison)}."


_ACTIVE = "Active: the posterior mean varies over the data (variance above 0.01)."


def _sampling(comparison: Comparison) -> str:
    """How far log p(x) can be trusted; empty where nothing is wrong."""
    counts: dict[str, int] = {}
    unknown, n = 0, 0
    for run in comparison.runs:
        if run.log_marginal is not None:
            k = run.log_marginal.diagnostics["pareto_k"]
            counts[run.algorithm] = max(counts.get(run.algorithm, 0), int((k > PARETO_LIMIT).sum()))
            unknown, n = max(unknown, int(k.isnan().sum())), len(k)
    sentences = []
    bad = [f"{number} ({label})" for label, number in counts.items() if number]
    if bad:
        worst = " in the worst seed" if len(comparison.experiment.seeds) > 1 else ""
        sentences.append(
            f"Warning: Pareto k-hat > {PARETO_LIMIT} for {enumerated(bad)} of {n} test data{worst}; their log p(x) "
            "is not to be trusted; take more samples (evaluation.num_samples), or train a posterior that fits better."
        )
    if unknown:
        sentences.append(
            f"Warning: Pareto k-hat is unknown for {unknown} of {n} test data; take at least 30 importance samples."
        )
    return " ".join(sentences)


def _intervals(intervals: Sequence[Interval], *, digits: int = 2, most: int = 4, sign: bool = False) -> list[str]:
    """Formats a column: one number of decimals, at least two, enough for the digits of the widest half width."""
    widths = [interval.half_width for interval in intervals if interval.half_width > 0]
    sizes = widths or ([abs(interval.mean) for interval in intervals if interval.mean] if digits > 2 else [])
    sizes = [size for size in sizes if math.isfinite(size)]
    decimals = digits - 1 - math.floor(math.log10(max(sizes))) if sizes else 2
    spec = f"{'+' if sign else ''}.{min(max(decimals, 2), most)}f"
    return [_signed(interval, spec) for interval in intervals]


def _signed(interval: Interval, spec: str) -> str:
    """Formats an interval with the sign, if any, on its mean alone, and on none that is 0 as written."""
    mean, separator, width = format(interval, spec).partition(" ± ")
    if mean != "-" and float(mean) == 0:
        mean = mean.lstrip("+-")
    return mean + separator + width.removeprefix("+")


def _active(interval: Interval, units: int) -> str:
    return f"{interval:.0f} of {units}" if math.isnan(interval.half_width) else f"{interval:.1f} of {units}"


def _contains_zero(interval: Interval) -> str:
    if math.isnan(interval.half_width):
        return "-"
    return "yes" if 0.0 in interval else "no"


def _run(run: Run) -> tuple[str, ...]:
    k_above = k_median = "-"
    if run.log_marginal is not None:
        k = run.log_marginal.diagnostics["pareto_k"]
        k_above = f"{int((k > PARETO_LIMIT).sum())} of {len(k)}"
        k_median = _number(float(k.nanmedian()), ".2f")
    return (
        run.algorithm,
        str(run.seed),
        *_estimate(run.elbo),
        *_estimate(run.log_marginal),
        k_above,
        k_median,
        f"{int(run.active.sum())} of {run.active.numel()}",
        f"{run.seconds_per_epoch:.3g}",
        str(run.history.steps),
        run.history.stopped,
    )


def _estimate(estimate: Estimate | None) -> tuple[str, str, str]:
    if estimate is None:
        return "-", "-", "-"
    errors = (estimate.standard_error, estimate.sampling_error)
    return f"{estimate.value:.3f}", _error(errors[0]), _error(errors[1])


def _error(value: float) -> str:
    """Formats a standard error to two digits."""
    if not math.isfinite(value) or value <= 0:
        return _number(value, "g")
    return f"{value:.{max(1 - math.floor(math.log10(value)), 0)}f}"


def _number(value: float, spec: str) -> str:
    return "-" if math.isnan(value) else format(value, spec)


def _rows(columns: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*columns, strict=True))


def _rich(text: TableText) -> Table:
    table = Table(title=Text(text.title), caption=Text(text.caption), title_justify="left", caption_justify="left")
    cells: Iterable[tuple[str, ...]] = zip(*text.rows, strict=True) if text.rows else [()] * len(text.header)
    for index, (name, column) in enumerate(zip(text.header, cells, strict=True)):
        if index == 0:
            table.add_column(Text(name), overflow="fold")
        else:
            table.add_column(Text(name), justify="right", min_width=max(map(len, column), default=0))
    for row in text.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
