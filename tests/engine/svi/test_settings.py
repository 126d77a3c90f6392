"""Numbers, losses' options and tensors that a program reads from elsewhere: a change is followed as by Pyro's SVI."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.scale_messenger import ScaleMessenger
from svi_runs import TOLERANCE, adam, fresh, location
from torch import nn

from pyro_vae import CompiledSVI
from pyro_vae.engine import Lifted
from pyro_vae.engine.svi.settings import Settings

_fresh = pytest.fixture(autouse=True)(fresh)

X = torch.tensor([1.0, 0.0, 1.0]).double()
BETA = 1.0
OPTIONS = {"temperatures": [1.0, 1.0]}


def scaled(x, beta):
    with poutine.scale(scale=beta):
        location(x)


def by_loss(kind):
    loss = Trace_ELBO()
    return kind(location, AutoNormal(location), adam(), loss), lambda: setattr(loss, "num_particles", 4)


def by_loss_within_a_function(kind):
    loss = Trace_ELBO()

    def own(*arguments):
        return loss.differentiable_loss(*arguments)

    return kind(location, AutoNormal(location), adam(), own), lambda: setattr(loss, "num_particles", 4)


def by_global_number(kind):
    def change():
        global BETA
        BETA = 3.0

    change.__globals__["BETA"] = 1.0
    return kind(lambda x: scaled(x, BETA), AutoNormal(location), adam(), Trace_ELBO()), change


def by_global_dictionary(kind):
    def inner(x):
        scaled(x, OPTIONS["temperatures"][1])

    def change():
        OPTIONS["temperatures"][1] = 3.0

    OPTIONS["temperatures"][1] = 1.0
    return kind(lambda x: inner(x), AutoNormal(location), adam(), Trace_ELBO()), change


def by_variable_around(kind):
    beta = 1.0

    def change():
        nonlocal beta
        beta = 3.0

    return kind(lambda x: scaled(x, beta), AutoNormal(location), adam(), Trace_ELBO()), change


def by_tensor_put_in_place(kind):
    beta = torch.tensor(1.0)

    def change():
        nonlocal beta
        beta = torch.tensor(3.0)

    return kind(lambda x: scaled(x, beta), AutoNormal(location), adam(), Trace_ELBO()), change


class Trainer:
    """Its epochs and losses change all the time; its model reads none of them."""

    def __init__(self):
        self.epoch, self.losses, self.beta = 0, [], 1.0

    @property
    def scale(self):
        return self.beta

    def weight(self):
        return self.scale

    def model(self, x):
        scaled(x, self.weight())


def by_object(kind):
    trainer = Trainer()
    return kind(trainer.model, AutoNormal(location), adam(), Trace_ELBO()), lambda: setattr(trainer, "beta", 3.0)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.options, self.beta = {"beta": 1.0}, torch.tensor(1.0)

    def forward(self, x):
        scaled(x, self.options["beta"] * self.beta)


def by_dictionary_of_a_module(kind):
    module = Scaled()
    return kind(module, AutoNormal(location), adam(), Trace_ELBO()), lambda: module.options.update(beta=3.0)


def by_tensor_of_a_module(kind):
    module = Scaled()
    svi = kind(module, AutoNormal(location), adam(), Trace_ELBO())
    return svi, lambda: setattr(module, "beta", torch.tensor(3.0))


def by_handler(kind):
    handler = ScaleMessenger(scale=1.0)
    return kind(handler(location), AutoNormal(location), adam(), Trace_ELBO()), lambda: setattr(handler, "scale", 3.0)


WAYS = [
    *(by_loss, by_loss_within_a_function, by_global_number, by_global_dictionary, by_variable_around),
    *(by_tensor_put_in_place, by_object, by_dictionary_of_a_module, by_tensor_of_a_module, by_handler),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_change_between_two_steps_is_followed(way):
    runs = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(2)
        svi, change = way(kind)
        losses = []
        for i in range(9):
            if i == 5:
                change()
            with Lifted():
                losses.append(svi.step(X))
        runs.append((torch.tensor(losses), *(v.detach().clone() for v in pyro.get_param_store().values())))
    assert svi.compiled >= 1
    torch.testing.assert_close(runs[1], runs[0], rtol=TOLERANCE, atol=TOLERANCE)


def test_what_the_model_does_not_read_may_change_all_the_time():
    trainer = Trainer()
    svi = CompiledSVI(trainer.model, AutoNormal(location), adam(), Trace_ELBO())
    for i in range(12):
        trainer.epoch += 1
        trainer.losses.append(svi.step(X))
        assert svi.compiled == min(i, 1)


def test_what_the_model_itself_counts_costs_no_second_capture():
    calls = 0

    def model(x):
        nonlocal calls
        calls += 1
        location(x)

    svi = CompiledSVI(model, AutoNormal(location), adam(), Trace_ELBO())
    for _ in range(6):
        svi.step(X)
    assert svi.compiled == 1
    before = calls
    svi.step(X)
    assert calls == before


def test_values_are_read_anew_and_tensors_are_listed():
    trainer = Trainer()
    settings = Settings(trainer.model)
    before = settings.now()
    trainer.epoch = 7
    assert settings.now() == before
    trainer.beta = 2.0
    assert [b for a, b in zip(before, settings.now(), strict=True) if a != b] == [2.0]
    module = Scaled()
    assert [(name, value is module.beta) for _, name, value in Settings(module).tensors] == [("beta", True)]


def test_data_in_another_precision_than_the_parameters_are_captured():
    """The check of a capture allows the rounding of the coarsest type."""

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=z).to_event(1), obs=x)

    svi = CompiledSVI(model, AutoNormal(model), adam(), Trace_ELBO())
    for _ in range(3):
        svi.step(X.float())
    assert svi.compiled == 1
