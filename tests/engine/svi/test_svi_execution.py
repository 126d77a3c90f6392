"""When CompiledSVI compiles and when it does not, what it says about it, and how often at most."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_programs import regression, regression_data
from svi_runs import adam, assert_same, branches, free, fresh, location, run, steps

from pyro_vae import CompiledSVI
from pyro_vae.engine import Step
from pyro_vae.engine.compilation.cost import MOST
from pyro_vae.engine.svi import programs as svi_programs

_fresh = pytest.fixture(autouse=True)(fresh)


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
    with pytest.warns(UserWarning, match="more than 8 kinds.*Pass.* a tensor") as caught:
        assert_same(expected, run(program, [CompiledSVI] * 30, adam, calls))
    assert len(caught) == 1


def test_auto_goes_on_uncompiled_with_one_warning(monkeypatch):
    free(monkeypatch)

    def steps(kind, **options):
        pyro.clear_param_store()
        torch.manual_seed(1)
        svi = kind(branches, AutoNormal(branches), adam(), Trace_ELBO(), **options)
        return [svi.step(torch.ones(3)) for _ in range(5)]

    with pytest.warns(UserWarning, match=r"if z > 0.*continues uncompiled") as caught:
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


def test_how_calls_run_and_what_compiling_took_is_said(caplog, monkeypatch):
    svi = CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO())
    assert (svi.execution, svi.compile_seconds) == ("uncompiled", 0.0)
    with caplog.at_level("INFO", logger="pyro_vae"):
        for _ in range(3):
            svi.step(torch.ones(3))
        first = svi.compile_seconds
        assert first > 0
        assert svi.execution == f"compiled in {first:.1f} s"
        for _ in range(2):
            svi.evaluate_loss(torch.ones(3))
    assert svi.compile_seconds > first
    assert svi.execution == f"2 kinds of calls compiled in {svi.compile_seconds:.1f} s"
    (step, loss) = [record.getMessage() for record in caplog.records if record.name == "pyro_vae"]
    assert step.startswith("CompiledSVI: compiling a step, which takes about")
    assert loss.startswith("CompiledSVI: compiling the loss, which takes about")
    svi = CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO(), compile="auto")
    svi.step(torch.ones(3))
    assert svi.execution == "uncompiled: calls have not yet taken as long as compiling does"
    free(monkeypatch)
    svi = CompiledSVI(branches, AutoNormal(branches), adam(), Trace_ELBO(), compile="auto")
    with pytest.warns(UserWarning, match="continues uncompiled"):
        steps(svi, 3, torch.ones(3))
    assert svi.execution.startswith("uncompiled: capture: a value decides what the program does at svi_runs.py, line")


def test_some_kinds_are_compiled_and_others_are_not(monkeypatch):
    free(monkeypatch)

    def model(x):
        z, _ = location(x[:3])
        if len(x) > 3 and z > 0:
            pyro.deterministic("positive", z)

    svi = CompiledSVI(model, AutoNormal(model), adam(), Trace_ELBO(), compile="auto")
    with pytest.warns(UserWarning, match="if len"):
        assert len([svi.step(torch.ones(3 + i % 2)) for i in range(8)]) == 8
    assert svi.execution.startswith("compiled in ")
    assert "; others uncompiled: capture: a value decides" in svi.execution


@pytest.mark.parametrize("mode", [True, "auto"])
def test_a_number_that_is_read_and_changes_at_each_step_is_given_up_after_a_few_captures(mode, monkeypatch):
    free(monkeypatch)
    captures, weight = [], torch.tensor(1.0)
    monkeypatch.setattr(svi_programs, "Step", lambda *arguments: (captures.append(1), Step(*arguments))[1])

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc + weight.item(), 1.0).expand([3]).to_event(1), obs=x)

    svi = CompiledSVI(model, lambda x: None, adam(), Trace_ELBO(), compile=mode)
    with pytest.warns(UserWarning, match="tensors that are read as numbers change, again and again") as caught:
        assert len([svi.step(torch.ones(3) + 0 * weight.add_(1.0)) for _ in range(40)]) == 40
    assert len(caught) == 1
    assert len(captures) == MOST
    assert svi.execution.startswith("uncompiled: parameters, modules or optimizers are replaced, or tensors")
