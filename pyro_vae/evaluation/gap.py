r"""The inference gap, split into the part of the posterior's family and the part of its network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.batch import Batch, DataLike
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated, of_a_vae, rows_at_once
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.pareto import pareto_k
from pyro_vae.inference.weights import path_log_prob
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated, stream_seed
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Number of data that are optimised together; largest number of particles (samples x data) that are decoded at once.
_DATA, _ROWS = 200, 20_000
# Draws of z for each datum: in one step of the optimisation, and for the comparison of two vectors after a run.
_DRAWS, _JUDGES = 32, 500
# Step size at the start of a run, in the unconstrained space of the parameters; it falls to 0 along a cosine.
_STEP_SIZE = 0.05
# The optimisation of a datum ends when a run gains at most this many nats, or after this many runs.
_TOLERANCE, _RUNS = 0.01, 10


@dataclass(frozen=True)
class InferenceGap:
    """The gap log p(x) - ELBO, split into the part of the posterior's family and the part of its network.

    Attributes:
        log_marginal: Estimate of log p(x). If it is importance-sampled from q*, ``pareto_k`` of each datum is a
            diagnostic.
        best_elbo: ELBO of q*, the best member of the family for each datum. Its diagnostics: ``converged``, ``runs``
            and ``last_gain`` (nats) of each datum's optimisation, shape ``(N,)``.
        elbo: ELBO of q(z|x).
        approximation: log p(x) - ELBO(q*), the loss by the family.
        amortization: ELBO(q*) - ELBO(q), the loss by the network that chooses the member of the family.
        total: log p(x) - ELBO(q), the sum of the two.
    """

    log_marginal: Estimate
    best_elbo: Estimate
    elbo: Estimate
    approximation: Estimate
    amortization: Estimate
    total: Estimate

    def __repr__(self) -> str:
        gaps = (("total", self.total), ("approximation", self.approximation), ("amortization", self.amortization))
        parts = ", ".join(f"{name}={gap.value:.4f} ± {gap.standard_error:.4f}" for name, gap in gaps)
        return f"InferenceGap({parts}, {len(self.elbo.pointwise)} data)"


@of_a_vae
@torch.no_grad()
def inference_gap(
    vae: LatentVariableModel,
    data: DataLike,
    *,
    num_samples: int = 1000,
    steps: int = 300,
    log_marginal: Estimate | None = None,
    seed: int = 0,
    progress: bool = False,
) -> InferenceGap:
    r"""Returns the inference gap, split into the approximation gap and the amortization gap.

    .. math:: \log p(x) - \mathcal{L}(q) = \underbrace{\log p(x) - \mathcal{L}(q^*)}_\text{approximation}
        + \underbrace{\mathcal{L}(q^*) - \mathcal{L}(q)}_\text{amortization}, \qquad
        q^* = \arg\max_{q' \in \mathcal{Q}} \mathcal{L}(q')

    q* has its own parameters for each datum: a free vector that starts at q(z|x) and follows the reparameterized
    gradient by Adam, in runs of ``steps`` steps with a falling step size. After each run, a datum keeps the better of
    its old and its new vector; it has converged when a run gains at most 0.01 nats. ELBO(q*) and ELBO(q) are evaluated
    at common random numbers that the optimisation does not use; log p(x) is importance-sampled with q* as proposal. In
    expectation this is a lower bound: where ``pareto_k`` is above 0.7, the approximation gap is too small, and you
    should pass a better log p(x).

    The vector of a VAE replaces the output of the posterior's network. Parameters declared `Learned` or `Fixed` are the
    same for all data; they belong to the family and do not change.

    The vector of a `Program` is added to the parameters of the guide's sites in unconstrained space, and starts at 0.
    There is one number for each datum, each cell of an inner plate, each local site and each parameter of its
    distribution (one for each entry of a vector or a matrix). A scale that is the same for all data in the guide has
    such numbers too. The family of each site stays as it is, with its bijections, and so does the way in which its
    parameters depend on earlier sites: a mean 0.5 z_1 + c becomes 0.5 z_1 + c + a, and 0.5 does not change. Latents
    that all data share are drawn once, from the guide.

    Arguments:
        vae: The VAE or `Program`; evaluated in evaluation mode, and not changed.
        data: Shape ``(N, *event_shape)``, in any form that the model takes. Memory is bounded for any N.
        num_samples: S, the number of draws of z for each datum in the evaluation of the gaps.
        steps: Number of steps of each run of the optimisation.
        log_marginal: log p(x) of the same data, for example by annealed importance sampling.
        seed: Seed of the draws; the global random state does not change.
        progress: Whether to show progress bars.

    Returns:
        The gap, in nats per datum.

    Raises:
        InputError: If a VAE's posterior is not a reparameterizable `Conditional` with a network, a site of a guide is
            not reparameterizable or has no parameters with constraints of their own, a number is too small, or
            ``log_marginal`` is for another number of data.

    Reference: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders", 2018, section 3;
    the gradient is that of Roeder, Wu and Duvenaud, "Sticking the landing", 2017, section 3.
    """
    _check(vae, num_samples, steps)
    batch = evaluated("inference_gap", vae, data)
    if log_marginal is not None and len(log_marginal.pointwise) != batch.size:
        raise InputError(
            f"inference_gap: `log_marginal` is for {len(log_marginal.pointwise)} data, but there are {batch.size}; "
            "pass the estimate for the same data, in the same order."
        )
    columns: dict[str, list[Tensor]] = {}
    with evaluating(vae):
        for start in range(0, batch.size, _DATA):
            part = batch.select(slice(start, start + _DATA)).to(vae.device, vae.dtype)
            own_seed = stream_seed(seed, f"inference gap from {start}")
            raw = vae.local_parameters(part)
            best, search = _optimised(
                vae,
                part,
                raw,
                steps,
                own_seed,
                f"inference gap, data {start + 1} to {start + part.size} of {batch.size}" if progress else None,
            )
            family = vae.local_posterior(part)
            log_w = _log_weights(vae, part, (family(best), family(raw)), num_samples, own_seed)
            for name, column in (_columns(*log_w) | search).items():
                columns.setdefault(name, []).append(column.cpu())
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    return _assembled(joined, log_marginal, num_samples=num_samples, seed=seed)


def _check(vae: LatentVariableModel, num_samples: int, steps: int) -> None:
    for name, value, least in (("num_samples", num_samples, 2), ("steps", steps, 1)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"inference_gap: `{name}` is an integer of at least {least}, got `{value!r}`.")
    with evaluating(vae):
        try:
            vae.local_parameters(vae.probe_batch())
        except InputError as error:
            raise InputError(f"inference_gap: {error}") from None


def _optimised(
    vae: LatentVariableModel, batch: Batch, raw: Tensor, steps: int, seed: int, title: str | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the best parameters of each datum, optimised from ``raw`` on, and diagnostics of the optimisation."""
    best = raw.clone()
    last_gain, runs = torch.full((batch.size,), math.inf).double(), torch.zeros(batch.size)
    left = torch.arange(batch.size, device=raw.device)
    for run in range(_RUNS):
        part, old, own_seed = batch.select(left), best[left], stream_seed(seed, f"run {run}")
        with isolated(own_seed, "optimisation"):
            new = _run(vae, part, old, steps, title)
        family = vae.local_posterior(part)
        after, before = _log_weights(vae, part, (family(new), family(old)), _JUDGES, own_seed)
        gain = (after - before).mean(0)
        best[left] = torch.where((gain > 0).unsqueeze(-1), new, old)
        last_gain[left.cpu()], runs[left.cpu()] = gain.clamp_min(0).cpu(), run + 1.0
        left = left[gain > _TOLERANCE]
        if len(left) == 0:
            break
    return best, {"last_gain": last_gain, "runs": runs.long(), "converged": last_gain <= _TOLERANCE}


