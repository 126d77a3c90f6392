r"""Training: one function for every inference algorithm, for one VAE or for R of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.progress import steps_bar
from pyro_vae.runtime.random_streams import Stream, isolated
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.history import History
from pyro_vae.training.loop import Callback, Loop, training_mode
from pyro_vae.training.member import Member
from pyro_vae.training.minibatches import Transform, as_batch
from pyro_vae.training.options import OptimizerFactory, Training, said, whole
from pyro_vae.training.stacked_minibatches import Source
from pyro_vae.training.validation import Watch
from pyro_vae.vae.data_check import check_values
from pyro_vae.vae.latent_variable_model import LatentVariableModel
from pyro_vae.vae.vae import require_model


@overload
def fit(vae: LatentVariableModel, x: Any, inference: Inference, training: Training = ..., **named: Any) -> History: ...


@overload
def fit(
    vae: Sequence[LatentVariableModel],
    x: Any,
    inference: Inference | Sequence[Inference],
    training: Training = ...,
    **named: Any,
) -> list[History]: ...


def fit(  # type: ignore[misc]  # the overloads leave its keywords to this one signature
    vae: LatentVariableModel | Sequence[LatentVariableModel],
    x: Any,
    inference: Inference | Sequence[Inference],
    training: Training = Training(),  # noqa: B008, immutable
    *,
    seed: int | Sequence[int] = 0,
    weights: Any = None,
    transform: Transform | None = None,
    validation: Any = None,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | str = False,
    common_noise: bool = False,
) -> History | list[History]:
    r"""Trains a VAE in place by any inference algorithm; or R VAEs of one structure in one program.

    The global random states are left as they are found, and so is Pyro's param store. At a loss or gradient that is
    not finite, training stops and puts back the parameters at which both were finite last, before their update.
    Ctrl-C ends the run cleanly. Modules are in training mode during the run and in evaluation mode after it.

    Of R VAEs every one becomes what a run of its own would have made of it, with its seed, algorithm and optimizer, to
    rounding: parameters and optimizer states are stacked, matrix products become batched ones, and each VAE has its
    own shuffling and noise. (Gamma, Dirichlet, Poisson and binomial draws are equal in distribution only.) A VAE whose
    loss is not finite stops and does not touch the others.

    Arguments:
        vae: The VAE; trained in place, on the device on which it lies. Or R VAEs of one structure on one device: they
            differ only in values of parameters and buffers, and in numbers.
        x: Data of shape ``(N, *event_shape)``: a Tensor, ndarray, DataFrame, `Batch`, `torch.utils.data.Dataset` or
            `DataLoader` (whose items, or first item each, are x). All but a `DataLoader` lie on the device as a
            whole and are shuffled there; a data set that does not fit is streamed.
        inference: The algorithm; moved to the VAE's device, its own parameters optimised beside the VAE's. For R VAEs
            each gets a copy; or a list of one for each, which differ only in numbers.
        training: The settings of the run.
        seed: Seed of shuffling, of ``transform`` and of the algorithm's draws. The first two have a stream of their
            own, so that all algorithms see the same minibatches. For R VAEs a list of one for each; an integer s
            stands for s, s + 1, ..., s + R - 1.
        weights: Weight of each datum in every mean over data, shape ``(N,)``; only their ratios matter.
        transform: Applied to the x of each minibatch with a seeded generator, such as a dynamic binarisation.
        validation: Data in any form but a `DataLoader`, whose ELBO is evaluated during training.
        callback: Called after each step with its number, from 1, and a mapping of ``bound``, ``samples``, ``seconds``,
            and ``validation_bound`` where it was evaluated; for R VAEs a list of R mappings.
        checkpoint: File that keeps the state of the run. Where it exists, training goes on from it, and with
            ``compile=True`` or False and the same number of threads the result is that of a run without
            interruption, to the last bit; a larger number of steps goes on with a run that was completed. For a
            `DataLoader`, it keeps torch's random stream and the loader's own generator; it does not keep what a
            transform, a callback or a learning-rate scheduler remembers.
        progress: Whether to show a progress bar (on a terminal only); a string is its title.
        common_noise: Whether R VAEs see the same minibatches and draw the same noise, those of the first seed: common
            random numbers, for comparisons between them.

    Returns:
        The `History`; for R VAEs a list, whose ``seconds`` are those of all together.

    Raises:
        InputError: For data, arguments or an algorithm that do not fit, before the first step; where a parameter
            that the algorithm claims to move has no gradient at the first step; and where VAEs are not of one
            structure, or share parameters.
        NonFiniteError: For a loss or gradient that is not finite: names the term, the step and the batch, and for R
            VAEs the replicates, after the others are trained. At the first step of a single VAE also with
            ``divergence="stop"``.
        CaptureError, CompilationError: With ``compile=True``, where the program branches on values (names the line),
            or this machine cannot compile.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> from pyro_vae.inference import AEVB
        >>> x = torch.eye(8).repeat(10, 1)
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (8,), given=mlp(2, 10)))
        >>> history = fit(vae, x, AEVB(), Training(epochs=20, batch_size=20))
        >>> history.steps, history.stopped
        (80, 'completed')
    """
    single = isinstance(vae, LatentVariableModel)
    vaes = [vae] if isinstance(vae, LatentVariableModel) else _checked_vaes(vae)
    seeds = _checked_seeds(len(vaes), seed, common_noise, single)
    algorithms = [inference] if single else _algorithms(inference, len(vaes))
    loop = prepared(vaes, x, algorithms, training, seeds, weights, transform, validation, common_noise)
    loop.callback = callback if callback is None or not single else lambda step, metrics: callback(step, metrics[0])
    if checkpoint is not None:
        loop.checkpoint = Checkpoint(checkpoint, loop, seeds)
        loop.checkpoint.load()
    stream = "training" if len(vaes) == 1 else "replicates"
    with (
        steps_bar(progress, loop.total) as bar,
        training_mode(loop.members, seeds[0], stream, training, loop.total, bar.busy) as terms,
    ):
        loop.busy, loop.report = bar.busy, bar.report
        loop.open()
        loop.run()
    failed = [member for member in loop.members if member.stopped == "diverged"]
    if failed and (training.divergence == "raise" or (len(vaes) == 1 and not failed[0].steps)):
        raise NonFiniteError(f"fit: {' '.join(member.remark for member in failed)}")
    histories = [loop.history(member, terms.seconds) for member in loop.members]
    return histories[0] if single else histories


def prepared(
    vaes: Sequence[LatentVariableModel],
    x: Any,
    algorithms: Sequence[Any],
    training: Training,
    seeds: Sequence[int],
    weights: Any = None,
    transform: Transform | None = None,
    validation: Any = None,
    common_noise: bool = False,
) -> Loop:
    """Returns the loop of a run, checked and ready for `Loop.open`; see `fit`.

    Arguments:
        vaes: The VAEs.
        x: Training data.
        algorithms: The algorithm of each VAE.
        training: The settings of the run.
        seeds: Seed of each VAE.
        weights: Weights of the data.
        transform: Applied to each minibatch.
        validation: Validation data.
        common_noise: Whether minibatches and noise are common to all VAEs.

    Raises:
        InputError: See `fit`.
    """
    _check_transform(transform)
    factories = _factories(training.optimizer, len(vaes))
    for own, algorithm in zip(vaes, algorithms, strict=True):
        _check_algorithm(algorithm, training, validation is not None)
        algorithm.to(own.device).check(own)
    unknown = algorithms[0].takes_unknown_labels
    source = Source(
        *(vaes, x, training.batch_size, seeds, common_noise, transform, weights, training.check_support, unknown),
        training.drop_last,
    )
    _check_last(vaes[0], source)
    if not source.steps:
        raise InputError("fit: the loader gives no minibatch; let it keep a short last one, or give more data.")
    for own in vaes:
        if own.size is not None and own.size != source.size:
            raise InputError(f"fit: the VAE was declared with size={own.size}, but there are {source.size} data.")
    held_out = None if validation is None else _held_out(vaes[0], validation, seeds[0], training.check_support)
    every = training.validation_every or source.steps
    mode: Literal["auto", False] = "auto" if training.compile else False
    members = []
    for r, (own, algorithm, factory) in enumerate(zip(vaes, algorithms, factories, strict=True)):
        watch = Watch(
            own, algorithm, held_out, every, training.early_stopping, training.keep, training.check_support, mode
        )
        stream = None if len(vaes) == 1 else Stream(seeds[r], own.device, "training")
        name = "" if len(vaes) == 1 else f"replicate {r}: "
        members.append(Member(r, name, own, algorithm, factory, watch, stream))
    return Loop(members, source, training, training.total(source.steps), followed=transform is not None)


def _held_out(vae: LatentVariableModel, validation: Any, seed: int, check_support: bool) -> Batch:
    with isolated(seed, "data"):
        held_out = as_batch(vae, validation, "validation").to(vae.device, vae.dtype)
    check_values(vae, held_out, check_support, "validation data")
    return held_out


# ------------------------------------------------------------------ the arguments


def _checked_seeds(count: int, seed: Any, common: bool, single: bool) -> list[int]:
    """One seed for each VAE."""
    first = whole(seed)
    if first is not None:
        return [first if common else first + r for r in range(count)]
    if single:
        raise InputError(f"fit: `seed` is an integer, one for one VAE; got `{seed!r}`.")
    own = [each for each in map(whole, seed) if each is not None] if isinstance(seed, Sequence) else []
    if not isinstance(seed, Sequence) or len(own) != len(seed) or len(own) != count:
        raise InputError(f"fit: `seed` is an integer, or one for each of the {count} VAEs; got `{seed!r}`.")
    if common and len(set(own)) > 1:
        raise InputError(f"fit: with common_noise=True all VAEs have one seed, an integer; got `{seed!r}`.")
    return own


def _check_last(vae: LatentVariableModel, source: Source) -> None:
    """Raises an `InputError` if batch statistics would be taken over a last minibatch of one row."""
    names = [name for name, part in vae.named_modules() if isinstance(part, nn.BatchNorm1d)]
    whole = source.batch_size or 0
    if names and whole > 1 and source.steps * whole > source.size and source.size % whole == 1:
        other = next(size for size in range(whole, 2 * whole) if source.size % size != 1)
        raise InputError(
            f"fit: the last minibatch of an epoch has one row ({source.size} data in batches of {whole}), over which "
            f"`{names[0]}` cannot take batch statistics; use batch_size={other}, or drop_last=True."
        )


def _check_transform(transform: Any) -> None:
    if transform is not None and not _takes(transform, torch.empty(0), torch.Generator()):
        raise InputError(
            "fit: `transform` is a function of x and a torch.Generator, such as lambda x, generator: "
            f"torch.bernoulli(x, generator=generator); got `{said(transform)}`."
        )


def _takes(function: Any, *arguments: Any) -> bool:
    """Whether something can be called with such arguments, as far as its signature tells."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def _check_algorithm(inference: Any, training: Training, has_validation: bool) -> None:
    """Raises an `InputError` for what is no algorithm, and for one that cannot be used so."""
    if not isinstance(inference, Inference):
        uncalled = isinstance(inference, type) and issubclass(inference, Inference)
        given = f"the class `{inference.__name__}`, which is to be called" if uncalled else f"`{inference!r}`"
        raise InputError(f"fit: `inference` is an algorithm such as AEVB(), one for one VAE; got {given}.")
    if training.needs_validation and not has_validation:
        raise InputError('fit: `early_stopping` and keep="best" need `validation` data.')
    if training.needs_validation and not inference.trains_posterior:
        raise InputError(
            f"fit: `{inference.name}` trains no posterior, so the ELBO of validation data does not measure the "
            'model; use keep="last" without early_stopping.'
        )


