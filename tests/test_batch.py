"""Batch: what travels through every call."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import TensorDataset

from pyro_vae import Batch
from pyro_vae.errors import InputError


@pytest.fixture
def batch():
    return Batch(
        torch.randn(5, 3),
        context=torch.arange(5)[:, None],
        mask=torch.rand(5, 3) < 0.5,
        weight=torch.tensor([0.0, 1.0, 2.0, 0.5, 1.5]),
    )


def test_of_takes_a_tensor_or_a_batch(batch):
    assert Batch.of(batch) is batch
    made = Batch.of(batch.x)
    assert made.x is batch.x
    assert made[1:] == (None,) * 4
    assert made.size == 5
    with pytest.raises(InputError, match=r"Batch: `x` is a Tensor, an ndarray, .*; got `list`"):
        Batch.of([1.0])


def test_of_makes_tensors_of_arrays_frames_and_data_sets_in_any_field():
    x = np.arange(6.0).reshape(3, 2)
    for given in (x, pd.DataFrame(x), TensorDataset(torch.tensor(x))):
        assert torch.equal(Batch.of(given).x, torch.tensor(x))
    made = Batch.of(Batch(x, context=pd.DataFrame(x[:, :1]), mask=~np.isnan(x), weight=np.ones(3)))
    assert torch.equal(made.context, torch.tensor(x[:, :1]))
    assert (made.mask.dtype, made.weight.dtype, made.offset) == (torch.bool, torch.float64, None)
    assert Batch.of(np.arange(3)).x.dtype == torch.int64
    with pytest.raises(InputError, match=r"log_marginal: `context`: data must be numeric, got .* dtype `object`"):
        Batch.of(Batch(x, context=np.array([["a"]], dtype=object)), "log_marginal")


@pytest.mark.parametrize("index", [torch.tensor([4, 0, 4]), slice(1, 3)], ids=["positions", "slice"])
def test_select_takes_the_same_rows_of_every_field(batch, index):
    part = batch.select(index)
    assert part.offset is None
    for name in ("x", "context", "mask", "weight"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[index]), name


def test_to_changes_floating_point_fields_alone(batch):
    moved = batch.to(torch.device("cpu"), torch.float64)
    assert [f.dtype for f in moved if f is not None] == [torch.float64, torch.int64, torch.bool, torch.float64]


def test_mean_weighs_each_datum(batch):
    values = torch.randn(7, 5)
    torch.testing.assert_close(batch.mean(values), (values * batch.weight).sum() / 35)
    torch.testing.assert_close(Batch(batch.x).mean(values), values.sum() / 35)


@pytest.mark.parametrize("apply", [pytree.tree_map, lambda f, batch: batch.map(f)], ids=["pytree", "map"])
def test_map_reaches_every_field_and_keeps_the_missing(batch, apply):
    # tree_map hands absent fields on as well, so the function must only see tensors there.
    doubled = apply(lambda field: None if field is None else field.repeat_interleave(2, 0), batch)
    assert isinstance(doubled, Batch)
    assert doubled.size == 10
    assert doubled.weight.shape == (10,)
    assert doubled.offset is None