def _run(vae: LatentVariableModel, batch: Batch, raw: Tensor, steps: int, title: str | None) -> Tensor:
    """Returns the parameters after ``steps`` steps of Adam on the ELBO of each datum."""
    family = vae.local_posterior(batch)
    raw = raw.clone().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=_STEP_SIZE)
    for step in tracked(range(steps), title):
        optimizer.param_groups[0]["lr"] = _STEP_SIZE * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.enable_grad():
            q = family(raw)
            z = q.rsample((_DRAWS,))
            # The score of log q has expectation 0; without it the gradient is free of noise if q is the posterior.
            elbo = (vae.log_joint_of(z, batch) - path_log_prob(q, z)).mean(0)
            (gradient,) = torch.autograd.grad(-elbo.sum(), raw)
        raw.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
    return raw.detach()


def _log_weights(
    vae: LatentVariableModel,
    batch: Batch,
    posteriors: tuple[TorchDistribution, TorchDistribution],
    num_samples: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Returns log weights of two posteriors at common random numbers, shape ``(S, B)`` each, in float64."""
    at_once = max(1, rows_at_once(vae, _ROWS) // batch.size)
    columns: tuple[list[Tensor], list[Tensor]] = ([], [])
    for done in range(0, num_samples, at_once):
        shape = (min(at_once, num_samples - done),)
        for q, column in zip(posteriors, columns, strict=True):
            with isolated(seed, f"draws from {done}"):
                z = q.rsample(shape)
            column.append((vae.log_joint_of(z, batch) - q.log_prob(z)).double())
    return torch.cat(columns[0]), torch.cat(columns[1])


def _columns(best: Tensor, amortized: Tensor) -> dict[str, Tensor]:
    """Returns values and standard errors of each datum from the log weights of q* and q, shape ``(S, B)``."""
    shift = best.amax(0)
    w = (best - shift).exp()
    mean = w.mean(0)
    influence = w / mean  # the influence of each draw on the log of the mean

    def error(terms: Tensor) -> Tensor:
        return terms.std(0) / math.sqrt(len(terms))

    return {
        "log_marginal": shift + mean.log(),
        "best_elbo": best.mean(0),
        "elbo": amortized.mean(0),
        "log_marginal error": error(influence),
        "best_elbo error": error(best),
        "elbo error": error(amortized),
        "approximation error": error(influence - best),
        "amortization error": error(best - amortized),
        "total error": error(influence - amortized),
        "pareto_k": pareto_k(best),
        "effective_sample_size": w.sum(0).square() / w.square().sum(0),
    }


def _assembled(columns: dict[str, Tensor], log_marginal: Estimate | None, **settings: int) -> InferenceGap:
    def estimate(name: str, pointwise: Tensor, **diagnostics: Any) -> Estimate:
        return Estimate.of(pointwise, columns[f"{name} error"], None, **settings, **diagnostics)

    best, elbo = columns["best_elbo"], columns["elbo"]
    weights = {name: columns[name] for name in ("pareto_k", "effective_sample_size")}
    if log_marginal is None:
        log_marginal = estimate("log_marginal", columns["log_marginal"], **weights)
    else:  # from independent draws
        pointwise_error = log_marginal.diagnostics["pointwise_error"]
        for gap, bound in (("approximation", "best_elbo"), ("total", "elbo")):
            columns[f"{gap} error"] = torch.hypot(pointwise_error, columns[f"{bound} error"])
    search = {name: columns[name] for name in ("converged", "runs", "last_gain")}
    return InferenceGap(
        log_marginal=log_marginal,
        best_elbo=estimate("best_elbo", best, **search),
        elbo=estimate("elbo", elbo),
        approximation=estimate("approximation", log_marginal.pointwise - best, **weights),
        amortization=estimate("amortization", best - elbo),
        total=estimate("total", log_marginal.pointwise - elbo),
    )
