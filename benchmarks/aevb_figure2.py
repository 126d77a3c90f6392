r"""Figure 2 of "Auto-encoding variational Bayes": the lower bound against training samples evaluated.

    python -m benchmarks.aevb_figure2                           # 1e7 samples, hours; start it twice for two cores
    python -m benchmarks.aevb_figure2 --samples 1e8 --latents 20 # longer curves of some panels
    python -m benchmarks.aevb_figure2 --samples 1e8 --device cuda
    python -m benchmarks.aevb_figure2 --data-sets frey --algorithms aevb

Data: MNIST with 3, 5, 10, 20 and 200 latents, Frey Face with 2, 5, 10 and 20. Algorithms: AEVB (Pyro's `Trace_ELBO`),
the hand-derived estimator with its KL in closed form, and wake-sleep. `benchmarks.aevb` has the protocol and the
choices that the paper does not specify. `benchmarks.aevb_figure2_study` determines which of these choices fits the
published curves best; its result is `SETTING`.

Bounds use one draw of z for each datum: ``test`` on all test data, ``train`` on the first 10,000 training data;
``running`` is the mean over minibatches since the previous point. Early on, the paper's training curve is below its
test curve, as for such a running mean. For one seed, all algorithms have the same initial parameters and the same
minibatches. The stepsize is chosen with seed 0 for each data set, N_z and algorithm; the hand-derived estimator uses
that of AEVB. Wake-sleep trains q on draws from p(x, z), which are binary while the data are grey levels, as in the
first author's code: this is a disadvantage of wake-sleep alone.

Runs are in order of importance. After an interruption, the same command continues within the run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks import aevb
from benchmarks.aevb import Setting
from benchmarks.aevb_figure2_summary import MARKS, against_published, draw, show, summarise
from benchmarks.curves import fit_with_curve, logarithmic
from benchmarks.runs import Runs, add_arguments, at_least, positive, short
from pyro_vae.datasets import Data

SAMPLES = 10_000_000  # training samples evaluated; the paper's axes end at 2.5e8 (MNIST) and 1e8 (Frey Face)
FIRST, PER_DECADE = 100_000, 8  # start of the paper's axes, and number of points for each decade
ORDER = {"mnist": (20, 3, 200, 10, 5), "frey": (10, 2, 20, 5)}  # the most important first
ALGORITHMS = ("aevb", "wake-sleep", "analytic-kl")
SEEDS = {("mnist", 3): 3, ("mnist", 20): 3, ("mnist", 200): 3, ("frey", 20): 3}  # 1 elsewhere
SETTING = Setting(binarisation="none", warmup=aevb.WARMUP)  # the best of the study
QUICK: dict[str, Any] = {"samples": 2_000, "choice": 500, "hidden": 12, "data": 300, "warmup": 2, "seeds": 2}
QUICK_ORDER = {"mnist": (3,), "frey": (2,)}


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        data_set: ``"mnist"`` or ``"frey"``.
        latents: N_z, the number of latents.
        algorithm: One of `aevb.ALGORITHMS`.
        seed: Seed of initial values, minibatches and noise.
        samples: Number of training samples to evaluate.
    """

    data_set: str
    latents: int
    algorithm: str
    seed: int
    samples: int


