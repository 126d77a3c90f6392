"""One body over all evaluation functions: evaluation mode, a random stream of their own, and all left as it was."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import Tensor, nn

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, evaluation
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate
from pyro_vae.inference import AEVB

X = LinearGaussian.random(5, 2).sample(25)

# From a VAE, data and a seed to all numbers that the function returns.
EVALUATIONS: dict[str, Callable[[VAE, Tensor, int], list[Estimate | Tensor]]] = {
    "log_marginal": lambda vae, x, seed: [evaluation.log_marginal(vae, x, 30, seed=seed)],
    "elbo": lambda vae, x, seed: [evaluation.elbo(vae, x, 30, seed=seed)],
    "annealed_importance_sampling": lambda vae, x, seed: [
        evaluation.annealed_importance_sampling(vae, x, 4, 3, num_leapfrog=2, seed=seed)
    ],
    "bidirectional_monte_carlo": lambda vae, x, seed: bidirectional(vae, 25, seed),
    "posterior_density_estimator": lambda vae, x, seed: [
        evaluation.posterior_density_estimator(vae, x, 20, chains=4, burn_in=3, num_leapfrog=2, seed=seed)
    ],
    "inference_gap": lambda vae, x, seed: gap(vae, x, seed),
    "simulation_based_calibration": lambda vae, x, seed: [
        evaluation.simulation_based_calibration(vae, 25, 9, seed=seed).ranks
    ],
    "rate_distortion": lambda vae, x, seed: rates(vae, x, seed),
    "mutual_information": lambda vae, x, seed: [evaluation.mutual_information(vae, x, 5, seed=seed)],
    "aggregate_posterior": lambda vae, x, seed: aggregate(vae, x, seed),
    "gradient_variance": lambda vae, x, seed: gradients(vae, x, seed),
    "kl_per_dimension": lambda vae, x, seed: [evaluation.kl_per_dimension(vae, x, seed=seed)],
    "latent_kl": lambda vae, x, seed: [evaluation.latent_kl(vae, x, seed=seed).value],
    "posterior_means": lambda vae, x, seed: [evaluation.posterior_means(vae, x)],
    "active_units": lambda vae, x, seed: [evaluation.active_units(vae, x)],
}
DETERMINISTIC = {"posterior_means", "active_units"}
IN_TRAINING_MODE = {"gradient_variance"}  # by definition: the gradients are those of training
SIMULATES = {"bidirectional_monte_carlo", "simulation_based_calibration"}  # takes no data
ALL = pytest.mark.parametrize("name", EVALUATIONS)


def bidirectional(vae: VAE, n: int, seed: int) -> list[Estimate | Tensor]:
    result = evaluation.bidirectional_monte_carlo(vae, n, 4, 3, num_leapfrog=2, seed=seed)
    return [result.lower, result.upper, result.width, result.data]


def gap(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    result = evaluation.inference_gap(vae, x, num_samples=30, steps=2, seed=seed)
    return [result.total, result.approximation, result.amortization, result.log_marginal, result.elbo]


def rates(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    result = evaluation.rate_distortion(vae, x, 5, seed=seed)
    return [result.rate, result.distortion]


def aggregate(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    result = evaluation.aggregate_posterior(vae, x, 5, seed=seed)
    return [result.mean, result.variance, result.mutual_information, result.marginal_kl]


def gradients(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    groups = evaluation.gradient_variance(vae, x, {"aevb": AEVB()}, 4, seed=seed)["aevb"]
    return [torch.tensor([noise.variance.mean, noise.signal_to_noise.mean]) for noise in groups.values()]


def numbers(results: list[Estimate | Tensor]) -> Tensor:
    return torch.cat([(r.pointwise if isinstance(r, Estimate) else r).double().flatten() for r in results])


def vae_with_modes() -> VAE:
    """Dropout in the decoder, batch normalisation in the encoder, one part in evaluation mode, a sampled KL."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5))
    vae = VAE(
        Conditional(dist.StudentT, (2,), df=Fixed(5.0), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(dist.Normal, (5,), given=decoder, scale=Learned(0.7)),
        Conditional(dist.Normal, (2,), given=encoder),
    )
    vae.posterior.given[2].eval()
    return vae


def test_the_body_covers_every_evaluation_function() -> None:
    functions = {name for name in evaluation.__all__ if inspect.isfunction(getattr(evaluation, name))}
    assert functions - {"pareto_k"} == set(EVALUATIONS)  # of log weights, not of a VAE


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
    with pytest.raises(InputError, match="of the same data"):
        a - Estimate.of(torch.zeros(2), torch.zeros(2))
