r"""Calls the parts of a VAE once, on zeros, so that what does not fit is said at construction."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.modes import evaluating, isolated


@torch.no_grad()
def call_once(part: str, module: nn.Module, *arguments: Tensor) -> Any:
    """Returns what a part of a VAE returns, in evaluation mode and off the global random stream.

    Raises:
        InputError: Where it fails, or returns no distribution (nor, for a posterior, features).
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"VAE: `{part}` must be an nn.Module, got `{type(module).__name__}`.")
    try:
        with evaluating(module), isolated(0):
            result = module(*arguments)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        shapes = ", ".join(str(tuple(argument.shape)) for argument in arguments) or "no context"
        reason = " ".join(str(error).split())
        raise InputError(f"VAE: the {part} fails on {shapes}: {reason}") from error
    accepted = (torch.distributions.Distribution, Tensor) if part == "posterior" else torch.distributions.Distribution
    if not isinstance(result, accepted):
        raise InputError(f"VAE: forward of the {part} must return a distribution, got `{type(result).__name__}`.")
    return result


def check_batch_shape(part: str, distribution: TorchDistribution, expected: tuple[int, ...] = (2,)) -> None:
    """Raises an `InputError` where a part, given 2 data (or none), does not return the expected batch shape."""
    if distribution.batch_shape != expected:
        given = "given 2 data" if expected else "without a context"
        raise InputError(
            f"VAE: {given}, the {part} returns batch_shape {tuple(distribution.batch_shape)} and event_shape "
            f"{tuple(distribution.event_shape)}; declare the event with .to_event(...): batch_shape must be {expected}."
        )
