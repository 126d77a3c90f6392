r"""Activity and KL divergence of the latent dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.batch import Batch, DataLike
from pyro_vae.distributions.kl import SiteBySite, analytic_kl, factors
from pyro_vae.distributions.moments import centre_and_error
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated, of_a_vae
from pyro_vae.evaluation.intervals import finite_or_none
from pyro_vae.evaluation.prior_at_draws import PriorAtDraws
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel
from pyro_vae.vae.part import blocks_of

_CHUNK = 10_000


@of_a_vae
@torch.no_grad()
def posterior_means(vae: LatentVariableModel, data: DataLike) -> Tensor:
    """Returns the mean of q(z|x) of each datum, shape ``(N, *latent_shape)``; see `centre`."""
    return _means_and_error("posterior_means", vae, data)[0]


@of_a_vae
@torch.no_grad()
def active_units(vae: LatentVariableModel, data: DataLike, threshold: float = 0.01) -> Tensor:
    r"""Returns which latent dimensions are active: :math:`\mathrm{Var}_x(E_{q(z|x)}[z_j])` above a threshold.

    Where the means are computed from draws (a flow, a hierarchy), the variance of their Monte Carlo error is
    subtracted.

    Arguments:
        vae: The VAE.
        data: At least two data, shape ``(N, *event_shape)``, in any form that `Batch.of` takes.
        threshold: Threshold of the variance over the data.

    Returns:
        Boolean, shape ``latent_shape``; its sum is the number of active units.

    Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015, section 5.2.
    """
    means, error = _means_and_error("active_units", vae, data)
    if len(means) < 2:
        raise InputError("active_units: a variance over data needs at least two of them, got 1.")
    return means.var(0) - error > threshold


def _means_and_error(caller: str, vae: LatentVariableModel, data: DataLike) -> tuple[Tensor, Tensor]:
    """Returns the means of q(z|x), ``(N, *latent_shape)``, and the variance of their Monte Carlo error over data."""
    batch = evaluated(caller, vae, data, weighted=True)
    means, errors = [], []
    with evaluating(vae):
        for start in range(0, batch.size, _CHUNK):
            part = batch.select(slice(start, start + _CHUNK)).to(vae.device, vae.dtype)
            mean, error = centre_and_error(vae.posterior_given(part))
            means.append(mean.to(vae.dtype))
            errors.append(means[-1].new_zeros(()).expand_as(mean) if error is None else error)
    return torch.cat(means), torch.cat(errors).mean(0)


@of_a_vae
@torch.no_grad()
def kl_per_dimension(
    vae: LatentVariableModel, data: DataLike, num_samples: int = 100, *, seed: int = 0
) -> Tensor | None:
    r"""Returns the mean over data of :math:`\mathrm{KL}(q(z_j|x) \| p(z_j))` for each latent dimension, in nats.

    It is exact if there is a closed form, else a Monte Carlo estimate.

    Arguments:
        vae: The VAE.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes.
        num_samples: Number of draws of z for each datum, if there is no closed form.
        seed: Seed of these draws.

    Returns:
        Shape ``latent_shape``; None if prior or posterior does not factorise over the dimensions.
    """
    batch = evaluated("kl_per_dimension", vae, data)
    total = torch.zeros(vae.latent_shape, device=vae.device, dtype=vae.dtype)
    with evaluating(vae), isolated(seed, "evaluation"):
        for start in range(0, batch.size, _CHUNK):
            part = batch.select(slice(start, start + _CHUNK)).to(vae.device, vae.dtype)
            q, p = factors(vae.posterior_given(part)), factors(vae.prior_given(part))
            if q is None or p is None:
                return None
            try:
                kl = kl_divergence(q, p.expand(q.batch_shape))
            except NotImplementedError:
                z = q.sample((num_samples,))
                kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
            total += kl.sum(0)
    return total / batch.size


@dataclass(frozen=True, eq=False)
class LatentKL:
    r"""The KL divergence of the posterior from the prior for each latent, as a mean over data.

    A latent is a single dimension, if prior and posterior factorise over the dimensions; else a layer of a hierarchy,
    or a site of a `Program`; else z as a whole.

    Attributes:
        names: Names of the latents: ``z0`` ..., the layers' names, or ``z``.
        value: KL divergence of each latent, in nats.
        analytic: Whether each was computed in closed form; the others are Monte Carlo estimates.
        standard_error: Monte Carlo standard error of each, given the data; 0 for closed forms.
    """

    names: tuple[str, ...]
    value: Tensor
    analytic: tuple[bool, ...]
    standard_error: Tensor

    def record(self) -> list[dict[str, Any]]:
        """Returns one mapping for each latent, ready for JSON."""
        rows = zip(self.names, self.value.tolist(), self.analytic, self.standard_error.tolist(), strict=True)
        return [
            {"latent": name, "kl": finite_or_none(v), "closed_form": exact, "standard_error": finite_or_none(e)}
            for name, v, exact, e in rows
        ]

    def __repr__(self) -> str:
        rows = (
            f"{name}: {v:.4g} nats" + (" (closed form)" if exact else f" ± {e:.2g} (Monte Carlo)")
            for name, v, exact, e in zip(
                self.names, self.value.tolist(), self.analytic, self.standard_error.tolist(), strict=True
            )
        )
        return f"LatentKL({', '.join(rows)})"


@of_a_vae
@torch.no_grad()
def latent_kl(vae: LatentVariableModel, data: DataLike, num_samples: int = 100, *, seed: int = 0) -> LatentKL:
    r"""Returns the KL of each latent, computed in closed form or by Monte Carlo.

    For a layer of a hierarchy it is :math:`E_q[\log q(z_l | z_{pa(l)}, x) - \log p(z_l | z_{pa(l)})]`; the sum over
    the layers is the KL of z.

    Arguments:
        vae: The VAE.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes.
        num_samples: Number of draws of z for each datum, if there is no closed form; at least 2.
        seed: Seed of these draws.

    Raises:
        InputError: If ``num_samples`` is below 2, or the data do not fit the VAE.
    """
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 2:
        raise InputError(f"latent_kl: `num_samples` is a whole number of at least 2, got `{num_samples!r}`.")
    batch = evaluated("latent_kl", vae, data)
    total = square = torch.zeros(())
    prior = PriorAtDraws(vae)
    names: tuple[str, ...] = ()
    sampled: Tensor | None = None
    with evaluating(vae), isolated(seed, "evaluation"):
        for start in range(0, batch.size, max(1, _CHUNK // num_samples)):
            part = batch.select(slice(start, start + max(1, _CHUNK // num_samples))).to(vae.device, vae.dtype)
            names, value, error = _by_latent(prior, part, num_samples)
            total, square = total + value.double().sum(0), square + error.double().square().sum(0)
            with_error = (error > 0).any(0)
            sampled = with_error if sampled is None else sampled | with_error
    n, exact = batch.size, [] if sampled is None else (~sampled).tolist()
    return LatentKL(names, (total / n).cpu(), tuple(exact), (square.sqrt() / n).cpu())


def _by_latent(prior: PriorAtDraws, part: Batch, num_samples: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Returns names of the latents, their KL for each datum (B, n), and its standard error, 0 where it is exact."""
    posterior = q = prior.vae.posterior_given(part)
    p = prior.vae.prior_given(part)
    if isinstance(q, SiteBySite):
        each = q.kl_of_sites(p, posterior.sample((num_samples,)))
        return tuple(each), *_mean_and_error(torch.stack(list(each.values()), dim=-1))
    mine, its = factors(q), factors(p)
    if mine is not None and its is not None:
        q, p, names = mine, its, tuple(f"z{i}" for i in range(math.prod(q.event_shape)))
    elif blocks_of(q) and blocks_of(p):
        names = tuple(blocks_of(q))
    else:
        names = ("z",)
    try:
        value = analytic_kl(q, p)
        value = value.reshape(len(value), -1)
        return names, value, torch.zeros_like(value)
    except InputError:
        z = q.sample((num_samples,))
    if names == tuple(blocks_of(q)) and blocks_of(p):
        above, below = q.block_log_prob(z), p.block_log_prob(z)
        terms = torch.stack([above[name] - below[name] for name in names], dim=-1)
    elif q is posterior:
        terms = q.log_prob(z) - prior.log_prob(part, q, z)
    else:
        terms = q.log_prob(z) - p.log_prob(z)
    return names, *_mean_and_error(terms.reshape(*terms.shape[:2], -1))


def _mean_and_error(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard error over draws; terms that no draw changes are exact, without rounding."""
    fixed = (terms == terms[:1]).all(0)
    error = terms.std(0) / math.sqrt(len(terms))
    return torch.where(fixed, terms[0], terms.mean(0)), torch.where(fixed, 0.0, error)
