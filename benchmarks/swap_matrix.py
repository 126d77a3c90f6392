r"""All combinations of prior, likelihood and posterior, one line of YAML each: which train, and which are refused.

    python -m benchmarks.swap_matrix              # the whole matrix, some minutes
    python -m benchmarks.swap_matrix --sample 60  # a random sample of it

A combination is built from the text of an experiment file, trained for 20 steps on small data of its likelihood's kind,
and used to draw data; then its weights and its file are saved and restored. The outcome is `trained`, `refused` with
the reason in the error message, or a defect. Any defect ends the command with exit code 1.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.record import write
from pyro_vae import VAE, Batch, Experiment, Training, fit
from pyro_vae.errors import InputError
from pyro_vae.experiment import parse_yaml
from pyro_vae.experiment.to_spec import to_spec
from pyro_vae.inference import AEVB, Inference, ScoreFunction
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.data_check import check_values

N, CELLS, LATENT, STEPS, HIDDEN = 40, 6, 4, 20, 16
SEED = 0

PRIORS = {
    "Normal, fixed": "{family: Normal, loc: 0, scale: 1}",
    "Normal, learned": "Normal",
    "Laplace": "{family: Laplace, loc: 0, scale: 1}",
    "StudentT": "{family: StudentT, df: 5, loc: 0, scale: 1}",
    "mixture": "{mixture: {family: Normal, components: 5}}",
    "VampPrior": "{vamp: {components: 10}}",
    "flow, MAF": "{flow: {kind: maf, hidden: [16]}}",
    "flow, NSF": "{flow: {kind: nsf, hidden: [16]}}",
    "hierarchy": "{hierarchy: {z2: {size: 2, family: Normal, loc: 0, scale: 1}, z1: {size: 2, family: Normal}}}",
    "Gamma": "{family: Gamma, concentration: 2, rate: 1}",
    "LogNormal": "{family: LogNormal, loc: 0, scale: 1}",
    "Beta": "{family: Beta, concentration1: 2, concentration0: 2}",
    "Dirichlet": "{family: Dirichlet, concentration: 1}",
    "VonMises": "{family: VonMises, loc: 0, concentration: 1}",
    "sphere": "SphericalUniform",
    "Categorical": "{family: Categorical, logits: {learned: {shape: [4, 3]}}}",
    "Bernoulli": "{family: Bernoulli, logits: 0}",
}

LIKELIHOODS = {
    "Bernoulli": "Bernoulli",
    "ContinuousBernoulli": "ContinuousBernoulli",
    "Normal, fixed scale": "{family: Normal, scale: 0.5}",
    "Normal, one scale": "{family: Normal, scale: {learned: 0.5}}",
    "Normal, a scale for each cell": "{family: Normal, scale: learned}",
    "Normal, network scale": "Normal",
    "Laplace": "Laplace",
    "StudentT": "{family: StudentT, df: 5}",
    "Beta": "Beta",
    "DiscretizedLogisticMixture": "DiscretizedLogisticMixture",
    "Categorical, 256 levels": "{family: Categorical, logits: {network: [256]}}",
    "Binomial": "{family: Binomial, total_count: 10}",
    "Poisson": "Poisson",
    "NegativeBinomial": "{family: NegativeBinomial, total_count: {learned: 2.0}}",
    "ZeroInflatedNegativeBinomial": "{family: ZeroInflatedNegativeBinomial, total_count: {learned: 2.0}}",
    "Multinomial": "{family: Multinomial, total_count: 60}",
    "Mixed": "{mixed: {a: Normal, b: Poisson, c: Bernoulli, d: {Categorical: 3}, e: Normal, f: Poisson}}",
    "mixture": "{mixture: {family: Normal, components: 3}}",
}

POSTERIORS = {
    "derived": "",
    "MultivariateNormal": "posterior: MultivariateNormal",
    "LowRankMultivariateNormal": "posterior: {family: LowRankMultivariateNormal, cov_factor: {network: [%d, 2]}}",
    "mixture": "posterior: {mixture: {family: Normal, components: 3}}",
    "inverse autoregressive flow": "posterior: {flow: {kind: maf, hidden: [16]}}",
    "neural spline flow": "posterior: {flow: {kind: nsf, hidden: [16]}}",
    "the prior's family": "posterior: %s",
}

# The posterior in the family of each prior.
_OWN = {
    "Normal, fixed": "Normal",
    "Normal, learned": "Normal",
    "Laplace": "Laplace",
    "StudentT": "StudentT",
    "mixture": "{mixture: {family: Normal, components: 5}}",
    "VampPrior": "Normal",
    "flow, MAF": "{flow: {kind: maf, hidden: [16]}}",
    "flow, NSF": "{flow: {kind: nsf, hidden: [16]}}",
    "hierarchy": "{hierarchy: {z1: {size: 2, family: Normal}, z2: {size: 2, family: Normal}}}",
    "Gamma": "Gamma",
    "LogNormal": "LogNormal",
    "Beta": "Beta",
    "Dirichlet": "Dirichlet",
    "VonMises": "VonMises",
    "sphere": "VonMisesFisher",
    "Categorical": "{family: Categorical, logits: {network: [3]}}",
    "Bernoulli": "Bernoulli",
}

# Priors that do not fit posteriors over the real space, with patterns of the reasons in the errors.
REFUSED = {
    "VonMises": "does not integrate to 1",
    "sphere": "pass posterior=Conditional\\(VonMisesFisher",
    "Categorical": "no posterior follows from the discrete prior|with draws outside|has shape",
    "Bernoulli": "no posterior follows from the discrete prior|with draws outside",
}


@dataclass(frozen=True)
class Cell:
    """One combination, by the names of its parts."""

    prior: str
    likelihood: str
    posterior: str

    @property
    def text(self) -> str:
        """The experiment file."""
        size = LATENT - 1 if self.prior == "Dirichlet" else LATENT
        posterior = POSTERIORS[self.posterior]
        posterior = posterior.replace("%d", str(size)).replace("%s", _OWN[self.prior])
        networks = f"networks: {{encoder: {{mlp: [{HIDDEN}]}}, decoder: {{mlp: [{HIDDEN}]}}}}"
        likelihood, prior = LIKELIHOODS[self.likelihood], PRIORS[self.prior]
        return f"latent: {LATENT}\nprior: {prior}\nlikelihood: {likelihood}\n{posterior}\n{networks}\n"

    @property
    def refusal(self) -> str | None:
        """Pattern of the reason for which it must be refused; None if it must train."""
        return None if self.posterior == "the prior's family" else REFUSED.get(self.prior)


def cells() -> list[Cell]:
    """Returns all combinations."""
    return [Cell(*names) for names in itertools.product(PRIORS, LIKELIHOODS, POSTERIORS)]


def sample(n: int, seed: int = SEED) -> list[Cell]:
    """Returns n random combinations that contain every prior, likelihood and posterior, if n is large enough."""
    generator = random.Random(seed)
    everything = cells()
    generator.shuffle(everything)
    chosen: list[Cell] = []
    seen: set[str] = set()
    for cell in everything:
        new = {f"{part}: {getattr(cell, part)}" for part in ("prior", "likelihood", "posterior")} - seen
        if new and len(chosen) < n:
            chosen.append(cell)
            seen |= new
    return chosen + [cell for cell in everything if cell not in chosen][: n - len(chosen)]


def data_of(likelihood: str) -> Tensor:
    """Returns small data of a likelihood's kind, shape ``(N, CELLS)``."""
    with isolated(1):
        u, normal = torch.rand(N, CELLS), torch.randn(N, CELLS)
        counts = torch.poisson(torch.full((N, CELLS), 3.0))
        kinds = {
            "Bernoulli": (u < 0.4).float(),
            "ContinuousBernoulli": u,
            "Beta": u.clamp(0.01, 0.99),
            "DiscretizedLogisticMixture": (255 * u).round(),
            "Categorical, 256 levels": (255 * u).round(),
            "Binomial": (10 * u).round(),
            "Multinomial": counts,
            "Poisson": counts,
            "NegativeBinomial": counts,
            "ZeroInflatedNegativeBinomial": counts * (u < 0.7),
        }
        if likelihood == "Mixed":
            columns = [normal[:, 0], counts[:, 1], (u[:, 2] < 0.4).float(), (2 * u[:, 3]).round()]
            return torch.stack([*columns, normal[:, 4], counts[:, 5]], dim=1)
        return kinds.get(likelihood, normal)


