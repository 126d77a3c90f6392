r"""Trains every candidate of an experiment under every seed on the same data."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_vae.comparison.candidate import Candidate, Declared, declared_candidates, measure_of
from pyro_vae.comparison.checkpoint_folder import checkpoint_folder, note_execution, noted_execution
from pyro_vae.comparison.checks import PosteriorChecks, check_posteriors
from pyro_vae.comparison.comparison import Comparison
from pyro_vae.comparison.execution import Execution, decide
from pyro_vae.comparison.run import Run, trained, trained_runs
from pyro_vae.comparison.workers import runs_in_workers
from pyro_vae.datasets.data import Data
from pyro_vae.errors import InputError
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.runtime.environment import environment
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.progress import runs_line
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.data_check import check_values


def compare(
    experiment: Experiment,
    data: Data | None = None,
    *,
    vary: Mapping[str, Any] | None = None,
    command: str = "",
    progress: bool = False,
    checkpoints: str | os.PathLike[str] | None = None,
    workers: int = 1,
) -> Comparison:
    """Trains and evaluates every candidate of an experiment under every seed.

    A candidate is a model and an algorithm that trains it. By default they differ by the algorithm alone; with
    ``vary``, every combination of the values of some keys is one. Combinations that cannot work are left out, and
    `Comparison.left_out` says why.

    Each VAE or program is built, trained and evaluated under its seed. The runs of one seed therefore start from the
    same parameters, where the models are alike, and use the same minibatches. Seeds are the outer loop, so a slow
    period of the machine affects all candidates alike. With ``training.together``, which is the default on a CUDA
    device, the seeds of a candidate are trained in one program instead.

    Arguments:
        experiment: The experiment to run.
        data: The data that its `load_data` returns; loaded if omitted.
        vary: Values of keys of the experiment, such as ``{"prior": ["Normal", "flow"], "latent": [4, 8]}``; see
            `Experiment`.
        command: Command line to record with the result.
        progress: Whether to show a progress bar for each run (on a terminal only).
        checkpoints: Folder for the state of each run. If the comparison is stopped or killed, the next call resumes
            from this folder, also with more or fewer candidates and seeds. Trained runs are evaluated again, but not
            trained again. If seeds are trained together, the folder keeps finished candidates, but not one that is
            still in training. The caller removes the folder.
        workers: Number of processes among which the runs are divided, of one thread each (and of one CUDA device each,
            in turn). Where a process is killed, its run is done again from its checkpoint.

    Raises:
        InputError: If experiment and data do not fit each other (before the first run), or if ``checkpoints`` belongs
            to another comparison.
        NonFiniteError: If a run diverges at its first step. A run that diverges later is evaluated at its last good
            parameters, and `Run.history` records the divergence.
        KeyboardInterrupt: If a run is interrupted.
    """
    if vary is not None:
        experiment = experiment.varied(vary)
    prepared = prepare(experiment, data, progress)
    return prepared.run(command=command, progress=progress, checkpoints=checkpoints, workers=workers)


# Largest number of candidates of a grid whose posteriors are checked, which takes about as long as training.
MOST_CHECKED = 4


@dataclass(frozen=True)
class Prepared:
    """An experiment whose candidates and data fit each other; made by `prepare`.

    Attributes:
        experiment: The experiment.
        candidates: What is compared.
        left_out: Combinations that cannot work, and why.
    """

    experiment: Experiment
    candidates: Sequence[Candidate]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Data:
        """The data of the first candidate."""
        return self.candidates[0].data

    def run(
        self,
        *,
        command: str = "",
        progress: bool = False,
        checkpoints: str | os.PathLike[str] | None = None,
        workers: int = 1,
    ) -> Comparison:
        """Trains and evaluates every candidate under every seed, as `compare` does after `prepare`.

        Arguments:
            command: Command line to record with the result.
            progress: Whether to show a progress bar for each run.
            checkpoints: Folder for the state of each run; see `compare`.
            workers: Number of processes; see `compare`.
        """
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise InputError(f"compare: `workers` is a number of processes, at least 1; got `{workers!r}`.")
        start = time.perf_counter()
        experiment, candidates = self.experiment, self.candidates
        threads = 1 if workers > 1 else torch.get_num_threads()
        kept = None if checkpoints is None else checkpoint_folder(Path(checkpoints), experiment, candidates, threads)
        resumed = kept is not None and any(kept.glob("*.checkpoint"))
        execution = noted_execution(kept) or decide(candidates, progress)
        note_execution(kept, execution)
        with runs_line(len(candidates) * len(experiment.seeds), progress) as line:
            if workers > 1:
                pairs = [(each, seed) for seed in experiment.seeds for each in candidates]
                runs = runs_in_workers(pairs, partial(_alone, execution, kept), workers, line)
            else:
                runs = trained_runs(candidates, execution, line, kept)
            if line is not None:
                line.finish()
            checks = self._checks(runs, progress)
        where = {**environment(experiment.torch_device, command), "threads": threads, "workers": workers}
        where = {**where, "wall_seconds": round(time.perf_counter() - start, 1)}
        if resumed:
            where["resumed"] = "wall time covers only the last part, and the runs were made at different times"
        return Comparison(experiment, candidates, runs, where, execution, checks, self.left_out)

    def _checks(self, runs: list[Run], progress: bool) -> PosteriorChecks:
        """Checks the posteriors and gradients of the first seed, for the candidates with the first one's data."""
        experiment, data = self.experiment, self.data
        alike = {each.label for each in self.candidates if each.data is data}
        if len(self.candidates) > MOST_CHECKED and (experiment.vary or experiment.models):
            note = f"Posteriors are not checked in a comparison of more than {MOST_CHECKED} candidates."
            return PosteriorChecks(0, notes=(note,))
        first = [run for run in runs if run.seed == experiment.seeds[0] and run.algorithm in alike]
        return check_posteriors(
            {run.algorithm: run.vae for run in first},
            {run.algorithm: run.inference for run in first},
            data.batch("test", experiment.evaluation.num_data).to(experiment.torch_device, runs[0].vae.dtype),
            experiment.evaluation.posterior_checks,
            is_likelihood=not data.cross_entropy,
            seed=experiment.seeds[0],
            progress=progress,
        )


