r"""Trains every algorithm under every seed on the same data, and says by how much they differ."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_vae.comparison.checks import PosteriorChecks, check_posteriors
from pyro_vae.comparison.run import METRICS, Run, trained_runs
from pyro_vae.datasets.data import Data
from pyro_vae.errors import InputError
from pyro_vae.evaluation.intervals import Interval, finite_or_none, interval
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.runtime.environment import environment, versions
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.data_check import check_values


@dataclass
class Comparison:
    """The runs of an experiment.

    Attributes:
        experiment: What was asked for.
        data: On which it ran.
        runs: Algorithm x seed.
        environment: Versions, device, date, command and the wall time of training and evaluation.
        checks: Of the posteriors and gradients of the first seed.
    """

    experiment: Experiment
    data: Data
    runs: list[Run]
    environment: dict[str, Any]
    checks: PosteriorChecks = field(default_factory=lambda: PosteriorChecks(0))

    @property
    def labels(self) -> list[str]:
        """Labels of the algorithms, in the order asked for."""
        return [spec.label for spec in self.experiment.inference]

    def runs_of(self, label: str) -> list[Run]:
        """Returns one algorithm's runs, in the order of the seeds."""
        return [run for run in self.runs if run.algorithm == label]

    def summary(self, label: str) -> dict[str, Interval]:
        """Returns the mean over seeds, with its interval, of each of `METRICS`."""
        rows = [run.metrics() for run in self.runs_of(label)]
        return {metric: interval([row[metric] for row in rows]) for metric in METRICS}

    def difference(self, label: str, baseline: str) -> dict[str, Interval]:
        """Returns the mean over common seeds of ``label`` minus ``baseline``, with its interval, of each metric.

        Where log p(x) of one of them is of fewer test data, it is that of these data for both.
        """
        others = {run.seed: run for run in self.runs_of(baseline)}
        pairs = [(run, others[run.seed]) for run in self.runs_of(label) if run.seed in others]
        return {metric: interval([mine.minus(its, metric) for mine, its in pairs]) for metric in METRICS}

    @property
    def remarks(self) -> list[str]:
        """What algorithms say of their runs that a reader of the numbers must know, once for each text."""
        texts: dict[str, list[int]] = {}
        for run in self.runs:
            if run.history.remark:
                texts.setdefault(f"{run.algorithm}: {run.history.remark}", []).append(run.seed)
            if "compiled in " in run.history.execution:
                how = f"steps {run.history.execution}, which seconds per epoch leave out"
                texts.setdefault(f"{run.algorithm}: {how}", []).append(run.seed)
            for name, score in run.scores.items():
                texts.setdefault(f"{run.algorithm}: {name} {score:.3f} on the test data", []).append(run.seed)
        return [f"{text} (seed {', '.join(map(str, seeds))})" for text, seeds in texts.items()]

    @property
    def quantity(self) -> str:
        """What the bound bounds: log p(x), or a cross-entropy that is no log-likelihood."""
        return "cross-entropy, not a log-likelihood" if self.data.cross_entropy else "log p(x)"

    def record(self) -> dict[str, Any]:
        """Returns the whole result but weights and draws, ready for JSON."""
        return {
            "quantity": self.quantity,
            "units": "nats per datum",
            "experiment": self.experiment.model_dump(mode="json", exclude_none=True),
            "data": self.data.record(),
            "environment": self.environment,
            "summary": {
                label: {name: _plain(value) for name, value in self.summary(label).items()} for label in self.labels
            },
            "differences": [
                {"algorithm": label, "baseline": self.labels[0]}
                | {name: _plain(value) for name, value in self.difference(label, self.labels[0]).items()}
                for label in self.labels[1:]
            ],
            "runs": [run.record() for run in self.runs],
            "posterior_checks": self.checks.record(),
        }


