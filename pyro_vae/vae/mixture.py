r"""Mixtures of one family: as a prior, as an amortized posterior, or as a likelihood."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, TransformedDistribution

from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.parameters import as_shape
from pyro_vae.vae.sources import Fixed, Learned, Network, Source
from pyro_vae.vae.trunk import Trunk

# Standard deviation of the noise on the components' initial parameters, in unconstrained space. Without noise the
# components would be equal, and would stay equal.
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
        # The CDF of a transformed distribution fails where rounding puts a value outside the support of its base.
        known = type(cells).cdf is not Distribution.cdf and not isinstance(cells, TransformedDistribution)
        return known and not cells.event_shape and len(self.event_shape) < 2 and cells.support is constraints.real

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z); for diagonal Normals without batch shape, in float32, by two matrix products."""
        cells = cells_of(self.component_distribution)
        plain = bool(self.batch_shape) or len(self.event_shape) != 1 or not isinstance(cells, Normal)
        if plain or value.dtype == torch.float64 or cells.loc.dtype == torch.float64:
            density: Tensor = super().log_prob(value)
            return density
        # z^2 / s^2 - 2 z m / s^2 + m^2 / s^2 cancels; in float64 the error is smaller than the rounding error of z.
        z, loc, scale = value.double(), cells.loc.double(), cells.scale.double()
        precision = scale.square().reciprocal()
        distance = z.square() @ precision.mT - 2 * z @ (loc * precision).mT + (loc.square() * precision).sum(-1)
        constant = scale.log().sum(-1) + loc.shape[-1] * math.log(2 * math.pi) / 2
        weights = self.mixture_distribution.logits.double().log_softmax(-1)
        return (weights - distance / 2 - constant).logsumexp(-1).to(value.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws without gradients; each component is drawn as often as the most frequent one is needed."""
        if self.batch_shape:
            drawn: Tensor = super().sample(torch.Size(sample_shape))
            return drawn
        which = self.mixture_distribution.sample(torch.Size(sample_shape)).flatten()
        order = which.argsort(stable=True)
        counts = which.bincount(minlength=self._num_component)
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(which), device=which.device) - first[which[order]]
        pool = self.component_distribution.sample((int(counts.max()),))
        draws = torch.empty((len(which), *self.event_shape), dtype=pool.dtype, device=pool.device)
        draws[order] = pool[rank, which[order]]
        return draws.reshape(*sample_shape, *self.event_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws, through which gradients pass.

        Raises:
            NotImplementedError: If the components' cells depend on each other, or have no CDF.
        """
        if not self.has_rsample:
            family = type(cells_of(self.component_distribution)).__name__
            raise NotImplementedError(
                f"a mixture of `{family}` of event shape {tuple(self.event_shape)} has no pathwise gradient: it needs "
                "vectors of independent cells on the real line whose CDF is known, such as Normal or Laplace."
            )
        z = self.sample(sample_shape)
        return z if not torch.is_grad_enabled() else self._with_gradient(z)

    def _with_gradient(self, z: Tensor) -> Tensor:
        """Returns z, shape ``(..., L)``, with the gradient of a draw."""
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

    Without ``given`` the components' parameters are learned; their initial values have unit noise in unconstrained
    space. With ``given`` a network outputs the parameters and the weights.

    Arguments:
        family: A class of `pyro.distributions`.
        event_shape: Shape of one draw, such as ``(20,)``.
        components: Number K of components.
        given: Network from a context ``(..., C)`` to features.
        weights: Probabilities, or numbers proportional to them: `Fixed`, `Learned` (default ``init``: equal weights)
            or `Network`. Default: `Network` if ``given`` is set, else `Learned`.
        **sources: Sources of the family's parameters, as in `Conditional`; values broadcast over
            ``(K, *event_shape)``.

    Raises:
        InputError: As in `Conditional`; also if all components are equal, because they would stay equal.

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
        self.event_shape, self.num_components, self.family = as_shape(event_shape), components, family
        self.declared, self.declared_weights = dict(sources), weights
        self.components = self._components(dict(sources))
        self.weights = self._weights(weights)
        if given is not None and self.components.given is None and self.weights.given is None:
            raise InputError(
                "Mixture: neither the weights nor a parameter is a `Network`, so given= would not be used."
            )
        self.like_trunk(self.components, self.weights)
        self._check_unequal()

    def _weights(self, declared: Source | None) -> Conditional:
        """The distribution over the components."""
        if declared is None:
            declared = Learned() if self.given is None else Network()
        if isinstance(declared, Network) and self.given is None:
            raise InputError("Mixture: `weights` are a Network, which needs given=, a network.")
        head = self.head_network() if isinstance(declared, Network) else None
        return Conditional(dist.Categorical, (), given=head, logits=_logits(declared, self.num_components))

    def _components(self, sources: dict[str, Any]) -> Conditional:
        """One `Conditional` of all components, which lie along the first dimension of its event."""
        shape = (self.num_components, *self.event_shape)
        if self.given is not None and any(isinstance(source, Network) for source in sources.values()):
            return Conditional(self.family, shape, given=self.head_network(), **sources)
        stacked = Conditional(self.family, shape, **sources)
        undeclared = [name for name in stacked.sources if name not in sources]
        if self.given is not None and undeclared:
            return Conditional(self.family, shape, given=self.head_network(), **sources)
        with torch.no_grad():
            for name in undeclared:
                parameter = getattr(stacked, f"learned_{name}")
                parameter.add_(_NOISE * torch.randn_like(parameter))
        return stacked

    @torch.no_grad()
    def _check_unequal(self) -> None:
        """Raises an `InputError` if all components are equal; their gradients would be equal too."""
        if self.components.given is not None or self.num_components == 1:
            return
        components = self().component_distribution
        with isolated(0):
            z = components.sample((16,))
        first = components.log_prob(z[:, :1].expand_as(z))  # draws of the first component, scored by each
        if bool((first == first[:, :1]).all()):
            raise InputError(
                f"Mixture: the {self.num_components} components are equal, and would stay so; give one parameter a "
                f"value of its own for each, such as {next(iter(self.components.sources))}=Learned(noise=1.0)."
            )

    def forward(self, context: Tensor | None = None) -> MixtureDistribution:
        """Returns the mixture given a context of shape ``(..., C)``, or none."""
        features = self.features(context)
        stacked = self.components(features) if self.components.given is not None else self.components(context)
        weights = self.weights(features) if self.weights.given is not None else self.weights(context)
        independent = len(self.event_shape) - (self.components.family_event_dim or 0)
        cells = cells_of(stacked)
        return MixtureDistribution(weights, cells.to_event(independent) if independent else cells)

    def to_spec(self) -> dict[str, Any]:
        """Returns its entry in the experiment file, without its network and learned values."""
        sources = {name: source.to_spec() for name, source in self.declared.items()}
        weights = {} if self.declared_weights is None else {"weights": self.declared_weights.to_spec()}
        return {"mixture": {"family": self.family.__name__, **sources, "components": self.num_components, **weights}}


def _logits(weights: Source, components: int) -> Source:
    """Returns the source of the logits of the weights."""
    refusal = InputError(
        f"Mixture: `weights` are {components} positive numbers, one for each component; got {weights}."
    )
    declared = getattr(weights, "shape", None)
    if not isinstance(weights, Network | Learned | Fixed) or (
        declared is not None and tuple(declared) != (components,)
    ):
        raise refusal
    if isinstance(weights, Network):
        return dataclasses.replace(weights, shape=(components,))
    given = weights.value if isinstance(weights, Fixed) else weights.init
    if given is None and isinstance(weights, Learned):
        return dataclasses.replace(weights, shape=(components,))
    values = torch.as_tensor(given, dtype=torch.float64)
    if values.shape != (components,) or not bool((values > 0).all() and values.isfinite().all()):
        raise refusal
    logits = values.log().tolist()
    return Fixed(logits) if isinstance(weights, Fixed) else dataclasses.replace(weights, init=logits)
