"""The tables of a comparison: as text for the page, and as `rich` tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyro_vae.comparison.comparison import Comparison
from pyro_vae.comparison.report.wording import enumerated, estimate, intervals, number, some_of
from pyro_vae.comparison.run import MOST_DISTRUSTED, Run
from pyro_vae.datasets.data import observed_share
from pyro_vae.evaluation.estimate import FEWEST_WEIGHTS, PARETO_LIMIT
from pyro_vae.evaluation.intervals import Interval
from pyro_vae.runtime.terminal import Table, Text

_CROSS_ENTROPY = "cross-entropy bound (not a log-likelihood)"
_SECONDS = "Seconds: their range over seeds."
# Up to so many seeds their values are shown, in place of an interval that a bounded number cannot have.
_FEW_SEEDS = 3
_ACTIVE = "Active: the posterior mean varies over the data (variance above 0.01)."


@dataclass(frozen=True)
class TableText:
    """A table as text.

    Attributes:
        title: Title of the table.
        header: Names of the columns.
        rows: Cells of each row; the first cell is the row's name.
        caption: Units, meaning of the intervals, and warnings; one paragraph.
        notes: Footnotes, one paragraph each.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    caption: str
    notes: tuple[str, ...] = ()


def summary_table(comparison: Comparison) -> Table:
    """Returns the metrics of each algorithm, mean over seeds ± 95 % Student-t half width, for a terminal.

    Arguments:
        comparison: The comparison to show.

    Returns:
        One row for each algorithm: ELBO and log p(x) of the test data, active units, seconds per epoch. It fits
        100 columns.
    """
    return _rich(summary_text(comparison))


def difference_table(comparison: Comparison) -> Table:
    """Returns the paired differences of each algorithm against the first, for a terminal.

    Arguments:
        comparison: The comparison to show.

    Returns:
        One row for each algorithm except the first: the difference of ELBO and log p(x), mean over seeds ± 95 %
        Student-t half width, and whether the interval contains 0. It fits 100 columns.
    """
    return _rich(difference_text(comparison))


def tables(comparison: Comparison) -> list[Table]:
    """Returns summary and differences for a terminal; candidates of different measures stand in different tables."""
    return [_rich(text) for text in tables_text(comparison)]


def summary_text(comparison: Comparison) -> TableText:
    """Returns the content of `summary_table`."""
    labels = comparison.labels
    summaries = [comparison.summary(label) for label in labels]
    marginals = intervals([summary["log_marginal"] for summary in summaries])
    columns = [
        labels,
        intervals([summary["elbo"] for summary in summaries]),
        [_marked(comparison, (label,), cell) for label, cell in zip(labels, marginals, strict=True)],
        [_active(comparison, label) for label in labels],
        [_seconds(comparison, label) for label in labels],
    ]
    header = (
        _named(comparison),
        f"test {_bound(comparison)}",
        _marginal(comparison),
        "active units",
        "seconds per epoch",
    )
    several = len(comparison.experiment.seeds) > 1
    parts = [_caption(comparison), _ACTIVE, _sampling(comparison), annealing(comparison), comparison.execution.said]
    caption = " ".join(filter(None, [*parts, _SECONDS if several else ""]))
    title = f"Test data, by {_named(comparison)}"
    if comparison.varies and (measure := comparison.candidates[0].measure):
        title = f"{title}: {measure}"
    return TableText(title, header, _rows(columns), caption, tuple(comparison.remarks))


def difference_text(comparison: Comparison) -> TableText:
    """Returns the content of `difference_table`."""
    baseline, *others = comparison.labels
    differences = [comparison.difference(label, baseline) for label in others]
    columns: list[list[str]] = [others]
    for metric in ("elbo", "log_marginal"):
        column = [difference[metric] for difference in differences]
        cells, doubtful = intervals(column, sign=True), [False] * len(others)
        if metric == "log_marginal":
            cells = [_marked(comparison, (label, baseline), cell) for label, cell in zip(others, cells, strict=True)]
            doubtful = [not comparison.trusts(label, baseline) for label in others]
        columns += [cells, [_contains_zero(*pair) for pair in zip(column, doubtful, strict=True)]]
    header = (_named(comparison), _bound(comparison), "contains 0", "log p(x)", "contains 0")
    if not others:
        alone = f"Only one {_named(comparison)}: there is nothing to compare."
        return TableText(f"Difference from {baseline}", header, [], alone)
    caption = f"{_caption(comparison)} Differences are between runs of the same seed; above 0 is better."
    if any(run.annealed for run in comparison.runs):
        caption += " (AIS): log p(x) by annealed importance sampling for at least one algorithm; both of the same data."
    if not comparison.trusts(*comparison.labels):
        caption += (
            f" (k-hat): log p(x) of at least one algorithm is not to be trusted for more than {MOST_DISTRUSTED:.0%} "
            "of the test data, so the interval says nothing about 0; take more samples (evaluation.num_samples)."
        )
    return TableText(f"Difference from {baseline}, paired by seed", header, _rows(columns), caption)


