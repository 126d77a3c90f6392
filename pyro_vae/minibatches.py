r"""From whatever holds the data to minibatches on the VAE's device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.modes import evaluating, isolated
from pyro_vae.vae import VAE

Transform = Callable[[Tensor, torch.Generator], Tensor]


class Minibatches(Protocol):
    """A source of epochs.

    Attributes:
        size: N, the number of data.
        steps: Minibatches in an epoch.
    """

    size: int
    steps: int

    def epoch(self) -> Iterator[tuple[Batch, Tensor | None]]:
        """Yields the minibatches of one epoch, and the rows of the data that each holds (None where unknown)."""
        ...


def minibatches(
    vae: VAE,
    data: Any,
    batch_size: int,
    generator: torch.Generator,
    transform: Transform | None = None,
    weights: Any = None,
) -> Minibatches:
    """Returns the source of minibatches for data in any of the forms that `fit` takes.

    Arguments:
        vae: Whose device and floating-point type the batches get.
        data: See `pyro_vae.fit`.
        batch_size: M; a `DataLoader` keeps its own.
        generator: Of the shuffling and of ``transform``, on the VAE's device.
        transform: Applied to the x of every minibatch, such as a dynamic binarisation.
        weights: Shape ``(N,)``, see `pyro_vae.fit`.

    Raises:
        InputError: For data that are empty or of no known form, and for weights that do not fit them.
    """
    if isinstance(data, DataLoader):
        if weights is not None:
            raise InputError(
                "fit: `weights` go with data that are held as a whole; let a DataLoader yield Batch(x, weight=...)."
            )
        return Streamed(vae, data, generator, transform)
    if isinstance(data, IterableDataset):
        raise InputError("fit: an IterableDataset has no length; give a map-style data set.")
    if isinstance(data, TorchDataset) and weights is None and not _fits(data, vae.device):
        warnings.warn("fit: the data set does not fit the device's memory, so it is streamed.", stacklevel=3)
        order = torch.Generator().manual_seed(generator.initial_seed())
        return Streamed(vae, DataLoader(data, batch_size, shuffle=True, generator=order), generator, transform)
    return Resident(vae, as_batch(data), batch_size, generator, transform, weights)


class Resident:
    """Data that lie on the device as a whole and are shuffled there."""

    def __init__(
        self,
        vae: VAE,
        batch: Batch,
        batch_size: int,
        generator: torch.Generator,
        transform: Transform | None,
        weights: Any,
    ) -> None:
        if weights is not None:
            batch = batch._replace(weight=_checked_weights(weights, batch.size))
        self.data = batch.to(vae.device, vae.dtype)
        self.size, self.batch_size = batch.size, min(batch_size, batch.size)
        self.steps = -(-self.size // self.batch_size)
        self.generator, self.transform = generator, transform

    def epoch(self) -> Iterator[tuple[Batch, Tensor | None]]:
        order = torch.randperm(self.size, generator=self.generator, device=self.generator.device)
        for rows in order.split(self.batch_size):
            batch = self.data.select(rows)
            if self.transform is not None:
                batch = batch._replace(x=self.transform(batch.x, self.generator))
            yield batch, rows


class Streamed:
    """Data that a `DataLoader` brings, batch after batch, in its own order.

    The loader draws from a random stream of its own, so that its order does not depend on an algorithm's draws.
    """

    def __init__(
        self, vae: VAE, loader: DataLoader[Any], generator: torch.Generator, transform: Transform | None
    ) -> None:
        self.loader, self.device, self.dtype = loader, vae.device, vae.dtype
        try:
            self.steps, self.size = len(loader), len(loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            raise InputError(
                "fit: a DataLoader over an IterableDataset has no length; give it a map-style data set."
            ) from None
        if self.size == 0:
            raise InputError("fit: the data set is empty; give at least one datum.")
        self.generator, self.transform = generator, transform
        self.state = torch.Generator().manual_seed(generator.initial_seed()).get_state()

    def _items(self) -> Iterator[Any]:
        items: Iterator[Any] | None = None
        while True:
            outer = torch.get_rng_state()
            torch.set_rng_state(self.state)
            try:
                items = iter(self.loader) if items is None else items
                item = next(items, None)
            finally:
                self.state = torch.get_rng_state()
                torch.set_rng_state(outer)
            if item is None:
                return
            yield item

    def epoch(self) -> Iterator[tuple[Batch, Tensor | None]]:
        for item in self._items():
            batch = as_batch(item).to(self.device, self.dtype)
            if self.transform is not None:
                batch = batch._replace(x=self.transform(batch.x, self.generator))
            yield batch, None


def as_batch(data: Any, name: str = "x") -> Batch:
    """Returns data as a `Batch`: a tensor, an array, a data frame, a batch, or a sequence whose first item is x.

    Raises:
        InputError: For anything else, for cells that are not numbers, and for zero rows.
    """
    if isinstance(data, TorchDataset):
        data = default_collate([data[i] for i in range(len(data))])  # type: ignore[arg-type]
    if isinstance(data, Batch):
        batch = data
    elif isinstance(data, list | tuple) and data and isinstance(data[0], Tensor):  # (x, label), as data sets yield
        batch = Batch(data[0])
    else:
        batch = Batch(_as_tensor(data, name))
    if batch.x.dim() == 0 or batch.size == 0:
        raise InputError(f"fit: the data have zero rows (shape {tuple(batch.x.shape)}); give at least one datum.")
    return batch


def _as_tensor(data: Any, name: str) -> Tensor:
    if isinstance(data, Tensor):
        return data
    values = data.to_numpy() if hasattr(data, "to_numpy") else data
    if not isinstance(values, np.ndarray):
        raise InputError(
            f"fit: `{name}` is a Tensor, an ndarray, a DataFrame, a Batch or a torch Dataset (for training, a "
            f"DataLoader too); got `{type(data).__name__}`."
        )
    if values.dtype.kind not in "fiub":
        raise InputError(
            f"fit: data must be numeric, got an array of dtype `{values.dtype}`; encode its cells as numbers."
        )
    if not values.flags.writeable or not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(values))


def _checked_weights(weights: Any, size: int) -> Tensor:
    """Weights as a tensor of mean 1."""
    tensor = torch.as_tensor(weights, dtype=torch.float64)
    if tensor.shape != (size,):
        raise InputError(f"fit: `weights` has shape {tuple(tensor.shape)}; expected ({size},), one for each datum.")
    if not bool((tensor.isfinite() & (tensor >= 0)).all()) or not bool(tensor.sum() > 0):
        raise InputError("fit: `weights` must be finite, none negative, and not all zero.")
    return tensor / tensor.mean()


def _fits(dataset: TorchDataset[Any], device: torch.device) -> bool:
    """Whether a data set takes less than half of the device's free memory."""
    first = dataset[0]
    tensors = [item for item in (first if isinstance(first, list | tuple) else [first]) if isinstance(item, Tensor)]
    needed = len(dataset) * sum(tensor.numel() * 4 for tensor in tensors)  # type: ignore[arg-type]
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return needed < free / 2


