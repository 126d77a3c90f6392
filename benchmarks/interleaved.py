r"""Contenders that train by turns in one process: each for an epoch, then the next, so that all see the same hours.

A turn is what `pyro_vae.fit` does in an epoch: the same minibatches, steps and compilation. Each has its own random
stream, seeded by the run's seed and the number of the epoch, so that no contender's numbers depend on the others'.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.step_worker import most_allocated
from pyro_vae import Batch
from pyro_vae.datasets import Data
from pyro_vae.engine import enabled
from pyro_vae.errors import NonFiniteError
from pyro_vae.experiment import Experiment
from pyro_vae.experiment.choices import InferenceSpec
from pyro_vae.runtime.interrupts import deferrable
from pyro_vae.runtime.modes import switched
from pyro_vae.runtime.progress import steps_bar
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.training.minibatches import minibatches
from pyro_vae.training.stepper import Stepper

MEMORY_STEPS = 3  # in which the most memory is looked for
_ALWAYS = 10**9  # steps of a run: so many that "auto" compiles whatever can be compiled


@dataclass(frozen=True, eq=False)
class Problem:
    """What all contenders of a run train.

    Attributes:
        experiment: Declares the VAE, the optimizer, the size of minibatches and the device.
        data: Prepared for its likelihood.
        train: The training part, on the device, where all contenders share it.
        seed: Of initialisation, shuffling and noise.
        compile: Whether steps are compiled, where they can be.
    """

    experiment: Experiment
    data: Data
    train: Batch
    seed: int
    compile: bool = True

    @classmethod
    def of(cls, experiment: Experiment, data: Data, seed: int, compile: bool = True) -> Problem:
        """Returns the problem, with the training data on the experiment's device."""
        train = data.batch("train").to(experiment.torch_device, torch.float32)
        return cls(experiment, data, train, seed, compile)


class Contender:
    """One algorithm with a VAE of its own; those of one problem start at the same weights.

    Attributes:
        label: Of the algorithm.
        vae: In training.
        inference: The algorithm.
        seconds: Wall time of each epoch, with its minibatches and without compilation.
        clean: Which epochs tell the speed: not the first, nor one in which something was compiled.
        stopped: Why it takes no more steps, where it diverged; empty otherwise.
    """

    def __init__(self, spec: InferenceSpec, problem: Problem) -> None:
        experiment, data, self.seed = problem.experiment, problem.data, problem.seed
        self.label, self.device, self.compile = spec.label, experiment.torch_device, problem.compile
        before = allocated(self.device)
        with isolated(self.seed):
            self.vae = experiment.build(data).to(self.device)
            self.inference = spec.build().to(self.device)
        self.inference.check(self.vae)
        training, transform = experiment.training, data.transform if data.binarisation == "dynamic" else None
        check = not data.cross_entropy
        self.source = minibatches(self.vae, problem.train, training.batch_size, self.seed, transform, None, check)
        self.run = Stepper(self.vae, self.inference, training.optimizer.build, None, training.clip_norm, check)
        if self.compile:
            with steps_bar(False, 1) as bar:
                self.run.compile_steps("auto", _ALWAYS, bar.busy)
        self.routines = 0.0  # seconds that compiling parts of an algorithm took
        self.seconds: list[float] = []
        self.clean: list[bool] = []
        self.bounds: list[float] = []
        self.stopped = ""
        self.allocated = allocated(self.device) - before  # bytes that a GPU's allocator gave for good

    @property
    def compile_seconds(self) -> float:
        """What capturing and compiling took."""
        return self.run.compile_seconds + self.routines

    def epoch(self) -> None:
        """Takes the turn of an epoch; none where it has diverged before."""
        if self.stopped:
            return
        first, taken = not self.seconds, len(self.run.bounds)
        before = allocated(self.device)
        compiled = self.compile_seconds
        with self._training(f"epoch {len(self.seconds)}"):
            start = self._now()
            self._take(self.source.epoch())
            seconds = self._now() - start
        compiled = self.compile_seconds - compiled
        self.seconds.append(seconds - compiled)
        self.clean.append(not first and compiled == 0)
        bounds = [bound for bound in self.run.bounds[taken:] if math.isfinite(bound)]
        self.bounds.append(float(np.mean(bounds)) if bounds else math.nan)
        if first:
            self.allocated += allocated(self.device) - before

    def steps(self, n: int) -> None:
        """Takes steps beside the epochs."""
        with self._training("beside"):
            self._take(itertools.islice(self.source.epoch(), n))

    def finish(self) -> None:
        """Has the optimizer know how many steps were taken."""
        self.run.finish()

    def memory(self) -> dict[str, float]:
        """Returns MiB of what it keeps between steps (without the data) and of what a step adds at its peak.

        Kept are parameters, their last good copies and the optimizer's state; on a GPU all that construction and the
        first epoch allocated, graphs included. Takes steps: after all else.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = allocated(self.device)
            self.steps(MEMORY_STEPS)
            kept, added = self.allocated, torch.cuda.max_memory_allocated(self.device) - before
        else:
            kept, added = self._kept(), most_allocated(self, MEMORY_STEPS) * 2**20
        parts = {"kept": kept, "in_a_step": added, "peak": kept + added}
        return {name: round(size / 2**20, 2) for name, size in parts.items()}

    def _kept(self) -> int:
        of_optimizer = [value for state in self.run.optimizer.state.values() for value in state.values()]
        own = [*self.run.both.parameters(), *self.run.both.buffers(), *self.run.kept.values(), *of_optimizer]
        tensors = [value for value in own if isinstance(value, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    @contextmanager
    def _training(self, turn: str) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(isolated(self.seed, f"training, {turn}"))
            for module in (self.vae, self.inference):
                stack.enter_context(switched(module, training=True))
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(deferrable())
            terms = stack.enter_context(enabled(self.compile, _ALWAYS))
            warnings.filterwarnings("ignore", message="Encountered NaN")  # Pyro's; ours names the term
            warnings.filterwarnings("ignore", message="fit: runs uncompiled")  # as `execution` says
            yield
            self.routines += terms.seconds

    def _take(self, batches: Iterable[tuple[Batch, Tensor | None]]) -> None:
        try:
            for batch, rows in batches:
                self.run.take(batch, rows)
            self.run.settle()
            self.run.check_parameters()
        except NonFiniteError as error:
            if not self.run.bounds:
                raise
            self.stopped = str(error).removeprefix("fit: ")

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def by_turns(contenders: list[Contender], epoch: int) -> None:
    """Has each contender take one epoch; who begins changes from epoch to epoch."""
    first = epoch % len(contenders)
    for contender in contenders[first:] + contenders[:first]:
        contender.epoch()


def timed(contender: Contender, baseline: Contender) -> dict[str, dict[str, float]]:
    """Returns median and quartiles of the seconds of an epoch, and of their ratio to the baseline's same epoch."""
    both = zip(contender.seconds, baseline.seconds, contender.clean, baseline.clean, strict=False)
    ratios = [mine / its for mine, its, ours, theirs in both if ours and theirs]
    own = [seconds for seconds, clean in zip(contender.seconds, contender.clean, strict=True) if clean]
    whole = [mine / its for mine, its in zip(contender.seconds, baseline.seconds, strict=False)]
    return {"seconds_per_epoch": spread(own or contender.seconds), "time_over_baseline": spread(ratios or whole)}


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, median, high = (float(f"{value:.5g}") for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "quartiles": [low, high], "n": len(values)}  # type: ignore[dict-item]


def allocated(device: torch.device) -> int:
    """Returns the bytes that a GPU's allocator has given; 0 of a CPU's."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
