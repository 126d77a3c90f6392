r"""The first run of a model and a guide: what they declare, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.distributions.support import is_discrete
from pyro_vae.errors import InputError, near_match
from pyro_vae.program import running
from pyro_vae.program.form import Form
from pyro_vae.program.parts import Found, observing
from pyro_vae.program.sites import GlobalSite, Layout, Site
from pyro_vae.runtime.random_streams import isolated


@dataclass
class Declared:
    """What the first run of a program says.

    Attributes:
        layout: The plates.
        sites: The local latents, in the order of the model.
        shared: The global latents, in the order of the model.
        full_size: Size of the plate over data where the model takes a sample of it.
        enumerated: The sites that are summed out, which are no part of z.
        form: The form of the data.
        example: The example as a batch.
        model: Modules and parameters of the model.
        guide: Modules and parameters of the guide.
        reparameterized: Whether gradients pass through the draws of the guide, and through those of the model.
        observed: Where the value of each observed site lies among the data's tensors; None where it is none of them.
        discrete: Whether the values of each observed site are discrete; factors have none.
    """

    layout: Layout
    sites: tuple[Site, ...]
    shared: tuple[GlobalSite, ...]
    full_size: int | None
    enumerated: tuple[Site, ...]
    form: Form
    example: Batch
    model: Found
    guide: Found
    reparameterized: tuple[bool, bool]
    observed: dict[str, int | None]
    discrete: dict[str, bool]


def declared(model: Any, guide: Any, example: Any, plate: str) -> Declared:
    """Runs guide and model on an example.

    Raises:
        InputError: For a program that does not fit; the message names the site and what to do.
    """
    _check_callable(model=model, guide=guide)
    form = Form(example)
    batch = form.batch(example, "Program", "example")
    data, of_model, of_guide = form.given(batch), Found(), Found()
    with torch.no_grad(), isolated(0):
        guided = _first("guide", guide, data, of_guide)
        modelled = _first("model", model, data, of_model)
    of_model.parameters = {k: v for k, v in of_model.parameters.items() if k not in of_guide.parameters}
    traces = {"model": modelled, "guide": guided}
    enumerated = _enumerated(modelled, guided)
    layout = _layout(traces, plate, batch.size, enumerated)
    _check_sites(traces, plate, enumerated, layout)
    sites, shared = _latents(modelled, guided, plate, layout)
    drawn = {name: node["value"] for name, node in running.latent(guided).items()}
    with torch.no_grad(), isolated(0):
        _check_supports(_first("model", model, data, Found(), drawn), guided)
    leaves = {id(leaf): i for i, leaf in enumerate(form.tensors(batch))}
    observed = running.observed(modelled)
    return Declared(
        layout,
        sites,
        shared,
        _full_size(modelled, plate),
        tuple(_site(name, modelled.nodes[name], modelled.nodes[name], layout, 0) for name in enumerated),
        form,
        batch,
        of_model,
        of_guide,
        (_reparameterized(guided), _reparameterized(modelled)),
        {name: leaves.get(id(node["value"])) for name, node in observed.items()},
        {name: is_discrete(node["fn"].support) for name, node in observed.items() if _has_values(node)},
    )


def _has_values(node: Any) -> bool:
    """Whether a site has values; a factor has none."""
    return bool(node["fn"].event_shape.numel() > 0)


def _check_callable(**functions: Any) -> None:
    for name, function in functions.items():
        if not callable(function) or isinstance(function, type):
            raise InputError(
                f"Program: `{name}` is a function or a module of one argument, the batch; got `{function!r}`."
            )


def _enumerated(modelled: Trace, guided: Trace) -> tuple[str, ...]:
    """Names of the model's sites that are marked for enumeration and not drawn by the guide."""
    latent = running.latent(modelled)
    return tuple(name for name, node in latent.items() if _mark(node) and name not in guided.nodes)


def _mark(node: Any) -> Any:
    return node["infer"].get("enumerate")


def _layout(traces: Mapping[str, Trace], plate: str, size: int, enumerated: tuple[str, ...]) -> Layout:
    """The plates of both halves; a guide that draws no local site needs no plate over data."""
    drawn = {name: node for trace in traces.values() for name, node in running.latent(trace).items()}
    local = not enumerated or any(_inside(node, plate) for name, node in drawn.items() if name not in enumerated)
    halves = traces if local else {"model": traces["model"]}
    dims = {half: _plate_dim(half, trace, plate, size) for half, trace in halves.items()}
    if local and dims["model"] != dims["guide"]:
        raise InputError(
            f"Program: the plate `{plate}` is at dim {dims['model']} in the model and at {dims['guide']} in the guide; "
            "give both the same dim=."
        )
    nodes = [node for trace in traces.values() for node in trace.nodes.values()]
    frames = [frame for node in nodes for frame in node.get("cond_indep_stack", ()) if frame.vectorized]
    return Layout(max(-frame.dim for frame in frames), dims["model"])


