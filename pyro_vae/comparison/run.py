r"""One candidate, trained under one seed and evaluated on the test data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyro
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.comparison.candidate import Candidate
from pyro_vae.comparison.execution import Execution, built, seeds_together, training_of
from pyro_vae.evaluation.annealed import annealed_importance_sampling
from pyro_vae.evaluation.estimate import PARETO_LIMIT, Estimate
from pyro_vae.evaluation.importance import elbo, log_marginal
from pyro_vae.evaluation.intervals import finite_or_none
from pyro_vae.evaluation.latent import LatentKL, active_units, latent_kl
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.progress import Line
from pyro_vae.training.fit import fit
from pyro_vae.training.history import History

ANNEALED = "annealed importance sampling"
# Share of the test data with a Pareto k-hat above its limit, beyond which a log p(x) is not to be trusted.
MOST_DISTRUSTED = 0.05
# Largest number of importance samples on validation data.
_SELECTING = 100


@dataclass
class Run:
    """One candidate trained under one seed.

    Attributes:
        algorithm: Label of the candidate: its algorithm, if no other choice varies.
        seed: Seed of initialisation, shuffling and noise.
        vae: The trained `VAE`, or `Program`.
        inference: The algorithm after training, with its state and parameters.
        history: History of the training.
        seconds_per_epoch: Wall time of training for each pass over the training data, without validation and
            compilation. If seeds are trained together, each seed has an equal share of the time.
        elbo: ELBO of the test data, nats per datum in the data's own units; None if the posterior is not trained.
        log_marginal: log p(x) of the test data, nats per datum in the data's own units, by importance sampling. If no
            posterior is trained: log p(x) of the first test data, by annealed importance sampling, with the
            diagnostic ``method``. None for a cross-entropy, which is not a likelihood.
        scores: Further numbers about the test data from the algorithm, by name; see `Inference.scores`.
        active: Whether each latent dimension is active on the test data.
        valid: log p(x) of the validation data (the bound, for a cross-entropy), nats per datum in the data's own
            units, from at most 100 importance samples: by it the best candidate is chosen. None where there are no
            such data, or no posterior is trained.
        kl: KL of each latent (dimension, layer of a hierarchy, or all of z if it does not factorise) on the test
            data, and whether it was computed in closed form.

    The test data are those of ``Data.batch("test", evaluation.num_data)``: the same for all numbers of all runs.
    """

    algorithm: str
    seed: int
    vae: Any
    inference: Inference
    history: History
    seconds_per_epoch: float
    elbo: Estimate | None
    log_marginal: Estimate | None
    active: Tensor
    kl: LatentKL
    scores: dict[str, float] = field(default_factory=dict)
    valid: Estimate | None = None

    @property
    def annealed(self) -> bool:
        """Whether log p(x) is by annealed importance sampling."""
        return self.log_marginal is not None and self.log_marginal.diagnostics.get("method") == ANNEALED

    @property
    def trusted(self) -> bool:
        """Whether log p(x) is to be trusted: k-hat is at most 0.7 for at least 95 % of the test data."""
        if self.log_marginal is None or self.annealed:
            return True
        k = self.log_marginal.diagnostics["pareto_k"]
        return float(((k > PARETO_LIMIT) | k.isnan()).double().mean()) <= MOST_DISTRUSTED

    def metrics(self) -> dict[str, float]:
        """Returns the numbers of the table: ``elbo``, ``log_marginal``, ``active_units``, ``seconds_per_epoch``."""
        return {
            "elbo": math.nan if self.elbo is None else self.elbo.value,
            "log_marginal": math.nan if self.log_marginal is None else self.log_marginal.value,
            "active_units": float(self.active.sum()) if self.inference.trains_posterior else math.nan,
            "seconds_per_epoch": self.seconds_per_epoch,
        }

    def errors(self) -> dict[str, float]:
        """Returns the Monte Carlo error and the sampling error (over data) of ELBO and log p(x), if they exist."""
        return {
            f"{name}_{error}": float(getattr(estimate, error))
            for name, estimate in (("elbo", self.elbo), ("log_marginal", self.log_marginal))
            if estimate is not None
            for error in ("standard_error", "sampling_error")
        }

    def minus(self, other: Run, metric: str) -> float:
        """Returns one of `METRICS` of this run minus that of another run.

        If the two estimates of log p(x) cover different numbers of test data, only the data in both are compared.
        """
        if metric == "log_marginal" and self.log_marginal is not None and other.log_marginal is not None:
            mine, its = self.log_marginal.pointwise, other.log_marginal.pointwise
            n = min(len(mine), len(its))
            return float((mine[:n] - its[:n]).mean())
        return self.metrics()[metric] - other.metrics()[metric]

    def record(self) -> dict[str, Any]:
        """Returns the run without weights and draws, ready for JSON."""
        record: dict[str, Any] = {"algorithm": self.algorithm, "seed": self.seed}
        record |= {name: finite_or_none(x) for name, x in {**self.metrics(), **self.errors()}.items()}
        if self.elbo is not None:
            record["elbo_num_data"] = len(self.elbo.pointwise)
            record["elbo_num_samples"] = self.elbo.diagnostics["num_samples"]
        if self.valid is not None:
            record["valid"] = finite_or_none(self.valid.value)
        if self.log_marginal is not None:
            about = self.log_marginal.diagnostics
            record["log_marginal_num_data"] = len(self.log_marginal.pointwise)
            keys = ("method", "num_samples", "chains", "temperatures")
            record |= {f"log_marginal_{key}": about[key] for key in keys if key in about}
            if (k := about.get("pareto_k")) is not None:
                record["pareto_k_above_0.7"] = float((k > 0.7).double().mean())
                record["pareto_k_median"] = finite_or_none(float(k.nanmedian()))
        record |= {name: finite_or_none(x) for name, x in self.scores.items()}
        if self.inference.trains_posterior:
            record["kl"] = self.kl.record()
        history = self.history
        record |= {"steps": history.steps, "stopped": history.stopped, "remark": history.remark}
        return record | {"execution": history.execution, "compile_seconds": round(history.compile_seconds, 2)}


METRICS = ("elbo", "log_marginal", "active_units", "seconds_per_epoch")


def seeds_in_one_program(candidates: Sequence[Candidate], execution: Execution) -> bool:
    """Whether the seeds of each candidate are trained in one program."""
    return all(
        seeds_together(each.experiment) and (each.experiment.training.together or execution.compiled)
        for each in candidates
    )


def trained_runs(
    candidates: Sequence[Candidate], execution: Execution, line: Line | None, checkpoints: Path | None
) -> list[Run]:
    """Trains and evaluates every candidate under every seed; the seeds run one by one, or all in one program.

    Arguments:
        candidates: What is compared; all have the same seeds.
        execution: How all runs execute.
        line: Shows the progress over all runs; None for none.
        checkpoints: Folder of the checkpoints: one for each run, or one for each candidate if its seeds are trained
            together; see `pyro_vae.compare`.
    """
    seeds = candidates[0].experiment.seeds
    if not seeds_in_one_program(candidates, execution):
        pairs = [(seed, candidate) for seed in seeds for candidate in candidates]
        return [trained(candidate, [seed], execution, line, checkpoints)[0] for seed, candidate in pairs]
    of_candidates = [trained(candidate, seeds, execution, line, checkpoints) for candidate in candidates]
    return [run for of_seed in zip(*of_candidates, strict=True) for run in of_seed]


def trained(
    candidate: Candidate, seeds: Sequence[int], execution: Execution, line: Line | None, checkpoints: Path | None
) -> list[Run]:
    """Trains and evaluates one candidate under the seeds, in one program if there are several."""
    data = candidate.data
    if line is not None:
        several = "s" if len(seeds) > 1 else ""
        line.begin(f"{candidate.label}, seed{several} {', '.join(map(str, seeds))}", len(seeds))
    vaes, algorithms = built(candidate, seeds)
    training = training_of(candidate)
    if training.compile == "auto":
        training = replace(training, compile="full" if execution.compiled else False)
    histories = fit(
        vaes,
        data.batch("train"),
        algorithms,
        training,
        seed=list(seeds),
        transform=data.minibatch_transform,
        validation=None if data.valid is None else data.batch("valid"),
        checkpoint=None if checkpoints is None else checkpoints / _checkpoint_name(candidate.file_name, seeds),
        progress="training" if line is not None else False,
    )
    if any(history.stopped == "interrupted" for history in histories):
        raise KeyboardInterrupt
    runs = [
        _evaluated(candidate, seed, vae, algorithm, history, line is not None)
        for seed, vae, algorithm, history in zip(seeds, vaes, algorithms, histories, strict=True)
    ]
    return [replace(run, seconds_per_epoch=run.seconds_per_epoch / len(seeds)) for run in runs]


def _checkpoint_name(name: str, seeds: Sequence[int]) -> str:
    return f"{name}-seed{'-'.join(map(str, seeds))}.checkpoint"


def _evaluated(
    candidate: Candidate, seed: int, vae: Any, algorithm: Inference, history: History, progress: bool
) -> Run:
    """Evaluates a trained model on the test data, and its ELBO on the validation data."""
    experiment, data = candidate.experiment, candidate.data
    test = data.batch("test", experiment.evaluation.num_data).to(vae.device, vae.dtype)
    with pyro.validation_enabled(False):  # the data were checked before the first run
        draws = experiment.evaluation.elbo_samples
        bound = elbo(vae, test, draws, seed=seed) if algorithm.trains_posterior else None
        valid = _on_validation_data(candidate, algorithm, vae, seed)
        marginal = None if data.cross_entropy else _log_marginal(experiment, algorithm, vae, test, seed, progress)
        active, kl = active_units(vae, test), latent_kl(vae, test, seed=seed)
    about = {"data": data.name, "part": "test", "binarisation": data.binarisation}
    shift = data.units.log_jacobian_of(test.mask)
    return Run(
        algorithm=candidate.label,
        seed=seed,
        vae=vae,
        inference=algorithm,
        history=history,
        seconds_per_epoch=float(history.seconds[-1]) * len(data.train) / float(history.samples[-1]),
        elbo=None if bound is None else bound.about(shift, **about),
        log_marginal=None if marginal is None else marginal.about(_first(shift, marginal), **about),
        active=active.cpu(),
        kl=kl,
        scores=algorithm.scores(vae, test),
        valid=valid,
    )


def _on_validation_data(candidate: Candidate, algorithm: Inference, vae: Any, seed: int) -> Estimate | None:
    """The estimate by which the best candidate is chosen; see `Run.valid`."""
    data, evaluation = candidate.data, candidate.experiment.evaluation
    if not algorithm.trains_posterior or data.valid is None or not len(data.valid):
        return None
    batch = data.batch("valid", evaluation.num_data).to(vae.device, vae.dtype)
    samples = min(evaluation.num_samples, _SELECTING)
    estimate = (
        elbo(vae, batch, samples, seed=seed) if data.cross_entropy else log_marginal(vae, batch, samples, seed=seed)
    )
    return estimate.about(data.units.log_jacobian_of(batch.mask), part="valid")


def _log_marginal(
    experiment: Experiment, algorithm: Inference, vae: Any, test: Batch, seed: int, progress: bool
) -> Estimate:
    """log p(x) by importance sampling from q, or by annealed importance sampling if no q is trained."""
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


def _first(shift: Tensor | float, estimate: Estimate) -> Tensor | float:
    """The shifts of the first data, those that the estimate covers."""
    return shift[: len(estimate.pointwise)] if isinstance(shift, Tensor) else shift
