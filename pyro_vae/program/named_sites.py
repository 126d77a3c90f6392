r"""The sites of a program as variables: values whose dimensions have the names of plates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.batch import Batch
from pyro_vae.program import running
from pyro_vae.program.half import Runs
from pyro_vae.program.sites import Layout, Site, values_of
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.named import DATUM, DRAW, Named


class NamedSites(Runs):
    """The variables of a `Program` by name.

    A site's dimensions are the plates around it, by their names, and those of its event: ``<site>_dim_0`` and so on.
    The plate over data is ``datum``.
    """

    layout: Layout
    plate: str
    sites: tuple[Site, ...]
    _model: Any
    _fixed: dict[str, Tensor]
    _observed: dict[str, int | None]
    _enumerated: tuple[Site, ...]

    def _latent_nodes(self, trace: Trace) -> dict[str, Any]:
        """The local latents and the enumerated sites in a trace."""
        raise NotImplementedError

    def named_globals(self) -> dict[str, Named]:
        """Returns the global latents that `at_globals` has drawn, by name."""
        if not self._fixed:
            return {}
        with evaluating(self), isolated(0, "names"):
            trace = self._run(self._model, self.probe_batch())
        return {name: self._named(trace.nodes[name], value, None) for name, value in self._fixed.items()}

    def named_latents(self, z: Tensor, batch: Batch) -> dict[str, Named]:
        """Returns the local latents in the values that the model sees; see `LatentVariableModel.named_latents`."""
        nodes = self._run(self._model, batch, None, values_of(self.sites, z[0])).nodes
        return {site.name: self._named(nodes[site.name], site.value(z), len(z)) for site in self.sites}

    def named_data(self, batch: Batch) -> dict[str, Named]:
        """Returns the values of the observed sites, nan where a mask hides them; factors have none."""
        with torch.no_grad(), evaluating(self), isolated(0, "names"):
            nodes = running.observed(self._run(self._model, batch))
        return {name: self._named(node, _seen(node), None) for name, node in nodes.items() if _has_cells(node)}

    def named_draws(self, z: Tensor, batch: Batch) -> dict[str, Named]:
        """Returns draws of the observed sites given the latents; see `LatentVariableModel.named_draws`."""

        def drawn(given: Tensor, particles: int | None) -> dict[str, Named]:
            values = self._with_enumerated(given, batch, particles)
            nodes = self._run(self._model, batch, particles, values, dreaming=True).nodes
            cells = {name: nodes[name] for name in self._observed if _has_cells(nodes[name])}
            return {name: self._named(node, node["value"], particles) for name, node in cells.items()}

        return self._of_particles(drawn, z)

    def _with_enumerated(self, z: Tensor, batch: Batch, particles: int | None) -> dict[str, Tensor]:
        """The values of the latents, and draws of the enumerated sites from p(y|z), each given those before."""
        values = values_of(self.sites, z)
        for site in self._enumerated:
            trace = self._run(self._model, batch, particles, values, enumerating=True)
            nodes = {name: node for name, node in self._latent_nodes(trace).items()}
            logits = running.log_probabilities(nodes, site.name, self.layout, particles, batch.size)
            support = trace.nodes[site.name]["fn"].enumerate_support(expand=False)
            support = support.reshape(len(support), -1)
            drawn = support[torch.distributions.Categorical(logits=logits).sample()]
            values[site.name] = site.value(drawn.flatten(-2))
        return values

    def log_likelihoods_of(self, z: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Returns the log density of each observed site and factor, summed for each datum, shape ``(K, B)``.

        Where sites are summed out, there is one term for all observed sites.
        """
        if self._enumerated:
            return {"+".join(self._observed): self.log_likelihood_of(z, batch)}

        def terms(given: Tensor, particles: int | None) -> dict[str, Named]:
            nodes = running.observed(self._run(self._model, batch, particles, values_of(self.sites, given)))
            like = given if given.is_floating_point() else self._like()
            dims = (DATUM,) if particles is None else (DRAW, DATUM)
            return {
                name: Named(running.log_density({name: node}, self.layout, particles, batch.size, like), dims)
                for name, node in nodes.items()
            }

        return {name: term.values for name, term in self._of_particles(terms, z).items()}

    def _of_particles(self, function: Callable[[Tensor, int | None], dict[str, Named]], z: Tensor) -> dict[str, Named]:
        """Applies a function to K particles at once, or to one after the other."""
        if self.vectorized:
            return function(z, len(z))
        of_each = [function(each, None) for each in z]
        return {
            name: Named(torch.stack([found[name].values for found in of_each]), (DRAW, *first.dims))
            for name, first in of_each[0].items()
        }

    def _named(self, node: Any, value: Tensor, particles: int | None) -> Named:
        """Returns a site's value with the names of its dimensions.

        Arguments:
            node: The site in a trace.
            value: Its value, of K particles or without a dimension for them.
            particles: K, or None.
        """
        name, event = node["name"], node["fn"].event_shape
        frames = {frame.dim: frame for frame in node["cond_indep_stack"] if frame.vectorized}
        plates = {dim: frames[dim] for dim in range(-self.layout.nesting, 0) if dim in frames}
        dims = [DATUM if frame.name == self.plate else frame.name for frame in plates.values()]
        sizes = [plates[dim].size if dim in plates else 1 for dim in range(-self.layout.nesting, 0)]
        leading = [] if particles is None else [particles]
        full = value.expand(*leading, *sizes, *event)
        kept = full.reshape(*leading, *(frame.size for frame in plates.values()), *event)
        if DATUM in dims:
            kept = kept.movedim(len(leading) + dims.index(DATUM), len(leading))
            dims = [DATUM, *(dim for dim in dims if dim != DATUM)]
        events = [f"{name}_dim_{i}" for i in range(len(event))]
        return Named(kept, (*([] if particles is None else [DRAW]), *dims, *events))


def _has_cells(node: Any) -> bool:
    """Whether a site has values; a factor has none."""
    return node["fn"].event_shape.numel() > 0


def _seen(node: Any) -> Tensor:
    """The value of an observed site, nan where a mask around it or in its distribution hides it."""
    value, fn = node["value"], node["fn"]
    masks = [(node["mask"], len(fn.event_shape))]
    while isinstance(fn, Independent | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, len(fn.event_shape)))
        fn = fn.base_dist
    for mask, events in masks:
        if mask is not None and mask is not True:
            shown = torch.as_tensor(mask, device=value.device)
            shown = shown.reshape(*shown.shape, *(1 for _ in range(events)))
            shown, value = torch.broadcast_tensors(shown, value if value.is_floating_point() else value.float())
            value = value.masked_fill(~shown, torch.nan)
    return value
