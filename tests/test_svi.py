"""CompiledSVI is pyro.infer.SVI: the same losses, parameters, optimizer states and random states at the same noise."""

from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, EnergyDistance, JitTrace_ELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_programs import PROGRAMS, annealed, modules, regression, regression_data
from torch import nn
from torch.utils import _pytree as pytree

from pyro_vae import CompiledSVI
from pyro_vae.engine import CaptureError, Lifted, interpreted
from pyro_vae.errors import InputError, NonFiniteError

# Of losses and parameters after fifty steps in float64, relative to the larger of the value and 1.
TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def _fresh():
    """An empty store, float64, noise that eager and captured programs share, graphs run op by op."""
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    with interpreted():
        yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


def adam():
    return pyro.optim.Adam({"lr": 0.01})


def run(program, turns, optim=adam, calls=lambda svi, i, arguments: svi.step(*arguments)):
    """The losses of steps of which each is taken by the class in turn; parameters, optimizer and random state then."""
    pyro.clear_param_store()
    torch.manual_seed(5)
    made, optimizer = program(), optim()
    by_class = {kind: kind(made.model, made.guide, optimizer, made.loss) for kind in set(turns)}
    losses = []
    for i, kind in enumerate(turns):
        with Lifted() if kind is SVI or i == 0 else nullcontext():  # a captured program draws so of itself
            losses.append(calls(by_class[kind], i, made.arguments(i)))
    parameters = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    buffers = [b.clone() for part in getattr(made.guide, "parts", ()) for b in part.buffers()]
    states = dict(sorted(optimizer.get_state().items()))
    return torch.tensor(losses), parameters, buffers, states, torch.get_rng_state()


def assert_same(a, b, tolerance=TOLERANCE):
    losses, parameters, buffers, states, random = a
    torch.testing.assert_close(b[0], losses, rtol=tolerance, atol=tolerance)
    assert list(b[1]) == list(parameters)
    for name in parameters:
        torch.testing.assert_close(b[1][name], parameters[name], rtol=tolerance, atol=tolerance)
    for one, other in zip(buffers, b[2], strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)
    leaves, structure = pytree.tree_flatten(states)
    others, same = pytree.tree_flatten(b[3])
    assert same == structure
    for one, other in zip(leaves, others, strict=True):
        if isinstance(one, (float, torch.Tensor)):
            torch.testing.assert_close(other, one, rtol=10 * tolerance, atol=tolerance)
        else:
            assert other == one
    assert torch.equal(b[4], random)


def sparing(cases, default):
    """The cases, of which the default suite runs some."""
    named = {getattr(case, "__name__", case): case for case in cases}
    return [pytest.param(c, marks=() if n in default else pytest.mark.slow, id=n) for n, c in named.items()]


FAST = ("relaxed_mixture", "modules", "discrete")


@pytest.mark.parametrize("program", sparing(PROGRAMS, FAST))
def test_equals_svi_over_fifty_steps(program):
    assert_same(run(program, [SVI] * 50), run(program, [CompiledSVI] * 50))


@pytest.mark.slow
def test_a_float32_program_equals_svi_to_rounding():
    torch.set_default_dtype(torch.float32)
    assert_same(run(annealed, [SVI] * 50), run(annealed, [CompiledSVI] * 50), 1e-5)


OPTIMIZERS = {
    "Adam": adam,
    "amsgrad": lambda: pyro.optim.Adam({"lr": 0.02, "amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.9)}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.01, "weight_decay": 0.3}),
    "Adagrad": lambda: pyro.optim.Adagrad({"lr": 0.05, "lr_decay": 0.1}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-3}),
    "momentum": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9, "dampening": 0.2}),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 2.0, "lrd": 0.95}),
    "DCTAdam": lambda: pyro.optim.DCTAdam({"lr": 0.01}),
    "clip_args": lambda: pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 1.0}),
    "by parameter": lambda: pyro.optim.Adam(lambda name: {"lr": 0.05 if "locs" in name else 0.01}),
}


