"""Comparisons that take a second: few rows, few units, few samples, no checks of the posteriors."""

import dataclasses
import functools
from contextlib import contextmanager

import pytest
import torch
from annealing import short_pilot

from pyro_vae.comparison import checks
from pyro_vae.comparison.compare import compare
from pyro_vae.datasets import load
from pyro_vae.evaluation import gap
from pyro_vae.experiment import Experiment

BINARY = torch.distributions.constraints.boolean
SMALL = {
    "networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}},
    "training": {"epochs": 1, "batch_size": 20},
    "evaluation": {"num_samples": 50, "temperatures": 5, "chains": 3, "ais_data": 15, "posterior_checks": 0},
    "device": "cpu",
    "seeds": 2,
}


def small(loaded, checkpoints=None, **changes):
    experiment = Experiment.parse({**SMALL, **changes})
    with short_pilot():
        return compare(experiment, loaded, command="pyro-vae compare small.yaml", checkpoints=checkpoints)


def first_rows(data):
    return dataclasses.replace(data, train=data.train[:60], valid=data.valid[:20], test=data.test[:20])


def few_digits(**options):
    return first_rows(load("digits", support=BINARY, **options))


@contextmanager
def checked_hardly():
    """Within the block, checks of posteriors take little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "_SIMULATED", 20)
        patch.setattr(checks, "_GRADIENTS", 3)
        patch.setattr(checks, "inference_gap", functools.partial(gap.inference_gap, num_samples=40, steps=2))
        patch.setattr(gap, "_RUNS", 1)
        yield
