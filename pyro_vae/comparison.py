r"""Trains every algorithm under every seed on the same data, and says by how much they differ."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets import Data
from pyro_vae.environment import environment
from pyro_vae.errors import InputError
from pyro_vae.evaluation import (
    Estimate,
    LatentKL,
    active_units,
    annealed_importance_sampling,
    elbo,
    latent_kl,
    log_marginal,
)
from pyro_vae.experiment import Experiment
from pyro_vae.experiment.named import InferenceSpec
from pyro_vae.history import History
from pyro_vae.inference import Inference
from pyro_vae.modes import evaluating, isolated
from pyro_vae.posterior_checks import PosteriorChecks, check_posteriors
from pyro_vae.statistics import Interval, finite_or_none, interval
from pyro_vae.training import fit
from pyro_vae.vae import VAE
from pyro_vae.value_check import check_values


@dataclass
class Run:
    """One algorithm trained under one seed.

    Attributes:
        algorithm: Label of the algorithm.
        seed: Of initialisation, shuffling and noise.
        vae: The trained VAE.
        inference: The algorithm after training, with what state and parameters it has.
        history: Of its training.
        seconds_per_epoch: Wall time of training for each pass over the training data, without validation and
            compilation; of seeds that are trained together an equal share for each.
        elbo: Of the test data, nats per datum in the data's own units; None where the posterior is not trained.
        log_marginal: log p(x) of the test data, nats per datum in the data's own units, by importance sampling; where
            no posterior is trained, of the first of the test data by annealed importance sampling. Its diagnostic
            ``method`` says which. None for a cross-entropy, which is no likelihood.
        scores: Further numbers about the test data that the algorithm knows, by name; see `Inference.scores`.
        active: Which latent dimensions are active on the test data.
        kl: KL of each latent (dimension, layer of a hierarchy, or all of z where it does not factorise) on the test
            data, and whether it was had in closed form.
    """

    algorithm: str
    seed: int
    vae: VAE
    inference: Inference
    history: History
    seconds_per_epoch: float
    elbo: Estimate | None
    log_marginal: Estimate | None
    active: Tensor
    kl: LatentKL
    scores: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Returns the numbers of the table: ``elbo``, ``log_marginal``, ``active_units``, ``seconds_per_epoch``."""
        return {
            "elbo": math.nan if self.elbo is None else self.elbo.value,
            "log_marginal": math.nan if self.log_marginal is None else self.log_marginal.value,
            "active_units": float(self.active.sum()) if self.inference.trains_posterior else math.nan,
            "seconds_per_epoch": self.seconds_per_epoch,
        }

    def errors(self) -> dict[str, float]:
        """Returns the Monte Carlo and the data's standard error of the two estimates, where there are such."""
        return {
            f"{name}_{error}": float(getattr(estimate, error))
            for name, estimate in (("elbo", self.elbo), ("log_marginal", self.log_marginal))
            if estimate is not None
            for error in ("standard_error", "sampling_error")
        }


METRICS = ("elbo", "log_marginal", "active_units", "seconds_per_epoch")


@dataclass
class Comparison:
    """The runs of an experiment.

    Attributes:
        experiment: What was asked for.
        data: On which it ran.
        runs: Algorithm x seed.
        environment: Versions, device, date, command and wall time.
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
        return {metric: interval([_difference(metric, mine, its) for mine, its in pairs]) for metric in METRICS}

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
            "runs": [_run_record(run) for run in self.runs],
            "posterior_checks": self.checks.record(),
        }


def compare(
    experiment: Experiment, data: Data | None = None, *, command: str = "", progress: bool = False
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

    Raises:
        InputError: Where anything does not fit, before the first run.
        NonFiniteError: Where a run diverges at its first step; one that diverges later is judged at its last good
            parameters, and says so.
        KeyboardInterrupt: Where a run is interrupted.
    """
    start = time.perf_counter()
    experiment = experiment.resolved()
    data = experiment.load_data(progress) if data is None else data
    experiment = experiment.completed(data)
    check(experiment, data)
    runs = _runs(experiment, data, progress)
    first = {run.algorithm: run.vae for run in runs if run.seed == experiment.seeds[0]}
    checks = check_posteriors(
        first,
        {run.algorithm: run.inference for run in runs if run.seed == experiment.seeds[0]},
        _test(data).to(experiment.torch_device, runs[0].vae.dtype),
        experiment.evaluation.posterior_checks,
        is_likelihood=not data.cross_entropy,
        seed=experiment.seeds[0],
        progress=progress,
    )
    where = {**environment(experiment.torch_device, command), "wall_seconds": round(time.perf_counter() - start, 1)}
    return Comparison(experiment, data, runs, where, checks)


