"""Draws, reconstructions and decoded latents of the trained models; the global random states are not changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_vae.batch import Batch
from pyro_vae.comparison.run import Run
from pyro_vae.datasets.data import Data
from pyro_vae.distributions.moments import centre
from pyro_vae.errors import InputError
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.vae import VAE

# Points along one side of a latent grid.
_POINTS = 15


@torch.no_grad()
def draw(run: Run, n: int, data: Data) -> tuple[Tensor, Tensor | None]:
    """Returns draws of x, and the likelihood's centre where there is one, on the CPU.

    Contexts are those of the training rows, in turn.

    Raises:
        InputError: If the model is a program whose x cannot be drawn; see `LatentVariableModel.dreams`.
    """
    model, context = run.vae.at_globals(run.seed), data.context_of(n)
    with isolated(run.seed), evaluating(model):
        batch = model.blank(n, context)
        z, dreamt = model.dreams(batch)
        try:
            return dreamt.x.cpu(), centre(model.decode(z, batch)).cpu()
        except InputError:
            return dreamt.x.cpu(), None


def reconstruct(run: Run, batch: Batch) -> Tensor | None:
    """Returns the likelihood's centre at the posterior's centre; None if one of them does not exist."""
    with isolated(run.seed), evaluating(run.vae):
        try:
            return run.vae.reconstruct(batch.to(run.vae.device, run.vae.dtype)).cpu()
        except InputError:
            return None


@torch.no_grad()
def decode(vae: VAE, z: Tensor) -> Tensor | None:
    """Returns the likelihood's centre at z; None if it does not exist."""
    with evaluating(vae):
        try:
            return centre(vae.decode(z.to(vae.device, vae.dtype))).cpu()
        except InputError:
            return None


@torch.no_grad()
def latent_grid(vae: VAE) -> tuple[Tensor, Tensor, bool] | None:
    """Returns the grid's z₁ and z₂, and whether the prior is the unit Gaussian; None if there is no such grid."""
    if tuple(vae.latent_shape) != (2,) or vae.context_features or not vae.has_decoder:
        return None
    probability = (torch.arange(_POINTS) + 0.5) / _POINTS
    with isolated(0), evaluating(vae):
        prior = vae.prior_given(None)
        if _is_unit_gaussian(prior):
            z = Normal(0.0, 1.0).icdf(probability)
            return z, z, True
        draws = prior.sample((20_000,))
        if draws.unique().numel() < 1000:  # discrete: its quantiles do not form a grid
            return None
        first, second = draws.double().cpu().quantile(probability.double(), dim=0).unbind(1)
        corners = torch.cartesian_prod(first[[0, -1]], second[[0, -1]]).to(draws)
        inside = bool(prior.support.check(corners).all())
    return (first, second, False) if inside else None


def _is_unit_gaussian(prior: Any) -> bool:
    base = prior.base_dist if isinstance(prior, Independent) else prior
    return isinstance(base, Normal) and bool((base.loc == 0).all() and (base.scale == 1).all())


def limits(data: Data) -> tuple[float, float]:
    """Returns the values of black and white: the range of the training data; 0 and 1 for binarised data."""
    if data.binarisation != "none":
        return 0.0, 1.0
    seen = data.train[~data.train.isnan()]
    low, high = float(seen.min()), float(seen.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def as_images(x: Tensor, data: Data) -> NDArray[np.float64]:
    """Returns grey images, ``(N, H, W)``, the mean over channels; channels may be first or last."""
    images = x.double().reshape(len(x), *(data.image_shape or (1, -1)))
    if images.dim() == 4 and images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.movedim(-1, 1)
    return images.reshape(len(x), -1, *images.shape[-2:]).mean(1).numpy()
