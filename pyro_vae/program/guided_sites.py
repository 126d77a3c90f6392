r"""The latent sites of a model for which a guide follows from the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.distributions.support import is_discrete, is_real
from pyro_vae.errors import InputError
from pyro_vae.program import running
from pyro_vae.program.model_runs import mask_of
from pyro_vae.program.sites import Layout
from pyro_vae.vae.derived_posterior import vanishes_at_infinity


@dataclass
class GuidedSites:
    """The sites of a guide, and a value for each latent.

    Attributes:
        layout: The plates of the model.
        order: Names of the sites of the guide, in the order of the model.
        local: Those inside the plate over data.
        values: A value of each latent, also of those that are summed over; local ones of one datum.
        per_datum: Dimension of the data in a value, negative, for those inside the plate.
    """

    layout: Layout
    order: tuple[str, ...]
    local: frozenset[str]
    values: dict[str, Tensor]
    per_datum: dict[str, int]


def guided_sites(trace: Trace, plate: str, size: int) -> GuidedSites:
    """Returns the sites of a guide, from a run of the model on B = ``size`` data.

    Raises:
        InputError: For a site that cannot have a posterior that follows from the model.
    """
    latent, observed = running.latent(trace), running.observed(trace)
    data = _data_dim(trace, plate, size)
    if not latent:
        raise InputError("auto_guide: the model has no latent site; draw at least one by pyro.sample without obs=.")
    if not observed:
        raise InputError("auto_guide: the model observes nothing; pass obs= to a pyro.sample of the model.")
    nodes = {**latent, **observed}
    frames = [frame for node in nodes.values() for frame in node["cond_indep_stack"] if frame.vectorized]
    layout = Layout(max(-frame.dim for frame in frames), data)
    local = {name for name in nodes if _inside(nodes[name], plate)}
    for name, node in nodes.items():
        _check(name, node, plate, name in local)
    values, per_datum = {}, {}
    for name, node in latent.items():
        values[name] = node["value"].detach().clone()
        if name in local:
            per_datum[name] = data - len(node["fn"].event_shape)
            values[name] = values[name].narrow(per_datum[name], 0, 1).clone()
    order = tuple(name for name, node in latent.items() if not _summed(node))
    return GuidedSites(layout, order, frozenset(local), values, per_datum)


def _data_dim(trace: Trace, plate: str, size: int) -> int:
    """The dimension of the plate over data."""
    frames = {frame.name: frame for node in trace.nodes.values() for frame in node.get("cond_indep_stack", ())}
    if plate not in frames:
        found = ", ".join(f"`{name}`" for name in frames) or "none"
        raise InputError(
            f"auto_guide: the model has no plate `{plate}` with a site in it (its plates: {found}); pass plate=, the "
            "name of the one over data."
        )
    frame = frames[plate]
    if not frame.vectorized or frame.size != size:
        rows = f"has {frame.size} rows, and the example {size}" if frame.vectorized else "is a loop"
        raise InputError(
            f"auto_guide: the plate `{plate}` of the model {rows}; write `with pyro.plate(...)` with the number of "
            "rows of the batch, such as len(x)."
        )
    return int(frame.dim)


def _inside(node: Any, plate: str) -> bool:
    return plate in [frame.name for frame in node["cond_indep_stack"]]


def _summed(node: Any) -> bool:
    return node["infer"].get("enumerate") == "parallel"


def _check(name: str, node: Any, plate: str, local: bool) -> None:
    fn, mask = node["fn"], mask_of(node)
    declared = {frame.dim for frame in node["cond_indep_stack"] if frame.vectorized}
    for i, size in enumerate(reversed(fn.batch_shape)):
        if size > 1 and -i - 1 not in declared:
            raise InputError(
                f"auto_guide: the site `{name}` has a batch dimension of size {size} at {-i - 1}, which no plate "
                f"declares; make it a part of the event by .to_event({i + 1}), or put the site into a plate."
            )
    if node["is_observed"]:
        if not local:
            raise InputError(
                f"auto_guide: the observed site `{name}` lies outside the plate `{plate}`; observe each datum inside "
                "it."
            )
        return
    if _summed(node):
        return
    if is_discrete(fn.support):
        raise InputError(
            f"auto_guide: the site `{name}` is discrete, so that no posterior for it follows from the model; mark it "
            'infer={"enumerate": "parallel"}, so that it is summed over, or write the guide by hand.'
        )
    if isinstance(mask, Tensor) and any(size > 1 for size in mask.shape[mask.dim() - len(fn.event_shape) :]):
        raise InputError(
            f"auto_guide: a mask hides single cells of the latent site `{name}`; hide whole events by poutine.mask, or "
            "put the cells into a plate."
        )
    if is_real(fn.support) and not vanishes_at_infinity(fn):
        raise InputError(
            f"auto_guide: the density of the site `{name}` does not integrate to 1 over the support that it declares "
            f"({fn.support}), so that a guide over the real line would give a bound above log p(x); write the guide by "
            "hand, with a distribution of the same family."
        )
