r"""The KL divergence of the posterior from the prior: in closed form, by latent dimension, or from draws."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from pyro_vae.errors import InputError
from pyro_vae.families import cells_of


def analytic_kl(q: Distribution, p: Distribution) -> Tensor:
    r"""Returns KL(q || p) in closed form, in nats.

    For diagonal Normals, written out:

    .. math:: \sum_j \log\frac{s_{p,j}}{s_{q,j}} + \frac{s_{q,j}^2 + (m_{q,j} - m_{p,j})^2}{2 s_{p,j}^2} - \frac{1}{2}

    which is :math:`-\frac12 \sum_j (1 + \log s_j^2 - m_j^2 - s_j^2)` at p = N(0, I); for other pairs
    `torch.distributions.kl_divergence`.

    Arguments:
        q: Batch shape ``(B,)``.
        p: Batch shape ``(B,)`` or ``()``, of the same event shape.

    Returns:
        Shape ``(B,)``.

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
        q: Batch shape ``(B,)``.
        p: Batch shape ``(B,)`` or ``()``.
        z: Draws from q, shape ``(K, B, *latent_shape)``.

    Returns:
        Shape ``(B,)``, in nats.
    """
    value = _closed_form(q, p)
    return (q.log_prob(z) - p.log_prob(z)).mean(0) if value is None else value


def kl_of_dimensions(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Returns the KL of each latent dimension, as `kl` of the whole, where q and p factorise over the dimensions.

    Arguments:
        q: Batch shape ``(B,)``.
        p: Batch shape ``(B,)`` or ``()``.
        z: Draws from q, shape ``(K, B, *latent_shape)``.

    Returns:
        Shape ``(B, *latent_shape)``, in nats.

    Raises:
        InputError: Where one of them does not factorise.
    """
    mine, its = factors(q), factors(p)
    if mine is None or its is None:
        which, whole = ("posterior", q) if mine is None else ("prior", p)
        raise InputError(
            f"the {which} `{_name(whole)}` does not factorise over the latent dimensions, so that they have no KL each."
        )
    return kl(mine, its, z)


def factors(distribution: Distribution) -> Distribution | None:
    """Returns the independent distributions of the dimensions; None where the distribution does not consist of such."""
    cells: Distribution = cells_of(distribution)
    return cells if cells.event_shape == () else None


def _closed_form(q: Distribution, p: Distribution) -> Tensor | None:
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


def _name(distribution: Distribution) -> str:
    name = type(distribution).__name__
    base = getattr(distribution, "base_dist", None)
    return name if base is None else f"{name}({_name(base)})"
