r"""The runs of an experiment, and the differences between its candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from pyro_vae.comparison.candidate import Candidate
from pyro_vae.comparison.checks import PosteriorChecks
from pyro_vae.comparison.execution import Execution
from pyro_vae.comparison.run import METRICS, Run
from pyro_vae.comparison.verdict import Verdict, verdict
from pyro_vae.datasets.data import Data
from pyro_vae.errors import InputError, near_match
from pyro_vae.evaluation.intervals import UNBOUNDED, Interval, interval
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.experiment.user_program import code_record


@dataclass(repr=False)
class Comparison:
    """The runs of an experiment.

    A candidate is a model and the algorithm that trains it. Its label is that of the algorithm, if nothing else varies.

    Attributes:
        experiment: The experiment.
        candidates: What is compared, in the order of the experiment.
        runs: One run for each candidate and seed.
        environment: Versions, device, date, command and the wall time of training and evaluation.
        execution: How the training steps of all runs executed.
        checks: Checks of the posteriors and gradients of the first seed.
        left_out: Combinations that cannot work, and why.
    """

    experiment: Experiment
    candidates: Sequence[Candidate]
    runs: list[Run]
    environment: dict[str, Any]
    execution: Execution = field(default_factory=lambda: Execution(False, "nothing else was asked for"))
    checks: PosteriorChecks = field(default_factory=lambda: PosteriorChecks(0))
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Labels of the candidates, in the order of the experiment."""
        return [candidate.label for candidate in self.candidates]

    @property
    def data(self) -> Data:
        """The data of the first candidate; others may be prepared for another likelihood."""
        return self.candidates[0].data

    def candidate(self, label: str) -> Candidate:
        """Returns the candidate of a label.

        Raises:
            InputError: If there is none.
        """
        found = {each.label: each for each in self.candidates}
        if label not in found:
            raise InputError(f"no candidate `{label}`; {near_match(label, found)}")
        return found[label]

    def only(self, *labels: str) -> Comparison:
        """Returns the comparison of some of the candidates, in this order, without the checks of their posteriors."""
        candidates = [self.candidate(label) for label in labels]
        changes = {} if self.varies else {"inference": [each.spec for each in candidates]}
        return replace(
            self,
            experiment=self.experiment.model_copy(update=changes),
            candidates=candidates,
            runs=[run for label in labels for run in self.runs_of(label)],
            checks=PosteriorChecks(0),
        )

    def by_measure(self) -> list[Comparison]:
        """Returns one comparison for each measure: densities and probabilities are not compared with each other."""
        measures = dict.fromkeys(each.measure for each in self.candidates)
        if len(measures) == 1:
            return [self]
        return [self.only(*[c.label for c in self.candidates if c.measure == measure]) for measure in measures]

    @property
    def num_test(self) -> int:
        """Number of test data."""
        return 0 if self.data.test is None else len(self.data.test)

    @property
    def num_evaluated(self) -> int:
        """Number of test data that the runs are evaluated on: at most ``evaluation.num_data``."""
        return min(self.num_test, self.experiment.evaluation.num_data)

    @property
    def evaluated(self) -> str:
        """The test data that the runs are evaluated on, in words; with their number if they are not all."""
        n, total = self.num_evaluated, self.num_test
        return "the test data" if n == total else f"{n:,} of {total:,} test data"

    def runs_of(self, label: str) -> list[Run]:
        """Returns one candidate's runs, in the order of the seeds."""
        return [run for run in self.runs if run.algorithm == label]

    def summary(self, label: str) -> dict[str, Interval]:
        """Returns each of `METRICS` as its mean over seeds with an interval.

        The intervals of active units and seconds end where these numbers end.
        """
        runs = self.runs_of(label)
        rows, units = [run.metrics() for run in runs], float(runs[0].active.numel())
        bounds = {"active_units": (0.0, units), "seconds_per_epoch": (0.0, math.inf)}
        return {
            metric: interval([row[metric] for row in rows], bounds=bounds.get(metric, UNBOUNDED)) for metric in METRICS
        }

    def difference(self, label: str, baseline: str) -> dict[str, Interval]:
        """Returns ``label`` minus ``baseline`` for each metric, as the mean over common seeds with an interval.

        If the two estimates of log p(x) cover different numbers of test data, only the data in both are compared.
        """
        others = {run.seed: run for run in self.runs_of(baseline)}
        pairs = [(run, others[run.seed]) for run in self.runs_of(label) if run.seed in others]
        units = float(max((run.active.numel() for pair in pairs for run in pair), default=0))
        bounds = {"active_units": (-units, units)}
        return {
            metric: interval([mine.minus(its, metric) for mine, its in pairs], bounds=bounds.get(metric, UNBOUNDED))
            for metric in METRICS
        }

    def verdict(self) -> Verdict:
        """Returns which candidate is best, by how much, and how sure that is.

        Raises:
            InputError: If the candidates have different measures; take one of `by_measure`.
        """
        measures = list(dict.fromkeys(each.measure for each in self.candidates))
        if len(measures) > 1:
            raise InputError(
                f"the candidates have {len(measures)} measures ({'; '.join(measures)}), which are not comparable; take "
                "the verdict of each comparison of by_measure()."
            )
        return verdict(self)

    def best(self) -> str | None:
        """Returns the label of the best candidate, which is chosen on validation data; see `verdict`."""
        return self.verdict().best

    def table(self) -> pd.DataFrame:
        """Returns one row for each candidate: its measure, and each of `METRICS` with the ends of its interval."""
        rows = []
        for each in self.candidates:
            row: dict[str, Any] = {"candidate": each.label, "measure": each.measure}
            for name, value in self.summary(each.label).items():
                row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
            rows.append(row)
        return pd.DataFrame(rows).set_index("candidate")

    def __repr__(self) -> str:
        shown = self.table()[list(METRICS)].to_string(float_format=lambda value: f"{value:.2f}")
        return "\n".join([shown, *(part.verdict().sentence for part in self.by_measure())])

    def trusts(self, *labels: str) -> bool:
        """Returns whether log p(x) of these algorithms is to be trusted.

        It is not if, in some seed, the Pareto k-hat of the importance weights is above 0.7 or unknown for more than
        5 % of the test data.
        """
        return all(run.trusted for label in labels for run in self.runs_of(label))

    @property
    def remarks(self) -> list[str]:
        """Remarks on the runs that are needed to read the numbers; each text once, with its seeds."""
        texts: dict[str, list[int]] = {}
        for run in self.runs:
            if run.history.remark:
                texts.setdefault(f"{run.algorithm}: {run.history.remark}", []).append(run.seed)
            for name, score in run.scores.items():
                texts.setdefault(f"{run.algorithm}: {name} {score:.3f} on {self.evaluated}", []).append(run.seed)
        return [f"{text} (seed {', '.join(map(str, seeds))})" for text, seeds in texts.items()]

    @property
    def quantity(self) -> str:
        """The quantity that the bound is for: log p(x), or a cross-entropy that is not a log-likelihood."""
        return "cross-entropy, not a log-likelihood" if self.data.cross_entropy else "log p(x)"

    def record(self) -> dict[str, Any]:
        """Returns the whole result without weights and draws, ready for JSON."""
        return {
            "quantity": self.quantity,
            "units": "nats per datum",
            "experiment": self.experiment.model_dump(mode="json", exclude_none=True),
            "data": self.data.record(),
            **({} if not self.varies else {"candidates": self._candidates(), "left_out": dict(self.left_out)}),
            **({} if self.experiment.program is None else {"code": code_record(self.experiment.program)}),
            "evaluated": {"part": "test", "num_data": self.num_evaluated, "of": self.num_test},
            "environment": self.environment,
            "execution": self.execution.record(),
            "summary": {label: self._plain(self.summary(label), label) for label in self.labels},
            "differences": [difference for part in self.by_measure() for difference in part._differences()],
            "verdicts": [part.verdict().record() for part in self.by_measure()],
            "runs": [run.record() for run in self.runs],
            "posterior_checks": self.checks.record(),
        }

    def _differences(self) -> list[dict[str, Any]]:
        """The differences of each candidate from the first, ready for JSON."""
        first, *others = self.labels
        return [
            {"algorithm": label, "baseline": first} | self._plain(self.difference(label, first), label, first)
            for label in others
        ]

    @property
    def varies(self) -> bool:
        """Whether the candidates differ by more than the algorithm."""
        return bool(self.experiment.vary or self.experiment.models)

    def _candidates(self) -> dict[str, Any]:
        """What each candidate is, ready for JSON."""
        return {
            each.label: {
                "changes": dict(each.changes),
                "algorithm": each.spec.label,
                "measure": each.measure,
                "data": each.data.record(),
            }
            for each in self.candidates
        }

    def _plain(self, metrics: dict[str, Interval], *labels: str) -> dict[str, dict[str, float | int | bool | None]]:
        """The metrics of these algorithms, ready for JSON; that of log p(x) says whether it is to be trusted."""
        record: dict[str, dict[str, float | int | bool | None]] = {name: x.record() for name, x in metrics.items()}
        record["log_marginal"]["trusted"] = self.trusts(*labels)
        return record
