r"""Interpolation between data through latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_vae.batch import Batch, DataLike
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated, of_a_vae
from pyro_vae.evaluation.latent_coordinates import Coordinates, Points, decoded, points_of, require_decoder
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel


@dataclass(frozen=True, eq=False)
class Interpolation:
    r"""What a model decodes on paths between pairs of data.

    Attributes:
        x: Centre of p(x|z) on the path of each pair, shape ``(B, steps, *event_shape)``.
        z: The latents that were decoded, shape ``(B, steps, *latent_shape)``.
        position: Share of the path, from 0 (the first datum) to 1 (the second), shape ``(steps,)``.
        path: ``"linear"`` or ``"spherical"``.
    """

    x: Tensor
    z: Tensor
    position: Tensor
    path: str

    def __repr__(self) -> str:
        return f"Interpolation({len(self.x)} pairs, {len(self.position)} steps, {self.path})"


@of_a_vae
@torch.no_grad()
def interpolate(
    vae: LatentVariableModel,
    first: DataLike,
    second: DataLike,
    *,
    steps: int = 8,
    path: Literal["linear", "spherical"] = "linear",
    seed: int = 0,
) -> Interpolation:
    r"""Moves from one datum to another through their posterior means, and decodes.

    With :math:`u_0` and :math:`u_1` the means of q(z|x) in unconstrained space, :math:`z = T(u)`, and t from 0 to 1:

    .. math:: u_t = (1 - t) u_0 + t u_1 \quad \text{(linear)}, \qquad
        u_t = ((1 - t) |u_0| + t |u_1|) \, \frac{\sin((1 - t) \omega) \, \hat u_0 + \sin(t \omega) \, \hat u_1}
        {\sin \omega} \quad \text{(spherical)}

    :math:`\omega` is the angle between the directions :math:`\hat u_0` and :math:`\hat u_1`. Both ends are what
    `VAE.reconstruct` returns for the two data. A spherical path turns the direction evenly, and the norm changes
    linearly. Under a standard Normal prior of many latents, draws have norms near the square root of their number:
    between two of them a linear path has norms that are rare under the prior, a spherical one has not.

    Where no bijection T is known, u is z: on a sphere the spherical path stays in the support. Where z consists of
    several joint events, such as spheres, each turns by itself. The context and the
    offset, which the decoder receives too, move linearly; give both data the same ones to move z alone.

    Arguments:
        vae: A model with a decoder, a `VAE`; evaluated in evaluation mode.
        first: B data where the paths begin, shape ``(B, *event_shape)``, in any form that `Batch.of` takes.
        second: B data where they end.
        steps: Number of points of each path, both ends included; at least 2.
        path: ``"linear"`` or ``"spherical"``.
        seed: Seed of the draw of latents that all data share.

    Returns:
        The decoded centres with their latents.

    Raises:
        InputError: If the model has no decoder, the data do not fit it or are not of one number, ``path`` or ``steps``
            is another value, the directions of a spherical path are opposite, or the path leaves the support
            (discrete latents have no values between two).

    Reference: White, "Sampling generative networks", 2016, section 2.1.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 8)))
        >>> x = torch.eye(6)
        >>> way = interpolate(vae, x[:1], x[1:2], steps=5)
        >>> way.x.shape, torch.allclose(way.x[:, 0], vae.reconstruct(x[:1]))
        (torch.Size([1, 5, 6]), True)
    """
    require_decoder("interpolate", vae)
    if path not in ("linear", "spherical"):
        raise InputError(f'interpolate: `path` is "linear" or "spherical", got `{path!r}`.')
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 2:
        raise InputError(f"interpolate: `steps` is a whole number of at least 2, got `{steps!r}`.")
    ends = [evaluated("interpolate", vae, data, weighted=True) for data in (first, second)]
    if ends[0].size != ends[1].size:
        raise InputError(
            f"interpolate: each path has two ends, but `first` has {ends[0].size} data and `second` {ends[1].size}; "
            "pass data of one number."
        )
    points = [points_of(vae, end) for end in ends]
    position = torch.linspace(0, 1, steps, device=vae.device, dtype=vae.dtype)
    with evaluating(vae), isolated(seed, "latent space"):
        batch = _between(vae, ends, position)
        coordinates = Coordinates(vae, batch)
        u = _linear(points[0].u, points[1].u, position)
        if path == "spherical":
            first_u, second_u = (each.u.unflatten(-1, (coordinates.blocks, -1)) for each in points)
            u = _spherical(first_u, second_u, position).flatten(-2)
        z = coordinates.latents(u.flatten(0, 1))
        coordinates.check(
            z,
            f"interpolate: the {path} path leaves the support {coordinates.prior.support} of the prior; take "
            'path="spherical" on a sphere. Discrete latents have no values between two; traverse shows each value.',
        )
        z = _with_ends(z.unflatten(0, (-1, steps)), points)
        x = decoded(vae, z.flatten(0, 1), batch)
    return Interpolation(x.unflatten(0, (-1, steps)), z, position, path)


def _with_ends(z: Tensor, points: list[Points]) -> Tensor:
    """Puts the means themselves at both ends, which T and its inverse round."""
    return torch.cat([points[0].z.unsqueeze(1), z[:, 1:-1], points[1].z.unsqueeze(1)], dim=1)


def _between(vae: LatentVariableModel, ends: list[Batch], position: Tensor) -> Batch:
    """Returns one row for each point of each path, whose context and offset lie between those of its ends."""
    first, second = (end.to(vae.device, vae.dtype)._replace(mask=None, weight=None) for end in ends)

    def rows(start: Tensor | None, end: Tensor | None) -> Tensor | None:
        return None if start is None or end is None else _linear(start, end, position).flatten(0, 1)

    x = first.x.repeat_interleave(len(position), dim=0)  # no posterior is computed from it
    if (first.offset is None) != (second.offset is None):
        raise InputError(
            "interpolate: one end of the path has an offset and the other has none; give both one, such as zeros."
        )
    return Batch(x, rows(first.context, second.context), None, rows(first.offset, second.offset))


def _linear(first: Tensor, second: Tensor, position: Tensor) -> Tensor:
    """Returns the points of straight paths, shape ``(B, steps, n)``."""
    t = position.unsqueeze(-1)
    return (1 - t) * first.unsqueeze(1) + t * second.unsqueeze(1)


def _spherical(first: Tensor, second: Tensor, position: Tensor) -> Tensor:
    """Returns the points of spherical paths, shape ``(B, steps, blocks, n)``; straight from and to the origin.

    Arguments:
        first: Where they begin, shape ``(B, blocks, n)``.
        second: Where they end.
        position: Share of the path, shape ``(steps,)``.
    """
    t = position.reshape(-1, 1, 1)
    start, end = first.unsqueeze(1), second.unsqueeze(1)
    norms = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    directions = start / norms[0], end / norms[1]
    directions = torch.where(norms[0] > 0, directions[0], directions[1]), torch.where(norms[1] > 0, *directions[::-1])
    angle = 2 * torch.atan2((directions[0] - directions[1]).norm(dim=-1), (directions[0] + directions[1]).norm(dim=-1))
    angle = angle.unsqueeze(-1).nan_to_num(0.0)  # both ends at the origin
    if bool((torch.pi - angle < 1e-4).any()):
        raise InputError(
            "interpolate: the two ends of a spherical path lie in opposite directions, between which no arc is the "
            'shortest; take path="linear".'
        )
    near = angle < 1e-4  # the chord is the arc, to rounding
    scale = torch.where(near, 1.0, angle.sin())
    weights = (
        torch.where(near, 1 - t, ((1 - t) * angle).sin() / scale),
        torch.where(near, t, (t * angle).sin() / scale),
    )
    direction = (weights[0] * directions[0] + weights[1] * directions[1]).nan_to_num(0.0)
    return ((1 - t) * norms[0] + t * norms[1]) * direction
