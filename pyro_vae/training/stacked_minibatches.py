r"""The minibatches of R replicates: each its own, or one for all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.runtime.random_streams import stream_seed
from pyro_vae.training.minibatches import Minibatches, Resident, Transform, minibatches
from pyro_vae.vae.vae import VAE


@dataclass
class Minibatch:
    """The replicates' minibatches of one step.

    Attributes:
        batch: With fields of shape ``(R, B, ...)``; of shape ``(B, ...)`` where all have the same.
        rows: Of the data, one of each replicate.
        common: Whether all have the same.
    """

    batch: Batch
    rows: Sequence[Tensor | None]
    common: bool

    @property
    def size(self) -> int:
        """The number of data in the minibatch of each replicate."""
        return self.batch.size if self.common else self.batch.x.shape[1]

    def of(self, r: int) -> Batch:
        """Returns a replicate's own."""
        return self.batch if self.common else self.batch.map(lambda tensor: tensor[r])


def sources(
    vaes: Sequence[VAE],
    data: Any,
    batch_size: int,
    seeds: Sequence[int],
    common: bool,
    transform: Transform | None,
    weights: Any,
    check_support: bool,
    unknown_labels: bool,
) -> list[Minibatches]:
    """Returns the sources of the replicates' minibatches; a single one where these are common.

    Data in memory are held, and checked against the first VAE's likelihood, once for all.

    Arguments:
        vaes: The replicates.
        data: See `pyro_vae.fit`, as are the others.
        batch_size: M.
        seeds: One of each replicate.
        common: Whether all see the same minibatches.
        transform: Applied to the x of each.
        weights: Of the data.
        check_support: Whether values outside the likelihood's support are refused.
        unknown_labels: Whether the context may have rows of nan.
    """
    options = (transform, weights, check_support, unknown_labels)
    first = minibatches(vaes[0], data, batch_size, seeds[0], *options)
    made = [first]
    for vae, seed in zip(vaes[1:], seeds[1:], strict=True):
        if common:
            break
        if isinstance(first, Resident):
            twin = copy.copy(first)
            twin.generator = torch.Generator(vae.device).manual_seed(stream_seed(seed, "minibatches"))
            made.append(twin)
        else:
            made.append(minibatches(vae, data, batch_size, seed, *options))
    return made


def epoch(made: Sequence[Minibatches], count: int) -> Iterator[Minibatch]:
    """Yields the minibatches of one epoch.

    Arguments:
        made: One source of each replicate, or a single one for all.
        count: R.
    """
    if len(made) < count:
        for batch, rows in made[0].epoch():
            yield Minibatch(batch, [rows] * count, True)
    elif all(isinstance(source, Resident) for source in made):
        yield from _resident([source for source in made if isinstance(source, Resident)])
    else:
        for items in zip(*(source.epoch() for source in made), strict=True):
            batches = [batch for batch, _ in items]
            if len({tuple(None if t is None else t.shape for t in batch) for batch in batches}) > 1:
                raise InputError(
                    "fit: the loader gives replicates minibatches of different sizes in the same step; use a sampler "
                    "of one batch size, or train the VAEs one by one."
                )
            yield Minibatch(_stacked(batches), [rows for _, rows in items], False)


def _resident(made: Sequence[Resident]) -> Iterator[Minibatch]:
    """All replicates' minibatches by one selection."""
    first = made[0]
    orders = [torch.randperm(s.size, generator=s.generator, device=s.generator.device) for s in made]
    for rows in torch.stack(orders).split(first.batch_size, dim=1):
        batch = first.data.select(rows.to(first.home)).map(lambda tensor: tensor.to(first.device))
        if first.transform is not None:
            x = [first.transform(own, s.generator) for own, s in zip(batch.x, made, strict=True)]
            batch = batch._replace(x=torch.stack(x))
        yield Minibatch(batch, list(rows), False)


def _stacked(batches: Sequence[Batch]) -> Batch:
    x, *rest = (None if ts[0] is None else torch.stack(ts) for ts in zip(*batches, strict=True))
    return batches[0] if x is None else Batch(x, *rest)
