"""The cost of a start is the CPU time of the process that starts."""

from __future__ import annotations

import io
import subprocess

import pytest
from rich.console import Console

from benchmarks.startup import cpu_seconds, measured, table

WORK = "import time\nwhile time.process_time() < {}: pass"


def test_a_process_costs_its_own_cpu_time():
    seconds = measured({"first": ("-c", WORK.format(0.3)), "idle": ("-c", "import time; time.sleep(0.5)")}, 2)
    assert [len(each) for each in seconds.values()] == [2, 2]
    assert min(seconds["first"]) >= 0.3
    assert max(seconds["idle"]) < min(seconds["first"])


def test_a_program_that_fails_has_no_cost():
    with pytest.raises(subprocess.CalledProcessError):
        cpu_seconds(("-c", "raise SystemExit(3)"))


def test_the_table_has_medians_and_differences_within_a_round():
    text = io.StringIO()
    seconds = {"base": [1.0, 3.0, 2.0], "and more": [1.5, 3.25, 2.25], "other": [9.0, 7.0, 8.0]}
    Console(file=text, width=100).print(table(seconds))
    lines = [line.split("\u2502")[1:4] for line in text.getvalue().splitlines() if "(" in line and "\u2502" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["base", "2.00 (1.00 to 3.00)", ""],
        ["and more", "2.25 (1.50 to 3.25)", "+0.25"],
        ["other", "8.00 (7.00 to 9.00)", ""],
    ]
