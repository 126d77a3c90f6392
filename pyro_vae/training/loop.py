r"""The loop of a training run: minibatch after minibatch, and what is due in between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.minibatches import Minibatches
from pyro_vae.training.stepper import Stepper
from pyro_vae.training.validation import Watch

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
        try:
            if self.checkpoint is not None:
                self.checkpoint.write()
        finally:
            self.watch.restore()
        return stopped

    def _epochs(self) -> str:
        epoch = self._resumed()
        if stopped := self._stopped():
            return stopped
        while True:
            for batch, rows in epoch:
                self.run.take(batch, rows)
                self._between()
                if stopped := self._stopped():
                    return stopped
            if self.checkpoint is not None:
                self.checkpoint.begin_epoch()
            epoch = self.source.epoch()

    def _stopped(self) -> str:
        """Why there is no further step; empty where there is one."""
        if self.watch.exhausted:
            return "early stopping"
        return "completed" if self.run.step >= self.total else ""

    def _resumed(self) -> Iterator[tuple[Batch, Tensor | None]]:
        """What is left of the epoch in which the run is; what was due after its last step is done first."""
        epoch = self.source.epoch()
        if self.checkpoint is not None and self.checkpoint.loaded:
            for _ in range(self.checkpoint.position):
                next(epoch)
            self.checkpoint.resume_random()
            if self.run.step and self.checkpoint.between < self.run.step:
                self._between()
        return epoch

    def _between(self) -> None:
        """Does what is due after a step."""
        run, step = self.run, self.run.step
        due = self.watch.due(step, self.total) and step not in self.watch.steps
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
        if self.checkpoint is None:
            return
        self.checkpoint.between = step
        if self.checkpoint.due:
            run.settle()
            run.check_parameters()
            self.checkpoint.write()
