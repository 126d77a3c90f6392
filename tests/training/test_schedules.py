"""Learning-rate factors."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pyro_vae.errors import InputError
from pyro_vae.training.schedules import SCHEDULES


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_from_one_to_final_without_a_rise(name):
    arguments = {} if name == "constant" else {"final": 0.1}
    factor = SCHEDULES[name](100, **arguments)
    values = [factor(step) for step in range(150)]
    assert values[0] == 1
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(values))
    assert values[100] == pytest.approx(1 if name == "constant" else 0.1)
    assert values[149] == values[100]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_warmup_rises_in_a_line(name):
    factor = SCHEDULES[name](100, warmup=4)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("cosine", {"final": 2}), ("linear", {"final": -1}), ("exponential", {"final": 0}), ("constant", {"warmup": 100})],
)
def test_refuses(name, arguments):
    with pytest.raises(InputError):
        SCHEDULES[name](100, **arguments)
