"""What may change between two steps of CompiledSVI, each of which is the step that Pyro's SVI takes then."""

import itertools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro_programs import annealed, modules, regression
from svi_runs import adam, assert_same, fresh, run, run_losses
from torch import nn

from pyro_vae import CompiledSVI
from pyro_vae.engine import Lifted, Step
from pyro_vae.engine.svi import programs as svi_programs

_fresh = pytest.fixture(autouse=True)(fresh)


def test_batch_size_and_mode_may_change_between_steps():
    made = []

    def program():
        made.append(modules())
        return made[-1]

    def calls(svi, i, arguments):
        for part in made[-1].guide.parts:
            part.train(i % 4 < 2)
        with Lifted():
            return svi.step(arguments[0][: 12 if i % 5 else 7])

    assert_same(run(program, [SVI] * 20, adam, calls), run(program, [CompiledSVI] * 20, adam, calls))


def test_the_dtype_and_the_structure_of_arguments_may_change_between_steps():
    def model(x, scale=1.0, more=None):
        loc = pyro.param("loc", torch.zeros(2))
        extra = 0.0 if more is None else more["shift"][0]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.to(x.dtype) + extra, scale).to_event(1), obs=x)

    def calls(svi, i, arguments):
        x = torch.ones(4, 2, dtype=torch.float32 if i % 2 else torch.float64)
        named = [{}, {"scale": 2.0}, {"more": {"shift": [torch.tensor(0.5 + i)]}}][i % 3]
        return svi.step(x.T.contiguous().T, **named)

    def program():
        return regression()._replace(model=model, guide=lambda *_, **__: None)

    # What float32 data add up to depends on the order of the sum.
    assert_same(run(program, [SVI] * 24, adam, calls), run(program, [CompiledSVI] * 24, adam, calls), 1e-6)


def test_a_store_that_is_cleared_or_assigned_is_followed():
    def calls(svi, i, arguments):
        if i == 6:
            pyro.get_param_store()["a"] = torch.tensor(3.0)
        if i == 12:
            pyro.clear_param_store()
        if i == 18:
            with torch.no_grad():
                pyro.param("slope").unconstrained().fill_(0.7)
        with Lifted():
            return svi.step(*arguments)

    assert_same(run_losses(SVI, calls), run_losses(CompiledSVI, calls))


def test_tensors_that_the_model_holds_elsewhere_may_change_in_place():
    x, weight = torch.ones(5), torch.tensor(1.0)

    def model():
        loc = pyro.param("loc", torch.tensor(0.0))
        with poutine.scale(scale=weight):
            pyro.sample("x", dist.Normal(loc, 1.0).expand([5]).to_event(1), obs=x)

    def calls(svi, i, arguments):
        weight.fill_(0.1 * (i + 1))
        return svi.step()

    def program():
        return regression()._replace(model=model, guide=lambda: None)

    assert_same(run(program, [SVI] * 10, adam, calls), run(program, [CompiledSVI] * 10, adam, calls))


def test_a_frozen_parameter_that_is_assigned_anew_is_followed():
    network = nn.Linear(1, 1).requires_grad_(False)

    def model(x):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)) + network(x[:1]), 1.0).to_event(1), obs=x[:1])

    def calls(svi, i, arguments):
        if i % 4 == 3:
            network.weight = nn.Parameter(torch.full((1, 1), float(i)), requires_grad=False)
        return svi.step(torch.ones(3))

    def program():
        network.weight = nn.Parameter(torch.ones(1, 1), requires_grad=False)
        return regression()._replace(model=model, guide=lambda x: None)

    assert_same(run(program, [SVI] * 12, adam, calls), run(program, [CompiledSVI] * 12, adam, calls))


class _Decided(nn.Module):
    """A module whose plain attributes and parts decide what it does."""

    def __init__(self):
        super().__init__()
        self.linear, self.weight, self.function, self.part = nn.Linear(3, 3), 1.0, torch.tanh, nn.Tanh()

    def forward(self, x):
        return self.weight * self.function(self.part(self.linear(x)))


