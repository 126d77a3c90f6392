"""Compiled training is uncompiled training: algorithms, models, resumes, failures and interruptions."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import pyro.distributions as dist
import pytest
import torch
from algorithm_cases import data, made, small_vae, tiny_vae
from fitting import fit_with
from torch import nn

from pyro_vae import (
    VAE,
    Batch,
    Conditional,
    Fixed,
    Hierarchy,
    Learned,
    Reads,
    Training,
    conv_decoder,
    conv_encoder,
    fit,
    mlp,
)
from pyro_vae.engine import CaptureError, Lifted, Step, interpreted
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference import AEVB, ALGORITHMS, IWAE, BetaVAE
from pyro_vae.training import stepper as stepping

STEPS = 20
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def adam(p):
    return torch.optim.Adam(p, lr=1e-2)


def _normal(size, family=dist.Normal):
    if family is dist.Bernoulli:
        return Conditional(dist.Bernoulli, (size,), logits=Learned(0.1, shape=(size,)))
    return Conditional(dist.Normal, (size,), loc=Learned(0.1, shape=(size,)), scale=Fixed(1.0))


def conv(name):
    """Images of 8 x 8, with batch statistics in the encoder."""
    labels = 3 if name == "m2" else 0
    family = dist.Bernoulli if name == "enumeration" else dist.Normal
    decoder = conv_decoder(2 + labels, (1, 8, 8), 2)
    likelihood = Conditional(dist.Normal, (64,), given=decoder, head=None, scale=Learned(0.5))
    encoder = mlp(64 + labels, 5) if labels else nn.Sequential(conv_encoder((1, 8, 8), 2), nn.BatchNorm1d(_features()))
    posterior = Conditional(family, (2,), given=encoder, **({} if labels else {"features": _features()}))
    return VAE(_normal(2, family), likelihood, posterior, size=10, context_features=labels)


def _features():
    return conv_encoder((1, 8, 8), 2).out_features


def deep(name):
    """Two layers of latents."""
    prior = Hierarchy(z2=_normal(2), z1=Conditional(dist.Normal, (2,), given=mlp(2, 4)))
    posterior = Hierarchy(
        z1=Conditional(dist.Normal, (2,), given=mlp(6, 4)), z2=Conditional(dist.Normal, (2,), given=mlp(2, 4))
    )
    return VAE(prior, Reads(Conditional(dist.Bernoulli, (6,), given=mlp(2, 4)), "z1"), posterior, size=10)


KINDS = {"mlp": small_vae, "conv": conv, "deep": deep}
# What is in the suite that always runs: hooks, inner gradients, several phases, own parameters, buffers and a carry.
QUICK = {"mlp": ("dreg", "piwae", "rws", "vb", "m2", "mcem"), "conv": ("aevb",), "deep": ("wake-sleep",)}
RESUMED = {"vb", "mcem"}  # of these, what is resumed there: each run captures its programs anew


def model(kind, name, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KINDS[kind](name).to(dtype)


def batch_for(kind, name, dtype=torch.float64):
    given = data(name, dtype)
    if kind == "conv":
        x = torch.rand(10, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
        return given._replace(x=x)
    return given


def state_of(vae, inference, optimizers):
    """Everything that training changes."""
    state = {f"vae.{key}": value for key, value in vae.state_dict().items()}
    state |= {f"inference.{key}": value for key, value in inference.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, own in optimizer.state_dict()["state"].items():
            state |= {f"optimizer {i}, {j}, {key}": value for key, value in own.items() if value is not None}
    return {key: value.clone() for key, value in state.items() if isinstance(value, torch.Tensor)}


def sgd(p):
    return torch.optim.SGD(p, lr=0.1, momentum=0.5)


def trained(kind, name, compile, dtype=torch.float64, optimizer=adam, resumed=True, **options):
    """One run, or two of which the second resumes the first: bounds, state, and how they ran."""
    vae, inference, optimizers = model(kind, name, dtype), made(name), []

    def make(p):
        optimizers.append(optimizer(p))
        return optimizers[-1]

    bounds, ran = [], []
    with Lifted():
        # A step of MCEM makes a dozen leapfrog steps, which make rounding grow, and two updates.
        first, second = (6, 4) if name == "mcem" else (12, STEPS - 12)
        for steps in (first, second) if resumed else (first + second,):
            history = fit_with(
                vae,
                batch_for(kind, name, dtype),
                inference,
                optimizer=make,
                steps=steps,
                batch_size=5,
                compile=compile,
                **options,
            )
            bounds.append(torch.as_tensor(history.bound))
            ran.append(history.execution)
    return torch.cat(bounds), state_of(vae, inference, optimizers), ran


def assert_same(got, expected, **close):
    close = close or CLOSE
    torch.testing.assert_close(got[0], expected[0], equal_nan=True, **close)
    assert got[1].keys() == expected[1].keys()
    for key, value in expected[1].items():
        torch.testing.assert_close(got[1][key], value, **close, msg=lambda message, key=key: f"{key}: {message}")
    assert all(ran.startswith("compiled") for ran in got[2])
    assert all(ran == "uncompiled" for ran in expected[2])


def _cells():
    for kind in KINDS:
        for name in ALGORITHMS:
            quick = name in QUICK[kind]
            yield pytest.param(kind, name, marks=() if quick else pytest.mark.slow, id=f"{name}-{kind}")


def _refused(kind, name):
    try:
        made(name).check(model(kind, name))
    except InputError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize(("kind", "name"), [*_cells()])
def test_20_steps_and_a_resume_are_those_of_an_uncompiled_run(kind, name):
    if reason := _refused(kind, name):
        pytest.skip(reason)
    resumed = name not in QUICK[kind] or name in RESUMED
    with interpreted():
        assert_same(*(trained(kind, name, compile, resumed=resumed) for compile in (True, False)))


@pytest.mark.machine_code
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mlp", "aevb"),
        *(pytest.param(*cell, marks=pytest.mark.slow) for cell in [("mlp", "wake-sleep"), ("mlp", "piwae")]),
        *(pytest.param(*cell, marks=pytest.mark.slow) for cell in [("conv", "dreg"), ("deep", "iwae"), ("mlp", "m2")]),
    ],
)
def test_machine_code_gives_the_same(kind, name):
    options = {"resumed": name != "aevb", "optimizer": sgd if name == "aevb" else adam}
    assert_same(*(trained(kind, name, compile, **options) for compile in (True, False)))


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("rws", lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True)),
        ("aevb", lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True)),
        ("aevb", lambda p: torch.optim.RMSprop(p, lr=1e-3)),
        pytest.param("rws", lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True), marks=pytest.mark.slow),
        pytest.param("rws", lambda p: torch.optim.RMSprop(p, lr=1e-3), marks=pytest.mark.slow),
    ],
    ids=["rws-SGD", "aevb-AdamW", "aevb-RMSprop", "rws-AdamW", "rws-RMSprop"],
)
def test_optimizers_clipping_and_a_schedule(name, optimizer):
    options = {"optimizer": optimizer, "clip_norm": 0.5, "schedule": lambda step: 1 / (1 + step), "resumed": False}
    with interpreted():
        assert_same(trained("mlp", name, True, **options), trained("mlp", name, False, **options))


# ------------------------------------------------------------------ what changes


def run(compile, *calls, vae=None):
    """Calls of `fit` on one VAE, each with what is done before it; the parameters after them."""
    vae = vae or tiny_vae()
    with Lifted(), interpreted():
        for before, options in calls:
            before(vae)
            x = data("aevb", vae.dtype)
            given = {"steps": 6, "batch_size": 5, "optimizer": sgd, "compile": compile} | options
            history = fit_with(vae, x, AEVB(), **given)
            assert history.execution.startswith("compiled" if compile else "uncompiled")
    return {name: p.detach().clone() for name, p in vae.named_parameters()}


def nothing(vae):
    pass


@pytest.mark.parametrize(
    "calls",
    [
        [(nothing, {"batch_size": 4, "epochs": 3, "steps": None})],  # 4, 4, 2
        [(nothing, {}), (nothing, {"batch_size": 2})],
        [(nothing, {}), (lambda vae: vae.double(), {})],
        [
            (lambda vae: vae.likelihood.requires_grad_(False), {}),
            (lambda vae: vae.requires_grad_(True), {}),
        ],
        [
            (nothing, {}),
            (lambda vae: setattr(vae.likelihood.head, "weight", nn.Parameter(vae.likelihood.head.weight + 1)), {}),
        ],
        [(nothing, {"transform": lambda x, generator: x.T.contiguous().T})],  # of another layout
    ],
    ids=["short last batch", "batch size", "dtype", "requires_grad", "assigned", "layout"],
)
def test_changes_between_steps_and_between_runs(calls):
    results = [run(compile, *calls, vae=tiny_vae(dtype=torch.float32)) for compile in (True, False)]
    for name, value in results[1].items():
        torch.testing.assert_close(results[0][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda vae: vae.eval(),
        lambda vae: vae.posterior.head.bias.data.add_(1.0),
        lambda vae: setattr(vae.posterior.head.bias, "data", vae.posterior.head.bias.data + 1.0),
    ],
    ids=["eval", "in place", "data"],
)
def test_a_callback_that_changes_things_in_mid_run(change):
    def results(compile):
        vae = model("conv", "aevb")

        def callback(step, metrics):
            if step == 4:
                change(vae)

        with Lifted(), interpreted():
            fit(
                vae,
                batch_for("conv", "aevb"),
                AEVB(),
                Training(optimizer=adam, steps=8, batch_size=5, compile=compile),
                callback=callback,
            )
        return vae.state_dict()

    got, expected = results(True), results(False)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **CLOSE)


@pytest.mark.slow
def test_more_kinds_of_batches_than_are_compiled_run_uncompiled_with_one_warning():
    """Ten sizes of batches in turn."""

    def results(compile):
        vae = tiny_vae()
        vae.size = None
        sets = [data("aevb", torch.float64).x[:n] for n in range(1, 11)]
        loader = torch.utils.data.DataLoader(torch.cat(sets), batch_sampler=_Sizes())
        with Lifted(), interpreted(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(vae, loader, AEVB(), Training(optimizer=adam, epochs=2, compile=compile))
        return vae.state_dict(), [str(w.message) for w in caught if "more than 8 kinds" in str(w.message)]

    (got, said), (expected, unsaid) = results(True), results(False)
    assert said
    assert len(set(said)) == 1
    assert not unsaid
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **CLOSE)


class _Sizes:
    def __iter__(self):
        start = 0
        for n in range(1, 11):
            yield list(range(start, start + n))
            start += n

    def __len__(self):
        return 10


# ------------------------------------------------------------------ failures


class Bursting(nn.Module):
    """The identity, but for rows that say that it is to burst."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x / (x[:, :1] != 7.0)


