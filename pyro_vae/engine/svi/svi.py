r"""Pyro's stochastic variational inference in compiled steps, for programs of static structure."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import SVI
from pyro.infer.util import torch_item
from pyro.optim import PyroOptim
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_vae.engine.compilation.cost import CAPTURE, MOST, WARM, Mode, compile_cost
from pyro_vae.engine.errors import CaptureError, CompilationError, without_shapes
from pyro_vae.engine.svi.call_kinds import kind_of, values_at, whole_numbers
from pyro_vae.engine.svi.losses import refuse_loss
from pyro_vae.engine.svi.programs import Evaluation, TrainingStep
from pyro_vae.engine.svi.stand_ins import Observation, zeros_for
from pyro_vae.engine.svi.surroundings import process, refuse_surroundings
from pyro_vae.errors import InputError

Program = TrainingStep | Evaluation
_LOGGER = logging.getLogger("pyro_vae")

_MANY = (
    f"CompiledSVI: arguments of more than {MOST} kinds; the rest runs uncompiled. Pass a number that changes from step "
    "to step as a tensor."
)
_MANY_VALUES = (
    "CompiledSVI: the program reads the values of an argument (such as lengths), with more than "
    f"{MOST} different ones; the rest runs uncompiled."
)
# Largest number of kinds of calls that are remembered.
_KEPT = 8 * MOST
# A program that becomes invalid after fewer calls is short-lived; after `MOST` of these in turn, compiling stops.
_WORTH = 10


@dataclass(eq=False)
class SVIKind:
    """Calls of one kind: their time while uncompiled, an observation of the program, and its compiled form."""

    seconds: float = 0.0
    observed: Observation | None = None
    settings: list[Any] = field(default_factory=list)
    program: Program | None = None
    ready: bool = False
    refusal: Exception | None = None
    fixed: tuple[int, ...] = ()

    @property
    def current(self) -> bool:
        """Whether what the program reads from elsewhere than its arguments is as it was after the last call."""
        return self.observed is None or self.settings == self.observed.settings.now()

    def remember(self) -> None:
        """Remembers what the program reads from elsewhere than its arguments; the program itself may change it."""
        if self.observed is not None:
            self.settings = self.observed.settings.now()


class _Kinds(list[SVIKind]):
    """Kinds of calls with arguments of one kind, and the places of the arguments whose values belong to the kind."""

    fixed: tuple[int, ...] = ()


class CompiledSVI(SVI):
    r"""`pyro.infer.SVI` with compiled steps: loss, gradients and the optimizer's update in one program.

    It replaces `SVI` for any Pyro model and guide whose structure does not depend on the values of data or draws. It
    uses the same parameter store and the states of the same `PyroOptim`, so `SVI` and `CompiledSVI` may alternate.

    The first call with arguments of a kind is Pyro's own: it checks shapes, and creates parameters and optimizers.
    The second call captures and compiles the program. Calls are of one kind if their arguments have the same
    structure, shapes, dtypes and device, and if what the program reads from elsewhere is the same: parts, modes and
    attributes of modules, options of the loss, global variables; see `Settings`.

    Tensor arguments may have other values at each call. So may other tensors that the model uses, if they are changed
    in place; another tensor in the place of one leads to a new capture. So does a change of values that the program
    reads as numbers (``.item()``, lengths, a boolean mask that selects), and another value of a number, string, flag
    or array among the arguments; so pass an annealed scale as a tensor.

    Where validation is enabled in Pyro, each call validates as Pyro's does: it raises Pyro's ``ValueError`` for an
    invalid value or parameter of a distribution, and changes nothing. Within a handler of Pyro, which is not
    captured, a call is refused or runs uncompiled; put the handler around model and guide.

    The updates of Adam, AdamW, Adagrad and SGD are part of the program, also with Pyro's learning rate schedulers.
    `ClippedAdam`, `DCTAdam`, gradient clipping and others take their own step with the gradients of the program; so
    does every optimizer after a change of an option other than the learning rate.

    If a loss or a gradient is not finite, a compiled step changes nothing and raises an error. (Pyro warns and
    continues with parameters that are nan.)

    Compiling takes about 10 to 30 s for each kind of calls, or a few seconds if the cache on disk has the program.
    `execution` and `compile_seconds` report how calls ran and how long compiling took; the logger ``pyro_vae``
    announces each compilation. At most 8 kinds are compiled; the rest runs uncompiled, with one warning.

    Attributes:
        fused: Whether the optimizer's update may be part of the program.
        compile_seconds: Wall time of all captures and compilations so far.

    Arguments:
        model: Model, a function of the arguments of `step`.
        guide: Guide, a function of the arguments of `step`.
        optim: A `PyroOptim`.
        loss: A `pyro.infer.ELBO`, or a function of model, guide and arguments that returns the loss. Losses whose
            names begin with ``Jit`` compile themselves, and are refused.
        loss_and_grads: See `pyro.infer.SVI`.
        num_samples: See `pyro.infer.SVI`, which deprecates it.
        num_steps: See `pyro.infer.SVI`, which deprecates it.
        compile: False runs everything as Pyro does. True compiles, and raises if that is not possible. ``"auto"``
            compiles once the uncompiled calls of a kind have taken as long as compiling takes, so it at most doubles
            the time; if compiling is not possible, it continues uncompiled with one warning.
        options: Further options of `pyro.infer.SVI`.

    Raises:
        CaptureError: From `step` or `evaluate_loss`, if the program is no fixed list of tensor operations (a branch on
            a value, ``.item()``, a shape that depends on a draw), with line and site; or if it uses trainable
            parameters that Pyro does not train.
        NonFiniteError: From `step`; the parameters of the last good step are in place.

    Reference:
        Bingham et al. 2019, Pyro: Deep Universal Probabilistic Programming.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_vae.engine import interpreted
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> svi = CompiledSVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> x = 3.0 + torch.randn(100)
        >>> with interpreted():  # without this block, the steps are compiled to machine code
        ...     losses = [svi.step(x) for _ in range(150)]
        >>> bool(abs(pyro.param("AutoNormal.locs.mean") - x.mean()) < 0.5)
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim,
        loss: Any,
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        compile: Mode = True,
        **options: Any,
    ) -> None:
        if compile not in (True, False, "auto"):
            raise InputError(f"CompiledSVI: `compile` is True, False or 'auto'; it is {compile!r}.")
        if compile is not False:
            refuse_loss(loss)
        super().__init__(model, guide, optim, loss, loss_and_grads, num_samples, num_steps, **options)
        self.compile = compile
        self._kinds: dict[Any, _Kinds] = {}
        self.fused, self.compile_seconds = True, 0.0
        self._short_lived, self._warned, self._reason = 0, False, ""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes a step on the loss; returns the loss, a number (or a tuple of numbers, if Pyro's loss is a tuple).

        Arguments:
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.

        Raises:
            CaptureError: See the class.
            NonFiniteError: See the class.
        """
        kind = self._kind("step", args, kwargs)
        if kind is None:
            return super().step(*args, **kwargs)
        if not self._prepared(kind, TrainingStep, args, kwargs):
            return self._uncompiled(kind, "step", args, kwargs)
        assert isinstance(kind.program, TrainingStep)
        if kind.program.given_gradients():  # Pyro adds those of the loss to them
            return super().step(*args, **kwargs)
        return kind.program(args, kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Returns an estimate of the loss, a number (or a tuple of numbers, if Pyro's loss is a tuple).

        Arguments:
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.

        Raises:
            CaptureError: See the class.
        """
        kind = self._kind("evaluate_loss", args, kwargs)
        if kind is None:
            return super().evaluate_loss(*args, **kwargs)
        if not self._prepared(kind, Evaluation, args, kwargs):
            return self._uncompiled(kind, "evaluate_loss", args, kwargs)
        assert kind.program is not None
        return kind.program(args, kwargs)

    @property
    def compiled(self) -> int:
        """Number of kinds of calls that run compiled so far."""
        return sum(kind.ready for same in self._kinds.values() for kind in same)

    @property
    def execution(self) -> str:
        """How calls run: ``"compiled in 12.3 s"``, ``"uncompiled"`` with the reason, or both for different kinds."""
        reason, kinds = self._reason, "" if self.compiled < 2 else f"{self.compiled} kinds of calls "
        if not self.compiled:
            if self.compile == "auto" and not reason:
                reason = "calls have not yet taken as long as compiling does"
            return f"uncompiled: {reason}" if reason else "uncompiled"
        compiled = f"{kinds}compiled in {self.compile_seconds:.1f} s"
        return f"{compiled}; others uncompiled: {reason}" if reason else compiled

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for copies and pickles, which compile for themselves."""
        return vars(self) | {"_kinds": {}}

    # ------------------------------------------------------------------ uncompiled calls

    def _uncompiled(self, kind: SVIKind, call: str, args: Any, kwargs: Any) -> Any:
        """Calls as in Pyro; the first call of a kind observes the program."""
        start = time.perf_counter()
        if kind.observed is not None:
            value = getattr(super(), call)(*args, **kwargs)
        else:
            seen = Observation(self.model, self.guide, self.loss, self.loss_and_grads)
            observed = self._observed_step if call == "step" else self._observed_loss
            value = observed(seen, args, kwargs)
            kind.observed = seen
        kind.remember()
        kind.seconds += time.perf_counter() - start
        return value

    def _observed_step(self, seen: Observation, args: Any, kwargs: Any) -> Any:
        """Takes Pyro's step, with an observation of the program but not of the optimizer."""
        with seen:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        parameters = list({id(tensor): tensor for tensor in seen.sites.values()}.values())
        self.optim(parameters)
        zeros_for(parameters)
        return type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss)

    def _observed_loss(self, seen: Observation, args: Any, kwargs: Any) -> Any:
        with seen:
            return super().evaluate_loss(*args, **kwargs)

    # ------------------------------------------------------------------ compiled calls

    def _kind(self, call: str, args: Any, kwargs: Any) -> SVIKind | None:
        """Returns the kind of a call; None if the call must run as in Pyro."""
        if self.compile is False:
            return None
        try:
            refuse_surroundings(call)
            own = kind_of((self.model, self.guide, self.loss, self.loss_and_grads))
            key: Any = (call, own, kind_of(args), kind_of(kwargs), process())
        except CaptureError as error:
            if self.compile is True:
                raise
            self._warn(error)
            return None
        same = self._kinds.get(key)  # hashing is slow, so once
        fixed = () if same is None else same.fixed
        if fixed:
            key = (key, values_at(args, kwargs, fixed))
            same = self._kinds.get(key)
        if same is None:
            if len(self._kinds) >= _KEPT:
                self._warn(_TooMany(_MANY))
                return None
            same = self._kinds[key] = _Kinds()
        kind = next((k for k in same if k.current), None)
        if kind is None:
            same[:] = _unlike(same)
            if len(same) >= _KEPT:
                self._warn(_TooMany(_MANY))
                return None
            kind = SVIKind(fixed=fixed)
            same.append(kind)
        if kind.refusal is not None:
            if self.compile is True and not isinstance(kind.refusal, _TooMany):
                raise kind.refusal
            return None
        return kind

    def _prepared(self, kind: SVIKind, make: type[Program], args: Any, kwargs: Any) -> bool:
        """Returns whether the compiled program of a kind can be used now; makes the program if that is due."""
        if kind.program is not None and not kind.program.valid():
            self._short_lived = self._short_lived + 1 if kind.program.calls < _WORTH else 0
            self.fused = self.fused and not kind.program.options_changed
            kind.program, kind.observed, kind.ready = None, None, False
        if kind.ready:
            return True
        if kind.program is None and kind.observed is not None and kind.observed.stale:
            kind.observed = None
        if kind.observed is None or (self.compile == "auto" and kind.seconds < WARM + CAPTURE):
            return False
        start = time.perf_counter()
        try:
            with torch.random.fork_rng():  # tracing draws
                made = self._made(kind, make, args, kwargs)
            kind.remember()
            return made
        except Exception as error:
            kind.refusal, kind.program = _as_refusal(error), None
            if self.compile is True and not isinstance(error, _TooMany):
                raise kind.refusal from (error if kind.refusal is not error else error.__cause__)
            self._warn(kind.refusal)
            return False
        finally:
            self.compile_seconds += time.perf_counter() - start

    def _made(self, kind: SVIKind, make: type[Program], args: Any, kwargs: Any) -> bool:
        if kind.program is None:
            kinds = [k for same in self._kinds.values() for k in same]
            if sum(k.program is not None for k in kinds) >= MOST:
                raise _TooMany(_MANY_VALUES if kind.fixed else _MANY)
            if self._short_lived >= MOST:
                raise _TooMany(
                    "CompiledSVI: parameters, modules or optimizers are replaced, or tensors that are read as numbers "
                    "change, again and again; it runs uncompiled. Change tensors in place, and do not read them."
                )
            assert kind.observed is not None
            kind.observed.require_registered()
            # One fake-tensor mode for the whole capture is faster than one for each operation.
            with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
                kind.program = self._captured(kind, make, args, kwargs)
        seconds = compile_cost(kind.program.known())
        if self.compile == "auto" and kind.seconds < seconds:
            return False
        what = "a step" if make is TrainingStep else "the loss"
        _LOGGER.info("CompiledSVI: compiling %s, which takes about %.0f s", what, seconds)
        kind.program.compile()
        kind.ready = True
        return True

    def _captured(self, kind: SVIKind, make: type[Program], args: Any, kwargs: Any) -> Program:
        """Returns the program of a kind; if it reads values, those of buffers and whole numbers become constants."""
        assert kind.observed is not None
        numbers = () if kind.fixed else whole_numbers(args, kwargs)
        attempts = [(False, kind.fixed), (True, kind.fixed), *((True, (i,)) for i in numbers), (True, numbers)]
        refusals = []
        for hold, fixed in attempts[: None if len(numbers) > 1 else -1]:
            if (hold, fixed) == (True, kind.fixed) and not kind.observed.constant:
                continue
            try:
                program = make(self, kind.observed, args, kwargs, hold, fixed)
            except Exception as error:  # the first says most
                refusals.append(error)
                continue
            if fixed != kind.fixed:
                self._fix(kind, fixed, args, kwargs)
            return program
        raise refusals[0]

    def _fix(self, kind: SVIKind, fixed: tuple[int, ...], args: Any, kwargs: Any) -> None:
        """Has the values of some arguments belong to a kind."""
        key = next(key for key, same in self._kinds.items() if kind in same)
        self._kinds[key].remove(kind)
        kind.fixed = self._kinds[key].fixed = fixed
        self._kinds.setdefault((key, values_at(args, kwargs, fixed)), _Kinds()).append(kind)

    def _warn(self, error: Exception) -> None:
        self._reason = str(error).removeprefix("CompiledSVI: ")
        if not self._warned:
            self._warned = True
            warnings.warn(f"{error} (CompiledSVI continues uncompiled)", stacklevel=4)


def _as_refusal(error: Exception) -> Exception:
    """Returns an error of a capture or compilation as one that says that the program cannot be captured."""
    if isinstance(error, CaptureError | CompilationError):
        return error
    reason = f"{type(error).__name__}: {without_shapes(error)}"
    return CaptureError(f"CompiledSVI: the program cannot be captured, since a trial run of it fails: {reason}")


class _TooMany(CaptureError):
    """More kinds of calls or programs than are compiled or remembered."""


def _unlike(kinds: list[SVIKind]) -> list[SVIKind]:
    """Returns the first kind of each set of equal settings: an uncompiled program may set some as it runs."""
    return [k for i, k in enumerate(kinds) if all(k.settings != other.settings for other in kinds[:i])]