@pytest.mark.parametrize(
    ("attribute", "values"), [("weight", [2.0, 1.0]), ("part", [nn.Sigmoid()]), ("function", [torch.sin])]
)
def test_attributes_and_parts_of_modules_may_change_between_steps(attribute, values):
    module = None

    def model(x):
        pyro.module("network", module)
        pyro.sample("x", dist.Normal(module(x), 1.0).to_event(1), obs=x)

    def program():
        nonlocal module
        module = _Decided()
        return regression()._replace(model=model, guide=lambda x: None)

    def calls(svi, i, arguments):
        if i and i % 4 == 0:
            setattr(module, attribute, values[i // 4 % len(values)])
        return svi.step(torch.ones(3))

    assert_same(run(program, [SVI] * 14, adam, calls), run(program, [CompiledSVI] * 14, adam, calls))


def test_functions_as_arguments_that_live_for_one_step_are_told_apart():
    def model(x, function):
        pyro.sample(
            "x", dist.Normal(function(pyro.param("loc", torch.tensor(1.0))), 1.0).expand([3]).to_event(1), obs=x
        )

    def calls(svi, i, arguments):
        return svi.step(torch.ones(3), lambda value: i * value)

    def program():
        return regression()._replace(model=model, guide=lambda x, function: None)

    assert_same(run(program, [SVI] * 12, adam, calls), run(program, [CompiledSVI] * 12, adam, calls))


def test_methods_as_arguments_are_the_same_from_step_to_step():
    linear = nn.Linear(3, 3)

    def model(x, function):
        pyro.module("linear", linear)
        pyro.sample("x", dist.Normal(function(x), 1.0).to_event(1), obs=x)

    svi = CompiledSVI(model, lambda x, function: None, adam(), Trace_ELBO())
    for _ in range(3):
        svi.step(torch.ones(3), linear.forward)
    assert svi.compiled == 1


def test_another_model_or_loss_may_be_put_in_place():
    def calls(svi, i, arguments):
        if i == 4:
            svi.model = poutine.scale(svi.model, scale=2.0)
        if i == 8:
            svi.loss_and_grads = Trace_ELBO(num_particles=3).loss_and_grads
        with Lifted():
            return svi.step(*arguments)

    assert_same(run(annealed, [SVI] * 12, adam, calls), run(annealed, [CompiledSVI] * 12, adam, calls))


def test_parameters_may_be_frozen_and_freed_between_steps():
    def calls(svi, i, arguments):
        slope = pyro.get_param_store()._params.get("slope")
        if i:
            slope.requires_grad_(not 4 <= i < 9)
            slope.grad = None
        with Lifted(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="CompiledSVI: the loss does not depend on `slope`")
            return svi.step(*arguments)

    assert_same(run_losses(SVI, calls), run_losses(CompiledSVI, calls))


def test_modules_may_change_their_type_between_steps():
    network = None

    def model(x):
        pyro.module("network", network)
        pyro.sample("x", dist.Normal(network(x), 1.0).to_event(2), obs=x)

    def program():
        nonlocal network
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        return regression()._replace(model=model, guide=lambda x: None)

    def calls(svi, i, arguments):
        dtype = torch.float32 if 4 <= i < 8 else torch.float64
        network.to(dtype)
        return svi.step(torch.ones(5, 3, dtype=dtype))

    def optim():
        return pyro.optim.SGD({"lr": 0.01})

    assert_same(run(program, [SVI] * 12, optim, calls), run(program, [CompiledSVI] * 12, optim, calls), 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_modules_and_data_may_change_their_device_between_steps():
    losses = {}
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        network = nn.Linear(3, 3)

        def model(x, network=network):
            pyro.module("network", network)
            pyro.sample("x", dist.Normal(network(x), 1.0).to_event(2), obs=x)

        svi = kind(model, lambda x: None, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
        losses[kind] = []
        for i in range(12):
            device = "cuda" if 4 <= i < 8 else "cpu"
            network.to(device)
            losses[kind].append(svi.step(torch.ones(5, 3, device=device)))
    torch.testing.assert_close(losses[CompiledSVI], losses[SVI], rtol=1e-9, atol=1e-9)


def by_fill(tensor, value):
    tensor.fill_(value)


def by_data(tensor, value):
    tensor.data.fill_(value)


def by_array(tensor, value):
    tensor.numpy()[...] = value


def as_number(weight):
    return weight.item()


def as_branch(weight):
    return 2.0 if weight > 2.5 else 1.0


def as_mask(weight):
    return torch.arange(5.0)[torch.arange(5) < weight].sum()


def with_constant(weight):
    return (torch.tensor(2.0) * weight).item()


CHANGES, READS = (by_fill, by_data, by_array), (as_number, as_branch, as_mask, with_constant)
PAIRS = [(as_number, by_array), (as_branch, by_fill), (as_mask, by_data), (with_constant, by_fill)]


@pytest.mark.parametrize(
    ("read", "change"),
    [
        pytest.param(
            *pair, marks=() if pair in PAIRS else pytest.mark.slow, id="-".join(part.__name__ for part in pair)
        )
        for pair in itertools.product(READS, CHANGES)
    ],
)
def test_tensors_that_the_model_holds_and_reads_as_numbers_may_change_in_place(read, change):
    weight = None

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc + read(weight), 1.0).expand([3]).to_event(1), obs=x)

    def program():
        nonlocal weight
        weight = torch.tensor(2.0)
        return regression()._replace(model=model, guide=lambda x: None)

    def calls(svi, i, arguments):
        if i in (4, 8):
            change(weight, 1.0 + i)
        if i == 6:
            weight.mul_(1.0)  # the same value
        return svi.step(torch.ones(3))

    assert_same(run(program, [SVI] * 12, adam, calls), run(program, [CompiledSVI] * 12, adam, calls))


def test_what_is_read_as_a_number_and_stays_as_it_is_costs_no_second_capture(monkeypatch):
    captures = []
    monkeypatch.setattr(svi_programs, "Step", lambda *arguments: (captures.append(1), Step(*arguments))[1])
    weight = torch.tensor(float("nan"))

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc + (0.0 if weight.isnan().item() else 1.0), 1.0).expand([3]).to_event(1), obs=x)

    svi = CompiledSVI(model, lambda x: None, adam(), Trace_ELBO())
    for _ in range(6):
        svi.step(torch.ones(3))
        weight.mul_(1.0)
    assert (len(captures), svi.compiled) == (1, 1)
