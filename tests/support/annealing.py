"""Annealing in little time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyro_vae.evaluation import annealed


@contextmanager
def short_pilot() -> Iterator[None]:
    """Within the block, annealing finds its step sizes in 8 moves, not 108, of which most of a short run is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annealed, "_WARM_UP", 2)
        patch.setattr(annealed, "_PILOT_BETAS", 4)
        yield
