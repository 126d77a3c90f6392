r"""Normalizing flows: as a prior with an exact log p(z), as an amortized posterior, or as a likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions import transforms as torch_transforms
from torch.distributions.transforms import Transform

from pyro_vae.errors import InputError, near_match
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.parameters import as_shape
from pyro_vae.vae.sources import Fixed
from pyro_vae.vae.trunk import Trunk

FLOWS = {"maf": "MAF", "nsf": "NSF", "realnvp": "RealNVP"}
# Factor on the initial last layers of the hyper-networks; it makes the flow start near the identity.
_START = 0.01


class FlowDistribution(TorchDistribution):
    r"""The distribution of z = T(u); it stores the density of its last draw.

    .. math:: \log p(z) = \log p(u) - \log |\det J_T(u)|, \qquad u = T^{-1}(z)

    An autoregressive T is fast in one direction and sequential in the other. With the stored density, a draw does not
    need the slow direction.

    Arguments:
        base: Distribution of u, event shape ``(L,)``.
        transform: Transform T with a method ``call_and_ladj``, as zuko's transforms have.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True
    _last: tuple[Tensor, Tensor] | None = None

    def __init__(self, base: TorchDistribution, transform: Any) -> None:
        self.base, self.transform = base, transform
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of z, through which gradients pass."""
        u = self.base.rsample(torch.Size(sample_shape))
        z, log_jacobian = self.transform.call_and_ladj(u)
        if torch.is_grad_enabled():  # without a graph nothing is stored: log_prob may need one
            self._last = (z, self.base.log_prob(u) - log_jacobian)
        drawn: Tensor = z
        return drawn

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of z without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z)."""
        if self._last is not None and value is self._last[0]:
            return self._last[1]
        u, log_jacobian = self.transform.inv.call_and_ladj(value)
        log_density: Tensor = self.base.log_prob(u) + log_jacobian
        return log_density

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """Returns the flow with another batch shape of u; a transform for each datum broadcasts."""
        return FlowDistribution(self.base.expand(torch.Size(batch_shape)), self.transform)

    def __repr__(self) -> str:
        return f"FlowDistribution(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"


class Flow(Trunk):
    r"""A normalizing flow of zuko's, z = T(u).

    As a prior, u is N(0, I), and log p(z) at a given z must be fast. As a posterior (with ``given``), u is a diagonal
    Normal whose mean and scale the network outputs, and the flow's steps take the network's features. Draws must then
    be fast: `maf` is the inverse autoregressive flow. Every flow starts near the identity.

    Do not use the slow direction in training: there `maf` and `nsf` take L passes one after the other. ``dreg`` and
    ``rws``, for example, use it with a posterior that is fast at sampling.

    Arguments:
        event_shape: Shape of z, ``(L,)``.
        kind: One of ``maf``, ``nsf``, ``realnvp``.
        given: Network from a context ``(..., C)`` to features.
        transforms: Number of steps.
        hidden: Sizes of the hidden layers of each step's hyper-network.
        fast: Direction in which autoregressive steps take one pass: ``"density"`` or ``"sampling"``. Default: density
            without ``given``, sampling with it.

    Raises:
        InputError: For an unknown kind, an event that is no vector, or a coupling flow over one dimension.

    Reference: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016; Papamakarios
    et al., "Masked autoregressive flow", 2017; Durkan et al., "Neural spline flows", 2019; Dinh et al., "Density
    estimation using Real NVP", 2017; Chen et al., "Variational lossy autoencoder", 2017, section 3.2 (as a prior).

    Example:
        >>> prior = Flow((4,), "nsf")
        >>> prior().sample((3,)).shape
        torch.Size([3, 4])
        >>> posterior = Flow((4,), "maf", given=torch.nn.Linear(9, 16))  # an inverse autoregressive flow
        >>> posterior(torch.zeros(5, 9)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        kind: str = "maf",
        *,
        given: nn.Module | None = None,
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        fast: str | None = None,
    ) -> None:
        super().__init__(given)
        if kind not in FLOWS:
            raise InputError(f"Flow: unknown kind `{kind}`; {near_match(kind, FLOWS)}")
        if fast not in ("density", "sampling", None):
            raise InputError(f'Flow: `fast` must be "density" or "sampling", got `{fast!r}`.')
        self.event_shape = as_shape(event_shape)
        if len(self.event_shape) != 1:
            raise InputError(f"Flow: an event is a vector, such as (8,); got event_shape {tuple(event_shape)}.")
        for name, sizes in (("transforms", (transforms,)), ("hidden", tuple(hidden))):
            if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
                raise InputError(f"Flow: `{name}` counts from 1 up, got {list(sizes)}.")
        size = self.event_shape[0]
        if kind == "realnvp" and size < 2:
            raise InputError(f"Flow: `{kind}` couples two halves of the latent, and this one has 1 dimension; use maf.")
        self.kind, self.steps, self.hidden = kind, transforms, tuple(hidden)
        self.declared_fast = fast
        self.fast = fast or ("density" if given is None else "sampling")
        head = self.head_network()
        width = 0 if head is None else head.out_features
        flow = getattr(_zuko_flows(), FLOWS[kind])(size, width, transforms=transforms, hidden_features=list(hidden))
        self.transform = flow.transform
        _start_near_identity(self.transform)
        fixed: dict[str, Any] = {} if given is not None else {"loc": Fixed(0.0), "scale": Fixed(1.0)}
        self.base = Conditional(dist.Normal, (size,), given=head, **fixed)
        self.like_trunk(self.transform, self.base)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Returns the distribution of z given a context of shape ``(..., C)``, or none."""
        features = self.features(context)
        base = self.base(features)
        if features is None and context is not None:
            base = base.expand(context.shape[:-1])
        return FlowDistribution(base, self._steps(features))

    def _steps(self, features: Tensor | None) -> Transform:
        """Returns T, from u to z."""
        steps = self.transform(features)
        return steps if self.fast == "sampling" else steps.inv

    def to_spec(self) -> dict[str, Any]:
        """Returns its entry in the experiment file, without its network."""
        spec: dict[str, Any] = {"kind": self.kind, "transforms": self.steps, "hidden": list(self.hidden)}
        return {"flow": spec if self.declared_fast is None else {**spec, "fast": self.declared_fast}}

    def extra_repr(self) -> str:
        return f"{self.kind}, event_shape={tuple(self.event_shape)}, fast={self.fast}"


def _zuko_flows() -> ModuleType:
    """Returns zuko.flows; restores the validation of distributions, which its import switches off everywhere."""
    inverse = torch_transforms._InverseTransform
    kept: list[tuple[Any, str, Any]] = [
        (Distribution, name, vars(Distribution)[name]) for name in ("_validate_args", "arg_constraints")
    ]
    kept.append((inverse, "__name__", inverse.__name__))
    try:
        import zuko.flows
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)
    flows: ModuleType = zuko.flows
    return flows


@torch.no_grad()
def _start_near_identity(transform: nn.Module) -> None:
    for module in transform.modules():
        last = (
            module[-1]
            if isinstance(module, nn.Sequential)
            else module
            if isinstance(module, nn.ParameterList)
            else None
        )
        for parameter in () if last is None else last.parameters():  # of a hyper-network, or of a step without inputs
            parameter.mul_(_START)
