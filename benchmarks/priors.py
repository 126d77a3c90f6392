r"""Four priors on static MNIST with equal budgets: N(0, I), a mixture, the VampPrior and a flow.

    python -m benchmarks.priors                           # 6 of the 2,000 published epochs
    python -m benchmarks.priors --fraction 0.02           # 40 of them
    python -m benchmarks.priors --full --device cuda      # the published schedule, all test data

The networks, the numbers of latents and components, the learning rate, the batch, the warm-up and the number of
importance samples are those of Tomczak and Welling, "VAE with a VampPrior", 2018. One seed gives the same initial
encoder and decoder and the same minibatches with every prior, so differences are paired.

Differences from their code: Adam instead of its normalised variant; the log scale of q is bounded smoothly to [-3, 1]
(theirs is clipped); pseudo-inputs pass through a sigmoid (theirs are clipped to [0, 1]); the number of epochs is fixed,
and the parameters with the best validation ELBO are kept (``--full`` also stops after 50 epochs without improvement).
The KL has a closed form for N(0, I) only.

After an interruption, the same command continues with the unfinished prior and seed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pyro.distributions import constraints
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform, TanhTransform, Transform

from benchmarks.runs import Runs, add_arguments, over_seeds
from pyro_vae import VAE, Conditional, Fixed, Flow, Learned, Mixture, Network, Training, VampPrior, fit
from pyro_vae.datasets import Data, load
from pyro_vae.evaluation import Estimate, elbo, log_marginal
from pyro_vae.inference import BetaVAE
from pyro_vae.networks import gated_mlp
from pyro_vae.runtime.random_streams import isolated

PIXELS, HIDDEN, LATENT = 784, (300, 300), 40
COMPONENTS = 500  # components of the mixture, and pseudo-inputs of the VampPrior
MIXTURE_STD = 0.1  # initial standard deviation of its means: all priors start near N(0, I)
PSEUDO_MEAN, PSEUDO_STD = 0.05, 0.01
LOG_SCALE = (-3.0, 1.0)  # range of q's log scale: its log variance is in [-6, 2]
RATE, BATCH = 5e-4, 100
EPOCHS, WARMUP, PATIENCE = 2000, 100, 50  # the published schedule, in epochs
BASELINE = "standard"
PRIORS = (BASELINE, "mixture", "vamp", "flow")
TITLES = {BASELINE: "N(0, I)", "mixture": "mixture", "vamp": "VampPrior", "flow": "flow (MAF)"}
COLOURS = {BASELINE: "#000000", "mixture": "#0072B2", "vamp": "#D55E00", "flow": "#009E73"}
EVALUATION_SEED = 777

_PYTHAE = "clementchadebec/benchmark_VAE, examples/scripts/reproducibility/README.md"
_EXEMPLAR = "sajadn/Exemplar-VAE, images/density_estimation.png (gated 2x300, 40 latents, 5,000 samples)"
_BOUZID = "kenza-bouzid/VAE-VampPrior, mean of its log-likelihoods per image over the test data"
PUBLISHED = [
    {"prior": "vamp", "data": "static MNIST", "log_p": -85.57, "source": f"Tomczak and Welling 2018, in {_PYTHAE}"},
    {"prior": "vamp", "data": "static MNIST", "log_p": -85.79, "source": _PYTHAE},
    {"prior": "standard", "data": "static MNIST", "log_p": -89.60, "source": _BOUZID},
    {"prior": "vamp", "data": "static MNIST", "log_p": -87.42, "source": _BOUZID},
    {"prior": "standard", "data": "dynamic MNIST", "log_p": -84.45, "error": 0.12, "source": _EXEMPLAR},
    {"prior": "vamp", "data": "dynamic MNIST", "log_p": -82.43, "error": 0.06, "source": _EXEMPLAR},
]


def make_prior(name: str, components: int) -> nn.Module:
    """Returns a prior over the latents."""
    if name == "mixture":
        shape = (components, LATENT)
        sources = {"loc": Learned(0.0, shape=shape, noise=MIXTURE_STD), "scale": Learned(1.0, shape=shape)}
        return Mixture(dist.Normal, (LATENT,), components, weights=Fixed([1 / components] * components), **sources)
    if name == "vamp":
        return VampPrior(PIXELS, components, mean=PSEUDO_MEAN, std=PSEUDO_STD, support=constraints.unit_interval)
    if name == "flow":
        return Flow((LATENT,), "maf")
    return Conditional(dist.Normal, (LATENT,), loc=Fixed(0.0), scale=Fixed(1.0))


def bounded_scale() -> Transform:
    """Returns exp of a smooth, bounded function with slope 1 in the middle of `LOG_SCALE`."""
    middle, half = sum(LOG_SCALE) / 2, (LOG_SCALE[1] - LOG_SCALE[0]) / 2
    steps = [AffineTransform(0.0, 1 / half), TanhTransform(), AffineTransform(middle, half), ExpTransform()]
    return ComposeTransform(steps)


def make_vae(name: str, seed: int, components: int) -> VAE:
    """Returns the VAE of a prior; one seed gives the same initial networks with every prior."""
    with isolated(seed, "networks"):
        likelihood = Conditional(dist.Bernoulli, (PIXELS,), given=gated_mlp(LATENT, *HIDDEN))
        encoder = gated_mlp(PIXELS, *HIDDEN)
        posterior = Conditional(dist.Normal, (LATENT,), given=encoder, scale=Network(transform=bounded_scale()))
    with isolated(seed, "prior"):
        return VAE(make_prior(name, components), likelihood, posterior)


def settings_of(given: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Returns all settings that determine the numbers of a run, except its prior and seed."""
    epochs = EPOCHS if given.full else max(1, round(given.fraction * EPOCHS))
    steps = epochs * -(-len(data.train) // BATCH)
    return {
        "data": data.record(),
        "network": f"gated {'x'.join(map(str, HIDDEN))}",
        "latents": LATENT,
        "components": 20 if given.quick else COMPONENTS,
        "optimizer": f"Adam, {RATE:g}",
        "batch_size": BATCH,
        "epochs": epochs,
        "steps": steps,
        "training_samples": epochs * len(data.train),
        "warmup_steps": round(steps * WARMUP / EPOCHS),
        "fraction_of_published_epochs": epochs / EPOCHS,
        "early_stopping_epochs": PATIENCE if given.full else None,
        "importance_samples": given.samples,
        "test_data_of_log_p": min(given.data, len(data.test)),
        "quick": given.quick,
    }


def shortened(data: Data) -> Data:
    """Returns a small part of the data."""
    return replace(data, train=data.train[:400], valid=data.test[:100], test=data.test[:100])


def run(name: str, seed: int, data: Data, settings: dict[str, Any], device: str) -> dict[str, Any]:
    """Trains and evaluates one prior with one seed."""
    vae = make_vae(name, seed, settings["components"]).to(device)
    start, cpu = time.perf_counter(), -time.process_time()
    history = fit(
        vae,
        data.train,
        BetaVAE(beta=1.0, warmup=settings["warmup_steps"]),
        Training(
            optimizer=lambda p: torch.optim.Adam(p, lr=RATE),
            epochs=settings["epochs"],
            batch_size=BATCH,
            start_at_data=False,  # the initial values are those that the module states
            early_stopping=settings["early_stopping_epochs"],
            keep="best",
        ),
        seed=seed,
        validation=data.valid,
        progress=f"{name}, seed {seed}",
    )
    trained, cpu = time.perf_counter(), cpu + time.process_time()
    x = data.test[test_rows(settings["test_data_of_log_p"], len(data.test))]
    log_p = log_marginal(vae, x, settings["importance_samples"], seed=EVALUATION_SEED, progress=True)
    bound = elbo(vae, data.test, 10, seed=EVALUATION_SEED)
    print(f"  {history}; test ELBO {bound}; log p(x) {log_p}", flush=True)
    every = max(1, len(history.validation_bound) // 100)
    return {
        "prior": name,
        "seed": seed,
        "parameters_of_prior": sum(p.numel() for p in vae.prior.parameters()),
        "steps": history.steps,
        "stopped": history.stopped,
        "best_step": history.best_step,
        "wall_milliseconds_per_step": round(1000 * history.seconds[-1] / history.steps, 2),
        "training_cpu_seconds": round(cpu, 1),
        "training_seconds": round(trained - start, 1),
        "evaluation_seconds": round(time.perf_counter() - trained, 1),
        "validation_step": history.validation_step[every - 1 :: every].tolist(),
        "validation_elbo": [round(float(value), 3) for value in history.validation_bound[every - 1 :: every]],
        "elbo": described(bound),
        "log_p": described(log_p),
    }


def test_rows(n: int, total: int) -> torch.Tensor:
    """Returns the rows of the test data for log p(x), the same for every run."""
    with isolated(EVALUATION_SEED, "test data"):
        return torch.randperm(total)[:n].sort().values


def described(estimate: Estimate) -> dict[str, Any]:
    """Returns an estimate for JSON; estimates by importance weights have the value of each datum too."""
    known = {name: getattr(estimate, name) for name in ("value", "standard_error", "sampling_error")}
    if "pareto_k" not in estimate.diagnostics:
        return {**known, "data": len(estimate.pointwise)}
    diagnostics = estimate.diagnostics
    return {
        **known,
        "data": len(estimate.pointwise),
        "bias": float(diagnostics["bias"].mean()),
        "effective_sample_size_median": float(diagnostics["effective_sample_size"].median()),
        "share_of_pareto_k_above_0.7": float((diagnostics["pareto_k"] > 0.7).double().mean()),
        "pointwise": [round(value, 3) for value in estimate.pointwise.tolist()],
    }


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Returns means over seeds for each prior, and the paired differences from N(0, I)."""
    by_prior = {name: [run for run in runs.values() if run["prior"] == name] for name in PRIORS}
    baseline = {run["seed"]: run for run in by_prior[BASELINE]}
    summary = {}
    for name, mine in by_prior.items():
        if not mine:
            continue
        row: dict[str, Any] = {"seeds": [run["seed"] for run in mine]}
        for what in ("log_p", "elbo"):
            row[what] = over_seeds(run[what]["value"] for run in mine)
        pairs = [(run, baseline[run["seed"]]) for run in mine if run["seed"] in baseline]
        if name != BASELINE and pairs:
            row["minus_standard"] = {
                what: over_seeds(run[what]["value"] - other[what]["value"] for run, other in pairs)
                for what in ("log_p", "elbo")
            }
            row["minus_standard"]["log_p"]["sampling_error"] = over_data(pairs)
        summary[name] = row
    return summary


def over_data(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    """Returns the standard error over data of the paired difference of log p(x), mean over seeds."""
    columns = [[torch.tensor(run["log_p"]["pointwise"]) for run in pair] for pair in pairs]
    difference = torch.stack([mine - its for mine, its in columns]).mean(0)
    return float(difference.std() / len(difference) ** 0.5)


def show(summary: dict[str, Any], settings: dict[str, Any], console: Console) -> None:
    n, samples = settings["test_data_of_log_p"], settings["importance_samples"]
    title = f"{settings['epochs']} epochs ({100 * settings['fraction_of_published_epochs']:.2g} % of those published)"
    table = Table(title=f"{title}; nats per datum, ± 95 % over seeds")
    table.add_column("prior")
    for column in (f"log p(x), {n} test data, {samples} samples", "minus N(0, I)", "s.e. over data"):
        table.add_column(column, justify="right")
    for column in ("test ELBO", "minus N(0, I)"):
        table.add_column(column, justify="right")
    for name, row in summary.items():
        minus = row.get("minus_standard", {})
        error = f"{minus['log_p']['sampling_error']:.2f}" if minus else "-"
        cells = [cell(row["log_p"]), cell(minus.get("log_p")), error, cell(row["elbo"]), cell(minus.get("elbo"))]
        table.add_row(TITLES[name], *cells)
    console.print(table)


def cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    width = value["half_width"]
    return f"{value['mean']:.2f}" + (f" ± {width:.2f}" if width == width else "")


def draw(runs: dict[str, Any], summary: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    """Draws the validation ELBO by epoch, and the paired differences of log p(x) from N(0, I)."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    curves, differences = figure.subplots(1, 2, width_ratios=(3, 2))
    per_epoch = settings["steps"] / settings["epochs"]
    for name in summary:
        for i, run in enumerate(run for run in runs.values() if run["prior"] == name):
            epochs = [step / per_epoch for step in run["validation_step"]]
            label = TITLES[name] if i == 0 else None
            curves.plot(epochs, run["validation_elbo"], color=COLOURS[name], lw=1, label=label)
    lowest = min(run["validation_elbo"][0] for run in runs.values())
    best = max(max(run["validation_elbo"]) for run in runs.values())
    curves.set(xlabel="epochs", ylabel="validation ELBO, nats per datum", ylim=(max(lowest, best - 40), best + 2))
    curves.legend(frameon=False)
    others = [name for name in summary if "minus_standard" in summary[name]]
    for i, name in enumerate(others):
        value = summary[name]["minus_standard"]["log_p"]
        differences.errorbar(i, value["mean"], value["half_width"], fmt="o", color=COLOURS[name], capsize=4)
        differences.plot([i] * len(value["seeds"]), value["seeds"], "_", color="#8a8a8a", ms=10)
    differences.axhline(0, color="#8a8a8a", lw=0.8)
    differences.set(ylabel="log p(x) minus that of N(0, I), nats", xlim=(-0.5, len(others) - 0.5))
    differences.set_xticks(range(len(others)), [TITLES[name] for name in others])
    differences.set_title("paired by seed and datum; 95 % over seeds", fontsize=9)
    for axes in (curves, differences):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--fraction", type=float, default=0.003, help=f"share of the {EPOCHS} published epochs")
    parser.add_argument("--full", action="store_true", help="all published epochs, log p(x) of all test data")
    parser.add_argument("--priors", default=",".join(PRIORS), help="which, separated by commas")
    parser.add_argument("--samples", type=int, default=5000, help="importance samples for each datum")
    parser.add_argument("--data", type=int, default=100, help="number of test data for log p(x)")
    given = parser.parse_args()
    given.priors = given.priors.split(",")
    unknown = sorted(set(given.priors) - set(PRIORS))
    if unknown:
        parser.error(f"--priors: {', '.join(unknown)}: not among {', '.join(PRIORS)}.")
    if given.full:
        given.data = 10_000
    if given.quick:
        given.fraction, given.samples, given.data = 2 / EPOCHS, 20, 10
    return given


def main() -> None:
    """Runs what is missing, prints the table, writes the result and draws it."""
    given = parse()
    torch.set_num_threads(given.threads)
    data = load("static_mnist", support=constraints.boolean)
    if given.quick:
        data = shortened(data)
    settings = settings_of(given, data)
    runs = Runs("priors", settings, given)

    def one(key: str) -> dict[str, Any]:
        name, seed = key.split("-")
        return run(name, int(seed), data, settings, given.device)

    keys = [f"{name}-{seed}" for seed in range(given.seeds) for name in given.priors]
    runs.complete(keys, one, lambda found: {"published": PUBLISHED, "summary": summarise(found)})
    summary = summarise(runs.by_key)
    console = Console(width=130)
    show(summary, settings, console)
    draw(runs.by_key, summary, settings, runs.path.with_suffix(".png"))
    console.print(runs.path)


if __name__ == "__main__":
    main()
