r"""Simulation-based calibration: a test of location and spread of q(z|x), on data simulated from the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import of_a_vae, rows_at_once
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Largest number of draws of z in memory at once.
_ROWS = 20_000


@dataclass(frozen=True)
class Calibration:
    """Ranks of simulated latents among draws from q(z|x), with a band for their ECDF.

    Attributes:
        ranks: Number of draws below each simulated latent, integer, shape ``(n, L)``; 0 to ``num_draws``.
        num_draws: Number of draws of z for each simulated datum.
        points: Points of the ECDF: k / (num_draws + 1) for k = 1, ..., num_draws; shape ``(num_draws,)``.
        ecdf: Share of the ranks below k, shape ``(L, num_draws)``; for calibrated q its expectation is ``points``.
        lower: Lower end of the band, shape ``(num_draws,)``.
        upper: Upper end of the band, shape ``(num_draws,)``.
        level: Least probability that the whole ECDF of a calibrated dimension lies in the band.
    """

    ranks: Tensor
    num_draws: int
    points: Tensor
    ecdf: Tensor
    lower: Tensor
    upper: Tensor
    level: float

    @property
    def uniform(self) -> Tensor:
        """Whether each latent dimension's ECDF lies in the band everywhere, boolean, shape ``(L,)``."""
        return ((self.ecdf >= self.lower) & (self.ecdf <= self.upper)).all(-1)

    def __repr__(self) -> str:
        n, latent = self.ranks.shape
        inside = f"{int(self.uniform.sum())} of {latent} latent dimensions inside the band of level {self.level:g}"
        return f"Calibration({inside}, {n} data, {self.num_draws} draws)"


