r"""Table 1 of Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015, and its appendix D.

    python -m benchmarks.iwae_table1 --layers 1 --data-sets dynamic --rows vae,iwae    # two at once: 80 minutes
    python -m benchmarks.iwae_table1                                                   # all cells, these first
    python -m benchmarks.iwae_table1 --table                                           # existing results, no run
    python -m benchmarks.iwae_table1 --full --device cuda --layers 1 --rows vae --k 1  # the published schedule

The cells are VAE and IWAE with k = 1, 5 and 50 samples, one or two stochastic layers, on MNIST binarised for every
minibatch (table 1) or once (appendix D); in addition DReG, STL and RWS. The row VAE averages the ELBO over k samples;
the row STL does the same with the path derivative alone; DReG and RWS use the bound of IWAE. At k = 1, IWAE is VAE. One
seed gives the same initial weights and minibatches in every row and for every k, and all cells are evaluated on the
same test data with the same seed. So differences are paired, with standard errors over data.

The schedule is that of the paper: 3^i passes over the data at learning rate 0.001 * 10^(-i/7) for i = 0, ..., 7, 3,280
passes in total. ``--fraction`` shortens all stages in proportion, in units of minibatches.

Choices where the paper differs from its authors' code (yburda/iwae), or does not say:

* Adam has beta_1 = 0.9 as in the paper (code: 0.99), and second moments that start at 0 (code: at 1, which slows down
  the first few thousand steps). Epsilon is 1e-4 in the paper and the code, whose gradients are of the sum over the 20
  data of a minibatch; for gradients of the mean, as here, this is 1e-4 / 20.
* Learning rates are those of the paper (code: rounded to two digits).
* All 60,000 training images (code: without the last 400), and the 50,000 of the fixed binarisation, in a new order in
  each pass (code: always in the same order).
* From the code: the decoder's output biases start at the logits of the mean training image, clipped to [0.001,
  0.999]; weights have Glorot's uniform initialisation, separately for location and scale (code: all drawn with one
  seed); other biases start at 0.
* Test data are binarised once (code: at each evaluation).
* Active units, those with Var_x(E_q[u]) > 0.01, are counted on the test data; E_q of the second layer is over draws of
  the first (code: on the first 500 training images, with one draw of the first layer).

After an interruption, the same command continues. Two processes with the same command share the cells.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from rich.console import Console
from torch import Tensor, nn

from benchmarks.curves import fit_with_curve
from benchmarks.iwae_report import DATA_SETS, PUBLISHED, ROWS, against_published, draw, show, summarise
from benchmarks.runs import Runs, add_arguments, at_least, positive
from pyro_vae import VAE, Conditional, Fixed, Hierarchy, Reads, Training, mlp
from pyro_vae.datasets import Data, load
from pyro_vae.evaluation import Estimate, active_units, log_marginal
from pyro_vae.inference import AEVB, IWAE, RWS, STL, DReG, Inference
from pyro_vae.runtime.random_streams import isolated

PIXELS = 784
LATENT = {1: (50,), 2: (100, 50)}  # units of the stochastic layers, starting next to the data; section 5
HIDDEN = {"data": (200, 200), "layers": (100, 100)}  # tanh: between data and first layer, and between the layers
K = (1, 5, 50)
BATCH = 20
RATE, BETAS, EPSILON = 1e-3, (0.9, 0.999), 1e-4 / BATCH
PASSES = tuple(3**i for i in range(8))  # over the data in each stage
EPOCHS = sum(PASSES)  # 3,280
SAMPLES = 5000  # importance samples for log p(x); section 5
ACTIVE = 0.01  # least variance over data of an active unit's posterior mean; section 5.2
BIAS_RANGE = (0.001, 0.999)
CHECKPOINT_SECONDS = 30.0
CURVE_SAMPLES, CURVE_DATA = 100, 500  # samples and data of the estimates during training
EVALUATION_SEED = 777
FRACTION, TEST_DATA = 0.025, 5000  # by default: table 1 with one layer in 80 minutes on two cores
FILES = {"dynamic": "mnist", "fixed": "static_mnist"}

ALGORITHMS: dict[str, Callable[[int], Inference]] = {"vae": AEVB, "iwae": IWAE, "dreg": DReG, "stl": STL, "rws": RWS}

# ------------------------------------------------------------------ the models


def make_vae(layers: int, seed: int, mean: Tensor) -> VAE:
    """Returns a VAE with one or two stochastic layers, with initial weights.

    Arguments:
        layers: Number of stochastic layers, 1 or 2.
        seed: Seed of the weights.
        mean: Mean training image, shape ``(784,)``.
    """
    with isolated(seed, "networks"):
        first, *second = LATENT[layers]
        bernoulli = Conditional(dist.Bernoulli, (PIXELS,), given=mlp(first, *HIDDEN["data"]))
        encoder = Conditional(dist.Normal, (first,), given=mlp(PIXELS, *HIDDEN["data"]))
        prior = Conditional(dist.Normal, LATENT[layers][-1:], loc=Fixed(0.0), scale=Fixed(1.0))
        if second:
            above = Conditional(dist.Normal, tuple(second), given=mlp(first, *HIDDEN["layers"]))
            below = Conditional(dist.Normal, (first,), given=mlp(*second, *HIDDEN["layers"]))
            vae = VAE(Hierarchy(z2=prior, z1=below), Reads(bernoulli, "z1"), Hierarchy(z1=encoder, z2=above))
        else:
            vae = VAE(prior, bernoulli, encoder)
        for part in vae.modules():
            if isinstance(part, Conditional) and part.given is not None:
                initialise(part)
    with torch.no_grad():
        bernoulli.head.bias.copy_(mean.clamp(*BIAS_RANGE).logit())
    return vae


@torch.no_grad()
def initialise(conditional: Conditional) -> None:
    """Initialises a network by Glorot and Bengio's rule, separately for each parameter of the distribution."""
    blocks = list(conditional.head.weight.split(list(conditional.network_sizes.values())))
    hidden = [layer for layer in conditional.given.modules() if isinstance(layer, nn.Linear)]
    for weight in [layer.weight for layer in hidden] + blocks:
        nn.init.xavier_uniform_(weight)
    for layer in [*hidden, conditional.head]:
        nn.init.zeros_(layer.bias)


