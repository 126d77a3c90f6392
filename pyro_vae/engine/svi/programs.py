r"""The two programs of stochastic variational inference: a step, and an evaluation of the loss."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyro_vae.engine.capture.capture import Capture, capture
from pyro_vae.engine.compilation.backend import Executable, compile_graph, known
from pyro_vae.engine.errors import CaptureError
from pyro_vae.engine.step.step import Step
from pyro_vae.engine.svi.call_kinds import as_examples, as_given, contiguous, fixed_at
from pyro_vae.engine.svi.pyro_optimizer import MergedOptimizer
from pyro_vae.engine.svi.settings import Holder
from pyro_vae.engine.svi.stand_ins import Observation, StandIns, total
from pyro_vae.errors import NonFiniteError
from pyro_vae.runtime.interrupts import uninterrupted

# The name under which stand-ins enter a capture.
_NAME = "program"


class _Bound:
    """A captured program for certain tensors of the parameter store."""

    def __init__(self, svi: SVI, observed: Observation, hold: bool, fixed: Sequence[int]) -> None:
        constant = observed.constant if hold else ()
        self._svi, self.stand_ins = svi, StandIns(observed.used | observed.sites, observed.modules, constant)
        self.calls, self.modules = 0, observed.modules
        own = {id(tensor) for tensor in self.stand_ins.tensors.values()}
        # Frozen parameters are constants of the program, not arguments.
        self._settings, self._current, self._owners = observed.settings, observed.current, observed.owners
        self._held: list[tuple[Holder, Any, Any]] = [
            (module._parameters, name, p)
            for module in self.modules
            for name, p in module._parameters.items()
            if p is not None and id(p) not in own
        ]
        self._held += self.stand_ins.held
        self._fixed = fixed
        self._all = [*self.stand_ins.tensors.values(), *(p for _, _, p in self._held)]
        self._kinds = [(t.dtype, t.device, t.requires_grad) for t in self._all]

    def _hold(self, captured: Capture) -> None:
        """Has the program end with the tensors that it holds, if others are put in their place."""
        held = {tensor.untyped_storage().data_ptr() for tensor in captured.held}
        for holder, name, value in self._settings.tensors:
            if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() in held:
                self._held.append((holder, name, value))

    @property
    def _captured(self) -> Capture:
        raise NotImplementedError

    def _raise_invalid(self, args: Any, kwargs: Any) -> NoReturn:
        """Raises Pyro's error for a distribution with a parameter or a value that is not valid."""
        self._validate(args, kwargs)
        raise ValueError(
            "CompiledSVI: a distribution got a parameter or a value outside its constraints, at a draw that cannot be "
            "repeated. The parameters of the last good step are in place. Take a step with compile=False to see the "
            "site."
        )

    def _validate(self, args: Any, kwargs: Any) -> None:
        """Has Pyro validate all distributions, without side effects: its error says more than that of an operation."""
        with self._undone(), pyro.validation_enabled(self.stand_ins.validated):
            self._svi.loss(self._svi.model, self._svi.guide, *args, **kwargs)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """A block without gradients, at whose end buffers, parameter store and random state are as before."""
        buffers = [buffer for module in self.modules for buffer in module._buffers.values() if buffer is not None]
        before = [buffer.clone() for buffer in buffers]
        try:
            with torch.random.fork_rng(), poutine.block(), torch.no_grad():
                yield
        finally:
            with torch.no_grad():
                for buffer, old in zip(buffers, before, strict=True):
                    buffer.copy_(old)

    def _same_tensors(self) -> bool:
        if any(read.changed() for read in self._captured.reads):
            return False
        store, own = pyro.get_param_store()._params, self.stand_ins.tensors.items()
        if any((store.get(n) if n not in self._owners else self._current(n)) is not t for n, t in own):
            return False
        if any(holder.get(name) is not tensor for holder, name, tensor in self._held):
            return False
        return [(t.dtype, t.device, t.requires_grad) for t in self._all] == self._kinds

    def _named(self, error: CaptureError) -> CaptureError:
        """Returns the error with the names of the store in place of those of the stand-ins."""
        names = {f"{_NAME}.{key}": name for name, key in self.stand_ins.keys.items()}
        return CaptureError(re.sub(rf"{_NAME}\.p\d+", lambda m: names.get(m[0], m[0]), str(error)))