def tables_text(comparison: Comparison) -> list[TableText]:
    """Returns summary and differences, for each measure apart."""
    found = []
    for part in comparison.by_measure():
        found.append(summary_text(part))
        if len(part.labels) > 1:
            found.append(from_best_text(part) if part.varies else difference_text(part))
    return found


def from_best_text(comparison: Comparison) -> TableText:
    """Returns the differences of all other candidates from the best one, with intervals that hold together."""
    found = comparison.verdict()
    if found.differences is None:
        return TableText("Difference from the best candidate", ("candidate",), [], found.sentence)
    rows: list[tuple[str, ...]] = []
    for pair in sorted(found.differences.pairs, key=lambda pair: -pair.mean):
        doubtful = not comparison.trusts(pair.label, pair.baseline)
        worse = "unknown" if doubtful or pair.covers is None else "yes" if pair.distinguishable else "no"
        rows.append((pair.label, f"{pair:+.2f}".replace("± +", "± ") + " (k-hat)" * doubtful, worse))
    header = ("candidate", found.quantity, "distinguishable")
    caption = (
        "Each candidate minus the best one, on the test data, paired by seed and by datum; below 0 is worse. "
        + "Distinguishable: 0 lies outside the interval; all intervals hold together with a probability of at least "
        + f"{found.differences.level:.0%}."
    )
    return TableText(f"Difference from the best candidate, {found.best}", header, rows, caption)


def seeds_text(comparison: Comparison) -> TableText:
    """Returns every metric of every run, with its errors."""
    errors = ("± Monte Carlo", "± data")
    header = (_named(comparison), "seed", _bound(comparison), *errors, "log p(x)", *errors)
    others = ("k-hat > 0.7", "median k-hat", "active units", "s / epoch", "steps", "stopped")
    caption = (
        f"Nats per datum{evaluated_phrase(comparison)}. ± Monte Carlo: standard error given these test data; ± data: "
        "standard error as an estimate of the mean over the data's population. k-hat: Pareto k-hat of the importance "
        "weights, counted over the test data."
    )
    caption = f"{caption} {annealing(comparison)}".strip()
    return TableText("Every run", header + others, [_run(run) for run in comparison.runs], caption)


def data_phrase(comparison: Comparison) -> str:
    """Returns the data set's name and how it was prepared, such as ``digits (dynamic binarisation)``."""
    data = comparison.data
    done = [{"none": "", "unit": "scaled to [0, 1]", "standardise": "standardised"}[data.scaling]]
    if data.binarisation != "none":
        done = [f"{data.binarisation} binarisation"]
    elif data.image_shape is not None:
        done = ["not binarised", *done]
    observed = observed_share(data.train)
    done += [f"{1 - observed:.0%} of the cells missing"] if observed < 1 else []
    done += [f"given {column.name}" for column in data.units.context]
    done += [] if data.labelled is None else [f"{data.labelled:,} of {len(data.train):,} training labels known"]
    said = ", ".join(filter(None, done))
    return f"{data.name} ({said})" if said else data.name


def evaluated_phrase(comparison: Comparison) -> str:
    """Returns on how many of the test data the models were judged, with a semicolon before; empty if on all."""
    if comparison.num_evaluated == comparison.num_test:
        return ""
    return f"; on {comparison.evaluated}, drawn once for all runs (evaluation.num_data)"


def annealing(comparison: Comparison) -> str:
    """Returns how log p(x) was estimated without a trained posterior, and its reliability; empty if all are trained."""
    runs = [run for run in comparison.runs if run.annealed]
    estimates = [run.log_marginal for run in runs if run.log_marginal is not None]
    if not estimates or comparison.data.test is None:
        return ""
    labels = list(dict.fromkeys(run.algorithm for run in runs))
    about, n = estimates[0].diagnostics, len(estimates[0].pointwise)
    trains = "trains" if len(labels) == 1 else "train"
    text = (
        f"(AIS): {enumerated(labels)} {trains} no posterior; log p(x) by annealed importance sampling "
        f"({about['temperatures']} temperatures, {about['chains']} chains) of "
        f"{some_of(n, comparison.num_test, comparison.num_evaluated < comparison.num_test)}"
    )
    bias = max(float(estimate.diagnostics["bias"].mean()) for estimate in estimates)
    text += f", too low by an estimated {bias:.2g} nats." if math.isfinite(bias) else "."
    poor = max(int((e.diagnostics["effective_sample_size"] < FEWEST_WEIGHTS).sum()) for e in estimates)
    if poor and about["chains"] > FEWEST_WEIGHTS:
        text += (
            f" Warning: effective sample size below {FEWEST_WEIGHTS:g} of the {about['chains']} chains for {poor} of "
            f"{n} test data; their log p(x) is too low by more than estimated; take more temperatures "
            "(evaluation.temperatures)."
        )
    return text


