r"""The training loop: one function for every inference algorithm."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference import Inference, Loss, Phase
from pyro_vae.minibatches import Minibatches, Transform, as_batch, check_values, minibatches
from pyro_vae.modes import isolated, switched
from pyro_vae.progress import steps_bar
from pyro_vae.vae import VAE
from pyro_vae.validation import Watch

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class History:
    """What a training run was like, step by step.

    Attributes:
        bound: Bound on log p(x) of each step's minibatch before its update, nats per datum, shape ``(steps,)``; nan
            where the algorithm has none.
        samples: Data seen up to and including each step.
        seconds: Wall time of training up to each step, without validation.
        validation_step: Steps after which the validation bound was evaluated.
        validation_bound: ELBO of the validation data there, nats per datum.
        stopped: ``"completed"``, ``"early stopping"`` or ``"interrupted"``.
        best_step: Step of the best validation bound; None without validation.
    """

    bound: NDArray[np.float64]
    samples: NDArray[np.int64]
    seconds: NDArray[np.float64]
    validation_step: NDArray[np.int64]
    validation_bound: NDArray[np.float64]
    stopped: str = "completed"
    best_step: int | None = None

    @property
    def steps(self) -> int:
        """The number of steps taken."""
        return len(self.bound)

    def smoothed(self, window: int) -> NDArray[np.float64]:
        """Returns the mean bound of each ``window`` steps, shape ``(steps // window,)``."""
        whole = self.steps // window * window
        return self.bound[:whole].reshape(-1, window).mean(axis=1)


def fit(
    vae: VAE,
    x: Any,
    inference: Inference,
    *,
    optimizer: OptimizerFactory,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    seed: int = 0,
    transform: Transform | None = None,
    weights: Any = None,
    validation: Any = None,
    validation_every: int | None = None,
    early_stopping: int | None = None,
    keep: Literal["best", "last"] = "last",
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    callback: Callable[[int, Mapping[str, float]], None] | None = None,
    check_support: bool = True,
    progress: bool | str = False,
) -> History:
    r"""Trains a VAE in place by any inference algorithm.

    The global random states are left as they are found, and so is Pyro's param store. At a loss or gradient that is
    not finite, training stops and puts back the parameters at which both were finite last, before their update.
    Ctrl-C ends the run cleanly.

    Arguments:
        vae: The VAE; trained in place, on the device on which it lies.
        x: Data of shape ``(N, *event_shape)``: a Tensor, ndarray, DataFrame, `Batch`, `torch.utils.data.Dataset` or
            `DataLoader` (whose items, or first item each, are x). All but a `DataLoader` lie on the device as a
            whole and are shuffled there; a data set that does not fit is streamed.
        inference: The algorithm; its own parameters are optimised beside the VAE's.
        optimizer: Makes the optimizer from the parameters, such as ``lambda p: torch.optim.Adam(p, lr=1e-3)``.
        epochs: Passes over the data; the last batch of each may be short.
        steps: Or: number of minibatches. Exactly one of the two.
        batch_size: M.
        seed: Of shuffling, of ``transform`` and of the algorithm's draws; the first two have a stream of their own,
            so that all algorithms see the same minibatches.
        transform: Applied to the x of each minibatch with a seeded generator, such as a dynamic binarisation.
        weights: Weight of each datum in every mean over data, shape ``(N,)``; only their ratios matter.
        validation: Data in any form but a `DataLoader`, whose ELBO is evaluated during training.
        validation_every: Steps between two such evaluations; default: one epoch.
        early_stopping: Patience: evaluations without improvement after which training stops.
        keep: Which parameters remain: those of the last step, or those of the best validation ELBO.
        schedule: Factor of the optimizer's learning rates at each step, counted from 0.
        clip_norm: Largest norm of the gradient of all parameters that a phase moves.
        callback: Called after each step with its number, from 1, and ``bound``, ``samples``, ``seconds``, and
            ``validation_bound`` where it was evaluated.
        check_support: Whether data outside the likelihood's support are refused; only without this check can a
            Bernoulli be trained on grey levels, and its "log-likelihood" is then none.
        progress: Whether to show a progress bar (on a terminal only); a string is its title.

    Returns:
        The `History`.

    Raises:
        InputError: For data, arguments or an algorithm that do not fit, before the first step; and where a parameter
            that the algorithm claims to move has no gradient at the first step.
        NonFiniteError: For a loss or gradient that is not finite: names the term, the step and the batch.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> from pyro_vae.inference import AEVB
        >>> x = torch.eye(8).repeat(10, 1)
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (8,), given=mlp(2, 10)))
        >>> history = fit(vae, x, AEVB(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), epochs=20, batch_size=20)
        >>> history.steps, history.stopped
        (80, 'completed')
    """
    counts = {"epochs": epochs, "steps": steps, "batch_size": batch_size}
    counts |= {"validation_every": validation_every, "early_stopping": early_stopping}
    _check_arguments(inference, optimizer, counts, keep, validation is not None)
    inference.check(vae)
    source = minibatches(vae, x, batch_size, seed, transform, weights, check_support)
    if vae.size is not None and vae.size != source.size:
        raise InputError(f"fit: the VAE was declared with size={vae.size}, but there are {source.size} data.")
    held_out = None
    if validation is not None:
        with isolated(seed, "data"):
            held_out = as_batch(validation, "validation")
        held_out = held_out.to(vae.device, vae.dtype)
        check_values(vae, held_out, check_support, "validation data")
    total = steps if steps is not None else (epochs or 0) * source.steps
    run = _Run(vae, inference, optimizer, schedule, clip_norm, check_support)
    watch = Watch(vae, inference, held_out, validation_every or source.steps, early_stopping, keep, check_support)
    with (
        isolated(seed, "training"),
        switched(vae, training=True),
        switched(inference, training=True),
        warnings.catch_warnings(),
        steps_bar(progress, total) as report,
    ):
        warnings.filterwarnings("ignore", message="Encountered NaN")  # Pyro's; ours names the term
        stopped = _loop(run, watch, source, total, callback, report)
    return run.history(watch, stopped)


def _check_arguments(
    inference: Inference, optimizer: OptimizerFactory, counts: Mapping[str, int | None], keep: str, has_validation: bool
) -> None:
    """Raises an `InputError` for arguments of `fit` that cannot be used, whatever the data."""
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"fit: `{name}` is a positive integer, got `{value!r}`.")
    if (counts["epochs"] is None) == (counts["steps"] is None):
        raise InputError("fit: give exactly one of `epochs` and `steps`.")
    if not has_validation and (counts["early_stopping"] is not None or keep == "best"):
        raise InputError('fit: `early_stopping` and keep="best" need `validation` data.')
    if keep not in ("best", "last"):
        raise InputError(f'fit: `keep` is "best" or "last", got `{keep!r}`.')
    if not isinstance(inference, Inference) or not callable(optimizer):
        raise InputError(
            "fit: `inference` is an algorithm such as AEVB(), and `optimizer` a function such as "
            f"lambda p: torch.optim.Adam(p, lr=1e-3); got `{inference!r}` and `{type(optimizer).__name__}`."
        )


