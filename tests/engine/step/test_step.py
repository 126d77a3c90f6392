"""One training step as one graph: what it changes in place, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_vae.engine import Ledger, Step, interpreted

CPU = torch.device("cpu")
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreted():
        yield


class Net(nn.Module):
    """With batch statistics, and a loss that is nan where the data are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        loss = (self.norm(self.linear(x)) + torch.randn(4)).square().mean()
        return loss, {"loss": loss.detach()}


def step_of(module, optimizer, x=X, previous=None):
    ledger = Ledger(optimizer, [list(module.parameters())], CPU, previous)
    names = [f"m.{name}" for name, _ in module.named_parameters()]
    step = Step(lambda x: module(x), {"m": module}, [x], names, ledger)
    step.compile()
    return step, ledger


def make(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def test_it_changes_parameters_buffers_and_state_where_they_lie_and_returns_what_the_function_does():
    module = make()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    step, ledger = step_of(module, optimizer)
    addresses = [t.data_ptr() for t in (*module.parameters(), *module.buffers())]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    noise = step.captured.noise()
    state = {f"m.{key}": value for key, value in before.items()}
    expected = step.captured(state, state, [X], noise)
    loss, more = step([X], noise)
    torch.testing.assert_close(loss, expected.result[0])
    torch.testing.assert_close(more["loss"], loss)
    assert addresses == [t.data_ptr() for t in (*module.parameters(), *module.buffers())]
    assert not any(torch.equal(before[name], value) for name, value in module.state_dict().items())
    for name, value in expected.buffers.items():
        torch.testing.assert_close(module.state_dict()[name.removeprefix("m.")], value)
    assert int(ledger.done) == 1
    assert not bool(ledger.failed)


@pytest.mark.parametrize("family", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_from_the_first_loss_on_that_is_not_finite_nothing_changes(family):
    module = make()
    optimizer = family(module.parameters(), lr=0.1)
    previous = {id(p): p.detach().clone() for p in module.parameters()}
    step, ledger = step_of(module, optimizer, previous=previous)
    step([X])
    before = {key: value.clone() for key, value in module.state_dict().items()}
    step([X])
    for name, p in module.named_parameters():
        torch.testing.assert_close(previous[id(p)], before[name], rtol=0, atol=0)
    good = {key: value.clone() for key, value in module.state_dict().items()}
    counts = [float(count) for count in ledger.counts]
    kept = [v.clone() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    bad = X.clone()
    bad[2, 1] = torch.nan
    for x in (bad, X):  # and what comes after is not followed either
        step([x])
        assert bool(ledger.failed)
        assert int(ledger.done) == 2
        for name, value in module.state_dict().items():
            assert torch.equal(value, good[name]), name
    assert [float(count) for count in ledger.counts] == counts
    after = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(after, kept, strict=True))


def test_it_follows_parameters_that_are_assigned_anew():
    module, other = make(), make()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (module, other)]
    step, _ = step_of(module, optimizers[0])
    module.linear.weight.data = module.linear.weight.data + 1.0
    step([X], [torch.zeros(4)])
    with torch.no_grad():
        other.linear.weight.add_(1.0)
    same, _ = step_of(other, optimizers[1])
    same([X], [torch.zeros(4)])
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_a_preview_changes_nothing():
    module = make()
    step, ledger = step_of(module, torch.optim.Adam(module.parameters()))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = torch.get_rng_state()
    value, _ = step.preview([X])
    assert value.shape == ()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert int(ledger.done) == 0
