"""Optimizer rules as functions of tensors, against torch's own optimizers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pyro_vae.engine import Ledger, Step, interpreted
from pyro_vae.engine.step.optimizer_rules import RULES, rule_for

STEPS = 100
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd, weight decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "sgd, dampening": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "sgd, nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd, maximize": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.5, weight_decay=0.1, maximize=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adagrad, lr decay": lambda p: torch.optim.Adagrad(
        p, lr=0.1, lr_decay=0.05, weight_decay=0.1, initial_accumulator_value=0.2, eps=1e-3
    ),
    "adagrad, maximize": lambda p: torch.optim.Adagrad(p, lr=0.01, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adam, betas": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.6, 0.9), eps=1e-3, weight_decay=0.1),
    "adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "adam, maximize": lambda p: torch.optim.Adam(p, lr=1e-3, maximize=True, weight_decay=0.1),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.02, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=0.02, fused=True),
    "adam, tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.02, dtype=torch.float64)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3, amsgrad=True, betas=(0.8, 0.99)),
    "adamw, maximize": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.3, maximize=True),
}

# Which of them are in the suite that always runs.
QUICK = ("sgd, dampening", "sgd, nesterov", "adagrad, lr decay", "adam, betas", "adam, amsgrad", "adamw", "adam, fused")


def some(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


class Loss(nn.Module):
    """A loss that is not symmetric in its parameters, of which one is a scalar and one starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 2, generator=generator))
        self.shift = nn.Parameter(torch.zeros(2))
        self.log_scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        y = torch.tanh(x @ self.weight + self.shift)
        return ((y - 0.5 * x[:, :2]).square() * torch.exp(-self.log_scale)).mean() + 0.5 * self.log_scale.square()


def batches(dtype, steps=STEPS):
    return [X.roll(i, 0)[:10].to(dtype) for i in range(steps)]


def by_torch(module, optimizer, data, clip_norm=None, schedule=None):
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for i, x in enumerate(data):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (schedule(i) if schedule else 1)
        optimizer.zero_grad()
        module(x).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()


def by_rule(module, optimizer, data, clip_norm=None, schedule=None):
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    ledger = Ledger(optimizer, [[dict(module.named_parameters())[n] for n in names]], torch.device("cpu"))
    step = Step(lambda x: module(x), {"m": module}, [data[0]], [f"m.{n}" for n in names], ledger, clip_norm)
    for i, x in enumerate(data):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (schedule(i) if schedule else 1)
        step([x])
    ledger.write()
    return ledger


def pair(make, dtype=torch.float64):
    """Twice the same module and optimizer."""
    modules = [Loss().to(dtype) for _ in range(2)]
    return [(module, make(list(module.parameters()))) for module in modules]


def assert_same(a, b, rtol=1e-12, atol=1e-13):
    (one, its), (other, their) = a, b
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)
    ours, theirs = its.state_dict()["state"], their.state_dict()["state"]
    for i in ours.keys() | theirs.keys():
        present = {key: value for key, value in theirs.get(i, {}).items() if value is not None}
        assert set(present) == {key for key, value in ours.get(i, {}).items() if value is not None}
        for key, value in present.items():
            torch.testing.assert_close(ours[i][key], value, rtol=rtol, atol=atol)


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreted():
        yield


@pytest.mark.parametrize("name", some(OPTIMIZERS))
def test_a_rule_is_torchs_optimizer_over_100_steps(name):
    expected, got = pair(OPTIMIZERS[name])
    by_torch(*expected, batches(torch.float64))
    assert by_rule(*got, batches(torch.float64)).rule is not None
    assert_same(got, expected)
    assert not torch.equal(got[0].shift, Loss().double().shift)


@pytest.mark.parametrize("name", some(["sgd, momentum", "adagrad", "adam, amsgrad", "adamw, amsgrad"]))
def test_in_float32_a_rule_is_torchs_optimizer_but_for_rounding(name):
    expected, got = pair(OPTIMIZERS[name], torch.float32)
    by_torch(*expected, batches(torch.float32))
    by_rule(*got, batches(torch.float32))
    assert_same(got, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", some(["sgd, nesterov", "adagrad", "adam", "adamw"]))
def test_clipping_by_norm_and_a_schedule_of_rates(name):
    options = {"clip_norm": 0.05, "schedule": lambda i: 1 / (1 + 0.1 * i)}
    expected, got = pair(OPTIMIZERS[name])
    by_torch(*expected, batches(torch.float64), **options)
    by_rule(*got, batches(torch.float64), **options)
    assert_same(got, expected)
    unclipped, _ = pair(OPTIMIZERS[name])
    by_torch(*unclipped, batches(torch.float64), schedule=options["schedule"])
    assert not torch.allclose(unclipped[0].weight, got[0].weight)


@pytest.mark.parametrize("family", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW])
def test_groups_have_rates_and_options_of_their_own(family):
    def make(parameters):
        return family([{"params": parameters[:1], "lr": 0.2}, {"params": parameters[1:], "weight_decay": 0.5}], lr=0.01)

    expected, got = pair(make)
    by_torch(*expected, batches(torch.float64))
    by_rule(*got, batches(torch.float64))
    assert_same(got, expected)


