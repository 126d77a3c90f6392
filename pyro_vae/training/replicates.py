r"""Training steps of R replicates: their minibatches and random streams, and one program for all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.engine.capture.capture import tensors_of
from pyro_vae.engine.compilation.cost import compile_cost
from pyro_vae.engine.errors import CaptureError
from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.engine.step.replicated_step import ReplicatedStep, Stack, check_rules
from pyro_vae.engine.step.same_program import same_program
from pyro_vae.engine.step.step import Step
from pyro_vae.errors import NonFiniteError
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.training.plan import Plan
from pyro_vae.training.stacked_minibatches import Minibatch
from pyro_vae.training.stepper import Stepper
from pyro_vae.training.validation import Watch
from pyro_vae.vae.vae import VAE


class Stream:
    """The random streams of one replicate's draws: those of a `fit` of its own with the same seed.

    Arguments:
        seed: Of the replicate.
        device: On which it draws.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        with isolated(seed, "training"):
            self._take()

    def _take(self) -> None:
        self.cpu = torch.Generator().set_state(torch.get_rng_state())
        self.generator = self.cpu
        if self.device.type == "cuda":
            self.generator = torch.Generator(self.device)
            self.generator.set_state(torch.cuda.get_rng_state(self.device))
        self.others = (np.random.get_state(), random.getstate())  # noqa: NPY002

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within the block, all draws are from these streams."""
        with isolated(0):
            torch.set_rng_state(self.cpu.get_state())
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(self.generator.get_state(), self.device)
            np.random.set_state(self.others[0])  # noqa: NPY002
            random.setstate(self.others[1])
            try:
                yield
            finally:
                self._take()


@dataclass
class Replicate:
    """One of the VAEs, with all that a run of its own has.

    Attributes:
        index: Its place in the list.
        seed: Its own.
        stepper: Takes its uncompiled steps, and has its records.
        watch: Its held-out data.
        ledger: Its rates, counters and flag.
        stream: Of its draws.
        stopped: Why it stopped; empty while it trains.
        remark: What there is to say about that.
        settled: Updates made in the common program up to the last look.
    """

    index: int
    seed: int
    stepper: Stepper
    watch: Watch
    ledger: Ledger
    stream: Stream
    stopped: str = ""
    remark: str = ""
    settled: int = 0

    @property
    def vae(self) -> VAE:
        return self.stepper.vae

    @property
    def inference(self) -> Inference:
        return self.stepper.inference

    def stop(self, why: str, remark: str = "") -> None:
        """Lets nothing move it any more."""
        self.stopped, self.remark = why, remark
        self.ledger.failed.fill_(True)

    def diverge(self, error: NonFiniteError) -> None:
        """Stops it at a value that is not finite."""
        self.stop("diverged", f"replicate {self.index}: {str(error).removeprefix('fit: ')}")

    def record(self, bound: float, size: int, seconds: float) -> None:
        """Writes down a step that was taken in the common program."""
        run = self.stepper
        run.time = seconds
        run.bounds.append(bound)
        run.samples.append((run.samples[-1] if run.samples else 0) + size)
        run.seconds.append(seconds)

    def name_failure(self, batch: Batch, rows: Tensor | None) -> None:
        """Stops it at the step that failed in the common program, and says at which term."""
        run = self.stepper
        self._keep_buffers()
        try:
            with torch.random.fork_rng():
                run._fail(batch, rows, "the loss or its gradient")
        except NonFiniteError as error:
            self.diverge(error)

    def check_parameters(self) -> None:
        """Stops it where the last update left a parameter that is not finite."""
        if self.stopped:
            return
        self._keep_buffers()
        try:
            self.stepper.check_parameters()
        except NonFiniteError as error:
            self.diverge(error)

    def _keep_buffers(self) -> None:
        """Has the last good parameters put back with the present buffers: the common program keeps no copy of them."""
        self.stepper.buffers = {name: buffer.clone() for name, buffer in self.stepper.both.named_buffers()}


# ------------------------------------------------------------------ one program


@dataclass
class ReplicatedPlan:
    """The phases of one step of all replicates, for minibatches of one kind.

    Attributes:
        steps: One of each phase.
        seconds: How long they took, as long as it is not decided whether to compile them.
        uses: How often they were taken.
        decided: Whether that is decided.
    """

    steps: list[ReplicatedStep]
    bounds: list[int | None]
    seconds: list[float] = field(default_factory=list)
    uses: int = 0
    decided: bool = False

    @classmethod
    def of(
        cls, replicates: Sequence[Replicate], kinds: Sequence[int], stack: Stack, example: Minibatch
    ) -> ReplicatedPlan:
        """Captures the phases.

        Arguments:
            replicates: All of them.
            kinds: For each, the first replicate of which it is certain that its program is the same.
            stack: Of the run.
            example: A minibatch.

        Raises:
            CaptureError: Where a program cannot be captured, or they differ in structure.
        """
        check_rules([replicate.ledger for replicate in replicates])
        plans = {r: _plan(replicates[r], example.of(r)) for r in dict.fromkeys(kinds)}
        shared = sum(tensor is not None for tensor in example.batch) if example.common else 0
        made: dict[int, ReplicatedStep] = {}
        steps: list[ReplicatedStep] = []
        for i in range(len(replicates[0].stepper.phases)):
            first = plans[0].steps[i][1]
            if id(first) not in made:
                column = [_step(replicate, plans[k], i) for replicate, k in zip(replicates, kinds, strict=True)]
                made[id(first)] = ReplicatedStep(column, stack, shared, example.common)
            steps.append(made[id(first)])
        bounds = [step.template.fill(range(step.template.size))[0].bound for step in steps]
        return cls(steps, bounds)

    @property
    def different(self) -> list[ReplicatedStep]:
        """The steps, each once."""
        return list({id(step): step for step in self.steps}.values())

    def compile(self) -> float:
        """Compiles all phases; returns the seconds it took."""
        return sum(step.compile() for step in self.different)

    @property
    def price(self) -> float:
        """Seconds that compiling takes, as far as one can tell beforehand."""
        return sum(compile_cost(step.known()) for step in self.different)

    def follow(self) -> None:
        """Finds buffers again that were assigned anew by steps outside the program."""
        for step in self.different:
            step.follow()

    def take(self, batch: Batch, streams: Sequence[Stream]) -> Tensor | None:
        """Takes the phases' steps; returns the last bound, shape ``(R,)``.

        Arguments:
            batch: Of the plan's kind.
            streams: Of the replicates.
        """
        inputs, bound = [tensor for tensor in batch if tensor is not None], None
        generators = [stream.generator for stream in streams]
        carried: list[Tensor] = []
        for step, at in zip(self.steps, self.bounds, strict=True):
            flat = step.take([*inputs, *carried], step.noise(generators))
            bound = bound if at is None else flat[at]
            carried = tensors_of(step.template.fill(flat)[1])
        return bound


def _plan(replicate: Replicate, batch: Batch) -> Plan:
    run = replicate.stepper
    return Plan(run.vae, run.inference, run.phases, batch, replicate.ledger, run.clip_norm)


def _step(replicate: Replicate, plan: Plan, i: int) -> Step:
    """A replicate's step of a phase, by a plan of the same program."""
    step = plan.steps[i][1]
    if step is None:
        raise CaptureError(
            f"replicates: phase {i} of `{replicate.inference.name}` moves no parameter that is to be trained; train "
            "the VAEs one by one."
        )
    return step.like({"vae": replicate.vae, "inference": replicate.inference}, replicate.ledger)


def kinds_of(replicates: Sequence[Replicate]) -> list[int]:
    """Returns for each replicate the first one of which it is certain that its program is the same."""
    kinds: list[int] = []
    for r, replicate in enumerate(replicates):
        same = (k for k in dict.fromkeys(kinds) if same_program(_making(replicates[k]), _making(replicate)))
        kinds.append(next(same, r))
    return kinds


def _making(replicate: Replicate) -> Any:
    run, ledger = replicate.stepper, replicate.ledger
    groups = [[ledger.group_of(p) for p in moved.values()] for _, moved in run.phases]
    return run.vae, run.inference, [sorted(moved) for _, moved in run.phases], ledger.options, groups, type(ledger.rule)
