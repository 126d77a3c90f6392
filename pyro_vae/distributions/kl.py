r"""The KL divergence of the posterior from the prior: in closed form, by latent dimension, or from draws."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    Transform,
    TransformedDistribution,
    kl_divergence,
    register_kl,
)

from pyro_vae.distributions.pushed import Pushed
from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError


@runtime_checkable
class SiteBySite(Protocol):
    """A joint distribution of several sites, whose KL is a sum over sites given the sites before."""

    def kl(self, p: Any, z: Tensor, *, sampled: bool = True) -> Tensor:
        """Returns the KL to p at draws z, shape ``(..., B)``; an error if it may not be sampled, and must be."""

    def kl_of_sites(self, p: Any, z: Tensor) -> dict[str, Tensor]:
        """Returns its terms, by site."""


def analytic_kl(q: Distribution, p: Distribution) -> Tensor:
    r"""Returns KL(q || p) in closed form, in nats.

    For diagonal Normals it is

    .. math:: \sum_j \log\frac{s_{p,j}}{s_{q,j}} + \frac{s_{q,j}^2 + (m_{q,j} - m_{p,j})^2}{2 s_{p,j}^2} - \frac{1}{2}

    which is :math:`-\frac12 \sum_j (1 + \log s_j^2 - m_j^2 - s_j^2)` at p = N(0, I). Other pairs
    use `torch.distributions.kl_divergence`; this module adds Normals with full or low-rank covariance against diagonal
    ones. If posterior and prior are made by the same transform (exp, with a LogNormal prior), the result is the KL
    between the distributions before the transform.

    Arguments:
        q: Posterior, batch shape ``(B,)``.
        p: Prior, batch shape ``(B,)`` or ``()``, of the same event shape.

    Returns:
        KL of each datum, shape ``(B,)``.

    Raises:
        InputError: Where no closed form is known.

    Example:
        >>> import pyro.distributions as dist
        >>> analytic_kl(dist.Normal(1.0, 1.0).expand([2]).to_event(1), dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        tensor(1.)
    """
    value = _closed_form(q, p)
    if value is None:
        raise InputError(
            f"AnalyticKL: KL({_name(q)} || {_name(p)}) has no closed form; use aevb, which samples it, or a pair such "
            "as Normal || Normal."
        )
    return value


def kl(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Returns KL(q || p) in closed form where there is one, else its unbiased Monte Carlo estimate.

    Arguments:
        q: Posterior, batch shape ``(B,)``.
        p: Prior, batch shape ``(B,)`` or ``()``.
        z: Draws from q, shape ``(K, B, *latent_shape)``.

    Returns:
        KL of each datum, shape ``(B,)``, in nats.
    """
    if isinstance(q, SiteBySite):
        return q.kl(p, z).mean(0)
    value = _closed_form(q, p)
    return (q.log_prob(z) - p.log_prob(z)).mean(0) if value is None else value


def require_closed_form(q: Distribution, p: Distribution, z: Tensor) -> None:
    """Raises an `InputError` if `kl` of such arguments samples.

    Arguments:
        q: Posterior, batch shape ``(B,)``.
        p: Prior, batch shape ``(B,)`` or ``()``.
        z: Draws from q, shape ``(K, B, *latent_shape)``.
    """
    if isinstance(q, SiteBySite):
        q.kl(p, z, sampled=False)
    else:
        analytic_kl(q, p)


def kl_of_dimensions(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Returns the KL of each latent dimension, computed as in `kl`; q and p must factorise over the dimensions.

    If q is a distribution of several sites, it returns that of each site.

    Arguments:
        q: Posterior, batch shape ``(B,)``.
        p: Prior, batch shape ``(B,)`` or ``()``.
        z: Draws from q, shape ``(K, B, *latent_shape)``.

    Returns:
        KL of each datum and dimension, shape ``(B, *latent_shape)``, in nats.

    Raises:
        InputError: If q or p does not factorise.
    """
    if isinstance(q, SiteBySite):
        return torch.stack(list(q.kl_of_sites(p, z).values()), dim=-1).mean(0)
    mine, its = factors(q), factors(p)
    if mine is None or its is None:
        which, whole = ("posterior", q) if mine is None else ("prior", p)
        raise InputError(
            f"the {which} `{_name(whole)}` does not factorise over the latent dimensions, so none has its own KL."
        )
    return kl(mine, its, z)


def factors(distribution: Distribution) -> Distribution | None:
    """Returns the independent distributions of the dimensions; None if the dimensions are dependent."""
    cells: Distribution = cells_of(distribution)
    return cells if cells.event_shape == () else None


def _closed_form(q: Distribution, p: Distribution) -> Tensor | None:
    if isinstance(q, Pushed) and (prior_of_u := _prior_of_u(q, p)) is not None:
        return _closed_form(q.base_dist, prior_of_u)
    mine, its = cells_of(q), cells_of(p)
    if isinstance(mine, Normal) and isinstance(its, Normal):
        terms = (
            its.scale.log()
            - mine.scale.log()
            + (mine.variance + (mine.loc - its.loc).square()) / (2 * its.variance)
            - 0.5
        )
        return terms.flatten(-len(q.event_shape)).sum(-1) if q.event_shape else terms
    try:
        return kl_divergence(q, p.expand(q.batch_shape))
    except NotImplementedError:
        return None


def _kl_of_pushed(q: Pushed, p: TorchDistribution) -> Tensor:
    """Returns the closed form for torch's registry of KL divergences, which Pyro's TraceMeanField_ELBO uses."""
    prior_of_u = _prior_of_u(q, p)
    value = None if prior_of_u is None else _closed_form(q.base_dist, prior_of_u)
    if value is None:
        raise NotImplementedError
    return value


register_kl(Pushed, Independent)(_kl_of_pushed)
register_kl(Pushed, TransformedDistribution)(_kl_of_pushed)


def _prior_of_u(q: Pushed, p: Distribution) -> Distribution | None:
    """Returns the prior of u if q and p are both distributions of T(u), with the same T; else None.

    A LogNormal, for example, is a distribution of exp(u). A bijection does not change the divergence:
    :math:`KL(T q \\| T p) = KL(q \\| p)`.
    """
    cells = cells_of(p)
    if not (isinstance(cells, TransformedDistribution) and len(cells.transforms) == 1):
        return None
    if _steps(q.transforms[0]) != _steps(cells.transforms[0]):
        return None
    event_dim = len(p.event_shape) - len(cells.event_shape)
    return Independent(cells.base_dist, event_dim) if event_dim else cells.base_dist


def _steps(transform: Transform) -> list[Transform]:
    """Returns the steps of a transform without identities; torch's transform onto positive numbers adds 0 to exp(u)."""
    base = getattr(transform, "base_transform", transform)
    steps = base.parts if isinstance(base, ComposeTransform) else [base]
    return [
        step
        for step in steps
        if not (
            isinstance(step, AffineTransform) and not isinstance(step.loc, Tensor) and (step.loc, step.scale) == (0, 1)
        )
    ]


def _kl_to_diagonal(q: MultivariateNormal | LowRankMultivariateNormal, p: TorchDistribution) -> Tensor:
    r"""KL of a Normal with dependent cells from one with independent cells: cross-entropy minus entropy.

    .. math:: \sum_j \left(\log s_{p,j} + \frac{\Sigma_{jj} + (m_j - m_{p,j})^2}{2 s_{p,j}^2}\right)
        + \frac{L}{2} \log 2\pi - H(q)
    """
    its = cells_of(p)
    if not isinstance(its, Normal) or len(p.event_shape) != 1:
        raise NotImplementedError
    distance = (q.variance + (q.loc - its.loc).square()) / (2 * its.variance)
    return (its.scale.log() + distance + math.log(2 * math.pi) / 2).sum(-1) - q.entropy()


register_kl(MultivariateNormal, Independent)(_kl_to_diagonal)
register_kl(LowRankMultivariateNormal, Independent)(_kl_to_diagonal)


def _kl_from_diagonal(q: TorchDistribution, p: MultivariateNormal | LowRankMultivariateNormal) -> Tensor:
    mine = cells_of(q)
    if not isinstance(mine, Normal) or len(q.event_shape) != 1:
        raise NotImplementedError
    return kl_divergence(MultivariateNormal(mine.loc, scale_tril=torch.diag_embed(mine.scale)), p)


register_kl(Independent, MultivariateNormal)(_kl_from_diagonal)
register_kl(Independent, LowRankMultivariateNormal)(_kl_from_diagonal)


def _name(distribution: Distribution) -> str:
    name = type(distribution).__name__
    base = getattr(distribution, "base_dist", None)
    return name if base is None else f"{name}({_name(base)})"
