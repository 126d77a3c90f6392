"""The sections of the page on the posterior checks and on the noise of the gradients."""

from __future__ import annotations

import numpy as np

from pyro_vae.comparison.checks import PosteriorChecks
from pyro_vae.comparison.comparison import Comparison
from pyro_vae.comparison.report import check_figures
from pyro_vae.comparison.report.check_figures import K_RANGE, leaving
from pyro_vae.comparison.report.elements import Picture, Section
from pyro_vae.comparison.report.tables import TableText
from pyro_vae.comparison.report.wording import NOISELESS, count, enumerated, noise, some_of, with_errors
from pyro_vae.evaluation.estimate import PARETO_LIMIT

_GROUPS = ("theta", "phi")


def check_sections(comparison: Comparison) -> list[Section]:
    """Returns the sections of the posteriors and the gradients: gap, calibration, importance weights, noise."""
    weights, checks = _weights(comparison), comparison.checks
    if checks.num_data == 0:
        text = (
            "Not computed (evaluation.posterior_checks is 0): the parts of the gap between log p(x) and the ELBO, "
            "the calibration of the posteriors, and the noise of the gradients."
        )
        return [weights, Section("checks", "Posterior checks", text)]
    of = some_of(checks.num_data, comparison.num_test, comparison.num_evaluated < comparison.num_test)
    return [_gap(comparison, of), _calibration(comparison), weights, _gradients(checks, of)]


def _gap(comparison: Comparison, of: str) -> Section:
    checks, title = comparison.checks, "Where the gap comes from"
    notes = tuple(checks.notes)
    if not checks.gaps:
        text = " ".join((f"Not shown: {_why_not_shown(comparison)}.", *notes))
        return Section("gap", title, text)
    text = (
        f"log p(x) − ELBO of {of}, for the models of the first seed. The approximation gap is the cost of the "
        "posterior's family; the amortization gap is the cost of the network that chooses a member of the family. The "
        "best member q* is optimised for each datum. Bars: one standard error over data, Monte Carlo error included."
        f"{_left_out(comparison)}"
    )
    parts = [
        f"{label} {gap.approximation.value:.2f} + {gap.amortization.value:.2f} = {gap.total.value:.2f} "
        f"(± {gap.total.sampling_error:.2f})"
        for label, gap in checks.gaps.items()
    ]
    alt = f"Stacked bars of approximation + amortization gap in nats per datum: {'; '.join(parts)}"
    picture = Picture(check_figures.gap_bars(checks.gaps), alt)
    return Section("gap", title, text, [picture], tables=[_gap_table(checks, notes)])


def _gap_table(checks: PosteriorChecks, notes: tuple[str, ...]) -> TableText:
    header = ("algorithm", "log p(x) − ELBO", "approximation", "amortization", f"k-hat > {PARETO_LIMIT}")
    rows: list[tuple[str, ...]] = []
    stopped: list[str] = []
    doubtful = False
    for label, gap in checks.gaps.items():
        k = gap.log_marginal.diagnostics.get("pareto_k")
        above = "-" if k is None else f"{int((k > PARETO_LIMIT).sum())} of {len(k)}"
        doubtful = doubtful or (k is not None and bool((k > PARETO_LIMIT).any()))
        rows.append((label, *map(with_errors, (gap.total, gap.approximation, gap.amortization)), above))
        left = int((~gap.best_elbo.diagnostics["converged"]).sum())
        stopped += [f"{left} ({label})"] if left else []
    log_marginal = next(iter(checks.gaps.values())).log_marginal.diagnostics
    method = log_marginal.get("method", f"importance sampling from q*, {log_marginal.get('num_samples')} draws")
    caption = (
        f"Nats per datum, ± Monte Carlo standard error ± standard error over the data. log p(x) by {method}. "
        "k-hat: Pareto k-hat of its importance weights."
    )
    if doubtful:
        caption += (
            " Where k-hat is above the limit, the estimates of log p(x) and of the approximation gap are too low."
        )
    if stopped:
        caption += f" q* had not converged for {enumerated(stopped)} data: part of their amortization gap is missing."
    return TableText("log p(x) − ELBO, and its parts", header, rows, caption, notes)


def _calibration(comparison: Comparison) -> Section:
    calibrations, title = comparison.checks.calibrations, "Calibration"
    if not calibrations:
        return Section("calibration", title, f"Not shown: {_why_not_shown(comparison)}.")
    first = next(iter(calibrations.values()))
    text = (
        f"Simulation-based calibration of the first seed's models: z from the prior, x from p(x|z), then the rank of "
        f"z among {first.num_draws} draws from q(z|x), over {len(first.ranks)} data; one line for each latent "
        f"dimension. If q is calibrated, each line stays in the grey band with probability {first.level:.4g}, and "
        "all lines of a panel with probability 0.95. A line above 0 on the left and below 0 on the right means that q "
        "is too narrow; the reverse means that q is too wide; a line on one side of 0 means that q is shifted. The "
        "lines of a q that ignores x and equals the prior stay in the band too."
        f"{_left_out(comparison)}"
    )
    alt = "Differences of the ranks' ECDF from the uniform: "
    alt += "; ".join(f"{label}: {leaving(c)}" for label, c in calibrations.items())
    picture = Picture(check_figures.calibration_panels(calibrations), alt)
    return Section("calibration", title, text, [picture])


