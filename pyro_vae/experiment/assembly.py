r"""The VAE that an experiment declares, from its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from pyro_vae.distributions.support import is_real
from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.distribution import DistributionSpec
from pyro_vae.experiment.place import Place
from pyro_vae.vae.derived_posterior import unconstrained_shape
from pyro_vae.vae.hierarchy import Reads
from pyro_vae.vae.part import blocks_of, event_shape_of, needs_posterior
from pyro_vae.vae.vae import VAE


def assembled(experiment: Any, dim: int, image_shape: tuple[int, ...] | None, size: int, context_features: int) -> VAE:
    """Returns a new VAE; see `Experiment.assemble`."""
    latent = experiment.latent_shape
    data = explained("likelihood", lambda: experiment.likelihood.data_of(dim))
    place = Place("prior", (), context_features, None, dim, context_features, image_shape, data)
    prior_place = replace(place, event_shape=experiment.prior.event_shape(latent))
    prior = explained("prior", lambda: experiment.prior.build_at(prior_place))
    own_shape = event_shape_of(prior)
    shape = torch.Size(latent if own_shape is None else own_shape)
    likelihood = explained("likelihood", lambda: _likelihood(experiment, place, prior, shape.numel()))
    posterior = explained("posterior", lambda: _posterior(experiment, place, prior, shape))
    parameter_prior = None if experiment.parameter_prior is None else experiment.parameter_prior.build_prior()
    return VAE(
        prior,
        likelihood,
        posterior,
        size=size,
        parameter_prior=parameter_prior,
        context_features=context_features,
        transformed_data=True,
    )


def _likelihood(experiment: Any, place: Place, prior: nn.Module, latents: int) -> nn.Module:
    """Returns the likelihood, which receives all latents or the layers that it reads."""
    reads = experiment.likelihood.reads
    if reads is not None:
        blocks = blocks_of(prior)
        for name in reads:
            if name not in blocks:
                layers = near_match(name, blocks) if blocks else "the prior is no `hierarchy`."
                raise InputError(f"`reads` names layers of the prior, and it has no `{name}`; {layers}")
        latents = sum(blocks[name].stop - blocks[name].start for name in reads)
    here = replace(
        place,
        role="likelihood",
        event_shape=(place.cells,),
        in_features=max(latents, 1) + place.context_features,
        network=experiment.networks.decoder,
    )
    likelihood = experiment.likelihood.build_at(here)
    return likelihood if reads is None else Reads(likelihood, *reads)


def _posterior(experiment: Any, place: Place, prior: nn.Module, shape: torch.Size) -> nn.Module:
    """Returns the declared posterior, in unconstrained space if its support is real, or an encoder alone."""
    here = replace(
        place,
        role="posterior",
        in_features=place.cells + place.context_features,
        network=experiment.networks.encoder,
    )
    part = experiment.posterior
    if part is None and not needs_posterior(prior):
        encoder, _ = here.trunk(None)
        return cast(nn.Module, encoder)
    part = DistributionSpec(family="Normal") if part is None else part
    if part.support is not None and is_real(part.support):
        shape = unconstrained_shape(prior, shape, place.context_features)
    return part.build_at(replace(here, event_shape=part.event_shape(shape)))


def explained(path: str, build: Any) -> Any:
    """Returns ``build()``; adds the path in the experiment file to an `InputError`."""
    try:
        return build()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise InputError(f"{path}: its parameters need more memory than there is; choose smaller sizes.") from None
