r"""Information in the latents about the data: rate and distortion, mutual information, aggregate posterior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.batch import Batch, DataLike
from pyro_vae.distributions.kl import SiteBySite, analytic_kl
from pyro_vae.distributions.moments import centre_and_error, spread
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated, of_a_vae, rows_at_once
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.prior_at_draws import PriorAtDraws
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Largest numbers of particles (samples x data) that are decoded, and of pairs (particle, datum) compared, at once.
_ROWS, _PAIRS = 20_000, 200_000
# Number of data that are encoded at once.
_DATA = 500


@dataclass(frozen=True)
class RateDistortion:
    """Rate and distortion: the compression of the data, and the loss by it.

    Attributes:
        rate: KL(q(z|x) || p(z)), the cost of sending z; exact if it has a closed form.
        distortion: -E_q[log p(x|z)], the cost of sending x given z.
    """

    rate: Estimate
    distortion: Estimate

    def __repr__(self) -> str:
        parts = (f"{name}={part.value:.4f} ± {part.standard_error:.4f}" for name, part in vars(self).items())
        return f"RateDistortion({', '.join(parts)}, {len(self.rate.pointwise)} data)"


@dataclass(frozen=True)
class AggregatePosterior:
    r"""The mixture of the data's posteriors, :math:`q(z) = \frac{1}{N} \sum_n q(z|x_n)`.

    Attributes:
        mean: Mean of each latent dimension under q(z), shape ``latent_shape``.
        variance: Variance of each latent dimension under q(z), shape ``latent_shape``; None if q(z|x) has no variance.
        active_share: Share of the variance that is between the data, not within q(z|x), from 0 (the dimension has no
            information about x) to 1; None if q(z|x) has no variance.
        mutual_information: See `mutual_information`.
        marginal_kl: KL(q(z) || p(z)). Its pointwise values are the contributions of the data.
        rate: KL(q(z|x) || p(z)) at the same draws: the sum of the two.
    """

    mean: Tensor
    variance: Tensor | None
    active_share: Tensor | None
    mutual_information: Estimate
    marginal_kl: Estimate
    rate: Estimate

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name}={part.value:.4f} ± {part.standard_error:.4f}"
            for name, part in (("mutual_information", self.mutual_information), ("marginal_kl", self.marginal_kl))
        )
        return f"AggregatePosterior({parts}, {len(self.rate.pointwise)} data)"


@of_a_vae
@torch.no_grad()
def rate_distortion(
    vae: LatentVariableModel, data: DataLike, num_samples: int = 10, *, seed: int = 0, progress: bool = False
) -> RateDistortion:
    r"""Returns rate and distortion; the ELBO is minus their sum.

    .. math:: R = E_x \mathrm{KL}(q(z|x) \| p(z)), \qquad D = -E_x E_{q(z|x)} \log p(x|z), \qquad
        \mathcal{L} = -(R + D)

    The rate is exact if it has a closed form, else it is estimated from the draws of the distortion. That of a
    `Program` is the sum of the sites' KL given the sites before, in closed form where there is one. Models of the
    same ELBO may divide it differently; at rate 0, the latents are ignored.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Memory is bounded for any N.
        num_samples: Number of draws of z for each datum; with one, the Monte Carlo standard errors are nan.
        seed: Seed of the draws; the global random state does not change.
        progress: Whether to show a progress bar.

    Returns:
        The two estimates, in nats per datum.

    Raises:
        InputError: If ``num_samples`` is not a positive integer or the data do not fit the VAE.

    Reference: Alemi, Poole, Fischer, Dillon, Saurous and Murphy, "Fixing a broken ELBO", 2018, equations 3 to 5.
    """
    _check("rate_distortion", num_samples)
    rate, distortion, prior = [], [], PriorAtDraws(vae)
    with evaluating(vae), isolated(seed, "information"):
        for part in _parts(vae, evaluated("rate_distortion", vae, data), "rate and distortion" if progress else None):
            q, p = vae.posterior_given(part), vae.prior_given(part)
            sampled, lost = [], []
            for size in _blocks(num_samples, max(1, rows_at_once(vae, _ROWS) // part.size)):
                z = q.sample((size,))
                sampled.append(q.kl(p, z) if isinstance(q, SiteBySite) else q.log_prob(z) - prior.log_prob(part, q, z))
                lost.append(-vae.log_likelihood_of(z, part))
            distortion.append(_summary(torch.cat(lost)))
            try:
                exact = analytic_kl(q, p)
                rate.append((exact, torch.zeros_like(exact)))
            except InputError:
                rate.append(_summary(torch.cat(sampled)))
    return RateDistortion(*(_estimate(column, num_samples, seed) for column in (rate, distortion)))


@of_a_vae
@torch.no_grad()
def mutual_information(
    vae: LatentVariableModel, data: DataLike, num_samples: int = 10, *, seed: int = 0, progress: bool = False
) -> Estimate:
    r"""Returns the mutual information between the latents and the index of the datum.

    .. math:: I_q(x; z) = \frac{1}{N} \sum_n \mathrm{KL}(q(z|x_n) \| q(z)), \qquad
        q(z) = \frac{1}{N} \sum_n q(z|x_n)

    It is between 0 (posterior collapse) and the rate, and at most log N. If the latents identify each datum, it is
    log N, whatever the value in the population. The mixture over the N data is exact; each draw needs N^2 densities.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Memory is bounded; time grows with N^2.
        num_samples: Number of draws of z for each datum; with one, the standard error is nan.
        seed: Seed of the draws; the global random state does not change.
        progress: Whether to show a progress bar.

    Returns:
        The estimate, in nats per datum.

    Raises:
        InputError: If ``num_samples`` is not a positive integer or the data do not fit the VAE.

    Reference: Hoffman and Johnson, "ELBO surgery: yet another way to carve up the variational evidence lower bound",
    2016, section 2.
    """
    _check("mutual_information", num_samples)
    columns = [
        _summary(log_q - log_mixture) for log_q, log_mixture, _ in _terms(vae, data, num_samples, seed, progress)
    ]
    return _estimate(columns, num_samples, seed)


@of_a_vae
@torch.no_grad()
def aggregate_posterior(
    vae: LatentVariableModel, data: DataLike, num_samples: int = 10, *, seed: int = 0, progress: bool = False
) -> AggregatePosterior:
    r"""Returns the mixture of the data's posteriors, and its KL divergence from the prior.

    .. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z|x_n) \| p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \| p(z))

    A better prior can save at most the last term. If it is small, draws from the prior give good data. It has the
    bias of `mutual_information`, with the opposite sign.

    Arguments:
        vae: The VAE, without context; evaluated in evaluation mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Memory is bounded; time grows with N^2.
        num_samples: Number of draws of z for each datum; with one, the standard errors are nan.
        seed: Seed of the draws, which are those of `mutual_information` with the same seed; the global random state
            does not change.
        progress: Whether to show a progress bar.

    Returns:
        Moments of the mixture, and estimates in nats per datum.

    Raises:
        InputError: If ``num_samples`` is not a positive integer, the data do not fit the VAE, or its prior depends on
            a context.

    Reference: Hoffman and Johnson, "ELBO surgery: yet another way to carve up the variational evidence lower bound",
    2016, section 2.
    """
    _check("aggregate_posterior", num_samples)
    if vae.context_features:
        raise InputError(
            "aggregate_posterior: the prior of this VAE depends on a context, so there is no single prior to compare "
            "q(z) with; use mutual_information, or rate_distortion for the rate."
        )
    information, marginal, rate = [], [], []
    for log_q, log_mixture, log_p in _terms(vae, data, num_samples, seed, progress):
        information.append(_summary(log_q - log_mixture))
        marginal.append(_summary(log_mixture - log_p))
        rate.append(_summary(log_q - log_p))
    moments = _moments(vae, evaluated("mutual_information", vae, data))
    return AggregatePosterior(*moments, *(_estimate(each, num_samples, seed) for each in (information, marginal, rate)))


def _check(caller: str, num_samples: int) -> None:
    if not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"{caller}: `num_samples` is a positive integer, got `{num_samples!r}`.")


def _parts(vae: LatentVariableModel, batch: Batch, title: str | None = None) -> Iterator[Batch]:
    """Yields the data in parts, on the VAE's device."""
    for start in tracked(range(0, batch.size, _DATA), title):
        yield batch.select(slice(start, start + _DATA)).to(vae.device, vae.dtype)


