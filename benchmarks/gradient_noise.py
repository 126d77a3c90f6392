"""Variance and signal-to-noise ratio of gradients by algorithm and width of q, with a known exact posterior.

    python -m benchmarks.gradient_noise

The VAE is linear-Gaussian with a diagonal exact posterior; q is this posterior with its scale multiplied by 0.6, 1 and
1.6. The command prints and writes the trace of the covariance and the signal-to-noise ratio of the phi gradient.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import record
from pyro_vae.evaluation import gradient_variance
from pyro_vae.inference import (
    AEVB,
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    RWS,
    STL,
    AnalyticKL,
    DReG,
    Inference,
    Renyi,
    ScoreFunction,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from linear_gaussian import LinearGaussian

WIDTHS = (0.6, 1.0, 1.6)
PARTICLES = (1, 8, 64)
DRAWS = 2000
SEED = 0  # of the draws


def algorithms() -> dict[str, Inference]:
    """Returns the algorithms of the comparison, by label."""
    one = {
        "aevb": AEVB(),
        "analytic-kl": AnalyticKL(),
        "stl": STL(),
        "score-function, none": ScoreFunction("none", 1),
        "score-function, none, K = 8": ScoreFunction("none", 8),
        "score-function, running, K = 8": ScoreFunction("running", 8),
        "score-function, leave-one-out, K = 8": ScoreFunction("leave-one-out", 8),
    }
    several = {
        f"{name}, K = {k}": cls(num_particles=k)
        for k in PARTICLES
        for name, cls in (("iwae", IWAE), ("dreg", DReG), ("rws", RWS))
    }
    mixed = {
        "renyi, alpha = 0.5, K = 8": Renyi(0.5, 8),
        "miwae, 8 x 8": MIWAE(8, 8),
        "piwae, 8 x 8": PIWAE(8, 8),
        "ciwae, beta = 0.5, K = 64": CIWAE(64, 0.5),
    }
    return {**one, **several, **mixed}


def main() -> None:
    """Prints the table and writes the result."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    model = LinearGaussian.random(5, 2)
    x = model.sample(8)
    table = Table(title="phi gradient: trace of covariance | signal-to-noise ratio, ± 95 %")
    table.add_column("algorithm")
    result: dict[str, dict[str, dict[str, float]]] = {}
    for width in WIDTHS:
        table.add_column(f"q {width} x the exact scale", justify="right")
        vae = model.vae(model.exact_encoder(width))
        for label, groups in gradient_variance(vae, x, algorithms(), DRAWS, seed=SEED, progress=True).items():
            noise = groups["phi"]
            result.setdefault(label, {})[str(width)] = {
                "variance": noise.variance.mean,
                "variance_half_width": noise.variance.half_width,
                "signal_to_noise": noise.signal_to_noise.mean,
                "signal_to_noise_half_width": noise.signal_to_noise.half_width,
            }
    for label, by_width in result.items():
        table.add_row(label, *(_cell(cell) for cell in by_width.values()))
    Console(width=140).print(table)
    found = {"draws": DRAWS, "seed": SEED, "data": len(x), "phi": result}
    Console().print(record.write("gradient_noise", found))


def _cell(cell: dict[str, float]) -> str:
    if cell["variance"] < 1e-20:
        return "0 | -"
    return (
        f"{cell['variance']:.3g} ± {cell['variance_half_width']:.1g} | "
        f"{cell['signal_to_noise']:.2f} ± {cell['signal_to_noise_half_width']:.2f}"
    )


if __name__ == "__main__":
    main()
