"""What the tests of CompiledSVI share: the same program stepped by Pyro's SVI and by it, and what must be equal."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_programs import annealed
from torch.utils import _pytree as pytree

from pyro_vae import CompiledSVI
from pyro_vae.engine import Lifted, interpreted

# Of losses and parameters after fifty steps in float64, relative to the larger of the value and 1.
TOLERANCE = 1e-9


def fresh():
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


def run_losses(kind, calls):
    """As `run`; an optimizer that has met two tensors of one name has no state to be named."""
    pyro.clear_param_store()
    torch.manual_seed(5)
    made = annealed()
    svi = kind(made.model, made.guide, adam(), made.loss)
    losses = torch.tensor([calls(svi, i, made.arguments(i)) for i in range(24)])
    return losses, {n: v.detach().clone() for n, v in pyro.get_param_store().items()}, [], {}, torch.get_rng_state()


def run_losses_of(program, kind, calls):
    """As `run_losses`, of any program."""
    pyro.clear_param_store()
    torch.manual_seed(5)
    made = program()
    svi = kind(made.model, made.guide, adam(), made.loss)
    losses = torch.tensor([calls(svi, i, ()) for i in range(8)])
    return losses, {n: v.detach().clone() for n, v in pyro.get_param_store().items()}, [], {}, torch.get_rng_state()


def location(x, used=None):
    """A model of three data with one latent."""
    loc = pyro.param("loc", torch.tensor(0.5))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    return z, pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)


def second_step(model, *arguments, guide=None, loss=None, compile=True):
    """The loss of the first captured step."""
    svi = CompiledSVI(model, guide or AutoNormal(model), adam(), loss or Trace_ELBO(), compile=compile)
    svi.step(*arguments)
    return svi.step(*arguments)


def branches(x):
    """Cannot be captured."""
    z, _ = location(x)
    if z > 0:  # decides
        pyro.deterministic("positive", z)


def free(monkeypatch):
    """Has compiling cost nothing."""
    for name, value in {"WARM": 0.0, "CAPTURE": 0.0, "compile_cost": lambda known: 0.0}.items():
        monkeypatch.setattr(f"pyro_vae.engine.svi.svi.{name}", value)


def steps(svi, times, *arguments):
    """The losses of some steps at the same arguments."""
    return [svi.step(*arguments) for _ in range(times)]
