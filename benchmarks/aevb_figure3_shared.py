r"""log p(x) of all data by importance sampling from one proposal for few latents: the reference for other estimators.

The decoder is evaluated once for each draw of z, and the draw is weighted for every datum. For Bernoulli pixels this is
a matrix product: log p(x|z) = x' l(z) - sum softplus l(z), with the decoder's logits l(z). So a million draws of z for
each of 2,000 data take a few minutes. The proposal is

.. math:: r(z) = \epsilon\, p(z) + (1 - \epsilon)\, h(z)

where h is a histogram of the summed posteriors of all data, from earlier rounds with fewer draws; the first round draws
from the prior. This is adaptive importance sampling (Cappé, Guillin, Marin and Robert, "Population Monte Carlo", 2004).
The estimate uses only the draws of the last round, whose weights p(x|z) p(z) / r(z) are unbiased for p(x). The log of
their mean is low for log p(x) by about ``bias``, if the effective sample size is large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, softplus

from pyro_vae import VAE
from pyro_vae.evaluation import Estimate
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated

LATENTS = 3  # dimensions of the histogram
REACH, CELLS = 5.0, 100  # the histogram has CELLS cells in each dimension, from -REACH to REACH
OF_PRIOR = 0.2  # epsilon
BLOCK = 4_096  # draws that are evaluated at once


@dataclass(frozen=True)
class Histogram:
    """A density on cells of equal size, mixed with the prior N(0, I).

    Attributes:
        mass: Probability of each cell, shape ``(CELLS, CELLS, CELLS)``, with sum 1; None for the prior alone.
    """

    mass: Tensor | None = None

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns draws, shape ``(size, 3)``, and their log p(z) / r(z)."""
        z = torch.randn(size, LATENTS)
        if self.mass is not None:
            width = 2 * REACH / CELLS
            chosen = torch.multinomial(self.mass.flatten(), size, replacement=True)
            cell = torch.stack(torch.unravel_index(chosen, self.mass.shape), 1)
            within = (cell + torch.rand(size, LATENTS)) * width - REACH
            z = torch.where(torch.rand(size, 1) < OF_PRIOR, z, within)
        return z, self.log_ratio(z)

    def log_ratio(self, z: Tensor) -> Tensor:
        """Returns log p(z) / r(z)."""
        if self.mass is None:
            return torch.zeros(len(z))
        log_prior = -0.5 * z.square().sum(1) - 0.5 * LATENTS * math.log(2 * math.pi)
        cell, inside = cells(z)
        density = self.mass[cell.unbind(1)] * (CELLS / (2 * REACH)) ** LATENTS * inside
        return -(OF_PRIOR + (1 - OF_PRIOR) * density * (-log_prior).exp()).log()


def cells(z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cell of each draw, shape ``(size, 3)``, and whether the draw is inside the histogram."""
    at = ((z + REACH) * (CELLS / (2 * REACH))).floor().long()
    return at.clamp(0, CELLS - 1), ((at >= 0) & (at < CELLS)).all(1)


@torch.no_grad()
def shared_importance_sampling(
    vae: VAE, x: Tensor, draws: int, *, rounds: int = 5, pilot_draws: int = 2**16, seed: int = 0
) -> Estimate:
    """Returns the estimate of log p(x), in nats per datum.

    Arguments:
        vae: VAE with three latents, the prior N(0, I) and Bernoulli pixels.
        x: Data in [0, 1], shape ``(N, pixels)``.
        draws: Number of draws of z in the last round.
        rounds: Number of earlier rounds.
        pilot_draws: Number of draws in each earlier round; memory holds this many numbers for each datum.
        seed: Seed of the noise.

    Returns:
        The estimate, with the ``effective_sample_size`` and the ``bias`` of each datum.
    """
    proposal = Histogram()
    with evaluating(vae), isolated(seed, "shared importance sampling"):
        for _ in range(rounds):
            z, log_ratio = proposal.draw(pilot_draws)
            log_weights = torch.cat(list(likelihoods(vae, x, z)), 1) + log_ratio.to(x)
            proposal = Histogram(smoothed(z, log_weights.softmax(1).mean(0).cpu()))
        sums = Sums(len(x))
        for start in range(0, draws, BLOCK):
            z, log_ratio = proposal.draw(min(BLOCK, draws - start))
            for log_likelihood in likelihoods(vae, x, z):
                sums.add((log_likelihood + log_ratio.to(x)).double().cpu())
    mean, error, size = sums.result(draws)
    about = {"effective_sample_size": size, "bias": error.square() / 2}
    return Estimate.of(mean, error, None, method="shared importance sampling", draws=draws, seed=seed, **about)


def likelihoods(vae: VAE, x: Tensor, z: Tensor) -> Iterator[Tensor]:
    """Yields log p(x|z), shape ``(N, draws)``, for blocks of the draws."""
    for part in z.split(BLOCK):
        logits = vae.decode(part.to(x)).base_dist.logits
        yield x @ logits.T - softplus(logits).sum(1)


def smoothed(z: Tensor, weights: Tensor) -> Tensor:
    """Returns the mass of each cell from weighted draws, smoothed over neighbouring cells."""
    cell, inside = cells(z)
    flat = (cell * torch.tensor([CELLS**2, CELLS, 1])).sum(1)
    mass = torch.zeros(CELLS**LATENTS).index_add_(0, flat, weights.float() * inside).reshape(1, 1, CELLS, CELLS, CELLS)
    near, far = (_moving_average(mass, width) for width in (3, 7))
    spread = (0.5 * near + 0.3 * far + 0.2 * mass).squeeze()
    return spread / spread.sum()


def _moving_average(mass: Tensor, width: int) -> Tensor:
    """Returns the mean over neighbouring cells, one dimension after another, which is faster than all at once."""
    for dimension in range(LATENTS):
        window = [width if d == dimension else 1 for d in range(LATENTS)]
        mass = avg_pool3d(mass, window, 1, [size // 2 for size in window])
    return mass


class Sums:
    """Sums of weights and of squared weights for each datum, from blocks of log weights."""

    def __init__(self, data: int) -> None:
        self.first = self.second = torch.full((data,), -math.inf, dtype=torch.float64)

    def add(self, log_weights: Tensor) -> None:
        self.first = torch.logaddexp(self.first, log_weights.logsumexp(1))
        self.second = torch.logaddexp(self.second, (2 * log_weights).logsumexp(1))

    def result(self, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the log of the mean weight, its standard error, and the effective sample size."""
        size = (2 * self.first - self.second).exp()
        return self.first - math.log(draws), (1 / size - 1 / draws).clamp(min=0).sqrt(), size