def _algorithms(inference: Any, count: int) -> list[Inference]:
    if isinstance(inference, Inference):
        return [copy.deepcopy(inference) for _ in range(count)]
    given = list(inference) if isinstance(inference, Sequence) else []
    if len(given) != count or len({id(algorithm) for algorithm in given}) < count:
        raise InputError(
            f"fit: `inference` is an algorithm, which is copied for each VAE, or a list of {count} algorithms, one "
            f"for each VAE; got `{inference!r}`."
        )
    return given


def _factories(optimizer: Any, count: int) -> list[OptimizerFactory]:
    own = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer] * count
    if len(own) != count:
        raise InputError(
            f"fit: `optimizer` is a function that makes an optimizer, or a list of {count} functions, one for each "
            f"VAE; got {len(own)}."
        )
    return own


def _checked_vaes(vaes: Any) -> list[LatentVariableModel]:
    """The VAEs, checked: they have one structure and share no parameters."""
    if not isinstance(vaes, Sequence):
        require_model("fit", vaes)
    if not vaes or not all(isinstance(vae, LatentVariableModel) for vae in vaes):
        raise InputError(f"fit: expected a list of VAEs, at least one; got `{type(vaes).__name__}` of `{vaes!r}`.")
    owner: dict[int, int] = {}
    for r, vae in enumerate(vaes):
        for name, parameter in vae.named_parameters():
            if parameter.requires_grad and owner.setdefault(id(parameter), r) != r:
                raise InputError(
                    f"fit: VAEs {owner[id(parameter)]} and {r} of the list share the parameter `{name}`, which only "
                    "one of them could train; make copies by copy.deepcopy."
                )
        ours, theirs = _layout(vae), _layout(vaes[0])
        different = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
        if different:
            name = different[0]
            raise InputError(
                f"fit: replicates are VAEs of one structure, but `{name}` is {_described(ours.get(name))} in replicate "
                f"{r} and {_described(theirs.get(name))} in replicate 0; train them one by one."
            )
    return list(vaes)


def _layout(vae: LatentVariableModel) -> dict[str, Any]:
    tensors = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    return {name: (tuple(t.shape), t.dtype, str(t.device), t.requires_grad) for name, t in tensors.items()}


def _described(layout: Any) -> str:
    if layout is None:
        return "missing"
    shape, dtype, device, trained = layout
    return f"{dtype} of shape {shape} on {device}{'' if trained else ', not trained'}"