def check(experiment: Experiment, data: Data) -> None:
    """Raises an `InputError` where data, VAE and algorithms do not fit each other."""
    device = experiment.torch_device
    if data.test is None or len(data.test) < 2:
        raise InputError("data: a comparison needs at least two test data; give `split` a test fraction.")
    with isolated(0):
        vae = experiment.build(data).to(device)
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
        vae.log_weights(_test(data).select(slice(2)).to(device, vae.dtype))  # an offset or a mask may not fit


def _runs(experiment: Experiment, data: Data, progress: bool) -> list[Run]:
    """Every algorithm under every seed; an algorithm's seeds one by one, or all in one program."""
    seeds, algorithms, training = experiment.seeds, experiment.inference, experiment.training
    together = training.together
    if together is None:
        together = experiment.torch_device.type == "cuda" and training.compile is not False
    if not together or len(seeds) == 1:
        return [_trained(experiment, spec, [seed], data, progress)[0] for seed in seeds for spec in algorithms]
    of_algorithms = [_trained(experiment, spec, seeds, data, progress) for spec in algorithms]
    return [run for of_seed in zip(*of_algorithms, strict=True) for run in of_seed]


def _trained(
    experiment: Experiment, spec: InferenceSpec, seeds: Sequence[int], data: Data, progress: bool
) -> list[Run]:
    """One algorithm under the seeds, in one program where there are several."""
    vaes, algorithms, device = [], [], experiment.torch_device
    for seed in seeds:
        with isolated(seed):
            vaes.append(experiment.build(data).to(device))
            algorithms.append(spec.build().to(device))
    options = _options(experiment, data)
    if experiment.training.together and options["compile"] == "auto" and len(seeds) > 1:
        options["compile"] = True
    options["progress"] = f"{spec.label}, seed {', '.join(map(str, seeds))}" if progress else False
    x = data.batch("train")
    if len(seeds) > 1:
        histories = fit(vaes, x, algorithms, seed=list(seeds), **options)
    else:
        histories = [fit(vaes[0], x, algorithms[0], seed=seeds[0], **options)]
    if any(history.stopped == "interrupted" for history in histories):
        raise KeyboardInterrupt
    runs = [
        _evaluated(experiment, spec.label, seed, vae, algorithm, history, data, progress)
        for seed, vae, algorithm, history in zip(seeds, vaes, algorithms, histories, strict=True)
    ]
    return [replace(run, seconds_per_epoch=run.seconds_per_epoch / len(seeds)) for run in runs]


def _options(experiment: Experiment, data: Data) -> dict[str, Any]:
    """The arguments of `fit` that all runs have in common."""
    training = experiment.training
    total = training.total_steps(len(data.train))
    return {
        "optimizer": training.optimizer.build,
        "steps": total,
        "batch_size": training.batch_size,
        "transform": data.transform if data.binarisation == "dynamic" else None,
        "validation": None if data.valid is None else data.batch("valid"),
        "validation_every": training.validation_every,
        "early_stopping": training.early_stopping,
        "keep": training.keep,
        "schedule": None if training.schedule is None else training.schedule.build(total),
        "clip_norm": training.clip_norm,
        "check_support": not data.cross_entropy,
        "divergence": "stop",
        "compile": training.compile,
        "precision": training.precision,
    }