def bursting_vae():
    torch.manual_seed(0)
    posterior = Conditional(dist.Normal, (2,), given=nn.Sequential(Bursting(), nn.Linear(3, 4), nn.Tanh()), features=4)
    likelihood = Conditional(dist.Normal, (3,), given=mlp(2, 4))
    return VAE(Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)), likelihood, posterior).double()


@pytest.mark.parametrize("optimizer", [adam, lambda p: torch.optim.RMSprop(p, lr=1e-2)], ids=["rule", "own step"])
@pytest.mark.parametrize("divergence", ["raise", "stop"])
def test_the_last_good_step_is_kept_where_a_loss_is_not_finite(divergence, optimizer):
    """The bad row comes in some step k > 1 of the first epoch."""
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(2)).double()
    x[17, 0] = 7.0

    def results(compile):
        vae, optimizers = bursting_vae(), []

        def make(p):
            optimizers.append(optimizer(p))
            return optimizers[-1]

        options = {"optimizer": make, "epochs": 1, "batch_size": 3, "compile": compile, "divergence": divergence}
        message = ""
        with Lifted(), interpreted():
            try:
                message = fit_with(vae, x, AEVB(), **options).remark
            except NonFiniteError as error:
                message = str(error).removeprefix("fit: ")
        return message, state_of(vae, AEVB(), optimizers)

    (said, got), (expected_words, expected) = results(True), results(False)
    assert said == expected_words
    assert "not finite at step" in said
    assert "17" in said
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, **CLOSE, msg=lambda message, key=key: f"{key}: {message}")
    assert 1 < float(got["vae.posterior.given.0.calls"]) < 10


