"""The checks of a comparison's posteriors: of which models, on which data, and what cannot be checked."""

import json
import math

import pyro.distributions as dist
import pytest
import torch
from small_comparisons import checked_hardly

from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.comparison.checks import PosteriorChecks, check_posteriors
from pyro_vae.evaluation import gradient_variance, inference_gap, simulation_based_calibration
from pyro_vae.inference import AEVB, MCEM, WakeSleep


@pytest.fixture(autouse=True)
def _quick():
    with checked_hardly():
        yield


@pytest.fixture
def checked(make_vae, x):
    trained = {"mcem": make_vae(), "sleep": make_vae(), "aevb": make_vae()}
    algorithms = {"mcem": MCEM(transitions=1, updates=1), "sleep": WakeSleep(), "aevb": AEVB()}
    return trained, algorithms, check_posteriors(trained, algorithms, x, 5, seed=3)


def test_posteriors_are_checked_where_they_are_trained_and_gradients_everywhere(checked):
    _, _, checks = checked
    assert checks.num_data == 5
    assert list(checks.gaps) == list(checks.calibrations) == ["sleep", "aevb"]
    assert list(checks.gradients) == ["mcem", "sleep", "aevb"]
    assert list(checks.gradients["mcem"]) == ["theta"]
    assert checks.notes == []


def test_the_numbers_are_those_of_the_models_and_the_first_data(checked, x):
    trained, algorithms, checks = checked
    for label in ("sleep", "aevb"):
        expected = inference_gap(trained[label], x[:5], num_samples=40, steps=2, seed=3)
        assert torch.equal(checks.gaps[label].total.pointwise, expected.total.pointwise)
        ranks = simulation_based_calibration(trained[label], 20, seed=3).ranks
        assert torch.equal(checks.calibrations[label].ranks, ranks)
    assert checks.at == "sleep"  # the first with a posterior
    assert checks.gradients == gradient_variance(trained["sleep"], x[:5], algorithms, 3, seed=3)


def test_without_any_posterior_gradients_are_taken_at_the_first_model(make_vae, x):
    checks = check_posteriors({"m": make_vae()}, {"m": MCEM(transitions=1, updates=1)}, x, 100)
    assert (checks.at, checks.num_data) == ("m", len(x))
    assert not checks.gaps
    assert not checks.calibrations


def test_none_are_asked_for(make_vae, x):
    assert check_posteriors({"a": make_vae()}, {"a": AEVB()}, x, 0) == PosteriorChecks(0)


def test_no_likelihood_has_neither_gap_nor_calibration(make_vae, x):
    checks = check_posteriors({"a": make_vae()}, {"a": AEVB()}, 0.5 * x, 5, is_likelihood=False)
    assert not checks.gaps
    assert not checks.calibrations
    assert set(checks.gradients["a"]) == {"theta", "phi"}


def test_a_gap_without_reparameterization_is_noted(x):
    prior = Conditional(dist.Bernoulli, (2,), logits=Fixed(0.0))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2)), Conditional(dist.Bernoulli, (2,), given=mlp(6)))
    checks = check_posteriors({"sleep": vae}, {"sleep": WakeSleep()}, x, 5)
    (note,) = checks.notes
    assert note.startswith("sleep: ")
    assert "rsample" in note
    assert not checks.gaps
    assert list(checks.calibrations) == ["sleep"]


def test_the_record_is_json_and_whole(checked):
    _, _, checks = checked
    record = json.loads(json.dumps(checks.record(), allow_nan=False))
    assert record["gaps"]["aevb"]["total"]["mean"] == checks.gaps["aevb"].total.value
    assert record["gradients"]["aevb"]["phi"]["variance"]["mean"] == checks.gradients["aevb"]["phi"].variance.mean
    assert record["calibrated"]["sleep"] == checks.calibrations["sleep"].uniform.tolist()
    assert (record["num_data"], record["gradients_at"]) == (5, "sleep")


def test_what_is_not_finite_is_null_in_the_record(make_vae, x):
    checks = check_posteriors({"a": make_vae()}, {"a": AEVB()}, x[:1], 1)
    assert math.isnan(checks.gaps["a"].total.sampling_error)
    record = json.loads(json.dumps(checks.record(), allow_nan=False))
    assert record["gaps"]["a"]["total"]["sampling_error"] is None
