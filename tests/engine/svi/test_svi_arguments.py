"""Arguments and buffers whose values a program reads: records, arrays, lengths, masks; each as Pyro's SVI takes it."""

import argparse
import dataclasses
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalizingFlow
from pyro.infer.reparam import LatentStableReparam
from pyro_programs import regression
from svi_runs import adam, assert_same, fresh, location, run
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyro_vae import CompiledSVI
from pyro_vae.engine import CaptureError, CompilationError, Lifted

_fresh = pytest.fixture(autouse=True)(fresh)

X = torch.tensor([1.0, 0.0, 1.0]).double()


def agrees(program, calls, turns=12, tolerance=1e-9, compiled=1):
    """Both classes take the same steps; the second compiles at least so many kinds of calls."""
    svis = []

    def stepped(svi, i, arguments):
        svis.append(svi)
        with Lifted():
            return calls(svi, i)

    expected = run(program, [SVI] * turns, adam, stepped)
    assert_same(expected, run(program, [CompiledSVI] * turns, adam, stepped), tolerance)
    assert svis[-1].compiled >= compiled


# ------------------------------------------------------------------ records and arrays


@dataclasses.dataclass
class Data:
    x: torch.Tensor
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    scale: float = 1.0


RECORDS = [Data, Frozen, argparse.Namespace, SimpleNamespace]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_records_are_taken_apart(record):
    """Their tensors may have other values at each step, also others in place; numbers belong to the kind."""

    def model(nested):
        (data,) = nested["data"]
        assert isinstance(data, record)
        with poutine.scale(scale=data.scale):
            location(data.x)

    def calls(svi, i):
        return svi.step({"data": [record(x=X + i, scale=1.0 if i < 6 else 3.0)]})

    agrees(lambda: regression()._replace(model=model, guide=AutoNormal(location)), calls, compiled=2)


def test_a_record_that_the_user_changes_is_read_anew():
    options = argparse.Namespace(scale=1.0, x=X)

    def model(options):
        with poutine.scale(scale=options.scale):
            location(options.x)

    def calls(svi, i):
        options.scale, options.x = 1.0 if i < 6 else 3.0, X + i
        return svi.step(options)

    agrees(lambda: regression()._replace(model=model, guide=AutoNormal(location)), calls, compiled=2)


@pytest.mark.parametrize("how", ["as a tensor", "copied", "as a number"])
def test_arrays_are_compared_by_value(how):
    """Also if the user changes one in place, and then back; or passes an equal one."""
    array = np.zeros(3)

    def model(array):
        made = {"as a tensor": torch.as_tensor, "copied": torch.tensor, "as a number": lambda a: X * float(a.max())}
        location(made[how](array))

    def calls(svi, i):
        array[:] = [1.0, 2.0, 1.0][i // 3 % 3]
        return svi.step(array if i % 2 else array.copy())

    agrees(lambda: regression()._replace(model=model, guide=AutoNormal(location)), calls, compiled=2)


# ------------------------------------------------------------------ lengths of sequences

SEQUENCES = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)).double()


def sequences(lengths_of):
    """A recurrent network on packed sequences, as in Pyro's deep Markov model."""

    def program():
        network, last = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 1)

        def model(x, lengths, labels):
            pyro.module("network", network)
            pyro.module("last", last)
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            out = last(pad_packed_sequence(network(packed)[0], batch_first=True)[0]).squeeze(-1)
            pyro.sample("x", dist.Normal(out + labels.unsqueeze(-1), 1.0).to_event(2), obs=x[:, : out.shape[1], 0])

        return regression()._replace(model=model, guide=lambda *_: None)

    return program, lambda svi, i: svi.step(SEQUENCES + i, lengths_of(i), torch.tensor([0, 1, i]))


