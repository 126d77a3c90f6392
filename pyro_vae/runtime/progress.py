r"""Progress on standard error: one line on a terminal, elsewhere a line at the start of slow work."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vae.runtime.terminal import Progress

# Work that is expected to take longer, in seconds, is announced with its time.
_LONG = 5.0
# Seconds between two drawings of a line.
_REFRESH = 0.1


def said(seconds: float) -> str:
    """Returns a duration in words, such as ``40 s``, ``3 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def note(text: str) -> None:
    """Writes a line."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Line:
    """The progress of all runs of a comparison; without a terminal, a few lines of text.

    Arguments:
        total: Number of runs.
        bar: What draws the line on a terminal; None elsewhere.
    """

    def __init__(self, total: int, bar: Progress | None) -> None:
        self._total, self._bar = total, bar
        self._runs, self._begun, self._label = (0, 0), 0, ""
        self._fresh, self._said = False, set[str]()  # whether nothing is written of these runs yet, what is said
        self._seconds: list[float] = []  # of each finished run
        self._start = self._drawn = self._phase_start = time.perf_counter()
        self._task = None if bar is None else bar.add_task("", total=None, about="", left="")

    def begin(self, label: str, runs: int = 1) -> None:
        """Says that runs begin, which take their steps together.

        Arguments:
            label: What they are called, such as an algorithm and its seeds.
            runs: Their number.
        """
        self.finish()
        self._runs = self._begun + 1, self._begun + runs
        self._begun, self._label, self._start = self._begun + runs, label, time.perf_counter()
        self._fresh = True

    def finish(self) -> None:
        """Says that the last runs are done."""
        first, last = self._runs
        if last:
            number = last - first + 1
            self._seconds += [(time.perf_counter() - self._start) / number] * number
        self._runs, self._label = (0, 0), ""

    @property
    def _title(self) -> str:
        first, last = self._runs
        if not last:
            return ""
        return f"run {first if first == last else f'{first} to {last}'} of {self._total}, {self._label}: "

    def phase(self, title: str, total: int) -> None:
        """Says what is done next.

        Arguments:
            title: Such as ``training``.
            total: Number of parts that it has.
        """
        self._phase_start = time.perf_counter()
        if self._bar is None or self._task is None:
            left = self._left() if self._fresh else None
            note(f"{self._title}{title}" + (f" (about {said(left)} left)" if left is not None and left > _LONG else ""))
            self._fresh = False
        else:
            self._bar.reset(self._task, description=f"{self._title}{title}", total=total, about="", left="")

    def advance(self, done: int, total: int, about: str = "") -> None:
        """Shows how many parts of a phase are done, with a short text."""
        now = time.perf_counter()
        if self._bar is None or self._task is None or (now - self._drawn < _REFRESH and done < total):
            return
        self._drawn = now
        left, of_phase = self._left(), (now - self._phase_start) / max(done, 1) * (total - done)
        text = f"about {said(of_phase if left is None else left)} left"
        text += " in this phase" if left is None and self._runs[1] else ""
        self._bar.update(self._task, completed=done, about=about, left=text)

    def _left(self) -> float | None:
        """The seconds that all runs still take, by the mean of those that are done; None before one is done."""
        if not self._seconds or not self._runs[1]:
            return None
        mean, here = sum(self._seconds) / len(self._seconds), self._runs[1] - self._runs[0] + 1
        of_these = max(0.0, mean * here - (time.perf_counter() - self._start))
        return of_these + mean * (self._total - self._begun)

    def say(self, text: str) -> None:
        """Writes a line of text beside the line of progress, each text once."""
        if text in self._said:
            return
        self._said.add(text)
        if self._bar is None:
            note(f"{self._title}{text}")
        else:
            self._bar.console.print(f"{self._title}{text}", highlight=False, markup=False)

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """A block that shows a title, for slow work within a phase; its time is not counted as the phase's."""
        if self._bar is None or self._task is None:
            note(f"{title} ...")
            yield
            return
        start = time.perf_counter()
        self._bar.update(self._task, about=title)
        try:
            yield
        finally:
            self._bar.update(self._task, about="")
            self._phase_start += time.perf_counter() - start


_line: ContextVar[Line | None] = ContextVar("line", default=None)


@contextmanager
def runs_line(total: int, shown: bool = True) -> Iterator[Line | None]:
    """A block in which `steps_bar` and `tracked` share one line over several runs.

    Arguments:
        total: Number of runs.
        shown: Whether there is a line.

    Yields:
        The line; None if it is not shown.
    """
    if not shown:
        yield None
        return
    with _drawn() as bar:
        line = Line(total, bar)
        token = _line.set(line)
        try:
            yield line
        finally:
            _line.reset(token)


@contextmanager
def _drawn() -> Iterator[Progress | None]:
    """Yields what draws a line; None if standard error is no terminal."""
    from pyro_vae.runtime.terminal import BarColumn, Console, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[about]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield bar


@contextmanager
def _shared() -> Iterator[Line]:
    """Yields the line of all runs, or a new one for a single piece of work."""
    line = _line.get()
    if line is not None:
        yield line
        return
    with _drawn() as bar:
        yield Line(1, bar)


def tracked(items: Sequence[int], title: str | None) -> Iterator[int]:
    """Yields the items, with progress if there is a title; says after the first one if they take long."""
    if title is None:
        yield from items
        return
    with _shared() as line:
        line.phase(title, len(items))
        start = time.perf_counter()
        for done, item in enumerate(items, 1):
            yield item
            if done == 1 and (expected := (time.perf_counter() - start) * (len(items) - 1)) > _LONG:
                line.say(f"{title}: this takes about {said(expected)}")
            line.advance(done, len(items))


class StepsBar:
    """Progress of a training run, not shown; subclasses show it."""

    def report(self, step: int, bound: float) -> None:
        """Shows step and bound."""

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """A block that shows a title, for slow work other than steps."""
        yield


class _Shown(StepsBar):
    def __init__(self, line: Line, title: str, total: int) -> None:
        self._line, self._total = line, total
        line.phase(title, total)

    def report(self, step: int, bound: float) -> None:
        self._line.advance(step, self._total, f"step {step}/{self._total}, bound {bound:.2f} nats/datum")

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        with self._line.busy(title):
            yield


@contextmanager
def steps_bar(shown: bool | str, total: int) -> Iterator[StepsBar]:
    """Yields the progress of a training run.

    Arguments:
        shown: Whether to show it; a string is its title.
        total: Number of steps.
    """
    if not shown:
        yield StepsBar()
        return
    with _shared() as line:
        title = shown if isinstance(shown, str) else "fit"
        yield _Shown(line, f"{title}: {total} steps", total)