@of_a_vae
@torch.no_grad()
def simulation_based_calibration(
    vae: LatentVariableModel,
    n: int = 1000,
    num_draws: int = 99,
    *,
    level: float = 0.95,
    context: Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    r"""Returns the ranks of simulated latents among draws from q, with the ECDF of each latent dimension.

    .. math:: z \sim p(z), \quad x \sim p(x|z), \quad z_1, \dots, z_S \sim q(z|x), \qquad
        r_j = \#\{s : z_{s,j} < z_j\}

    If q(z|x) is the exact posterior, each rank is uniform on 0, ..., S; ties, as of discrete latents, are broken at
    random. Many ranks at both ends mean that q is too narrow; many in the middle, that it is too wide; many at one
    end, that it is shifted. Each dimension is tested separately, so raise ``level`` for many dimensions. The test
    uses data of the model, not real data; a q that ignores x and equals the prior passes too.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        n: Number of simulated data.
        num_draws: S, the number of draws of z for each datum.
        level: Least probability that the whole ECDF of a calibrated dimension lies in the band.
        context: Context of each datum, shape ``(n, C)``, for a model with a context.
        seed: Seed of the draws; the global random state does not change.
        progress: Whether to show a progress bar.

    Returns:
        The calibration, on the CPU, with flattened latent dimensions.

    Raises:
        InputError: If a number or the context does not fit.

    Reference: Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with
    simulation-based calibration", 2018, algorithm 1; Säilynoja, Bürkner and Vehtari, "Graphical test for discrete
    uniformity", 2022, section 2.
    """
    _check(vae, n, num_draws, level, context)
    ranks, size = [], max(1, rows_at_once(vae, _ROWS) // num_draws)
    with evaluating(vae), isolated(seed, "calibration"):
        for start in tracked(range(0, n, size), "calibration" if progress else None):
            m = min(size, n - start)
            ranks.append(_ranks(vae, m, num_draws, None if context is None else context[start : start + m]))
    joined = torch.cat(ranks)
    counts = torch.stack([column.bincount(minlength=num_draws + 1) for column in joined.T])
    lower, upper = (torch.from_numpy(ends / n) for ends in uniform_band(n, num_draws, level))
    points = torch.arange(1, num_draws + 1, dtype=torch.float64) / (num_draws + 1)
    ecdf = counts.cumsum(-1)[:, :-1].double() / n
    return Calibration(joined, num_draws, points, ecdf, lower, upper, level)


def _check(vae: LatentVariableModel, n: int, num_draws: int, level: float, context: Tensor | None) -> None:
    for name, value in (("n", n), ("num_draws", num_draws)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"simulation_based_calibration: `{name}` is a positive integer, got `{value!r}`.")
    if not 0 < level < 1:
        raise InputError(
            f"simulation_based_calibration: `level` is a probability between 0 and 1, such as 0.95, got `{level!r}`."
        )
    given = (n, 0) if context is None else tuple(context.shape)
    if given != (n, vae.context_features):
        raise InputError(
            f"simulation_based_calibration: needs a context of shape {(n, vae.context_features)}, one row for each "
            f"simulated datum; got {given}."
        )


def _ranks(vae: LatentVariableModel, n: int, num_draws: int, context: Tensor | None) -> Tensor:
    """Returns ranks of n simulated latents, shape ``(n, L)``."""
    z, dreams = vae.dreams(vae.blank(n, context))
    draws = vae.posterior_given(dreams).sample((num_draws,))
    below, equal = (draws < z).sum(0), (draws == z).sum(0)
    ranks = below + (torch.rand(equal.shape, device=equal.device, dtype=torch.float64) * (equal + 1)).long()
    return ranks.reshape(n, -1).cpu()


def uniform_band(n: int, num_draws: int, level: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    r"""Returns the simultaneous band of the ECDF of n independent ranks, uniform on 0, ..., num_draws.

    .. math:: P(\ell_k \le \#\{i : r_i < k\} \le u_k \text{ for } k = 1, \dots, S) \ge \text{level}

    At every k the ends are the same quantiles of Binomial(n, k / (S + 1)): the narrowest ones for which the inequality
    holds. Its left side is computed exactly, not simulated.

    Arguments:
        n: Number of ranks.
        num_draws: S, the largest rank.
        level: Level of the band, between 0 and 1.

    Returns:
        Lower and upper ends as counts, shape ``(num_draws,)``.

    Example:
        >>> uniform_band(10, 1, 0.95)
        (array([2]), array([8]))
    """
    from scipy.stats import binom  # half a second to import

    points = np.arange(1, num_draws + 1) / (num_draws + 1)

    def ends(tail: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # The upper end by symmetry: 1 - tail would round small tails away.
        lower = binom.ppf(tail, n, points).astype(np.int64)
        return lower, n - lower[::-1]

    narrowest, widest = np.log((1 - level) / 2), np.log((1 - level) / (4 * num_draws))
    for _ in range(40):
        middle = (narrowest + widest) / 2
        if coverage(n, *ends(float(np.exp(middle)))) >= level:
            widest = middle
        else:
            narrowest = middle
    return ends(float(np.exp(widest)))


def coverage(n: int, lower: NDArray[np.int64], upper: NDArray[np.int64]) -> float:
    """Returns the probability that the counts of n uniform ranks below 1, 2, ... all lie between given ends.

    The ranks' counts have the law of independent Poisson variables, given that their sum is n.

    Arguments:
        n: Number of ranks.
        lower: Lower end of the count of ranks below k, not decreasing in k, shape ``(S,)``.
        upper: Upper end of the count of ranks below k, not decreasing in k, shape ``(S,)``.
    """
    from scipy.stats import poisson

    step = poisson.pmf(np.arange(n + 1), n / (len(lower) + 1))
    first, inside = 0, np.ones(1)  # the probabilities of the counts first, first + 1, ...
    for low, high in zip([*lower, n], [*upper, n], strict=True):
        inside = np.convolve(inside, step[: high - first + 1])[low - first : high - first + 1]
        first = low
    return float(inside.sum() / poisson.pmf(n, n))
