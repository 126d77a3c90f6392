"""Several steps as one program are the same steps one after another."""

from typing import ClassVar

import pyro.distributions as dist
import pytest
import torch
from fitting import fit_with

from pyro_vae import VAE, Conditional, Fixed, Training, mlp
from pyro_vae.engine import Lifted, Step, Stretch, interpreted
from pyro_vae.inference import AEVB, IWAE
from pyro_vae.training import stepper as stepping
from pyro_vae.training.fit import prepared


class Recorded:
    """A stand-in for `Replayed`: what is not given anew stays at the address that it had when it was recorded."""

    made: ClassVar[list[int]] = []

    def __init__(self, run, arguments, given):
        self.run, self.given = run, given
        self.static = [tensor.clone() if i in given else tensor for i, tensor in enumerate(arguments)]
        Recorded.made.append(len(given))

    def __call__(self, arguments):
        for i in self.given:
            self.static[i].copy_(arguments[i])
        return [result.clone() for result in self.run(list(self.static))]


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    """Has stretches recorded on a CPU too."""
    Recorded.made = []
    monkeypatch.setattr(Stretch.__init__, "__defaults__", (Recorded,))
    monkeypatch.setattr(Step, "recorded", property(lambda self: True))
    monkeypatch.setattr(stepping, "_MOST", 5)
    monkeypatch.setattr(stepping, "_SECONDS", 1e6)


def model():
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    return VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 5)), mlp(6, 5)).double()


def train(compile, inference, rows=50, **options):
    x = (torch.rand(rows, 6, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    vae, optimizers = model(), []

    def adam(p):
        optimizers.append(torch.optim.Adam([{"params": p[:2], "lr": 3e-2}, {"params": p[2:]}], lr=1e-2))
        return optimizers[-1]

    with Lifted(), interpreted():
        history = fit_with(vae, x, inference, steps=40, batch_size=5, compile=compile, **{"optimizer": adam} | options)
    return vae, history, optimizers[0] if optimizers else None


@pytest.mark.parametrize(
    ("inference", "schedule", "rows"),
    [
        (AEVB, None, 53),  # with a short last batch
        (lambda: IWAE(3), lambda step: 1 / (1 + step), 50),
        pytest.param(AEVB, lambda step: 1 / (1 + step), 53, marks=pytest.mark.slow),
        pytest.param(lambda: IWAE(3), None, 53, marks=pytest.mark.slow),
    ],
    ids=["AEVB", "IWAE-schedule", "AEVB-schedule", "IWAE"],
)
def test_stretches_are_the_steps_one_by_one(inference, schedule, rows):
    vae, history, adam = train(True, inference(), rows, schedule=schedule, clip_norm=0.5)
    other, expected, other_adam = train(False, inference(), rows, schedule=schedule, clip_norm=0.5)
    assert Recorded.made  # some steps were taken together
    assert max(Recorded.made) == 2 * 5  # x and noise of five
    torch.testing.assert_close(torch.tensor(history.bound), torch.tensor(expected.bound), rtol=1e-10, atol=1e-10)
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
    for p, q in zip(adam.param_groups, other_adam.param_groups, strict=True):
        assert p["lr"] == q["lr"]
    for p, q in zip(adam.state.values(), other_adam.state.values(), strict=True):
        assert float(p["step"]) == float(q["step"]) == 40
        torch.testing.assert_close(p["exp_avg_sq"], q["exp_avg_sq"], rtol=1e-10, atol=1e-10)


def test_a_bound_that_is_not_finite_within_a_stretch_stops_at_its_step():
    def broken(x, generator):
        broken.calls += 1
        return x / 0 if broken.calls == 24 else x

    options = {"check_support": False, "divergence": "stop", "transform": broken}
    broken.calls = 0
    vae, history, _ = train(True, AEVB(), **options)
    assert history.stopped == "diverged"
    assert history.steps == 23
    assert max(Recorded.made) == 10
    broken.calls = 0
    other, expected, _ = train(False, AEVB(), **options)
    assert expected.steps == 23
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def test_few_lengths_are_recorded():
    step = Stretch(object())
    step._recorded = dict.fromkeys([5, 3, 2, 4])
    assert step.has_room(5)
    assert not step.has_room(6)


def test_tensors_that_are_assigned_anew_are_recorded_anew():
    vae = model()
    x = (torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    training = Training(lambda p: torch.optim.SGD(p, 1e-2), steps=100, compile=True)
    loop = prepared([vae], x, [AEVB()], training, [0])
    with interpreted():
        loop.open()
        loop.advance(4 + 5)
        loop.settle()
        made = len(Recorded.made)
        assert made >= 1
        for parameter in vae.parameters():
            parameter.data = parameter.data.clone()
        before = [parameter.clone() for parameter in vae.parameters()]
        loop.advance(4 + 5 + 5)
        loop.settle()
    assert len(Recorded.made) == made + 1
    assert all(not torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))


@pytest.mark.parametrize("compile", [True, False])
def test_rates_that_a_callback_changes_are_followed(compile):
    rates = []

    def adam(p):
        rates.append(torch.optim.Adam(p, lr=1e-2))
        return rates[-1]

    def slower(step, metrics):
        for group in rates[-1].param_groups:
            group["lr"] *= 0.5

    options = {"optimizer": adam, "callback": slower, "callback_steps": {10, 20, 30}}
    vae, _, _ = train(compile, AEVB(), **options)
    other, _, _ = train(False, AEVB(), **options)
    assert rates[0].param_groups[0]["lr"] == rates[1].param_groups[0]["lr"] == 1e-2 / 8
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def test_a_transform_may_write_into_the_same_tensor_each_time():
    buffers = {}

    def flipped(x, generator):
        buffer = buffers.setdefault(x.shape, torch.empty_like(x))
        return torch.where(torch.rand(x.shape, generator=generator) < 0.1, 1 - x, x, out=buffer)

    vae, _, _ = train(True, AEVB(), transform=flipped)
    other, _, _ = train(False, AEVB(), transform=flipped)
    assert max(Recorded.made) == 10
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
