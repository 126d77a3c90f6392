"""The whole interface of Pyro's SVI, as CompiledSVI has it: arguments, losses of every form, gradients, copies."""

import copy
import inspect

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from svi_runs import TOLERANCE, adam, free, fresh, location

from pyro_vae import CompiledSVI
from pyro_vae.engine import CaptureError, Lifted

_fresh = pytest.fixture(autouse=True)(fresh)

X = torch.tensor([1.0, 0.0, 1.0]).double()


def sgd():
    return pyro.optim.SGD({"lr": 0.01})


def test_the_arguments_are_those_of_svi_in_order():
    of_svi = [p for p in inspect.signature(SVI).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    own = [p for p in inspect.signature(CompiledSVI).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in own] == [(p.name, p.default) for p in of_svi]


@pytest.mark.filterwarnings("ignore:The `(num_steps|num_samples|SVI.run)`:FutureWarning")
@pytest.mark.parametrize("arguments", [{"num_steps": 5, "num_samples": 3}, {"num_samples": 2, "num_chains": 2}])
def test_run_trains_and_draws(arguments):
    runs = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(3)
        svi = kind(location, AutoNormal(location), adam(), Trace_ELBO(), **arguments)
        with Lifted():
            posterior = svi.run(X)
            draws = [trace.nodes["z"]["value"].detach() for trace in posterior.exec_traces]
        runs.append(([*draws, posterior.marginal("z").empirical["z"].mean], dict(pyro.get_param_store().items())))
        assert (svi.num_chains, len(draws)) == (arguments.get("num_chains", 1), arguments["num_samples"])
    torch.testing.assert_close(runs[1], runs[0], rtol=TOLERANCE, atol=TOLERANCE)
    assert svi.compiled == ("num_steps" in arguments)


def test_deprecated_arguments_are_named_as_in_svi():
    for kind in (SVI, CompiledSVI):
        with pytest.warns(FutureWarning, match="`num_steps` argument to SVI"):
            assert kind(location, location, adam(), Trace_ELBO(), None, 0, 7).num_steps == 7
    with pytest.raises(TypeError, match="unknown"):
        CompiledSVI(location, location, adam(), Trace_ELBO(), unknown=1)
    with pytest.raises(ValueError, match="should be an instance of"):
        CompiledSVI(location, location, torch.optim.Adam([X]), Trace_ELBO())


# ------------------------------------------------------------------ losses as functions


def function(model, guide, *arguments):
    return Trace_ELBO().differentiable_loss(model, guide, *arguments)


def both(model, guide, *arguments):
    loss = function(model, guide, *arguments)
    loss.backward()
    return loss, 2 * loss.detach()


def scaled_gradients(model, guide, *arguments):
    loss = function(model, guide, *arguments)
    loss.backward()
    for parameter in pyro.get_param_store()._params.values():
        if parameter.grad is not None:
            parameter.grad *= 0.1
    return loss


def assigned_gradients(model, guide, *arguments):
    loss = function(model, guide, *arguments)
    parameters = list(pyro.get_param_store()._params.values())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        parameter.grad = gradient
    return loss


def backward_of_autograd(model, guide, *arguments):
    loss = function(model, guide, *arguments)
    loss.backward(retain_graph=True)
    torch.autograd.backward([2 * loss], retain_graph=True)
    return loss


def steps(kind, loss_and_grads=None, between=lambda i: None, times=6, **options):
    pyro.clear_param_store()
    torch.manual_seed(3)
    svi = kind(location, AutoNormal(location), sgd(), function, loss_and_grads, **options)
    losses = []
    for i in range(times):
        between(i)
        with Lifted():
            losses.append(svi.step(X))
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return svi, torch.tensor(losses), values


@pytest.mark.parametrize("own", [None, both])
def test_losses_given_as_functions(own):
    expected, (svi, *found) = steps(SVI, own)[1:], steps(CompiledSVI, own)
    torch.testing.assert_close(found, list(expected), rtol=TOLERANCE, atol=TOLERANCE)
    assert svi.compiled == 1


@pytest.mark.parametrize("own", [scaled_gradients, assigned_gradients, backward_of_autograd])
def test_losses_that_work_on_gradients_are_refused_and_run_as_in_pyro(own, monkeypatch):
    with pytest.raises(CaptureError, match=r"works on the gradients itself.*compile=False"):
        steps(CompiledSVI, own)
    free(monkeypatch)
    expected = steps(SVI, own)[1:]
    with pytest.warns(UserWarning, match="works on the gradients itself") as caught:
        _, *found = steps(CompiledSVI, own, compile="auto")
    torch.testing.assert_close(found, list(expected), rtol=TOLERANCE, atol=TOLERANCE)
    assert len(caught) == 1


def test_a_program_in_which_torch_fails_goes_on_uncompiled(monkeypatch):
    """It fails at its second run, which is the capture; as Pyro's own step it would run."""
    free(monkeypatch)
    runs = []

    def model(x):
        runs.append(len(runs))
        if len(runs) == 2:
            raise RuntimeError("no kernel")
        location(x)

    svi = CompiledSVI(model, AutoNormal(location), adam(), Trace_ELBO(), compile="auto")
    svi.step(X)
    with pytest.warns(UserWarning, match="since a trial run of it fails: RuntimeError: no kernel"):
        svi.step(X)


# ------------------------------------------------------------------ gradients that are not the program's


def test_gradients_of_the_users_before_a_step_are_added():
    def between(i):
        if i in (3, 5):
            (10 * pyro.param("loc") ** 2).backward()

    expected, (svi, *found) = steps(SVI, None, between)[1:], steps(CompiledSVI, None, between)
    torch.testing.assert_close(found, list(expected), rtol=TOLERANCE, atol=TOLERANCE)
    assert svi.compiled == 1


def test_a_hook_on_a_gradient_is_refused_and_runs_as_in_pyro(monkeypatch):
    free(monkeypatch)

    def between(i):
        if i == 3:
            pyro.get_param_store()._params["loc"].register_hook(lambda gradient: 0.1 * gradient)

    expected = steps(SVI, None, between)[1:]
    with pytest.warns(UserWarning, match="`loc` has a hook on its gradient"):
        _, *found = steps(CompiledSVI, None, between, compile="auto")
    torch.testing.assert_close(found, list(expected), rtol=TOLERANCE, atol=TOLERANCE)
    with pytest.raises(CaptureError, match="`loc` has a hook on its gradient"):
        steps(CompiledSVI, None, between)


class Local(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc, self.scale = PyroParam(torch.tensor(0.3)), PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x):
        z = pyro.sample("z", dist.Normal(self.loc, self.scale))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)


