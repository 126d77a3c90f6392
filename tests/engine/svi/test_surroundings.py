"""Handlers and modes around a call: CompiledSVI does as Pyro's SVI does within them, or says that it cannot."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_programs import annealed
from svi_runs import TOLERANCE, adam, assert_same, free, fresh, location, run

from pyro_vae import CompiledSVI
from pyro_vae.engine import CaptureError, Lifted

_fresh = pytest.fixture(autouse=True)(fresh)

X = torch.tensor([1.0, 0.0, 1.0]).double()


def in_auto(*arguments):
    return CompiledSVI(*arguments, compile="auto")


AROUND = {
    "ScaleMessenger": lambda i: poutine.scale(scale=1.0 + i),
    "MaskMessenger": lambda i: poutine.mask(mask=i % 2 == 0),
    "BlockMessenger": lambda i: poutine.block(hide=["x"]),
    "EscapeMessenger": lambda i: poutine.escape(escape_fn=lambda site: False),
}


@pytest.mark.parametrize("name", AROUND)
def test_within_a_handler_auto_does_as_pyro_with_one_warning(name, monkeypatch):
    free(monkeypatch)

    def calls(svi, i, arguments):
        with AROUND[name](i), Lifted():
            return svi.step(*arguments)

    expected = run(annealed, [SVI] * 5, adam, calls)
    with pytest.warns(UserWarning, match=f"within Pyro's handler `{name}`.*around model and guide") as caught:
        assert_same(expected, run(annealed, [in_auto] * 5, adam, calls))
    assert len(caught) == 1


@pytest.mark.parametrize("call", ["step", "evaluate_loss"])
@pytest.mark.parametrize("name", AROUND)
def test_within_a_handler_true_is_refused(name, call):
    svi = CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO())
    for _ in range(2):
        svi.step(X)
    with AROUND[name](1), pytest.raises(CaptureError, match=f"`{call}` is within Pyro's handler `{name}`"):
        getattr(svi, call)(X)
    svi.step(X)


@pytest.mark.parametrize("outer", [poutine.block, lambda: poutine.scale(scale=3.0)])
def test_a_handler_that_hides_all_changes_nothing(outer):
    def calls(svi, i, arguments):
        with outer(), poutine.block(), Lifted():
            return svi.step(*arguments)

    assert_same(run(annealed, [SVI] * 6, adam, calls), run(annealed, [CompiledSVI] * 6, adam, calls))
    with outer(), poutine.block():
        svi = CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO())
        for _ in range(3):
            svi.step(X)
    assert svi.compiled == 1


def test_seeds_around_a_step_are_followed():
    def calls(svi, i, arguments):
        with pyro.poutine.seed(rng_seed=i), Lifted():
            return svi.step(*arguments)

    assert_same(run(annealed, [SVI] * 5, adam, calls), run(annealed, [CompiledSVI] * 5, adam, calls))


def test_without_gradients_nothing_is_trained(monkeypatch):
    free(monkeypatch)

    def calls(svi, i, arguments):
        with torch.set_grad_enabled(i < 3), Lifted():
            return svi.step(*arguments)

    expected = run(annealed, [SVI] * 6, adam, calls)
    with pytest.warns(UserWarning, match=r"torch.no_grad.*where Pyro's step trains nothing"):
        assert_same(expected, run(annealed, [in_auto] * 6, adam, calls))
    with torch.no_grad(), pytest.raises(CaptureError, match=r"torch.no_grad"):
        CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO()).step(X)


def test_pyros_settings_are_followed():
    def model(x):
        tril = pyro.param("tril", lambda: torch.eye(3))
        scale = pyro.ops.tensor_utils.safe_cholesky(tril @ tril.T)
        pyro.sample("x", pyro.distributions.MultivariateNormal(torch.zeros(3), scale_tril=scale), obs=x)

    losses = {}
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        svi = kind(model, lambda x: None, adam(), Trace_ELBO())
        losses[kind] = []
        for i in range(8):
            jitter = pyro.settings.get("cholesky_relative_jitter") if i < 4 else 0.01
            with pyro.settings.context(cholesky_relative_jitter=jitter):
                losses[kind].append(svi.step(X))
    assert losses[CompiledSVI] == pytest.approx(losses[SVI], rel=TOLERANCE)
    assert svi.compiled == 2
