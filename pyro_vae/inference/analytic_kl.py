r"""The hand-derived estimator: the ELBO with its KL in closed form, in plain torch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.families import cells_of
from pyro_vae.inference.inference import Inference, Loss, check_num_particles, check_reparameterizable
from pyro_vae.modes import evaluating
from pyro_vae.vae import VAE


class AnalyticKL(Inference):
    r"""The hand-derived estimator of the ELBO: KL in closed form, reconstruction by Monte Carlo. No Pyro is involved.

    .. math:: \tilde{\mathcal{L}}^B = -\mathrm{KL}(q(z|x) \| p(z)) + \frac{1}{K} \sum_k \log p(x|z_k)

    Its expectation and that of its gradient are those of `AEVB`; its variance is smaller wherever the Monte Carlo KL
    is noisier than it is anticorrelated with the reconstruction, as it is early in training. It never falls back to
    sampling the KL.

    Arguments:
        num_particles: K, draws of z for each datum.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, equation 7 (estimator B) and equation 10.

    Example:
        >>> AnalyticKL()
        AnalyticKL(num_particles=1)
    """

    name: ClassVar[str] = "analytic-kl"

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__()
        self.num_particles = check_num_particles("AnalyticKL", num_particles)

    def loss(self, vae: VAE, batch: Batch) -> Loss:
        """Returns minus the ELBO; see `Loss`."""
        q = vae.encode(batch)
        z = q.rsample((self.num_particles,))
        elbo = batch.mean(vae.log_likelihood(z, batch)) - batch.mean(analytic_kl(q, vae.prior_given(batch)))
        return Loss(-(elbo + vae.log_parameter_prior_per_datum()), elbo.detach())

    def check(self, vae: VAE) -> None:
        """Raises an `InputError` that names posterior and prior where KL(q||p) has no closed form."""
        check_reparameterizable("AnalyticKL", vae)
        probe = vae.probe_batch()
        with torch.no_grad(), evaluating(vae):
            analytic_kl(vae.encode(probe), vae.prior_given(probe))

    def extra_repr(self) -> str:
        return f"num_particles={self.num_particles}"


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
    mine, its = _diagonal_normal(q), _diagonal_normal(p)
    if mine is not None and its is not None:
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
        raise InputError(
            f"AnalyticKL: KL({_name(q)} || {_name(p)}) has no closed form; use aevb, which samples it, or a pair such "
            "as Normal || Normal."
        ) from None


def _diagonal_normal(distribution: Distribution) -> Normal | None:
    cells = cells_of(distribution)
    return cells if isinstance(cells, Normal) else None


def _name(distribution: Distribution) -> str:
    name = type(distribution).__name__
    base = getattr(distribution, "base_dist", None)
    return name if base is None else f"{name}({_name(base)})"
