r"""Which candidate is best, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.comparison.run import Run
from pyro_vae.evaluation.best_candidate import best_candidate
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.paired_differences import Difference, PairedDifferences, paired_differences
from pyro_vae.training.history import History

# Rise of the validation bound over the last fifth of the training, in nats per datum, from which on it still rises.
_RISE = 0.05
# Up to so many candidates are named in a sentence.
_NAMED = 4


@dataclass(frozen=True)
class Verdict:
    """The best candidate of a comparison, chosen on validation data and reported on test data.

    Attributes:
        best: Its label; None if no candidate has values.
        chosen_by: The data and the quantity that it was chosen by.
        quantity: What ``differences`` are differences of.
        differences: Each other candidate minus the best one on the test data, with intervals that hold together; None
            if there is nothing to compare.
        doubts: Sentences on what the verdict is not sure of.
        distrusted: Candidates whose log p(x) is not to be trusted, so that nothing is said of their differences.
    """

    best: str | None
    chosen_by: str
    quantity: str
    differences: PairedDifferences | None
    doubts: tuple[str, ...] = ()
    distrusted: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Which candidate is best, by how much, and how sure that is."""
        if self.best is None:
            return "No candidate has values to compare."
        if self.differences is None:
            return f"{self.best} stands alone: there is nothing to compare."
        pairs = self.differences.pairs
        known = [pair for pair in pairs if pair.covers is not None]
        trusted = [pair for pair in known if not {pair.label, pair.baseline} & set(self.distrusted)]
        worse = sorted((pair for pair in trusted if pair.high < 0), key=lambda pair: -pair.mean)
        said = {
            "Not distinguishable from it": [pair.label for pair in trusted if pair.low <= 0 <= pair.high],
            "Better on test data, against the choice": [pair.label for pair in trusted if pair.low > 0],
            "Unknown, since log p(x) is not to be trusted": [pair.label for pair in known if pair not in trusted],
            "Without an interval": [pair.label for pair in pairs if pair.covers is None],
        }
        text = f"Best: {self.best}, chosen by {self.chosen_by}."
        if worse:
            others = f"{_some([pair.label for pair in worse], len(pairs))}: " if len(worse) > 1 else ""
            text += f" On test data it is better than {others}{_by(worse[0], len(worse) > 1)}."
        text += "".join(f" {what}: {_some(labels, len(pairs))}." for what, labels in said.items() if labels)
        if known:
            over = known[0].covers
            alone = ", since there is one seed" if over == "data" else ""
            text += (
                f" {self.quantity}; intervals of {self.differences.level:.0%} hold together, over {over}{alone} "
                f"({known[0].method})."
            )
        return text

    def record(self) -> dict[str, Any]:
        """Returns the verdict, ready for JSON."""
        return {
            "best": self.best,
            "chosen_by": self.chosen_by,
            "quantity": self.quantity,
            "sentence": self.sentence,
            "differences": None if self.differences is None else self.differences.record(),
            "doubts": list(self.doubts),
        }


def verdict(comparison: Any) -> Verdict:
    """Returns the verdict on a comparison of candidates of one measure.

    The best candidate is the one with the greatest log p(x) of the validation data, estimated from fewer importance
    samples than that of the test data; without validation data, that of the test data. Differences are paired by seed
    and by datum, and their intervals cover both (see `paired_differences`).

    Arguments:
        comparison: The `Comparison`; see `Comparison.by_measure`.
    """
    bound = comparison.data.cross_entropy
    quantity = "Cross-entropy bound" if bound else "log p(x) in nats per datum"
    test = {label: _table(comparison, label, _bound_of if bound else _marginal_of) for label in comparison.labels}
    valid = {label: _table(comparison, label, _valid_of) for label in comparison.labels}
    chosen_by, chosen = "validation data", valid
    if not any(bool(table.isfinite().any()) for table in valid.values()):
        chosen_by, chosen = "test data, since no validation data are there", test
    present = [label for label, table in test.items() if bool(table.isfinite().any())]
    eligible = {label: chosen[label] for label in present if bool(chosen[label].isfinite().any())}
    doubts = tuple(_doubts(comparison))
    distrusted = () if bound else tuple(label for label in comparison.labels if not comparison.trusts(label))
    if not eligible:
        return Verdict(None, chosen_by, quantity, None, doubts, distrusted)
    if len(present) == 1:
        return Verdict(present[0], chosen_by, quantity, None, doubts, distrusted)
    best = best_candidate(_alike(eligible)).label if len(eligible) > 1 else next(iter(eligible))
    pairs = len(present) * (len(present) - 1) // 2
    tables = _alike({label: test[label] for label in present})
    differences = paired_differences(tables, best, num_comparisons=pairs)
    return Verdict(best, chosen_by, quantity, differences, doubts, distrusted)


