"""How many data are evaluated at once."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.evaluation import annealed
from pyro_vae.evaluation.data import rows_at_once


def wide(cells: int) -> VAE:
    return VAE(
        Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(dist.Normal, (cells,), given=mlp(2, 2), scale=Fixed(1.0)),
        Conditional(dist.Normal, (2,), given=mlp(cells, 2)),
    )


@pytest.mark.parametrize(("cells", "rows"), [(10, 20_000), (784, 20_000), (20_000, 838)])
def test_wide_data_are_fewer_at_once(cells: int, rows: int) -> None:
    """64 MiB of float32 are 2^24 cells; for up to 838 of them in a datum nothing changes."""
    assert rows_at_once(wide(cells), 20_000) == rows
    assert rows_at_once(wide(cells), 5) == 5


def test_chains_of_wide_data_move_in_more_parts() -> None:
    sizes = [part.stop - part.start for part in annealed.slices(100, 16, wide(20_000))]
    assert sizes == [52, 48]
    assert [part.stop - part.start for part in annealed.slices(100, 16, wide(784))] == [100]
    estimate = annealed.annealed_importance_sampling(wide(20_000), torch.zeros(3, 20_000), 2, 2)
    assert estimate.pointwise.shape == (3,)
