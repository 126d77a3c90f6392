r"""The posterior of one site of an automatic guide, in unconstrained space and on the site's support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import ComposeTransform, ReshapeTransform, Transform

from pyro_vae.distributions.pushed import Pushed
from pyro_vae.distributions.support import is_real
from pyro_vae.networks.mlp import mlp
from pyro_vae.program.encoder_input import rows_of
from pyro_vae.program.model_runs import onto_support
from pyro_vae.program.sites import Layout
from pyro_vae.runtime.precision import network_output
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.flow import FLOWS, Flow
from pyro_vae.vae.trunk import PassThrough

# Families of Conditional, by the name of the guide's family.
NORMALS = {"normal": dist.Normal, "multivariate-normal": dist.MultivariateNormal}
FAMILIES = (*NORMALS, *FLOWS)
# Factor on the initial weights of a head; it makes q start near a standard Normal for all data.
_START = 0.01


class OntoSite(Pushed):
    """A distribution in unconstrained space, pushed onto a site's support.

    A plate expands a distribution and draws from the expanded one; `preimage` returns the u of this draw too.
    """

    _source: OntoSite | None = None

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> OntoSite:
        """Returns the distribution with another batch shape."""
        new: OntoSite = super().expand(torch.Size(batch_shape), _instance)
        new._source = self
        return new

    def _remembered(self, u: Tensor) -> Tensor:
        z = super()._remembered(u)
        if self._source is not None:
            self._source._last = self._last
        return z


class SitePosterior(nn.Module):
    r"""q(z_s | x, earlier sites): a distribution of u in unconstrained space, pushed onto the support by z_s = T(u).

    A linear head maps features to the parameters of each cell of the inner plates. If the site reads earlier ones, a
    hidden layer stands beside the direct inputs of the head.

    Arguments:
        node: The site in a run of the model.
        layout: The plates of the model.
        family: One of `FAMILIES`.
        features: Number F of the encoder's features.
        earlier: Number of unconstrained values of earlier sites that the site reads.
    """

    def __init__(self, node: Any, layout: Layout, family: str, features: int, earlier: int) -> None:
        super().__init__()
        self.name, self.layout, self.event_shape = node["name"], layout, node["fn"].event_shape
        frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
        self.depth = max(-frame.dim for frame in frames)
        sizes = [1] * layout.nesting
        for frame in frames:
            sizes[frame.dim] = frame.size
        del sizes[layout.data]
        self.plates = torch.Size(sizes)
        step = onto_support(node["fn"].support, self.event_shape, self.name)
        self.inner_shape = torch.Size(step.inverse_shape(self.event_shape))
        n = self.inner_shape.numel()
        self.family, width = family, features
        self.density: Conditional | Flow
        if family in NORMALS:
            self.density = Conditional(NORMALS[family], (n,), given=PassThrough(n), head=None)
            width = sum(self.density.network_sizes.values())
        else:
            self.density = Flow((n,), family, given=PassThrough(features))
        self.hidden = mlp(features + earlier, features) if earlier else None
        inputs = features + earlier + (features if earlier else 0)
        self.head = nn.Linear(inputs, self.plates.numel() * width)
        with torch.no_grad():
            self.head.weight.mul_(_START)
            self.head.bias.zero_()

    @property
    def size(self) -> int:
        """Number of unconstrained values for each datum."""
        return self.plates.numel() * self.inner_shape.numel()

    def forward(self, context: Tensor, node: Any) -> TorchDistribution:
        """Returns the distribution of the site.

        Arguments:
            context: Features and unconstrained values of earlier sites, shape ``(*extra, B, F + earlier)``.
            node: The site in a run of the model on the batch.
        """
        if self.hidden is not None:
            context = torch.cat([context, network_output(self.hidden, context)], dim=-1)
        raw = network_output(self.head, context)
        extra = raw.dim() - 2
        cells = raw.reshape(*raw.shape[:-1], *self.plates, -1)
        cells = cells.movedim(extra, cells.dim() - 1 + self.layout.data)
        if not extra:
            cells = cells.reshape(cells.shape[self.layout.nesting - self.depth :])
        return onto_site(self.density(cells), self.inner_shape, node)

    def rows(self, q: TorchDistribution, value: Tensor) -> Tensor:
        """Returns the unconstrained values of a draw, datum by datum, shape ``(*extra, B, size)``."""
        return rows_of(*unconstrained(q, value), self.layout)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.family}"


class GlobalPosterior(nn.Module):
    """q(z_s) of a site that all data share: independent Normals in unconstrained space with free parameters.

    Arguments:
        node: The site in a run of the model.
        layout: The plates of the model.
        like: Tensor of the parameters' type and device.
    """

    def __init__(self, node: Any, layout: Layout, like: Tensor) -> None:
        super().__init__()
        self.name, self.layout, fn = node["name"], layout, node["fn"]
        step = onto_support(fn.support, fn.event_shape, self.name)
        self.inner_shape = torch.Size(step.inverse_shape(fn.event_shape))
        shape = fn.batch_shape + self.inner_shape
        self.loc, self.log_scale = (nn.Parameter(like.new_zeros(shape)) for _ in range(2))

    @property
    def size(self) -> int:
        """Number of unconstrained values."""
        return self.loc.numel()

    def forward(self, context: Tensor, node: Any) -> TorchDistribution:
        """Returns the distribution of the site; the context does not matter. See `SitePosterior.forward`."""
        events = len(self.inner_shape)
        return _pushed(dist.Normal(self.loc, self.log_scale.exp()).to_event(events), [], node)

    def rows(self, q: TorchDistribution, value: Tensor) -> Tensor:
        """Returns the unconstrained values of a draw, shape ``(*extra, 1, size)``."""
        u, events = unconstrained(q, value)
        extra = max(u.dim() - events - self.layout.nesting, 0)
        return u.reshape(*u.shape[:extra], 1, self.size)

    def extra_repr(self) -> str:
        return f"{self.name}, shared by all data"


def onto_site(q: TorchDistribution, inner_shape: torch.Size, node: Any) -> TorchDistribution:
    """Returns a distribution of vectors in unconstrained space as one of the site's events.

    A diagonal Normal keeps its form where the support is the real line, so that its KL has a closed form.
    """
    if isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal):
        loc, scale = (p.reshape(q.batch_shape + inner_shape) for p in (q.base_dist.loc, q.base_dist.scale))
        return _pushed(dist.Normal(loc, scale).to_event(len(inner_shape)), [], node)
    reshape: list[Transform] = [] if q.event_shape == inner_shape else [ReshapeTransform(q.event_shape, inner_shape)]
    return _pushed(q, reshape, node)


def _pushed(q: TorchDistribution, before: list[Transform], node: Any) -> TorchDistribution:
    fn = node["fn"]
    onto = [] if is_real(fn.support) else [onto_support(fn.support, fn.event_shape, node["name"])]
    steps = [*before, *onto]
    if not steps:
        return q
    return OntoSite(q, steps if len(steps) == 1 else [ComposeTransform(steps)])


def unconstrained(q: TorchDistribution, value: Tensor) -> tuple[Tensor, int]:
    """Returns the unconstrained values of a draw from q, and their number of event dimensions."""
    if isinstance(q, OntoSite):
        return q.preimage(value), len(q.base_dist.event_shape)
    return value, len(q.event_shape)
