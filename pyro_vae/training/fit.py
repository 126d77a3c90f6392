r"""The training loop: one function for every inference algorithm."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from pyro_vae.engine.compilation.cost import Mode
from pyro_vae.engine.compilation.routine import enabled
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.interrupts import deferrable
from pyro_vae.runtime.modes import switched
from pyro_vae.runtime.precision import Precision, networks_in
from pyro_vae.runtime.progress import steps_bar
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.history import History
from pyro_vae.training.loop import Callback, Loop
from pyro_vae.training.minibatches import Resident, Transform, as_batch, minibatches
from pyro_vae.training.options import Counts, check_running, checked_algorithm, checked_seed
from pyro_vae.training.stepper import OptimizerFactory, Stepper
from pyro_vae.training.validation import Watch
from pyro_vae.vae.data_check import check_values
from pyro_vae.vae.vae import VAE


@overload
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
    callback: Callback | None = None,
    callback_steps: Collection[int] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    check_support: bool = True,
    divergence: Literal["raise", "stop"] = "raise",
    compile: Mode = "auto",
    precision: Precision = "float32",
    progress: bool | str = False,
) -> History: ...


@overload
def fit(
    vae: Sequence[VAE],
    x: Any,
    inference: Inference | Sequence[Inference],
    *,
    optimizer: OptimizerFactory | Sequence[OptimizerFactory],
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    seed: int | Sequence[int] = 0,
    transform: Transform | None = None,
    weights: Any = None,
    validation: Any = None,
    validation_every: int | None = None,
    early_stopping: int | None = None,
    keep: Literal["best", "last"] = "last",
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    check_support: bool = True,
    divergence: Literal["raise", "stop"] = "raise",
    compile: Mode = "auto",
    precision: Precision = "float32",
    progress: bool | str = False,
) -> list[History]: ...


def fit(
    vae: VAE | Sequence[VAE],
    x: Any,
    inference: Inference | Sequence[Inference],
    *,
    optimizer: OptimizerFactory | Sequence[OptimizerFactory],
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    seed: int | Sequence[int] = 0,
    transform: Transform | None = None,
    weights: Any = None,
    validation: Any = None,
    validation_every: int | None = None,
    early_stopping: int | None = None,
    keep: Literal["best", "last"] = "last",
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    callback: Callback | None = None,
    callback_steps: Collection[int] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    check_support: bool = True,
    divergence: Literal["raise", "stop"] = "raise",
    compile: Mode = "auto",
    precision: Precision = "float32",
    progress: bool | str = False,
) -> History | list[History]:
    r"""Trains a VAE in place by any inference algorithm.

    The global random states are left as they are found, and so is Pyro's param store. At a loss or gradient that is
    not finite, training stops and puts back the parameters at which both were finite last, before their update.
    Ctrl-C ends the run cleanly.

    Arguments:
        vae: The VAE; trained in place, on the device on which it lies. Or R VAEs of one structure, which are trained
            in one program; see `fit_replicates`.
        x: Data of shape ``(N, *event_shape)``: a Tensor, ndarray, DataFrame, `Batch`, `torch.utils.data.Dataset` or
            `DataLoader` (whose items, or first item each, are x). All but a `DataLoader` lie on the device as a
            whole and are shuffled there; a data set that does not fit is streamed.
        inference: The algorithm; moved to the VAE's device, its own parameters optimised beside the VAE's.
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
        callback_steps: Steps after which ``callback`` is called, if not after all: compiled steps run faster where
            nothing is between them.
        checkpoint: File that keeps the state of the run. Where it exists, training goes on from it, and with
            ``compile=True`` or False and the same number of threads the result is that of a run without
            interruption, to the last bit; a larger number of steps goes on with a run that was completed. Of what a
            `DataLoader` draws, it keeps torch's random stream and the loader's own generator; what a transform, a
            callback or a learning-rate scheduler remembers is not kept.
        checkpoint_seconds: Between two writings of that file, at least; it is written at the end too.
        check_support: Whether data outside the likelihood's support are refused; only without this check can a
            Bernoulli be trained on grey levels, and its "log-likelihood" is then none.
        divergence: What follows a loss or gradient that is not finite: an error, or a `History` that has stopped
            there and tells what was not finite as its remark. The last good parameters are in place either way.
        compile: Whether the steps run as compiled programs: loss, gradients, clipping and update in one, at the same
            noise the same to rounding (draws of Bernoulli, categorical and dropout kind have another stream). With
            ``"auto"`` where that saves time, judged by how long the first steps take, so that one seed may give two
            results; and with a warning where the model cannot be compiled. With True always, and such a model is an
            error. The first step is never compiled. Compiled programs are kept on disk.
        precision: Of the networks' products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``; see `networks_in`.
        progress: Whether to show a progress bar (on a terminal only); a string is its title.

    Returns:
        The `History`; of R VAEs a list.

    Raises:
        InputError: For data, arguments or an algorithm that do not fit, before the first step; and where a parameter
            that the algorithm claims to move has no gradient at the first step.
        NonFiniteError: For a loss or gradient that is not finite: names the term, the step and the batch.
        CaptureError, CompilationError: With ``compile=True``, where the program branches on values (names the line),
            or this machine cannot compile.

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
    if not isinstance(vae, VAE):
        from pyro_vae.training.replicated_training import fit_replicates  # which is made of this module

        if callback is not None or checkpoint is not None:
            raise InputError("fit: `callback` and `checkpoint` are for one VAE; train several without them.")
        with networks_in(precision):
            return fit_replicates(
                *(vae, x, inference),
                optimizer=optimizer,
                seeds=seed,
                epochs=epochs,
                steps=steps,
                batch_size=batch_size,
                transform=transform,
                weights=weights,
                validation=validation,
                validation_every=validation_every,
                early_stopping=early_stopping,
                keep=keep,
                schedule=schedule,
                clip_norm=clip_norm,
                check_support=check_support,
                divergence=divergence,
                compile=compile,
                progress=progress,
            )
    counts = Counts.of(epochs, steps, batch_size, validation_every, early_stopping)
    inference, optimizer = checked_algorithm(inference, optimizer, counts, keep, validation is not None)
    check_running(schedule, clip_norm, transform, divergence, compile)
    seed = checked_seed(seed)
    inference.to(vae.device).check(vae)
    unknown = inference.takes_unknown_labels
    source = minibatches(vae, x, counts.batch_size, seed, transform, weights, check_support, unknown)
    if vae.size is not None and vae.size != source.size:
        raise InputError(f"fit: the VAE was declared with size={vae.size}, but there are {source.size} data.")
    held_out = None
    if validation is not None:
        with isolated(seed, "data"):
            held_out = as_batch(vae, validation, "validation")
        held_out = held_out.to(vae.device, vae.dtype)
        check_values(vae, held_out, check_support, "validation data")
    total = counts.total(source.steps)
    run = Stepper(vae, inference, optimizer, schedule, clip_norm, check_support)
    every = counts.validation_every or source.steps
    watch = Watch(vae, inference, held_out, every, counts.early_stopping, keep, check_support)
    watch.compile = "auto" if compile else False
    run.own_batches = isinstance(source, Resident) and transform is None
    loop = Loop(run, watch, source, total, callback=callback, callback_steps=callback_steps)
    if checkpoint is not None:
        loop.checkpoint = Checkpoint(checkpoint, run, watch, source, seed, checkpoint_seconds)
        loop.checkpoint.load(total)
    with (
        isolated(seed, "training"),
        switched(vae, training=True),
        switched(inference, training=True),
        networks_in(precision),
        warnings.catch_warnings(),
        deferrable(),
        steps_bar(progress, total) as bar,
        enabled(compile, total, bar.busy) as terms,
    ):
        if compile is not False:
            run.compile_steps(compile, total, bar.busy)
        warnings.filterwarnings("ignore", message="Encountered NaN")  # Pyro's; ours names the term
        try:
            loop.report = bar.report
            stopped, remark = loop.take(), inference.remark()
        except NonFiniteError as error:
            if divergence == "raise" or not run.step:
                raise
            stopped, remark = "diverged", str(error).removeprefix("fit: ")
        finally:
            run.finish()
            inference.visit(None)
    return History(
        np.array(run.bounds),
        np.array(run.samples, dtype=np.int64),
        np.array(run.seconds),
        np.array(watch.steps, dtype=np.int64),
        np.array(watch.values),
        stopped,
        watch.best_step,
        remark,
        run.execution,
        run.compile_seconds + terms.seconds,
    )
