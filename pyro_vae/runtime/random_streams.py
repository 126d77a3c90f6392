"""Blocks with their own random streams."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

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
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        _seeds.append(seed)
        try:
            yield
        finally:
            _seeds.pop()
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
