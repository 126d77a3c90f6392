r"""Comparison of inference algorithms on one model: speed, bound, log p(x) and gradient noise, on a CPU or a GPU.

    python -m benchmarks.compare_inference                      # MNIST and Frey Face, three seeds
    python -m benchmarks.compare_inference --device cuda
    python -m benchmarks.compare_inference --inference aevb,iwae,dreg --data fashion_mnist --output runs/mine
    python -m benchmarks.compare_inference --overlay a.json b.json      # results of two machines in one picture

The model is that of Kingma and Welling, "Auto-encoding variational Bayes", 2013: MNIST 784-500-20 with a Bernoulli
likelihood, binarised for each minibatch, and Frey Face 560-200-10 with a Normal likelihood, mean in (0, 1); tanh,
minibatches of 100. `benchmarks.aevb_figure2` follows their protocol (Adagrad, weight decay, initial values); here all
algorithms use Adam, without weight decay. `LIKELIHOODS` has the likelihoods of other data sets; a user's table has a
Normal one. Numbers are nats per datum in model units: Frey Face is in [0, 1].

A run is one data set and seed with all algorithms, which take turns, epoch by epoch, in one process
(`benchmarks.interleaved`). The speed of a machine varies more than algorithms differ; with turns, a slow minute affects
all of them. Algorithms of one run have the same initial weights and the same minibatches, so differences are paired.
Seconds include training, minibatches and binarisation, but not evaluation and compilation; the median leaves out the
first epoch and epochs with a compilation. Gradients are taken at the first algorithm's parameters, before and after
training. Compare variances only between algorithms of the same objective (`aevb`, `analytic-kl`), and signal-to-noise
ratios between any.

After an interruption, the same command continues with the unfinished data set and seed from its start, which costs a
few minutes at most. It gives the same values: only times and memory depend on when it was started. Start it once, on an
otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.compare_tables import draw, overlay, show, summarise
from benchmarks.interleaved import Contender, Problem, by_turns, timed
from benchmarks.runs import Runs, add_arguments, at_least, positive
from pyro_vae import Batch, datasets
from pyro_vae.comparison.compare import check
from pyro_vae.datasets import Data
from pyro_vae.evaluation import (
    Estimate,
    GradientNoise,
    annealed_importance_sampling,
    elbo,
    gradient_variance,
    log_marginal,
)
from pyro_vae.evaluation.intervals import finite_or_none
from pyro_vae.experiment import Experiment
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated

NAME = "compare_inference"
INFERENCE = ("aevb", "analytic-kl", "wake-sleep")
SIZES = {"mnist": (500, 20), "frey": (200, 10), "20newsgroups": (300, 50), "digits": (200, 8)}  # hidden units, latents
OTHER_SIZE = (500, 20)
NORMAL = {"family": "Normal", "loc": {"network": {"transform": "sigmoid"}}, "scale": "network"}
LIKELIHOODS: dict[str, Any] = {"frey": NORMAL, "20newsgroups": "Multinomial"}  # other named sets: Bernoulli
EPOCHS = {"mnist": 15, "static_mnist": 15, "fashion_mnist": 15, "frey": 500, "digits": 200, "20newsgroups": 20}
OTHER_EPOCHS = 100
RATE, BATCH = 1e-3, 100
LOOKS = 12  # number of epochs after which the test ELBO is evaluated, evenly on a logarithmic scale
LOOK_DRAWS = 10_000  # total number of draws for each evaluation, at least one for each datum
SAMPLES, LOG_P_DATA = 1000, 500  # importance samples, test data
AIS_DATA, TEMPERATURES = 50, 500  # for algorithms that train no posterior
GRADIENT_DRAWS = 100
EVALUATION_SEED = 777
QUICK = {"compile": False, "epochs": 3, "samples": 20, "log_p_data": 20, "draws": 4, "temperatures": 5}
QUICK_SIZE, QUICK_DATA = (20, 4), (300, 100)


def experiment_of(name: str, given: argparse.Namespace) -> Experiment:
    """Returns the experiment (model, training, algorithms) for a named data set or a user's file."""
    named = name in datasets.names()
    hidden, latent = QUICK_SIZE if given.quick else SIZES.get(name, OTHER_SIZE)
    network = {"mlp": [hidden]}
    return Experiment.parse(
        {
            "data": name,
            "latent": latent,
            "likelihood": LIKELIHOODS.get(name, "Bernoulli" if named else "Normal"),
            "networks": {"encoder": network, "decoder": network},
            "inference": given.inference,
            "training": {
                "epochs": given.epochs or EPOCHS.get(name, OTHER_EPOCHS),
                "batch_size": BATCH,
                "optimizer": {given.optimizer: {"lr": given.rate}},
            },
            "evaluation": {
                "num_samples": given.samples,
                "ais_data": AIS_DATA,
                "temperatures": given.temperatures,
            },
            "device": given.device,
        },
        name,
    )


