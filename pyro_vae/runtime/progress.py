r"""Progress on standard error: bars on a terminal, elsewhere a line at the start of slow work."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vae.runtime.terminal import Progress


def tracked(items: Sequence[int], title: str | None) -> Iterator[int]:
    """Yields the items, with a progress bar if there is a title."""
    if title is None:
        yield from items
        return
    from pyro_vae.runtime.terminal import Console, track

    console = Console(stderr=True)
    if not console.is_terminal:
        note(title)
        yield from items
    else:
        yield from track(items, description=title, console=console, transient=True)


def note(text: str) -> None:
    """Writes a line."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class StepsBar:
    """Progress of a training run, not shown; subclasses show it."""

    def report(self, step: int, bound: float) -> None:
        """Shows step and bound."""

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """A block that shows a title, for slow work other than steps."""
        yield


class _Lines(StepsBar):
    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        note(f"{title} ...")
        yield


class _Drawn(StepsBar):
    def __init__(self, bar: Progress, title: str, total: int) -> None:
        self._bar, self._title = bar, title
        self._task = bar.add_task(title, total=total, bound=float("nan"), rate=0.0)
        self._start, self._drawn = time.perf_counter(), 0.0

    def report(self, step: int, bound: float) -> None:
        now = time.perf_counter()
        if now - self._drawn > 0.1:
            self._drawn = now
            self._bar.update(self._task, completed=step, bound=bound, rate=step / (now - self._start))

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        start = time.perf_counter()
        self._bar.update(self._task, description=f"{self._title}, {title}")
        try:
            yield
        finally:
            self._bar.update(self._task, description=self._title)
            self._start += time.perf_counter() - start  # the rate counts only the time of steps


@contextmanager
def steps_bar(shown: bool | str, total: int) -> Iterator[StepsBar]:
    """Yields the progress bar of a training run.

    Arguments:
        shown: Whether to show the bar; a string is its title.
        total: Number of steps.
    """
    if not shown:
        yield StepsBar()
        return
    from pyro_vae.runtime.terminal import BarColumn, Console, Progress, TextColumn, TimeRemainingColumn

    console, title = Console(stderr=True), shown if isinstance(shown, str) else "fit"
    if not console.is_terminal:
        note(f"{title}: {total} steps")
        yield _Lines()
    else:
        columns = (
            TextColumn("{task.description}: step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("bound {task.fields[bound]:.2f} nats/datum, {task.fields[rate]:.0f} steps/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield _Drawn(bar, title, total)
