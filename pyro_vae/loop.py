r"""The loop of a training run: minibatch after minibatch, and what is due in between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pyro_vae.checkpoint import Checkpoint
from pyro_vae.minibatches import Minibatches
from pyro_vae.stepping import Stepper
from pyro_vae.validation import Watch

Callback = Callable[[int, Mapping[str, float]], None]


def _nothing(step: int, bound: float) -> None:
    """Reports nothing."""


@dataclass
class Loop:
    """The loop of a training run.

    Attributes:
        run: Takes the steps.
        watch: Evaluates held-out data.
        source: Of the minibatches.
        total: Steps of the run.
        report: Told step and bound after each step.
        callback: See `pyro_vae.fit`.
        callback_steps: Steps after which it is called; None for all.
        checkpoint: Where the run's state is kept.
    """

    run: Stepper
    watch: Watch
    source: Minibatches
    total: int
    report: Callable[[int, float], None] = _nothing
    callback: Callback | None = None
    callback_steps: Collection[int] | None = None
    checkpoint: Checkpoint | None = None

    def take(self) -> str:
        """Takes the steps; returns why it stopped, with the last good parameters in place, or the best."""
        try:
            stopped = self._epochs()
        except KeyboardInterrupt:
            stopped = "interrupted"
        self.run.settle()
        self.run.check_parameters()
        if self.checkpoint is not None:
            self.checkpoint.write()
        self.watch.restore()
        return stopped

    def _epochs(self) -> str:
        while True:
            start = 0 if self.checkpoint is None else self.checkpoint.position
            if self.watch.exhausted:
                return "early stopping"
            if self.run.step >= self.total:
                return "completed"
            for batch, rows in itertools.islice(self.source.epoch(), start, None):
                self.run.take(batch, rows)
                if self.checkpoint is not None:
                    self.checkpoint.position += 1
                self._between()
                if self.run.step >= self.total or self.watch.exhausted:
                    break
            else:
                if self.checkpoint is not None:
                    self.checkpoint.begin_epoch()

    def _between(self) -> None:
        """Does what is due after a step."""
        run, step = self.run, self.run.step
        due = self.watch.due(step, self.total)
        called = self.callback is not None and (self.callback_steps is None or step in self.callback_steps)
        if due or called:
            run.settle()
        self.report(step, run.bound)
        evaluated: dict[str, float] = {}
        if due:
            run.check_parameters()
            evaluated["validation_bound"] = self.watch.evaluate(step)
        if self.callback is not None and called:
            metrics = {"bound": run.bound, "samples": run.samples[-1], "seconds": run.seconds[-1]}
            self.callback(step, metrics | evaluated)
        if self.checkpoint is not None and self.checkpoint.due:
            run.settle()
            run.check_parameters()
            self.checkpoint.write()
