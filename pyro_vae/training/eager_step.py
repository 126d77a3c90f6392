r"""One training step, operation by operation: every phase's loss, gradient and update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.inference.interface import Loss, Phase
from pyro_vae.training.member import Member, finite

Gradients = tuple[Tensor | None, ...]


def take_step(member: Member, batch: Batch, rows: Tensor | None, clip_norm: float | None, check_support: bool) -> float:
    """Takes one step of a member; returns the bound, nan where the algorithm has none.

    Arguments:
        member: The VAE in training.
        batch: The minibatch.
        rows: Its rows in the data; None where these are unknown.
        clip_norm: See `Training`.
        check_support: See `Training`; the first step is validated by Pyro.

    Raises:
        InputError: Where the step fails for other reasons than values that are not finite, and where a parameter
            that a phase claims to move has no gradient at the first step.
        NonFiniteError: For a loss or gradient that is not finite. The last good parameters are in place.
    """
    bound = float("nan")
    losses = member.inference.losses(member.vae, batch)
    for phase, parameters in member.phases:
        loss = _compute(member, losses, batch, rows, check_support)
        if loss.bound is not None:
            bound = float(loss.bound)
        if not parameters:  # all frozen
            continue
        gradients = torch.autograd.grad(loss.value, list(parameters.values()), allow_unused=True)
        if member.steps == 0:
            _require_gradients(member, phase, parameters, gradients)
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        if not bool((loss.value.detach() + norm).isfinite()):
            member.fail(batch, rows, not_finite(loss, parameters, gradients))
        member.keep(parameters)
        _update(member, parameters, gradients, norm, clip_norm)
    return bound


def not_finite(loss: Loss, parameters: Mapping[str, nn.Parameter], gradients: Gradients) -> str:
    """Names the first gradient that is not finite, else the loss, else the gradients' norm, which overflows."""
    bad = [name for name, g in zip(parameters, gradients, strict=True) if g is not None and not finite(g)]
    if bad:
        return f"the gradient of `{bad[0]}`"
    value = loss.value.item()
    return f"the norm of the gradient, at a loss of {value:g}," if math.isfinite(value) else f"the loss ({value:g})"


def _compute(member: Member, losses: Iterator[Loss], batch: Batch, rows: Tensor | None, check_support: bool) -> Loss:
    """The next phase's loss; parameters that are not finite make some distributions raise."""
    first = member.steps == 0
    try:
        with pyro.validation_enabled(first and check_support):  # costly on a GPU, so once
            return next(losses)
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        # torch and Pyro refuse to draw from a distribution whose parameters are nan, in words of their own.
        if member.names_a_term(batch) or not all(finite(parameter) for parameter in member.vae.parameters()):
            member.fail(batch, rows, reason)
        if first or isinstance(error, ValueError):
            raise InputError(f"fit: step {member.steps + 1} fails on a batch of {batch.size}: {reason}") from error
        raise


def _update(
    member: Member,
    parameters: Mapping[str, nn.Parameter],
    gradients: Gradients,
    norm: Tensor,
    clip_norm: float | None,
) -> None:
    member.optimizer.zero_grad(set_to_none=True)
    scale = None if clip_norm is None else torch.clamp(clip_norm / (norm + 1e-6), max=1.0)
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        parameter.grad = gradient if scale is None or gradient is None else gradient * scale
    try:
        member.optimizer.step()
    except KeyboardInterrupt:  # some parameters may be moved already
        member.restore()
        raise
    member.optimizer.zero_grad(set_to_none=True)


def _require_gradients(
    member: Member, phase: Phase, parameters: Mapping[str, nn.Parameter], gradients: Gradients
) -> None:
    some = any(gradient is not None for gradient in gradients)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is None and not (some and id(parameter) in member.exempt):
            raise InputError(
                f"fit: `{member.inference.name}` moves {', '.join(sorted(phase.moves))}, but its loss does not "
                f"depend on `{name}`, which would never be trained; use it in forward, or freeze it with "
                "requires_grad_(False)."
            )