@pytest.mark.parametrize("name", sparing(OPTIMIZERS, ("momentum", "ClippedAdam")))
def test_taking_turns_is_exact_for_every_optimizer(name):
    optim = OPTIMIZERS[name]
    alone = run(annealed, [SVI] * 24, optim)
    turns = [SVI] * 3 + [CompiledSVI] * 8 + [SVI] * 4 + [CompiledSVI, SVI] * 3 + [CompiledSVI] * 3
    assert_same(alone, run(annealed, turns, optim))


@pytest.mark.parametrize("scheduler", sparing(["ExponentialLR", "OneCycleLR"], ()))
def test_learning_rate_schedules_of_pyro_are_followed(scheduler):
    options = {"ExponentialLR": {"gamma": 0.8}, "OneCycleLR": {"max_lr": 0.1, "total_steps": 40}}[scheduler]

    def optim():
        made = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, **options}
        optimizer.append(getattr(pyro.optim, scheduler)(made))
        return optimizer[-1]

    def calls(svi, i, arguments):
        loss = svi.step(*arguments)
        optimizer[-1].step()
        return loss

    optimizer = []
    assert_same(run(annealed, [SVI] * 20, optim, calls), run(annealed, [CompiledSVI] * 20, optim, calls))


def test_evaluate_loss_equals_svi_and_moves_nothing():
    def calls(svi, i, arguments):
        return svi.evaluate_loss(*arguments) if i % 3 else svi.step(*arguments)

    assert_same(run(modules, [SVI] * 20, adam, calls), run(modules, [CompiledSVI] * 20, adam, calls))


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

    assert_same(run(program, [SVI] * 30, adam, calls), run(program, [CompiledSVI] * 30, adam, calls))


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


def test_numbers_that_change_all_the_time_go_on_uncompiled_with_one_warning():
    y = regression_data()[1]

    def model(x, weight):
        with poutine.scale(scale=weight):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0).expand([20]).to_event(1), obs=x)

    def calls(svi, i, arguments):
        return svi.step(y, 0.5 + i // 2)

    def program():
        return regression()._replace(model=model, guide=lambda x, weight: None)

    expected = run(program, [SVI] * 30, adam, calls)
    with pytest.warns(UserWarning, match="more than 8 kinds.*pass.* a tensor") as caught:
        assert_same(expected, run(program, [CompiledSVI] * 30, adam, calls))
    assert len(caught) == 1


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


def run_losses(kind, calls):
    """As `run`; an optimizer that has met two tensors of one name has no state to be named."""
    pyro.clear_param_store()
    torch.manual_seed(5)
    made = annealed()
    svi = kind(made.model, made.guide, adam(), made.loss)
    losses = torch.tensor([calls(svi, i, made.arguments(i)) for i in range(24)])
    return losses, {n: v.detach().clone() for n, v in pyro.get_param_store().items()}, [], {}, torch.get_rng_state()


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


def test_a_loss_that_is_not_finite_leaves_batch_statistics_alone():
    made = modules()
    svi = CompiledSVI(made.model, made.guide, adam(), made.loss)
    x = made.arguments(0)[0]
    for _ in range(3):
        svi.step(x)
    buffers = [b for part in made.guide.parts for b in part.buffers()]
    before = [b.clone() for b in buffers]
    with pytest.raises(NonFiniteError, match="is not finite"):
        svi.step(x / 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))


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


@pytest.fixture
def really_compiled():
    """Real compilation, in place of the graphs that all other tests run op by op."""
    from pyro_vae.engine import backend

    before, backend._interpreted = backend._interpreted, False
    yield
    backend._interpreted = before


def test_compiled_for_the_machine_it_equals_svi(really_compiled):
    assert_same(run(annealed, [SVI] * 50), run(annealed, [CompiledSVI] * 50))


