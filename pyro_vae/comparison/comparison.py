r"""Trains every algorithm under every seed on the same data, and computes their differences."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_vae.comparison.checks import PosteriorChecks, check_posteriors
from pyro_vae.comparison.execution import Execution, decide
from pyro_vae.comparison.run import METRICS, Run, trained_runs
from pyro_vae.datasets.data import Data
from pyro_vae.errors import InputError
from pyro_vae.evaluation.intervals import UNBOUNDED, Interval, interval
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.experiment.user_program import code_record
from pyro_vae.runtime.environment import environment, versions
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.outside_file import OutsideFile
from pyro_vae.runtime.progress import runs_line
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.runtime.whole_file import write_whole
from pyro_vae.vae.data_check import check_values

# What a folder of checkpoints says about its comparison.
NOTED = "comparison.json"


@dataclass
class Comparison:
    """The runs of an experiment.

    Attributes:
        experiment: The experiment.
        data: The data of the experiment.
        runs: One run for each algorithm and seed.
        environment: Versions, device, date, command and the wall time of training and evaluation.
        execution: How the training steps of all runs executed.
        checks: Checks of the posteriors and gradients of the first seed.
    """

    experiment: Experiment
    data: Data
    runs: list[Run]
    environment: dict[str, Any]
    execution: Execution = field(default_factory=lambda: Execution(False, "nothing else was asked for"))
    checks: PosteriorChecks = field(default_factory=lambda: PosteriorChecks(0))

    @property
    def labels(self) -> list[str]:
        """Labels of the algorithms, in the order of the experiment."""
        return [spec.label for spec in self.experiment.inference]

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
        """Returns one algorithm's runs, in the order of the seeds."""
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
        first, *others = self.labels
        return {
            "quantity": self.quantity,
            "units": "nats per datum",
            "experiment": self.experiment.model_dump(mode="json", exclude_none=True),
            "data": self.data.record(),
            **({} if self.experiment.program is None else {"code": code_record(self.experiment.program)}),
            "evaluated": {"part": "test", "num_data": self.num_evaluated, "of": self.num_test},
            "environment": self.environment,
            "execution": self.execution.record(),
            "summary": {label: self._plain(self.summary(label), label) for label in self.labels},
            "differences": [
                {"algorithm": label, "baseline": first} | self._plain(self.difference(label, first), label, first)
                for label in others
            ],
            "runs": [run.record() for run in self.runs],
            "posterior_checks": self.checks.record(),
        }

    def _plain(self, metrics: dict[str, Interval], *labels: str) -> dict[str, dict[str, float | int | bool | None]]:
        """The metrics of these algorithms, ready for JSON; that of log p(x) says whether it is to be trusted."""
        record: dict[str, dict[str, float | int | bool | None]] = {name: x.record() for name, x in metrics.items()}
        record["log_marginal"]["trusted"] = self.trusts(*labels)
        return record