def _alone(execution: Execution, checkpoints: Path | None, candidate: Candidate, seed: int) -> Run:
    """Trains and evaluates one candidate under one seed, without a line of progress."""
    return trained(candidate, [seed], execution, None, checkpoints)[0]


def prepare(experiment: Experiment, data: Data | None = None, progress: bool = False) -> Prepared:
    """Returns an experiment with its candidates and data after `check`; trains nothing and writes nothing.

    Arguments:
        experiment: The experiment to run.
        data: The data that its `load_data` returns; loaded if omitted.
        progress: Whether to show a progress bar for downloads.

    Raises:
        InputError: If experiment and data do not fit each other. Where something varies, combinations that do not fit
            are left out; it is an error if none is left.
    """
    declared = declared_candidates(experiment)
    if not experiment.vary and not experiment.models:
        experiment = experiment.resolved()
        data = experiment.load_data(progress) if data is None else data
        experiment = experiment.completed(data)
        measure = measure_of(experiment, data, check(experiment, data))
        ready = [each.experiment.resolved().completed(data) for each in declared]
        return Prepared(experiment, [_candidate(*pair, data, measure) for pair in zip(declared, ready, strict=True)])
    loaded: dict[str, Data] = {}
    candidates, left_out = [], {}
    for each in declared:
        try:
            if each.reason:
                raise InputError(each.reason)
            one = each.experiment.resolved()
            key = f"{one.data!r} {one.data_support!r}"
            if key not in loaded:
                loaded[key] = one.load_data(progress) if data is None else data
            one = one.completed(loaded[key])
            measure = measure_of(one, loaded[key], check(one, loaded[key]))
            candidates.append(_candidate(each, one, loaded[key], measure))
        except InputError as error:
            left_out[each.label] = str(error)
    if not candidates:
        reasons = "\n".join(f"  {label}: {reason}" for label, reason in left_out.items())
        raise InputError(f"vary: no combination can work.\n{reasons}")
    return Prepared(experiment, candidates, left_out)


def _candidate(declared: Declared, experiment: Experiment, data: Data, measure: str) -> Candidate:
    return Candidate(declared.label, experiment, data, declared.spec, declared.changes, measure)


def check(experiment: Experiment, data: Data) -> Any:
    """Returns a model of the experiment; raises an `InputError` if data, model and algorithms do not fit each other."""
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
    return vae
