r"""The joint distribution of a program's local latents, under its guide or under its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_vae.distributions.moments import centre_and_error, spread
from pyro_vae.program.sites import GlobalSite, Site, support_of_sites


class Draws(Protocol):
    """A half of a program: how its latents are drawn, and their density."""

    def draw(self, particles: int | None) -> tuple[Tensor, Tensor]:
        """Returns z of shape ``(K, B, L)`` or ``(B, L)``, and its log density ``(K, B)`` or ``(B,)``."""

    def log_density(self, z: Tensor) -> Tensor:
        """Returns the log density of such z."""

    def kl_from(self, other: Any, z: Tensor, sampled: bool) -> dict[str, Tensor]:
        """Returns the KL to another half at such z, by site."""

    def statistic(self, function: Callable[[TorchDistribution], Tensor]) -> Tensor:
        """Returns a statistic of every site, ``(B, L)``; NotImplementedError if it depends on other draws."""


class LatentDistribution(TorchDistribution):
    r"""All local latents of a batch as one vector z for each datum.

    .. math:: \log p(z) = \sum_s \log p(z_s | z_{\mathrm{pa}(s)})

    The density of the last draw is stored, with its gradients; the density of another value needs another run.

    Arguments:
        half: The guide, or the model, for one batch.
        sites: The latent sites, in their order in z; those that all data share are the last.
        size: B, the number of data.
        has_rsample: Whether gradients pass through the draws of all sites.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    _last: tuple[Tensor, Tensor, bool] | None = None

    def __init__(self, half: Draws, sites: Sequence[Site | GlobalSite], size: int, has_rsample: bool) -> None:
        self.half, self.sites, self._reparameterized = half, sites, has_rsample
        super().__init__(torch.Size([size]), torch.Size([sum(site.size for site in sites)]), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether gradients pass through the draws of all sites."""
        return self._reparameterized

    @property
    def support(self) -> Any:
        """The supports of all sites, side by side."""
        return support_of_sites([site for site in self.sites if isinstance(site, Site)])

    @property
    def mean(self) -> Tensor:
        """The mean of z, shape ``(B, L)``, where no site's mean depends on other draws."""
        return self.half.statistic(_exact_mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each number of z, where none depends on other draws."""
        return self.half.statistic(_exact_variance)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of z, through which gradients pass."""
        shape = torch.Size(sample_shape)
        z, log_density = self.half.draw(shape.numel() if shape else None)
        if len(shape) > 1:
            z, log_density = z.unflatten(0, shape), log_density.unflatten(0, shape)
        self._last = (z, log_density, torch.is_grad_enabled())
        return z

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of z without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of z, shape ``(..., B)``."""
        if self._last is not None and value is self._last[0] and self._last[2] >= torch.is_grad_enabled():
            return self._last[1]
        rows = value.expand(*value.shape[:-2], *self.batch_shape, *self.event_shape)
        return over_particles(self.half.log_density, rows)

    def kl(self, p: LatentDistribution, z: Tensor, *, sampled: bool = True) -> Tensor:
        r"""Returns the KL from this distribution to p, site by site given the sites before, at draws z.

        .. math:: \sum_s \mathrm{KL}\left(q(z_s | z_{\mathrm{pa}(s)}, x) \,\|\, p(z_s | z_{\mathrm{pa}(s)})\right)

        Its expectation over z is KL(q || p). It has less noise than the log ratio where closed forms exist.

        Arguments:
            p: The other half of the program.
            z: Draws from this distribution, shape ``(..., B, L)``.
            sampled: Whether the log ratio at z serves for sites without a closed form.

        Returns:
            Shape ``(..., B)``, in nats.

        Raises:
            InputError: For a site without a closed form, if it may not be sampled.
        """
        parts = self.kl_of_sites(p, z, sampled=sampled).values()
        return torch.stack(list(parts)).sum(0)

    def kl_of_sites(self, p: LatentDistribution, z: Tensor, *, sampled: bool = True) -> dict[str, Tensor]:
        """Returns the terms of `kl`, by site."""
        names = [site.name for site in self.sites]

        def terms(each: Tensor) -> tuple[Tensor, ...]:
            found = self.half.kl_from(p.half, each, sampled)
            return tuple(found[name] for name in names)

        return dict(zip(names, over_particles(terms, z), strict=True))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LatentDistribution:
        """Returns the distribution itself: its batch shape is that of the batch."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError(f"the latents of {self.batch_shape[0]} data, not of {tuple(batch_shape)}")
        return self

    def __repr__(self) -> str:
        return (
            f"LatentDistribution({', '.join(site.name for site in self.sites)}, batch_shape={tuple(self.batch_shape)})"
        )


def _exact_mean(fn: TorchDistribution) -> Tensor:
    value, error = centre_and_error(fn)
    if error is not None or fn.support.is_discrete:
        raise NotImplementedError("a mean from draws, or of a discrete site")
    return value


def _exact_variance(fn: TorchDistribution) -> Tensor:
    _exact_mean(fn)
    scale = spread(fn)
    if scale is None or fn.support.is_discrete:
        raise NotImplementedError("a variance from draws, or of a discrete site")
    return scale.square()


def over_particles(function: Any, z: Tensor) -> Any:
    """Applies a function of z, ``(K, B, L)`` or ``(B, L)``, to one of any shape ``(..., B, L)``."""
    if z.dim() <= 3:
        return function(z)
    leading = z.shape[:-2]
    result = function(z.flatten(0, -3))
    if isinstance(result, tuple):
        return tuple(part.unflatten(0, leading) for part in result)
    return result.unflatten(0, leading)