def run(
    curve: Curve,
    data: Data,
    setting: Setting,
    given: argparse.Namespace,
    place: Path,
    chosen: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Chooses the stepsize, trains and evaluates.

    Arguments:
        curve: The run.
        data: Training data.
        setting: Choices that the paper does not specify.
        given: Parsed arguments.
        place: Path of the files of the unfinished run.
        chosen: Result of `aevb.choose_stepsize`, if it is known.
    """
    hidden = QUICK["hidden"] if given.quick else aevb.HIDDEN[curve.data_set]
    compiled = not given.quick
    if given.quick:
        setting = replace(setting, warmup=min(setting.warmup, QUICK["warmup"]))
    make = partial(make_vae, data, curve.latents, hidden, setting=setting, device=given.device)
    if chosen is None:
        samples = QUICK["choice"] if given.quick else aevb.choice_samples(chooser(curve))
        choose = partial(aevb.choose_stepsize, partial(make, 0), aevb.ALGORITHMS[chooser(curve)], data, setting)
        chosen = choose(samples=samples, seed=0, compile=compiled)
    vae, parts = make(curve.seed), on(given.device, aevb.evaluated_data(data))
    batch = aevb.batch_size(data)
    steps = -(-curve.samples // batch)
    training = replace(
        aevb.training(data, setting, chosen["stepsize"], steps, compiled),
        checkpoint_seconds=0.0 if given.quick else 30.0,
    )
    title = f"{aevb.DATA_TITLES[curve.data_set]}, {curve.latents} latents, {aevb.TITLES[curve.algorithm]}"
    history, records = fit_with_curve(
        place,
        vae,
        data.train.to(given.device),
        aevb.ALGORITHMS[curve.algorithm](),
        training,
        at=looks(steps, batch, given.quick),
        evaluate=lambda step: {part: round(aevb.bound(vae, x), 4) for part, x in parts.items()},
        seed=curve.seed,
        transform=data.minibatch_transform,
        progress=f"{title}, seed {curve.seed}",
    )
    points: dict[str, list[float]] = {
        name: [record[name] for record in records] for name in ("samples", "train", "test")
    }
    points["running"] = running_means(history.bound.tolist(), [record["step"] for record in records])
    return {
        **asdict(curve),
        "setting": asdict(setting),
        **chosen,
        "stopped": history.stopped,
        "execution": history.execution.split(" in ")[0],
        "wall_milliseconds_per_step": round(1000 * float(history.seconds[-1]) / history.steps, 3),
        "curve": points,
    }


def make_vae(data: Data, latents: int, hidden: int, seed: int, *, setting: Setting, device: str) -> Any:
    """Returns the paper's VAE on a device."""
    return aevb.make_vae(data, latents, hidden, seed, setting).to(device)


def loaded(name: str, binarisation: str, quick: bool) -> Data:
    """Returns a data set, or a small part of it if ``quick``."""
    data = aevb.load_data(name, binarisation)
    if not quick:
        return data
    return replace(data, train=data.train[: QUICK["data"]], test=aevb.test_of(data)[: QUICK["data"]])


def on(device: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in parts.items()}


def looks(steps: int, batch_size: int, quick: bool = False) -> list[int]:
    """Returns the steps after which curves are evaluated: evenly spaced in log samples, at `MARKS` and at the end."""
    first = max(1, (steps // 10 if quick else FIRST // batch_size))
    marks = (round(mark / batch_size) for mark in MARKS)
    return sorted({*logarithmic(min(first, steps), steps, PER_DECADE), *(m for m in marks if m <= steps), steps})


def running_means(bounds: Sequence[float], steps: Iterable[int]) -> list[float]:
    """Returns for each point the mean of the minibatches' bounds since the previous point."""
    means, start = [], 0
    for step in steps:
        part = bounds[start:step]
        means.append(round(sum(part) / len(part), 4))
        start = step
    return means


def planned(given: argparse.Namespace) -> dict[str, Curve]:
    """Returns the runs by key, the most important first: the first seed of all runs, then the second, and so on."""
    default = QUICK["samples"] if given.quick else SAMPLES
    suffix = "" if given.samples == default else f"-{short(given.samples)}"
    order = QUICK_ORDER if given.quick else ORDER
    curves = {}
    for seed in range(given.seeds or max(SEEDS.values())):
        for data_set in given.data_sets:
            for latents in order[data_set]:
                seeds = given.seeds or SEEDS.get((data_set, latents), 1)
                if seed >= seeds or (given.latents and latents not in given.latents):
                    continue
                for algorithm in given.algorithms:
                    curve = Curve(data_set, latents, algorithm, seed, given.samples)
                    curves[f"{data_set}-{latents}-{algorithm}-{seed}{suffix}"] = curve
    return curves


def chooser(curve: Curve) -> str:
    """Returns the algorithm whose stepsize is used: two estimators of one bound have the same stepsize."""
    return "aevb" if curve.algorithm == "analytic-kl" else curve.algorithm


def chosen_before(found: dict[str, Any], curve: Curve) -> dict[str, Any] | None:
    """Returns the stepsize that a former run of the same data set, N_z and algorithm has chosen."""
    for other in found.values():
        same = all(other[name] == getattr(curve, name) for name in ("data_set", "latents"))
        if same and other["algorithm"] in (curve.algorithm, chooser(curve)):
            return {name: other[name] for name in ("stepsize", "scores")}
    return None


def settings_of(given: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Returns all settings that determine the numbers of a run, except its key."""
    return {
        **aevb.protocol(setting),
        "hidden": QUICK["hidden"] if given.quick else aevb.HIDDEN,
        "stepsize_chosen_after_samples": QUICK["choice"] if given.quick else aevb.CHOICE_SAMPLES,
        "wake_sleep_stepsize_chosen_after_samples": QUICK["choice"] if given.quick else aevb.WAKE_SLEEP_CHOICE_SAMPLES,
        "training_data": QUICK["data"] if given.quick else aevb.TRAINING,
        "frey_grey_levels": aevb.GREY_LEVELS,
        "bound": "ELBO, one draw of z for each datum, nats per datum; MNIST's grey levels: a cross-entropy",
        "quick": given.quick,
    }


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose among the runs."""
    parser.add_argument("--samples", type=positive, help=f"training samples evaluated, {SAMPLES:.0e} by default")
    parser.add_argument("--latents", default="", help="which N_z, separated by commas; all by default")
    parser.add_argument("--data-sets", default="mnist,frey", help="which, separated by commas")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="which, separated by commas")
    parser.set_defaults(seeds=None, threads=1)


def check_choices(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Parses and checks the choices."""
    given.data_sets, given.algorithms = given.data_sets.split(","), given.algorithms.split(",")
    for name, known in (("data_sets", ("mnist", "frey")), ("algorithms", ALGORITHMS)):
        if unknown := sorted(set(getattr(given, name)) - set(known)):
            parser.error(f"--{name.replace('_', '-')}: {', '.join(unknown)}: not among {', '.join(known)}.")
    try:
        given.latents = {int(word) for word in given.latents.split(",") if word}
    except ValueError:
        parser.error(f"--latents: numbers separated by commas, got {given.latents}.")
    order = QUICK_ORDER if given.quick else ORDER
    there = {latents for data_set in given.data_sets for latents in order[data_set]}
    if unknown := sorted(given.latents - there):
        said = f"{', '.join(map(str, unknown))}: not among {', '.join(map(str, sorted(there)))}"
        parser.error(f"--latents: {said}, those of {' and '.join(given.data_sets)}{' with --quick' * given.quick}.")
    default = QUICK["samples"] if given.quick else SAMPLES
    given.samples = default if given.samples is None else max(1, round(given.samples))
    if given.quick and given.seeds is None:
        given.seeds = QUICK["seeds"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    add_choices(parser)
    parser.add_argument("--binarisation", choices=aevb.BINARISATIONS, default=SETTING.binarisation, help="of MNIST")
    parser.add_argument("--warmup", type=at_least(0), default=SETTING.warmup, help="steps of Adagrad without update")
    given = parser.parse_args()
    check_choices(parser, given)
    if not planned(given):
        parser.error("no run is left by --latents, --data-sets, --algorithms and --seeds.")
    return given


def main() -> None:
    """Runs what is missing, prints the table, writes the result and draws it."""
    given = parse()
    torch.set_num_threads(given.threads)
    setting = Setting(binarisation=given.binarisation, warmup=given.warmup)
    data = {name: loaded(name, given.binarisation, given.quick) for name in given.data_sets}
    runs, curves = Runs("aevb_figure2", settings_of(given, setting), given), planned(given)

    def one(key: str) -> dict[str, Any]:
        curve = curves[key]
        chosen = chosen_before(runs.by_key, curve)
        return run(curve, data[curve.data_set], setting.of(curve.algorithm), given, runs.unfinished / key, chosen)

    def about(found: dict[str, Any]) -> dict[str, Any]:
        rows = [] if given.quick else against_published(found)
        return {"published": aevb.published()["source"], "summary": summarise(found), "against_published": rows}

    runs.complete(curves, one, about)
    console = Console(width=130)
    show(summarise(runs.by_key), console)
    for name in sorted({curve["data_set"] for curve in runs.by_key.values()}):
        path = runs.path.with_name(f"{runs.path.stem}_{name}.png")
        draw(name, runs.by_key, path)
        console.print(path)
    console.print(runs.path)


if __name__ == "__main__":
    main()