def test_a_model_that_cannot_be_captured():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > -1e9 else -x

    def vae():
        torch.manual_seed(0)
        encoder = nn.Sequential(Branching(), nn.Linear(6, 4))
        return VAE(
            _normal(2),
            Conditional(dist.Bernoulli, (6,), given=mlp(2, 4)),
            Conditional(dist.Normal, (2,), given=encoder),
        )

    options = {"optimizer": adam, "batch_size": 5}
    line = r"test_compiled_step.py, line \d+: `return x if x.sum\(\) > -1e9 else -x`"
    with interpreted(), pytest.raises(CaptureError, match=line):
        fit_with(vae(), data("aevb"), AEVB(), steps=3, compile=True, **options)
    with interpreted(), pytest.warns(UserWarning, match=line) as caught:
        history = fit_with(vae(), data("aevb"), AEVB(), steps=100_000, compile="auto", callback=_stop_at(8), **options)
    assert len(caught) == 1
    assert history.steps == 8
    assert history.execution.startswith("uncompiled: capture: a value decides")


def _stop_at(last):
    def callback(step, metrics):
        if step == last:
            raise KeyboardInterrupt

    return callback


def test_an_interruption_in_the_middle_of_a_step_waits_for_the_end_of_the_stretch(monkeypatch, interruptible):
    """Ctrl-C arrives while the graph of the seventh step changes the parameters."""
    monkeypatch.setattr(stepping, "_MOST", 4)
    vaes, calls, take = [model("mlp", "iwae") for _ in range(2)], [], Step.take

    def slow(self, inputs, noise):
        calls.append(1)
        if len(calls) == 6:  # the first step is never compiled
            timer = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            timer.join()
        return take(self, inputs, noise)

    options = {"optimizer": adam, "batch_size": 5}
    with Lifted(), interpreted():
        with monkeypatch.context() as patched:
            patched.setattr(Step, "take", slow)
            history = fit_with(vaes[0], data("iwae", torch.float64), IWAE(), steps=20, compile=True, **options)
        fit_with(vaes[1], data("iwae", torch.float64), IWAE(), steps=history.steps, compile=False, **options)
    assert history.stopped == "interrupted"
    assert 7 <= history.steps == len(calls) + 1 <= 4 + 4
    for p, q in zip(vaes[0].parameters(), vaes[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, **CLOSE)


def test_batches_with_labels_weights_and_masks():
    def results(compile):
        torch.manual_seed(0)
        likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2 + 3, 5))
        vae = VAE(_normal(2), likelihood, mlp(6 + 3, 5), context_features=3).double()
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(10, 6, generator=generator).round().double()
        context, mask = torch.eye(3).repeat(4, 1)[:10].double(), torch.rand(10, 6, generator=generator) < 0.7
        weights = torch.rand(10, generator=generator)
        with Lifted(), interpreted():
            fit(
                vae,
                Batch(x, context, mask),
                AEVB(),
                Training(optimizer=adam, steps=6, batch_size=5, compile=compile),
                weights=weights,
            )
        return vae.state_dict()

    got, expected = results(True), results(False)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **CLOSE)


@pytest.mark.parametrize("modes", [("auto", "auto"), (True, "auto"), ("auto", True)], ids=str)
def test_the_optimizer_knows_its_steps_however_they_ran(modes):
    vae, made = tiny_vae(), []

    def optimizer(parameters):
        made.append(made[0] if made else torch.optim.Adam(parameters, lr=1e-2))
        return made[0]

    with interpreted():
        for mode in modes:
            fit(
                vae,
                data("aevb", torch.float64),
                AEVB(),
                Training(optimizer=optimizer, steps=7, batch_size=10, compile=mode),
            )
    assert {float(state["step"]) for state in made[0].state.values()} == {14.0}


def test_a_number_that_changes_in_mid_run_is_followed():
    def trained(compile):
        vae, algorithm = tiny_vae(), BetaVAE(1.0)

        def callback(step, metrics):
            algorithm.beta = 1.0 if step < 6 else 4.0

        with Lifted(), interpreted():
            options = {"optimizer": adam, "steps": 12, "batch_size": 10, "callback": callback}
            fit_with(vae, data("beta-vae", torch.float64), algorithm, compile=compile, **options)
        return [p.detach() for p in vae.parameters()]

    for p, q in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(p, q, **CLOSE)
