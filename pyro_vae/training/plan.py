r"""Training steps as compiled programs: when to compile, and one program for each kind of minibatch."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.engine.capture.capture import tensors_of
from pyro_vae.engine.compilation.cost import CAPTURE, MOST, WARM, Busy, Mode, compile_cost
from pyro_vae.engine.errors import CaptureError, CompilationError
from pyro_vae.engine.step.consecutive_steps import Stretch
from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.engine.step.step import Step
from pyro_vae.inference.interface import Inference, Loss, Phase
from pyro_vae.vae.vae import VAE

# What is in an optimizer's group and does not tell kinds of steps apart: learning rates are read at each.
_NO_OPTIONS = {"params", "lr", "initial_lr"}
_PLAIN = {bool, int, float, str}
# Steps of a kind that are timed before it is decided about.
_TIMED = 3
# What compiling saves of a step at least: the handlers' work and autograd's, and a share of the rest; and at most.
_OVERHEAD, _SHARE, _MOST_SAVED = 0.001, 0.3, 0.8


class Plan:
    """The phases of one step, for minibatches of one kind.

    Arguments:
        vae: The VAE.
        inference: The algorithm.
        phases: Its phases, each with the parameters that it moves.
        batch: An example.
        ledger: Of the run.
        clip_norm: See `pyro_vae.fit`.

    Attributes:
        stretch: How many steps to take between two looks at what they gave.
        looks: Looks so far.
        captured: Whether all phases are: after one that fails, such change nothing.

    Raises:
        CaptureError: Where a phase cannot be captured.
    """

    def __init__(
        self,
        vae: VAE,
        inference: Inference,
        phases: Sequence[tuple[Phase, dict[str, nn.Parameter]]],
        batch: Batch,
        ledger: Ledger,
        clip_norm: float | None,
    ) -> None:
        self.vae = vae
        self.stretch, self.looks = 1, 0
        self._stretch: Stretch | None = None
        self.steps: list[tuple[Phase, Step | None]] = []
        modules: dict[str, nn.Module] = {"vae": vae, "inference": inference}
        names = {id(p): name for name, p in nn.ModuleDict(modules).named_parameters()}
        checked, carry = vae.check(batch), None
        # Minibatches of one kind are checked alike: once, unless that changes them.
        self._as_it_is = all(field is own for field, own in zip(batch, checked, strict=True))
        batch = checked
        for i, (phase, moved) in enumerate(phases):
            if not moved:  # what moves nothing has no gradient to be compiled
                with torch.random.fork_rng(), _put_back(inference):
                    carry = phase.compute(vae, batch, carry)[1]
                self.steps.append((phase, None))
                continue
            wanted = [names[id(parameter)] for parameter in moved.values()]
            same = next((s for p, s in self.steps if s is not None and i > 1 and p == phase), None)
            step = same or Step(_of(phase, vae), modules, [batch, carry], wanted, ledger, clip_norm)
            self.steps.append((phase, step))
            if i + 1 < len(phases):
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
    def price(self) -> float:
        """Seconds that compiling takes, as far as one can tell beforehand."""
        return sum(compile_cost(step.known()) for step in {id(s): s for _, s in self.steps if s is not None}.values())

    def draw(self) -> dict[int, list[Tensor]]:
        """Returns noise for one step, by phase; none where an uncaptured phase draws among the others."""
        if not self.captured:
            return {}
        return {i: step.captured.noise() for i, (_, step) in enumerate(self.steps) if step is not None}

    def check_reads(self) -> None:
        """Raises a `CaptureError` where values have changed on which a captured program depends."""
        for _, step in self.steps:
            if step is not None:
                step.captured.check_reads()

    def together(self, n: int) -> bool:
        """Whether so many steps are taken faster at once; see `Stretch`."""
        step = self.steps[0][1]
        if n == 1 or len(self.steps) > 1 or step is None or not step.recorded:
            return False
        self._stretch = self._stretch or Stretch(step)
        return self._stretch.has_room(n)

    def take_together(
        self, steps: Sequence[tuple[Batch, dict[int, list[Tensor]]]], rates: Sequence[Sequence[float]]
    ) -> list[Tensor | None]:
        """Takes several steps at once; returns their bounds.

        Arguments:
            steps: Minibatch and noise of each.
            rates: The learning rates of the optimizer's groups at each.
        """
        if self._stretch is None:
            raise RuntimeError("steps are taken together where `together` says so")
        at = self._bounds[0]
        batches = [batch if self._as_it_is else self.vae.check(batch) for batch, _ in steps]
        given = [(_inputs(batch), noise[0]) for batch, (_, noise) in zip(batches, steps, strict=True)]
        flat = self._stretch.take(given, rates)
        return [None if at is None else results[at] for results in flat]

    def take(self, batch: Batch, noise: dict[int, list[Tensor]]) -> Tensor | None:
        """Takes the phases' steps; returns the last bound.

        Arguments:
            batch: Of the plan's kind.
            noise: Of each phase; what is missing is drawn and added.
        """
        batch, carry, bound = batch if self._as_it_is else self.vae.check(batch), None, None
        loss: Loss
        for i, (phase, step) in enumerate(self.steps):
            if step is None:
                loss, carry = phase.compute(self.vae, batch, carry)
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
    return [field.contiguous() for field in batch if field is not None]


@contextmanager
def _put_back(inference: Inference) -> Iterator[None]:
    """Puts the algorithm's buffers back after the block: a phase may adapt what lasts from step to step."""
    before = {name: buffer.clone() for name, buffer in inference.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in inference.named_buffers():
            buffer.copy_(before[name])


def _of(phase: Phase, vae: VAE) -> Callable[[Batch, Any], tuple[Loss, Any]]:
    return lambda batch, carry: phase.compute(vae, batch, carry)


@dataclass
class _Kind:
    """Minibatches of one kind: how long their steps take, and their plan."""

    seconds: list[float] = field(default_factory=list)
    uses: int = 0
    plan: Plan | None = None
    decided: bool = False


class CompiledSteps:
    """Decides for each kind of minibatch whether its step is compiled, and keeps the compiled ones.

    Arguments:
        make: A `Plan` for an example.
        ledger: Of the run.
        modules: Whose parts' modes tell kinds apart.
        mode: See `pyro_vae.fit`.
        total: Steps of the run.
        busy: A block with a title for what takes long.

    Attributes:
        seconds: What capturing and compiling took in all.
        said: What was decided, in words.
        settled: Updates of the ledger that were looked at.
    """

    def __init__(
        self,
        make: Callable[[Batch], Plan],
        ledger: Ledger,
        modules: Sequence[nn.Module],
        mode: Mode,
        total: int,
        busy: Busy,
    ) -> None:
        self.make, self.ledger, self.mode, self.total, self.busy = make, ledger, mode, total, busy
        self._parts = [part for module in modules for part in module.modules()]
        # What parts know as plain values, such as the weight of a term, is part of the program.
        self._plain = [
            (vars(part), name)
            for part in self._parts
            for name, value in vars(part).items()
            if value.__class__ in _PLAIN and name != "training"
        ]
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        self.kinds: dict[Any, _Kind] = {}
        self.seconds, self.said, self._eager_last, self.settled = 0.0, "", True, 0

    def plan_for(self, batch: Batch, step: int) -> Plan | None:
        """Returns the plan for a minibatch, ready to be taken; None where its step is to be uncompiled.

        Arguments:
            batch: The minibatch.
            step: Steps taken so far.
        """
        kind = self.kinds.setdefault(self._key(batch), _Kind())
        kind.uses += 1
        if not kind.decided and step > 0:
            self._decide(kind, batch, step)
        if kind.plan is not None and self.mode == "auto":
            try:
                kind.plan.check_reads()
            except CaptureError as error:  # what it depends on has changed
                kind.plan = None
                self._refuse(str(error))
        if kind.plan is None:
            if not self._eager_last:
                self.ledger.write()
            self._eager_last = True
            return None
        if self._eager_last:
            self.ledger.read()
        self._eager_last = False
        return kind.plan

    @property
    def last_was_compiled(self) -> bool:
        """Whether the last step was a compiled one, so that the ledger knows more than the optimizer."""
        return not self._eager_last

    def finish(self) -> None:
        """Has the optimizer know how many steps were taken."""
        if self.last_was_compiled:
            self.ledger.write()

    def timed(self, batch: Batch, seconds: float) -> None:
        """Remembers how long an uncompiled step took."""
        self.kinds[self._key(batch)].seconds.append(seconds)

    def _decide(self, kind: _Kind, batch: Batch, step: int) -> None:
        if sum(k.plan is not None for k in self.kinds.values()) >= MOST:
            kind.decided = True
            self._refuse(f"minibatches of more than {MOST} kinds; a number that changes all the time must be a buffer")
            return
        saved = float("inf")
        if self.mode == "auto":
            if len(kind.seconds) < _TIMED:
                return
            left = (self.total - step) * kind.uses / (step + 1)
            seconds = statistics.median(kind.seconds)
            saved = min(_OVERHEAD + _SHARE * seconds, _MOST_SAVED * seconds) * left
            if saved < WARM + CAPTURE:
                kind.decided = True
                self.said = self.said or f"uncompiled: {self.total} steps would not repay the compilation"
                return
        kind.decided = True
        try:
            plan = self._made(batch, saved)
        except (CaptureError, CompilationError) as error:
            if self.mode is True:
                raise
            self._refuse(str(error))
            return
        kind.plan = plan
        if plan is None:
            self.said = self.said or f"uncompiled: {self.total} steps would not repay the compilation"
        else:
            self.said = f"compiled in {self.seconds:.1f} s"

    def _made(self, batch: Batch, saved: float) -> Plan | None:
        """The compiled plan; None where compiling it takes longer than it saves."""
        start = time.perf_counter()
        try:
            with self.busy("compiling"):
                plan = self.make(batch)
                if plan.price + CAPTURE > saved:
                    return None
                plan.compile()
                return plan
        finally:
            self.seconds += time.perf_counter() - start

    def _refuse(self, reason: str) -> None:
        if not self.said.startswith("compiled"):
            self.said = f"uncompiled: {reason}"
        warnings.warn(f"fit: runs uncompiled: {reason}", stacklevel=7)

    def _key(self, batch: Batch) -> tuple[Any, ...]:
        fields = tuple(None if t is None else (tuple(t.shape), t.dtype, t.device) for t in batch)
        modes = tuple([part.training for part in self._parts])
        frozen = tuple([parameter.requires_grad for parameter in self._parameters])
        groups = self.ledger.optimizer.param_groups
        options = tuple([option for group in groups for name, option in group.items() if name not in _NO_OPTIONS])
        plain = tuple([own.get(name) for own, name in self._plain])
        return fields, modes, frozen, options, plain
