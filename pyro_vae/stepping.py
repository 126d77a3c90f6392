r"""The optimizer's side of training: takes steps, and keeps the last good parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, NoReturn

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.compiled_stepping import CompiledSteps, Plan
from pyro_vae.engine import Ledger, Lifted
from pyro_vae.engine.price import Busy, Mode
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference import Inference, Loss, Phase
from pyro_vae.interrupts import uninterrupted
from pyro_vae.vae import VAE

# Compiled steps between two looks whether all was finite; elsewhere than on a CPU each look waits for the device.
_LOOK = {"cpu": 1}
_LOOK_ELSEWHERE = 16

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class _Taken(NamedTuple):
    """A compiled step at which nobody has looked yet."""

    batch: Batch
    rows: Tensor | None
    noise: dict[int, list[Tensor]]
    bound: Tensor | None


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
        self.look = _LOOK.get(vae.device.type, _LOOK_ELSEWHERE)
        self.taken: list[_Taken] = []
        self.step, self.time, self.bound = 0, 0.0, float("nan")
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
        """Takes one step: every phase's loss, gradient and update."""
        if self.schedule is not None:
            factor = float(self.schedule(self.step))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
        compiled_before = self.compiled is not None and self.compiled.last_was_compiled
        plan = None if self.compiled is None else self.compiled.plan_for(batch, self.step)
        if plan is None:
            self.settle()
            if compiled_before:
                self._keep_buffers()
        start = time.perf_counter()
        if plan is None:
            self.bound = self._take(batch, rows)
        else:
            noise: dict[int, list[Tensor]] = {}
            with uninterrupted():
                self.taken.append(_Taken(batch, rows, noise, plan.take(batch, noise)))
        seconds = time.perf_counter() - start
        if self.compiled is not None and plan is None:
            self.compiled.timed(batch, seconds)
        self.step += 1
        self.time += seconds
        self.bounds.append(self.bound)
        self.samples.append((self.samples[-1] if self.samples else 0) + batch.size)
        self.seconds.append(self.time)
        if len(self.taken) >= self.look:
            self.settle()

    def settle(self) -> None:
        """Looks at the compiled steps since the last look: records their bounds, or fails at the first that did."""
        taken, self.taken = self.taken, []
        if not taken or self.compiled is None or self.ledger is None:
            return
        start, n = time.perf_counter(), len(taken)
        failed = bool(self.ledger.failed)
        self.time += time.perf_counter() - start
        moving = sum([bool(parameters) for _, parameters in self.phases])
        if failed:
            good = (int(self.ledger.done) - self.compiled.settled) // moving
            for record in (self.bounds, self.samples, self.seconds):
                del record[len(record) - n + good :]
            self.step -= n - good
            self._record(taken[:good])
            self._keep_buffers()  # nothing has changed them since
            self._fail(taken[good].batch, taken[good].rows, self._bad_gradient(taken[good]))
        self.compiled.settled += n * moving
        self._record(taken)

    def _record(self, taken: list[_Taken]) -> None:
        """Records what compiled steps, the last ones, gave."""
        n = len(taken)
        bounds = [step.bound for step in taken if step.bound is not None]
        if bounds:
            self.bounds[-n:] = [float(bounds[0])] if n == 1 else torch.stack(bounds).tolist()
            self.bound = self.bounds[-1]
        if n:
            before = self.seconds[-n - 1] if len(self.seconds) > n else 0.0
            self.seconds[-n:] = [before + (self.time - before) * (i + 1) / n for i in range(n)]

    def _bad_gradient(self, taken: _Taken) -> str:
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
        return "uncompiled" if self.compiled is None or not self.compiled.said else self.compiled.said

    @property
    def compile_seconds(self) -> float:
        """What capturing and compiling took."""
        return 0.0 if self.compiled is None else self.compiled.seconds

    def finish(self) -> None:
        """Has the optimizer know how many steps were taken."""
        if self.compiled is not None:
            self.compiled.finish()

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
