r"""What the latents know of the data: rate and distortion, mutual information, and the aggregate posterior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.batch import Batch, DataLike
from pyro_vae.distributions.kl import analytic_kl
from pyro_vae.distributions.moments import centre, spread
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.vae import VAE

# How many particles (samples x data) are decoded at once, and how many pairs of a particle and a datum compared.
_ROWS, _PAIRS = 20_000, 200_000
# How many data are encoded at once.
_DATA = 500


@dataclass(frozen=True)
class RateDistortion:
    """Where a VAE lies between compressing the data and keeping them.

    Attributes:
        rate: KL(q(z|x) || p(z)), what it costs to send z; exact where it has a closed form.
        distortion: -E_q[log p(x|z)], what it costs to send x given z.
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
        mean: Of each latent dimension under q(z), shape ``latent_shape``.
        variance: Likewise; None where q(z|x) has none.
        active_share: Share of that variance which is between the data rather than within q(z|x), between 0 (the
            dimension tells nothing of x) and 1; None where q(z|x) has no variance.
        mutual_information: See `mutual_information`.
        marginal_kl: KL(q(z) || p(z)). Its pointwise values are the parts of the data in it.
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


@torch.no_grad()
def rate_distortion(
    vae: VAE, data: DataLike, num_samples: int = 10, *, seed: int = 0, progress: bool = False
) -> RateDistortion:
    r"""Returns the two parts of the ELBO, which is minus their sum.

    .. math:: R = E_x \mathrm{KL}(q(z|x) \| p(z)), \qquad D = -E_x E_{q(z|x)} \log p(x|z), \qquad
        \mathcal{L} = -(R + D)

    The rate is exact where it has a closed form, else from the distortion's draws. Models of the same ELBO differ in
    how they divide it: at rate 0 the latents are ignored.

    Arguments:
        vae: The VAE; evaluated in evaluation mode, whatever its mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Any N, in bounded memory.
        num_samples: Draws of z for each datum; with one, the standard errors of what is sampled are nan.
        seed: Of the draws; the global random state is left as it is.
        progress: Whether to show a progress bar.

    Returns:
        Nats per datum.

    Raises:
        InputError: Where ``num_samples`` is not a positive integer or the data do not fit the VAE.

    Reference: Alemi, Poole, Fischer, Dillon, Saurous and Murphy, "Fixing a broken ELBO", 2018, equations 3 to 5.
    """
    _check("rate_distortion", num_samples)
    rate, distortion = [], []
    with evaluating(vae), isolated(seed, "information"):
        for part in _parts(vae, evaluated("rate_distortion", vae, data), "rate and distortion" if progress else None):
            q, p = vae.posterior_given(part), vae.prior_given(part)
            sampled, lost = [], []
            for size in _blocks(num_samples, max(1, _ROWS // part.size)):
                z = q.sample((size,))
                sampled.append(q.log_prob(z) - p.log_prob(z))
                lost.append(-vae.log_likelihood_of(z, part))
            distortion.append(_summary(torch.cat(lost)))
            try:
                exact = analytic_kl(q, p)
                rate.append((exact, torch.zeros_like(exact)))
            except InputError:
                rate.append(_summary(torch.cat(sampled)))
    return RateDistortion(*(_estimate(column, num_samples, seed) for column in (rate, distortion)))


@torch.no_grad()
def mutual_information(
    vae: VAE, data: DataLike, num_samples: int = 10, *, seed: int = 0, progress: bool = False
) -> Estimate:
    r"""Returns how much the latents tell of which datum they belong to.

    .. math:: I_q(x; z) = \frac{1}{N} \sum_n \mathrm{KL}(q(z|x_n) \| q(z)), \qquad
        q(z) = \frac{1}{N} \sum_n q(z|x_n)

    Between 0 (posterior collapse) and the rate, and never above log N: with data that the latents tell apart it is
    log N, whatever the population's value. The mixture over the N data is exact, at a cost of N^2 densities for each
    draw.

    Arguments:
        vae: The VAE; evaluated in evaluation mode, whatever its mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes; memory is bounded, time grows with N^2.
        num_samples: Draws of z for each datum; with one, the standard error is nan.
        seed: Of the draws; the global random state is left as it is.
        progress: Whether to show a progress bar.

    Returns:
        Nats per datum.

    Raises:
        InputError: Where ``num_samples`` is not a positive integer or the data do not fit the VAE.

    Reference: Hoffman and Johnson, "ELBO surgery: yet another way to carve up the variational evidence lower bound",
    2016, section 2.
    """
    _check("mutual_information", num_samples)
    columns = [
        _summary(log_q - log_mixture) for log_q, log_mixture, _ in _terms(vae, data, num_samples, seed, progress)
    ]
    return _estimate(columns, num_samples, seed)


@torch.no_grad()
def aggregate_posterior(
    vae: VAE, data: DataLike, num_samples: int = 10, *, seed: int = 0, progress: bool = False
) -> AggregatePosterior:
    r"""Returns what the posteriors of all data together look like, and how far they are from the prior.

    .. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z|x_n) \| p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \| p(z))

    The last term is what a better prior could save. A VAE generates well from its prior where it is small; it bears
    the bias of `mutual_information` with the opposite sign.

    Arguments:
        vae: The VAE, without context; evaluated in evaluation mode, whatever its mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes; memory is bounded, time grows with N^2.
        num_samples: Draws of z for each datum; with one, the standard errors are nan.
        seed: Of the draws; the global random state is left as it is. The same as in `mutual_information` is the same
            draws.
        progress: Whether to show a progress bar.

    Returns:
        Nats per datum.

    Raises:
        InputError: Where ``num_samples`` is not a positive integer, the data do not fit the VAE, or its prior depends
            on a context.

    Reference: Hoffman and Johnson, "ELBO surgery: yet another way to carve up the variational evidence lower bound",
    2016, section 2.
    """
    _check("aggregate_posterior", num_samples)
    if vae.context_features:
        raise InputError(
            "aggregate_posterior: the prior of this VAE depends on a context, so that there is no one prior to compare "
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


def _parts(vae: VAE, batch: Batch, title: str | None = None) -> Iterator[Batch]:
    """The data, part after part, on the VAE's device."""
    for start in tracked(range(0, batch.size, _DATA), title):
        yield batch.select(slice(start, start + _DATA)).to(vae.device, vae.dtype)


def _blocks(total: int, largest: int) -> Iterator[int]:
    """Sizes of blocks that add up to ``total``."""
    for done in range(0, total, largest):
        yield min(largest, total - done)


def _terms(
    vae: VAE, data: DataLike, num_samples: int, seed: int, progress: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """log q(z|x), log q(z) and log p(z) at draws from q(z|x), shape ``(S, part of the data)`` each, in float64."""
    batch = evaluated("aggregate_posterior", vae, data)
    with evaluating(vae), isolated(seed, "information"):
        posteriors = [vae.posterior_given(part) for part in _parts(vae, batch)]
        parts = _parts(vae, batch, "aggregate posterior" if progress else None)
        for part, q in zip(parts, posteriors, strict=True):
            p = vae.prior_given(part)
            columns = []
            for size in _blocks(num_samples, max(1, _ROWS // part.size)):
                z = q.sample((size,))
                mixture = _log_mixture(posteriors, z.flatten(0, 1)) - math.log(batch.size)
                columns.append((q.log_prob(z).double(), mixture.reshape(size, part.size), p.log_prob(z).double()))
            log_q, log_mixture, log_p = (torch.cat(column) for column in zip(*columns, strict=True))
            yield log_q, log_mixture, log_p


def _log_mixture(posteriors: list[TorchDistribution], z: Tensor) -> Tensor:
    """Log of the sum of all posteriors' densities at z of shape ``(R, *latent_shape)``, shape ``(R,)``, in float64."""
    values = []
    for rows in z.split(max(1, _PAIRS // _DATA)):
        sums = [q.log_prob(rows.unsqueeze(1)).double().logsumexp(1) for q in posteriors]
        values.append(torch.stack(sums).logsumexp(0))
    return torch.cat(values)


def _moments(vae: VAE, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mean and variance of the latents over all data, and the share of the variance that is between the data."""
    with evaluating(vae):
        posteriors = [vae.posterior_given(part) for part in _parts(vae, batch)]
    means = torch.cat([centre(q) for q in posteriors]).to(vae.dtype)
    spreads = [spread(q) for q in posteriors]
    mean, between = means.mean(0), means.var(0, correction=0)
    known = [each for each in spreads if each is not None]
    if len(known) < len(spreads):
        return mean, None, None
    variance = between + torch.cat(known).square().mean(0)
    return mean, variance, between / variance


def _summary(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over draws, shape ``(S, B)``, and its standard error."""
    terms = terms.double()
    value = terms.mean(0)
    unknown = torch.full_like(value, math.nan)  # one draw tells nothing about its own spread
    return value, terms.std(0) / math.sqrt(len(terms)) if len(terms) > 1 else unknown


def _estimate(columns: list[tuple[Tensor, Tensor]], num_samples: int, seed: int) -> Estimate:
    values, errors = (torch.cat(column) for column in zip(*columns, strict=True))
    return Estimate.of(values, errors, num_samples=num_samples, seed=seed)
