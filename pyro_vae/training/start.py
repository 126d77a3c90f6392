r"""Starts the likelihoods at the location and scale of the training data."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_vae.distributions.statistics import Statistics
from pyro_vae.training.member import Member
from pyro_vae.training.stacked_minibatches import Source


def start_likelihoods(members: Sequence[Member], source: Source) -> None:
    """Puts the likelihood of each VAE at the location and scale of the training data; see `Training`.

    Arguments:
        members: The VAEs, before their first step.
        source: Source of the training data.
    """
    able = [member for member in members if member.vae.starts_at_data]
    sample = source.sample() if able else None
    if sample is None:
        return
    common = Statistics.of(sample.batch) if sample.common else None
    for member in able:
        member.vae.start_at(common or Statistics.of(sample.of(member.index)))
        member.keep_all()