def _loop(
    run: _Run,
    watch: Watch,
    source: Minibatches,
    total: int,
    callback: Callable[[int, Mapping[str, float]], None] | None,
    report: Callable[[int, float], None],
) -> str:
    """Takes the steps; returns why it stopped."""
    stopped = "completed"
    try:
        while run.step < total and stopped == "completed":
            for batch, rows in source.epoch():
                run.take(batch, rows)
                report(run.step, run.bounds[-1])
                metrics = {"bound": run.bounds[-1], "samples": run.samples[-1], "seconds": run.seconds[-1]}
                if watch.due(run.step, total):
                    run.check_parameters()
                    metrics["validation_bound"] = watch.evaluate(run.step)
                if callback is not None:
                    callback(run.step, metrics)
                if watch.exhausted:
                    stopped = "early stopping"
                if run.step == total or stopped != "completed":
                    break
    except KeyboardInterrupt:
        stopped = "interrupted"
    run.check_parameters()
    watch.restore()
    return stopped


class _Run:
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
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise InputError(
                f"fit: `optimizer` makes a torch.optim.Optimizer from parameters, such as "
                f"lambda p: torch.optim.Adam(p, lr=1e-3); it made a `{type(self.optimizer).__name__}`."
            )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.both = nn.ModuleDict({"vae": vae, "inference": inference})
        self.phases: list[tuple[Phase, dict[str, nn.Parameter]]] = [
            (phase, inference.moved(vae, phase)) for phase in inference.phases
        ]
        self._require_phases()
        self.kept = {id(parameter): parameter.detach().clone() for parameter in self.both.parameters()}
        self.buffers = {name: buffer.clone() for name, buffer in self.both.named_buffers()}
        self.step, self.time = 0, 0.0
        self.bounds: list[float] = []
        self.samples: list[int] = []
        self.seconds: list[float] = []

    def take(self, batch: Batch, rows: Tensor | None) -> None:
        """Takes one step: every phase's loss, gradient and update."""
        start = time.perf_counter()
        if self.schedule is not None:
            factor = float(self.schedule(self.step))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
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
        self.step += 1
        self.time += time.perf_counter() - start
        self.bounds.append(bound)
        self.samples.append((self.samples[-1] if self.samples else 0) + batch.size)
        self.seconds.append(self.time)

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
        exempt = set() if self.inference.trains_posterior else {id(p) for p in self.vae.phi.values()}
        for name, parameter in self.both.named_parameters():
            if parameter.requires_grad and id(parameter) not in moved | exempt:
                raise InputError(
                    f"fit: no phase of `{self.inference.name}` moves `{name}`; name its group in the phase's `moves`, "
                    "or freeze it with requires_grad_(False)."
                )

    def _require_gradients(
        self, phase: Phase, parameters: dict[str, nn.Parameter], gradients: tuple[Tensor | None, ...]
    ) -> None:
        for (name, _), gradient in zip(parameters.items(), gradients, strict=True):
            if gradient is None:
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
                self._restore()
                raise NonFiniteError(
                    f"fit: the update of step {self.step} made `{name}` infinite or nan. The parameters of the last "
                    "good step are in place. Lower the learning rate or set clip_norm."
                )

    def history(self, watch: Watch, stopped: str) -> History:
        """Returns what the run was like."""
        return History(
            np.array(self.bounds),
            np.array(self.samples, dtype=np.int64),
            np.array(self.seconds),
            np.array(watch.steps, dtype=np.int64),
            np.array(watch.values),
            stopped,
            watch.best_step,
        )


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


@torch.no_grad()
def _name_term(vae: VAE, batch: Batch) -> str | None:
    """Which of the three log densities is not finite at the batch; None where all are."""
    posterior = "log q(z|x), the posterior,"
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
