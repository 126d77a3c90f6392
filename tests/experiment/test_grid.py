"""Experiments in which keys vary."""

from __future__ import annotations

import pytest

from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment
from pyro_vae.experiment.command_line import experiment_of
from pyro_vae.experiment.grid import variants

MIXTURE = {"mixture": {"components": 10}}


def labels(**content):
    return [variant.label for variant in variants(Experiment.parse(content))]


def test_every_combination_is_a_variant_with_its_own_experiment():
    experiment = Experiment.parse(
        {"latent": 3, "vary": {"prior": ["Normal", MIXTURE, "flow"], "latent": [4, 8], "training.epochs": [2]}}
    )
    found = variants(experiment)
    assert [variant.label for variant in found] == [
        "Normal, latent=4",
        "Normal, latent=8",
        "mixture components=10, latent=4",
        "mixture components=10, latent=8",
        "flow, latent=4",
        "flow, latent=8",
    ]
    assert [variant.experiment.latent for variant in found] == [4, 8] * 3
    assert {variant.experiment.training.epochs for variant in found} == {2}
    assert found[2].changes == {"prior": MIXTURE, "latent": 4, "training.epochs": 2}
    assert not any(variant.experiment.vary for variant in found)
    again = Experiment.parse(experiment.model_dump(mode="json", exclude_none=True))
    assert [variant.label for variant in variants(again)] == [variant.label for variant in found]


def test_without_a_grid_there_is_the_experiment_itself():
    (only,) = variants(experiment := Experiment.parse({}))
    assert only.experiment is experiment
    assert "vary" not in experiment.model_dump(exclude_none=True)


def test_keys_of_one_line_vary_together():
    assert labels(vary={"prior, latent": [["Normal", 4], ["flow", 8]]}) == ["Normal, latent=4", "flow, latent=8"]


def test_named_candidates():
    models = {"small": {"latent": 4}, "flow": {"prior": "flow", "training.epochs": 3}}
    assert labels(models=models) == ["small", "flow"]
    assert labels(models=models, vary={"likelihood": ["Bernoulli", "Beta"]})[1] == "small, Beta"


def test_combinations_that_cannot_work_say_why():
    good, bad = variants(Experiment.parse({"vary": {"latent": [4, "many"]}}))
    assert good.experiment is not None
    assert bad.experiment is None
    assert "expected a positive integer" in bad.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"vary": {"latent": 4}}, "`latent` varies over a list of values"),
        ({"vary": {"latent": []}}, "`latent` varies over a list of values"),
        ({"vary": {"laten": [4]}}, "no key `laten`; did you mean `latent`"),
        ({"vary": {"seeds": [[1], [2]]}}, "`seeds` is the same for all candidates"),
        ({"vary": {"data": ["digits", "mnist"]}}, "`data` is the same for all candidates"),
        ({"vary": {"prior, latent": [["Normal"]]}}, r"lists of 2 values, one for each key \(got \['Normal'\]\)"),
        ({"vary": {"latent": [4]}, "models": {"a": {"latent": 8}}}, "`latent` varies twice"),
        ({"models": {"a": 3}}, "`a` is a mapping of keys to values"),
    ],
)
def test_a_grid_without_meaning_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        Experiment.parse(content)


def test_too_many_combinations_and_twins_are_refused():
    with pytest.raises(InputError, match="12,000 combinations; expected at most 10,000"):
        labels(vary={"latent": list(range(1, 121)), "training.epochs": list(range(1, 101))})
    with pytest.raises(InputError, match="two combinations are `latent=4`; give each value once"):
        labels(vary={"latent": [4, 4]})


def test_the_console_and_python_say_the_same():
    given = experiment_of(None, {}, [], ["prior=Normal,{mixture: {components: 10}}", "latent=4,8"])
    varied = Experiment().varied({"prior": ["Normal", MIXTURE], "latent": (4, 8)})
    assert given.vary == varied.vary == {"prior": ["Normal", MIXTURE], "latent": [4, 8]}
    with pytest.raises(InputError, match="--vary: expected key=value,value"):
        experiment_of(None, {}, [], ["prior"])
