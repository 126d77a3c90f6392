"""Estimates of log p(x) for figure 3's runs; the most accurate one gives the errors of the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from benchmarks import aevb
from benchmarks.aevb import EVALUATION_SEED
from benchmarks.aevb_figure3_shared import shared_importance_sampling
from benchmarks.aevb_figure3_summary import FROM_Q, PAPERS, REFERENCE
from pyro_vae import VAE
from pyro_vae.datasets import Data
from pyro_vae.evaluation import Estimate, annealed_importance_sampling, elbo, log_marginal, posterior_density_estimator

EVALUATED = 1_000  # number of training and of test data; appendix E
QUANTILES = (0.05, 0.5, 0.95)  # quantiles over data of an estimator's error


@dataclass(frozen=True)
class Sizes:
    """Sizes of the evaluation.

    Attributes:
        data: Number of training and of test data.
        posterior_samples: Number of posterior samples of each datum in appendix D, for the density and again for the
            mean.
        chains: Number of chains of these samples.
        burn_in: Number of burn-in transitions of each chain.
        leapfrog_steps: Number of leapfrog steps of a transition, in appendix D and in AIS.
        pilot_draws: Number of draws of shared importance sampling in each round before the last.
        draws: Number of draws in the last round, along the curve.
        final_draws: Number of draws in the last round, at the end of the curve.
        temperatures: Number of temperatures of AIS, at the end.
        ais_chains: Number of chains of AIS, at the end.
        importance_samples: Number of samples of the bound by importance sampling from q(z|x).
        from_q: Numbers of chains of appendix D that begin at q(z|x) and are not annealed, at the end.
    """

    data: int = EVALUATED
    posterior_samples: int = 50  # appendix E
    chains: int = 10
    burn_in: int = 100
    leapfrog_steps: int = 4  # appendix E
    pilot_draws: int = 2**16
    draws: int = 2**17
    final_draws: int = 2**20
    temperatures: int = 1000
    ais_chains: int = 4
    importance_samples: int = 500
    from_q: tuple[int, ...] = (2, 10)


QUICK_SIZES = Sizes(20, 30, 5, 4, 1, 2**9, 2**10, 2**11, 6, 2, 10, (2, 3))


class Judge:
    """Evaluates a VAE on the first training and the first test data.

    Arguments:
        data: The data set.
        sizes: Sizes of the evaluation.
        device: Device of the computation.
        compiled: Whether the samplers' steps are compiled.
    """

    def __init__(self, data: Data, sizes: Sizes, device: str, compiled: bool) -> None:
        parts = {part: x[: sizes.data].to(device) for part, x in aevb.evaluated_data(data, sizes.data).items()}
        self.sizes, self.compiled = sizes, compiled
        self.x, self.splits = torch.cat(list(parts.values())), {part: len(x) for part, x in parts.items()}

    def __call__(
        self, vae: VAE, trains_posterior: bool, papers: bool = True, final: bool = False, checks: bool = False
    ) -> dict[str, Any]:
        """Returns the estimates by part, ``"train"`` or ``"test"``, and estimator.

        Arguments:
            vae: The VAE.
            trains_posterior: Whether q(z|x) was trained.
            papers: Whether to use the paper's estimator, which is the slowest.
            final: Whether to use more draws and to store the value of each datum.
            checks: Whether to use AIS too, and the paper's estimator with other starts of its chains.
        """
        sizes, how = self.sizes, {"seed": EVALUATION_SEED, "compile": self.compiled}
        moves: dict[str, Any] = {"num_leapfrog": sizes.leapfrog_steps, **how}
        paper = {"burn_in": sizes.burn_in, **moves}
        with pyro.validation_enabled(False):  # validation refuses grey levels
            found = {REFERENCE: self._reference(vae, self.x, sizes.final_draws if final else sizes.draws)}
            if papers:
                samples = sizes.posterior_samples
                found[PAPERS] = posterior_density_estimator(vae, self.x, samples, chains=sizes.chains, **paper)
            if checks:
                path = (sizes.temperatures, sizes.ais_chains)
                found["ais"] = annealed_importance_sampling(vae, self.x, *path, schedule="sigmoid", **moves)
            if trains_posterior:
                found["bound"] = elbo(vae, self.x, 10, **how)
                found["importance"] = log_marginal(vae, self.x, sizes.importance_samples, **how)
            for chains in sizes.from_q if trains_posterior and checks else ():
                begun: dict[str, Any] = {"chains": chains, "start": "encoder", "annealed": False, **paper}
                found[f"{FROM_Q}{chains}"] = posterior_density_estimator(vae, self.x, sizes.posterior_samples, **begun)
        return self._by_part(found, final)

    def training_data(self, vae: VAE) -> float:
        """Returns log p(x) of the training data, the score of a stepsize."""
        return self._reference(vae, self.x[: self.splits["train"]], self.sizes.draws).value

    def _reference(self, vae: VAE, x: Tensor, draws: int) -> Estimate:
        pilot = self.sizes.pilot_draws
        return shared_importance_sampling(vae, x, draws, pilot_draws=pilot, seed=EVALUATION_SEED)

    def _by_part(self, found: dict[str, Estimate], pointwise: bool) -> dict[str, Any]:
        result, start = {}, 0
        for part, size in self.splits.items():
            rows = slice(start, start := start + size)
            result[part] = {name: described(estimate, rows) for name, estimate in found.items()}
            if pointwise:
                pointwise_values = found[REFERENCE].pointwise[rows].tolist()
                result[part][REFERENCE]["pointwise"] = [round(value, 3) for value in pointwise_values]
            for name, estimate in found.items():
                if name != REFERENCE:
                    result[part][name]["error"] = spread(estimate.pointwise[rows] - found[REFERENCE].pointwise[rows])
        return result


def spread(error: Tensor) -> dict[str, float | None]:
    """Returns the mean over data of an estimator's error, with its standard error over data, and its quantiles."""
    return {
        "value": rounded(error.mean()),
        "standard_error": rounded(error.std() / math.sqrt(len(error))),
        "share_a_nat_low": rounded((error < -1).double().mean()),
        **{f"quantile_{q:g}": rounded(error.quantile(q)) for q in QUANTILES},
    }


def described(estimate: Estimate, rows: slice) -> dict[str, Any]:
    """Returns an estimate on some of its data, for JSON; its standard error is over data with finite errors."""
    errors = estimate.diagnostics["pointwise_error"][rows]
    known = errors[errors.isfinite()]
    said: dict[str, Any] = {
        "value": rounded(estimate.pointwise[rows].mean()),
        "standard_error": rounded(known.square().sum().sqrt() / len(known)) if len(known) else None,
        "share_without_error": rounded(1 - torch.tensor(len(known) / len(errors))),
    }
    if "bias" in estimate.diagnostics:
        said["bias"] = rounded(estimate.diagnostics["bias"][rows].mean())
    if "effective_sample_size" in estimate.diagnostics:
        said["least_effective_sample_size"] = rounded(estimate.diagnostics["effective_sample_size"][rows].min())
    return said


def rounded(value: Tensor) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
