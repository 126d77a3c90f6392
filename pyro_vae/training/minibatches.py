r"""From whatever holds the data to minibatches on the VAE's device."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from pyro_vae.batch import Batch, x_of
from pyro_vae.errors import InputError
from pyro_vae.runtime.random_streams import isolated, stream_seed
from pyro_vae.vae.latent_variable_model import LatentVariableModel

Check = Callable[[Batch, str], Batch]
Transform = Callable[[Tensor, torch.Generator], Tensor]

# Most data that a sample has.
_SAMPLE = 5000


class Minibatches(Protocol):
    """A source of minibatches, epoch after epoch.

    Attributes:
        size: N, the number of data.
        steps: Number of minibatches in an epoch.
        batch_size: M; None where it is not known.
    """

    size: int
    steps: int
    batch_size: int | None

    def epoch(self) -> Iterator[tuple[Batch, Tensor | None]]:
        """Yields the minibatches of one epoch, each with its rows in the data (None where these are unknown)."""
        ...

    def checksum(self) -> int:
        """Returns a checksum of the data; 0 where the data are not in memory."""
        ...

    def get_state(self) -> dict[str, Tensor]:
        """Returns the random states that decide all further epochs."""
        ...

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts the random states back."""
        ...


def minibatches(
    vae: LatentVariableModel,
    data: Any,
    batch_size: int,
    seed: int,
    transform: Transform | None = None,
    weights: Any = None,
    check_support: bool = True,
    unknown_labels: bool = False,
    drop_last: bool = False,
) -> Minibatches:
    """Returns the source of minibatches for data in any of the forms that `fit` takes.

    Arguments:
        vae: The VAE. The minibatches get its device and floating-point type.
        data: See `pyro_vae.fit`.
        batch_size: M; a `DataLoader` keeps its own.
        seed: Seed of the shuffling, of ``transform`` and of what a data set draws.
        transform: Applied to the x of every minibatch, such as a dynamic binarisation.
        weights: Weight of each datum, shape ``(N,)``; see `pyro_vae.fit`.
        check_support: Whether values outside the likelihood's support are refused. With a ``transform`` only the first
            minibatch is checked, by Pyro.
        unknown_labels: Whether the context may have rows of nan.
        drop_last: Whether a short last minibatch of an epoch is left out; a `DataLoader` has its own setting.

    Raises:
        InputError: For data that are empty, of no known form or outside the support, and for weights that do not fit.
    """
    generator = torch.Generator(vae.device).manual_seed(stream_seed(seed, "minibatches"))
    check = vae.value_check(check_support and transform is None, unknown_labels)
    if isinstance(data, IterableDataset):
        raise InputError("fit: an IterableDataset has no length; give a map-style data set.")
    if isinstance(data, DataLoader):
        if weights is not None:
            raise InputError(
                "fit: `weights` go with data that are held as a whole; let a DataLoader yield Batch(x, weight=...)."
            )
        return Streamed(vae, data, generator, transform, check)
    if isinstance(data, TorchDataset) and not _fits(_bytes_of_all(data, seed), vae.device):
        if weights is not None:
            raise InputError(
                "fit: `weights` need data that fit the device's memory; let the items be Batch(x, weight=...)."
            )
        warnings.warn("fit: the data set does not fit the device's memory, so it is streamed.", stacklevel=3)
        order = torch.Generator().manual_seed(generator.initial_seed())
        loader = DataLoader(data, batch_size, shuffle=True, drop_last=drop_last, generator=order)
        return Streamed(vae, loader, generator, transform, check)
    with isolated(seed, "data"):  # of data sets that draw
        batch = as_batch(vae, data)
    return Resident(vae, batch, batch_size, generator, transform, weights, check, drop_last)


