r"""Training of R VAEs of one structure in one program."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np

from pyro_vae.batch import Batch
from pyro_vae.engine.compilation.cost import Mode
from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.interrupts import deferrable
from pyro_vae.runtime.modes import switched
from pyro_vae.runtime.progress import steps_bar
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.training.history import History
from pyro_vae.training.minibatches import Transform, as_batch
from pyro_vae.training.options import Counts, check_running, checked_algorithm, whole
from pyro_vae.training.replicated_run import Run
from pyro_vae.training.replicates import Replicate, Stream
from pyro_vae.training.stacked_minibatches import sources
from pyro_vae.training.stepper import OptimizerFactory, Stepper
from pyro_vae.training.validation import Watch
from pyro_vae.vae.data_check import check_values
from pyro_vae.vae.vae import VAE


def fit_replicates(
    vaes: Sequence[VAE],
    x: Any,
    inference: Inference | Sequence[Inference],
    *,
    optimizer: OptimizerFactory | Sequence[OptimizerFactory],
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    seeds: int | Sequence[int] = 0,
    common_noise: bool = False,
    transform: Transform | None = None,
    weights: Any = None,
    validation: Any = None,
    validation_every: int | None = None,
    early_stopping: int | None = None,
    keep: Literal["best", "last"] = "last",
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    check_support: bool = True,
    divergence: Literal["raise", "stop"] = "stop",
    compile: Mode = "auto",
    progress: bool | str = False,
) -> list[History]:
    r"""Trains R VAEs of one structure in place, all in one program.

    Every VAE becomes what `pyro_vae.fit` of its own would have made of it, with its seed, algorithm and optimizer, to
    rounding: parameters and optimizer states are stacked, matrix products become batched ones, and each replicate has
    its own shuffling and noise. (Gamma, Dirichlet, Poisson and binomial draws are equal in distribution only.) One
    whose loss is not finite has the parameters back at which it was finite last, is named, and does not touch the
    others.

    Arguments:
        vaes: Of one structure, on one device: what differs may only be the values of parameters and buffers, and
            numbers.
        x: Data; see `pyro_vae.fit`. They are checked against the likelihood of the first VAE.
        inference: The algorithm, of which each VAE gets a copy; or one for each VAE, which differ only in numbers.
        optimizer: Makes the optimizer of one VAE; or one such function for each, whose optimizers differ only in
            numbers. Of torch's SGD, Adagrad, Adam and AdamW.
        epochs: Passes over the data.
        steps: Or: number of minibatches. Exactly one of the two.
        batch_size: M.
        seeds: One of each VAE, as `pyro_vae.fit` takes it; an integer s stands for s, s + 1, ..., s + R - 1.
        common_noise: Whether all VAEs see the same minibatches and draw the same noise, those of the first seed:
            common random numbers, for comparisons between them.
        transform: See `pyro_vae.fit`; called for the minibatch of each VAE.
        weights: See `pyro_vae.fit`.
        validation: See `pyro_vae.fit`; evaluated for one VAE after the other.
        validation_every: Steps between two such evaluations; default: one epoch.
        early_stopping: Patience; each VAE stops by itself.
        keep: Which parameters remain.
        schedule: Factor of all learning rates at each step.
        clip_norm: Largest norm of the gradient of all parameters of one VAE that a phase moves.
        check_support: See `pyro_vae.fit`.
        divergence: Whether VAEs whose loss was not finite are reported by their histories (``"stop"``) or, after the
            others are trained, by an error.
        compile: With ``"auto"`` the program is compiled where that saves time; where the VAEs cannot be captured as
            one, they are trained one by one, with a warning. With True that is an error. With False they are trained
            one by one, uncompiled. The first step is uncompiled in any case, and validated.
        progress: Whether to show a progress bar; a string is its title.

    Returns:
        The `History` of each VAE; ``seconds`` are those of all together.

    Raises:
        InputError: See `pyro_vae.fit`; and where the VAEs are not of one structure, or share parameters.
        NonFiniteError: With ``divergence="raise"``: names the replicates.
        CaptureError, CompilationError: With ``compile=True``.

    Example:
        >>> import copy, pyro.distributions as dist, torch
        >>> from pyro_vae import Conditional, Fixed, mlp
        >>> from pyro_vae.inference import BetaVAE
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (8,), given=mlp(2, 10)))
        >>> vaes = [copy.deepcopy(vae) for _ in range(3)]
        >>> betas, adam = [BetaVAE(0.5), BetaVAE(1.0), BetaVAE(2.0)], lambda p: torch.optim.Adam(p, lr=1e-2)
        >>> histories = fit_replicates(vaes, torch.eye(8), betas, optimizer=adam, epochs=5, common_noise=True)
        >>> [history.steps for history in histories]
        [5, 5, 5]
    """
    counts = Counts.of(epochs, steps, batch_size, validation_every, early_stopping)
    check_running(schedule, clip_norm, transform, divergence, compile)
    _check_vaes(vaes)
    own_seeds = _checked_seeds(len(vaes), seeds, common_noise)
    algorithms, factories = _algorithms(inference, len(vaes)), _factories(optimizer, len(vaes))
    for vae, algorithm, factory in zip(vaes, algorithms, factories, strict=True):
        checked_algorithm(algorithm, factory, counts, keep, validation is not None)
        algorithm.to(vae.device).check(vae)
    unknown = algorithms[0].takes_unknown_labels
    made = sources(vaes, x, counts.batch_size, own_seeds, common_noise, transform, weights, check_support, unknown)
    if any(vae.size is not None and vae.size != made[0].size for vae in vaes):
        raise InputError(f"fit: a VAE was declared with another `size` than that of the data, {made[0].size}.")
    held_out = None if validation is None else _held_out(vaes[0], validation, own_seeds[0], check_support)
    total = counts.total(made[0].steps)
    replicates = []
    for r, (vae, algorithm, factory) in enumerate(zip(vaes, algorithms, factories, strict=True)):
        run = Stepper(vae, algorithm, factory, schedule, clip_norm, check_support)
        every = counts.validation_every or made[0].steps
        mode: Literal["auto", False] = "auto" if compile else False
        watch = Watch(vae, algorithm, held_out, every, counts.early_stopping, keep, check_support, mode)
        ledger = Ledger(run.optimizer, [list(moved.values()) for _, moved in run.phases], vae.device, run.kept)
        replicates.append(Replicate(r, own_seeds[r], run, watch, ledger, Stream(own_seeds[r], vae.device)))
    with _environment(replicates), steps_bar(progress, total) as bar:
        run_all = Run(replicates, total, compile, bar.busy, common_noise)
        run_all.train(made, bar.report)
    failed = [replicate.remark for replicate in replicates if replicate.stopped == "diverged"]
    if failed and divergence == "raise":
        raise NonFiniteError(f"fit: {' '.join(failed)}")
    return [_history(replicate, run_all) for replicate in replicates]


def _held_out(vae: VAE, validation: Any, seed: int, check_support: bool) -> Batch:
    with isolated(seed, "data"):
        held_out = as_batch(vae, validation, "validation").to(vae.device, vae.dtype)
    check_values(vae, held_out, check_support, "validation data")
    return held_out


def _environment(replicates: Sequence[Replicate]) -> ExitStack:
    """A block in which all replicates are in training mode and draw from streams of the run."""
    stack = ExitStack()
    stack.enter_context(isolated(replicates[0].seed, "replicates"))
    for replicate in replicates:
        stack.enter_context(switched(replicate.vae, training=True))
        stack.enter_context(switched(replicate.inference, training=True))
    stack.enter_context(deferrable())
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message="Encountered NaN")  # Pyro's; ours names the term
    return stack


def _history(replicate: Replicate, run: Run) -> History:
    step, watch = replicate.stepper, replicate.watch
    return History(
        np.array(step.bounds),
        np.array(step.samples, dtype=np.int64),
        np.array(step.seconds),
        np.array(watch.steps, dtype=np.int64),
        np.array(watch.values),
        replicate.stopped,
        watch.best_step,
        replicate.remark,
        *run.execution(replicate),
    )


def _checked_seeds(count: int, seeds: int | Sequence[int], common: bool) -> list[int]:
    """One seed of each replicate."""
    first = whole(seeds)
    if first is not None:
        return [first if common else first + r for r in range(count)]
    own = [seed for seed in map(whole, seeds) if seed is not None] if isinstance(seeds, Sequence) else []
    if not isinstance(seeds, Sequence) or len(own) != len(seeds) or len(own) != count:
        raise InputError(f"fit: `seeds` is an integer, or one for each of the {count} VAEs; got `{seeds!r}`.")
    if common and len(set(own)) > 1:
        raise InputError(f"fit: with common_noise=True all VAEs have one seed, an integer; got `{seeds!r}`.")
    return own


def _algorithms(inference: Inference | Sequence[Inference], count: int) -> list[Inference]:
    if isinstance(inference, Inference):
        return [copy.deepcopy(inference) for _ in range(count)]
    given = list(inference) if isinstance(inference, Sequence) else []
    if len(given) != count or len({id(algorithm) for algorithm in given}) < count:
        raise InputError(
            f"fit: `inference` is an algorithm, of which each VAE gets a copy, or a list of {count}, one object for "
            f"each VAE; got `{inference!r}`."
        )
    return given


def _factories(optimizer: OptimizerFactory | Sequence[OptimizerFactory], count: int) -> list[OptimizerFactory]:
    own: list[Any] = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer] * count
    if len(own) != count:
        raise InputError(
            f"fit: `optimizer` makes the optimizer of a VAE, or is a list of {count} such functions, one for each VAE; "
            f"got {len(own)} of them."
        )
    return own


def _check_vaes(vaes: Sequence[VAE]) -> None:
    """Raises an `InputError` where VAEs cannot be replicates of each other."""
    if not isinstance(vaes, Sequence) or not vaes or not all(isinstance(vae, VAE) for vae in vaes):
        raise InputError(f"fit: expected a list of VAEs, at least one; got `{type(vaes).__name__}` of `{vaes!r}`.")
    owner: dict[int, int] = {}
    for r, vae in enumerate(vaes):
        for name, parameter in vae.named_parameters():
            if parameter.requires_grad and owner.setdefault(id(parameter), r) != r:
                raise InputError(
                    f"fit: VAEs {owner[id(parameter)]} and {r} of the list share the parameter `{name}`, which only "
                    "one of them could train; make copies by copy.deepcopy."
                )
        ours, theirs = _kinds(vae), _kinds(vaes[0])
        different = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
        if different:
            name = different[0]
            raise InputError(
                f"fit: replicates are VAEs of one structure, but `{name}` is {_said(ours.get(name))} in replicate {r} "
                f"and {_said(theirs.get(name))} in replicate 0; train them one by one."
            )


def _kinds(vae: VAE) -> dict[str, Any]:
    tensors = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    return {name: (tuple(t.shape), t.dtype, str(t.device), t.requires_grad) for name, t in tensors.items()}


def _said(kind: Any) -> str:
    if kind is None:
        return "missing"
    shape, dtype, device, trained = kind
    return f"{dtype} of shape {shape} on {device}{'' if trained else ', not trained'}"
