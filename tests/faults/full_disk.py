"""Runs whose disk is full at a random moment: one line says so, and with more space the run goes on."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults.trial import Part, attempt
from tests.faults.work import command, listed, make, result_of

_LONG = 60.0
_NEWNS, _NEWUSER, _REMOUNT, _PRIVATE = 0x20000, 0x10000000, 32, 0x44000
_SAYS = ("is not written", "cannot be made", "No space", "File too large")


def file_size(trials: int, folder: Path, generator: random.Random) -> Part:
    """Limits the size of a file by `RLIMIT_FSIZE`."""
    part = Part("files of a limited size")
    make(folder)
    run = folder / "run"
    call = command("compare", "file.yaml", "--out", "run")
    attempt(call, folder, patience=_LONG)
    wanted = result_of(run)
    largest = max(path.stat().st_size for path in run.rglob("*") if path.is_file())
    there = listed(folder) - {"run"}
    for _ in range(trials):
        shutil.rmtree(run, ignore_errors=True)
        limit = int(largest * 1.2 * generator.random() ** 2)
        ended = attempt(call, folder, file_size=limit, patience=_LONG)
        right = ended.code == 0 and result_of(run) == wanted
        part.judge(ended, right, _SAYS, _left(folder, there, ended.code), f"limit of {limit} bytes")
        if ended.code:
            again = attempt(call, folder, patience=_LONG)
            right = again.code == 0 and result_of(run) == wanted
            part.judge(again, right, (), listed(folder) - there - {"run"}, f"goes on after a limit of {limit} bytes")
    return part


def _left(folder: Path, there: set[str], code: int) -> set[str]:
    """What a run leaves beside its folder; after an error, the checkpoints of the unfinished run may stay."""
    left = listed(folder) - there
    unfinished = folder / "run.unfinished"
    if code == 0:
        return left - {"run"}
    inside = {path.name for path in unfinished.rglob("*") if path.is_file()} if unfinished.exists() else set()
    return (left - {"run.unfinished"}) | (inside - {"comparison.json", "aevb-seed0.checkpoint"})


def small_disk(trials: int, folder: Path, generator: random.Random) -> Part:
    """Runs on a disk of its own, a small one in memory, where this system lets a process mount one."""
    part = Part("small disks")
    if attempt(lambda: _mounted(folder, 2**20), folder).code:
        return part
    make(folder)
    call = command("compare", "file.yaml", "--out", "disk/run")
    whole = folder / "whole"
    attempt(command("compare", "file.yaml", "--out", "whole"), folder, patience=_LONG)
    wanted = result_of(whole)
    needed = sum(path.stat().st_size for path in whole.rglob("*")) * 2
    (folder / "disk").mkdir()
    for _ in range(trials):
        size = int(needed * generator.uniform(0.02, 1.0))
        ended = attempt(_on_a_small_disk(folder / "disk", size, call, wanted), folder, patience=2 * _LONG)
        # A trial is right where the first run is right or says that the disk is full, and the second one is right.
        part.judge(ended, True, _SAYS, listed(folder / "disk"), f"a disk of {size} bytes: {ended.out[-300:]}")
    return part


def _on_a_small_disk(disk: Path, size: int, call: Callable[[], None], wanted: str) -> Callable[[], None]:
    def trial() -> None:
        _mounted(disk, size)
        first = attempt(call, disk.parent, patience=_LONG)
        if first.code:
            told = first.code == 2 and "Traceback" not in first.err and any(word in first.err for word in _SAYS)
            left = _left(disk, set(), first.code)
            if not told or left:
                raise AssertionError(f"exit {first.code}, left {left}: {first.err}")
            _mount(b"tmpfs", disk, _REMOUNT, b"size=1g")
            again = attempt(call, disk.parent, patience=_LONG)
            if again.code or listed(disk) != {"run"}:
                raise AssertionError(f"goes on: exit {again.code}, left {listed(disk)}: {again.err}")
        if result_of(disk / "run") != wanted:
            raise AssertionError("the result is another one")
        sys.stderr.write(first.err)
        raise SystemExit(first.code)

    return trial


def _mounted(disk: Path, size: int) -> None:
    """Mounts a small disk, which this process and its children alone see, and which ends with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk.mkdir(exist_ok=True)
    if libc.unshare(_NEWNS | (0 if os.geteuid() == 0 else _NEWUSER)):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(b"none", Path("/"), _PRIVATE, None)
    _mount(b"tmpfs", disk, 0, f"size={max(4096, size)}".encode())


def _mount(kind: bytes, place: Path, flags: int, options: bytes | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(kind, str(place).encode(), kind, ctypes.c_ulong(flags), options):
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")
