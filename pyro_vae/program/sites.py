r"""The local latents of a program: named sites, and their values side by side as one vector z for each datum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from pyro_vae.distributions.simplex import bijection_onto
from pyro_vae.distributions.support import is_discrete, is_real


@dataclass(frozen=True)
class Layout:
    """The plates of a program.

    Attributes:
        nesting: Number of batch dimensions that plates take.
        data: Dimension of the plate over data, negative.
    """

    nesting: int
    data: int

    def sums(self, log_prob: Tensor, particles: int | None, size: int) -> Tensor:
        """Returns log densities of a site, summed over all plates but the one over data.

        Arguments:
            log_prob: Batch shape of the site, behind a dimension of particles if there are any.
            particles: K; None without particles.
            size: B, the number of data.

        Returns:
            Shape ``(K, B)``, or ``(B,)``.
        """
        leading = () if particles is None else (particles,)
        full = log_prob.reshape((1,) * (len(leading) + self.nesting - log_prob.dim()) + log_prob.shape)
        moved = full.movedim(self.data, len(leading))
        return moved.reshape(*moved.shape[: len(leading) + 1], -1).sum(-1).expand(*leading, size)


@dataclass(frozen=True)
class Site:
    """A latent site inside the plate over data.

    Attributes:
        name: Name of the site.
        plates: Sizes of the batch dimensions other than data, in order, 1 where the site is in no plate.
        depth: Number of batch dimensions of a value without particles.
        event_shape: Event shape of the site's distribution.
        support: Its support.
        dtype: Type of its values; whole numbers travel as floating-point numbers in z.
        layout: The plates of the program.
        start: Position of the site's first number in z.
    """

    name: str
    plates: tuple[int, ...]
    depth: int
    event_shape: torch.Size
    support: Constraint
    dtype: torch.dtype
    layout: Layout
    start: int

    @property
    def size(self) -> int:
        """Number of numbers in z."""
        return torch.Size(self.plates).numel() * self.event_shape.numel()

    @property
    def block(self) -> slice:
        """Where the site lies in z."""
        return slice(self.start, self.start + self.size)

    def flat(self, value: Tensor, particles: int | None) -> Tensor:
        """Returns a value of the site as part of z, shape ``(K, B, size)`` or ``(B, size)``."""
        leading, events = 0 if particles is None else 1, len(self.event_shape)
        missing = leading + self.layout.nesting + events - value.dim()
        full = value.reshape((1,) * missing + value.shape)
        moved = full.movedim(full.dim() - events + self.layout.data, leading)
        return moved.reshape(*moved.shape[: leading + 1], -1)

    def value(self, z: Tensor) -> Tensor:
        """Returns the site's value for the model.

        Arguments:
            z: All latents, shape ``(K, B, L)`` or ``(B, L)``.
        """
        leading, events = z.shape[:-2], len(self.event_shape)
        part = z[..., self.block].reshape(*leading, z.shape[-2], *self.plates, *self.event_shape)
        value = part.movedim(len(leading), part.dim() - events + self.layout.data)
        value = value if self.dtype.is_floating_point else value.to(self.dtype)
        if leading:
            return value
        return value.reshape(value.shape[self.layout.nesting - self.depth :])

    def events(self, part: Tensor, event_shape: torch.Size | None = None) -> Tensor:
        """Returns the site's part of z with its event dimensions, shape ``(..., n, *event_shape)``."""
        shape = self.event_shape if event_shape is None else event_shape
        return part.reshape(*part.shape[:-1], torch.Size(self.plates).numel(), *shape)


@dataclass(frozen=True)
class GlobalSite:
    """A latent site outside the plate over data: one value for all data.

    Its value stands in z behind the local latents, the same for each datum and particle.

    Attributes:
        name: Name of the site.
        shape: Shape of its value.
        start: Position of its first number in z.
    """

    name: str
    shape: torch.Size
    start: int

    @property
    def size(self) -> int:
        """Number of numbers in z."""
        return self.shape.numel()

    def value(self, z: Tensor) -> Tensor:
        """Returns its value, given z of shape ``(K, B, L)`` or ``(B, L)``."""
        row = z.flatten(0, -2)[0]
        return row[self.start : self.start + self.size].reshape(self.shape)


