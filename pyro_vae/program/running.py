r"""Runs of a program's model and guide, and the log densities of their sites."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.distributions.kl import analytic_kl
from pyro_vae.errors import InputError
from pyro_vae.program.enumeration import conditionals, depends, log_sum
from pyro_vae.program.sites import Layout

PARTICLES = "_particles"


class Particles(pyro.plate):
    """The plate of particles; sites outside the plate over data are outside of it too, and have one value for all.

    Arguments:
        size: K.
        dim: Its dimension, before all others.
        outside: Names of those sites.
    """

    def __init__(self, size: int, dim: int, outside: Container[str]) -> None:
        super().__init__(PARTICLES, size, dim=dim)
        self.outside = outside

    def _process_message(self, msg: Any) -> None:
        if msg["name"] not in self.outside:
            super()._process_message(msg)


class Given(Messenger):
    """Gives latent sites their values; none of them is enumerated.

    Arguments:
        values: Value of each site, by name.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["infer"] = {**msg["infer"], "enumerate": None}


def run(
    function: Any,
    data: Any,
    layout: Layout | None = None,
    particles: int | None = None,
    given: Mapping[str, Tensor] | None = None,
    dreaming: bool = False,
    outside: Container[str] = (),
    enumerating: bool = False,
) -> Trace:
    """Runs a model or a guide once, and returns its trace.

    Arguments:
        function: The model or the guide.
        data: Its argument.
        layout: The plates of the program; needed for particles.
        particles: K, draws for each datum, along a dimension of their own before all others; None for one draw
            without this dimension.
        given: Values of latent sites, by name.
        dreaming: Whether observed sites are drawn too.
        outside: Names of sites that have one value for all particles.
        enumerating: Whether sites marked for enumeration have all their values, each in a dimension before all others;
            else they are drawn.
    """
    with ExitStack() as stack:
        if enumerating and layout is not None:
            stack.enter_context(EnumMessenger(first_available_dim=-layout.nesting - 2))
        if particles is not None and layout is not None:
            stack.enter_context(Particles(particles, -layout.nesting - 1, outside))
        if given is not None:
            stack.enter_context(Given(given))
        called = poutine.uncondition(function) if dreaming else function
        trace = poutine.trace(called).get_trace(data)
    if enumerating:
        trace.symbolize_dims()
    return trace


def latent(trace: Trace) -> dict[str, Any]:
    """Returns the latent sites of a trace, by name, in order."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
    }


def observed(trace: Trace) -> dict[str, Any]:
    """Returns the observed sites of a trace and its factors, by name; deterministic sites are none."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and node["is_observed"]
        and not site_is_subsample(node)
        and not node["infer"].get("_deterministic", False)
    }


def divergences(
    pairs: Iterable[tuple[Any, Any]],
    enumerated: Iterable[Any],
    layout: Layout,
    particles: int | None,
    size: int,
    sampled: bool,
) -> dict[str, Tensor]:
    """Returns KL(q || p) of each site given earlier sites, by name, shape ``(K, B)`` or ``(B,)``.

    Arguments:
        pairs: Each site in the guide's trace and in the model's, at the same values, in the order of the model.
        enumerated: The enumerated sites in the model's trace; p is the density without them.
        layout: The plates of the program.
        particles: K, or None.
        size: B.
        sampled: Whether the log ratio serves for sites without a closed form.

    Raises:
        InputError: For such a site otherwise.
    """
    summed = [(node, log_prob_of(node, layout.data)) for node in enumerated]
    found, dependent = {}, []
    for mine, its in pairs:
        if summed and depends(value := log_prob_of(its, layout.data), layout, particles):
            if not sampled:
                raise InputError(
                    f"the site `{mine['name']}` depends on an enumerated one, so its KL has no closed form."
                )
            dependent.append((its, value))
            found[mine["name"]] = layout.sums(log_prob_of(mine, layout.data), particles, size)
            continue
        try:
            value = _weighed(analytic_kl(mine["fn"], its["fn"]), mine, layout.data)
        except InputError as error:
            if not sampled:
                raise InputError(f"the site `{mine['name']}`: {error}") from None
            value = _weighed(mine["fn"].log_prob(mine["value"]) - its["fn"].log_prob(its["value"]), mine, layout.data)
        found[mine["name"]] = layout.sums(value, particles, size)
    for name, value in conditionals(dependent, summed, layout, particles, size).items():
        found[name] = found[name] - value
    return found


def log_density(nodes: Mapping[str, Any], layout: Layout, particles: int | None, size: int, like: Tensor) -> Tensor:
    """Returns the sum of the sites' log densities for each datum, shape ``(K, B)`` or ``(B,)``.

    Enumerated sites among them are summed out: then it is the log density of the others. Masks and the program's own
    scales apply. The scale of a subsampled plate over data does not: each datum counts once.

    Arguments:
        nodes: Sites of a trace.
        layout: The plates of the program.
        particles: K, or None.
        size: B.
        like: Tensor of the result's type and device.
    """
    leading = () if particles is None else (particles,)
    total = like.new_zeros((*leading, size))
    dependent = []
    for node in nodes.values():
        value = log_prob_of(node, layout.data)
        if depends(value, layout, particles):
            dependent.append((node, value))
        else:
            total = total + layout.sums(value, particles, size)
    return total + log_sum(dependent, layout, particles, size) if dependent else total


def log_probabilities(nodes: Mapping[str, Any], name: str, layout: Layout, particles: int | None, size: int) -> Tensor:
    """Returns the log probabilities of an enumerated site given all others that are not, ``([K,] B, n, C)``.

    Arguments:
        nodes: All sites of a trace.
        name: The enumerated site.
        layout: The plates of the program.
        particles: K, or None.
        size: B.
    """
    terms = [(node, log_prob_of(node, layout.data)) for node in nodes.values()]
    dependent = [(node, value) for node, value in terms if depends(value, layout, particles)]
    return log_sum(dependent, layout, particles, size, kept=name).log_softmax(-1)


def log_prob_of(node: Any, data: int) -> Tensor:
    """Returns the log density of a site with its mask and scale, but for the scale of the plate over data.

    Arguments:
        node: The site in a trace.
        data: Dimension of the plate over data.
    """
    return _weighed(node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"]), node, data)


def log_density_of_globals(nodes: Mapping[str, Any], like: Tensor) -> Tensor:
    """Returns the sum of the global sites' log densities, a scalar in nats."""
    total = like.new_zeros(())
    for node in nodes.values():
        total = total + _weighed(node["fn"].log_prob(node["value"]), node, None).sum()
    return total


def scale_of(node: Any, data: int | None) -> Any:
    """Returns the scale of a site without that of a subsampled plate over data, in which each datum counts once.

    Arguments:
        node: The site in a trace.
        data: Dimension of the plate over data; None for a site outside of it.
    """
    scale = node["scale"]
    for frame in node["cond_indep_stack"]:
        if frame.dim == data and frame.full_size is not None and frame.full_size != frame.size:
            scale = scale * frame.size / frame.full_size
    return scale


def _weighed(value: Tensor, node: Any, data: int | None) -> Tensor:
    """Applies the mask and the scale of a site; arguments as for `scale_of`."""
    scale, mask = scale_of(node, data), node["mask"]
    if mask is False:
        return torch.zeros_like(value)
    if isinstance(mask, Tensor):
        mask, value = torch.broadcast_tensors(mask, value)
        value = torch.where(mask, value, torch.zeros_like(value))
    return value * scale if isinstance(scale, Tensor) or scale != 1.0 else value
