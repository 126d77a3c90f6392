"""CompiledSVI is pyro.infer.SVI: the same losses, parameters, optimizer states and random states at the same noise."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_programs import modules, regression
from svi_runs import TOLERANCE, adam, assert_same, fresh, location, run, run_losses_of
from torch import nn

from pyro_vae import CompiledSVI
from pyro_vae.engine import Lifted, Step, interpreted

_fresh = pytest.fixture(autouse=True)(fresh)


def test_evaluate_loss_equals_svi_and_moves_nothing():
    def calls(svi, i, arguments):
        return svi.evaluate_loss(*arguments) if i % 3 else svi.step(*arguments)

    assert_same(run(modules, [SVI] * 20, adam, calls), run(modules, [CompiledSVI] * 20, adam, calls))


def test_two_programs_in_one_process_that_share_an_optimizer_and_a_parameter():
    x = torch.ones(3)

    def one(i):
        def guide(x):
            pyro.sample("z", dist.Normal(pyro.param(f"mean_{i}", torch.tensor(0.1)), 0.5))

        return guide

    def steps(kind):
        pyro.clear_param_store()
        torch.manual_seed(1)
        optimizer, losses = adam(), []
        both = [location, poutine.scale(location, scale=2.0)]  # of one parameter, and guides of their own
        svis = [kind(model, one(i), optimizer, Trace_ELBO()) for i, model in enumerate(both)]
        for _ in range(10):
            with Lifted():
                losses += [svi.step(x) for svi in svis]
        return torch.tensor(losses)

    torch.testing.assert_close(steps(CompiledSVI), steps(SVI), rtol=TOLERANCE, atol=0)


def test_parameters_under_two_names_are_one():
    def program():
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        second.weight = first.weight

        def model(x):
            pyro.module("first", first)
            pyro.module("second", second)
            pyro.sample("x", dist.Normal(second(torch.tanh(first(x))), 1.0).to_event(1), obs=x)

        return regression()._replace(model=model, guide=lambda x: None)

    def calls(svi, i, arguments):
        return svi.step(torch.ones(2))

    assert_same(run_losses_of(program, SVI, calls), run_losses_of(program, CompiledSVI, calls))


def test_distributions_made_beforehand_with_validation_are_captured():
    prior = dist.Normal(torch.zeros(()), 1.0, validate_args=True).expand([3]).to_event(1)

    def program():
        def model(x):
            pyro.sample("x", dist.Normal(pyro.sample("z", prior), 1.0).to_event(1), obs=x)

        return regression()._replace(model=model, guide=AutoNormal(model))

    def calls(svi, i, arguments):
        with Lifted():
            return svi.step(torch.ones(3))

    assert_same(run_losses_of(program, SVI, calls), run_losses_of(program, CompiledSVI, calls))


def test_capture_leaves_store_gradients_and_random_state_alone():
    made = modules()
    svi = CompiledSVI(made.model, made.guide, adam(), made.loss)
    svi.step(*made.arguments(0))
    store = pyro.get_param_store()
    before = {name: (id(tensor), tensor.detach().clone()) for name, tensor in store._params.items()}
    random, held = torch.get_rng_state(), [id(p) for part in made.guide.parts for p in part.parameters()]
    with interpreted(), torch.random.fork_rng():
        svi.step(*made.arguments(1))
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: id(tensor) for name, tensor in store._params.items()} == {n: i for n, (i, _) in before.items()}
    assert all(bool((store._params[name] != old).any()) for name, (_, old) in before.items())
    assert [id(p) for part in made.guide.parts for p in part.parameters()] == held
    assert len(store._param_to_name) == len(before) == len(store._constraints)


# ------------------------------------------------------------------ arguments of every layout

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()


def several(*given):
    """Any number of data of at most three columns."""
    loc = pyro.param("loc", lambda: torch.zeros(3))
    z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
    for i, x in enumerate(given):
        pyro.sample(f"x_{i}", dist.Normal(z[: x.shape[-1]], 1.0).expand(x.shape).to_event(x.dim()), obs=x)


def own_location(*given):
    pyro.sample("z", dist.Normal(pyro.param("own", lambda: torch.ones(3)), 0.5).to_event(1))


def as_inference_tensor(x):
    with torch.inference_mode():
        return x + 1


LAYOUTS = {
    "the same twice": lambda i: (X, X),
    "overlapping": lambda i: (X[:, :2], X[:, 1:]),
    "expanded": lambda i: (X[i % 5].expand(5, 3),),
    "transposed": lambda i: ((X + i).reshape(3, 5).T,),
    "strided": lambda i: (torch.cat([X, X])[i % 2 :: 2],),
    "empty now and then": lambda i: (X[:0] if i % 3 == 2 else X,),
    "made in inference mode": lambda i: (as_inference_tensor(X + i),),
    "a parameter's own memory": lambda i: (pyro.get_param_store()["own"].detach() if i else torch.ones(3),),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_arguments_of_any_layout(name):
    def program():
        return regression()._replace(model=several, guide=own_location, arguments=LAYOUTS[name])

    def calls(svi, i, arguments):
        with Lifted():
            return svi.step(*arguments)

    assert_same(run(program, [SVI] * 7, adam, calls), run(program, [CompiledSVI] * 7, adam, calls))


def test_an_argument_in_memory_that_the_step_changes_is_copied_beforehand(monkeypatch):
    """Compiled code may update a parameter before it reads what lies in the same place."""
    seen, take = [], Step.__call__

    def watched(self, inputs):
        seen.append(inputs[0][0].data_ptr())
        return take(self, inputs)

    monkeypatch.setattr(Step, "__call__", watched)
    svi = CompiledSVI(several, own_location, adam(), Trace_ELBO())
    svi.step(X[0])
    own = pyro.get_param_store()["own"].detach()
    for x in (own, X[1], own):
        svi.step(x)
    assert [address == own.data_ptr() for address in seen] == [False] * 3
    assert seen[1] == X[1].data_ptr()
    pyro.get_param_store()._params["own"].data = moved = torch.zeros(3)
    svi.step(moved)
    assert seen[-1] != moved.data_ptr()


def test_parameters_of_other_types_than_the_data():
    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(3, dtype=torch.float32))
        scale = pyro.param("scale", lambda: torch.ones(3, dtype=torch.float64), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(loc.double(), scale).expand([5, 3]).to_event(2), obs=x.double())

    for x in (X, X.float()):

        def program(x=x):
            return regression()._replace(model=model, guide=lambda x: None, arguments=lambda i: (x,))

        # Adam's own step of a float32 parameter rounds in float32.
        assert_same(run(program, [SVI] * 20), run(program, [CompiledSVI] * 20), 1e-6)
