r"""Contenders that train in turns in one process, epoch by epoch, so that the machine's load affects all alike.

A turn is an epoch of `pyro_vae.fit`: the same minibatches, steps and compilation. Each turn has its own random stream,
seeded by the run's seed and the number of the epoch, so the numbers of a contender do not depend on the others.
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

MEMORY_STEPS = 3  # number of steps in which the peak of memory is measured
_ALWAYS = 10**9  # number of steps of a run with which "auto" compiles everything that can be compiled


@dataclass(frozen=True, eq=False)
class Problem:
    """The common problem of all contenders of a run.

    Attributes:
        experiment: Experiment with the VAE, the optimizer, the size of minibatches and the device.
        data: Data prepared for the likelihood.
        train: Training data on the device, shared by all contenders.
        seed: Seed of initialisation, shuffling and noise.
        compile: Whether to compile steps, if possible.
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
    """One algorithm with its own VAE; all contenders of a problem have the same initial weights.

    Attributes:
        label: Label of the algorithm.
        vae: The VAE in training.
        inference: The algorithm.
        seconds: Wall time of each epoch, with its minibatches, without compilation.
        clean: Whether the time of each epoch is valid: not in the first one, nor with a compilation.
        stopped: Reason of the end of training after a divergence; empty if there was none.
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
        self.routines = 0.0  # seconds of compiling parts of an algorithm
        self.seconds: list[float] = []
        self.clean: list[bool] = []
        self.bounds: list[float] = []
        self.stopped = ""
        self.allocated = allocated(self.device) - before  # bytes of GPU memory that stay allocated

    @property
    def compile_seconds(self) -> float:
        """Seconds of all captures and compilations."""
        return self.run.compile_seconds + self.routines

    def epoch(self) -> None:
        """Trains for one epoch, unless training has diverged before."""
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
        """Takes extra steps, outside the epochs."""
        with self._training("beside"):
            self._take(itertools.islice(self.source.epoch(), n))

    def finish(self) -> None:
        """Writes the number of steps to the optimizer."""
        self.run.finish()

    def memory(self) -> dict[str, float]:
        """Returns the memory in MiB that is kept between steps (without the data), and that a step adds at its peak.

        Kept are parameters, their last good copies and the optimizer's state; on a GPU, all memory that construction
        and the first epoch allocated, with graphs. This method takes steps, so call it last.
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
            warnings.filterwarnings("ignore", message="Encountered NaN")  # Pyro's warning; our error names the term
            warnings.filterwarnings("ignore", message="fit: runs uncompiled")  # `execution` reports it
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
    """Trains each contender for one epoch; the first one changes from epoch to epoch."""
    first = epoch % len(contenders)
    for contender in contenders[first:] + contenders[:first]:
        contender.epoch()


def timed(contender: Contender, baseline: Contender) -> dict[str, dict[str, float]]:
    """Returns median and quartiles of the seconds of an epoch, and of the ratio to the same epoch of the baseline."""
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
    """Returns the allocated bytes on a GPU; 0 for a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
