"""Blocks with their own random streams."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch


def stream_seed(seed: int, stream: str) -> int:
    """Returns the seed of a named stream of a seed; see `isolated`."""
    return zlib.crc32(f"{stream} {seed}".encode())


_seeds: list[int] = []


def depth() -> int:
    """Returns the current nesting depth of `isolated`."""
    return len(_seeds)


@contextmanager
def isolated(seed: int, stream: str = "") -> Iterator[None]:
    """A block with its own seed for torch, NumPy and Python; their random states are restored after it.

    Arguments:
        seed: Seed of the block.
        stream: Purpose of the draws. Each name has its own stream, so draws for one purpose never repeat those for
            another with the same seed: for example, data simulated after ``torch.manual_seed(0)`` and the noise of an
            evaluation with ``seed=0``.
    """
    if stream:
        seed = stream_seed(seed, stream)
    with restored(), torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        _seeds.append(seed)
        try:
            yield
        finally:
            _seeds.pop()


@contextmanager
def restored() -> Iterator[None]:
    """A block after which Python's and NumPy's random states are as before: for imports, some of which draw."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


class Stream:
    """A random stream of its own, beside the global one: that of torch on CPU and device, of NumPy and of Python.

    Arguments:
        seed: Seed of the stream.
        device: Device on which it draws.
        name: Name of the stream; see `isolated`.

    Attributes:
        generator: Generator of the draws on the device.
    """

    def __init__(self, seed: int, device: torch.device, name: str = "") -> None:
        self.device = device
        with isolated(seed, name):
            self._take()

    def _take(self) -> None:
        """Takes over the global state."""
        self.cpu = torch.Generator().set_state(torch.get_rng_state())
        self.generator = self.cpu
        if self.device.type == "cuda":
            self.generator = torch.Generator(self.device)
            self.generator.set_state(torch.cuda.get_rng_state(self.device))
        self.others = (np.random.get_state(), random.getstate())  # noqa: NPY002

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within the block, all draws come from this stream."""
        with isolated(0):
            torch.set_rng_state(self.cpu.get_state())
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(self.generator.get_state(), self.device)
            np.random.set_state(self.others[0])  # noqa: NPY002
            random.setstate(self.others[1])
            try:
                yield
            finally:
                self._take()

    def get_state(self) -> dict[str, Any]:
        """Returns the state of the stream, of tensors, numbers and lists alone."""
        return {
            "cpu": self.cpu.get_state(),
            "device": self.generator.get_state(),
            "others": plain_states(*self.others),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Puts a state back."""
        self.cpu.set_state(state["cpu"])
        if self.generator is not self.cpu:
            self.generator.set_state(state["device"])
        self.others = states_of(state["others"])


def plain_states(numpy_state: Any, python_state: Any) -> dict[str, Any]:
    """Returns random states of NumPy and Python as tensors, numbers and lists."""
    name, keys, *rest = numpy_state
    return {
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": _listed(python_state),
    }


def states_of(plain: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the random states of NumPy and Python that `plain_states` wrote down."""
    name, keys, *rest = plain["numpy"]
    version, internal, gauss = plain["python"]
    return (name, keys.numpy().astype(np.uint32), *rest), (version, tuple(internal), gauss)


def _listed(value: Any) -> Any:
    return [_listed(inner) for inner in value] if isinstance(value, tuple) else value
