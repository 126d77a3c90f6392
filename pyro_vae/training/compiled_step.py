r"""The compiled step of one VAE: its phases, for minibatches of one kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.engine.capture.capture import tensors_of
from pyro_vae.engine.capture.noise import Lifted
from pyro_vae.engine.compilation.cost import compile_cost
from pyro_vae.engine.step.consecutive_steps import Stretch
from pyro_vae.engine.step.step import Step
from pyro_vae.inference.interface import Inference, Loss, Phase
from pyro_vae.training.eager_step import not_finite
from pyro_vae.training.member import Member
from pyro_vae.training.program import Noise, Queued
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class CompiledStep:
    """The phases of one member's step, for minibatches of one kind; a `Program`.

    Arguments:
        member: The VAE in training.
        batch: An example of a minibatch.
        clip_norm: See `Training`.

    Raises:
        CaptureError: Where a phase cannot be captured.
    """

    runs_uncompiled = False

    def __init__(self, member: Member, batch: Batch, clip_norm: float | None) -> None:
        self.member, vae, inference = member, member.vae, member.inference
        self.stretch, self.checks = 1, 0
        self._consecutive: Stretch | None = None
        self.steps: list[tuple[Phase, Step | None]] = []
        modules: dict[str, nn.Module] = {"vae": vae, "inference": inference}
        names = {id(p): name for name, p in nn.ModuleDict(modules).named_parameters()}
        checked, carry = vae.check(batch), None
        # Minibatches of one kind pass the check alike: it runs once, unless it changes them.
        self._as_it_is = all(field is own for field, own in zip(batch.tensors, checked.tensors, strict=True))
        batch = checked
        for i, (phase, moved) in enumerate(member.phases):
            if not moved:  # what moves nothing has no gradient to be compiled
                with torch.random.fork_rng(), _put_back(inference):
                    carry = phase.compute(vae, batch, carry)[1]
                self.steps.append((phase, None))
                continue
            wanted = [names[id(parameter)] for parameter in moved.values()]
            same = next((s for p, s in self.steps if s is not None and i > 1 and p == phase), None)
            step = same or Step(_of(phase, vae), modules, [batch, carry], wanted, member.ledger, clip_norm)
            self.steps.append((phase, step))
            if i + 1 < len(member.phases):
                carry = step.preview([batch, carry])[1]

        self.captured = all(step is not None for _, step in self.steps)
        # Where the bound stands among the tensors that a phase returns.
        self._bounds: list[int | None] = [
            None if step is None else step.captured.template.fill(range(step.captured.template.size))[0].bound
            for _, step in self.steps
        ]

    def compile(self) -> float:
        """Compiles all phases; returns the seconds it took."""
        return sum(step.compile() for step in {id(s): s for _, s in self.steps if s is not None}.values())

    @property
    def cost(self) -> float:
        """Seconds that compiling takes, as far as is known beforehand."""
        return sum(compile_cost(step.known()) for step in {id(s): s for _, s in self.steps if s is not None}.values())

    def draw(self) -> Noise:
        """Returns noise for one step, by phase; none where an uncaptured phase draws among the others."""
        if not self.captured:
            return {}
        return {i: step.captured.noise() for i, (_, step) in enumerate(self.steps) if step is not None}

    def check_reads(self) -> None:
        """Raises a `CaptureError` where a value has changed on which a captured program depends."""
        for _, step in self.steps:
            if step is not None:
                step.captured.check_reads()

    def follow(self) -> None:
        """Does nothing: each step looks for tensors that were replaced."""

    def failed(self) -> list[bool]:
        """Returns whether a loss or gradient was not finite; waits for the device."""
        return [bool(self.member.ledger.failed)]

    def done(self) -> list[int]:
        """Returns the number of updates in compiled steps."""
        return [int(self.member.ledger.done)]

    def why(self, step: Queued, member: int) -> str:
        """Returns what was not finite in a step that failed, found by the same step at the same noise, uncompiled."""
        return named_failure(self.member, step.minibatch.of(member), step.noise.get(0, []))

    def run(self, queue: Sequence[Queued]) -> list[Tensor | None]:
        """Takes the steps in order; returns their bounds."""
        if self._runs_at_once(len(queue)):
            return self._take_at_once(queue)
        bounds = []
        for step in queue:
            self.member.set_rates(step.factor)
            bounds.append(self.take(step.minibatch.batch, step.noise))
        return bounds

    def _runs_at_once(self, n: int) -> bool:
        """Whether ``n`` steps run faster as one recording; see `Stretch`."""
        step = self.steps[0][1]
        if n == 1 or len(self.steps) > 1 or step is None or not step.recorded:
            return False
        self._consecutive = self._consecutive or Stretch(step)
        return self._consecutive.has_room(n)

    def _take_at_once(self, queue: Sequence[Queued]) -> list[Tensor | None]:
        """Takes several steps as one recording; returns their bounds."""
        if self._consecutive is None:
            raise RuntimeError("steps run at once only where `_runs_at_once` says so")
        present = [float(group["lr"]) for group in self.member.optimizer.param_groups]
        rates = [
            present if step.factor is None else [rate * step.factor for rate in self.member.rates] for step in queue
        ]
        batches = [self._ready(step.minibatch.batch) for step in queue]
        given = [(_inputs(batch), step.noise[0]) for batch, step in zip(batches, queue, strict=True)]
        flat, at = self._consecutive.take(given, rates), self._bounds[0]
        return [None if at is None else results[at] for results in flat]

    def _ready(self, batch: Batch) -> Batch:
        return batch if self._as_it_is else self.member.vae.check(batch)

    def take(self, batch: Batch, noise: Noise) -> Tensor | None:
        """Takes one step, phase after phase; returns the last bound.

        Arguments:
            batch: Minibatch of the step's kind.
            noise: Noise of each phase; missing noise is drawn and added.
        """
        batch, carry, bound = self._ready(batch), None, None
        loss: Loss
        for i, (phase, step) in enumerate(self.steps):
            if step is None:
                loss, carry = phase.compute(self.member.vae, batch, carry)
                bound = bound if loss.bound is None else loss.bound
                continue
            if i not in noise:
                noise[i] = step.captured.noise()
            inputs = _inputs(batch)
            flat = step.take(inputs if carry is None else [*inputs, *tensors_of(carry)], noise[i])
            at = self._bounds[i]
            bound = bound if at is None else flat[at]
            if i + 1 < len(self.steps):
                carry = step.captured.template.fill(flat)[1]
        return bound


def _inputs(batch: Batch) -> list[Tensor]:
    return [field.contiguous() for field in batch.tensors]


@contextmanager
def _put_back(inference: Inference) -> Iterator[None]:
    """Puts the algorithm's buffers back after the block, as a phase may change them."""
    before = {name: buffer.clone() for name, buffer in inference.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in inference.named_buffers():
            buffer.copy_(before[name])


def named_failure(member: Member, batch: Batch, noise: Sequence[Tensor]) -> str:
    """Names what is not finite in a step of one phase: its first gradient that is not, else its loss.

    Arguments:
        member: The VAE in training, at the parameters before the step.
        batch: The minibatch.
        noise: Noise of the step's draws.
    """
    if len(member.phases) > 1:
        return "the loss or its gradient"
    ((phase, parameters),) = member.phases
    with Lifted.at([value.clone() for value in noise]), pyro.validation_enabled(False):
        loss, _ = phase.compute(member.vae, member.vae.check(batch), None)
        gradients = torch.autograd.grad(loss.value, list(parameters.values()), allow_unused=True)
    return not_finite(loss, parameters, gradients)


def _of(phase: Phase, vae: LatentVariableModel) -> Callable[[Batch, Any], tuple[Loss, Any]]:
    return lambda batch, carry: phase.compute(vae, batch, carry)
