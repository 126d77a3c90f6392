"""Runs of a benchmark go on where they were killed, and are shared by processes that are started twice."""

import argparse
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

from benchmarks.curves import fit_with_curve, forget, logarithmic
from benchmarks.runs import Runs, command_of
from pyro_vae import VAE, Conditional, Fixed, Training, mlp
from pyro_vae.inference import AEVB

ROOT = str(Path(__file__).parents[2])


def given(folder, restart=False):
    return argparse.Namespace(device="cpu", output=str(folder), restart=restart)


def test_what_is_there_is_kept_and_the_rest_is_run_in_order(tmp_path):
    asked = []

    def run(key):
        asked.append(key)
        return {"value": len(key)}

    runs = Runs("some", {"a": 1}, given(tmp_path))
    runs.complete(["xx", "y"], run, lambda found: {"sum": sum(run["value"] for run in found.values())})
    runs = Runs("some", {"a": 1}, given(tmp_path))
    runs.complete(["zzz", "xx", "y"], run, lambda found: {"sum": sum(run["value"] for run in found.values())})
    assert asked == ["xx", "y", "zzz"]
    content = json.loads((tmp_path / "some.json").read_text())
    assert content["sum"] == 6
    assert list(content["runs"]) == ["zzz", "xx", "y"]
    assert not runs.unfinished.exists()
    with pytest.raises(SystemExit, match="other settings \\(a\\)"):
        Runs("some", {"a": 2}, given(tmp_path))
    assert Runs("some", {"a": 2}, given(tmp_path, restart=True)).by_key == {}


def test_runs_in_progress_of_other_settings_are_not_continued(tmp_path):
    def dies(key):
        (runs.unfinished / f"{key}.checkpoint").write_text("of a = 1")
        raise KeyboardInterrupt

    runs = Runs("some", {"a": 1}, given(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        runs.complete(["k"], dies, lambda found: {})
    assert (runs.unfinished / "k.checkpoint").exists()
    with pytest.raises(SystemExit, match="other settings \\(a\\)"):
        Runs("some", {"a": 2}, given(tmp_path))
    Runs("some", {"a": 1}, given(tmp_path))
    assert (runs.unfinished / "k.checkpoint").exists()
    other = Runs("some", {"a": 2}, given(tmp_path, restart=True))
    assert not (other.unfinished / "k.checkpoint").exists()
    other.complete(["k"], lambda key: {}, lambda found: {})
    assert json.loads((tmp_path / "some.json").read_text())["runs"]["k"]["processes"] == 1


def test_a_row_names_the_commands_of_all_its_seeds():
    def run(samples, command):
        return {"samples": samples, "made_by": {"command": command}}

    assert command_of({0: run(10, "a"), 1: run(10, "b")}) == "b"
    assert command_of({1: run(10, "b"), 0: run(90, "long"), 2: run(10, "c")}) == "long && c"
    assert command_of({0: {"made_by": {"command": "a"}}}) == "a"


def test_nothing_is_put_aside_while_another_process_is_at_work(tmp_path):
    def run(key):
        with pytest.raises(SystemExit, match="another process is at work on k"):
            Runs("some", {}, given(tmp_path, restart=True))
        return {}

    Runs("some", {}, given(tmp_path)).complete(["k"], run, lambda found: {})


SCRIPT = """
import argparse, sys, time
from pathlib import Path
from benchmarks.runs import Runs

def run(key):
    with open(sys.argv[2], "a") as file:
        file.write(key + "\\n")
    time.sleep(0.2)
    return {"value": int(key)}

given = argparse.Namespace(device="cpu", output=sys.argv[1], restart=False)
Runs("some", {}, given).complete([str(i) for i in range(10)], run, lambda found: {"number": len(found)})
"""


def started(*arguments):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_two_processes_share_the_runs_and_a_killed_one_leaves_its_run_to_the_next(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    with started(tmp_path, log) as one, started(tmp_path, log) as two:
        while len(log.read_text().split()) < 4:
            assert one.poll() is None
            time.sleep(0.01)
        os.kill(one.pid, signal.SIGKILL)
        two.wait()

    def run(key):
        with log.open("a") as file:
            file.write(f"{key}\n")
        return {"value": int(key)}

    Runs("some", {}, given(tmp_path)).complete(list(map(str, range(10))), run, lambda found: {"number": len(found)})
    content = json.loads((tmp_path / "some.json").read_text())
    assert content["number"] == 10
    assert [run["value"] for run in content["runs"].values()] == list(range(10))
    assert len(log.read_text().split()) in (10, 11)  # none was run twice but the one that was killed


def test_steps_at_equal_ratios():
    assert logarithmic(10, 1000, 1) == [10, 100, 1000]
    assert logarithmic(10, 500, 2) == [10, 32, 100, 316, 500]
    assert logarithmic(7, 7, 5) == [7]


def curve(place, stop=None):
    """20 steps with a look at 4 of them; it dies after the evaluation at ``stop``."""
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 5)), mlp(6, 5))
    x, looked = (torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float(), []

    def evaluate(step):
        if step == stop:
            raise KeyError
        looked.append(step)
        return {"norm": float(sum(p.detach().norm() for p in vae.parameters()))}

    training = Training(
        lambda p: torch.optim.Adam(p, 1e-2), steps=20, batch_size=10, compile=False, checkpoint_seconds=0.0
    )
    try:
        _, records = fit_with_curve(*(place, vae, x, AEVB(), training), at=[3, 7, 12, 20], evaluate=evaluate)
    except KeyError:
        return None, looked
    return records, looked


def without_times(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_a_curve_goes_on_and_looks_at_each_step_once(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.training.checkpoint._SHARE", 0)
    whole, _ = curve(tmp_path / "whole")
    assert [record["samples"] for record in whole] == [30, 70, 120, 200]
    place = tmp_path / "deeper" / "some-run, seed 1.5"
    assert curve(place, stop=12) == (None, [3, 7])
    with place.with_name(place.name + ".jsonl").open("a") as file:
        file.write('{"step": 12, "no')  # it was killed while it wrote
    records, looked = curve(place)
    assert looked == [12, 20]
    assert without_times(records) == without_times(whole)
    assert curve(place) == (records, [])
    forget(place)
    assert not [*place.parent.iterdir()]