@pytest.mark.slow
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.__name__ != "deep_exponential_family"])
def test_every_program_compiled_for_the_machine_equals_svi(program, really_compiled):
    # A compiled deep exponential family draws its Gamma variates from another stream.
    assert_same(run(program, [SVI] * 50), run(program, [CompiledSVI] * 50), 1e-8)


# ------------------------------------------------------------------ what is refused


def location(x, used=None):
    loc = pyro.param("loc", torch.tensor(0.5))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    return z, pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)


def second_step(model, *arguments, guide=None, loss=None, compile=True):
    svi = CompiledSVI(model, guide or AutoNormal(model), adam(), loss or Trace_ELBO(), compile=compile)
    svi.step(*arguments)
    return svi.step(*arguments)


def branches(x):
    z, _ = location(x)
    if z > 0:  # decides
        pyro.deterministic("positive", z)


def reads(x):
    z, _ = location(x)
    pyro.factor("again", torch.tensor(z.item()))


def selects(x):
    location(x)
    draws = pyro.sample("draws", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    pyro.factor("chosen", draws[draws > 0].sum())


@pytest.mark.parametrize(
    ("model", "line"),
    [(branches, "if z > 0:  # decides"), (reads, "z.item()"), (selects, "draws[draws > 0]")],
)
def test_programs_that_are_no_list_of_operations_are_refused_by_line(model, line):
    with pytest.raises(CaptureError) as refused:
        second_step(model, torch.ones(3))
    assert line in str(refused.value)
    assert "test_svi.py, line" in str(refused.value)


def free(monkeypatch):
    """Has compiling cost nothing."""
    for name, value in {"WARM": 0.0, "CAPTURE": 0.0, "price": lambda known: 0.0}.items():
        monkeypatch.setattr(f"pyro_vae.engine.svi.{name}", value)


def test_auto_goes_on_uncompiled_with_one_warning(monkeypatch):
    free(monkeypatch)

    def steps(kind, **options):
        pyro.clear_param_store()
        torch.manual_seed(1)
        svi = kind(branches, AutoNormal(branches), adam(), Trace_ELBO(), **options)
        return [svi.step(torch.ones(3)) for _ in range(5)]

    with pytest.warns(UserWarning, match=r"if z > 0.*goes on uncompiled") as caught:
        assert steps(CompiledSVI, compile="auto") == steps(SVI)
    assert len(caught) == 1


def test_auto_compiles_what_has_taken_as_long_as_compiling_does(monkeypatch):
    def compiled(**options):
        pyro.clear_param_store()
        svi = CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO(), **options)
        for _ in range(3):
            svi.step(torch.ones(3))
        return svi.compiled

    assert (compiled(), compiled(compile=False), compiled(compile="auto")) == (1, 0, 0)
    free(monkeypatch)
    assert compiled(compile="auto") == 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [(JitTrace_ELBO(), "give `Trace_ELBO`"), (EnergyDistance(), "cannot be captured; Trace_ELBO")],
)
def test_losses_that_cannot_be_captured_are_refused_by_name(loss, message):
    with pytest.raises(CaptureError, match=message):
        CompiledSVI(location, location, adam(), loss)
    CompiledSVI(location, location, adam(), loss, compile=False)


def test_unknown_modes_are_refused():
    with pytest.raises(InputError, match="`compile` is True, False or 'auto'; it is 'always'"):
        CompiledSVI(location, location, adam(), Trace_ELBO(), compile="always")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (np.ones(3), "`ndarray`.*torch.as_tensor"),
        (torch.ones(3, requires_grad=True), "requires a gradient.*detached"),
        (torch.eye(3).to_sparse(), "dense"),
    ],
)
def test_arguments_that_could_change_unseen_are_refused(argument, message):
    svi = CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO())
    with pytest.raises(CaptureError, match=message):
        svi.step(torch.ones(3), used=argument)