# ------------------------------------------------------------------ the schedule


def stage_ends(steps: int) -> list[int]:
    """Returns the steps after which the stages of the schedule end.

    Arguments:
        steps: Number of steps of the whole schedule, at least the number of stages.
    """
    ends, passed = [], 0
    for i, epochs in enumerate(accumulate(PASSES)):
        passed = min(max(round(steps * epochs / EPOCHS), passed + 1), steps - (len(PASSES) - 1 - i))
        ends.append(passed)
    return ends


def factor(ends: list[int]) -> Callable[[int], float]:
    """Returns the factor of the learning rate as a function of the step, from 0: 10^(-i/7) in stage i."""
    last = len(ends) - 1
    return lambda step: 10 ** (-min(sum(step >= end for end in ends), last) / last)


def looked_at(ends: list[int]) -> list[int]:
    """Returns the steps after which a run is evaluated: the end of each third of a stage."""
    starts = [0, *ends[:-1]]
    thirds = [(end - start, start, third) for start, end in zip(starts, ends, strict=True) for third in (1, 2, 3)]
    return sorted({start + length * third // 3 for length, start, third in thirds} - {0})


# ------------------------------------------------------------------ one cell


def run(key: str, data: Data, place: Path, settings: dict[str, Any], device: str) -> dict[str, Any]:
    """Trains and evaluates one cell of the table with one seed.

    Arguments:
        key: Key of the run; see `keys_of`.
        data: Data of the cell.
        place: Path of the files of the unfinished run.
        settings: Result of `settings_of`.
        device: Device of the run.
    """
    cell = described(key)
    vae = make_vae(cell["layers"], cell["seed"], data.train.mean(0)).to(device)
    x = data.test[test_rows(settings["test_data"], len(data.test))]
    steps = steps_of(settings["fraction"], len(data.train))
    ends, some = stage_ends(steps), x[:CURVE_DATA]

    def look(step: int) -> dict[str, Any]:
        bound = log_marginal(vae, some, CURVE_SAMPLES, seed=EVALUATION_SEED, compile=settings["compile"])
        return {
            "stages": sum(step >= end for end in ends),
            "epochs": round(step * BATCH / len(data.train), 4),
            "nll": round(-bound.value, 4),
            "sampling_error": round(bound.sampling_error, 4),
        }

    history, curve = fit_with_curve(
        place,
        vae,
        data.train,
        ALGORITHMS[cell["row"]](cell["k"]),
        Training(
            optimizer=lambda p: torch.optim.Adam(p, lr=RATE, betas=BETAS, eps=EPSILON),
            steps=steps,
            batch_size=BATCH,
            start_at_data=False,  # the initial values are those of the paper
            schedule=factor(ends),
            compile=settings["compile"],
            checkpoint_seconds=CHECKPOINT_SECONDS,
        ),
        at=looked_at(ends),
        evaluate=look,
        seed=cell["seed"],
        transform=data.minibatch_transform,
        progress=key,
    )
    if history.stopped != "completed":
        raise SystemExit(f"{key}: {history.stopped} at step {history.steps}; the same command continues there.")
    log_p = log_marginal(vae, x, settings["samples"], seed=EVALUATION_SEED, compile=settings["compile"], progress=True)
    units = active_units(vae, x, ACTIVE).split(LATENT[cell["layers"]])
    print(f"  {history}; -log p(x) {-log_p.value:.2f}", flush=True)
    return {
        **cell,
        "data": data.record(),
        "steps": history.steps,
        "milliseconds_per_step": round(1000 * float(history.seconds[-1]) / history.steps, 3),
        "training_seconds": round(float(history.seconds[-1]), 1),
        "curve": curve,
        "active_units": [int(layer.sum()) for layer in units],
        "nll": nll(log_p),
    }


def steps_of(fraction: float, size: int) -> int:
    """Returns the number of minibatches of a shortened schedule: at least one in each stage."""
    return max(len(PASSES), round(fraction * EPOCHS * -(-size // BATCH)))


def test_rows(n: int, total: int) -> Tensor:
    """Returns the rows of the evaluated test data, the same for every cell."""
    with isolated(EVALUATION_SEED, "test data"):
        chosen = torch.randperm(total)[:n]
    return chosen if n < total else torch.arange(total)


def nll(log_p: Estimate) -> dict[str, Any]:
    """Returns minus an estimate of log p(x), for JSON."""
    diagnostics = log_p.diagnostics
    return {
        "value": -log_p.value,
        "standard_error": log_p.standard_error,
        "sampling_error": log_p.sampling_error,
        "bias": float(diagnostics["bias"].mean()),
        "effective_sample_size_median": float(diagnostics["effective_sample_size"].median()),
        "share_of_pareto_k_above_0.7": float((diagnostics["pareto_k"] > 0.7).double().mean()),
        "pointwise": [round(-value, 3) for value in log_p.pointwise.tolist()],
    }


# ------------------------------------------------------------------ which cells


def keys_of(given: argparse.Namespace) -> list[str]:
    """Returns the keys "<data set>-<layers>-<row>-<k>-<seed>" of the chosen runs, in the order of execution.

    Within a table the longest runs come first, so that two processes end together. At k = 1 only VAE has a cell.
    """
    tables = [(data_set, layers) for data_set in given.data_sets for layers in given.layers]
    ours = [row for row in given.rows if row not in ("vae", "iwae")]
    theirs = [row for row in given.rows if row in ("vae", "iwae")]
    ks = sorted(given.k, reverse=True)
    keys = []
    for seed in range(given.seeds):
        for data_set, layers in tables:
            cells = [(row, k) for k in ks for row in theirs if k > 1]
            cells += [("vae", 1)] if 1 in ks and theirs else []
            cells += [(row, k) for k in ks for row in ours if k > 1]
            keys += [f"{data_set}-{layers}-{row}-{k}-{seed}" for row, k in cells]
    return keys


def described(key: str) -> dict[str, Any]:
    """Returns the fields of a key."""
    data_set, layers, row, k, seed = key.split("-")
    return {"data_set": data_set, "layers": int(layers), "row": row, "k": int(k), "seed": int(seed)}


@cache
def data_of(data_set: str, quick: bool) -> Data:
    """Returns a data set, or a small part of it if ``quick``."""
    data = load(FILES[data_set], support=constraints.boolean)
    return replace(data, train=data.train[:400], valid=None, test=data.test[:100]) if quick else data


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """Returns all settings that determine the numbers of a run, except its key."""
    return {
        "latents": {str(layers): sizes for layers, sizes in LATENT.items()},
        "hidden": HIDDEN,
        "optimizer": {"name": "Adam", "rate": RATE, "betas": BETAS, "epsilon": EPSILON},
        "batch_size": BATCH,
        "passes": PASSES,
        "fraction": given.fraction,
        "published_epochs": EPOCHS,
        "samples": given.samples,
        "test_data": given.test_data,
        "compile": not given.quick,
        "quick": given.quick,
    }


def unfinished(runs: Runs, keys: Iterable[str]) -> dict[str, Any]:
    """Returns the fields and the last evaluation of each unfinished cell."""
    found = {}
    for key in keys:
        records = runs.unfinished / f"{key}.jsonl"
        if key in runs.by_key or not records.exists():
            continue
        lines = [line for line in records.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        if lines:
            found[key] = {**described(key), **json.loads(lines[-1])}
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(threads=1, seeds=1)  # two processes use two cores
    parser.add_argument(
        "--fraction", type=positive, default=FRACTION, help=f"fraction of the {EPOCHS:,} published epochs"
    )
    parser.add_argument("--full", action="store_true", help="the published schedule, and all test data")
    for name, choices in (("rows", ROWS), ("k", K), ("layers", tuple(LATENT)), ("data-sets", DATA_SETS)):
        parser.add_argument(f"--{name}", help=f"which of {','.join(map(str, choices))}; all by default")
    parser.add_argument("--samples", type=at_least(2), default=SAMPLES, help="importance samples for each datum")
    parser.add_argument("--test-data", type=at_least(2), default=TEST_DATA, help="number of test data, of 10,000")
    parser.add_argument(
        "--table", action="store_true", help="only show and draw existing results, with unfinished cells"
    )
    given = parser.parse_args()
    for name, choices in (("rows", ROWS), ("k", K), ("layers", tuple(LATENT)), ("data_sets", DATA_SETS)):
        known = {str(choice): choice for choice in choices}
        default = list(known)[:1] if given.quick and name == "data_sets" else list(known)
        asked = default if getattr(given, name) is None else getattr(given, name).split(",")
        if other := sorted(set(asked) - set(known)):
            parser.error(f"--{name.replace('_', '-')}: {', '.join(other)}: not among {', '.join(known)}.")
        setattr(given, name, [choice for text, choice in known.items() if text in asked])
    if given.fraction > 1 or given.test_data > 10_000:
        parser.error("--fraction is at most 1, --test-data at most 10,000.")
    if given.full:
        given.fraction, given.test_data = 1.0, 10_000
    if given.quick:
        given.fraction, given.samples, given.test_data = 0.5 / EPOCHS, 20, 20
    if not keys_of(given):
        parser.error("no cell is chosen: at k = 1 there is only one, for the rows vae and iwae.")
    return given


def main() -> None:
    """Runs what is missing, prints the table, writes the result and draws it."""
    given = parse()
    torch.set_num_threads(given.threads)
    settings = settings_of(given)
    runs = Runs("iwae_table1", settings, given)
    keys = keys_of(given)

    def one(key: str) -> dict[str, Any]:
        data = data_of(described(key)["data_set"], given.quick)
        return run(key, data, runs.unfinished / key, settings, given.device)

    def about(found: dict[str, Any]) -> dict[str, Any]:
        summary = summarise(found, unfinished(runs, keys))
        rows = against_published(summary, settings) if not given.quick else []
        return {"published": PUBLISHED, "summary": summary, "against_published": rows}

    if not given.table:
        runs.complete(keys, one, about)
    summary, console = summarise(runs.by_key, unfinished(runs, keys)), Console(width=150)
    show(summary, settings, console)
    draw(runs.by_key, summary, settings, runs.path.with_suffix(".png"))
    console.print(runs.path)


if __name__ == "__main__":
    main()
