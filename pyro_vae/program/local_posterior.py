r"""The posterior of a program with parameters of each datum's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.batch import Batch
from pyro_vae.distributions.free_parameters import free_parameters, with_parameters
from pyro_vae.errors import InputError
from pyro_vae.program.half import Runs
from pyro_vae.program.joint import LatentDistribution
from pyro_vae.program.sites import Site
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated

# The place of each free parameter, by site and parameter.
Places = Mapping[str, Mapping[str, Site]]


class Offsets(Messenger):
    """Adds numbers to the parameters of a guide's sites, in unconstrained space.

    Arguments:
        places: Place of each parameter among the numbers.
        numbers: The numbers of each datum, shape ``(B, n)``.
    """

    def __init__(self, places: Places, numbers: Tensor) -> None:
        super().__init__()
        self.places, self.numbers = places, numbers

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.places:
            of_site = self.places[msg["name"]]
            msg["fn"] = with_parameters(msg["fn"], lambda name, value: value + of_site[name].value(self.numbers))


class LocalPosterior(Runs):
    r"""The posteriors that a guide becomes if each datum has parameters of its own.

    For each datum, each cell of an inner plate, each local site of the guide and each parameter of its distribution,
    there is a free number a, which is added to the parameter in unconstrained space:

    .. math:: q_a(z|x) = \prod_s q(z_s; T_s(T_s^{-1}(\theta_s(x, z_{<s})) + a_s))

    The families of the sites stay as they are, and so does the way in which a site's parameters depend on earlier
    sites. At a = 0 it is the guide.
    """

    sites: tuple[Site, ...]
    _guide: Any

    def _inside(self, handler: Messenger, function: Any) -> Any:
        """A half of the program inside a handler."""
        raise NotImplementedError

    def _latents(self, function: Any, batch: Batch, has_rsample: bool) -> LatentDistribution:
        raise NotImplementedError

    def local_parameters(self, batch: Batch) -> Tensor:
        """Returns zeros, shape ``(B, n)``; see the class.

        Raises:
            InputError: For a site of the guide without such parameters, or through whose draws no gradient passes.
        """
        widths = [place.size for of_site in self._places().values() for place in of_site.values()]
        return torch.zeros(batch.size, sum(widths), device=batch.device, dtype=self.dtype)

    def local_posterior(self, batch: Batch) -> Callable[[Tensor], LatentDistribution]:
        """Returns the map from a, shape ``(B, n)``, to the posterior; see the class."""
        places = self._places()
        return lambda numbers: self._latents(self._inside(Offsets(places, numbers), self._guide), batch, True)

    def _places(self) -> dict[str, dict[str, Site]]:
        with torch.no_grad(), evaluating(self), isolated(0, "places"):
            nodes = self._run(self._guide, self.probe_batch()).nodes
            shapes = {site.name: _shapes(site.name, nodes[site.name]["fn"]) for site in self.sites}
        starts = _starts([(site, shape) for site in self.sites for shape in shapes[site.name].values()])
        return {
            site.name: {name: _place(site, shape, next(starts)) for name, shape in shapes[site.name].items()}
            for site in self.sites
        }


def _shapes(name: str, fn: Any) -> dict[str, torch.Size]:
    family = type(fn).__name__
    try:
        if fn.has_rsample:
            return free_parameters(fn)
        reason = f"draws of `{family}` have no gradient"
    except InputError as error:
        reason = str(error)
    raise InputError(
        f"needs free parameters of each datum, but the guide's site `{name}` has none: {reason}; draw it from a "
        "distribution such as Normal, also pushed through a bijection; log_marginal and elbo give the total gap of any "
        "guide."
    )


def _place(site: Site, event_shape: torch.Size, start: int) -> Site:
    """A parameter of a site: it has the site's plates, and an event of its own."""
    dtype = torch.get_default_dtype()  # that of the numbers is kept
    return Site(site.name, site.plates, site.depth, event_shape, constraints.real, dtype, site.layout, start)


def _starts(parameters: Sequence[tuple[Site, torch.Size]]) -> Iterator[int]:
    start = 0
    for site, shape in parameters:
        yield start
        start += torch.Size(site.plates).numel() * shape.numel()