def _full_size(modelled: Trace, plate: str) -> int | None:
    """The size of a subsampled plate over data."""
    frames = {f.name: f for node in modelled.nodes.values() for f in node.get("cond_indep_stack", ())}
    full = frames[plate].full_size
    return None if full is None or full == frames[plate].size else int(full)


def _latents(
    modelled: Trace, guided: Trace, plate: str, layout: Layout
) -> tuple[tuple[Site, ...], tuple[GlobalSite, ...]]:
    """The local and the global latents, in the order of the model; in z, the global ones stand behind the others."""
    sites: list[Site] = []
    shared: list[GlobalSite] = []
    latent = {name: node for name, node in running.latent(modelled).items() if name in guided.nodes}
    start = 0
    for name in [name for name, node in latent.items() if _inside(node, plate)]:
        sites.append(_site(name, latent[name], guided.nodes[name], layout, start))
        start += sites[-1].size
    for name in [name for name, node in latent.items() if not _inside(node, plate)]:
        shared.append(_global_site(name, latent[name], guided.nodes[name], start))
        start += shared[-1].size
    return tuple(sites), tuple(shared)


def _reparameterized(trace: Trace) -> bool:
    """Whether gradients pass through the draws of all latents."""
    return all(node["fn"].has_rsample for node in running.latent(trace).values())


def _first(half: str, function: Any, data: Any, found: Found, given: Mapping[str, Tensor] | None = None) -> Trace:
    """Runs a half of a program for the first time."""
    try:
        with observing(function, found):
            return running.run(function, data, given=given)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"Program: the {half} fails on the example: {type(error).__name__}: {reason}. It is called with one "
            "argument, the batch."
        ) from error


def _plate_dim(half: str, trace: Trace, plate: str, size: int) -> int:
    """The dimension of the plate over data."""
    frames = {f.name: f for node in trace.nodes.values() for f in node.get("cond_indep_stack", ())}
    if plate not in frames:
        names = [f"`{name}`" for name in frames]
        found = (
            f"its plates are {', '.join(names)}; pass plate=, the name of the one over data"
            if names
            else (f'put its sites into `with pyro.plate("{plate}", B):`, B the number of rows')
        )
        raise InputError(f"Program: the {half} has no plate `{plate}` with a site in it; {found}.")
    frame = frames[plate]
    if not frame.vectorized:
        raise InputError(
            f"Program: the {half} loops over the plate `{plate}`, one datum at a time; use `with pyro.plate(...)`."
        )
    if frame.size != size:
        raise InputError(
            f"Program: the plate `{plate}` of the {half} has {frame.size} rows, and the example {size}; make it of the "
            "number of rows of the batch, such as len(x)."
        )
    return int(frame.dim)


def _check_sites(traces: Mapping[str, Trace], plate: str, enumerated: tuple[str, ...], layout: Layout) -> None:
    model, guide = (running.latent(traces[half]) for half in ("model", "guide"))
    for name in enumerated:
        _check_enumerated(name, traces["model"], plate, layout.data)
    for half, trace in traces.items():
        for name, node in {**running.latent(trace), **running.observed(trace)}.items():
            _check_site(half, name, node, plate)
    for name, node in guide.items():
        if node["infer"].get("is_auxiliary", False):
            raise InputError(
                f"Program: the guide's site `{name}` is auxiliary; a guide draws the model's sites themselves."
            )
        if name not in model:
            where = "is observed in the model" if name in traces["model"].nodes else "is no site of the model"
            hint = f"; {near_match(name, list(model))}" if model else ""
            raise InputError(f"Program: the guide draws `{name}`, which {where}; leave it out{hint or '.'}")
    for name in [name for name in guide if _inside(guide[name], plate) != _inside(model[name], plate)]:
        inside, outside = ("guide", "model") if _inside(guide[name], plate) else ("model", "guide")
        raise InputError(
            f"Program: the site `{name}` lies inside the plate `{plate}` in the {inside}, and outside in the "
            f"{outside}; put it on the same side in both."
        )
    for name in model:
        if name not in guide and name not in enumerated:
            raise InputError(
                f"Program: the model draws `{name}`, and the guide does not; draw it in the guide from q(`{name}`|x)."
            )
    if not any(_inside(node, plate) for node in model.values()):
        raise InputError(
            "Program: the model has no latent site inside the plate; draw at least one by pyro.sample without obs=."
        )
    if not running.observed(traces["model"]):
        raise InputError("Program: the model observes nothing; pass obs= to a pyro.sample of the model.")
    for name in running.observed(traces["guide"]):
        raise InputError(f"Program: the guide observes `{name}`; observe it in the model alone.")


