"""Blocks that change the process's random streams or a module's mode, and put them back."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch


def stream_seed(seed: int, stream: str) -> int:
    """Returns the seed of one of the streams that belong to a seed; see `isolated`."""
    return zlib.crc32(f"{stream} {seed}".encode())


_seeds: list[int] = []


def depth() -> int:
    """Returns in how many blocks of `isolated`, one within the other, what is drawn now is drawn."""
    return len(_seeds)


@contextmanager
def isolated(seed: int, stream: str = "") -> Iterator[None]:
    """Seeds torch, NumPy and Python within the block, and puts their random states back after it.

    Arguments:
        seed: Of the block.
        stream: What the draws are for. Each name has a stream of its own, so that draws of one purpose never repeat
            those of another under the same seed: data simulated after ``torch.manual_seed(0)``, say, and the noise
            of an evaluation with ``seed=0``.
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
