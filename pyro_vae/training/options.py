r"""The settings of a training run, checked before anything is done."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import nn

from pyro_vae.engine.compilation.cost import Mode
from pyro_vae.errors import InputError
from pyro_vae.runtime.precision import Precision
from pyro_vae.training.schedules import SCHEDULE

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimizer from parameters."""

Compile = Mode | Literal["full"]

_EPOCHS = 50


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Returns the default optimizer: Adam with a learning rate of 0.001."""
    return torch.optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True)
class Training:
    r"""The settings of a training run: how long, by which optimizer, what is watched, and how the steps run.

    Attributes:
        optimizer: Makes the optimizer from the parameters, such as ``lambda p: torch.optim.Adam(p, lr=1e-2)``. For R
            VAEs also a list of R such functions, whose optimizers differ only in numbers.
        epochs: Passes over the data; the last minibatch of each may be short. Without ``steps`` the default is 50.
        steps: Number of minibatches, in place of ``epochs``.
        batch_size: M, the number of data in a minibatch.
        schedule: Factor of the optimizer's learning rates at each step, counted from 0. It may change options of the
            optimizer, modes of modules and which parameters are trained, but no parameter's value.
        clip_norm: Largest norm of the gradient of all parameters that a phase moves.
        validation_every: Steps between two evaluations of the validation data; by default one epoch.
        early_stopping: Patience: number of evaluations without improvement after which training stops. It waits for
            the end of a warm-up of the algorithm, and so does ``keep="best"``.
        keep: Which parameters remain: those of the last step, or those of the best validation bound.
        compile: Whether the steps run as compiled programs: loss, gradients, clipping and update in one. At the same
            noise a compiled step equals the uncompiled one to rounding (draws of Bernoulli, categorical and dropout
            kind come from another stream). ``"auto"`` compiles where that saves time, judged by how long the first
            steps take, so that one seed may give two results; where the model cannot be compiled, it warns. True
            compiles always; a model that cannot be compiled is an error. ``"full"`` is True for minibatches like the
            first one, and ``"auto"`` for others, such as a short last one. The first step is never compiled. Compiled
            programs are kept on disk. R VAEs run as one stacked program; where they cannot, ``"auto"`` trains them
            one by one, with a warning, and True is an error. False trains them one by one, uncompiled.
        precision: Precision of the networks' products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``; see `networks_in`.
        drop_last: Whether a short last minibatch of an epoch is left out: batch statistics of few rows are poor. A
            `DataLoader` has its own setting.
        start_at_data: Whether the likelihood starts at the location and scale of the training data: the bias of its
            head and learned parameters become those of a model without latents, see `pyro_vae.distributions.start`.
            Only what is as it was drawn at construction is set. Networks and initial values of your own, and a VAE
            that was trained or restored, stay as they are; so do families without a rule.
        check_support: Whether data outside the likelihood's support are refused. Only without this check can a
            Bernoulli be trained on grey levels, and its "log-likelihood" is then no log-likelihood.
        divergence: What follows a loss or gradient that is not finite: an error (``"raise"``), or a `History` whose
            remark says what was not finite (``"stop"``). The last good parameters are in place either way.
        callback_steps: Steps after which the callback is called; by default all. Compiled steps run faster where
            nothing comes between them.
        checkpoint_seconds: Least time between two writings of the checkpoint; it is written at the end too.

    Raises:
        InputError: For a setting that no run could use.

    Example:
        >>> training = Training(epochs=20, batch_size=200, clip_norm=10.0)
        >>> training.epochs, training.keep
        (20, 'last')
        >>> Training().epochs
        50
    """

    optimizer: OptimizerFactory | Sequence[OptimizerFactory] = adam
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 100
    schedule: Callable[[int], float] | None = None
    clip_norm: float | None = None
    validation_every: int | None = None
    early_stopping: int | None = None
    keep: Literal["best", "last"] = "last"
    compile: Compile = "auto"
    precision: Precision = "float32"
    start_at_data: bool = True
    check_support: bool = True
    drop_last: bool = False
    divergence: Literal["raise", "stop"] = "raise"
    callback_steps: Collection[int] | None = None
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "validation_every", "early_stopping"):
            self._set(name, _count(name, getattr(self, name)))
        if self.epochs is not None and self.steps is not None:
            raise InputError("Training: give `epochs` or `steps`, not both.")
        if self.epochs is None and self.steps is None:
            self._set("epochs", _EPOCHS)
        factories = self.optimizer if isinstance(self.optimizer, list | tuple) else [self.optimizer]
        for factory in factories:
            if not callable(factory):
                raise InputError(
                    "Training: `optimizer` is a function that makes one from parameters, such as lambda p: "
                    f"torch.optim.Adam(p, lr=1e-3), or a list of such functions; got `{said(factory)}`."
                )
        schedule: Any = self.schedule
        if schedule is not None and not callable(schedule):
            raise InputError(f"Training: {SCHEDULE}; got `{said(schedule)}`.")
        norm: Any = self.clip_norm
        if norm is not None and not (isinstance(norm, Real) and norm is not True and float(norm) > 0):
            raise InputError(f"Training: `clip_norm` is a positive number, or None for no clipping; got `{norm!r}`.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                *listed, last = (f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in choices)
                raise InputError(f"Training: `{name}` is {', '.join(listed)} or {last}, got `{getattr(self, name)!r}`.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def total(self, per_epoch: int) -> int:
        """Returns the number of steps of the run.

        Arguments:
            per_epoch: Minibatches in an epoch.
        """
        return self.steps if self.steps is not None else (self.epochs or 0) * per_epoch

    @property
    def needs_validation(self) -> bool:
        """Whether the run depends on validation data."""
        return self.early_stopping is not None or self.keep == "best"


_CHOICES: dict[str, tuple[Any, ...]] = {
    "keep": ("best", "last"),
    "compile": ("auto", "full", True, False),
    "precision": get_args(Precision),
    "drop_last": (False, True),
    "start_at_data": (False, True),
    "divergence": ("raise", "stop"),
}


def _count(name: str, value: Any) -> int | None:
    """A count as an int; None where it may be left out and is."""
    if value is None and name != "batch_size":
        return None
    count = whole(value)
    if count is None or count < 1:
        raise InputError(f"Training: `{name}` is a positive integer, got `{value!r}`.")
    return count


def whole(value: Any) -> int | None:
    """Returns an integer of any kind, NumPy's too, as an int; None for anything else, a bool among them."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def said(value: Any) -> str:
    """Returns what to call a value in an error: its name where it has one."""
    if isinstance(value, str):
        return repr(value)
    return str(getattr(value, "__name__", type(value).__name__))