LENGTHS = {
    "a list": lambda i: [5, 4, 2],
    "a tensor": lambda i: torch.tensor([5, 4, 2]),
    "tensors": lambda i: torch.tensor([5, 4, 2] if i % 2 else [4, 4, 1]),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_packed_sequences(name):
    """Labels are whole numbers too, but their values are not read, so they may change at each step."""
    agrees(*sequences(LENGTHS[name]), compiled=1 + (name == "tensors"))


@pytest.mark.slow
def test_packed_sequences_that_inductor_cannot_compile_are_refused(monkeypatch):
    """Inductor of torch 2.13 gives the captured recurrent network wrong shapes, and refuses it by itself."""
    from pyro_vae.engine.compilation import backend

    monkeypatch.setattr(backend, "_interpreted", False)
    program, calls = sequences(LENGTHS["a tensor"])
    with pytest.raises(CompilationError, match="cannot compile"):
        run(program, [CompiledSVI] * 12, adam, lambda svi, i, _: calls(svi, i))


def test_lengths_that_change_all_the_time_go_on_uncompiled_with_one_warning():
    def model(x, count):
        z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[: int(count)].sum())

    def calls(svi, i, arguments):
        with Lifted():
            return svi.step(torch.arange(40.0), torch.tensor(1 + i // 2))

    def program():
        return regression()._replace(model=model, guide=AutoNormal(model))

    expected = run(program, [SVI] * 24, adam, calls)
    with pytest.warns(UserWarning, match="reads the values of an argument.*more than 8 different ones") as caught:
        assert_same(expected, run(program, [CompiledSVI] * 24, adam, calls))
    assert len(caught) == 1


# ------------------------------------------------------------------ buffers


class Sparse(nn.Module):
    """A weight in the cells of a mask, before batch normalisation, which changes its own buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("count", torch.tensor(2))
        self.weight, self.normed = nn.Parameter(torch.ones(2)), nn.BatchNorm1d(3)

    def forward(self, x):
        weight = torch.zeros(3)
        weight[self.mask] = self.weight
        return self.normed(torch.stack([weight * x, 2 * weight * x + 1, x[: int(self.count)].sum() * weight]))


def sparse():
    network = Sparse()

    def model(x):
        pyro.module("network", network)
        pyro.sample("x", dist.Normal(network(x), 1.0).to_event(2), obs=torch.ones(3, 3))

    def guide(x):
        return None

    guide.parts = (network,)
    return regression()._replace(model=model, guide=guide)


def test_buffers_that_the_program_reads_may_change_between_steps():
    networks = []

    def program():
        made = sparse()
        networks.extend(made.guide.parts)
        return made

    def calls(svi, i):
        if i == 4:
            networks[-1].mask.copy_(torch.tensor([False, True, True]))
        if i == 7:
            networks[-1].mask = torch.tensor([True, True, False])
        if i == 10:
            networks[-1].count.fill_(1)
        return svi.evaluate_loss(X) if i % 3 == 2 else svi.step(X)

    agrees(program, calls, turns=16)


def test_a_buffer_that_the_program_changes_and_reads_is_refused():
    network = Sparse()

    def model(x):
        pyro.module("network", network)
        network.count.add_(1)
        pyro.sample("x", dist.Normal(network(x), 1.0).to_event(2), obs=torch.ones(3, 3))

    svi = CompiledSVI(model, lambda x: None, adam(), Trace_ELBO())
    svi.step(X)
    with pytest.raises(CaptureError, match=r"depends on values|value decides"):
        svi.step(X)
    assert network.count is network._buffers["count"]


# ------------------------------------------------------------------ distributions


def flow(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@poutine.reparam(config={"y": LatentStableReparam()})
def stable(x, stability=1.5):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    y = pyro.sample("y", dist.Stable(stability, 0.0, scale, 0.0))
    pyro.sample("x", dist.Normal(y, 1.0).expand([3]).to_event(1), obs=x)


def turns(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 3, 3):
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])


def block_flow(model):
    return AutoNormalizingFlow(model, lambda size: transforms.iterated(1, transforms.block_autoregressive, size))


@pytest.mark.parametrize(("model", "guide"), [(flow, block_flow), (stable, AutoNormal), (turns, AutoNormal)])
def test_programs_that_read_only_constants(model, guide):
    agrees(lambda: regression()._replace(model=model, guide=guide(model)), lambda svi, i: svi.step(X), turns=5)
