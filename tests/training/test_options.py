"""The settings of a training run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vae import Training
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment


def test_defaults_are_adam_with_a_rate_of_a_thousandth_batches_of_100_and_50_epochs():
    training = Training()
    optimizer = training.optimizer([nn.Parameter(torch.zeros(2))])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert (training.epochs, training.steps, training.batch_size) == (50, None, 100)


def test_it_is_frozen_and_replaced_as_a_whole():
    training = Training(steps=10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        training.steps = 20
    longer = dataclasses.replace(training, steps=20)
    assert (training.steps, longer.steps, longer.epochs) == (10, 20, None)


def test_counts_may_be_integers_of_any_kind():
    training = Training(steps=np.int64(7), batch_size=np.int32(3))
    assert (training.steps, training.batch_size) == (7, 3)
    assert type(training.steps) is int


def test_the_length_of_a_run():
    assert Training(epochs=3).total(7) == 21
    assert Training(steps=5).total(7) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1, "steps": 1}, "give `epochs` or `steps`, not both"),
        ({"epochs": 0}, "`epochs` is a positive integer, got `0`"),
        ({"steps": True}, "`steps` is a positive integer, got `True`"),
        ({"batch_size": None}, "`batch_size` is a positive integer, got `None`"),
        ({"optimizer": "Adam"}, "`optimizer` is a function that makes one from parameters.*got `'Adam'`"),
        ({"optimizer": [torch.optim.SGD, 3]}, "`optimizer` is a function that makes one from parameters.*got `int`"),
        ({"compile": "always"}, '`compile` is "auto", "full", True or False, got `\'always\'`'),
        ({"precision": "half"}, '`precision` is "float32", "tf32" or "bfloat16", got `\'half\'`'),
        ({"divergence": "ignore"}, '`divergence` is "raise" or "stop", got `\'ignore\'`'),
        ({"keep": "first"}, '`keep` is "best" or "last", got `\'first\'`'),
        ({"clip_norm": 0}, "`clip_norm` is a positive number, or None for no clipping; got `0`"),
        ({"schedule": "cosine"}, "`schedule` is a function from the step"),
    ],
    ids=str,
)
def test_a_setting_that_no_run_could_use_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Training(**settings)


def test_the_section_of_an_experiment_file_builds_it():
    section = {
        "epochs": 3,
        "batch_size": 20,
        "optimizer": {"name": "SGD", "arguments": {"lr": 0.1}},
        "schedule": "linear",
        "clip_norm": 2.0,
        "validation_every": 4,
        "early_stopping": 5,
        "keep": "best",
        "compile": False,
        "precision": "bfloat16",
    }
    training = Experiment.parse({"training": section}).training.build(50)
    assert (training.steps, training.epochs, training.batch_size) == (9, None, 20)  # 20, 20, 10
    assert isinstance(training.optimizer([nn.Parameter(torch.zeros(2))]), torch.optim.SGD)
    assert training.schedule(0) == 1.0
    assert training.schedule(9) == 0.0
    for name in ("clip_norm", "validation_every", "early_stopping", "keep", "compile", "precision"):
        assert getattr(training, name) == section[name]
