r"""The best of several candidates, and those that are not distinguishable from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation.crossed_effects import crossed_mean
from pyro_vae.evaluation.paired_differences import PairedDifferences, checked_tables, common_cells, paired_differences


@dataclass(frozen=True)
class BestCandidate:
    """The candidate with the greatest mean, and its differences from the others.

    Attributes:
        label: The candidate with the greatest mean.
        differences: Each other candidate minus the best one. The intervals are corrected for all pairs, because the
            same values name the best one.
        not_compared: Candidates without any value.

    Example:
        >>> seeds = torch.arange(5.0)[:, None] * 0.01
        >>> data = torch.arange(100.0) % 7
        >>> shared = seeds + data
        >>> best_candidate({"A": shared, "B": shared + 1 + seeds, "C": shared + 1 - seeds})
        BestCandidate(B; not distinguishable: C)
    """

    label: str
    differences: PairedDifferences
    not_compared: tuple[str, ...] = ()

    @property
    def not_distinguishable(self) -> tuple[str, ...]:
        """Candidates whose difference from the best one has 0 in its interval, or no interval."""
        return tuple(pair.label for pair in self.differences.pairs if not pair.distinguishable)

    def __repr__(self) -> str:
        others = ", ".join(self.not_distinguishable) or "none"
        missing = f"; not compared: {', '.join(self.not_compared)}" if self.not_compared else ""
        return f"BestCandidate({self.label}; not distinguishable: {others}{missing})"

    def record(self) -> dict[str, Any]:
        """Returns the choice and the differences that it rests on, ready for JSON."""
        return {
            "label": self.label,
            "not_distinguishable": list(self.not_distinguishable),
            "not_compared": list(self.not_compared),
            "differences": self.differences.record(),
        }


def best_candidate(values: Mapping[str, Tensor], level: float = 0.95) -> BestCandidate:
    """Returns the candidate with the greatest mean over seeds and data, and how far the others are from it.

    With probability ``level`` or more, every candidate that is called distinguishable is truly worse than the best
    one. Pass validation values, and report test values: the mean of the best candidate is too high for the values that
    chose it. Test values of the same runs share the seeds with the choice. So their intervals need the correction for
    all pairs too: pass ``differences.num_comparisons`` to `paired_differences`.

    All candidates are compared on the same seeds and data: those where each candidate that has values has one.

    Arguments:
        values: Values of each candidate, as for `paired_differences`; greater is better.
        level: Coverage of the intervals of all pairs together.

    Raises:
        InputError: If `paired_differences` cannot use the values, or the candidates have no datum in common.
    """
    tables = checked_tables(values)
    present = [label for label, table in tables.items() if not np.isnan(table).all()]
    seeds, data = common_cells([tables[label] for label in present]) if present else (np.empty(0), np.empty(0))
    if not (len(seeds) and len(data)):
        raise InputError(
            "best_candidate: no datum has a value in all candidates; pass values for the same seeds and data, or leave "
            "out candidates."
        )
    common = {label: tables[label][np.ix_(seeds, data)] for label in tables}
    means = {label: crossed_mean(common[label]).mean for label in present}
    best = max(present, key=lambda label: -math.inf if math.isnan(means[label]) else means[label])
    if len(present) == 1:
        differences = PairedDifferences((), best, level, 1)
    else:
        compared = {label: torch.from_numpy(common[label]) for label in present}
        differences = paired_differences(compared, best, level, num_comparisons=math.comb(len(present), 2))
    return BestCandidate(best, differences, tuple(label for label in tables if label not in present))