def test_parameters_that_modules_keep_out_of_the_store_are_trained():
    runs = []
    for kind in (SVI, CompiledSVI):
        torch.manual_seed(3)
        with pyro.settings.context(module_local_params=True):
            model = Local()
            guide = AutoNormal(model)
            svi = kind(model, guide, adam(), Trace_ELBO())
            losses = []
            for i in range(9):
                if i == 6:
                    model.loc_unconstrained = torch.nn.Parameter(torch.tensor(2.0))
                with Lifted():
                    losses.append(svi.step(X))
        assert not pyro.get_param_store().keys()
        runs.append((torch.tensor(losses), *(p.detach() for p in (*model.parameters(), *guide.parameters()))))
    torch.testing.assert_close(runs[1], runs[0], rtol=TOLERANCE, atol=TOLERANCE)
    assert svi.compiled == 1


def test_a_copy_compiles_for_itself():
    losses = {}
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(3)
        svi = kind(location, AutoNormal(location), adam(), Trace_ELBO())
        losses[kind] = []
        for i in range(9):
            if i == 3:
                other = copy.deepcopy(svi)
            with Lifted():
                losses[kind].append((other if 3 <= i < 6 else svi).step(X))
    assert losses[CompiledSVI] == pytest.approx(losses[SVI], rel=TOLERANCE)
    assert (svi.compiled, other.compiled) == (1, 1)