def _check_site(half: str, name: str, node: Any, plate: str) -> None:
    """Raises an `InputError` for a site that is in no plate over data, or has a batch dimension without a plate."""
    frames = {frame.dim: frame for frame in node["cond_indep_stack"] if frame.vectorized}
    if node["is_observed"] and not _inside(node, plate):
        raise InputError(
            f"Program: the observed site `{name}` of the {half} lies outside the plate `{plate}`; observe each datum "
            "inside it."
        )
    if half == "guide" and _mark(node):
        raise InputError(
            f"Program: the guide marks the site `{name}` by infer={{'enumerate': ...}}; leave the site out of the "
            "guide and mark it in the model, which sums it out, or leave the mark out and use score-function, rws or "
            "wake-sleep."
        )
    for i, size in enumerate(reversed(node["fn"].batch_shape)):
        if size > 1 and -i - 1 not in frames:
            raise InputError(
                f"Program: the site `{name}` of the {half} has a batch dimension of size {size} at {-i - 1}, which no "
                f"plate declares; make it a part of the event by .to_event({i + 1}), or put the site into a plate."
            )


def _check_enumerated(name: str, modelled: Trace, plate: str, data: int) -> None:
    """Raises an `InputError` for a site that cannot be summed out."""
    node = modelled.nodes[name]
    marks = {key: value for key, value in node["infer"].items() if key in ("enumerate", "num_samples")}
    if marks != {"enumerate": "parallel"}:
        raise InputError(
            f"Program: the site `{name}` has infer={marks}; a program sums over all values at once, so mark it by "
            "infer={'enumerate': 'parallel'} alone."
        )
    if not node["fn"].has_enumerate_support:
        raise InputError(
            f"Program: the site `{name}` is marked for enumeration, and {node['fn']} has no finite number of values; "
            "draw it in the guide."
        )
    if not _inside(node, plate):
        raise InputError(
            f"Program: the site `{name}` is marked for enumeration and lies outside the plate `{plate}`; put it "
            "inside, or draw it in the guide."
        )
    for other, its in {**running.latent(modelled), **running.observed(modelled)}.items():
        if _inside(its, plate) and bool((torch.as_tensor(running.scale_of(its, data)) != 1.0).any()):
            raise InputError(
                f"Program: the site `{other}` has a scale of its own, beside the enumerated site `{name}`; a scale "
                "is no part of a density that is summed, so leave poutine.scale out."
            )


def _site(name: str, model: Any, guide: Any, layout: Layout, start: int) -> Site:
    """A latent site, from its nodes in model and guide, which must fit each other."""
    shapes = [_plates(node, layout) for node in (model, guide)]
    events = [node["fn"].event_shape for node in (model, guide)]
    if shapes[0] != shapes[1] or events[0] != events[1]:
        said = [f"plates {shape or '()'} and event {tuple(event)}" for shape, event in zip(shapes, events, strict=True)]
        raise InputError(
            f"Program: the site `{name}` has {said[0]} in the model, and {said[1]} in the guide; draw the same shape."
        )
    support, value = model["fn"].support, model["value"]
    depth = value.dim() - len(events[0])
    return Site(name, shapes[0], depth, events[0], support, value.dtype, layout, start)


def _inside(node: Any, plate: str) -> bool:
    """Whether a site lies in the plate over data."""
    return plate in [frame.name for frame in node["cond_indep_stack"]]


def _global_site(name: str, model: Any, guide: Any, start: int) -> GlobalSite:
    """A site outside the plate over data, from its nodes in model and guide."""
    shapes = [tuple(node["value"].shape) for node in (model, guide)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"Program: the global site `{name}` has shape {shapes[0]} in the model, and {shapes[1]} in the guide; draw "
            "the same shape."
        )
    if not guide["fn"].has_rsample:
        raise InputError(
            f"Program: the guide draws the global site `{name}` from a distribution without rsample; use one through "
            "which gradients pass, such as a Normal."
        )
    return GlobalSite(name, torch.Size(shapes[0]), start)


def _check_supports(modelled: Trace, guided: Trace) -> None:
    """Raises an `InputError` if the guide draws a value outside the support of the model's site."""
    shared = {name: node for name, node in running.latent(modelled).items() if name in guided.nodes}
    for name, node in shared.items():
        support, its = node["fn"].support, guided.nodes[name]["fn"].support
        if is_discrete(support) != is_discrete(its) or not bool(support.check(node["value"]).all()):
            raise InputError(
                f"Program: the guide draws `{name}` from {its}, and the model's support is {support}; use a "
                "distribution with this support, such as a Normal pushed onto it."
            )


def _plates(node: Any, layout: Layout) -> tuple[int, ...]:
    sizes = [1] * layout.nesting
    for frame in node["cond_indep_stack"]:
        if frame.vectorized:
            sizes[frame.dim] = frame.size
    del sizes[layout.data]
    return tuple(sizes)
