"""Pareto k-hat against weights whose tail is known."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_vae.evaluation import pareto_k


@pytest.mark.parametrize("k", [0.3, 0.7, 1.0])
def test_pareto_k_recovers_the_tail_of_the_weights(k: float) -> None:
    u = torch.rand(2000, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert abs(float(pareto_k(-k * u.log()).mean()) - k) < 0.08


def test_pareto_k_of_each_datum_is_its_own() -> None:
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant, heavy = torch.full_like(u, -3.0), -1.5 * u.log()
    broken = heavy.clone()
    broken[5] = -math.inf
    result = pareto_k(torch.stack([heavy, constant, broken, broken.abs(), heavy * math.nan, 1e5 + heavy], dim=1))
    assert result[0] > 1.2
    assert result[1] == -math.inf
    assert bool(result[2:5].isnan().all())
    assert float(result[5]) == pytest.approx(float(result[0]), abs=1e-6)


def test_pareto_k_of_fewer_than_30_draws_is_unknown() -> None:
    log_weights = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    assert bool(pareto_k(log_weights).isfinite().all())
    assert all(bool(pareto_k(log_weights[:n]).isnan().all()) for n in (2, 5, 29))


def test_weights_whose_largest_are_the_same_have_no_tail() -> None:
    log_weights = torch.cat([torch.zeros(500, 1), -torch.rand(500, 1)]).double()
    assert pareto_k(log_weights).tolist() == [-math.inf]