def _evaluated(
    experiment: Experiment,
    label: str,
    seed: int,
    vae: VAE,
    algorithm: Inference,
    history: History,
    data: Data,
    progress: bool,
) -> Run:
    """The run of a trained VAE, judged on the test data."""
    test = _test(data).to(vae.device, vae.dtype)
    with pyro.validation_enabled(False):  # the data were checked before the first run
        draws = experiment.evaluation.elbo_samples
        bound = elbo(vae, test, draws, seed=seed) if algorithm.trains_posterior else None
        marginal = None if data.cross_entropy else _log_marginal(experiment, algorithm, vae, test, seed, progress)
        active, kl = active_units(vae, test), latent_kl(vae, test, seed=seed)
    about = {"data": data.name, "part": "test", "binarisation": data.binarisation}
    shift = data.units.log_jacobian_of(test.mask)
    return Run(
        algorithm=label,
        seed=seed,
        vae=vae,
        inference=algorithm,
        history=history,
        seconds_per_epoch=float(history.seconds[-1]) * len(data.train) / float(history.samples[-1]),
        elbo=None if bound is None else bound.about(shift, **about),
        log_marginal=None if marginal is None else marginal.about(first(shift, marginal), **about),
        active=active.cpu(),
        kl=kl,
        scores=algorithm.scores(vae, test),
    )


def _log_marginal(
    experiment: Experiment, algorithm: Inference, vae: VAE, test: Batch, seed: int, progress: bool
) -> Estimate:
    """log p(x) by importance sampling from q, or by annealing where no q is trained."""
    evaluation = experiment.evaluation
    if algorithm.trains_posterior:
        return log_marginal(vae, test, evaluation.num_samples, seed=seed, progress=progress)
    return annealed_importance_sampling(
        vae,
        test.select(slice(evaluation.ais_data)),
        evaluation.temperatures,
        evaluation.chains,
        seed=seed,
        progress=progress,
    )


def _test(data: Data) -> Batch:
    if data.test is None:
        raise InputError("data: a comparison needs test data.")
    return data.batch("test")


def first(shift: Tensor | float, estimate: Estimate) -> Tensor | float:
    """Returns the shifts of the data that an estimate is of, the first ones."""
    return shift[: len(estimate.pointwise)] if isinstance(shift, Tensor) else shift


def _difference(metric: str, mine: Run, its: Run) -> float:
    if metric == "log_marginal" and mine.log_marginal is not None and its.log_marginal is not None:
        a, b = mine.log_marginal.pointwise, its.log_marginal.pointwise
        n = min(len(a), len(b))
        return float((a[:n] - b[:n]).mean())
    return mine.metrics()[metric] - its.metrics()[metric]


def _plain(value: Interval) -> dict[str, float | int | None]:
    return {"mean": finite_or_none(value.mean), "half_width": finite_or_none(value.half_width), "n": value.n}


def _run_record(run: Run) -> dict[str, Any]:
    record: dict[str, Any] = {"algorithm": run.algorithm, "seed": run.seed}
    record |= {name: finite_or_none(x) for name, x in {**run.metrics(), **run.errors()}.items()}
    if run.elbo is not None:
        record["elbo_num_samples"] = run.elbo.diagnostics["num_samples"]
    if run.log_marginal is not None:
        about = run.log_marginal.diagnostics
        record["log_marginal_num_data"] = len(run.log_marginal.pointwise)
        keys = ("method", "num_samples", "chains", "temperatures")
        record |= {f"log_marginal_{key}": about[key] for key in keys if key in about}
        if (k := about.get("pareto_k")) is not None:
            record["pareto_k_above_0.7"] = float((k > 0.7).double().mean())
            record["pareto_k_median"] = finite_or_none(float(k.nanmedian()))
    record |= {name: finite_or_none(x) for name, x in run.scores.items()}
    if run.inference.trains_posterior:
        record["kl"] = run.kl.record()
    history = run.history
    record |= {"steps": history.steps, "stopped": history.stopped, "remark": history.remark}
    return record | {"execution": history.execution, "compile_seconds": round(history.compile_seconds, 2)}