def compare(
    experiment: Experiment,
    data: Data | None = None,
    *,
    command: str = "",
    progress: bool = False,
    checkpoints: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Trains and evaluates every algorithm of an experiment under every seed.

    Each VAE is built, trained and evaluated under its seed, so that the runs of one seed start from the same
    parameters and see the same minibatches; seeds are the outer loop, so that a slow hour of the machine falls on
    all algorithms alike. With ``training.together``, which is the default on a CUDA device, an algorithm's seeds are
    trained in one program instead.

    Arguments:
        experiment: What to run.
        data: What its `load_data` returns; loaded where left out.
        command: Recorded with the result.
        progress: Whether to show a progress bar for each run (on a terminal only).
        checkpoints: Folder that keeps the state of each run. The same comparison, stopped or killed, goes on from
            there, also with more or fewer algorithms and seeds: what was trained is evaluated anew, and not trained
            again. Of seeds that are trained together a finished algorithm is kept, not one in training. It is left for
            the caller to remove.

    Raises:
        InputError: Where anything does not fit, before the first run; and where ``checkpoints`` holds those of another
            comparison.
        NonFiniteError: Where a run diverges at its first step; one that diverges later is judged at its last good
            parameters, and says so.
        KeyboardInterrupt: Where a run is interrupted.
    """
    return prepare(experiment, data, progress).run(command=command, progress=progress, checkpoints=checkpoints)


@dataclass(frozen=True)
class Prepared:
    """An experiment and its data, which fit each other; made by `prepare`.

    Attributes:
        experiment: With the choices that follow from the data made.
        data: On which it runs.
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
        """Trains and evaluates every algorithm under every seed; see `compare`, which does no more after `prepare`.

        Arguments:
            command: Recorded with the result.
            progress: Whether to show a progress bar for each run.
            checkpoints: Folder that keeps the state of each run.
        """
        start = time.perf_counter()
        experiment, data = self.experiment, self.data
        kept = None if checkpoints is None else _kept(Path(checkpoints), experiment, data)
        resumed = kept is not None and any(kept.glob("*.checkpoint"))
        runs = trained_runs(experiment, data, progress, kept)
        first = {run.algorithm: run.vae for run in runs if run.seed == experiment.seeds[0]}
        checks = check_posteriors(
            first,
            {run.algorithm: run.inference for run in runs if run.seed == experiment.seeds[0]},
            data.batch("test").to(experiment.torch_device, runs[0].vae.dtype),
            experiment.evaluation.posterior_checks,
            is_likelihood=not data.cross_entropy,
            seed=experiment.seeds[0],
            progress=progress,
        )
        where = {**environment(experiment.torch_device, command), "wall_seconds": round(time.perf_counter() - start, 1)}
        if resumed:
            where["resumed"] = "wall time is that of the last part, and runs are of different hours"
        return Comparison(experiment, data, runs, where, checks)


def prepare(experiment: Experiment, data: Data | None = None, progress: bool = False) -> Prepared:
    """Returns an experiment with its data, after `check`: nothing is trained, and nothing is written.

    Arguments:
        experiment: What to run.
        data: What its `load_data` returns; loaded where left out.
        progress: Whether downloads show a bar.

    Raises:
        InputError: Where anything does not fit.
    """
    experiment = experiment.resolved()
    data = experiment.load_data(progress) if data is None else data
    experiment = experiment.completed(data)
    check(experiment, data)
    return Prepared(experiment, data)


def check(experiment: Experiment, data: Data) -> None:
    """Raises an `InputError` where data, VAE and algorithms do not fit each other."""
    device = experiment.torch_device
    if data.test is None or len(data.test) < 2:
        raise InputError("data: a comparison needs at least two test data; give `split` a test fraction.")
    with isolated(0):
        vae = experiment.build(data).to(device)
    if experiment.data.offset is not None and not getattr(vae.likelihood, "takes_offset", False):
        raise InputError(
            f"data: `offset: {experiment.data.offset}` is given, and no parameter of the likelihood takes it; say of "
            "one that it does, such as likelihood: {family: Poisson, rate: {network: {offset: true}}}."
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
        vae.log_weights(data.batch("test").select(slice(2)).to(device, vae.dtype))  # an offset or a mask may not fit


def _kept(folder: Path, experiment: Experiment, data: Data) -> Path:
    """Makes a comparison's folder of checkpoints, or sees that it is of the same one.

    Algorithms and seeds may be others, for each run's checkpoint says of which it is; so may what is evaluated.
    """
    others = experiment.model_dump(mode="json", exclude={"data", "inference", "seeds", "evaluation"})
    device = experiment.torch_device
    where = {"device": str(device), "threads": torch.get_num_threads(), "versions": versions()}
    about = {"data": data.record(), **others, **where}
    about = json.loads(json.dumps(about))  # as it comes back from the file
    noted = folder / "comparison.json"
    if noted.exists():
        its = json.loads(noted.read_text(encoding="utf-8"))
        other = sorted(key for key in about | its if about.get(key) != its.get(key))
        if other:
            raise InputError(
                f"`{folder}` holds the beginning of another comparison (other {', '.join(other)}): remove it to begin "
                "anew, or choose another folder."
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    beside = noted.with_suffix(".tmp")
    beside.write_text(json.dumps(about) + "\n", encoding="utf-8")
    os.replace(beside, noted)
    return folder


def _plain(value: Interval) -> dict[str, float | int | None]:
    return {"mean": finite_or_none(value.mean), "half_width": finite_or_none(value.half_width), "n": value.n}
