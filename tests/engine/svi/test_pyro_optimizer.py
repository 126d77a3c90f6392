"""CompiledSVI with every optimizer: the states are Pyro's at every turn, and what is not finite changes nothing."""

import numpy as np
import pyro
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_programs import annealed, modules
from svi_runs import adam, assert_same, fresh, location, run, second_step, sparing

from pyro_vae import CompiledSVI
from pyro_vae.errors import NonFiniteError

_fresh = pytest.fixture(autouse=True)(fresh)


OPTIMIZERS = {
    "Adam": adam,
    "amsgrad": lambda: pyro.optim.Adam({"lr": 0.02, "amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.9)}),
    "maximize": lambda: pyro.optim.Adam({"lr": 1e-3, "maximize": True, "amsgrad": True}),
    "Nesterov": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
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


@pytest.mark.parametrize("name", sparing(OPTIMIZERS, ("amsgrad", "maximize", "momentum", "ClippedAdam")))
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


def test_a_loss_that_is_not_finite_leaves_batch_statistics_alone():
    made = modules()
    svi = CompiledSVI(made.model, made.guide, adam(), made.loss)
    x = made.arguments(0)[0]
    for _ in range(3):
        svi.step(x)
    buffers = [b for part in made.guide.parts for b in part.buffers()]
    before = [b.clone() for b in buffers]
    with pytest.raises(ValueError, match="to satisfy the constraint"):  # Pyro's, since its validation is on
        svi.step(x / 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))
    with pyro.validation_enabled(False):
        for _ in range(2):
            svi.step(x)
        before = [b.clone() for b in buffers]
        with pytest.raises(NonFiniteError, match="is not finite"):
            svi.step(x / 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))


def test_parameters_without_gradient_are_named_in_a_warning_and_left_alone():
    def model(x):
        pyro.param("unused", torch.tensor(2.0))
        location(x)

    with pytest.warns(UserWarning, match="does not depend on `unused`; as with Pyro's SVI"):
        second_step(model, torch.ones(3))
    assert pyro.param("unused").item() == 2.0


def test_parameters_that_are_not_finite_from_the_first_step_on_are_named():
    """Pyro's own first step goes on with them; no later step is blamed for it."""
    svi = CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO())
    with pytest.warns(UserWarning, match="Encountered NaN"), pyro.validation_enabled(False):
        svi.step(torch.tensor([1.0, float("nan"), 1.0]))
    assert not bool(pyro.param("AutoNormal.locs.z").isfinite())
    with (
        pyro.validation_enabled(False),
        pytest.raises(
            NonFiniteError, match=r"`AutoNormal.(locs|scales).z` was not finite before the step; begin again"
        ),
    ):
        svi.step(torch.ones(3))