def compare(
    experiment: Experiment,
    data: Data | None = None,
    *,
    command: str = "",
    progress: bool = False,
    checkpoints: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Trains and evaluates every algorithm of an experiment under every seed.

    Each VAE or program is built, trained and evaluated under its seed. The runs of one seed therefore start from the
    same parameters and use the same minibatches. Seeds are the outer loop, so a slow period of the machine affects all
    algorithms alike. With ``training.together``, which is the default on a CUDA device, the seeds of an algorithm
    are trained in one program instead.

    Arguments:
        experiment: The experiment to run.
        data: The data that its `load_data` returns; loaded if omitted.
        command: Command line to record with the result.
        progress: Whether to show a progress bar for each run (on a terminal only).
        checkpoints: Folder for the state of each run. If the comparison is stopped or killed, the next call resumes
            from this folder, also with more or fewer algorithms and seeds. Trained runs are evaluated again, but not
            trained again. If seeds are trained together, the folder keeps finished algorithms, but not one that is
            still in training. The caller removes the folder.

    Raises:
        InputError: If experiment and data do not fit each other (before the first run), or if ``checkpoints`` belongs
            to another comparison.
        NonFiniteError: If a run diverges at its first step. A run that diverges later is evaluated at its last good
            parameters, and `Run.history` records the divergence.
        KeyboardInterrupt: If a run is interrupted.
    """
    return prepare(experiment, data, progress).run(command=command, progress=progress, checkpoints=checkpoints)


@dataclass(frozen=True)
class Prepared:
    """An experiment and data that fit each other; made by `prepare`.

    Attributes:
        experiment: The experiment, completed with the choices that follow from the data.
        data: The data of the experiment.
    """

    experiment: Experiment
    data: Data

    def run(
        self,
        *,
        command: str = "",
        progress: bool = False,
        checkpoints: str | os.PathLike[str] | None = None,
    ) -> Comparison:
        """Trains and evaluates every algorithm under every seed, as `compare` does after `prepare`.

        Arguments:
            command: Command line to record with the result.
            progress: Whether to show a progress bar for each run.
            checkpoints: Folder for the state of each run; see `compare`.
        """
        start = time.perf_counter()
        experiment, data = self.experiment, self.data
        kept = None if checkpoints is None else _checkpoint_folder(Path(checkpoints), experiment, data)
        resumed = kept is not None and any(kept.glob("*.checkpoint"))
        execution = _noted_execution(kept) or decide(experiment, data, progress)
        _note(kept, execution)
        with runs_line(len(experiment.inference) * len(experiment.seeds), progress) as line:
            runs = trained_runs(experiment, data, execution, line, kept)
            if line is not None:
                line.finish()
            checks = self._checks(runs, progress)
        where = {**environment(experiment.torch_device, command), "wall_seconds": round(time.perf_counter() - start, 1)}
        if resumed:
            where["resumed"] = "wall time covers only the last part, and the runs were made at different times"
        return Comparison(experiment, data, runs, where, execution, checks)

    def _checks(self, runs: list[Run], progress: bool) -> PosteriorChecks:
        """Checks the posteriors and gradients of the first seed."""
        experiment, data = self.experiment, self.data
        first = [run for run in runs if run.seed == experiment.seeds[0]]
        return check_posteriors(
            {run.algorithm: run.vae for run in first},
            {run.algorithm: run.inference for run in first},
            data.batch("test", experiment.evaluation.num_data).to(experiment.torch_device, runs[0].vae.dtype),
            experiment.evaluation.posterior_checks,
            is_likelihood=not data.cross_entropy,
            seed=experiment.seeds[0],
            progress=progress,
        )


def prepare(experiment: Experiment, data: Data | None = None, progress: bool = False) -> Prepared:
    """Returns an experiment with its data after `check`; trains nothing and writes nothing.

    Arguments:
        experiment: The experiment to run.
        data: The data that its `load_data` returns; loaded if omitted.
        progress: Whether to show a progress bar for downloads.

    Raises:
        InputError: If experiment and data do not fit each other.
    """
    experiment = experiment.resolved()
    data = experiment.load_data(progress) if data is None else data
    experiment = experiment.completed(data)
    check(experiment, data)
    return Prepared(experiment, data)


def check(experiment: Experiment, data: Data) -> None:
    """Raises an `InputError` if data, VAE and algorithms do not fit each other."""
    device = experiment.torch_device
    if data.test is None or len(data.test) < 2:
        raise InputError("data: a comparison needs at least two test data; give `split` a test fraction.")
    with isolated(0):
        vae = experiment.build(data).to(device)
    if experiment.data.offset is not None and not vae.takes_offset:
        raise InputError(
            f"data: `offset: {experiment.data.offset}` is given, but no parameter of the likelihood takes it; set "
            "`offset: true` for one of them, such as likelihood: {family: Poisson, rate: {network: {offset: true}}}."
        )
    algorithms = [spec.build() for spec in experiment.inference]
    for algorithm in algorithms:
        algorithm.check(vae)
    unknown = all(algorithm.takes_unknown_labels for algorithm in algorithms)
    support = not data.cross_entropy
    for part, x in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        if x is not None:
            batch = data.batch(part)
            inside = support and (part != "train" or data.binarisation != "dynamic")
            check_values(vae, batch, inside, unknown_labels=part == "train" and unknown)
    with torch.no_grad(), isolated(0), evaluating(vae), pyro.validation_enabled(False):
        vae.log_weights(data.batch("test").select(slice(2)).to(device, vae.dtype))  # fails on a wrong offset or mask


def _checkpoint_folder(folder: Path, experiment: Experiment, data: Data) -> Path:
    """Creates the folder of a comparison's checkpoints, or checks that it belongs to the same comparison.

    Algorithms, seeds and evaluation may differ: each run has its own checkpoint, which is made before evaluation.
    """
    others = experiment.model_dump(mode="json", exclude={"data", "inference", "seeds", "evaluation"})
    device = experiment.torch_device
    where = {"device": str(device), "threads": torch.get_num_threads(), "versions": versions()}
    about = {"data": data.record(), **others, **where}
    if experiment.program is not None:
        about["code"] = code_record(experiment.program)
    about = json.loads(json.dumps(about))  # lists and strings, as in the file
    noted = folder / NOTED
    if noted.exists():
        its = _notes(folder).json()
        its.pop(_EXECUTION, None)
        other = sorted(key for key in about | its if about.get(key) != its.get(key))
        if other:
            raise InputError(
                f"`{folder}` holds checkpoints of another comparison (different {', '.join(other)}); remove it to "
                "start again, or choose another folder."
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _replace(noted, about)
    return folder


# The key under which the notes of a folder of checkpoints have how all runs execute.
_EXECUTION = "execution"


def _noted_execution(folder: Path | None) -> Execution | None:
    """How the runs of an interrupted comparison execute, so that the others run alike."""
    if folder is None:
        return None
    source = _notes(folder)
    noted = source.json().get(_EXECUTION)
    with source.reading():
        return None if noted is None else Execution.of(noted)


def _note(folder: Path | None, execution: Execution) -> None:
    """Notes how the runs execute beside their checkpoints."""
    if folder is not None:
        _replace(folder / NOTED, {**_notes(folder).json(), _EXECUTION: execution.record()})


def _notes(folder: Path) -> OutsideFile:
    """The file in which a folder of checkpoints says what its comparison is."""
    remedy = f"remove `{folder}` to start again, or choose another folder"
    return OutsideFile(folder / NOTED, "the notes of a comparison", remedy)


def _replace(noted: Path, content: dict[str, Any]) -> None:
    write_whole(noted, f"{json.dumps(content)}\n".encode())
