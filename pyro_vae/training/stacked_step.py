r"""The step of R VAEs of one structure as one program, stacked over the members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.engine.capture.capture import tensors_of
from pyro_vae.engine.compilation.cost import compile_cost
from pyro_vae.engine.errors import CaptureError
from pyro_vae.engine.step.replicated_step import ReplicatedStep, Stack, check_rules
from pyro_vae.engine.step.same_program import same_program
from pyro_vae.engine.step.step import Step
from pyro_vae.training.compiled_step import CompiledStep, named_failure
from pyro_vae.training.member import Member
from pyro_vae.training.program import Noise, Queued
from pyro_vae.training.stacked_minibatches import Minibatch


class StackedStep:
    """The phases of one step of all members, for minibatches of one kind; a `Program`.

    Arguments:
        members: All VAEs in training, each with a random stream of its own.
        kinds: For each member, the first one whose program is certainly the same.
        stack: Holds the members' tensors; one for the whole run.
        example: A minibatch.
        clip_norm: See `Training`.

    Raises:
        CaptureError: Where a program cannot be captured, or where the members' programs differ in structure.
    """

    runs_uncompiled = True
    captured = True

    def __init__(
        self, members: Sequence[Member], kinds: Sequence[int], stack: Stack, example: Minibatch, clip_norm: float | None
    ) -> None:
        self.members, self.stack, self.common = members, stack, example.common
        self.stretch, self.checks = 1, 0
        check_rules([member.ledger for member in members])
        alone = {r: CompiledStep(members[r], example.of(r), clip_norm) for r in dict.fromkeys(kinds)}
        shared = len(example.batch.tensors) if example.common else 0
        made: dict[int, ReplicatedStep] = {}
        self.steps: list[ReplicatedStep] = []
        for i in range(len(members[0].phases)):
            first = alone[0].steps[i][1]
            if id(first) not in made:
                column = [_step(member, alone[k], i) for member, k in zip(members, kinds, strict=True)]
                made[id(first)] = ReplicatedStep(column, stack, shared, example.common)
            self.steps.append(made[id(first)])
        # Where the bound stands among the tensors that a phase returns.
        self._bounds = [step.template.fill(range(step.template.size))[0].bound for step in self.steps]

    @property
    def _different(self) -> list[ReplicatedStep]:
        """The steps, each once."""
        return list({id(step): step for step in self.steps}.values())

    def compile(self) -> float:
        """Compiles all phases; returns the seconds that it took."""
        return sum(step.compile() for step in self._different)

    @property
    def cost(self) -> float:
        """Seconds that compiling takes, as far as is known beforehand."""
        return sum(compile_cost(step.known()) for step in self._different)

    def check_reads(self) -> None:
        """Does nothing: each step checks what it reads."""

    def follow(self) -> None:
        """Finds buffers again that steps outside the program have replaced."""
        for step in self._different:
            step.follow()

    def failed(self) -> list[bool]:
        """Returns for each member whether a loss or gradient was not finite; waits for the device."""
        return self.stack.of([member.ledger.failed for member in self.members]).tolist()

    def done(self) -> list[int]:
        """Returns each member's number of updates in compiled steps."""
        return self.stack.of([member.ledger.done for member in self.members]).tolist()

    def draw(self) -> Noise:
        """Returns noise for one step, by phase; each member's comes from its own stream."""
        generators = [member.stream.generator for member in self.members if member.stream is not None]
        return {i: step.noise(generators) for i, step in enumerate(self.steps)}

    def run(self, queue: Sequence[Queued]) -> list[Tensor | None]:
        """Takes the steps in order; returns the last phase's bound of each, shape ``(R,)``."""
        return [self._take(step) for step in queue]

    def _take(self, queued: Queued) -> Tensor | None:
        vae = self.members[0].vae
        for member in self.members:
            member.set_rates(queued.factor)
            member.ledger.read_rates()
        batch = queued.minibatch.batch.to(vae.device, vae.dtype)
        inputs, bound = vae.typed(batch).tensors, None
        carried: list[Tensor] = []
        for i, (step, at) in enumerate(zip(self.steps, self._bounds, strict=True)):
            flat = step.take([*inputs, *carried], queued.noise[i])
            bound = bound if at is None else flat[at]
            if i + 1 < len(self.steps):
                carried = tensors_of(step.template.fill(flat)[1])
        return bound

    def why(self, step: Queued, member: int) -> str:
        """Returns what was not finite in a member's step that failed, found by the same step uncompiled."""
        noise = step.noise.get(0, [])
        own = noise if self.common else [value[member] for value in noise]
        batch: Batch = step.minibatch.of(member)
        return named_failure(self.members[member], batch, own)


def _step(member: Member, like: CompiledStep, i: int) -> Step:
    """A member's step of a phase, made from another member's with the same program."""
    step = like.steps[i][1]
    if step is None:
        raise CaptureError(
            f"replicates: phase {i} of `{member.inference.name}` moves no parameter that is to be trained; train "
            "the VAEs one by one."
        )
    return step.like({"vae": member.vae, "inference": member.inference}, member.ledger)


def kinds_of(members: Sequence[Member]) -> list[int]:
    """Returns for each member the first one whose program is certainly the same."""
    kinds: list[int] = []
    for r, member in enumerate(members):
        same = (k for k in dict.fromkeys(kinds) if same_program(_declared(members[k]), _declared(member)))
        kinds.append(next(same, r))
    return kinds


def _declared(member: Member) -> Any:
    """What decides which program a member's step is."""
    ledger, moved = member.ledger, [sorted(parameters) for _, parameters in member.phases]
    groups = [[ledger.group_of(p) for p in parameters.values()] for _, parameters in member.phases]
    return member.vae, member.inference, moved, ledger.options, groups, type(ledger.rule)
