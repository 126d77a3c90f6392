r"""Progress on standard error: bars on a terminal, and elsewhere a line at the beginning of what takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track


def tracked(items: Sequence[int], title: str | None) -> Iterator[int]:
    """Yields the items, with a progress bar where there is a title for it."""
    console = Console(stderr=True)
    if title is None:
        yield from items
    elif not console.is_terminal:
        _line(title)
        yield from items
    else:
        yield from track(items, description=title, console=console, transient=True)


def _line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def steps_bar(shown: bool | str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Yields a function of step and bound that draws the progress bar of a training run.

    Arguments:
        shown: Whether to draw it; a string is its title.
        total: Number of steps.
    """
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        if shown:
            _line(f"{shown if isinstance(shown, str) else 'fit'}: {total} steps")
        yield lambda step, bound: None
        return
    columns = (
        TextColumn("{task.description}: step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("bound {task.fields[bound]:.2f} nats/datum, {task.fields[rate]:.0f} steps/s"),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    drawn = 0.0
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(shown if isinstance(shown, str) else "fit", total=total, bound=float("nan"), rate=0.0)

        def report(step: int, bound: float) -> None:
            nonlocal drawn
            now = time.perf_counter()
            if now - drawn > 0.1:
                drawn = now
                bar.update(task, completed=step, bound=bound, rate=step / (now - start))

        yield report
