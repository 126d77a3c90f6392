"""Binarisation of grey values in [0, 1], and the random generators of the data sets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_PURPOSES = ("split", "train", "valid", "test", "labelled", "evaluated")


def generator_for(seed: int, purpose: str) -> torch.Generator:
    r"""Returns the random generator of one purpose.

    The streams are independent: draws for one purpose never change those for another.

    Arguments:
        seed: Seed of the data set.
        purpose: `split`, `labelled`, `evaluated` (which rows are evaluated), or the part to be binarised: `train`,
            `valid` or `test`.
    """
    state = np.random.SeedSequence((seed, _PURPOSES.index(purpose))).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def bernoulli_draw(x: Tensor, generator: torch.Generator) -> Tensor:
    r"""Draws :math:`b_d \sim \mathrm{Bernoulli}(x_d)` for grey values in [0, 1]; shape and dtype of `x`."""
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    return (uniform.to(x.device) < x).to(x.dtype)


def threshold(x: Tensor) -> Tensor:
    r"""Returns 1 where a grey value is at least 0.5, else 0; shape and dtype of `x`."""
    return (x >= 0.5).to(x.dtype)
