"""Runs of a comparison in several processes: the same numbers to the last bit, also where processes are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from small_comparisons import SMALL, few_digits

from pyro_vae import compare
from pyro_vae.comparison import workers as workers_module
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment

PRIORS = ["Normal", "flow", {"mixture": {"components": 4}}]
GRID = {**SMALL, "vary": {"prior": PRIORS, "latent": [2, 3]}, "inference": ["aevb"]}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def values(comparison):
    return [
        (run.algorithm, run.seed, run.elbo.pointwise.tolist(), run.log_marginal.pointwise.tolist())
        for run in comparison.runs
    ]


def parameters(comparison):
    return [p.detach() for run in comparison.runs for p in run.vae.parameters()]


def test_processes_give_the_numbers_of_one(one_thread):
    data, experiment = few_digits(), Experiment.parse(GRID)
    alone, shared = (compare(experiment, data, workers=n) for n in (1, 2))
    assert values(shared) == values(alone)
    assert all(torch.equal(a, b) for a, b in zip(parameters(shared), parameters(alone), strict=True))
    assert shared.environment["workers"] == 2
    assert shared.environment["threads"] == 1
    assert shared.labels == alone.labels


def children() -> list[int]:
    """Processes of the pool."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if int(parent) == os.getpid() and "popen_loky" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except (OSError, IndexError):  # it has ended
            continue
    return found


class Killer(threading.Thread):
    """Kills processes of the pool at random times."""

    def __init__(self, kills: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.kills, self.pause, self.done, self.ended = kills, pause, 0, threading.Event()

    def run(self) -> None:
        generator = random.Random(0)
        while self.done < self.kills and not self.ended.is_set():
            time.sleep(self.pause * generator.random())
            if pids := children():
                try:
                    os.kill(generator.choice(pids), signal.SIGKILL)
                    self.done += 1
                except ProcessLookupError:
                    pass


def killed(kills: int, pause: float, folder: Path, **content) -> tuple[int, list, list]:
    data, experiment = few_digits(), Experiment.parse({**GRID, **content})
    killer = Killer(kills, pause)
    killer.start()
    shared = compare(experiment, data, workers=2, checkpoints=folder)
    killer.ended.set()
    killer.join()
    return killer.done, values(shared), values(compare(experiment, data))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_killed_process_changes_no_number(tmp_path, one_thread, monkeypatch):
    monkeypatch.setattr(workers_module, "_MOST_BROKEN", 100)
    kills, found, expected = killed(1, 3.0, tmp_path / "kept", seeds=1)
    assert kills > 0
    assert found == expected


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_twenty_kills_change_no_number(tmp_path, one_thread, monkeypatch):
    monkeypatch.setattr(workers_module, "_MOST_BROKEN", 100)
    kills, found, expected = killed(20, 8.0, tmp_path / "kept", seeds=4, training={"epochs": 30, "batch_size": 20})
    assert kills == 20
    assert found == expected


@pytest.mark.parametrize("workers", [0, True, 1.5])
def test_a_number_of_processes_is_asked_for(workers):
    with pytest.raises(InputError, match="`workers` is a number of processes, at least 1"):
        compare(Experiment.parse(GRID), few_digits(), workers=workers)


def test_the_console_takes_workers_and_a_program(tmp_path):
    (tmp_path / "own.py").write_text(
        """
import torch, pyro, pyro.distributions as dist
from torch import nn
from pyro_vae import Program

def make(x):
    encoder = nn.Linear(2, 1)
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1), obs=x)
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.7).to_event(1))
    return Program(model, guide, x[:5])
"""
    )
    rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "rows.csv").write_text("a,b\n" + "\n".join(f"{a},{b}" for a, b in rows))
    command = [
        sys.executable,
        "-m",
        "pyro_vae",
        "compare",
        "--data",
        "rows.csv",
        "--program",
        "own:make",
        "--allow-code",
    ]
    command += ["--inference", "aevb,iwae", "--epochs", "1", "--seeds", "1", "--workers", "2", "--out", "run"]
    command += ["--set", "evaluation.posterior_checks=0", "--set", "evaluation.num_samples=50"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Best: " in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()
