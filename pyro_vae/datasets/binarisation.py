"""From grey values in [0, 1] to {0, 1}, with a generator for every purpose."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_PURPOSES = ("split", "train", "valid", "test", "labelled")


def generator_for(seed: int, purpose: str) -> torch.Generator:
    r"""Return the generator of one purpose (`split`, `labelled`, or the binarisation of `train`, `valid` or `test`).

    The streams are independent: what is drawn for one purpose never changes what is drawn for another.
    """
    state = np.random.SeedSequence((seed, _PURPOSES.index(purpose))).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def bernoulli_draw(x: Tensor, generator: torch.Generator) -> Tensor:
    r"""Draw :math:`b_d \sim \mathrm{Bernoulli}(x_d)` for grey values in [0, 1]; shape and dtype of `x`."""
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    return (uniform.to(x.device) < x).to(x.dtype)


def threshold(x: Tensor) -> Tensor:
    r"""Return 1 where a grey value is at least 0.5, else 0; shape and dtype of `x`."""
    return (x >= 0.5).to(x.dtype)