class TrainingStep(_Bound):
    """A step on the loss as one graph, with the optimizer's update if its rule is known.

    Arguments:
        svi: Object with the loss, the model and the guide.
        observed: Observation of an uncompiled step.
        args: Example arguments.
        kwargs: Example keyword arguments.
        hold: Whether buffers that the program does not change are constants of it, whose values it may read.
        fixed: Places of the arguments that are constants of it, whose values belong to the kind of the call.

    Raises:
        CaptureError: See `capture`.
    """

    def __init__(
        self,
        svi: SVI,
        observed: Observation,
        args: Any,
        kwargs: Any,
        hold: bool = False,
        fixed: Sequence[int] = (),
    ) -> None:
        super().__init__(svi, observed, hold, fixed)
        for name in self._hooked():
            raise CaptureError(
                f"CompiledSVI: `{name}` has a hook on its gradient (register_hook), which compiled steps do not call; "
                "remove it, or use compile=False."
            )
        self._fuse = bool(getattr(svi, "fused", True))
        trained = {name: t for name, t in observed.sites.items() if not observed.reached or id(t) in observed.reached}
        # As in Pyro: unreached parameters keep a gradient of zero if they have one, else they have none.
        idle = {name: t for name, t in observed.sites.items() if name not in trained and t.grad is not None}
        self._warn_untrained(set(observed.sites) - set(trained) - set(idle))
        if not trained:
            raise CaptureError("CompiledSVI: the loss depends on no trainable parameter, so there is nothing to step.")
        keys = self.stand_ins.keys
        once = {keys[name]: name for name in reversed(trained | idle)}
        self._moved = {name: observed.sites[name] for name in reversed(once.values())}
        self._versions: list[Any] = []
        still = [keys[name] for name in idle]

        def program(*inputs: Any) -> Any:
            args, kwargs = as_given(inputs)
            surrogate, loss, valid = self.stand_ins.run(svi.loss_and_grads, svi.model, svi.guide, *args, **kwargs)
            idle = [cast(Tensor, self.stand_ins._parameters[key]) for key in still]
            return total(surrogate, loss, valid, idle), loss, valid

        self._program: Callable[..., Any] = program
        self._capture(as_examples(fixed_at(contiguous(args, kwargs), self._fixed)))

    def _capture(self, inputs: Sequence[Any]) -> None:
        self._merged = MergedOptimizer(self._svi.optim, list(self._moved.values()), self._fuse)
        wanted = [f"{_NAME}.{self.stand_ins.keys[name]}" for name in self._moved]
        try:
            self._step = Step(self._program, {_NAME: self.stand_ins}, inputs, wanted, self._merged.ledger)
        except CaptureError as error:
            raise self._named(error) from None
        self._hold(self._step.captured)
        self._addresses: list[int] = []
        self._changed: set[int] = set()

    @property
    def _captured(self) -> Capture:
        return self._step.captured

    def compile(self) -> float:
        """Compiles; returns the seconds it took."""
        return self._step.compile()

    def known(self) -> str:
        """Returns where the compiled program is cached; see `Step.known`."""
        return self._step.known()

    @property
    def options_changed(self) -> bool:
        """Whether an option of the optimizer that is part of the program, so not the learning rate, was changed."""
        return self._fuse and self._merged.options_changed

    def valid(self) -> bool:
        """Returns whether the program still fits the store, the optimizers and their options."""
        if self.options_changed or self._merged.replaced or not self._same_tensors() or self._hooked():
            return False
        return self._merged.follow()

    def _hooked(self) -> list[str]:
        tensors = self.stand_ins.tensors.items()
        return [name for name, t in tensors if t._backward_hooks or t._post_accumulate_grad_hooks]

    def given_gradients(self) -> bool:
        """Returns whether the parameters have gradients of the user's, to which Pyro adds those of the loss."""
        gradients = [t.grad for t in self._moved.values()]
        versions = [None if g is None else (id(g), g._version) for g in gradients]
        if versions == self._versions:
            return False
        if any(bool(g.any()) for g in gradients if g is not None):
            return True
        self._versions = versions
        return False

    def __call__(self, args: Any, kwargs: Any) -> Any:
        """Takes the step; returns the loss.

        Raises:
            ValueError: If a parameter or a value of a distribution is not valid, as in Pyro's step.
            NonFiniteError: If the loss or its gradient is not finite.
        """
        self.calls += 1
        self.stand_ins.refresh()
        inputs = fixed_at(contiguous(args, kwargs, self._memory()), self._fixed)
        with uninterrupted():
            try:
                _, loss, valid = self._step(inputs)
            except (RuntimeError, IndexError):
                self._validate(args, kwargs)
                raise
            failed = self._merged.ledger.failed
            fine = not bool(failed)
            if fine:
                self._merged.advance()
            else:
                failed.zero_()
        if not fine:
            self._blame(bool(valid), args, kwargs)
        return _numbers(loss)

    def _memory(self) -> set[int]:
        """Returns the addresses of the storages that the step changes in place."""
        own = [*self.stand_ins.tensors.values(), *(b for b in self.stand_ins._buffers.values() if b is not None)]
        addresses = [tensor.data_ptr() for tensor in own]
        if addresses != self._addresses:  # assigned anew
            self._addresses = addresses
            self._changed = {tensor.untyped_storage().data_ptr() for tensor in own} - {0}
        return self._changed

    def _blame(self, valid: bool, args: Any, kwargs: Any) -> NoReturn:
        """Raises the error that says what was not valid or not finite; buffers and random state do not change."""
        for name, tensor in self.stand_ins.tensors.items():
            if not bool(tensor.isfinite().all()):  # from an uncompiled step, or set by the user
                raise NonFiniteError(
                    f"CompiledSVI: the parameter `{name}` was not finite before the step; begin again from other "
                    "values, with a new optimizer."
                )
        if not valid:
            self._raise_invalid(args, kwargs)
        try:
            with self._undone(), pyro.validation_enabled(False):
                what = _site_not_finite(self._svi.model, self._svi.guide, args, kwargs) or _UNKNOWN
        except (ValueError, RuntimeError):  # some operations raise at values that are not finite
            what = _UNKNOWN
        raise NonFiniteError(
            f"CompiledSVI: {what} is not finite. The parameters of the last good step are in place. Lower the learning "
            "rate, or bound the scales by a constraint."
        )

    @staticmethod
    def _warn_untrained(untrained: set[str]) -> None:
        if untrained:
            warnings.warn(
                f"CompiledSVI: the loss does not depend on {', '.join(f'`{n}`' for n in sorted(untrained))}; as with "
                "Pyro's SVI, they are not trained.",
                stacklevel=7,
            )


