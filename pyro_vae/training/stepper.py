r"""The optimizer's side of training: takes steps, and keeps the last good parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.engine.capture.noise import Lifted
from pyro_vae.engine.compilation.cost import Busy, Mode
from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference.interface import Inference, Loss, Phase
from pyro_vae.runtime.interrupts import uninterrupted
from pyro_vae.training.plan import CompiledSteps, Plan
from pyro_vae.training.schedules import factor_of
from pyro_vae.vae.vae import VAE

# Compiled steps are taken in stretches, with one look at their end whether all was finite: at most so many, which take
# so long, and whose minibatches are so large. Ctrl-C waits for the end of a stretch.
_MOST, _SECONDS, _BYTES = 64, 0.02, {"cpu": 2**21}
_BYTES_ELSEWHERE = 2**26
# Stretches of one step each, before the length of longer ones is chosen.
_SINGLE = 3

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class _Waiting:
    """A compiled step that is to be taken, or at which nobody has looked yet."""

    batch: Batch
    rows: Tensor | None
    factor: float | None
    noise: dict[int, list[Tensor]]


class Stepper:
    """The optimizer's side of a run: takes steps, and keeps the last good parameters."""

    def __init__(
        self,
        vae: VAE,
        inference: Inference,
        optimizer: OptimizerFactory,
        schedule: Callable[[int], float] | None,
        clip_norm: float | None,
        check_support: bool,
    ) -> None:
        self.vae, self.inference, self.check_support = vae, inference, check_support
        self.schedule, self.clip_norm = schedule, clip_norm
        parameters = [p for p in (*vae.parameters(), *inference.parameters()) if p.requires_grad]
        self.optimizer = optimizer(parameters)
        if not isinstance(self.optimizer, torch.optim.Optimizer) or isinstance(self.optimizer, torch.optim.LBFGS):
            raise InputError(
                f"fit: `optimizer` makes a torch.optim.Optimizer from parameters, such as "
                f"lambda p: torch.optim.Adam(p, lr=1e-3); it made a `{type(self.optimizer).__name__}`"
                f"{', which evaluates the loss several times a step' * isinstance(self.optimizer, torch.optim.LBFGS)}."
            )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.both = nn.ModuleDict({"vae": vae, "inference": inference})
        self.phases: list[tuple[Phase, dict[str, nn.Parameter]]] = [
            (phase, inference.moved(vae, phase)) for phase in inference.phases
        ]
        # Parameters that the algorithm leaves alone by design, all of them or some.
        left = {**({} if inference.trains_posterior else vae.phi), **({} if inference.trains_prior else _of_prior(vae))}
        self.exempt = {id(parameter) for parameter in left.values()}
        self._require_phases()
        self.kept = {id(parameter): parameter.detach().clone() for parameter in self.both.parameters()}
        self.buffers = {name: buffer.clone() for name, buffer in self.both.named_buffers()}
        self.ledger: Ledger | None = None
        self.compiled: CompiledSteps | None = None
        self.ahead, self.own_batches = True, False
        self.plan: Plan | None = None
        self.waiting: list[_Waiting] = []
        self.time, self.bound = 0.0, float("nan")
        self._before = "uncompiled", 0.0  # what is known of steps that an earlier process took
        self.bounds: list[float] = []
        self.samples: list[int] = []
        self.seconds: list[float] = []

    def compile_steps(self, mode: Mode, total: int, busy: Busy) -> None:
        """Has steps compiled, from the second on: the first one is validated, and shows what has no gradient."""
        moved = [list(parameters.values()) for _, parameters in self.phases]
        ledger = self.ledger = Ledger(self.optimizer, moved, self.vae.device, self.kept)

        def make(batch: Batch) -> Plan:
            return Plan(self.vae, self.inference, self.phases, batch, ledger, self.clip_norm)

        self.compiled = CompiledSteps(make, ledger, (self.vae, self.inference), mode, total, busy)

    def take(self, batch: Batch, rows: Tensor | None) -> None:
        """Takes one step: every phase's loss, gradient and update. A compiled one may wait for `settle`."""
        factor = None if self.schedule is None else factor_of(self.schedule, self.step)
        self.inference.visit(rows)
        if not self.waiting or not _alike(batch, self.waiting[0].batch):
            self.settle()
            compiled_before = self.compiled is not None and self.compiled.last_was_compiled
            self.plan = None if self.compiled is None else self.compiled.plan_for(batch, self.step)
            if self.plan is None and compiled_before:
                self._keep_buffers()
        if self.plan is None:
            self._take_uncompiled(batch, rows, factor)
            return
        if not self.own_batches and self.plan.stretch > 1:
            batch = batch.map(torch.clone)  # the next one may lie where this one does
        # Drawn now, so that the order of all draws is that of the steps.
        self.waiting.append(_Waiting(batch, rows, factor, self.plan.draw()))
        if len(self.waiting) >= (self.plan.stretch if self.ahead else 1):
            self.settle()

    @property
    def step(self) -> int:
        """Steps taken, with those that wait."""
        return len(self.seconds) + len(self.waiting)

    def settle(self) -> None:
        """Takes the steps that wait, and looks at them: records their bounds, or fails at the first that did."""
        if not self.waiting or self.plan is None or self.compiled is None or self.ledger is None:
            return
        with uninterrupted():
            waiting, self.waiting = self.waiting, []
            start = time.perf_counter()
            bounds = self._take_waiting(self.plan, waiting)
            failed = bool(self.ledger.failed)
            seconds = time.perf_counter() - start
            self.time += seconds
            moving = sum([bool(parameters) for _, parameters in self.phases])
            good = (int(self.ledger.done) - self.compiled.settled) // moving if failed else len(waiting)
            self.compiled.settled += good * moving
            self._record([step.batch.size for step in waiting[:good]], bounds[:good])
            if failed:
                self._keep_buffers()  # nothing has changed them since
                self._fail(waiting[good].batch, waiting[good].rows, self._bad_gradient(waiting[good]))
            self._lengthen(self.plan, seconds, waiting)

    def _take_waiting(self, plan: Plan, waiting: list[_Waiting]) -> list[Tensor | None]:
        """Takes compiled steps; returns their bounds."""
        if plan.together(len(waiting)):
            present = [float(group["lr"]) for group in self.optimizer.param_groups]
            factors = [step.factor for step in waiting]
            rates = [present if factor is None else [rate * factor for rate in self.rates] for factor in factors]
            return plan.take_together([(step.batch, step.noise) for step in waiting], rates)
        bounds = []
        for step in waiting:
            self._set_rates(step.factor)
            bounds.append(plan.take(step.batch, step.noise))
        return bounds

    def _take_uncompiled(self, batch: Batch, rows: Tensor | None, factor: float | None) -> None:
        with uninterrupted():  # a phase that was taken, or noise that was drawn, cannot be taken back
            start = time.perf_counter()
            self._set_rates(factor)
            self.bound = self._take(batch, rows)
            seconds = time.perf_counter() - start
            if self.compiled is not None:
                self.compiled.timed(batch, seconds)
            self.time += seconds
            self._record([batch.size], [])

    def _set_rates(self, factor: float | None) -> None:
        if factor is not None:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor

    def _record(self, sizes: list[int], bounds: list[Tensor | None]) -> None:
        """Records steps: the sizes of their minibatches, and their bounds where they are not known yet."""
        found = [bound for bound in bounds if bound is not None]
        values = torch.stack(found).tolist() if found else [self.bound] * len(sizes)
        before, samples = (self.seconds[-1], self.samples[-1]) if self.seconds else (0.0, 0)
        for i, (size, value) in enumerate(zip(sizes, values, strict=True)):
            samples += size
            self.bounds.append(value)
            self.samples.append(samples)
            self.seconds.append(before + (self.time - before) * (i + 1) / len(sizes))
        self.bound = values[-1] if values else self.bound

    def _lengthen(self, plan: Plan, seconds: float, waiting: list[_Waiting]) -> None:
        """Chooses how many steps of a plan are taken in one stretch, once it is known how long they take."""
        plan.looks += 1
        if plan.looks == _SINGLE and plan.captured:
            noise = [tensor for drawn in waiting[0].noise.values() for tensor in drawn]
            size = sum(tensor.nbytes for tensor in (*waiting[0].batch, *noise) if tensor is not None)
            room = _BYTES.get(self.vae.device.type, _BYTES_ELSEWHERE) // max(size, 1)
            plan.stretch = max(1, min(_MOST, int(_SECONDS * len(waiting) / seconds), room))

    def _bad_gradient(self, taken: _Waiting) -> str:
        """What was not finite, from the same step at the same noise, uncompiled."""
        if len(self.phases) > 1:
            return "the loss or its gradient"
        (phase, parameters) = self.phases[0]
        with Lifted.at([value.clone() for value in taken.noise[0]]), pyro.validation_enabled(False):
            loss, _ = phase.compute(self.vae, self.vae.check(taken.batch), None)
            gradients = torch.autograd.grad(loss.value, list(parameters.values()), allow_unused=True)
        bad = [name for name, g in zip(parameters, gradients, strict=True) if g is not None and not _finite(g)]
        return f"the gradient of `{bad[0]}`" if bad else f"the loss ({loss.value.item():g})"

    @property
    def execution(self) -> str:
        """How the steps ran, in words."""
        return self._before[0] if self.compiled is None or not self.compiled.said else self.compiled.said

    @property
    def compile_seconds(self) -> float:
        """What capturing and compiling took."""
        return self._before[1] + (0.0 if self.compiled is None else self.compiled.seconds)

    def finish(self) -> None:
        """Has the optimizer know how many steps were taken."""
        if self.compiled is not None:
            self.compiled.finish()

    def state(self) -> dict[str, Any]:
        """Returns all that the next step depends on, and the records; see `put_back`."""
        self.settle()
        self.finish()
        return {
            "modules": dict(self.both.state_dict()),
            "kept": [self.kept[id(parameter)] for parameter in self.both.parameters()],
            "optimizer": self.optimizer.state_dict(),
            "bounds": torch.tensor(self.bounds, dtype=torch.float64),
            "samples": torch.tensor(self.samples, dtype=torch.int64),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "bound": self.bound,
            "time": self.time,
            "execution": self.execution,
            "compile_seconds": self.compile_seconds,
        }

    def put_back(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, before the first step: in place."""
        self.both.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in zip(self.both.parameters(), state["kept"], strict=True):
            self.kept[id(parameter)].copy_(kept)
        self._keep_buffers()
        self.bounds, self.samples, self.seconds = (state[name].tolist() for name in ("bounds", "samples", "seconds"))
        self.bound, self.time = state["bound"], state["time"]
        self._before = state["execution"], state["compile_seconds"]

    def _take(self, batch: Batch, rows: Tensor | None) -> float:
        bound = float("nan")
        losses = self.inference.losses(self.vae, batch)
        for phase, parameters in self.phases:
            loss = self._compute(losses, batch, rows)
            if loss.bound is not None:
                bound = float(loss.bound)
            if not parameters:  # all frozen
                continue
            gradients = torch.autograd.grad(loss.value, list(parameters.values()), allow_unused=True)
            if self.step == 0:
                self._require_gradients(phase, parameters, gradients)
            norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
            if not bool((loss.value.detach() + norm).isfinite()):
                bad = [name for name, g in zip(parameters, gradients, strict=True) if g is not None and not _finite(g)]
                self._fail(batch, rows, f"the gradient of `{bad[0]}`" if bad else f"the loss ({loss.value.item():g})")
            self._save(parameters)
            self._update(parameters, gradients, norm)
        return bound

    def _compute(self, losses: Iterator[Loss], batch: Batch, rows: Tensor | None) -> Loss:
        """The next phase's loss; parameters that are not finite make some distributions raise."""
        first = self.step == 0
        try:
            with pyro.validation_enabled(first and self.check_support):  # costly on a GPU, so once
                return next(losses)
        except InputError:
            raise
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            if not all(_finite(parameter) for parameter in self.vae.parameters()):
                self._fail(batch, rows, reason)
            if first or isinstance(error, ValueError):
                raise InputError(f"fit: step {self.step + 1} fails on a batch of {batch.size}: {reason}") from error
            raise

    def _update(self, parameters: dict[str, nn.Parameter], gradients: tuple[Tensor | None, ...], norm: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        scale = None if self.clip_norm is None else torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0)
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient if scale is None or gradient is None else gradient * scale
        try:
            self.optimizer.step()
        except KeyboardInterrupt:  # some parameters may be moved already
            self._restore()
            raise
        self.optimizer.zero_grad(set_to_none=True)

    def _require_phases(self) -> None:
        """Raises for a trainable parameter that no phase moves."""
        moved = {id(p) for _, parameters in self.phases for p in parameters.values()}
        for name, parameter in self.both.named_parameters():
            if parameter.requires_grad and id(parameter) not in moved | self.exempt:
                raise InputError(
                    f"fit: no phase of `{self.inference.name}` moves `{name}`; name its group in the phase's `moves`, "
                    "or freeze it with requires_grad_(False)."
                )

    def _require_gradients(
        self, phase: Phase, parameters: dict[str, nn.Parameter], gradients: tuple[Tensor | None, ...]
    ) -> None:
        some = any(gradient is not None for gradient in gradients)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if gradient is None and not (some and id(parameter) in self.exempt):
                raise InputError(
                    f"fit: `{self.inference.name}` moves {', '.join(sorted(phase.moves))}, but its loss does not "
                    f"depend on `{name}`, which would never be trained; use it in forward, or freeze it with "
                    "requires_grad_(False)."
                )

    @torch.no_grad()
    def _save(self, moved: dict[str, nn.Parameter]) -> None:
        """Keeps what a phase is about to move, and all buffers (looked up anew: an algorithm may assign one)."""
        parameters: list[Tensor] = list(moved.values())
        torch._foreach_copy_([self.kept[id(parameter)] for parameter in parameters], parameters)
        self._keep_buffers()

    def _keep_buffers(self) -> None:
        self.buffers = {name: buffer.clone() for name, buffer in self.both.named_buffers()}

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter in self.both.parameters():
            parameter.copy_(self.kept[id(parameter)])
        for name, buffer in self.both.named_buffers():
            buffer.copy_(self.buffers[name])

    def _fail(self, batch: Batch, rows: Tensor | None, otherwise: str) -> NoReturn:
        """Names what is not finite, puts the last good parameters in place, and raises."""
        what = _name_term(self.vae, batch) or otherwise
        self._restore()
        named = "" if rows is None else f", batch of rows {rows[:5].tolist()}{' ...' if len(rows) > 5 else ''}"
        raise NonFiniteError(
            f"fit: {what} is not finite at step {self.step + 1}{named}. The parameters of the last good step are in "
            "place. Lower the learning rate, set clip_norm, or declare the scale with a bounded transform."
        )

    def check_parameters(self) -> None:
        """Raises where the last update left a parameter that is not finite."""
        for name, parameter in self.both.named_parameters():
            if not _finite(parameter):
                if self.compiled is not None and self.compiled.last_was_compiled:
                    self._keep_buffers()
                self._restore()
                raise NonFiniteError(
                    f"fit: the update of step {self.step} made `{name}` infinite or nan. The parameters of the last "
                    "good step are in place. Lower the learning rate or set clip_norm."
                )


def _of_prior(vae: VAE) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in vae.theta.items() if name.startswith("prior.")}


def _alike(one: Batch, other: Batch) -> bool:
    """Whether the fields of two minibatches have the same shapes and types."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype)
        for a, b in zip(one, other, strict=True)
    )


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


@torch.no_grad()
def _name_term(vae: VAE, batch: Batch) -> str | None:
    """Which of the three log densities is not finite at the batch; None where all are."""
    posterior = "log q(z|x), the posterior,"
    if batch.context is not None:  # of what is unknown every density is nan
        batch = batch.select(~batch.context.isnan().any(-1))
        if not batch.size:
            return None
    with pyro.validation_enabled(False):
        q = vae.encode(batch)
        try:
            z = q.sample()
        except RuntimeError:  # torch refuses to draw with a scale or a probability of nan
            return posterior
        terms = {
            posterior: q.log_prob(z),
            "log p(z), the prior,": vae.prior_given(batch).log_prob(z),
            "log p(x|z), the likelihood,": vae.log_likelihood(z, batch),
        }
    return next((name for name, value in terms.items() if not _finite(value)), None)