def algorithm_for(vae: VAE) -> Inference:
    """Returns AEVB if it can train the VAE; else the score function, which needs no gradient through draws."""
    try:
        AEVB().check(vae)
    except InputError as error:
        if "score-function" not in str(error):
            raise
        return ScoreFunction(num_particles=4)
    return AEVB()


def run(cell: Cell) -> str:
    """Builds, trains, draws from, saves and restores one combination.

    Returns:
        The name of the algorithm.

    Raises:
        InputError: If the combination is refused.
        AssertionError: For a defect.
    """
    experiment = Experiment.parse(parse_yaml(cell.text, "cell"))
    with isolated(0):
        vae = experiment.assemble(CELLS, None, N)
    x = data_of(cell.likelihood)
    algorithm = algorithm_for(vae)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    adam = torch.optim.Adam
    history = fit(
        vae, x, algorithm, Training(steps=STEPS, batch_size=10, optimizer=lambda p: adam(p, lr=1e-3)), seed=SEED
    )
    _check(bool(torch.as_tensor(history.bound).isfinite().all()), "a loss is not finite")
    still = [name for name, p in vae.named_parameters() if p.requires_grad and torch.equal(p.detach(), before[name])]
    _check(not still, f"no gradient moved {still}")
    with isolated(0):
        drawn = vae.generate(N)
    _check(drawn.shape == x.shape, "draws have another shape than data")
    check_values(vae, Batch(drawn), check_support=True)
    _check_restored(vae, experiment, x)
    return algorithm.name