@pytest.mark.parametrize("name", some(["sgd", "sgd, dampening", "adagrad", "adam, amsgrad", "adamw, amsgrad"]))
def test_torch_and_rule_take_turns_on_one_state(name):
    """From torch's optimizer to the rule, through a saved state, back, and again."""
    data = batches(torch.float64, 40)
    expected, (module, optimizer) = pair(OPTIMIZERS[name])
    by_torch(*expected, data)
    by_torch(module, optimizer, data[:10])
    by_rule(module, optimizer, data[10:20])
    again = OPTIMIZERS[name](list(module.parameters()))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    by_rule(module, again, data[20:25])
    by_torch(module, again, data[25:35])
    by_rule(module, again, data[35:])
    assert_same((module, again), expected)


def test_a_ledger_counts_the_steps_that_both_take():
    (module, optimizer), _ = pair(OPTIMIZERS["adam"])
    by_torch(module, optimizer, batches(torch.float64, 3))
    ledger = by_rule(module, optimizer, batches(torch.float64, 4))
    assert [float(state["step"]) for state in optimizer.state.values()] == [7.0] * 3
    assert [float(count) for count in ledger.counts] == [7.0]
    assert int(ledger.done) == 4
    by_torch(module, optimizer, batches(torch.float64, 2))
    ledger.read()
    assert [float(count) for count in ledger.counts] == [9.0]


def test_parameters_that_were_moved_a_different_number_of_times_have_counters_of_their_own():
    expected, got = pair(OPTIMIZERS["adam"])
    for module, optimizer in (expected, got):
        module.log_scale.requires_grad_(False)
        by_torch(module, optimizer, batches(torch.float64, 5))
        module.log_scale.requires_grad_(True)
    by_torch(*expected, batches(torch.float64, 20))
    by_rule(*got, batches(torch.float64, 20))
    assert_same(got, expected)
    assert sorted(float(state["step"]) for state in got[1].state.values()) == [20.0, 25.0, 25.0]


class Lion(torch.optim.Adam):
    """A subclass that moves in another way."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad.sign())


OWN_STEP = {
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "a subclass of Adam": lambda p: Lion(p, lr=0.01),
}


@pytest.mark.parametrize("name", OWN_STEP)
def test_an_optimizer_of_which_no_rule_is_known_takes_its_own_step_with_the_captured_gradients(name):
    options = {"clip_norm": 0.05, "schedule": lambda i: 1 / (1 + 0.1 * i)}
    expected, got = pair(OWN_STEP[name])
    assert rule_for(got[1]) is None
    by_torch(*expected, batches(torch.float64), **options)
    by_rule(*got, batches(torch.float64), **options)
    assert_same(got, expected)


def test_optimizers_with_hooks_or_a_step_put_in_place_of_their_own_have_no_rule():
    parameters = [nn.Parameter(torch.ones(2))]
    plain = torch.optim.Adam(parameters)
    assert rule_for(plain) is RULES[torch.optim.Adam]
    assert rule_for(torch.optim.Adam(parameters, differentiable=True)) is None
    torch.optim.lr_scheduler.StepLR(plain, 3)  # which only counts
    assert rule_for(plain) is RULES[torch.optim.Adam]
    handle = plain.register_step_post_hook(lambda *arguments: None)
    assert rule_for(plain) is None
    handle.remove()
    handle = register_optimizer_step_pre_hook(lambda *arguments: None)
    try:
        assert rule_for(plain) is None
    finally:
        handle.remove()
    other = torch.optim.Adam(parameters)
    other.step = lambda closure=None: None
    assert rule_for(other) is None


def test_hooks_of_an_optimizer_run():
    calls = []
    (module, optimizer), _ = pair(OPTIMIZERS["adam"])
    optimizer.register_step_post_hook(lambda *arguments: calls.append(1))
    by_rule(module, optimizer, batches(torch.float64, 3))
    assert len(calls) == 3
