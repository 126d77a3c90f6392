"""log p(x) of data simulated from a trained VAE: importance sampling and annealing, with bidirectional bounds.

    python -m benchmarks.sandwich

The command trains a VAE on digits by AEVB and simulates data from it. It prints every estimator with the lower and the
upper bound of bidirectional Monte Carlo, and the differences with standard errors over data.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from pyro_vae import Training, fit
from pyro_vae.evaluation import Estimate, annealed_importance_sampling, bidirectional_monte_carlo, log_marginal
from pyro_vae.experiment import Experiment
from pyro_vae.inference import AEVB
from pyro_vae.runtime.random_streams import isolated

SEEDS = {
    "training": 0,
    "simulated data": 1,
    "importance sampling": 2,
    "AIS from the prior": 3,
    "AIS from the encoder": 4,
}


def main() -> None:
    """Prints the table and writes the result."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--n", type=int, default=100, help="data to simulate")
    arguments.add_argument("--epochs", type=int, default=50)
    arguments.add_argument("--temperatures", type=int, default=500)
    arguments.add_argument("--chains", type=int, default=16)
    arguments.add_argument("--samples", type=int, default=5000, help="importance samples")
    given = arguments.parse_args()
    experiment = Experiment.parse({"data": "digits", "inference": "aevb", "training": {"epochs": given.epochs}})
    data = experiment.load_data()
    with isolated(SEEDS["training"]):
        vae = experiment.build(data)
    fit(
        vae,
        data.train,
        AEVB(),
        Training(epochs=given.epochs, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3)),
        transform=data.transform,
        seed=SEEDS["training"],
        progress=True,
    )
    vae.eval()
    annealing = (given.temperatures, given.chains)
    sandwich = bidirectional_monte_carlo(vae, given.n, *annealing, seed=SEEDS["simulated data"], progress=True)
    x = sandwich.data
    estimates = {
        f"importance sampling, {given.samples} samples": log_marginal(
            vae, x, given.samples, seed=SEEDS["importance sampling"], progress=True
        ),
        "AIS from the prior": annealed_importance_sampling(
            vae, x, *annealing, seed=SEEDS["AIS from the prior"], progress=True
        ),
        "AIS from the encoder": annealed_importance_sampling(
            vae, x, *annealing, start="encoder", seed=SEEDS["AIS from the encoder"], progress=True
        ),
        "bidirectional, lower": sandwich.lower,
        "bidirectional, upper": sandwich.upper,
    }
    table = Table(title=f"log p(x) of {given.n} simulated data, nats per datum (annealing: {annealing})")
    for name in ("estimator", "log p(x)", "Monte Carlo s.e.", "bias estimate", "below the upper bound by"):
        table.add_column(name, justify="right" if name != "estimator" else "left")
    rows = {name: _row(estimate, sandwich.upper) for name, estimate in estimates.items()}
    for name, row in rows.items():
        below = f"{row['below_upper']:.4f} ± {row['below_upper_error']:.4f}"
        table.add_row(name, f"{row['value']:.4f}", f"{row['standard_error']:.4f}", f"{row['bias']:.4f}", below)
    console = Console(width=120)
    console.print(table)
    importance, annealed = list(estimates.values())[:2]
    difference = annealed.pointwise - importance.pointwise
    error = float(difference.std() / len(difference) ** 0.5)
    console.print(f"width of the sandwich: {sandwich.width}")
    console.print(f"AIS - IS: {float(difference.mean()):.4f} ± {error:.4f} (s.e. over data)")
    result = {
        "n": given.n,
        "temperatures": given.temperatures,
        "chains": given.chains,
        "samples": given.samples,
        "seeds": SEEDS,
        "estimates": rows,
        "width": {"value": sandwich.width.value, "sampling_error": sandwich.width.sampling_error},
        "ais_minus_is": {"value": float(difference.mean()), "sampling_error": error},
    }
    console.print(record.write("sandwich", result))


def _row(estimate: Estimate, upper: Estimate) -> dict[str, float]:
    below = upper.pointwise - estimate.pointwise
    bias = estimate.diagnostics.get("bias")
    return {
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "bias": float("nan") if bias is None else float(bias.mean()),
        "below_upper": float(below.mean()),
        "below_upper_error": float(below.std() / len(below) ** 0.5),
    }


if __name__ == "__main__":
    main()
