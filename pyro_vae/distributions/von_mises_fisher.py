r"""Distributions on the unit sphere: von Mises-Fisher, and uniform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Beta, Transform, constraints, register_kl, transform_to

from pyro_vae.distributions.bessel import bessel_ratio, log_bessel

# Number of quadrature nodes for the derivative of a draw; the integrand is covered down to about e^-36.
_NODES = 64


class _UnitVector(type(pyro_constraints.sphere)):  # type: ignore[misc]
    """Vectors of length 1, up to rounding; a separate class, because its transform has gradients at zero."""


unit_vector = _UnitVector()


class Direction(Transform):
    r"""Divides a vector by its length; maps zero, which has no direction, to :math:`(1, ..., 1) / \sqrt{D}`.

    Gradients at zero are those at (1, ..., 1), so that a parameter may start at zero.

    Example:
        >>> Direction()(torch.tensor([3.0, 4.0])), Direction()(torch.zeros(4))
        (tensor([0.6000, 0.8000]), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """

    domain = constraints.real_vector
    codomain = unit_vector
    bijective = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Direction)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        largest = x.detach().abs().amax(-1, keepdim=True)
        none = largest < 1e-18
        x = torch.where(none, x + 1, x / torch.where(none, torch.ones_like(largest), largest))
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def _inverse(self, y: Tensor) -> Tensor:
        return y


transform_to.register(_UnitVector, lambda constraint: Direction())


class VonMisesFisher(TorchDistribution):
    r"""The von Mises-Fisher distribution on the unit sphere in D dimensions: the Normal distribution of directions.

    .. math:: p(z) = \frac{\kappa^{D/2 - 1}}{(2\pi)^{D/2} I_{D/2 - 1}(\kappa)} \, e^{\kappa \mu^\top z},
        \qquad |z| = 1

    The density is with respect to the surface measure of the sphere. At :math:`\kappa = 0` it is that of
    `SphericalUniform`; for large :math:`\kappa`, z is close to a Normal of variance :math:`1/\kappa` about the
    location. The normalising constant is computed in float64, so that densities are accurate in float32 for
    :math:`\kappa` from 0 to 1e6, in any D from 2 up. On the circle, D = 2, it is `VonMises` of the angle.

    Draws are exact, by rejection sampling in one dimension, and their gradients are unbiased. The gradient with respect
    to the concentration uses implicit differentiation of the distribution function of :math:`\mu^\top z`; the gradient
    with respect to the location uses the rotation that moves the location. Draws can be differentiated once, not
    twice. The gradient with respect to the location lies along the sphere, so compute the location by `Direction`, as
    `Conditional` does.

    Arguments:
        loc: :math:`\mu`, vectors of length 1, shape ``(..., D)``.
        concentration: :math:`\kappa \ge 0`, shape ``(...)``. `Conditional` makes it the exp of a network's
            output, which may grow fast; ``Network(transform=constraints.softplus_positive)`` grows linearly.

    Raises:
        ValueError: For fewer than two dimensions, and if validation finds a location whose length is not 1.

    Reference: Davidson et al., "Hyperspherical variational auto-encoders", 2018; Wood, "Simulation of the von
    Mises Fisher distribution", 1994, for draws; Figurnov et al., "Implicit reparameterization gradients", 2018,
    equation 8.

    Example:
        >>> q = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(5.0))
        >>> q.log_prob(torch.tensor([0.0, 0.0, 1.0])), q.mean
        (tensor(-0.2284), tensor([0.0000, 0.0000, 0.8001]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": unit_vector,
        "concentration": constraints.nonnegative,
    }
    support = pyro_constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        concentration = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        if loc.dim() < 1 or loc.shape[-1] < 2:
            raise ValueError(f"`loc` is a vector of at least 2 dimensions, got the shape {tuple(loc.shape)}")
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(batch_shape + loc.shape[-1:])
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def _order(self) -> float:
        return self.event_shape[0] / 2 - 1

    @property
    def mean_length(self) -> Tensor:
        r""":math:`|E[z]| = I_{D/2}(\kappa) / I_{D/2 - 1}(\kappa)`, between 0 and 1, of the batch shape."""
        return bessel_ratio(self._order, self.concentration).to(self.loc.dtype)

    @property
    def mean(self) -> Tensor:
        """E[z], which lies inside the sphere."""
        return self.mean_length.unsqueeze(-1) * self.loc

    @property
    def mode(self) -> Tensor:
        """The location."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Var[z] of each coordinate."""
        kappa = self.concentration.double()
        length = bessel_ratio(self._order, kappa)
        size = self.event_shape[0]
        # (length / kappa) is 1 / D at 0.
        across = torch.where(kappa > 0, length / torch.where(kappa > 0, kappa, 1.0), 1 / size)
        along = (1 - length.square() - (size - 1) * across).clamp_min(0)
        square = self.loc.double().square()
        return (across.unsqueeze(-1) * (1 - square) + along.unsqueeze(-1) * square).clamp_min(0).to(self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z), in nats per unit of surface."""
        if self._validate_args:
            self._validate_sample(value)
        kappa = self.concentration.double()
        # kappa (1 - mu z) without cancellation
        distance = kappa * (value - self.loc).square().sum(-1).double() / 2
        log_density = -distance - log_bessel(self._order, kappa) - _log_surface(self.event_shape[0])
        return log_density.to(torch.promote_types(value.dtype, self.loc.dtype))

    def entropy(self) -> Tensor:
        """Returns the entropy with respect to the surface measure, in nats."""
        return (_log_surface(self.event_shape[0]) - _negative_entropy(self)).to(self.loc.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws, through which gradients pass to both parameters."""
        shape = self._extended_shape(torch.Size(sample_shape))
        loc, kappa = self.loc.expand(shape), self.concentration.expand(shape[:-1]).double()
        with torch.no_grad():
            drawn = _draw_deviations(kappa, shape[-1])
            base = loc.detach()
            tangent = _draw_tangents(base)
        t: Tensor = _Deviation.apply(drawn, kappa, shape[-1])
        # The rotation from base to loc: its value is the identity, its derivative is that of the draw.
        along = (loc * tangent).sum(-1, keepdim=True) / (1 + (loc * base).sum(-1, keepdim=True))
        tangent = tangent - along * (loc + base)
        t = t.unsqueeze(-1)
        z = loc - t.to(loc.dtype) * loc + torch.sqrt(t * (2 - t)).to(loc.dtype) * tangent
        return z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        new = self._get_checked_instance(VonMisesFisher, _instance)
        shape = torch.Size(batch_shape)
        new.loc, new.concentration = self.loc.expand(shape + self.event_shape), self.concentration.expand(shape)
        super(VonMisesFisher, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


class SphericalUniform(TorchDistribution):
    r"""The uniform distribution on the unit sphere in D dimensions, a prior without a preferred direction.

    .. math:: p(z) = \frac{\Gamma(D/2)}{2 \pi^{D/2}}, \qquad |z| = 1

    The density is with respect to the surface measure. It has no parameter to learn. No posterior follows from
    it, because no bijection takes an unconstrained space onto the sphere: declare a `VonMisesFisher` posterior.

    Arguments:
        dimension: Number D of coordinates, at least 2. `Conditional` takes it from the event shape:
            ``Conditional(SphericalUniform, (3,))``.
        like: Tensor whose type and device the draws have.

    Raises:
        ValueError: For fewer than two dimensions.

    Reference: Davidson et al., "Hyperspherical variational auto-encoders", 2018, section 3.1.

    Example:
        >>> SphericalUniform(3).log_prob(torch.tensor([0.0, 0.6, 0.8])).exp() * 4 * math.pi
        tensor(1.0000)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = pyro_constraints.sphere
    has_rsample = True
    posterior_family = VonMisesFisher

    def __init__(self, dimension: int, like: Tensor | None = None, validate_args: bool | None = None) -> None:
        if not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < 2:
            raise ValueError(f"`dimension` must be an integer of at least 2, got `{dimension!r}`")
        self.dimension = dimension
        self.like = torch.empty(()) if like is None else like
        super().__init__(torch.Size(), torch.Size((dimension,)), validate_args=validate_args)

    @staticmethod
    def constants_for(event_shape: Sequence[int]) -> dict[str, Any]:
        """Returns the arguments that follow from the shape of an event, for `Conditional`."""
        return {"dimension": event_shape[-1] if event_shape else 2, "like": 0.0}

    @property
    def mean(self) -> Tensor:
        """E[z] = 0, the centre of the sphere."""
        return self.like.new_zeros(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """Var[z] = 1/D of each coordinate."""
        return self.like.new_full(self._extended_shape(), 1 / self.dimension)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z), the same everywhere, in nats per unit of surface."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -_log_surface(self.dimension))

    def entropy(self) -> Tensor:
        """Returns the entropy with respect to the surface measure, in nats."""
        return self.like.new_full(self.batch_shape, _log_surface(self.dimension))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws: directions of Normal vectors."""
        z = Direction()(self.like.new_empty(self._extended_shape(torch.Size(sample_shape))).normal_())
        return z

    def expand(self, batch_shape: Any, _instance: Any = None) -> SphericalUniform:
        new = self._get_checked_instance(SphericalUniform, _instance)
        new.dimension, new.like = self.dimension, self.like
        super(SphericalUniform, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


def _log_surface(dimension: int) -> float:
    """The logarithm of the surface of the unit sphere."""
    return math.log(2) + dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2)


def _negative_entropy(q: VonMisesFisher) -> Tensor:
    """KL from the uniform distribution, in float64."""
    kappa = q.concentration.double()
    return -log_bessel(q._order, kappa) - kappa * (1 - bessel_ratio(q._order, kappa))


def _kl_to_uniform(q: VonMisesFisher, p: SphericalUniform) -> Tensor:
    r""":math:`\kappa A(\kappa) - \log {}_0F_1(D/2; \kappa^2/4)`, with A the mean's length."""
    return _negative_entropy(q).to(q.loc.dtype)


def _kl_between(q: VonMisesFisher, p: VonMisesFisher) -> Tensor:
    kappa, length = p.concentration.double(), bessel_ratio(q._order, q.concentration)
    apart = 1 - length + length * (q.loc - p.loc).double().square().sum(-1) / 2
    return (_negative_entropy(q) + kappa * apart + log_bessel(p._order, kappa)).to(q.loc.dtype)


register_kl(VonMisesFisher, SphericalUniform)(_kl_to_uniform)
register_kl(VonMisesFisher, VonMisesFisher)(_kl_between)


def _draw_tangents(loc: Tensor) -> Tensor:
    """Draws uniform unit vectors orthogonal to each location, by a reflection of the first axis onto its line."""
    u = torch.randn_like(loc)
    u[..., 0] = 0
    u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    normal = torch.where(loc[..., :1] < 0, -loc, loc).clone()
    normal[..., 0] += 1  # of length at least sqrt(2)
    return u - 2 * normal * (u * normal).sum(-1, keepdim=True) / normal.square().sum(-1, keepdim=True)


def _draw_deviations(kappa: Tensor, dimension: int) -> Tensor:
    r"""Draws :math:`t = 1 - \mu^\top z`, in float64, by Wood's rejection; in terms of t it is exact near 0."""
    n, flat = dimension - 1, kappa.flatten()
    t, rejected = torch.empty_like(flat), torch.arange(flat.numel(), device=flat.device)
    shape = flat.new_full((), n / 2)
    while rejected.numel():
        k = flat[rejected]
        b = n / (2 * k + torch.sqrt(4 * k.square() + n**2))
        epsilon = Beta(shape, shape, validate_args=False).sample(k.shape)
        proposal = 2 * b * epsilon / (1 - (1 - b) * epsilon)
        log_ratio = k * (2 * b / (1 + b) - proposal)
        log_ratio = log_ratio + n * torch.log((2 * b + (1 - b) * proposal) * (1 + b) / (4 * b))
        t[rejected] = proposal
        rejected = rejected[log_ratio < torch.rand_like(k).log()]
    return t.clamp(torch.finfo(t.dtype).tiny, 2 - 4e-16).reshape(kappa.shape)


class _Deviation(torch.autograd.Function):
    """A draw of t as a function of the concentration, by implicit differentiation of its distribution function."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, kappa: Tensor, dimension: int) -> Tensor:
        ctx.save_for_backward(t, kappa)
        ctx.dimension = dimension
        return t.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        t, kappa = ctx.saved_tensors
        return None, gradient * _deviation_gradient(t, kappa, ctx.dimension), None


@cache
def _gauss_legendre() -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def _deviation_gradient(t: Tensor, kappa: Tensor, dimension: int) -> Tensor:
    r"""Returns :math:`dt/d\kappa = -\partial_\kappa F(t; \kappa) / f(t; \kappa)`, of the shape of t.

    The density of t is :math:`f \propto e^{-\kappa s} (s (2 - s))^{(D-3)/2}` on [0, 2], with mean m. The derivative is
    :math:`-\int_0^t (m - s) f(s) ds / f(t)`. The integrand is positive for t < m; for t > m the same integral is
    computed from the other end. With :math:`s = t y^2` the integrand is smooth in y at the pole.
    """
    m = 1 - bessel_ratio(dimension / 2 - 1, kappa)
    near = t <= m
    t, m, kappa = (v.unsqueeze(-1) for v in (torch.where(near, t, 2 - t), torch.where(near, m, 2 - m), kappa))
    sign = torch.where(near, 1.0, -1.0).to(kappa.dtype).unsqueeze(-1)
    nodes, weights = (torch.tensor(v, dtype=t.dtype, device=t.device) for v in _gauss_legendre())
    # From the other end, the integrand is negligible beyond this distance from t, as a share of t.
    reach = (40 + 9 * math.sqrt(dimension)) / (kappa * t).clamp_min(1e-300)
    start = torch.where(sign < 0, (1 - reach).clamp_min(0).sqrt(), 0.0)
    y = start + (1 - start) * nodes
    s = t * y.square()
    log_ratio = sign * kappa * t * (1 - y) * (1 + y) + (dimension - 2) * y.log()
    log_ratio = log_ratio + (dimension - 3) / 2 * torch.log((2 - s) / (2 - t))
    integral = (weights * (1 - start) * 2 * t * (m - s) * log_ratio.exp()).sum(-1)
    return -integral
