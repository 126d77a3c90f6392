"""Progress on standard error: lines of text where that is no terminal."""

from __future__ import annotations

import random
import time

import pytest
import torch

from pyro_vae.runtime import progress
from pyro_vae.runtime.progress import runs_line, steps_bar, tracked


def test_nothing_is_written_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    with runs_line(2, shown=False) as line, steps_bar(False, 3) as bar:
        assert line is None
        bar.report(1, 0.0)
        assert list(tracked(range(3), None)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_every_phase_of_every_run_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with runs_line(3) as line:
        assert line is not None
        line.begin("aevb, seed 0")
        with steps_bar("training", 20) as bar:
            bar.report(1, 0.0)
        assert list(tracked(range(2), "log p(x)")) == [0, 1]
        line.begin("stl, seeds 0, 1", runs=2)
        with steps_bar("training", 20) as bar, bar.busy("compiling"):
            pass
        line.finish()
        list(tracked(range(1), "calibration"))
    assert capsys.readouterr().err.splitlines() == [
        "run 1 of 3, aevb, seed 0: training: 20 steps",
        "run 1 of 3, aevb, seed 0: log p(x)",
        "run 2 to 3 of 3, stl, seeds 0, 1: training: 20 steps",
        "compiling ...",
        "calibration",
    ]


def test_the_time_of_long_work_is_said_after_its_first_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    for _ in tracked(range(11), "log p(x)"):
        now[0] += 30.0
    for _ in tracked(range(2), "ELBO"):
        now[0] += 1.0
    assert capsys.readouterr().err.splitlines() == ["log p(x)", "log p(x): this takes about 5 min", "ELBO"]


def test_the_time_left_is_that_of_the_runs_that_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with runs_line(4) as line:
        assert line is not None
        for seed in range(3):
            line.begin(f"aevb, seed {seed}")
            line.phase("training", 1)
            now[0] += 20.0 + 20.0 * seed
    assert [row.partition("training")[2] for row in capsys.readouterr().err.splitlines()] == [
        "",
        " (about 60 s left)",
        " (about 60 s left)",
    ]


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (200, "3 min"), (9000, "2.5 h")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert progress.said(seconds) == words


def test_no_random_stream_is_touched() -> None:
    before = random.getstate(), torch.get_rng_state()
    with runs_line(1) as line:
        assert line is not None
        line.begin("aevb, seed 0")
        list(tracked(range(3), "log p(x)"))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_terminal_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from pyro_vae.runtime import terminal

    written = io.StringIO()
    console = terminal.Console(file=written, force_terminal=True, width=120)
    monkeypatch.setattr(terminal, "Console", lambda **_: console)
    with runs_line(2) as line:
        assert line is not None
        line.begin("aevb, seed 0")
        with steps_bar("training", 4) as bar:
            for step in range(1, 5):
                bar.report(step, -1.5)
        list(tracked(range(2), "log p(x)"))
        assert line._bar is not None
        assert [task.description for task in line._bar.tasks] == ["run 1 of 2, aevb, seed 0: log p(x)"]
    assert "run 1 of 2, aevb, seed 0: log p(x)" in written.getvalue()
