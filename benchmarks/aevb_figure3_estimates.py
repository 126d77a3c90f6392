"""Estimates of log p(x) by which figure 3's runs are judged: the paper's, annealed importance sampling, the bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from benchmarks import aevb
from benchmarks.aevb import EVALUATION_SEED
from benchmarks.aevb_figure3_summary import FROM_Q
from pyro_vae import VAE
from pyro_vae.datasets import Data
from pyro_vae.evaluation import Estimate, annealed_importance_sampling, elbo, log_marginal, posterior_density_estimator

EVALUATED = 1_000  # of the training and of the test data; appendix E
QUANTILES = (0.05, 0.5, 0.95)  # over data, of appendix D less AIS


@dataclass(frozen=True)
class Sizes:
    """How much is evaluated, and how exactly.

    Attributes:
        data: Of the training and of the test data.
        posterior_samples: Of each datum, for the density and again for the mean of appendix D.
        chains: That these come from.
        burn_in: Of each of these.
        leapfrog_steps: Of a transition, of appendix D's and of AIS's.
        temperatures: Of AIS along the curve.
        ais_chains: Likewise.
        final_temperatures: Of AIS at its end.
        final_chains: Likewise.
        importance_samples: Of the bound by importance sampling.
        from_q: At the end, chains of appendix D that begin at q(z|x) and are not annealed: these numbers by turns.
    """

    data: int = EVALUATED
    posterior_samples: int = 50  # appendix E
    chains: int = 10
    burn_in: int = 100
    leapfrog_steps: int = 4  # appendix E
    temperatures: int = 200
    ais_chains: int = 4
    final_temperatures: int = 1000
    final_chains: int = 4
    importance_samples: int = 500
    from_q: tuple[int, ...] = (2, 10)


QUICK_SIZES = Sizes(20, 30, 5, 4, 1, 4, 2, 6, 2, 10, (2, 3))


class Judge:
    """Evaluates a VAE on the first training and the first test data.

    Arguments:
        data: Of which they are the first.
        sizes: How many, and how exactly.
        device: On which they lie.
        compiled: Whether the samplers' steps are compiled.
    """

    def __init__(self, data: Data, sizes: Sizes, device: str, compiled: bool) -> None:
        parts = {part: x[: sizes.data].to(device) for part, x in aevb.evaluated_data(data, sizes.data).items()}
        self.sizes, self.compiled = sizes, compiled
        self.annealing: dict[str, Any] = {"num_leapfrog": sizes.leapfrog_steps, "schedule": "sigmoid"}
        self.x, self.splits = torch.cat(list(parts.values())), {part: len(x) for part, x in parts.items()}

    def __call__(self, vae: VAE, trains_posterior: bool, papers: bool = True, final: bool = False) -> dict[str, Any]:
        """Returns by part ``"train"`` or ``"test"`` what each estimator says.

        Arguments:
            vae: The VAE.
            trains_posterior: Whether q(z|x) tells anything of it.
            papers: Whether to ask the paper's estimator, which takes longest.
            final: Whether to make AIS more exact, and to see how far the paper's estimator hangs on its chains' start.
        """
        sizes, how = self.sizes, {"seed": EVALUATION_SEED, "compile": self.compiled}
        path = (sizes.final_temperatures, sizes.final_chains) if final else (sizes.temperatures, sizes.ais_chains)
        paper = {"burn_in": sizes.burn_in, "num_leapfrog": sizes.leapfrog_steps, **how}
        with pyro.validation_enabled(False):  # which refuses grey levels
            found = {"ais": annealed_importance_sampling(vae, self.x, *path, **self.annealing, **how)}
            if papers:
                samples = sizes.posterior_samples
                found["appendix_d"] = posterior_density_estimator(vae, self.x, samples, chains=sizes.chains, **paper)
            if trains_posterior:
                found["bound"] = elbo(vae, self.x, 10, **how)
                found["importance"] = log_marginal(vae, self.x, sizes.importance_samples, **how)
            for chains in sizes.from_q if trains_posterior and final else ():
                begun: dict[str, Any] = {"chains": chains, "start": "encoder", "annealed": False, **paper}
                found[f"{FROM_Q}{chains}"] = posterior_density_estimator(vae, self.x, sizes.posterior_samples, **begun)
        return self._by_part(found, final)

    def ais(self, vae: VAE) -> float:
        """Returns log p(x) of the training data alone, by the AIS of the curve: what a stepsize is judged by."""
        x = self.x[: self.splits["train"]]
        path = (self.sizes.temperatures, self.sizes.ais_chains)
        with pyro.validation_enabled(False):
            return annealed_importance_sampling(
                vae, x, *path, **self.annealing, seed=EVALUATION_SEED, compile=self.compiled
            ).value

    def _by_part(self, found: dict[str, Estimate], pointwise: bool) -> dict[str, Any]:
        result, start = {}, 0
        for part, size in self.splits.items():
            rows = slice(start, start := start + size)
            result[part] = {name: described(estimate, rows) for name, estimate in found.items()}
            if pointwise:
                result[part]["ais"]["pointwise"] = [round(v, 3) for v in found["ais"].pointwise[rows].tolist()]
            if "appendix_d" in found:
                apart = found["appendix_d"].pointwise[rows] - found["ais"].pointwise[rows]
                result[part]["appendix_d_minus_ais"] = {
                    "value": rounded(apart.mean()),
                    "standard_error": rounded(apart.std() / math.sqrt(size)),
                    "share_a_nat_low": rounded((apart < -1).double().mean()),
                    **{f"quantile_{q:g}": rounded(apart.quantile(q)) for q in QUANTILES},
                }
        return result


def described(estimate: Estimate, rows: slice) -> dict[str, Any]:
    """Returns an estimate on some of its data, for JSON; its error is that of data whose error is finite."""
    errors = estimate.diagnostics["pointwise_error"][rows]
    known = errors[errors.isfinite()]
    said = {
        "value": rounded(estimate.pointwise[rows].mean()),
        "standard_error": rounded(known.square().sum().sqrt() / max(len(known), 1)),
        "share_without_error": rounded(1 - torch.tensor(len(known) / len(errors))),
    }
    if "bias" in estimate.diagnostics:
        said["bias"] = rounded(estimate.diagnostics["bias"][rows].mean())
    return said


def rounded(value: Tensor) -> float:
    return round(float(value), 4)
