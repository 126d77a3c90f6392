r"""Traversals of latent space: one latent moves, the others stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_vae.batch import Batch, DataLike
from pyro_vae.distributions.support import cells_of, is_discrete
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated, of_a_vae
from pyro_vae.evaluation.latent_coordinates import (
    Coordinates,
    Points,
    decoded,
    names_of,
    points_of,
    positions,
    require_decoder,
)
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Number of latents that are moved without a choice, and of draws from a prior without known quantiles.
_MOST, _DRAWS = 10, 20_000


@dataclass(frozen=True, eq=False)
class Traversal:
    r"""What a model decodes while one latent at a time moves.

    Attributes:
        x: Centre of p(x|z): row r for the moved latent ``dims[r]``, shape ``(rows, steps, *event_shape)``.
        z: The latents that were decoded, shape ``(rows, steps, *latent_shape)``.
        values: Value of the moved latent, in unconstrained space if ``unconstrained``, shape ``(rows, steps)``.
        dims: Position of the moved latent of each row.
        names: Its name.
        unconstrained: Whether the values are those of :math:`u = T^{-1}(z)`; else of z itself.
    """

    x: Tensor
    z: Tensor
    values: Tensor
    dims: tuple[int, ...]
    names: tuple[str, ...]
    unconstrained: bool

    def __repr__(self) -> str:
        return f"Traversal({', '.join(self.names)}; {self.values.shape[1]} steps)"


@of_a_vae
@torch.no_grad()
def traverse(
    vae: LatentVariableModel,
    data: DataLike | None = None,
    *,
    start: int | Tensor = 0,
    dims: Sequence[int] | None = None,
    steps: int = 7,
    span: float = 3.0,
    seed: int = 0,
) -> Traversal:
    r"""Moves one latent at a time through the prior's quantiles, and decodes.

    .. math:: u_j = F_j^{-1}(\Phi(t)), \qquad t = -s, \ldots, s, \qquad z = T(u)

    F is the prior's distribution function of one coordinate in unconstrained space, :math:`\Phi` the standard normal
    one, s the span, and T the bijection onto the prior's support. For a Normal prior, :math:`u_j` moves by s standard
    deviations around its mean. The other latents stay at the start. Where q(z) does not fill the prior, some of these
    z are in regions that no datum uses.

    Quantiles are exact where the prior has them in closed form, else those of 20,000 draws. Discrete latents take their
    values in the order of size; where there are more than ``steps``, evenly spaced ones. A simplex of L cells has L - 1
    coordinates: each moves a cell against all later ones.

    Arguments:
        vae: A model with a decoder, a `VAE`; evaluated in evaluation mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes: the start and the most active latents are
            theirs. May be left out where the start is z, and the model has no context.
        start: Position of a datum: the start is the mean of its q(z|x), as in `VAE.reconstruct`. Or z itself, shape
            ``latent_shape``; the context is then that of the first datum.
        dims: Positions of the latents to move, in unconstrained space. None: the ten most active ones over the data,
            the most active first; all where there are no more than ten, in order for fewer than two data.
        steps: Number of values of each latent; at least 2. Discrete latents have fewer if none has so many values.
        span: s, in standard deviations; positive.
        seed: Seed of the draws from the prior; the global random state does not change.

    Returns:
        The decoded centres with their latents.

    Raises:
        InputError: If the model has no decoder, an argument is out of range, there are more than ten latents and
            nothing to choose by, or a latent cannot move alone (on a sphere).

    Reference: Higgins, Matthey, Pal, Burgess, Glorot, Botvinick, Mohamed and Lerchner, "beta-VAE: learning basic visual
    concepts with a constrained variational framework", 2017, section 4.1.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 8)))
        >>> moved = traverse(vae, start=torch.zeros(2), dims=[1], steps=5)
        >>> moved.x.shape, moved.values
        (torch.Size([1, 5, 6]), tensor([[-3.0000, -1.5000,  0.0000,  1.5000,  3.0000]]))
    """
    _check(vae, data, start, steps, span)
    batch = vae.blank(1) if data is None else evaluated("traverse", vae, data, weighted=True)
    points = None if data is None else points_of(vae, batch)
    origin = _origin(vae, batch, points, start)
    with evaluating(vae), isolated(seed, "latent space"):
        first = 0 if isinstance(start, Tensor) else start
        one = batch.select(slice(first, first + 1)).to(vae.device, vae.dtype)
        coordinates = Coordinates(vae, one)
        if isinstance(start, Tensor) and not bool(coordinates.prior.support.check(origin).all()):
            raise InputError(
                f"traverse: `start` lies outside the support {coordinates.prior.support} of the prior; pass a z inside."
            )
        names = points.names if points is not None else names_of(vae, one, origin.unsqueeze(0), coordinates.size)
        chosen = _dims(points, dims, coordinates.size)
        values = _values(coordinates, chosen, steps, span, origin.device).to(origin)
        u = coordinates.of(origin.unsqueeze(0)).expand(*values.shape, -1).clone()
        u[torch.arange(len(chosen)), :, chosen] = values
        z = coordinates.latents(u.reshape(-1, 1, coordinates.size))
        coordinates.check(
            z,
            f"traverse: one latent cannot move alone within the support {coordinates.prior.support} of the prior; "
            'interpolate between two data, with path="spherical" on a sphere.',
        )
        z = z.squeeze(1)
        x = decoded(vae, z, one.select(torch.zeros(len(z), dtype=torch.long, device=one.device)))
    shape = values.shape
    return Traversal(
        x.unflatten(0, shape),
        z.unflatten(0, shape),
        values,
        tuple(chosen),
        tuple(names[i] for i in chosen),
        coordinates.unconstrained,
    )


def _check(vae: LatentVariableModel, data: DataLike | None, start: int | Tensor, steps: int, span: float) -> None:
    require_decoder("traverse", vae)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 2:
        raise InputError(f"traverse: `steps` is a whole number of at least 2, got `{steps!r}`.")
    if not span > 0:
        raise InputError(f"traverse: `span` is a positive number of standard deviations, got `{span!r}`.")
    if data is None and (not isinstance(start, Tensor) or vae.context_features):
        raise InputError(
            "traverse: without data, `start` is a tensor z, and the model has no context; pass data: its first datum "
            "is the start, or start=i for another one."
        )


def _origin(vae: LatentVariableModel, batch: Batch, points: Points | None, start: int | Tensor) -> Tensor:
    """Returns the z from which the latents move, shape ``latent_shape``."""
    if isinstance(start, Tensor):
        if start.shape != vae.latent_shape:
            raise InputError(
                f"traverse: `start` has shape {tuple(start.shape)}, and z has {tuple(vae.latent_shape)}; pass one z, "
                "or the position of a datum."
            )
        return start.detach().to(vae.device, vae.dtype)
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < batch.size or points is None:
        raise InputError(
            f"traverse: `start` is the position of a datum, from 0 to {batch.size - 1}, or a tensor z; got `{start!r}`."
        )
    return points.z[start]


def _dims(points: Points | None, dims: Sequence[int] | None, n: int) -> list[int]:
    """Returns the latents to move."""
    if dims is not None:
        return positions("traverse", dims, n)
    if points is not None and len(points.u) > 1:
        order: list[int] = points.activity.argsort(descending=True)[:_MOST].tolist()
        return order
    if n > _MOST:
        raise InputError(
            f"traverse: the most active of {n} latents are found by their variance over data; pass at least two data, "
            "or choose latents by dims=[0, 1]."
        )
    return list(range(n))


def _values(coordinates: Coordinates, chosen: list[int], steps: int, span: float, device: torch.device) -> Tensor:
    """Returns the values that the chosen coordinates take, shape ``(rows, steps)``, in float64."""
    scores = torch.linspace(-span, span, steps, dtype=torch.float64, device=device)
    probability = Normal(0.0, 1.0).cdf(scores)
    prior = coordinates.prior
    discrete = is_discrete(prior.support)
    exact = None if discrete else _exact_quantiles(coordinates, probability)
    if exact is not None:
        return exact[:, chosen].T
    draws = coordinates.of(prior.sample((_DRAWS,))).reshape(_DRAWS, -1)[:, chosen].double()
    if discrete:
        found = [column.unique() for column in draws.T]
        most = min(steps, max(len(each) for each in found))
        spread = [torch.linspace(0, len(each) - 1, most).round().long().to(each.device) for each in found]
        return torch.stack([each[index] for each, index in zip(found, spread, strict=True)])
    return torch.stack([column.quantile(probability) for column in draws.T])


def _exact_quantiles(coordinates: Coordinates, probability: Tensor) -> Tensor | None:
    """Returns the quantiles of all coordinates, shape ``(steps, size)``; None where they have no closed form."""
    cells = cells_of(coordinates.prior)
    if cells.event_shape or not coordinates.bijective:
        return None
    try:
        z = cells.icdf(probability.reshape(-1, *(1 for _ in cells.batch_shape)))
    except NotImplementedError:
        return None
    return coordinates.of(z).reshape(len(probability), -1)