def load(experiment: Experiment, quick: bool) -> tuple[Experiment, Data]:
    """Returns the data, and the experiment with all choices that depend on them; checks that they fit."""
    experiment = experiment.resolved()
    data = experiment.load_data(progress=True)
    if quick:
        train, test = QUICK_DATA
        short = {"train": data.train[:train], "test": None if data.test is None else data.test[:test]}
        data = replace(data, **short, valid=None, labels={}, context={}, offset={})
    experiment = experiment.completed(data)
    check(experiment, data)
    return experiment, data


@pyro.validation_enabled(False)  # loading checks the data, and the first step checks again
def run(experiment: Experiment, data: Data, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Trains all algorithms by turns under one seed, and evaluates them."""
    device, epochs = experiment.torch_device, experiment.training.epochs or OTHER_EPOCHS
    problem = Problem.of(experiment, data, seed, given.compile)
    contenders = [Contender(spec, problem) for spec in experiment.inference]
    test = data.batch("test").to(device, torch.float32)
    at, curves = looks(epochs), {contender.label: [] for contender in contenders}
    gradients = {"start": noise(contenders, problem, given.draws)}
    for epoch in tracked(range(1, epochs + 1), f"{data.name}, seed {seed}: {epochs} epochs of {len(contenders)}"):
        by_turns(contenders, epoch)
        if epoch in at:
            for contender in contenders:
                curves[contender.label].append(look(contender, test, epoch))
    for contender in contenders:
        contender.finish()
    gradients["trained"] = noise(contenders, problem, given.draws)
    estimates = [judged(contender, test, given.log_p_data, experiment) for contender in contenders]
    results = {}
    for contender, found in zip(contenders, estimates, strict=True):
        results[contender.label] = {
            "execution": contender.loop.execution(contender.member)[0],
            "compile_seconds": round(contender.compile_seconds, 2),
            "stopped": contender.stopped or None,
            "steps_per_epoch": contender.loop.source.steps,
            **timed(contender, contenders[0]),
            **{what: described(estimate) for what, estimate in found.items()},
            "minus_baseline": {what: minus(estimate, estimates[0][what]) for what, estimate in found.items()},
            "gradients": {when: groups[contender.label] for when, groups in gradients.items()},
            "curve": curves[contender.label],
        }
    for contender in contenders:  # last, since it takes steps
        results[contender.label]["memory_mib"] = contender.memory()
    return {
        "data": data.name,
        "seed": seed,
        "experiment": experiment.model_dump(mode="json", exclude_none=True, exclude={"seeds", "data"}),
        "data_record": data.record(),
        "contenders": results,
    }


def looks(epochs: int) -> set[int]:
    return {round(epoch) for epoch in np.geomspace(1, epochs, LOOKS)}


def look(contender: Contender, test: Batch, epoch: int) -> dict[str, Any]:
    """Returns a point of the learning curve; the training bound is the mean over the epoch."""
    value = None
    if contender.inference.trains_posterior:
        draws = max(1, round(LOOK_DRAWS / test.size))
        value = round(elbo(contender.vae, test, draws, seed=EVALUATION_SEED, compile=False).value, 4)
    bound = finite_or_none(contender.bounds[-1])
    return {
        "epoch": epoch,
        "samples": len(contender.seconds) * contender.loop.source.size,
        "training_seconds": round(sum(contender.seconds), 4),
        "test_elbo": value,
        "training_bound": None if bound is None else round(bound, 4),
    }


def judged(contender: Contender, test: Batch, n: int, experiment: Experiment) -> dict[str, Estimate | None]:
    """Returns the ELBO of all test data and log p(x) of some; if no posterior is trained, log p(x) by annealing."""
    vae, evaluation, options = contender.vae, experiment.evaluation, {"seed": EVALUATION_SEED, "compile": False}
    rows = shown_rows(n, test.size).to(vae.device)
    if not contender.inference.trains_posterior:
        some = test.select(rows[: evaluation.ais_data])
        annealed = annealed_importance_sampling(vae, some, evaluation.temperatures, evaluation.chains, **options)
        return {"elbo": None, "log_p": annealed}
    bound = elbo(vae, test, evaluation.elbo_samples, **options)
    return {"elbo": bound, "log_p": log_marginal(vae, test.select(rows), evaluation.num_samples, **options)}


def minus(mine: Estimate | None, its: Estimate | None) -> dict[str, float] | None:
    """Returns the mean difference over the common data of two estimates, and its standard error over data."""
    if mine is None or its is None:
        return None
    n = min(len(mine.pointwise), len(its.pointwise))
    pairs = Estimate.of(mine.pointwise[:n] - its.pointwise[:n], torch.zeros(n))
    return {"value": pairs.value, "sampling_error": pairs.sampling_error, "data": n}


def described(estimate: Estimate | None) -> dict[str, Any] | None:
    """Returns an estimate for JSON."""
    if estimate is None:
        return None
    about = estimate.diagnostics
    found = {name: getattr(estimate, name) for name in ("value", "standard_error", "sampling_error")}
    found |= {"data": len(estimate.pointwise), "method": about.get("method", "draws from the posterior")}
    if "pareto_k" in about:
        found["num_samples"] = about["num_samples"]
        found["share_of_pareto_k_above_0.7"] = float((about["pareto_k"] > 0.7).double().mean())
        found["effective_sample_size_median"] = float(about["effective_sample_size"].median())
    return found


def noise(contenders: list[Contender], problem: Problem, draws: int) -> dict[str, Any]:
    """Returns the gradients' variance and signal-to-noise ratio at the first contender's parameters."""
    data = problem.data
    batch = problem.train.select(slice(BATCH))
    if data.binarisation == "dynamic":
        x = data.transform(data.train[:BATCH], torch.Generator().manual_seed(EVALUATION_SEED))
        batch = batch._replace(x=x.to(batch.x.device, batch.x.dtype))
    algorithms = {contender.label: contender.inference for contender in contenders}
    found = gradient_variance(contenders[0].vae, batch, algorithms, draws, seed=EVALUATION_SEED)
    return {label: {group: plain(of) for group, of in groups.items()} for label, groups in found.items()}


def plain(noise: GradientNoise) -> dict[str, Any]:
    return {
        "variance": noise.variance.mean,
        "variance_half_width": noise.variance.half_width,
        "signal_to_noise": noise.signal_to_noise.mean,
        "signal_to_noise_half_width": noise.signal_to_noise.half_width,
        "parameters": noise.num_parameters,
    }


def shown_rows(n: int, total: int) -> Tensor:
    """Returns the rows of the test data for log p(x), the same for all algorithms."""
    with isolated(EVALUATION_SEED, "test data"):
        return torch.randperm(total)[: min(n, total)].sort().values


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--data", default="mnist,frey", help="names of data sets, or files, separated by commas")
    parser.add_argument("--inference", default=",".join(INFERENCE), help="algorithms; the first one is the baseline")
    parser.add_argument(
        "--epochs", type=at_least(1), help=f"default: {EPOCHS['mnist']} for MNIST, {EPOCHS['frey']} for Frey Face"
    )
    parser.add_argument("--optimizer", default="Adam", help="optimizer of torch.optim")
    parser.add_argument("--rate", type=positive, default=RATE)
    parser.add_argument("--samples", type=at_least(2), default=SAMPLES, help="importance samples for each datum")
    parser.add_argument("--log-p-data", type=at_least(1), default=LOG_P_DATA, help="number of test data for log p(x)")
    parser.add_argument(
        "--temperatures",
        type=at_least(2),
        default=TEMPERATURES,
        help="of annealing, for algorithms such as mcem",
    )
    parser.add_argument(
        "--draws", type=at_least(2), default=GRADIENT_DRAWS, help="number of gradients for their variance"
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="run steps uncompiled")
    parser.add_argument("--overlay", nargs=2, metavar="JSON", help="only draw two results in one figure")
    given = parser.parse_args(arguments)
    given.data = list(dict.fromkeys(given.data.split(",")))
    given.inference = given.inference.split(",")
    if len({Path(name).stem for name in given.data}) < len(given.data):
        parser.error(
            f"--data: {', '.join(given.data)}: two data sets have one name, which names their runs; rename one."
        )
    if given.quick:
        for name, value in QUICK.items():
            setattr(given, name, value)
        given.seeds = min(given.seeds, 2)
    return given


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that determine the numbers of all runs, except those of a data set."""
    of_training = ("inference", "epochs", "optimizer", "rate", "compile", "threads", "quick")
    names = (*of_training, "samples", "log_p_data", "temperatures", "draws")
    return {name: getattr(given, name) for name in names} | {"batch_size": BATCH}


def check_same_data(runs: Runs, data: dict[str, Data]) -> None:
    """Raises `SystemExit` if the file has runs of other data with the same name.

    Arguments:
        runs: Runs in the file.
        data: Data sets by name.
    """
    for key, found in runs.by_key.items():
        name = key.rpartition("-")[0]
        if name in data and found["data_record"] != json.loads(json.dumps(data[name].record())):
            raise SystemExit(
                f"{runs.path} holds runs of other data with the name `{name}`; pass --restart to put them aside, or "
                "--output for another folder."
            )


def main() -> None:
    """Runs what is missing, prints the tables, writes the result and draws it."""
    given, console = parse(), Console(width=150)
    if given.overlay:
        first, second = map(Path, given.overlay)
        overlay(first, second, Path(given.output) / f"{NAME}_overlay.png", console)
        return
    torch.set_num_threads(given.threads)
    runs = Runs(NAME, settings_of(given), given)
    runs.require_nobody("algorithms are timed, so start it once")
    loaded = {Path(name).stem: load(experiment_of(name, given), given.quick) for name in given.data}
    check_same_data(runs, {name: data for name, (_, data) in loaded.items()})

    def one(key: str) -> dict[str, Any]:
        name, _, seed = key.rpartition("-")
        return run(*loaded[name], int(seed), given)

    keys = [f"{name}-{seed}" for seed in range(given.seeds) for name in loaded]
    runs.complete(keys, one, lambda found: {"summary": summarise(found)})
    show(runs.by_key, console)
    draw(runs.by_key, runs.path.with_suffix(".png"))
    console.print(runs.path)


if __name__ == "__main__":
    main()
