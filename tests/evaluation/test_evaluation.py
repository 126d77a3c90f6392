"""One body over all evaluation functions: evaluation mode, a random stream of their own, and all left as it was."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from evaluations import EVALUATIONS, X, numbers, vae_with_modes
from torch import Tensor

from pyro_vae import Batch, evaluation
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate

DETERMINISTIC = {"posterior_means", "active_units", "latent_map", "interpolate"}
IN_TRAINING_MODE = {"gradient_variance"}  # by definition: the gradients are those of training
SIMULATES = {"bidirectional_monte_carlo", "simulation_based_calibration"}  # takes no data
ALL = pytest.mark.parametrize("name", EVALUATIONS)


def test_the_body_covers_every_evaluation_function() -> None:
    functions = {name for name in evaluation.__all__ if inspect.isfunction(getattr(evaluation, name))}
    others = {"pareto_k", "site_probabilities"}  # of log weights; of a program with sites that are summed out
    others |= {"best_candidate", "paired_differences"}  # of the values of several candidates
    assert functions - others == set(EVALUATIONS)


@ALL
def test_it_runs_in_evaluation_mode_and_leaves_everything_as_it_was(name: str) -> None:
    vae, evaluate = vae_with_modes(), EVALUATIONS[name]
    modes = [child.training for child in vae.modules()]
    assert len(set(modes)) == 2
    before = {key: t.clone() for key, t in vae.state_dict().items()}
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    results = evaluate(vae, X, 3)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])  # noqa: NPY002
    assert random.getstate() == random_states[2]
    assert [child.training for child in vae.modules()] == modes
    assert all(torch.equal(t, before[key]) for key, t in vae.state_dict().items())
    assert not any(p.grad is not None for p in vae.parameters())
    assert not any(isinstance(r, Tensor) and r.requires_grad for r in results)
    assert not any(key.startswith(vae._name) for key in pyro.get_param_store().keys())  # noqa: SIM118
    assert torch.equal(numbers(evaluate(vae, X, 3)), numbers(results))
    if name not in IN_TRAINING_MODE:  # no dropout, no batch statistics
        assert torch.equal(numbers(evaluate(vae.eval(), X, 3)), numbers(results))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_are_finite_and_depend_on_the_seed_where_there_is_chance(name: str, dtype: torch.dtype) -> None:
    vae, evaluate = vae_with_modes().to(dtype), EVALUATIONS[name]
    first, other = numbers(evaluate(vae, X.to(dtype), 0)), numbers(evaluate(vae, X.to(dtype), 1))
    assert bool(first.isfinite().all())
    assert torch.equal(first, other) == (name in DETERMINISTIC)


@ALL
def test_estimates_tell_a_value_for_each_datum_and_both_errors(name: str) -> None:
    for estimate in EVALUATIONS[name](vae_with_modes(), X, 0):
        if isinstance(estimate, Estimate):
            assert estimate.pointwise.shape == (25,)
            assert estimate.value == pytest.approx(float(estimate.pointwise.mean()))
            assert estimate.sampling_error == pytest.approx(float(estimate.pointwise.std() / 5))
            assert estimate.standard_error >= 0


@ALL
def test_data_that_do_not_fit_are_refused(name: str) -> None:
    if name not in SIMULATES:
        with pytest.raises(InputError, match=r"expected data of shape \(B, 5\)"):
            EVALUATIONS[name](vae_with_modes(), torch.zeros(4, 6), 0)


@ALL
def test_data_come_in_every_form_that_fit_takes(name: str) -> None:
    if name in SIMULATES:
        return
    vae, evaluate = vae_with_modes(), EVALUATIONS[name]
    expected, x = numbers(evaluate(vae, X.float(), 0)), X.float().numpy()
    for data in (x, X.double().numpy(), pd.DataFrame(x), Batch(x, mask=~np.isnan(x))):  # type: ignore[arg-type]
        torch.testing.assert_close(numbers(evaluate(vae, data, 0)), expected)


@ALL
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    if name not in SIMULATES:
        x = X.clone()
        x[3, 1] = torch.nan
        with pytest.raises(InputError, match=r"the value nan in row 3, column 1"):
            EVALUATIONS[name](vae_with_modes(), x, 0)


WEIGHTED = {"log_marginal", "elbo", "gradient_variance", "posterior_means", "active_units"}
WEIGHTED |= {"latent_map", "traverse", "interpolate"}  # each datum is one point


@ALL
def test_weights_are_heeded_or_refused(name: str) -> None:
    if name in SIMULATES:
        return
    vae, weight = vae_with_modes(), torch.cat([torch.full((5,), 5.0), torch.zeros(20)])
    batch = Batch(X, weight=weight)
    if name not in WEIGHTED:
        with pytest.raises(InputError, match="takes no weights"):
            EVALUATIONS[name](vae, batch, 0)
        return
    for result in EVALUATIONS[name](vae, batch, 0):
        if isinstance(result, Estimate):
            assert result.value == pytest.approx(float(result.pointwise[:5].mean()))
            assert result.sampling_error > 0


def test_a_difference_of_estimates_is_paired() -> None:
    a = Estimate.of(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.3, 0.0, 0.0]))
    b = Estimate.of(torch.tensor([0.5, 1.5, 5.5]), torch.tensor([0.4, 0.0, 0.0]))
    difference = a - b
    assert difference.pointwise.tolist() == [0.5, 0.5, 0.5]
    assert difference.sampling_error == 0
    assert difference.standard_error == pytest.approx(0.5 / 3)
    with pytest.raises(InputError, match="for the same data"):
        a - Estimate.of(torch.zeros(2), torch.zeros(2))