class Resident:
    """Data that lie on the device as a whole and are shuffled there; data that do not fit stay where they are."""

    def __init__(
        self,
        vae: LatentVariableModel,
        batch: Batch,
        batch_size: int,
        generator: torch.Generator,
        transform: Transform | None,
        weights: Any,
        check: Check,
        drop_last: bool = False,
    ) -> None:
        weights = batch.weight if weights is None else weights
        if weights is not None:
            batch = batch._replace(weight=_checked_weights(weights, batch.size))
        self.device, self.home = vae.device, vae.device
        if not _fits(_bytes(batch), vae.device) and batch.device != vae.device:
            warnings.warn(
                "fit: the data do not fit the device's memory, so minibatches are copied to it.", stacklevel=4
            )
            self.home = batch.device
        self.data = batch.to(self.home, vae.dtype)
        check(self.data, "training data")
        rows = min(batch_size, batch.size)
        self.size, self.drop_last = batch.size, drop_last
        self.steps = batch.size // rows if drop_last else -(-batch.size // rows)
        self.batch_size: int | None = rows
        self.generator, self.transform = generator, transform

    def epoch(self) -> Iterator[tuple[Batch, Tensor | None]]:
        for rows in self.split(self.order()):
            batch = self.data.select(rows.to(self.home))
            if self.home != self.device:
                batch = batch.map(lambda field: field.to(self.device))
            if self.transform is not None:
                batch = batch._replace(x=self.transform(batch.x, self.generator))
            yield batch, rows

    def order(self) -> Tensor:
        """Returns the rows of the data in a new order."""
        return torch.randperm(self.size, generator=self.generator, device=self.generator.device)

    def split(self, order: Tensor) -> Sequence[Tensor]:
        """Returns the rows of each minibatch, along the last dimension."""
        return order.split(self.batch_size or self.size, dim=-1)[: self.steps]

    def sample(self) -> Batch:
        """Returns up to 5,000 of the data at equal distances, untransformed."""
        rows = torch.linspace(0, self.size - 1, min(self.size, _SAMPLE), dtype=torch.float64).long()
        return self.data.select(rows.to(self.home)).map(lambda field: field.to(self.device))

    def checksum(self) -> int:
        return checksum(self.data)

    def get_state(self) -> dict[str, Tensor]:
        return {"own": self.generator.get_state()}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["own"])


class Streamed:
    """Data from a `DataLoader`, minibatch after minibatch, in the loader's own order.

    The loader draws from a random stream of its own, so that its order does not depend on an algorithm's draws.
    """

    def __init__(
        self,
        vae: LatentVariableModel,
        loader: DataLoader[Any],
        generator: torch.Generator,
        transform: Transform | None,
        check: Check,
    ) -> None:
        self.loader, self.vae, self.check = loader, vae, check
        try:
            self.steps, self.size = len(loader), len(loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            raise InputError(
                "fit: a DataLoader over an IterableDataset has no length; give it a map-style data set."
            ) from None
        if self.size == 0:
            raise InputError("fit: the data set is empty; give at least one datum.")
        self.generator, self.transform, self.batch_size = generator, transform, loader.batch_size
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
            batch = as_batch(self.vae, x_of(item)).to(self.vae.device, self.vae.dtype)
            self.check(batch, "a minibatch of the training data")
            if self.transform is not None:
                batch = batch._replace(x=self.transform(batch.x, self.generator))
            yield batch, None

    def checksum(self) -> int:
        return 0

    def get_state(self) -> dict[str, Tensor]:
        state = {"own": self.generator.get_state(), "global": self.state}
        of_loader = self.loader.generator
        return state if of_loader is None else state | {"loader": of_loader.get_state()}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["own"])
        self.state = state["global"]
        if self.loader.generator is not None and "loader" in state:
            self.loader.generator.set_state(state["loader"])


def checksum(data: Batch) -> int:
    """Returns a checksum of at most 1,000 of the data."""
    some = torch.linspace(0, data.size - 1, min(data.size, 1000)).long().to(data.device)
    return zlib.crc32(b"".join(field.cpu().contiguous().numpy().tobytes() for field in data.select(some).tensors))


def as_batch(vae: LatentVariableModel, data: Any, name: str = "x") -> Batch:
    """Returns data as a `Batch`; see `batch_for`.

    Raises:
        InputError: For data of no known form, for cells that are not numbers, and for zero rows.
    """
    batch = vae.as_batch(data, "fit", name)
    if isinstance(batch.x, Tensor) and (batch.x.dim() == 0 or batch.size == 0):
        raise InputError(f"fit: the data have zero rows (shape {tuple(batch.x.shape)}); give at least one datum.")
    return batch


def _checked_weights(weights: Any, size: int) -> Tensor:
    """Returns the weights as a tensor of mean 1."""
    tensor = torch.as_tensor(weights, dtype=torch.float64)
    if tensor.shape != (size,):
        raise InputError(f"fit: `weights` has shape {tuple(tensor.shape)}; expected ({size},), one for each datum.")
    if not bool((tensor.isfinite() & (tensor >= 0)).all()) or not bool(tensor.sum() > 0):
        raise InputError("fit: `weights` must be finite, none negative, and not all zero.")
    return tensor / tensor.mean()


def _bytes(item: Any) -> int:
    """Number of bytes of the tensors of an item or a batch, as float32."""
    return sum(part.numel() * 4 for part in pytree.tree_leaves(item) if isinstance(part, Tensor))


def _bytes_of_all(dataset: TorchDataset[Any], seed: int) -> int:
    """Number of bytes of a data set, if all items are as large as the first one."""
    n = len(dataset)  # type: ignore[arg-type]
    with isolated(seed, "data"):
        return n * _bytes(dataset[0]) if n else 0


def _fits(needed: int, device: torch.device) -> bool:
    """Whether a number of bytes is less than half of the device's free memory."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return needed < free / 2
