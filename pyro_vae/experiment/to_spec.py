r"""A declaration in the words of the experiment file, from the modules that it made or that stand for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.experiment.encoder_input import default_input
from pyro_vae.networks.specification import description_of, spec_of
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.derived_posterior import Pushforward
from pyro_vae.vae.hierarchy import Hierarchy, Reads
from pyro_vae.vae.parameter_prior import ParameterPrior
from pyro_vae.vae.part import blocks_of, emits_parameters, network_of
from pyro_vae.vae.vae import VAE

# Networks that emit the parameters of a likelihood themselves, without a linear layer on top.
_HEADLESS = frozenset({"conv", "residual_conv", "module"})


def part_to_spec(part: nn.Module) -> dict[str, Any]:
    """Returns what an experiment file says of a prior, a likelihood or a posterior, with its network.

    Arguments:
        part: A module of pyro_vae's own, or one with a method ``to_spec``.

    Raises:
        InputError: For a module that the file has no word for.
    """
    if isinstance(part, Pushforward):  # follows again from the prior's support
        return part_to_spec(part.base)
    if isinstance(part, Reads):
        return {**part_to_spec(part.likelihood), "reads": list(part.layers)}
    if isinstance(part, Hierarchy):
        sizes = {name: block.stop - block.start for name, block in part.blocks.items()}
        layers = {name: {"size": sizes[name], **part_to_spec(layer)} for name, layer in part.layers.items()}
        return {"hierarchy": {**layers, **part.to_spec()}}
    describe = description_of(part)
    if describe is None:
        raise InputError(
            f"to_spec: `{type(part).__name__}` has no name in an experiment file; save its state_dict, and build it in "
            "Python, or give the class a method to_spec."
        )
    spec, given = describe(), network_of(part)
    if given is None:
        return spec
    network = spec_of(given)
    if emits_parameters(part) and not _HEADLESS & set(network):
        raise InputError(
            f"to_spec: in an experiment file a linear layer stands on `{next(iter(network))}`, and this "
            f"`{type(part).__name__}` has head=None."
        )
    return {**spec, "network": network}


def to_spec(vae: VAE) -> dict[str, Any]:
    """Returns a VAE's declaration in the words of the experiment file, each part with its network.

    ``Experiment.parse({**spec, "data": ...}).build()`` makes such a VAE, for data of as many cells and covariates.

    Arguments:
        vae: Declared in Python or by a file.

    Raises:
        InputError: Where a part or a network has no name in an experiment file, or data are not flat.
    """
    if len(vae.event_shape) != 1:
        raise InputError(
            f"to_spec: in an experiment file data are flat, and these have shape {tuple(vae.event_shape)}; "
            f"declare the likelihood with event_shape ({vae.event_shape.numel()},)."
        )
    parts = parts_to_spec(vae)
    latent: Any = list(vae.latent_shape) if len(vae.latent_shape) != 1 else vae.latent_shape[0]
    own = {} if blocks_of(vae.prior) else {"latent": latent}
    if vae.parameter_prior is not None:
        own["parameter_prior"] = parameter_prior_to_spec(vae.parameter_prior)
    return {"cells": vae.event_shape.numel(), "covariates": vae.context_features, **own, **parts}


def parts_to_spec(vae: VAE) -> dict[str, dict[str, Any]]:
    """Returns what an experiment file says of the prior, the likelihood and the posterior of a VAE.

    Where the file would put something before a network that receives data (see `default_input`), and in the VAE there
    is nothing, it says ``input: raw``.

    Arguments:
        vae: Whose parts they are.

    Raises:
        InputError: For a module that the file has no word for.
    """
    spec = {name: part_to_spec(getattr(vae, name)) for name in ("prior", "likelihood", "posterior")}
    with torch.no_grad(), evaluating(vae), isolated(0):
        probe = vae.probe_batch()
        support = vae.decode(vae.prior_given(probe).expand((2,)).sample(), probe).support
    return spec if default_input(support) == "raw" else {**spec, "posterior": _said_raw(spec["posterior"])}


def _said_raw(spec: dict[str, Any]) -> dict[str, Any]:
    """A part in which every network that says nothing of its input says ``raw``."""
    if "hierarchy" in spec:
        layers = spec["hierarchy"]
        said = {name: layer if name == "inputs" else _said_raw(layer) for name, layer in layers.items()}
        return {**spec, "hierarchy": said}
    network = spec.get("network")
    if network is None or "input" in network or "module" in network:
        return spec
    return {**spec, "network": {**network, "input": "raw"}}


def parameter_prior_to_spec(prior: ParameterPrior) -> dict[str, Any]:
    """Returns what an experiment file says of a prior over parameters, a family with numbers."""
    distribution = prior.distribution
    numbers = {name: float(getattr(distribution, name)) for name in distribution.arg_constraints}
    spec = {"family": type(distribution).__name__, **numbers}
    return {**spec, "biases": True} if prior.biases else spec
