"""The checks of values: block by block, with the position in the whole data."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, Batch, Conditional, Fixed, mlp
from pyro_vae.errors import InputError
from pyro_vae.vae import finite
from pyro_vae.vae.data_check import check_values


def bernoulli() -> VAE:
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    return VAE(prior, Conditional(dist.Bernoulli, (3,), given=mlp(2, 4)))


@pytest.mark.parametrize("cells", [1, 6, 7, 2**20])
def test_the_first_bad_cell_is_named_whatever_the_blocks(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_CELLS", cells)
    x = torch.zeros(11, 3)
    x[7, 2], x[9, 0] = 0.5, 0.25
    with pytest.raises(InputError, match=r"data: the value 0.5 in row 7, column 2 \(from 0\) lies outside the support"):
        check_values(bernoulli(), Batch(x), True)
    x[10, 1] = torch.nan  # a value that is not finite comes first, also where it lies later
    with pytest.raises(InputError, match=r"data: the value nan in row 10, column 1 \(from 0\) is not finite"):
        check_values(bernoulli(), Batch(x), True)


@pytest.mark.parametrize("cells", [3, 2**20])
def test_hidden_cells_are_not_checked(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_CELLS", cells)
    x, mask = torch.zeros(5, 3), torch.ones(5, 3, dtype=torch.bool)
    x[3, 1], x[4, 0], mask[3, 1] = torch.inf, 3.0, False
    with pytest.raises(InputError, match="the value 3 in row 4, column 0"):
        check_values(bernoulli(), Batch(x, mask=mask), True)
    mask[4, 0] = False
    check_values(bernoulli(), Batch(x, mask=mask), True)


def test_finite_values_whose_sum_is_not_finite_are_accepted() -> None:
    finite.check_finite(Batch(torch.full((4, 3), 3e38)), "data")


def test_a_check_computes_with_few_values_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_CELLS", 6)
    assert list(finite.blocks_of_rows(torch.zeros(5, 3))) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(finite.blocks_of_rows(torch.zeros(2, 4, 4))) == [slice(0, 1), slice(1, 2)]
