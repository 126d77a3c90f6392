"""What is given in place of a VAE, or to an algorithm's constructor, is named with what to pass."""

from __future__ import annotations

import pytest
import torch
from algorithm_cases import small_vae
from torch import nn

from pyro_vae import VAE, Training, evaluation, fit
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate
from pyro_vae.inference import AEVB, ALGORITHMS, Inference, Loss

X = torch.ones(4, 6)
OF_NUMBERS = ("best_candidate", "paired_differences", "pareto_k", "to_arviz")
ESTIMATES = [
    name
    for name in evaluation.__all__
    if callable(getattr(evaluation, name)) and name[0].islower() and name not in OF_NUMBERS
]


class Trained:
    """What `load` returns has its VAE as an attribute."""

    def __init__(self):
        self.vae = small_vae("aevb")


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_estimate_of_what_is_no_vae(name):
    function = getattr(evaluation, name)
    with pytest.raises(
        InputError, match=rf"^{name}: needs a VAE, got `Linear`; declare one with your own networks: VAE\("
    ):
        function(nn.Linear(6, 2), X)
    with pytest.raises(InputError, match=rf"^{name}: needs a VAE, got `Trained`; pass its attribute `vae`\."):
        function(Trained(), X)
    with pytest.raises(InputError, match=rf"^{name}: needs a VAE, got the class `VAE`; make one"):
        function(vae=VAE)


def test_training_of_what_is_no_vae():
    for given, says in ((nn.Linear(6, 2), "`Linear`; declare"), (Trained(), "`Trained`; pass its attribute `vae`")):
        with pytest.raises(InputError, match=f"^fit: needs a VAE, got {says}"):
            fit(given, X, AEVB(), Training(steps=1))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_argument_that_an_algorithm_does_not_have(name):
    algorithm = ALGORITHMS[name]
    with pytest.raises(InputError, match=rf"^{algorithm.__name__}: has no argument `k`; expected one of|it has none"):
        algorithm(k=5)


def test_an_algorithm_of_the_users_own():
    class Own(Inference):
        name = "own"

        def __init__(self, temperature: float = 1.0, **others: float) -> None:
            super().__init__()
            self.temperature, self.others = temperature, others

        def loss_of(self, vae, batch) -> Loss:
            return Loss(-vae.log_weights_of(batch).mean() * self.temperature)

    class Narrow(Own):
        def __init__(self, temperature: float = 1.0) -> None:
            super().__init__(temperature, speed=2.0)

    assert Own(speed=3.0).others == {"speed": 3.0}
    assert Narrow().others == {"speed": 2.0}
    with pytest.raises(InputError, match="Narrow: has no argument `temprature`; did you mean `temperature`"):
        Narrow(temprature=2.0)
    assert isinstance(evaluation.elbo(small_vae("aevb"), X), Estimate)
