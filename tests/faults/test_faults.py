"""The trials of faults at work: a few of them, and that each kind of fault is counted as what it is."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.faults import kills, mutants
from tests.faults.__main__ import TRIALS
from tests.faults.trial import COLUMNS, Ended, Part, table
from tests.faults.work import warm

ROOT = Path(__file__).parents[2]
LINE = "`file` is damaged; write it again."
WHAT = [
    (Ended(0, "", "", 0.1), True, [], "right"),
    (Ended(0, "", "", 0.1), False, [], "silent"),
    (Ended(2, "", LINE, 0.1), False, [], "refused by name"),
    (Ended(2, "", "it is damaged", 0.1), False, [], "traceback"),
    (Ended(1, "", LINE, 0.1), False, [], "traceback"),
    (Ended(0, "", "Traceback (most recent call last)", 0.1), True, [], "traceback"),
    (Ended(-11, "", "", 0.1), False, [], "traceback"),
    (Ended(-9, "", "", 20.0, True), False, [], "hang"),
    (Ended(2, "", LINE, 0.1), False, ["part"], "left behind"),
]


@pytest.mark.parametrize(("ended", "right", "left", "verdict"), WHAT)
def test_a_trial_is_counted_as_what_it_is(ended, right, left, verdict):
    part = Part("a part")
    part.judge(ended, right, ("`file`",), left)
    assert part.counts == {verdict: 1}
    assert bool(part.faults) == (verdict not in COLUMNS[:2])
    assert f"| {' | '.join(str(int(column == verdict)) for column in COLUMNS)} |" in table([part])


ENDINGS = """
import os, signal, sys, time
from pathlib import Path
from tests.faults import kills, mutants
from tests.faults.__main__ import TRIALS
from tests.faults.trial import attempt
def write(size):
    Path("file").write_bytes(bytes(size))
def fill():
    bytearray(2**30)
def told(call, **limits):
    ended = attempt(call, Path(sys.argv[1]), **limits)
    print(ended.code, ended.hung, ended.err.strip().split("\\n")[-1])
told(lambda: None)
told(lambda: sys.exit(2))
told(lambda: 1 / 0)
told(lambda: os.kill(os.getpid(), signal.SIGSEGV))
told(lambda: time.sleep(99), patience=0.1)
told(lambda: time.sleep(99), kill_after=0.1)
told(fill, memory=2**28)
told(lambda: write(2000), file_size=1000)
"""


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_process_ends_as_its_call_does(tmp_path):
    done = run("-c", ENDINGS, str(tmp_path))
    assert done.stdout.splitlines() == [
        "0 False ",
        "2 False ",
        "1 False ZeroDivisionError: division by zero",
        "-11 False ",
        "-9 True ",
        "-9 False ",
        "1 False MemoryError",
        "1 False OSError: [Errno 27] File too large",
    ], done.stderr


@pytest.fixture(scope="module")
def _warm():
    warm()


@pytest.mark.usefixtures("_warm")
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize(
    ("part_of", "count"),
    [(partial(kills.kill_fit, compile=False), 2), (mutants.flips_of_checkpoints, 3), (mutants.experiments, 20)],
)
def test_a_few_trials_have_no_fault(tmp_path, part_of, count):
    part = part_of(count, tmp_path, random.Random(0))
    assert part.trials == count
    assert part.faults == []


@pytest.mark.slow
def test_some_trials_of_every_part_have_no_fault():
    done = run("-m", "tests.faults", "--share", "0.04")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(TRIALS) + 3
