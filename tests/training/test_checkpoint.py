"""A run that goes on from its checkpoint is the run that was never interrupted, to the last bit."""

import copy
import functools
import hashlib
import io
import operator
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from algorithm_cases import made
from checkpoint_runs import X, flipped, model, train
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import Training
from pyro_vae.engine import Step
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB, ALGORITHMS, RWS
from pyro_vae.training import eager_step
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.fit import prepared
from pyro_vae.training.schedules import cosine
from pyro_vae.training.validation import Watch

DAMAGED = r"it is empty|is no checkpoint of this version|is damaged: its checksum is wrong"


def noisy(x, generator, share=0.1):
    return flipped(x, generator) * share


def assert_same(one, other):
    for mine, its in ((one[0], other[0]), (one[1], other[1])):
        for (name, p), q in zip(mine.state_dict().items(), its.state_dict().values(), strict=True):
            assert torch.equal(p, q), name
    for name in ("bound", "samples", "validation_step", "validation_bound"):
        np.testing.assert_array_equal(getattr(one[2], name), getattr(other[2], name))
    assert one[2].stopped == other[2].stopped
    assert one[2].best_step == other[2].best_step
    assert len(one[2].seconds) == len(one[2].bound)
    assert (np.diff(one[2].seconds) >= 0).all()


@pytest.mark.parametrize(
    ("stop", "compile"),
    [
        *((7, False), (8, False), (20, False), (8, True)),
        *(pytest.param(stop, True, marks=pytest.mark.slow) for stop in (7, 20)),
    ],
)
def test_a_run_that_dies_goes_on(tmp_path, monkeypatch, stop, compile):
    monkeypatch.setattr("pyro_vae.training.checkpoint._SHARE", 0)
    monkeypatch.setattr("pyro_vae.training.stepper._MOST", 3)
    whole = train(compile=compile)
    place = tmp_path / "run.checkpoint"
    assert train(place, stop, compile=compile) is None
    resumed = train(place, compile=compile)
    assert_same(resumed, whole)
    assert resumed[3] == [pair for pair in whole[3] if pair[0] >= stop]  # the step in which it died is taken again
    again = train(place, compile=compile)  # it is over
    assert_same(again, whole)
    assert again[3] == []


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"m2", "enumeration"}))
def test_every_algorithm_goes_on(tmp_path, monkeypatch, name):
    monkeypatch.setattr("pyro_vae.training.checkpoint._SHARE", 0)
    whole = train(inference=made(name), steps=12)
    place = tmp_path / "run.checkpoint"
    assert train(place, 8, inference=made(name), steps=12) is None
    assert_same(train(place, inference=made(name), steps=12), whole)


def test_more_steps_go_on_with_a_run_that_is_over(tmp_path):
    place = tmp_path / "run.checkpoint"
    train(place, steps=12)
    assert_same(train(place, steps=25), train())


def test_validation_and_the_best_parameters_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.training.checkpoint._SHARE", 0)
    options = {"validation": X[:20], "validation_every": 4, "keep": "best", "early_stopping": 3}
    whole = train(**options)
    place = tmp_path / "run.checkpoint"
    assert train(place, 20, **options) is None
    assert_same(train(place, **options), whole)
    assert_same(train(place, **options), whole)


@pytest.mark.parametrize("own", [False, True])
def test_a_loader_goes_on_in_its_order(tmp_path, monkeypatch, own):
    monkeypatch.setattr("pyro_vae.training.checkpoint._SHARE", 0)

    def loader():
        generator = torch.Generator().manual_seed(3) if own else None
        return DataLoader(TensorDataset(X), 10, shuffle=True, generator=generator)

    whole = train(x=loader())
    place = tmp_path / "run.checkpoint"
    assert train(place, 20, x=loader()) is None
    assert_same(train(place, x=loader()), whole)


def interrupting(function, at):
    """The function, with Ctrl-C at one of its calls, as it comes from outside: while it is at work."""
    calls = []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == at:
            timer = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            timer.join()
        return function(*arguments, **named)

    return interrupted