def test_a_module_that_pyro_does_not_train_is_refused_by_name():
    network = nn.Linear(1, 3)

    def model(x):
        location(network(x[:1]))

    with pytest.raises(CaptureError, match=r"`Linear.weight`, of shape \(3, 1\).*pyro.module"):
        second_step(model, torch.ones(3))
    network.requires_grad_(False)
    pyro.clear_param_store()
    assert np.isfinite(second_step(model, torch.ones(3)))


def test_a_second_module_of_the_same_name_is_refused():
    def model(network, x):
        pyro.module("network", network)
        location(network(x[:1]))

    second_step(model, nn.Linear(1, 3), torch.ones(3))
    with pytest.raises(CaptureError, match="under a name that no other module has"):
        second_step(model, nn.Linear(1, 3), torch.ones(3))


def test_a_decaying_average_baseline_is_refused_by_name():
    def guide(x):
        p = pyro.param("p", torch.tensor(0.5))
        pyro.sample("z", dist.Bernoulli(p), infer={"baseline": {"use_decaying_avg_baseline": True}})

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    with pytest.raises(CaptureError, match=r"assigns.*`__baseline_avg_downstream_cost_z`.*nn_baseline"):
        second_step(model, torch.ones(3), guide=guide, loss=TraceGraph_ELBO())


def test_parameters_without_gradient_are_named_in_a_warning_and_left_alone():
    def model(x):
        pyro.param("unused", torch.tensor(2.0))
        location(x)

    with pytest.warns(UserWarning, match="does not depend on `unused`; as with Pyro's SVI"):
        second_step(model, torch.ones(3))
    assert pyro.param("unused").item() == 2.0


@pytest.mark.parametrize("optim", ["Adam", "RMSprop"])
def test_a_loss_that_is_not_finite_changes_nothing_and_names_the_site(optim):
    svi = CompiledSVI(location, AutoNormal(location), OPTIMIZERS[optim](), Trace_ELBO())
    for _ in range(3):
        svi.step(torch.ones(3))
    before, state = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}, svi.optim.get_state()
    steps = {name: float(s["state"][0]["step"]) for name, s in state.items()}
    with pytest.raises(NonFiniteError, match="site `x` of the model is not finite"):
        svi.step(torch.tensor([1.0, float("inf"), 1.0]))
    assert all(torch.equal(value, before[name]) for name, value in pyro.get_param_store().items())
    assert {name: float(s["state"][0]["step"]) for name, s in svi.optim.get_state().items()} == steps
    assert np.isfinite(svi.step(torch.ones(3)))
    assert any(not torch.equal(value, before[name]) for name, value in pyro.get_param_store().items())


def test_handlers_around_a_step_are_obeyed():
    def calls(svi, i, arguments):
        with poutine.scale(scale=1.0 + i), Lifted():
            return svi.step(*arguments)

    assert_same(run(annealed, [SVI] * 5, adam, calls), run(annealed, [CompiledSVI] * 5, adam, calls))


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


def run_losses_of(program, kind, calls):
    """As `run_losses`, of any program."""
    pyro.clear_param_store()
    torch.manual_seed(5)
    made = program()
    svi = kind(made.model, made.guide, adam(), made.loss)
    losses = torch.tensor([calls(svi, i, ()) for i in range(8)])
    return losses, {n: v.detach().clone() for n, v in pyro.get_param_store().items()}, [], {}, torch.get_rng_state()


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


def test_another_model_or_loss_may_be_put_in_place():
    def calls(svi, i, arguments):
        if i == 4:
            svi.model = poutine.scale(svi.model, scale=2.0)
        if i == 8:
            svi.loss_and_grads = Trace_ELBO(num_particles=3).loss_and_grads
        with Lifted():
            return svi.step(*arguments)

    assert_same(run(annealed, [SVI] * 12, adam, calls), run(annealed, [CompiledSVI] * 12, adam, calls))
