r"""An estimate of log p(x) from a density that is fitted to samples of the exact posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import pyro
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_vae.batch import DataLike
from pyro_vae.engine.compilation.cost import Mode
from pyro_vae.engine.compilation.routine import enabled
from pyro_vae.errors import InputError
from pyro_vae.evaluation.annealed import check_among, check_at_least, parts
from pyro_vae.evaluation.data import evaluated, of_a_vae
from pyro_vae.evaluation.estimate import Estimate, LogMean
from pyro_vae.inference.hmc import FIRST_STEP, TARGET_ACCEPTANCE, Start, Tempered, adapted, jittered
from pyro_vae.inference.latents import Latents
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

_CALLER = "posterior_density_estimator"
# With this many latent dimensions or more, the estimator is not reliable.
_DIMENSIONS = 5
# Least number of samples for each latent dimension, for the fit of the covariance.
_SAMPLES = 10
# The burn-in's values of beta rise as cubes: close together near 0, where the posterior narrows fastest.
_POWER = 3
# Chains are resampled if their effective share is below this.
_LEAST = 0.5


@of_a_vae
def posterior_density_estimator(
    vae: LatentVariableModel,
    data: DataLike,
    num_samples: int = 1000,
    *,
    chains: int = 50,
    burn_in: int = 200,
    num_leapfrog: int = 10,
    start: Start = "prior",
    annealed: bool = True,
    seed: int = 0,
    compile: Mode = "auto",
    progress: bool = False,
) -> Estimate:
    r"""Returns the estimate of log p(x) from a density q that is fitted to samples of the exact posterior.

    .. math:: \log \hat p(x) = -\log \frac{1}{S} \sum_s \frac{q(u_s)}{p(x, u_s)}, \qquad u_s \sim p(u|x)

    q is a Normal with full covariance for each datum, in the unconstrained space of the prior's support. The samples
    come from Hamiltonian Monte Carlo, with separate chains for q and for the mean. The mean is unbiased for 1/p(x),
    whatever q is; so the estimate is in expectation too high. If q is the posterior, it is exact.

    The chains begin at draws from the prior and are annealed to the posterior in the first half of the burn-in.
    During the annealing, the chains of a datum are resampled by their weights whenever few of them dominate, and once
    at its end; a chain that stays in a minor mode would make the estimate much too low. The paper does not say where
    its chains begin; vary ``start`` and ``annealed`` to see their effect on the estimate.

    The estimator is for fewer than 5 latent dimensions. If the posterior's tails are lighter than a Normal's, the
    terms have an infinite variance. The estimate does not show whether all chains miss a mode. If the mean of one
    chain dominates (an effective sample size below 2), the error is infinite.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Memory is bounded for any N.
        num_samples: S, the number of samples of each datum for q, and again for the mean; rounded up to a multiple of
            ``chains``.
        chains: C, the number of chains for the mean, at least 2; q has as many chains again. The error is the one
            between the chains' means, so it is valid for autocorrelated samples.
        burn_in: Number of transitions before the first sample. The step sizes adapt in them, and are fixed afterwards.
            The second half makes resampled chains independent of each other.
        num_leapfrog: Number of leapfrog steps of each transition.
        start: Start of the chains: ``"prior"``, or ``"encoder"`` for draws from q(z|x).
        annealed: Whether the chains are annealed from there; if not, all transitions are those of the posterior.
        seed: Seed of the noise; the global random state does not change.
        compile: Whether leapfrog steps run as a compiled program; see `annealed_importance_sampling`.
        progress: Whether to show a progress bar.

    Returns:
        The estimate, in nats per datum. Its diagnostics of each datum, shape ``(N,)``: ``acceptance``, the mean after
        the burn-in; ``effective_sample_size`` of the chains' C means; ``bias``, the relative variance of these / 2C,
        by which the estimate is too high in expectation (leading term).

    Raises:
        InputError: For five or more latent dimensions, discrete latents, an unknown start, or a number that is too
            small.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, appendix D; Del Moral, Doucet and Jasra,
    "Sequential Monte Carlo samplers", 2006, section 3 (annealing with resampling).

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)))
        >>> posterior_density_estimator(vae, torch.zeros(5, 6), 100, burn_in=20).pointwise.shape
        torch.Size([5])
    """
    given = {"num_samples": num_samples, "chains": chains, "burn_in": burn_in, "num_leapfrog": num_leapfrog}
    _check(vae, given)
    check_among(_CALLER, {"start": start}, {"start": get_args(Start)})
    batch = evaluated(_CALLER, vae, data)
    means, acceptances = [], []
    draws = -(-num_samples // chains)
    with torch.no_grad(), evaluating(vae), isolated(seed, "posterior density"), enabled(compile):
        for part, (similar, rest) in parts(batch.size, 2 * chains, vae):
            latents = Latents(vae, batch.select(part).to(vae.device, vae.dtype), _CALLER)
            title = f"HMC, data {part.start + 1} to {part.stop} of {batch.size}" if progress else None
            path = Tempered(latents, start)
            betas = [min(1.0, (2 * (i + 1) / burn_in) ** _POWER) if annealed else 1.0 for i in range(burn_in)]
            with path.expected((burn_in + draws) * similar, num_leapfrog, optional=rest):
                u, acceptance = _posterior_samples(path, chains, betas, draws, num_leapfrog, title)
            means.append(_log_mean_ratios(latents, u, chains))
            acceptances.append(acceptance)
    mean = LogMean.of(torch.cat(means, dim=1))
    return Estimate.of(
        -mean.value,
        mean.error.where(mean.effective_sample_size >= 2, math.inf),
        None,
        method="posterior density",
        **given,
        start=start,
        annealed=annealed,
        seed=seed,
        acceptance=torch.cat(acceptances).double().cpu(),
        effective_sample_size=mean.effective_sample_size.cpu(),
        bias=mean.bias.cpu(),
    )


def _check(vae: LatentVariableModel, given: dict[str, int]) -> None:
    check_at_least(_CALLER, given, {"num_samples": 1, "chains": 2, "burn_in": 1, "num_leapfrog": 1})
    size = Latents(vae, vae.probe_batch(), _CALLER).shape.numel()
    if size >= _DIMENSIONS:
        raise InputError(
            f"{_CALLER}: reliable only below {_DIMENSIONS} latent dimensions, but the VAE has {size}; use "
            "log_marginal if q(z|x) is good (a small Pareto k-hat), or annealed_importance_sampling."
        )
    if given["num_samples"] < _SAMPLES * size:
        raise InputError(
            f"{_CALLER}: `num_samples` is at least {_SAMPLES} for each latent dimension, here {_SAMPLES * size}, to "
            f"fit the covariance of a density; got {given['num_samples']}."
        )


def _posterior_samples(
    path: Tempered, chains: int, betas: Sequence[float], num_samples: int, num_leapfrog: int, title: str | None
) -> tuple[Tensor, Tensor]:
    """Returns samples of u from 2C chains, shape ``(num_samples, 2C, B, *shape)``, and each datum's acceptance.

    ``betas`` are those of the burn-in; if the first is 1, chains are not resampled. The step sizes adapt to the first
    C chains alone.
    """
    u = path.draw(2 * chains)
    path.latents.log_likelihood(u[:1])  # raises for data outside the likelihood's support; moves do not check
    with pyro.validation_enabled(False):
        ratio = path.log_ratio(u, path.log_base(u))
    log_weights, before, burn_in = torch.zeros_like(ratio), 0.0 if betas[0] < 1 else 1.0, len(betas)
    step = u.new_full((path.latents.batch.size,), FIRST_STEP)
    total, kept = torch.zeros_like(step), []
    for i in tracked(range(burn_in + num_samples), title):
        beta = betas[i] if i < burn_in else 1.0
        if beta > before:
            u, log_weights = _resampled(u, log_weights + (beta - before) * ratio, _LEAST if beta < 1 else 1.0)
            before = beta
        u, ratio, acceptance = path.transition(u, beta, jittered(step, u.shape[:2]), num_leapfrog)
        if i < burn_in:
            step = adapted(step, acceptance[:chains].mean(0), TARGET_ACCEPTANCE)
        else:
            total += acceptance.mean(0)
            kept.append(u)
    return torch.stack(kept), total / num_samples


def _resampled(u: Tensor, log_weights: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Returns chains and annealed weights, resampled for each datum whose effective share is below ``least``."""
    chains = len(u)
    share = log_weights.softmax(0)
    few = share.square().sum(0) * chains > 1 / least
    drawn = torch.multinomial(share.T, chains, replacement=True).T
    origin = torch.where(few, drawn, torch.arange(chains, device=u.device).unsqueeze(-1))
    shape = (*origin.shape, *(1 for _ in u.shape[2:]))
    return u.gather(0, origin.reshape(shape).expand_as(u)), torch.where(few, 0.0, log_weights)


def _log_mean_ratios(latents: Latents, u: Tensor, chains: int) -> Tensor:
    """Returns the log mean of q(u) / p(x, u) in each of the last C chains, ``(C, B)``; the first C chains fit q."""
    fitted = u[:, :chains].double().flatten(0, 1).flatten(2)  # (samples, B, dimensions)
    centred = fitted - fitted.mean(0)
    covariance = torch.einsum("sbi,sbj->bij", centred, centred) / (len(fitted) - 1)
    q = MultivariateNormal(fitted.mean(0), covariance, validate_args=False)
    with pyro.validation_enabled(False):
        terms = [q.log_prob(at.double().flatten(2)) - latents.log_joint(at).double() for at in u[:, chains:]]
    return torch.stack(terms).logsumexp(0) - math.log(len(terms))
