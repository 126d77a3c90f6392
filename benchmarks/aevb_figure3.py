r"""Figure 3 of "Auto-encoding variational Bayes": log p(x) by AEVB, wake-sleep and Monte Carlo EM.

    python -m benchmarks.aevb_figure3                         # hours; start it twice for two cores
    python -m benchmarks.aevb_figure3 --training-data 1000 --algorithms aevb,mcem
    python -m benchmarks.aevb_figure3 --samples 68e6          # the end of the paper's axis
    python -m benchmarks.aevb_figure3 --algorithms wake-sleep --encoder-log-variance 1 --samples 4e7
    python -m benchmarks.aevb_figure3 --algorithms aevb --stepsize 0.02 --samples 2e7

Models: MNIST with 1,000 and with 50,000 training data, 3 latents, 100 hidden units. log p(x) of the first 1,000
training and the first 1,000 test data (appendix E) is estimated by:

* ``appendix d``, the paper's estimator: for each datum, a density is fitted to 50 posterior samples by Hamiltonian
  Monte Carlo with 4 leapfrog steps; the estimate is the harmonic mean of p(x, z) / q(z) over 50 other samples;
* ``shared``, importance sampling with one proposal for all data (`benchmarks.aevb_figure3_shared`), which is possible
  with three latents. It is accurate to hundredths of a nat, so it gives the errors of the others for each datum;
* ``ais``, at the end of a run: annealed importance sampling, a lower bound on log p(x) in expectation;
* ``bound`` and ``importance``, if q(z|x) is trained: the ELBO and the bound with 500 importance samples.

The start of the paper's chains is not known; here they are annealed from the prior and resampled by their weights. If
all chains of a datum end in a minor mode of its posterior, its estimate is much too low, and so is the mean; therefore
quantiles of the error over data are stored. To show the effect of the chains' start, the end of a run is also
estimated with 2 and with 10 chains that begin at q(z|x) and are not annealed.

`benchmarks.aevb` has the common protocol of figures 2 to 5. For Monte Carlo EM, appendix E says: "10 HMC leapfrog steps
with an automatically tuned stepsize such that the acceptance rate was 90%, followed by 5 weight updates steps using the
acquired sample". One transition cannot move from the prior to the posterior, so each datum needs a chain that continues
from step to step, as in the first author's code (anglepy, wzoptim.py, ``step_batch_mcem``). In that code, an E-step and
its updates use all data; therefore the paper's caption says that it "is not an on-line algorithm". The same is done
here, unless ``--mcem-batch`` is given. The paper does not say how a step of Monte Carlo EM counts on the axis of
samples evaluated. Here a datum counts once for each gradient, of leapfrog steps and of updates: 15 times (the other
algorithms: once). This assumption was made with knowledge of the published curves: with 1,000 training data, our
training curve is 2.0 and 2.3 nats above theirs at 10 and 20 million samples; counting updates alone (5 times), it
would be 9 and 7 nats above. The curves contain the steps too, so that another count is possible. As in that code,
Adagrad has no warm-up for Monte Carlo EM; its stepsize is chosen by ``shared``.

Two choices are options. One is the stepsize: the default is the best after a short training, since the paper does not
specify it for its curves. The other is the factor of q(z|x)'s log variances; for wake-sleep the default is that of the
code, not of the paper. Runs with such options are separate rows of the table and thin lines of the picture. They show
the effect of the choice on the distance from the published curves. The claims are about the other runs only.

Seeds other than the first are evaluated only at the end. Runs are in order of importance. After an interruption, the
same command continues within the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import aevb
from benchmarks.aevb import Setting
from benchmarks.aevb_figure3_estimates import QUICK_SIZES, Judge, Sizes
from benchmarks.aevb_figure3_picture import draw
from benchmarks.aevb_figure3_summary import MARKS, against_published, show, summarise
from benchmarks.curves import fit_with_curve, logarithmic
from benchmarks.runs import Runs, add_arguments, at_least, positive, short
from pyro_vae import VAE
from pyro_vae.datasets import Data
from pyro_vae.inference import MCEM, Inference
from pyro_vae.runtime.whole_file import write_whole

LATENTS, HIDDEN = 3, 100  # appendix D: more latents make the estimates unreliable
TRAINING = (1_000, 50_000)  # N_train
SAMPLES = 60_000_000  # training samples evaluated; the paper's axis ends at 6.8e7
FIRST, PER_DECADE = 100_000, 1  # points in addition to `MARKS`; few, since an evaluation takes a minute
ALGORITHMS = ("aevb", "mcem", "wake-sleep")
PAPERS_MCEM = partial(MCEM, transitions=1, persistent=True)  # 10 leapfrog steps, 5 updates; appendix E
MCEM_PASSES = 15  # gradients for each datum in a step: leapfrog steps and updates
MCEM_CHOICE = 20  # least number of steps (100 updates) before its stepsize is chosen
SETTING = Setting(binarisation="none", warmup=aevb.WARMUP)
QUICK = {"training": (200, 400), "samples": 20_000, "choice": 1_000, "choice_steps": 3, "hidden": 10, "warmup": 2}


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        training_data: N_train, the number of training data.
        algorithm: One of `ALGORITHMS`.
        seed: Seed of initial values, minibatches and noise.
        samples: Number of training samples to evaluate.
        batch_size: Number of data in a step.
        passes: Number of gradients for each of these data in a step.
        setting: Choices that the paper does not specify.
        stepsize: Stepsize of Adagrad; None to choose it after a short training.
    """

    training_data: int
    algorithm: str
    seed: int
    samples: int
    batch_size: int
    passes: int
    setting: Setting
    stepsize: float | None = None

    @property
    def samples_of_step(self) -> int:
        """Number of samples for which a step counts."""
        return self.batch_size * self.passes

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return -(-self.samples // self.samples_of_step)

    def inference(self) -> Inference:
        """Returns the algorithm."""
        return PAPERS_MCEM() if self.algorithm == "mcem" else aevb.ALGORITHMS[self.algorithm]()


def run(
    curve: Curve, data: Data, given: argparse.Namespace, place: Path, chosen: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Chooses the stepsize, trains and evaluates.

    Arguments:
        curve: The run.
        data: Training data.
        given: Parsed arguments.
        place: Path of the files of the unfinished run.
        chosen: Result of `choose`, if it is known.
    """
    judge = Judge(data, QUICK_SIZES if given.quick else Sizes(), given.device, not given.quick)
    stepsize = place.with_name(f"{place.name}.stepsize")
    chosen = kept(stepsize, lambda: chosen or choose(curve, data, given, judge))
    vae, inference, marked = make_vae(data, given, curve.seed, curve.setting), curve.inference(), marks(curve)
    training = aevb.training(data, curve.setting, chosen["stepsize"], curve.steps, compile=not given.quick)
    history, records = fit_with_curve(
        *(place, vae, data.train.to(given.device), inference),
        replace(training, batch_size=curve.batch_size),
        at=sorted({*looks(curve, given.quick), *marked} - {curve.steps}),  # where it is evaluated below
        evaluate=lambda step: judge(vae, inference.trains_posterior, papers=step in marked),
        seed=curve.seed,
        transform=data.minibatch_transform,
        progress=f"{curve.training_data} data, {aevb.TITLES[curve.algorithm]}, seed {curve.seed}",
    )
    final = judge(vae, inference.trains_posterior, final=True, checks=not curve.seed)
    end = [{"step": history.steps, **final}] if history.stopped == "completed" else []
    stepsize.unlink()
    return {
        **asdict(curve),
        **chosen,
        "stopped": history.stopped,
        "execution": history.execution.split(" in ")[0],
        "training_seconds": round(float(history.seconds[-1]), 1),
        "wall_milliseconds_per_step": round(1000 * float(history.seconds[-1]) / history.steps, 3),
        "final": final,
        "curve": [point(record["step"], record, curve) for record in (*records, *end)],
    }


def point(step: int, found: dict[str, Any], curve: Curve) -> dict[str, Any]:
    """Returns a point of the curve, with the number of samples for which its steps count."""
    parts = {
        part: {name: {k: v for k, v in said.items() if k != "pointwise"} for name, said in found[part].items()}
        for part in ("train", "test")
    }
    return {"step": step, "samples": step * curve.samples_of_step, **parts}


def make_vae(data: Data, given: argparse.Namespace, seed: int, setting: Setting) -> VAE:
    """Returns the VAE of figure 3, on the device."""
    hidden = QUICK["hidden"] if given.quick else HIDDEN
    return aevb.make_vae(data, LATENTS, hidden, seed, setting).to(given.device)


def choose(curve: Curve, data: Data, given: argparse.Namespace, judge: Judge) -> dict[str, Any]:
    """Returns the best stepsize after a short training: by the bound on training data, for Monte Carlo EM by log p(x).

    A stepsize from the command line is returned without ``scores``.
    """
    if curve.stepsize is not None:
        return {"stepsize": curve.stepsize, "scores": {}}
    samples, score = QUICK["choice"] if given.quick else aevb.choice_samples(curve.algorithm), None
    if curve.algorithm == "mcem":
        least = QUICK["choice_steps"] if given.quick else MCEM_CHOICE
        samples, score = max(samples // curve.passes, least * curve.batch_size), judge.training_data
    return aevb.choose_stepsize(
        *(lambda: make_vae(data, given, 0, curve.setting), curve.inference, data, curve.setting),
        score=score,
        samples=samples,
        batch=curve.batch_size,
        seed=0,
        compile=not given.quick,
    )


def chosen_before(found: dict[str, Any], curve: Curve) -> dict[str, Any] | None:
    """Returns the stepsize that a former run chose for the same problem, with any seed and length."""
    mine = {name: asdict(curve)[name] for name in ("training_data", "algorithm", "batch_size", "setting")}
    for other in found.values() if curve.stepsize is None else ():
        if other["scores"] and {name: other[name] for name in mine} == mine:
            return {name: other[name] for name in ("stepsize", "scores")}
    return None


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of a JSON file; makes the file if it does not exist."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(make()).encode())
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def looks(curve: Curve, quick: bool = False) -> list[int]:
    """Returns further steps, evenly spaced in log samples, after which the first seed's run is evaluated."""
    if curve.seed:
        return []
    first, each = (max(1, curve.steps // 4), 1) if quick else (max(1, FIRST // curve.samples_of_step), PER_DECADE)
    return logarithmic(min(first, curve.steps), curve.steps, each)


def marks(curve: Curve) -> set[int]:
    """Returns the steps at `MARKS` after which the first seed's run is evaluated by the paper's estimator too.

    Every run is evaluated by it at the end; other seeds only there, since an evaluation takes minutes.
    """
    return {max(1, mark // curve.samples_of_step) for mark in MARKS if mark < curve.samples and not curve.seed}


def planned(given: argparse.Namespace) -> dict[str, Curve]:
    """Returns the runs by key, the most important first: the first seed of all runs, then the second, and so on."""
    default = QUICK["samples"] if given.quick else SAMPLES
    samples = default if given.samples is None else max(1, round(given.samples))
    suffix = "" if samples == default else f"-{short(samples)}"
    suffix += "" if given.stepsize is None else f"-stepsize-{given.stepsize:g}"
    curves = {}
    for seed in range(given.seeds):
        for size in given.training_data:
            for algorithm in given.algorithms:
                batch, passes, own, last = aevb.BATCH, 1, "", suffix
                if algorithm == "mcem":
                    batch, passes = min(size, given.mcem_batch or size), MCEM_PASSES
                    own = "" if batch == size else f"-{batch}"
                setting = usual = Setting(binarisation=given.binarisation, warmup=given.warmup).of(algorithm)
                if given.encoder_log_variance is not None and algorithm != "mcem":  # MCEM has no encoder
                    setting = replace(usual, encoder_log_variance=given.encoder_log_variance)
                if setting != usual:
                    last += f"-log-variance-{setting.encoder_log_variance:g}"
                curve = Curve(size, algorithm, seed, samples, batch, passes, setting, given.stepsize)
                curves[f"{size}-{algorithm}{own}-{seed}{last}"] = curve
    return curves


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """Returns all settings that determine the numbers of a run, except its key."""
    return {
        **aevb.protocol(Setting(binarisation=given.binarisation, warmup=given.warmup)),
        "latents": LATENTS,
        "hidden": QUICK["hidden"] if given.quick else HIDDEN,
        "mcem": repr(PAPERS_MCEM()),
        "mcem_batch_size": "all training data, where the key has no other",
        "mcem_samples_of_step": f"{MCEM_PASSES} for each datum: leapfrog steps and updates",
        "mcem_warmup": aevb.OWN["mcem"]["warmup"],
        "stepsize_chosen_after_samples": QUICK["choice"] if given.quick else aevb.CHOICE_SAMPLES,
        "wake_sleep_stepsize_chosen_after_samples": QUICK["choice"] if given.quick else aevb.WAKE_SLEEP_CHOICE_SAMPLES,
        "mcem_stepsize_chosen_after_steps_at_least": MCEM_CHOICE,
        "evaluation": asdict(QUICK_SIZES if given.quick else Sizes()),
        "units": "nats per datum; of MNIST's grey levels: a cross-entropy",
        "quick": given.quick,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--samples", type=positive, help="training samples evaluated; default: 60e6")
    parser.add_argument("--training-data", default="", help="which N_train, separated by commas; default: 1000,50000")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="which, separated by commas")
    parser.add_argument("--binarisation", choices=aevb.BINARISATIONS, default=SETTING.binarisation)
    parser.add_argument("--warmup", type=at_least(0), default=SETTING.warmup, help="steps of Adagrad without update")
    parser.add_argument("--stepsize", type=positive, help="stepsize of Adagrad; default: the best")
    parser.add_argument(
        "--encoder-log-variance", type=positive, help="factor of q(z|x)'s log variances; default: 1, for wake-sleep 0.1"
    )
    parser.add_argument("--mcem-batch", type=at_least(1), help="data in a step of Monte Carlo EM; default: all")
    parser.set_defaults(seeds=1, threads=1)
    given = parser.parse_args()
    sizes = QUICK["training"] if given.quick else TRAINING
    given.algorithms = given.algorithms.split(",")
    given.warmup = QUICK["warmup"] if given.quick else given.warmup
    try:
        given.training_data = [int(word) for word in given.training_data.split(",") if word] or list(sizes)
    except ValueError:
        parser.error(f"--training-data: numbers separated by commas, got {given.training_data}.")
    for name, known in (("training_data", sizes), ("algorithms", ALGORITHMS)):
        if unknown := sorted(set(getattr(given, name)) - set(known)):
            said, quick = ", ".join(map(str, unknown)), " with --quick" if given.quick else ""
            parser.error(f"--{name.replace('_', '-')}: {said}: not among {', '.join(map(str, known))}{quick}.")
    return given


def main() -> None:
    """Runs what is missing, prints the table, writes the result and draws it."""
    given = parse()
    torch.set_num_threads(given.threads)
    largest = aevb.load_data("mnist", given.binarisation, max(given.training_data))
    runs, curves = Runs("aevb_figure3", settings_of(given), given), planned(given)

    def one(key: str) -> dict[str, Any]:
        data = replace(largest, train=largest.train[: curves[key].training_data])
        return run(curves[key], data, given, runs.unfinished / key, chosen_before(runs.by_key, curves[key]))

    def about(found: dict[str, Any]) -> dict[str, Any]:
        rows = [] if given.quick else against_published(found)
        return {"published": aevb.published()["source"], "summary": summarise(found), "against_published": rows}

    runs.complete(curves, one, about)
    console = Console(width=140)
    show(summarise(runs.by_key), console)
    draw(runs.by_key, runs.path.with_suffix(".png"))
    console.print(runs.path)


if __name__ == "__main__":
    main()
