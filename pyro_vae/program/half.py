r"""The model or the guide of a program for one batch: its draws and their densities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.program import running
from pyro_vae.program.sites import flat_of, values_of
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Function:
    """A model or guide beside the modules of a `Program`; a copy of the program keeps it."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __deepcopy__(self, memo: dict[int, Any]) -> Function:
        return self


class Runs(LatentVariableModel):
    """A program as its parts see it: what they ask is runs of its model or its guide."""

    def _run(
        self,
        function: Any,
        batch: Batch,
        particles: int | None = None,
        given: Mapping[str, Tensor] | None = None,
        dreaming: bool = False,
        enumerating: bool = False,
    ) -> Trace:
        """Runs the model or the guide on a batch; see `pyro_vae.program.running.run`."""
        raise NotImplementedError


class Half:
    """The model or the guide of a program for one batch; see `Draws`.

    Arguments:
        program: The `Program`.
        function: Its model or its guide.
        batch: A ready batch.
    """

    def __init__(self, program: Any, function: Function, batch: Batch) -> None:
        self.program, self.function, self.batch = program, function, batch

    def draw(self, particles: int | None) -> tuple[Tensor, Tensor]:
        """Returns draws of all latents, and their log density."""
        if particles is not None and not self.program.vectorized:
            pairs = [self._drawn(None)]
            given = values_of(self.program.shared_sites, pairs[0][0])
            pairs += [self._drawn(None, given) for _ in range(particles - 1)]
            return torch.stack([z for z, _ in pairs]), torch.stack([value for _, value in pairs])
        return self._drawn(particles)

    def _drawn(self, particles: int | None, given: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        program, trace = self.program, self.program._run(self.function, self.batch, particles, given)
        values = {name: node["value"] for name, node in running.latent(trace).items()}
        leading = (self.batch.size,) if particles is None else (particles, self.batch.size)
        z = flat_of(program.sites, program.shared_sites, values, leading, program._like())
        return z, self.log_density(z) if self._enumerating else self._sum(trace, z, particles)

    def log_density(self, z: Tensor) -> Tensor:
        """Returns the log density of all latents."""
        if z.dim() == 3 and not self.program.vectorized:
            return torch.stack([self.log_density(each) for each in z])
        trace, particles = self._at(z)
        return self._sum(trace, z, particles)

    def kl_from(self, other: Half, z: Tensor, sampled: bool) -> dict[str, Tensor]:
        """Returns the KL of each site from this half's distribution to another's, given the sites before.

        It is in closed form where there is one, else the log ratio at z, if it may be ``sampled``.
        """
        if z.dim() == 3 and not self.program.vectorized:
            terms = [self.kl_from(other, each, sampled) for each in z]
            return {name: torch.stack([each[name] for each in terms]) for name in terms[0]}
        (mine, particles), (its, _) = self._at(z), other._at(z)
        pairs = zip(self._nodes(mine).values(), self._nodes(its).values(), strict=True)
        enumerated = [its.nodes[name] for name in self.program.enumerated_sites]
        found = running.divergences(pairs, enumerated, self.program.layout, particles, self.batch.size, sampled)
        for site in self.program.shared_sites:
            q, p = mine.nodes[site.name], its.nodes[site.name]
            ratio = running.log_density_of_globals({"q": q}, z) - running.log_density_of_globals({"p": p}, z)
            found[site.name] = (ratio / (self.program.size or 1)).expand(z.shape[:-1])
        return found

    def statistic(self, function: Callable[[TorchDistribution], Tensor]) -> Tensor:
        """Returns a statistic of every site's distribution, side by side, shape ``(B, L)``.

        Raises:
            NotImplementedError: If it depends on the draws of other sites.
        """
        program = self.program
        if program.shared_sites or self._enumerating or not program.vectorized:
            raise NotImplementedError("a statistic of several sites")
        with torch.no_grad(), isolated(0, "statistic"):
            nodes, shape = self._nodes(program._run(self.function, self.batch, 2)), (2, self.batch.size)
        values = {name: function(node["fn"]).expand_as(node["value"]) for name, node in nodes.items()}
        both = flat_of(program.sites, (), values, shape, program._like())
        if not bool((both[0] == both[1]).all()):
            raise NotImplementedError("a statistic that depends on draws of other sites")
        return both[0]

    def _at(self, z: Tensor) -> tuple[Trace, int | None]:
        particles = z.shape[0] if z.dim() == 3 else None
        given = values_of(self.program._all_sites, z)
        return self.program._run(self.function, self.batch, particles, given, enumerating=self._enumerating), particles

    @property
    def _enumerating(self) -> bool:
        return self.program._enumerating and self.function is self.program._model

    def _nodes(self, trace: Trace) -> dict[str, Any]:
        return {site.name: trace.nodes[site.name] for site in self.program.sites}

    def _sum(self, trace: Trace, z: Tensor, particles: int | None) -> Tensor:
        like = z if z.is_floating_point() else self.program._like()
        local = running.log_density(
            self.program._latent_nodes(trace), self.program.layout, particles, self.batch.size, like
        )
        return local + self.program._global_terms(trace, like)