class Evaluation(_Bound):
    """The loss, without gradients, as one graph.

    Arguments:
        svi: Object with the loss, the model and the guide.
        observed: Observation of an uncompiled evaluation.
        args: Example arguments.
        kwargs: Example keyword arguments.
        hold: Whether buffers that the program does not change are constants of it, whose values it may read.
        fixed: Places of the arguments that are constants of it, whose values belong to the kind of the call.

    Raises:
        CaptureError: See `capture`.
    """

    def __init__(
        self,
        svi: SVI,
        observed: Observation,
        args: Any,
        kwargs: Any,
        hold: bool = False,
        fixed: Sequence[int] = (),
    ) -> None:
        super().__init__(svi, observed, hold, fixed)

        @torch.no_grad()
        def program(*inputs: Any) -> Any:
            args, kwargs = as_given(inputs)
            return self.stand_ins.run(svi.loss, svi.model, svi.guide, *args, **kwargs)[1:]

        inputs = as_examples(fixed_at(contiguous(args, kwargs), self._fixed))
        try:
            self._own = capture(program, {_NAME: self.stand_ins}, inputs)
        except CaptureError as error:
            raise self._named(error) from None
        self._hold(self._own)
        with torch.random.fork_rng():
            self._examples = self._arguments(inputs)
        self._run: Executable = lambda flat: self._captured.graph(*flat)

    @property
    def _captured(self) -> Capture:
        return self._own

    def _arguments(self, inputs: Sequence[Any]) -> list[Tensor]:
        own = self.stand_ins
        parameters = {f"{_NAME}.{key}": tensor.detach() for key, tensor in own.named_parameters()}
        buffers = {f"{_NAME}.{key}": tensor for key, tensor in own.named_buffers()}
        return self._captured.arguments(parameters, buffers, inputs, self._captured.noise())

    def compile(self) -> float:
        """Compiles; returns the seconds it took."""
        compiled = compile_graph(self._captured.graph, self._examples)
        self._run = compiled.run
        return compiled.seconds

    def known(self) -> str:
        """Returns where the compiled program is cached; see `Step.known`."""
        return known(self._captured.graph, self._examples)

    options_changed = False

    def valid(self) -> bool:
        """Returns whether the program still fits the store."""
        return self._same_tensors()

    @torch.no_grad()
    def __call__(self, args: Any, kwargs: Any) -> Any:
        """Returns the loss.

        Raises:
            ValueError: If a parameter or a value of a distribution is not valid, as in Pyro.
        """
        self.calls += 1
        self.stand_ins.refresh()
        inputs = fixed_at(contiguous(args, kwargs), self._fixed)
        try:
            outputs = self._captured.outputs(self._run(self._arguments(inputs)))
        except (RuntimeError, IndexError):
            self._validate(args, kwargs)
            raise
        loss, valid = outputs.result
        if not valid:
            self._raise_invalid(args, kwargs)
        for name, value in outputs.buffers.items():
            self.stand_ins.get_buffer(name.removeprefix(f"{_NAME}.")).copy_(value)
        return _numbers(loss)


_UNKNOWN = "the loss or its gradient"


def _site_not_finite(model: Any, guide: Any, args: Any, kwargs: Any) -> str | None:
    """Returns a description of the first site whose log density is not finite; None if there is none."""
    of_guide = poutine.trace(guide).get_trace(*args, **kwargs)
    of_model = poutine.trace(poutine.replay(model, trace=of_guide)).get_trace(*args, **kwargs)
    for name, trace in (("guide", of_guide), ("model", of_model)):
        trace.compute_log_prob()
        for site, node in trace.nodes.items():
            log_prob = node.get("log_prob")
            if isinstance(log_prob, Tensor) and not bool(log_prob.isfinite().all()):
                return f"the log density of site `{site}` of the {name}"
    return None


def _numbers(loss: Any) -> Any:
    """Returns the loss as numbers, as Pyro does."""
    if isinstance(loss, tuple):
        return type(loss)(_numbers(value) for value in loss)
    return loss.item() if isinstance(loss, Tensor) else loss
