r"""Importance-sampled log p(x), the ELBO, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.pareto import pareto_k
from pyro_vae.modes import evaluating, isolated
from pyro_vae.progress import tracked
from pyro_vae.vae import VAE

# How many particles (samples x data) are decoded at once: bounds the memory at this many rows of x.
_ROWS = 20_000


@torch.no_grad()
def log_marginal(
    vae: VAE, data: Tensor | Batch, num_samples: int = 1000, *, seed: int = 0, progress: bool = False
) -> Estimate:
    r"""Returns the importance-sampling estimate of log p(x).

    .. math:: \log \hat p(x) = \log \frac{1}{S} \sum_s \frac{p(x, z_s)}{q(z_s|x)}, \qquad z_s \sim q(z|x)

    In expectation a lower bound, which rises with S. Where a datum's Pareto k-hat is above 0.7 its weights have so
    heavy a tail that S samples do not tell log p(x), nor the error of its estimate.

    Arguments:
        vae: The VAE; evaluated in evaluation mode, whatever its mode.
        data: Shape ``(N, *event_shape)``, or a `Batch`. Any N: evaluated in bounded memory.
        num_samples: S, for each datum.
        seed: Of the draws; the global random state is left as it is.
        progress: Whether to show a progress bar.

    Returns:
        Nats per datum, with ``pareto_k`` and ``effective_sample_size`` of each datum.

    Raises:
        InputError: Where ``num_samples`` is below 2 or the data do not fit the VAE.

    Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015, equation 8; Vehtari,
    Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", 2024.
    """
    if not isinstance(num_samples, int) or num_samples < 2:
        raise InputError(f"log_marginal: `num_samples` is an integer of at least 2, got `{num_samples!r}`.")
    columns: dict[str, list[Tensor]] = {"value": [], "error": [], "pareto_k": [], "effective_sample_size": []}
    for log_w in _log_weights(vae, data, num_samples, seed, "log p(x)" if progress else None):
        shift = log_w.amax(0)
        w = (log_w - shift).exp()
        mean = w.mean(0)
        columns["value"].append(shift + mean.log())
        columns["error"].append(w.std(0) / (mean * math.sqrt(num_samples)))
        columns["effective_sample_size"].append(w.sum(0).square() / w.square().sum(0))
        columns["pareto_k"].append(pareto_k(log_w))
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    value, error = joined.pop("value"), joined.pop("error")
    return Estimate.of(value, error, num_samples=num_samples, seed=seed, **joined)


@torch.no_grad()
def elbo(vae: VAE, data: Tensor | Batch, num_samples: int = 10, *, seed: int = 0, progress: bool = False) -> Estimate:
    r"""Returns the Monte Carlo estimate of the ELBO, :math:`E_q[\log p(x, z) - \log q(z|x)]`.

    Arguments:
        vae: The VAE; evaluated in evaluation mode, whatever its mode.
        data: Shape ``(N, *event_shape)``, or a `Batch`.
        num_samples: Draws of z for each datum; with one, the standard error is nan.
        seed: Of the draws; the global random state is left as it is.
        progress: Whether to show a progress bar.

    Returns:
        Nats per datum.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, equation 6.
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"elbo: `num_samples` is a positive integer, got `{num_samples!r}`.")
    values, errors = [], []
    for log_w in _log_weights(vae, data, num_samples, seed, "ELBO" if progress else None):
        values.append(log_w.mean(0))
        unknown = torch.full_like(log_w[0], math.nan)  # one draw tells nothing about its own spread
        errors.append(log_w.std(0) / math.sqrt(num_samples) if num_samples > 1 else unknown)
    return Estimate.of(torch.cat(values), torch.cat(errors), num_samples=num_samples, seed=seed)


def _log_weights(vae: VAE, data: Tensor | Batch, num_samples: int, seed: int, progress: str | None) -> Iterator[Tensor]:
    """Yields log weights of shape ``(S, data of the chunk)`` in float64, chunk after chunk of the data."""
    batch = vae.check(data)
    size = max(1, min(batch.size, _ROWS // min(num_samples, 100)))
    at_once = max(1, min(num_samples, _ROWS // size))
    with evaluating(vae), isolated(seed, "evaluation"):
        for start in tracked(range(0, batch.size, size), progress):
            part = batch.select(slice(start, start + size)).to(vae.device, vae.dtype)
            draws = [min(at_once, num_samples - done) for done in range(0, num_samples, at_once)]
            yield torch.cat([vae.log_weights(part, k).double() for k in draws])
