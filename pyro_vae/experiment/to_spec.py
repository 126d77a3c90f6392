r"""Export of a VAE declared in Python as an experiment file, without its data."""

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
    """Returns the description of a prior, a likelihood or a posterior in an experiment file, with its network.

    Arguments:
        part: Module of this package, or another one with a method ``to_spec``.

    Raises:
        InputError: If an experiment file cannot describe the module.
    """
    if isinstance(part, Pushforward):  # the prior's support will imply it again
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
    """Returns the description of a VAE in an experiment file, without its data.

    ``Experiment.parse({**spec, "data": ...}).build()`` builds such a VAE, for data with as many cells and covariates.

    Arguments:
        vae: VAE declared in Python or by a file.

    Raises:
        InputError: If an experiment file cannot describe a part or a network, or the data are not flat.
    """
    if len(vae.event_shape) != 1:
        raise InputError(
            f"to_spec: in an experiment file data are flat, but these have shape {tuple(vae.event_shape)}; "
            f"declare the likelihood with event_shape ({vae.event_shape.numel()},)."
        )
    parts = parts_to_spec(vae)
    latent: Any = {"shape": list(vae.latent_shape)} if len(vae.latent_shape) != 1 else vae.latent_shape[0]
    own = {} if blocks_of(vae.prior) else {"latent": latent}
    if vae.parameter_prior is not None:
        own["parameter_prior"] = parameter_prior_to_spec(vae.parameter_prior)
    return {"cells": vae.event_shape.numel(), "covariates": vae.context_features, **own, **parts}


def parts_to_spec(vae: VAE) -> dict[str, dict[str, Any]]:
    """Returns the descriptions of the prior, the likelihood and the posterior of a VAE in an experiment file.

    A posterior's network has ``input: raw`` if it has no preprocessing although a file would add one by default (see
    `default_input`).

    Arguments:
        vae: The VAE.

    Raises:
        InputError: If an experiment file cannot describe a part.
    """
    spec = {name: part_to_spec(getattr(vae, name)) for name in ("prior", "likelihood", "posterior")}
    with torch.no_grad(), evaluating(vae), isolated(0):
        probe = vae.probe_batch()
        support = vae.decode(vae.prior_given(probe).expand((2,)).sample(), probe).support
    return spec if default_input(support) == "raw" else {**spec, "posterior": _with_raw_input(spec["posterior"])}


def _with_raw_input(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a part with ``input: raw`` in every network without ``input``."""
    if "hierarchy" in spec:
        layers = spec["hierarchy"]
        explicit = {name: layer if name == "inputs" else _with_raw_input(layer) for name, layer in layers.items()}
        return {**spec, "hierarchy": explicit}
    network = spec.get("network")
    if network is None or "input" in network or "module" in network:
        return spec
    return {**spec, "network": {**network, "input": "raw"}}


def parameter_prior_to_spec(prior: ParameterPrior) -> dict[str, Any]:
    """Returns the description of a prior over parameters in an experiment file: a family with numbers."""
    distribution = prior.distribution
    numbers = {name: float(getattr(distribution, name)) for name in distribution.arg_constraints}
    spec = {"family": type(distribution).__name__, **numbers}
    return {**spec, "biases": True} if prior.biases else spec
