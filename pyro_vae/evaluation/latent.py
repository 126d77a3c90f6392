r"""What the latent dimensions hold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated
from pyro_vae.kl import factors
from pyro_vae.modes import evaluating, isolated
from pyro_vae.moments import centre
from pyro_vae.vae import VAE

_CHUNK = 10_000


@torch.no_grad()
def posterior_means(vae: VAE, data: Tensor | Batch) -> Tensor:
    """Returns the mean of q(z|x) of each datum, shape ``(N, *latent_shape)``; see `pyro_vae.moments.centre`."""
    batch = evaluated("posterior_means", vae, data, weighted=True)
    with evaluating(vae):
        parts = [
            centre(vae.encode(batch.select(slice(start, start + _CHUNK)).to(vae.device, vae.dtype)))
            for start in range(0, batch.size, _CHUNK)
        ]
    return torch.cat(parts)


def active_units(vae: VAE, data: Tensor | Batch, threshold: float = 0.01) -> Tensor:
    r"""Returns which latent dimensions are active: :math:`\mathrm{Var}_x(E_{q(z|x)}[z_j])` above a threshold.

    Arguments:
        vae: The VAE.
        data: At least two data, shape ``(N, *event_shape)``, or a `Batch`.
        threshold: Of the variance over the data.

    Returns:
        Boolean, shape ``latent_shape``; its sum is the number of active units.

    Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015, section 5.2.
    """
    means = posterior_means(vae, data)
    if len(means) < 2:
        raise InputError("active_units: a variance over data needs at least two of them, got 1.")
    return means.var(0) > threshold


@torch.no_grad()
def kl_per_dimension(vae: VAE, data: Tensor | Batch, num_samples: int = 100, *, seed: int = 0) -> Tensor | None:
    r"""Returns the mean over data of :math:`\mathrm{KL}(q(z_j|x) \| p(z_j))` for each latent dimension, in nats.

    In closed form where there is one, else by Monte Carlo.

    Arguments:
        vae: The VAE.
        data: Shape ``(N, *event_shape)``, or a `Batch`.
        num_samples: Draws of z for each datum, where there is no closed form.
        seed: Of those draws.

    Returns:
        Shape ``latent_shape``; None where prior or posterior does not factorise over the dimensions.
    """
    batch = evaluated("kl_per_dimension", vae, data)
    total = torch.zeros(vae.latent_shape, device=vae.device, dtype=vae.dtype)
    with evaluating(vae), isolated(seed, "evaluation"):
        for start in range(0, batch.size, _CHUNK):
            part = batch.select(slice(start, start + _CHUNK)).to(vae.device, vae.dtype)
            q, p = factors(vae.encode(part)), factors(vae.prior_given(part))
            if q is None or p is None:
                return None
            try:
                kl = kl_divergence(q, p.expand(q.batch_shape))
            except NotImplementedError:
                z = q.sample((num_samples,))
                kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
            total += kl.sum(0)
    return total / batch.size
