"""Runs that are killed at a random moment and go on: the result is that of an undisturbed run, to the last bit."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.faults.trial import Part, attempt
from tests.faults.work import command, fit_job, listed, make, result_of

_LONG = 120.0


def kill_fit(trials: int, folder: Path, generator: random.Random, compile: bool) -> Part:
    """Kills `fit`; the next call goes on from its checkpoint."""
    part = Part(f"`fit` killed, {'compiled' if compile else 'uncompiled'}")
    for _ in range(2):  # the second does not wait for the compiler
        whole = attempt(fit_job(folder / "whole", compile), folder, patience=_LONG)
        (folder / "whole").unlink()
    for trial in range(trials):
        place = folder / f"{trial}.checkpoint"
        after = generator.uniform(0, whole.seconds)
        attempt(fit_job(place, compile), folder, kill_after=after)
        again = attempt(fit_job(place, compile), folder, patience=_LONG)
        left = listed(folder) - {place.name}
        part.judge(again, again.out == whole.out, ("checkpoint",), left, f"killed after {after:.3f} s")
        place.unlink(missing_ok=True)
    return part


def kill_compare(trials: int, folder: Path, generator: random.Random, compile: bool) -> Part:
    """Kills the command; the same command goes on from its unfinished folder."""
    part = Part(f"`pyro-vae compare` killed, {'compiled' if compile else 'uncompiled'}")
    make(folder, str(compile).lower())
    run = folder / "run"
    call = command("compare", "file.yaml", "--out", "run")
    for _ in range(2):
        shutil.rmtree(run, ignore_errors=True)
        whole = attempt(call, folder, patience=_LONG)
    wanted, there = result_of(run), listed(folder)
    for _ in range(trials):
        shutil.rmtree(run)
        after = generator.uniform(0, whole.seconds)
        attempt(call, folder, kill_after=after)
        about = f"killed after {after:.3f} s"
        if run.exists():  # it was over, or died after the last file was in place: then its folder is whole
            part.judge(whole, result_of(run) == wanted, (), listed(folder) - there - {"run.unfinished"}, about)
            shutil.rmtree(folder / "run.unfinished", ignore_errors=True)
            continue
        again = attempt(call, folder, patience=_LONG)
        right = again.code == 0 and result_of(run) == wanted
        part.judge(again, right, ("run",), listed(folder) - there, about)
        run.mkdir(exist_ok=True)
    return part