def _weights(comparison: Comparison) -> Section:
    """Pareto k-hat of the importance weights of log p(x), the seeds pooled."""
    k: dict[str, list[float]] = {}
    for run in comparison.runs:
        if run.log_marginal is not None and not run.annealed:
            k.setdefault(run.algorithm, []).extend(run.log_marginal.diagnostics["pareto_k"].tolist())
    title = "Importance weights"
    if not k:
        return Section("weights", title, f"Not shown: {_why_not_shown(comparison)}.")
    n, seeds = max(map(len, k.values())), len(comparison.experiment.seeds)
    text = (
        f"Pareto k-hat of the importance weights of log p(x), {comparison.experiment.evaluation.num_samples} samples "
        f"from q(z|x) for each test datum: {n // seeds} data"
        f"{f' under each of {seeds} seeds' if seeds > 1 else ''}. Orange: log p(x) of these data is not to be trusted."
    )
    for what, is_so in (("constant weights (k-hat −∞)", np.isneginf), ("an unknown k-hat", np.isnan)):
        counts = [f"{number} ({label})" for label, values in k.items() if (number := int(is_so(values).sum()))]
        text += f" Not drawn: {enumerated(counts)} with {what}." if counts else ""
    finite = [value for values in k.values() for value in values if np.isfinite(value)]
    if any(not K_RANGE[0] <= value <= K_RANGE[1] for value in finite):
        text += " The outermost bars contain values beyond them."
    annealed = [label for label in comparison.labels if label not in k]
    text += f" {enumerated(annealed)}: log p(x) is by annealed importance sampling, without k-hat." if annealed else ""
    numbers = [f"{label}: {_median(v)}, {_above(v)}" for label, v in k.items()]
    alt = f"Histograms of Pareto k-hat over test data. {'; '.join(numbers)}"
    return Section("weights", title, text, [Picture(check_figures.pareto_panels(k, PARETO_LIMIT), alt)])


def _median(k: list[float]) -> str:
    known = [value for value in k if not np.isnan(value)]
    return f"median {np.median(known):.2f}" if known else "unknown"


def _above(k: list[float]) -> str:
    return f"{sum(value > PARETO_LIMIT for value in k)} of {len(k)} above {PARETO_LIMIT}"


def _gradients(checks: PosteriorChecks, of: str) -> Section:
    names = {"theta": "θ", "phi": "φ"}
    header = ("algorithm", *(f"{names[g]}: {what}" for g in _GROUPS for what in ("variance", "signal-to-noise")))
    rows: list[tuple[str, ...]] = []
    for label, groups in checks.gradients.items():
        cells = [noise(groups[group]) if group in groups else ("-", "-") for group in _GROUPS]
        rows.append((label, *cells[0], *cells[1]))
    draws = next(iter(next(iter(checks.gradients.values())).values())).variance.n
    text = (
        f"{count(draws, 'gradient')} of each algorithm, at the same parameters (those of {checks.at} trained under the "
        f"first seed) and on the same minibatch ({of}); only the algorithms' own draws vary. θ: generative parameters; "
        "φ: inference parameters. Signal-to-noise ratios can be compared between all algorithms; variances only "
        "between algorithms with the same objective, because these have the same mean gradient."
    )
    means = [n.signal_to_noise.mean for groups in checks.gradients.values() for n in groups.values()]
    text += " An arrow at the right edge: a gradient without noise." if max(means) > NOISELESS else ""
    text += " An arrow at the left edge: no signal beyond the noise." if min(means) == 0 else ""
    caption = (
        "Variance: trace of the gradient's covariance over all parameters of the group. Signal-to-noise: norm of the "
        "mean gradient over the root of the variance. ± 95 % jackknife interval. A dash: the algorithm does not train "
        "these parameters."
    )
    alt = "Signal-to-noise ratios on a logarithmic axis: "
    alt += "; ".join(f"{row[0]} θ {row[2]}, φ {row[4]}" for row in rows)
    picture = Picture(check_figures.signal_to_noise_dots(checks.gradients), alt)
    table = TableText("Noise of the gradients", header, rows, caption)
    return Section("gradients", "Gradient noise", text, [picture], tables=[table])


def _left_out(comparison: Comparison) -> str:
    labels = [label for label in comparison.labels if label not in comparison.checks.calibrations]
    return f" Left out: {enumerated(labels)}, without a trained posterior." if labels else ""


def _why_not_shown(comparison: Comparison) -> str:
    """The reason why a section on the posteriors is empty."""
    if comparison.data.cross_entropy:
        return "the data are not draws of the likelihood, so log p(x) is not defined"
    return "no posterior was trained, or it could not be checked"