def _blocks(total: int, largest: int) -> Iterator[int]:
    """Yields sizes of blocks whose sum is ``total``."""
    for done in range(0, total, largest):
        yield min(largest, total - done)


def _terms(
    vae: LatentVariableModel, data: DataLike, num_samples: int, seed: int, progress: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields log q(z|x), log q(z) and log p(z) at draws from q(z|x), ``(S, part of the data)`` each, in float64."""
    batch = evaluated("aggregate_posterior", vae, data)
    with evaluating(vae), isolated(seed, "information"):
        posteriors = [vae.posterior_given(part) for part in _parts(vae, batch)]
        parts = _parts(vae, batch, "aggregate posterior" if progress else None)
        prior = PriorAtDraws(vae)
        for part, q in zip(parts, posteriors, strict=True):
            columns = []
            for size in _blocks(num_samples, max(1, rows_at_once(vae, _ROWS) // part.size)):
                z = q.sample((size,))
                mixture = _log_mixture(posteriors, q, z) - math.log(batch.size)
                log_p = prior.log_prob(part, q, z).double()
                columns.append((q.log_prob(z).double(), mixture.reshape(size, part.size), log_p))
            log_q, log_mixture, log_p = (torch.cat(column) for column in zip(*columns, strict=True))
            yield log_q, log_mixture, log_p


def _log_mixture(posteriors: list[TorchDistribution], origin: TorchDistribution, z: Tensor) -> Tensor:
    """Returns the log of the summed posterior densities at draws z, ``(S, B, *latent_shape)``, of the origin.

    Near the boundary of a support, z is rounded and u is not. So densities are computed at the u of the draw.

    Returns:
        Shape ``(S * B,)``, in float64.
    """
    drawn = z.flatten(0, 1).split(max(1, _PAIRS // _DATA))
    if isinstance(origin, Pushed) and all(origin.shares_bijection(q) for q in posteriors):
        drawn = origin.preimage(z).flatten(0, 1).split(max(1, _PAIRS // _DATA))
        log_densities = [q.log_prob_at for q in posteriors if isinstance(q, Pushed)]
    else:
        log_densities = [q.log_prob for q in posteriors]
    values = []
    for rows in drawn:
        sums = [log_density(rows.unsqueeze(1)).double().logsumexp(1) for log_density in log_densities]
        values.append(torch.stack(sums).logsumexp(0))
    return torch.cat(values)


def _moments(vae: LatentVariableModel, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns mean and variance of the latents over all data, and the share of the variance between the data."""
    with evaluating(vae):
        posteriors = [vae.posterior_given(part) for part in _parts(vae, batch)]
    centres, errors = zip(*(centre_and_error(q) for q in posteriors), strict=True)
    spreads = [spread(q) for q in posteriors]
    means = torch.cat(centres).to(vae.dtype)
    mean, between = means.mean(0), means.var(0, correction=0)
    drawn = [error for error in errors if error is not None]
    if drawn:  # the variance of means from draws contains that of their errors
        n = len(means)
        between = (between - (n - 1) / n * torch.cat(drawn).mean(0)).clamp_min(0)
    known = [each for each in spreads if each is not None]
    if len(known) < len(spreads):
        return mean, None, None
    variance = between + torch.cat(known).square().mean(0)
    return mean, variance, between / variance


def _summary(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean over draws of terms of shape ``(S, B)``, and its standard error."""
    terms = terms.double()
    value = terms.mean(0)
    unknown = torch.full_like(value, math.nan)  # a single draw gives no variance
    return value, terms.std(0) / math.sqrt(len(terms)) if len(terms) > 1 else unknown


def _estimate(columns: list[tuple[Tensor, Tensor]], num_samples: int, seed: int) -> Estimate:
    values, errors = (torch.cat(column) for column in zip(*columns, strict=True))
    return Estimate.of(values, errors, num_samples=num_samples, seed=seed)
