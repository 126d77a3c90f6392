r"""Mixtures of one family: as a prior, as an amortized posterior, or as a likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from pyro_vae.conditional import Conditional
from pyro_vae.errors import InputError
from pyro_vae.families import cells_of
from pyro_vae.sources import Fixed, Learned, Network, Source
from pyro_vae.trunk import Trunk

# Of the initial values of the components' parameters, in unconstrained space: equal components would stay equal.
_NOISE = 1.0


class MixtureDistribution(dist.MixtureSameFamily):
    r"""A mixture of K components, with pathwise gradients where the components have independent cells with a CDF.

    .. math:: p(z) = \sum_k w_k p_k(z)

    A draw solves :math:`S(z, \phi) = u` for uniform u, where :math:`S_d` is the CDF of :math:`z_d` given
    :math:`z_{<d}`; so :math:`\partial z / \partial \phi = -(\partial S / \partial z)^{-1} \partial S / \partial \phi`,
    with a lower triangular matrix.

    Reference: Figurnov, Mohamed and Mnih, "Implicit reparameterization gradients", 2018, equations 6 and 11.
    """

    @property
    def has_rsample(self) -> bool:
        """Whether gradients pass through draws."""
        cells = cells_of(self.component_distribution)
        known = type(cells).cdf is not Distribution.cdf
        return known and not cells.event_shape and len(self.event_shape) < 2 and cells.support is constraints.real

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z); for diagonal Normals over one set of components by two matrix products."""
        cells = cells_of(self.component_distribution)
        if self.batch_shape or len(self.event_shape) != 1 or not isinstance(cells, Normal):
            density: Tensor = super().log_prob(value)
            return density
        # z^2 / s^2 - 2 z m / s^2 + m^2 / s^2 cancels, so in double precision.
        z, loc, scale = value.double(), cells.loc.double(), cells.scale.double()
        precision = scale.square().reciprocal()
        distance = z.square() @ precision.mT - 2 * z @ (loc * precision).mT + (loc.square() * precision).sum(-1)
        constant = scale.log().sum(-1) + loc.shape[-1] * math.log(2 * math.pi) / 2
        weights = self.mixture_distribution.logits.double().log_softmax(-1)
        return (weights - distance / 2 - constant).logsumexp(-1).to(value.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws without gradients; of each component about as many as are needed."""
        if self.batch_shape:
            drawn: Tensor = super().sample(torch.Size(sample_shape))
            return drawn
        which = self.mixture_distribution.sample(torch.Size(sample_shape)).flatten()
        order = which.argsort(stable=True)
        counts = which.bincount(minlength=self._num_component)
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(which), device=which.device) - first[which[order]]
        pool = self.component_distribution.sample((int(counts.max()) if len(which) else 0,))
        draws = torch.empty((len(which), *self.event_shape), dtype=pool.dtype, device=pool.device)
        draws[order] = pool[rank, which[order]]
        return draws.reshape(*sample_shape, *self.event_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws, through which gradients pass.

        Raises:
            NotImplementedError: Where the components' cells depend on each other, or have no CDF.
        """
        if not self.has_rsample:
            raise NotImplementedError(f"{type(cells_of(self.component_distribution)).__name__} has no CDF to invert.")
        z = self.sample(sample_shape)
        return z if not torch.is_grad_enabled() else self._with_gradient(z)

    def _with_gradient(self, z: Tensor) -> Tensor:
        """z with the gradient of a draw: shape ``(..., L)``."""
        cells = cells_of(self.component_distribution)
        scalar = not self.event_shape
        at = z.unsqueeze(-1).unsqueeze(-1) if scalar else z.unsqueeze(-2)  # (..., 1, L)
        copies = at.expand(*at.shape[:-2], self._num_component, at.shape[-1]).clone().requires_grad_()
        value = copies.squeeze(-1) if scalar else copies
        log_density, cdf = cells.log_prob(value), cells.cdf(value)
        (slope,) = torch.autograd.grad(log_density.sum(), copies, retain_graph=True)  # d log f_k(z_e) / d z_e
        if scalar:
            log_density, cdf = log_density.unsqueeze(-1), cdf.unsqueeze(-1)
        before = log_density.cumsum(-1) - log_density
        share = (self.mixture_distribution.logits.unsqueeze(-1) + before).softmax(-2)  # of k at z_d, given z_<d
        conditional = (share * cdf).sum(-2)
        with torch.no_grad():
            excess = share * (cdf - conditional.unsqueeze(-2))
            jacobian = torch.einsum("...kd,...ke->...de", excess, slope).tril(-1)
            jacobian = jacobian + torch.diag_embed((share * log_density.exp()).sum(-2))
        moved = conditional - conditional.detach()
        step = torch.linalg.solve_triangular(jacobian, moved.unsqueeze(-1), upper=False).squeeze(-1)
        return z - (step.squeeze(-1) if scalar else step)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MixtureDistribution:
        return super().expand(torch.Size(batch_shape), self._get_checked_instance(MixtureDistribution, _instance))

    def __repr__(self) -> str:
        family = type(cells_of(self.component_distribution)).__name__
        return f"Mixture({self._num_component} x {family}, batch_shape={tuple(self.batch_shape)})"


class Mixture(Trunk):
    r"""A mixture of K distributions of one family.

    .. math:: p(z) = \sum_{k=1}^K w_k p_k(z)

    Without ``given`` the components are learned, from starting points with unit noise in unconstrained space; with it
    a network outputs them and their weights.

    Arguments:
        family: A class of `pyro.distributions`.
        event_shape: Shape of one draw, such as ``(20,)``.
        components: K.
        given: Network from a context ``(..., C)`` to features.
        weights: `Fixed` probabilities, `Learned` or `Network`. Default: `Network` where ``given`` is set, `Learned`
            otherwise.
        **sources: For the family's parameters, as for `Conditional`; values broadcast over ``(K, *event_shape)``.

    Raises:
        InputError: As `Conditional`.

    Reference: Dilokthanakul et al., "Deep unsupervised clustering with Gaussian mixture variational autoencoders",
    2016 (as a prior).

    Example:
        >>> import pyro.distributions as dist
        >>> prior = Mixture(dist.Normal, (2,), components=10)
        >>> prior().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        family: type[TorchDistribution],
        event_shape: Sequence[int],
        components: int = 10,
        *,
        given: nn.Module | None = None,
        weights: Source | None = None,
        **sources: Source,
    ) -> None:
        super().__init__(given)
        if not isinstance(components, int) or isinstance(components, bool) or components < 1:
            raise InputError(f"Mixture: `components` is a positive integer, got `{components!r}`.")
        self.event_shape, self.num_components, self.family = torch.Size(event_shape), components, family
        self.components = self._components(dict(sources))
        if weights is None:
            weights = Learned(shape=(components,)) if given is None else Network((components,))
        logits = Fixed(torch.as_tensor(weights.value).log().tolist()) if isinstance(weights, Fixed) else weights
        head = self.head_network() if isinstance(weights, Network) else None
        self.declared_weights = weights
        self.weights = Conditional(dist.Categorical, (), given=head, logits=logits)
        self.like_trunk(self.components, self.weights)
        if self.weights().logits.shape[-1:] != (components,) if head is None else False:
            raise InputError(f"Mixture: `weights` are {components} numbers, one for each component; got {weights}.")

    def _components(self, sources: dict[str, Any]) -> Conditional:
        """One `Conditional` of all components, which lie along the first dimension of its event."""
        shape = (self.num_components, *self.event_shape)
        if self.given is not None and any(isinstance(source, Network) for source in sources.values()):
            return Conditional(self.family, shape, given=self.head_network(), **sources)
        stacked = Conditional(self.family, shape, **sources)
        if self.given is not None and set(stacked.sources) - set(sources):
            return Conditional(self.family, shape, given=self.head_network(), **sources)
        with torch.no_grad():
            for name in set(stacked.sources) - set(sources):
                parameter = getattr(stacked, f"learned_{name}")
                parameter.add_(_NOISE * torch.randn_like(parameter))
        return stacked

    def forward(self, context: Tensor | None = None) -> MixtureDistribution:
        """Returns the mixture given a context of shape ``(..., C)``, or none."""
        features = self.features(context)
        stacked = self.components(features) if self.components.given is not None else self.components(context)
        weights = self.weights(features) if self.weights.given is not None else self.weights(context)
        independent = len(self.event_shape) - (self.components.family_event_dim or 0)
        cells = cells_of(stacked)
        return MixtureDistribution(weights, cells.to_event(independent) if independent else cells)