def check_values(vae: VAE, batch: Batch, check_support: bool, name: str = "data") -> None:
    """Raises an `InputError` that names the first cell that is not finite, or lies outside the likelihood's support."""
    if batch.x.shape[1:] != vae.event_shape:
        vae.check(batch)  # raises, with the shapes
    observed = torch.ones_like(batch.x, dtype=torch.bool) if batch.mask is None else batch.mask
    x = batch.x.to(vae.dtype)
    _refuse(name, x, observed & ~x.isfinite(), "is not finite; remove it, or hide it with Batch(x, mask=...)")
    if not check_support:
        return
    with torch.no_grad(), evaluating(vae), isolated(0):
        probe = vae.probe_batch()
        likelihood = vae.decode(vae.prior_given(probe).expand((2,)).sample(), probe)
    support = likelihood.support
    inside = support.check(x)
    while inside.dim() < x.dim():
        inside = inside.unsqueeze(-1)
    cells = likelihood
    while isinstance(cells, torch.distributions.Independent):
        cells = cells.base_dist
    if cells.event_shape == () and getattr(cells, "support", None) is not None:
        inside = cells.support.check(x)
    _refuse(
        name,
        x,
        observed & ~inside,
        f"lies outside the support {cells.support} of the likelihood `{type(cells).__name__}`; choose a likelihood "
        "for such values, or bring them into its support (grey levels: binarise them)",
    )


def _refuse(name: str, x: Tensor, bad: Tensor, complaint: str) -> None:
    if bool(bad.any()):
        where = [int(i) for i in bad.expand_as(x).nonzero()[0]]
        value = x[tuple(where)].item()
        column = where[1] if len(where) == 2 else tuple(where[1:])
        raise InputError(f"{name}: the value {value:g} in row {where[0]}, column {column} (from 0) {complaint}.")
