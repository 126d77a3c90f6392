r"""The minibatches of one VAE or of R: each its own, or one for all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.runtime.random_streams import stream_seed
from pyro_vae.training.minibatches import Resident, Transform, minibatches
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Minibatch(NamedTuple):
    """The members' minibatches of one step.

    Attributes:
        batch: Fields of shape ``(R, B, ...)``; of shape ``(B, ...)`` where all members have the same.
        rows: For each member the rows of its minibatch in the data; None where these are unknown.
        common: Whether all members have the same, as one alone has.
    """

    batch: Batch
    rows: Sequence[Tensor | None]
    common: bool

    @property
    def size(self) -> int:
        """Number of data in the minibatch of each member."""
        return self.batch.size if self.common else self.batch.tensors[0].shape[1]

    def of(self, r: int) -> Batch:
        """Returns a member's own."""
        return self.batch if self.common else _own(self.batch, r)

    def only(self, r: int) -> Minibatch:
        """Returns the minibatch of a member that trains by itself."""
        return Minibatch(self.of(r), [self.rows[r]], True)


class Source:
    """The source of the members' minibatches.

    Data in memory are held, and checked against the first VAE's likelihood, once for all.

    Arguments:
        vaes: The VAEs.
        data: See `pyro_vae.fit`.
        batch_size: M.
        seeds: Seed of each VAE.
        common: Whether all see the same minibatches.
        transform: See `pyro_vae.fit`.
        weights: See `pyro_vae.fit`.
        check_support: See `Training`.
        unknown_labels: Whether the context may have rows of nan.
        drop_last: See `Training`.

    Attributes:
        size: N, the number of data.
        steps: Minibatches in an epoch.
        batch_size: M; None where it is not known.
        common: Whether several VAEs see the same minibatches.
        transform: See `pyro_vae.fit`.
        fresh: Whether each minibatch has memory of its own, so that a queued one stays as it is.

    Raises:
        InputError: See `minibatches`.
    """

    def __init__(
        self,
        vaes: Sequence[LatentVariableModel],
        data: Any,
        batch_size: int,
        seeds: Sequence[int],
        common: bool,
        transform: Transform | None,
        weights: Any,
        check_support: bool,
        unknown_labels: bool,
        drop_last: bool = False,
    ) -> None:
        self.transform = transform
        options = (transform, weights, check_support, unknown_labels, drop_last)
        first = minibatches(vaes[0], data, batch_size, seeds[0], *options)
        self.count, self.made = len(vaes), [first]
        for vae, seed in zip(vaes[1:], seeds[1:], strict=True):
            if common:
                break
            if isinstance(first, Resident):
                twin = copy.copy(first)
                twin.generator = torch.Generator(vae.device).manual_seed(stream_seed(seed, "minibatches"))
                self.made.append(twin)
            else:
                self.made.append(minibatches(vae, data, batch_size, seed, *options))
        self.size, self.steps, self.batch_size = first.size, first.steps, first.batch_size
        self.common = common and len(vaes) > 1
        self._begun: Iterator[Minibatch] | None = None  # an epoch whose first minibatch was seen
        self.fresh = isinstance(first, Resident) and transform is None

    def epoch(self) -> Iterator[Minibatch]:
        """Yields the minibatches of one epoch."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            yield from begun
        elif len(self.made) == 1:
            for batch, rows in self.made[0].epoch():
                yield Minibatch(batch, [rows] * self.count, True)
        elif all(isinstance(source, Resident) for source in self.made):
            yield from _resident([source for source in self.made if isinstance(source, Resident)])
        else:
            for items in zip(*(source.epoch() for source in self.made), strict=True):
                batches = [batch for batch, _ in items]
                if len({tuple(t.shape for t in batch.tensors) for batch in batches}) > 1:
                    raise InputError(
                        "fit: the loader gives replicates minibatches of different sizes in the same step; use a "
                        "sampler of one batch size, or train the VAEs one by one."
                    )
                yield Minibatch(_stacked(batches), [rows for _, rows in items], False)

    def sample(self) -> Minibatch | None:
        """Returns some data of each member, as minibatches show them, before the first epoch; None without any.

        Of data in memory without a transform these are up to 5,000 rows, else the first minibatch, which is still to
        come.
        """
        first = self.made[0]
        if isinstance(first, Resident) and self.transform is None:
            return Minibatch(first.sample(), [None] * self.count, True)
        epoch = self.epoch()
        minibatch = next(epoch, None)
        self._begun = epoch if minibatch is None else chain([minibatch], epoch)
        return minibatch

    def checksum(self) -> int:
        """Returns a number that tells data from others; 0 where they are not at hand."""
        return self.made[0].checksum()

    def get_state(self) -> list[dict[str, Tensor]]:
        """Returns the random states that decide all further epochs."""
        return [source.get_state() for source in self.made]

    def set_state(self, state: Sequence[Mapping[str, Tensor]]) -> None:
        """Puts such states back."""
        self._begun = None
        for source, own in zip(self.made, state, strict=True):
            source.set_state(own)


def _resident(made: Sequence[Resident]) -> Iterator[Minibatch]:
    """All members' minibatches by one selection."""
    first = made[0]
    for rows in first.split(torch.stack([source.order() for source in made])):
        batch = first.data.select(rows.to(first.home)).map(lambda tensor: tensor.to(first.device))
        if first.transform is not None:
            x = [first.transform(_own(batch, r).x, source.generator) for r, source in enumerate(made)]
            batch = batch._replace(x=pytree.tree_map(_stack, *x))
        yield Minibatch(batch, list(rows), False)


def _own(batch: Batch, r: int) -> Batch:
    """A member's minibatch, of fields of shape ``(R, B, ...)``."""
    return batch.map(lambda tensor: tensor[r])


def _stacked(batches: Sequence[Batch]) -> Batch:
    stacked: Batch = pytree.tree_map(_stack, *batches)
    return stacked


def _stack(*tensors: Tensor | None) -> Tensor | None:
    """Stacks one tensor of each member; None where they have none."""
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(known) if known else None