@pytest.mark.parametrize(
    ("name", "compile", "at"),
    [
        *(("wake-sleep", True, 9), ("beta-vae", True, 16)),
        *(("aevb", False, 16), ("wake-sleep", False, 7), ("beta-vae", False, 9)),
        pytest.param("aevb", True, 7, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_interrupted_in_a_step_goes_on(tmp_path, monkeypatch, interruptible, name, compile, at):
    monkeypatch.setattr("pyro_vae.training.stepper._MOST", 3)
    whole = train(inference=ALGORITHMS[name](), compile=compile)
    place = tmp_path / "run.checkpoint"
    with monkeypatch.context() as patched:
        part = (Step, "take") if compile else (eager_step, "_compute")
        patched.setattr(*part, interrupting(getattr(*part), at))
        _vae, _inference, history, _ = train(place, inference=ALGORITHMS[name](), compile=compile)
    assert history.stopped == "interrupted"
    assert history.steps < 25
    assert_same(train(place, inference=ALGORITHMS[name](), compile=compile), whole)


def test_what_was_due_when_it_was_interrupted_is_done_first(tmp_path, monkeypatch, interruptible):
    options = {"validation": X[:20], "validation_every": 4}
    whole = train(**options)
    for i, part in enumerate([(Watch, "evaluate"), (Checkpoint, "due")]):
        place = tmp_path / f"run{i}.checkpoint"
        with monkeypatch.context() as patched:
            if part[1] == "due":  # after the callback, at the end of what is due
                patched.setattr(Checkpoint, "due", property(interrupting(lambda self: False, 8)))
            else:
                patched.setattr(*part, interrupting(getattr(*part), 2))
            _, _, history, called = train(place, **options)
        assert history.stopped == "interrupted"
        assert history.steps == 8
        resumed = train(place, **options)
        assert_same(resumed, whole)
        assert [*called, *resumed[3]] == whole[3]


def test_an_optimizer_that_keeps_something_in_its_groups_goes_on(tmp_path, monkeypatch):
    class Slower(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                group["lr"] *= 0.9

    monkeypatch.setattr("pyro_vae.training.checkpoint._SHARE", 0)
    options = {"optimizer": lambda p: Slower(p, 0.1, momentum=0.5), "schedule": None}
    whole = train(**options)
    assert train(tmp_path / "c", 8, **options) is None
    assert_same(train(tmp_path / "c", **options), whole)


def test_a_transform_that_draws_from_the_common_stream_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.training.checkpoint._SHARE", 0)
    options = {"transform": lambda x, generator: torch.bernoulli(0.2 + 0.6 * x)}
    whole = train(**options)
    assert train(tmp_path / "c", 8, **options) is None
    assert_same(train(tmp_path / "c", **options), whole)


def test_a_file_that_cannot_be_written_later_is_a_warning(tmp_path, monkeypatch):
    place = tmp_path / "c"
    train(place, steps=12)
    content = place.read_bytes()

    def full(*arguments):
        raise OSError("no space left on the device")

    monkeypatch.setattr("os.replace", full)
    with pytest.warns(UserWarning, match="is not written: no space left"):
        history = train(place, steps=25)[2]
    assert history.steps == 25
    assert place.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    place = tmp_path / "run.checkpoint"
    train(place)
    for given, what in [
        ({"inference": RWS(num_particles=3)}, "algorithm"),
        ({"batch_size": 7}, "data"),
        ({"x": X[:50]}, "data"),
        ({"seed": 1}, "seed"),
        ({"optimizer": lambda p: torch.optim.Adam(p, 1e-3)}, "optimizer"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"x": 1 - X}, "data: checksum"),
        ({"batch_size": 11}, "data: batch_size 10, not 11"),
        ({"validation": X}, "validation"),
        ({"activation": torch.nn.ReLU}, r"model '\(1\): Tanh\(\)', not '\(1\): ReLU\(\)'"),
        ({"scale": 3.0}, r"fixed values: prior.fixed_scale 1.0, not 3.0"),
        ({"schedule": None}, r"schedule 'checkpoint_runs.train.<locals>.<lambda>', not None"),
        ({"schedule": cosine(25)}, r"schedule .*, not 'pyro_vae.training.schedules.cosine.* total=25, warmup=0'"),
        (
            {"transform": functools.partial(noisy, share=0.2)},
            r"transform '.*flipped', not '.*noisy, share=0.2'",
        ),
        ({"steps": 5}, ""),
    ]:
        said = f"of another run: {what}" if what else "has 25 steps already, and 5 are asked for"
        with pytest.raises(InputError, match=said):
            train(place, **given)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    place = tmp_path / "run.checkpoint"
    train(place)
    content = place.read_bytes()
    for bad in (b"", b"nothing", content[: len(content) // 2], content + b"more"):
        place.write_bytes(bad)
        with pytest.raises(InputError, match=DAMAGED):
            train(place)
        assert place.read_bytes() == bad
    with pytest.raises(InputError, match="does not exist; make it first"):
        train(tmp_path / "nowhere" / "run.checkpoint")
    with pytest.raises(InputError, match="cannot be written: it is a folder"):
        train(tmp_path)


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path):
    """A zip file has a checksum of each part, which torch does not look at."""
    place = tmp_path / "run.checkpoint"
    train(place)
    content = place.read_bytes()
    positions = np.linspace(0, len(content) - 1, 60).astype(int)
    for i, position in enumerate(positions):
        damaged = bytearray(content)
        damaged[position] ^= 1 << i % 8
        place.write_bytes(bytes(damaged))
        with pytest.raises(InputError, match=DAMAGED):
            train(place)


def test_a_wrong_structure_is_refused_and_changes_nothing(tmp_path):
    place = tmp_path / "run.checkpoint"
    train(place)
    state = torch.load(io.BytesIO(place.read_bytes()[HEAD:]), weights_only=True)
    for path in (["about"], ["run", "step"], ["run", "members"], ["epoch"], ["random"], ["begun"], ["run", "seconds"]):
        bad = copy.deepcopy(state)
        inner = functools.reduce(operator.getitem, path[:-1], bad)
        del inner[path[-1]]
        with_checksum(place, bad)
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            train(place)
    bad = copy.deepcopy(state)
    bad["run"]["members"][0]["kept"] = []
    with_checksum(place, bad)
    vae = model()
    before = copy.deepcopy(vae.state_dict())
    training = Training(optimizer=lambda p: torch.optim.Adam(p, 1e-2), batch_size=10, steps=25, compile=False)
    loop = prepared([vae], X, [AEVB()], training, [0], transform=flipped)
    checkpoint = Checkpoint(place, loop, [0])
    checkpoint.about = bad["about"]
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        checkpoint.load()
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


HEAD = len(b"pyro_vae checkpoint\n") + 32


def with_checksum(place, state):
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getvalue()).digest()
    place.write_bytes(b"pyro_vae checkpoint\n" + digest + content.getvalue())


def test_what_a_killed_write_has_left_is_removed_by_the_next_run(tmp_path):
    (tmp_path / ".run.checkpoint.unfinished").write_bytes(b"half")
    train(tmp_path / "run.checkpoint")
    assert [file.name for file in tmp_path.iterdir()] == ["run.checkpoint"]


def test_a_process_that_is_killed_goes_on(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from checkpoint_runs import train
        from pathlib import Path
        from pyro_vae.training import checkpoint
        from pyro_vae.training.stepper import Stepper
        step, take = [0], Stepper.take
        def slowly(*arguments):
            Path(sys.argv[3]).write_text(str(step[0]))
            step[0] += 1
            time.sleep(0.02)
            return take(*arguments)
        Stepper.take = slowly
        checkpoint._SHARE = 0
        train(sys.argv[2], steps=60)
        """
    )
    place, step = tmp_path / "run.checkpoint", tmp_path / "step"
    support = str(Path(__file__).parents[1] / "support")
    step.write_text("")
    with subprocess.Popen([sys.executable, "-c", script, support, str(place), str(step)]) as process:
        while int(step.read_text() or 0) <= 20:
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert place.exists()
    resumed = train(place, steps=60)
    assert resumed[3][0][0] > 8  # it does not begin anew
    assert_same(resumed, train(steps=60))


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path, what):
    place = tmp_path / "run.checkpoint"
    if what == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"run.checkpoint` is a {what}, not a file; remove it, or name another file"):
        train(place)
    assert [file.name for file in tmp_path.iterdir()] == ["run.checkpoint"]


def test_a_checkpoint_that_expands_is_refused_before_it_does(tmp_path):
    place, content = tmp_path / "run.checkpoint", io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    digest = hashlib.sha256(content.getvalue()).digest()
    place.write_bytes(b"pyro_vae checkpoint\n" + digest + content.getvalue())
    with pytest.raises(InputError, match="is compressed, which no checkpoint of `fit` is"):
        train(place)