class Supports(Constraint):
    """The supports of all sites, side by side."""

    event_dim = 1

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sites)
        self.is_discrete = any(is_discrete(site.support) for site in sites)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each z lies in the supports, shape ``(...)``."""
        inside = torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device)
        for site in self.sites:
            within = site.support.check(site.events(value[..., site.block]))
            inside = inside & within.flatten(value.dim() - 1).all(-1)
        return inside

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Supports) and self.sites == other.sites

    def __hash__(self) -> int:
        return hash(tuple(site.name for site in self.sites))

    def __repr__(self) -> str:
        return f"Supports({', '.join(f'{site.name}: {site.support}' for site in self.sites)})"


def support_of_sites(sites: Sequence[Site]) -> Constraint:
    """Returns the support of z."""
    return constraints.real_vector if all(is_real(site.support) for site in sites) else Supports(sites)


class SiteBijections(Transform):
    """The bijection from real numbers onto the supports of all sites.

    Raises:
        NotImplementedError: If no bijection onto a site's support is known.
    """

    domain = constraints.real_vector
    bijective = True
    sign = 1

    def __init__(self, support: Supports) -> None:
        super().__init__()
        self.codomain, self.sites = support, support.sites
        self.steps = [bijection_onto(site.support) for site in support.sites]
        shapes = [
            torch.Size(step.inverse_shape(site.event_shape))
            for site, step in zip(support.sites, self.steps, strict=True)
        ]
        self.shapes, start = shapes, 0
        self.blocks = []
        for site, shape in zip(support.sites, shapes, strict=True):
            width = torch.Size(site.plates).numel() * shape.numel()
            self.blocks.append(slice(start, start + width))
            start += width
        self.width = start

    def _parts(self, u: Tensor) -> list[Tensor]:
        triples = zip(self.sites, self.blocks, self.shapes, strict=True)
        return [site.events(u[..., block], shape) for site, block, shape in triples]

    def _call(self, x: Tensor) -> Tensor:
        pairs = zip(self.steps, self._parts(x), strict=True)
        return torch.cat([step(part).flatten(x.dim() - 1) for step, part in pairs], dim=-1)

    def _inverse(self, y: Tensor) -> Tensor:
        pairs = zip(self.steps, self.sites, strict=True)
        parts = [step.inv(site.events(y[..., site.block])) for step, site in pairs]
        return torch.cat([part.flatten(y.dim() - 1) for part in parts], dim=-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dz/du|, shape ``(...)``."""
        total = x.new_zeros(x.shape[:-1])
        for step, part in zip(self.steps, self._parts(x), strict=True):
            total = total + step.log_abs_det_jacobian(part, step(part)).flatten(x.dim() - 1).sum(-1)
        return total

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Returns the shape of z for one of u."""
        return torch.Size([*shape[:-1], sum(site.size for site in self.sites)])

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Returns the shape of u for one of z."""
        return torch.Size([*shape[:-1], self.width])


biject_to.register(Supports, SiteBijections)


def values_of(sites: Sequence[Site | GlobalSite], z: Tensor) -> dict[str, Tensor]:
    """Returns the value of each site, by name, for z of shape ``(K, B, L)`` or ``(B, L)``."""
    return {site.name: site.value(z) for site in sites}


def flat_of(
    sites: Sequence[Site],
    shared: Sequence[GlobalSite],
    values: Mapping[str, Tensor],
    leading: tuple[int, ...],
    like: Tensor,
) -> Tensor:
    """Returns z of shape ``(*leading, L)`` for the value of each site.

    Arguments:
        sites: The local latents.
        shared: The global ones.
        values: Values by name.
        leading: ``(K, B)`` or ``(B,)``.
        like: Tensor of the type that z has without any site.
    """
    particles = leading[0] if len(leading) > 1 else None
    parts = [site.flat(values[site.name], particles) for site in sites]
    parts += [values[site.name].reshape(-1).expand(*leading, site.size) for site in shared]
    if not parts:
        return like.new_zeros(*leading, 0)
    dtype = next((part.dtype for part in parts if part.is_floating_point()), parts[0].dtype)
    return torch.cat([part.to(dtype) for part in parts], dim=-1)
