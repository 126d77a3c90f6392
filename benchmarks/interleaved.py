r"""Contenders that train in turns in one process, epoch by epoch, so that the machine's load affects all alike.

A turn is an epoch of `pyro_vae.fit`: the same minibatches, steps and compilation. Each turn has its own random stream,
seeded by the run's seed and the number of the epoch, so the numbers of a contender do not depend on the others.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.step_worker import most_allocated
from pyro_vae import Batch, Training
from pyro_vae.datasets import Data
from pyro_vae.errors import NonFiniteError
from pyro_vae.experiment import Experiment
from pyro_vae.experiment.choices import InferenceSpec
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.training.fit import prepared
from pyro_vae.training.loop import training_mode

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
        self.training = Training(
            optimizer=experiment.training.optimizer.build,
            steps=_ALWAYS,
            batch_size=experiment.training.batch_size,
            clip_norm=experiment.training.clip_norm,
            start_at_data=False,  # all contenders start as their networks are drawn
            compile="auto" if self.compile else False,
            check_support=not data.cross_entropy,
        )
        transform = data.minibatch_transform
        self.loop = prepared(
            [self.vae], problem.train, [self.inference], self.training, [self.seed], transform=transform
        )
        (self.member,) = self.loop.members
        self.loop.open()
        self.routines = 0.0  # seconds that compiling parts of an algorithm took
        self.seconds: list[float] = []
        self.clean: list[bool] = []
        self.bounds: list[float] = []
        self.stopped = ""
        self.allocated = allocated(self.device) - before  # bytes of GPU memory that stay allocated

    @property
    def compile_seconds(self) -> float:
        """What capturing and compiling took."""
        return self.loop.execution(self.member)[1] + self.routines

    def epoch(self) -> None:
        """Trains for one epoch, unless training has diverged before."""
        if self.stopped:
            return
        first, taken = not self.seconds, self.member.steps
        before = allocated(self.device)
        compiled = self.compile_seconds
        with self._training(f"epoch {len(self.seconds)}"):
            start = self._now()
            self._take(self.loop.source.steps)
            seconds = self._now() - start
        compiled = self.compile_seconds - compiled
        self.seconds.append(seconds - compiled)
        self.clean.append(not first and compiled == 0)
        bounds = [bound for bound in self.member.records.bounds[taken:] if math.isfinite(bound)]
        self.bounds.append(float(np.mean(bounds)) if bounds else math.nan)
        if first:
            self.allocated += allocated(self.device) - before

    def steps(self, n: int) -> None:
        """Takes extra steps, outside the epochs."""
        with self._training("beside"):
            self._take(n)

    def finish(self) -> None:
        """Tells the optimizer how many steps were taken."""
        self.loop.close()

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
        member = self.member
        of_optimizer = [value for state in member.optimizer.state.values() for value in state.values()]
        own = [*member.both.parameters(), *member.both.buffers(), *member.kept.values(), *of_optimizer]
        tensors = [value for value in own if isinstance(value, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    @contextmanager
    def _training(self, turn: str) -> Iterator[None]:
        stream = f"training, {turn}"
        with training_mode([self.member], self.seed, stream, self.training, _ALWAYS, self.loop.busy) as terms:
            warnings.filterwarnings("ignore", message="fit: runs uncompiled")  # as `execution` says
            yield
            self.routines += terms.seconds

    def _take(self, n: int) -> None:
        """Takes so many steps."""
        self.loop.advance(self.loop.step + n)
        self.loop.settle()
        self.loop.check_parameters()
        if self.member.stopped:
            if not self.member.steps:
                raise NonFiniteError(f"fit: {self.member.remark}")
            self.stopped = self.member.remark

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