def _marked(comparison: Comparison, labels: Sequence[str], cell: str) -> str:
    """A cell of log p(x), marked if its method is annealed importance sampling, and if it is not to be trusted."""
    if cell == "-":
        return cell
    annealed = any(run.annealed for label in labels for run in comparison.runs_of(label))
    return cell + " (AIS)" * annealed + " (k-hat)" * (not comparison.trusts(*labels))


def _named(comparison: Comparison) -> str:
    return "candidate" if comparison.varies else "algorithm"


def _bound(comparison: Comparison) -> str:
    return _CROSS_ENTROPY if comparison.data.cross_entropy else "ELBO"


def _marginal(comparison: Comparison) -> str:
    if comparison.data.cross_entropy or all(run.annealed for run in comparison.runs):
        return "log p(x)"
    return f"log p(x), {comparison.experiment.evaluation.num_samples} importance samples"


def _caption(comparison: Comparison) -> str:
    n = len(comparison.experiment.seeds)
    over = f"mean ± 95 % Student-t interval over {n} seeds" if n > 1 else "one seed, so without intervals"
    units = " in the data's own units" if comparison.data.log_jacobian else ""
    return f"Nats per datum{units}; {over}; {data_phrase(comparison)}{evaluated_phrase(comparison)}."


def _sampling(comparison: Comparison) -> str:
    """Warnings about an importance-sampled log p(x); empty if it is reliable."""
    counts: dict[str, int] = {}
    unknown, n = 0, 0
    for run in comparison.runs:
        if run.log_marginal is not None and not run.annealed:
            k = run.log_marginal.diagnostics["pareto_k"]
            counts[run.algorithm] = max(counts.get(run.algorithm, 0), int((k > PARETO_LIMIT).sum()))
            unknown, n = max(unknown, int(k.isnan().sum())), len(k)
    sentences = []
    bad = [f"{number} ({label})" for label, number in counts.items() if number]
    if bad:
        worst = " in the worst seed" if len(comparison.experiment.seeds) > 1 else ""
        sentences.append(
            f"Warning: Pareto k-hat > {PARETO_LIMIT} for {enumerated(bad)} of {n} test data{worst}; log p(x) of these "
            "data is not to be trusted; take more samples (evaluation.num_samples), or train a better posterior."
        )
    if unknown:
        sentences.append(
            f"Warning: Pareto k-hat is unknown for {unknown} of {n} test data; take at least 30 importance samples."
        )
    return " ".join(sentences)


def _active(comparison: Comparison, label: str) -> str:
    """The active units; a dash if no posterior is trained."""
    runs = comparison.runs_of(label)
    if all(run.elbo is None for run in runs):
        return "-"
    counts, units = sorted(int(run.active.sum()) for run in runs if run.elbo is not None), runs[0].active.numel()
    if len(counts) <= _FEW_SEEDS:
        return f"{', '.join(map(str, dict.fromkeys(counts)))} of {units}"
    return f"{comparison.summary(label)['active_units']:.1f} of {units}"


def _seconds(comparison: Comparison, label: str) -> str:
    """The range of the seconds per epoch over seeds: an interval around a mean may go below 0."""
    values = [run.seconds_per_epoch for run in comparison.runs_of(label)]
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _contains_zero(interval: Interval, distrusted: bool = False) -> str:
    if distrusted:
        return "unknown"
    if math.isnan(interval.half_width):
        return "-"
    return "yes" if 0.0 in interval else "no"


def _run(run: Run) -> tuple[str, ...]:
    k_above = k_median = "-"
    if run.log_marginal is not None and not run.annealed:
        k = run.log_marginal.diagnostics["pareto_k"]
        k_above = f"{int((k > PARETO_LIMIT).sum())} of {len(k)}"
        k_median = number(float(k.nanmedian()), ".2f")
    marginal, *errors = estimate(run.log_marginal)
    return (
        run.algorithm,
        str(run.seed),
        *estimate(run.elbo),
        f"{marginal} (AIS)" if run.annealed else marginal,
        *errors,
        k_above,
        k_median,
        "-" if run.elbo is None else f"{int(run.active.sum())} of {run.active.numel()}",
        f"{run.seconds_per_epoch:.3g}",
        str(run.history.steps),
        run.history.stopped,
    )


def _rows(columns: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*columns, strict=True))


# Number of characters of a label in a terminal; longer labels may be folded.
_LABEL = 16


def _rich(text: TableText) -> Table:
    caption = Text("\n".join((text.caption, *text.notes)))
    table = Table(title=Text(text.title), caption=caption, title_justify="left", caption_justify="left")
    cells: Iterable[tuple[str, ...]] = zip(*text.rows, strict=True) if text.rows else [()] * len(text.header)
    for index, (name, column) in enumerate(zip(text.header, cells, strict=True)):
        if index == 0:
            table.add_column(Text(name), overflow="fold", min_width=min(max(map(len, column), default=0), _LABEL))
        else:
            table.add_column(Text(name), justify="right", min_width=max(map(len, column), default=0))
    for row in text.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