def _by(pair: Difference, least: bool) -> str:
    """By how much the best is better than another."""
    said = f"by {-pair.mean:.2f} ± {pair.half_width:.2f} nats"
    return f"at least {said} ({pair.label})" if least else f"{pair.label} {said}"


def _listed(labels: Sequence[str]) -> str:
    return "; ".join(labels) if any("," in label for label in labels) else ", ".join(labels)


def _some(labels: Sequence[str], total: int) -> str:
    """The labels, or how many of all others they are if there are many."""
    return _listed(labels) if len(labels) <= _NAMED else f"{len(labels)} of {total} others"


def _marginal_of(run: Run) -> Estimate | None:
    return run.log_marginal


def _bound_of(run: Run) -> Estimate | None:
    return run.elbo


def _valid_of(run: Run) -> Estimate | None:
    return run.valid


def _table(comparison: Any, label: str, of: Callable[[Run], Estimate | None]) -> Tensor:
    """The values of one candidate, seeds x data; nan where a run has none."""
    rows = [of(run) for run in comparison.runs_of(label)]
    size = max((len(row.pointwise) for row in rows if row is not None), default=1)
    table = torch.full((len(rows), size), math.nan, dtype=torch.float64)
    for i, row in enumerate(rows):
        if row is not None:
            table[i, : len(row.pointwise)] = row.pointwise.double().cpu()
    return table


def _alike(tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tables of one width; data without a value are nan."""
    width = max(table.shape[1] for table in tables.values())
    return {
        label: torch.nn.functional.pad(table, (0, width - table.shape[1]), value=math.nan)
        for label, table in tables.items()
    }


def _doubts(comparison: Any) -> list[str]:
    found = []
    distrusted = [label for label in comparison.labels if not comparison.trusts(label)]
    if distrusted:
        found.append(
            f"log p(x) of {_few(distrusted, comparison)} is not to be trusted (Pareto k-hat): take more samples "
            "(evaluation.num_samples), or use annealed importance sampling."
        )
    rising = {label: max(map(_rise, (run.history for run in comparison.runs_of(label)))) for label in comparison.labels}
    still = [label for label, rise in rising.items() if rise > _RISE]
    if still:
        epochs = comparison.candidate(still[0]).experiment.training.epochs
        longer = f"train for {2 * epochs} epochs" if epochs is not None else "train for twice as many steps"
        most = max(rising[label] for label in still)
        found.append(
            f"The validation bound of {_few(still, comparison)} still rises, by up to {most:.2f} nats in the last "
            f"fifth of the training: {longer}."
        )
    left_out = list(comparison.left_out)
    if left_out:
        found.append(f"Left out, since they cannot work: {'; '.join(left_out)}.")
    return found


def _few(labels: Sequence[str], comparison: Any) -> str:
    total = len(comparison.labels)
    return _listed(labels) if len(labels) <= _NAMED else f"{len(labels)} of {total} candidates (see the table)"


def _rise(history: History) -> float:
    """By how much the validation bound rose over the last fifth of the training, beyond its noise; 0 if unknown."""
    bounds = np.asarray(history.validation_bound, dtype=np.float64)
    if len(bounds) < 5 or not np.isfinite(bounds).all():
        return 0.0
    fifth = max(2, len(bounds) // 5)
    last = bounds[-fifth:]
    slope, _ = np.polyfit(np.arange(fifth), last, 1)
    noise = float(np.std(last - np.polyval([slope, 0.0], np.arange(fifth)))) / math.sqrt(fifth)
    return max(float(slope) * fifth - 2 * noise, 0.0)