def _check_restored(vae: VAE, experiment: Experiment, x: Tensor) -> None:
    """Checks that the weights with the file, or with the specification, give the same VAE again."""
    with tempfile.TemporaryDirectory() as folder:
        experiment.to_yaml(Path(folder) / "experiment.yaml")
        again = Experiment.from_yaml(Path(folder) / "experiment.yaml")
    _check(again == experiment, "the file that is written reads differently")
    described = Experiment.parse(to_spec(vae))
    expected = _weights(vae, x)
    for other in (again.assemble(CELLS, None, N), described.assemble(CELLS, None, N)):
        other.load_state_dict(vae.state_dict())
        _check(torch.equal(_weights(other, x), expected), "restored weights give other log weights")


def _weights(vae: VAE, x: Tensor) -> Tensor:
    with isolated(0), torch.no_grad():
        return vae.log_weights(x)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def outcome(cell: Cell) -> dict[str, Any]:
    """Returns the outcome of a combination: ``trained`` (by which algorithm), ``refused`` or ``defect`` (why)."""
    record: dict[str, Any] = {"prior": cell.prior, "likelihood": cell.likelihood, "posterior": cell.posterior}
    expected = cell.refusal
    try:
        trained_by = run(cell)
    except InputError as error:
        foreseen = expected is not None and re.search(expected, str(error)) is not None
        return {**record, "outcome": "refused" if foreseen else "defect", "reason": str(error)}
    except Exception as error:  # any error is a defect, which the table shows
        return {**record, "outcome": "defect", "reason": f"{type(error).__name__}: {error}"}
    if expected is not None:
        return {**record, "outcome": "defect", "reason": f"trained, but should be refused: {expected}"}
    return {**record, "outcome": "trained", "algorithm": trained_by}


def table(records: Iterable[dict[str, Any]]) -> Table:
    """Returns a table of prior x posterior with the numbers of likelihoods that train, are refused or fail."""
    counted = Counter((r["prior"], r["posterior"], r["outcome"]) for r in records)
    result = Table("prior", *POSTERIORS, title="likelihoods that train / are refused / fail")
    for prior in PRIORS:
        row = [
            [counted[prior, posterior, kind] for kind in ("trained", "refused", "defect")] for posterior in POSTERIORS
        ]
        result.add_row(prior, *(" / ".join(map(str, numbers)) for numbers in row))
    return result


def summary(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each prior x posterior: numbers of likelihoods by outcome, algorithms, and reasons."""
    rows = []
    for prior, posterior in itertools.product(PRIORS, POSTERIORS):
        these = [r for r in records if (r["prior"], r["posterior"]) == (prior, posterior)]
        row = {"prior": prior, "posterior": posterior, **Counter(r["outcome"] for r in these)}
        algorithms = sorted({r["algorithm"] for r in these if "algorithm" in r})
        reasons = sorted({r["reason"] for r in these if "reason" in r})
        rows.append(
            row | ({"algorithms": algorithms} if algorithms else {}) | ({"reasons": reasons} if reasons else {})
        )
    return rows


def main() -> None:
    """Runs the matrix, prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="number of random combinations; default: all")
    arguments = parser.parse_args()
    chosen = cells() if arguments.sample is None else sample(arguments.sample)
    records = [outcome(cell) for cell in track(chosen, description="combinations")]
    totals = Counter(record["outcome"] for record in records)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(records))
    console.print(f"{dict(totals)} of {len(PRIORS)} x {len(LIKELIHOODS)} x {len(POSTERIORS)} = {len(cells())}")
    for record in records:
        if record["outcome"] == "defect":
            console.print(record, highlight=False)
    if arguments.sample is None:
        sizes = {"priors": len(PRIORS), "likelihoods": len(LIKELIHOODS), "posteriors": len(POSTERIORS)}
        write("swap_matrix", {**sizes, **totals, "seed": SEED, "cells": summary(records)})
    sys.exit(1 if totals["defect"] else 0)


if __name__ == "__main__":
    main()
