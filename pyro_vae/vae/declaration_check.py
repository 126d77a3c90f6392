r"""Calls the parts of a VAE once, on zeros, so that parts that do not fit raise an error at construction."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.distributions.support import cells_of, is_discrete
from pyro_vae.errors import InputError
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.derived_posterior import remedy
from pyro_vae.vae.part import blocks_of, network_of


@torch.no_grad()
def call_once(part: str, module: nn.Module, *arguments: Tensor, context_features: int = 0, **handed: nn.Module) -> Any:
    """Calls a part of a VAE in evaluation mode and returns its result; the global random stream stays unchanged.

    Arguments:
        part: ``"prior"``, ``"likelihood"`` or ``"posterior"``.
        module: The part.
        *arguments: Arguments of the call: one tensor, or none.
        context_features: Number of covariates, which are the last features of that tensor.
        **handed: Modules that a prior takes as keyword arguments.

    Raises:
        InputError: If the part fails, or does not return a distribution (or features, for a posterior).
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"VAE: `{part}` must be an nn.Module, got `{type(module).__name__}`.")
    try:
        with ExitStack() as stack:
            for each in (module, *handed.values()):
                stack.enter_context(evaluating(each))
            stack.enter_context(isolated(0))
            result = module(*arguments, **handed)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, AssertionError) as error:
        shapes = ", ".join(str(tuple(argument.shape)) for argument in arguments) or "no context"
        width = arguments[0].shape[-1] if arguments and isinstance(error, RuntimeError) else None
        reason = _wrong_width(part, module, width, context_features) or " ".join(str(error).split())
        raise InputError(f"VAE: the {part} fails on {shapes}: {reason}") from error
    accepted = (torch.distributions.Distribution, Tensor) if part == "posterior" else torch.distributions.Distribution
    if not isinstance(result, accepted):
        raise InputError(f"VAE: forward of the {part} must return a distribution, got `{type(result).__name__}`.")
    return result


def _wrong_width(part: str, module: nn.Module, width: int | None, context_features: int) -> str | None:
    """Returns a message if the network of a part takes another number of features than it gets; else None."""
    given = network_of(module)
    network = module if given is None else given
    while isinstance(network, nn.Sequential) and not hasattr(network, "in_features") and len(network):
        network = network[0]
    declared = getattr(network, "in_features", None)
    if width is None or not isinstance(declared, int) or declared == width:
        return None
    own = {"likelihood": "latent", "posterior": "cell"}.get(part)
    counts = {own: width - context_features, "covariate": context_features} if own else {"covariate": width}
    said = " and ".join(f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())
    made = f"make it for {width}, as by mlp({width}, 200)"
    return f"its network takes {declared} features and gets {width} ({said}); {made}."


@torch.no_grad()
def draw_two(prior: TorchDistribution, module: nn.Module) -> Tensor:
    """Returns two draws of z, shape ``(2, *latent_shape)``; the global random stream stays unchanged.

    Arguments:
        prior: The prior distribution.
        module: Module that returned it; in a hierarchy, a draw runs its networks.
    """
    with isolated(0), evaluating(module):
        try:
            return prior.sample(() if prior.batch_shape else (2,))
        except (ValueError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"VAE: the prior `{type(cells_of(prior)).__name__}` cannot be drawn from: {reason}"
            ) from error


def check_blocks(prior: TorchDistribution, posterior: TorchDistribution) -> None:
    """Raises an `InputError` if prior and posterior both have layers, but not the same layers."""
    mine, its = blocks_of(posterior), blocks_of(prior)
    if mine and its and mine != its:
        layers = [", ".join(f"{name} ({b.stop - b.start})" for name, b in blocks.items()) for blocks in (its, mine)]
        raise InputError(
            f"VAE: the prior's layers are {layers[0]}, the posterior's {layers[1]}; declare the same layers, of the "
            "same sizes, in both."
        )


def check_batch_shape(part: str, distribution: TorchDistribution, expected: tuple[int, ...] = (2,)) -> None:
    """Raises an `InputError` where a part, given 2 data (or none), does not return the expected batch shape."""
    if distribution.batch_shape != expected:
        given = "given 2 data" if expected else "without a context"
        raise InputError(
            f"VAE: {given}, the {part} returns batch_shape {tuple(distribution.batch_shape)} and event_shape "
            f"{tuple(distribution.event_shape)}; declare the event with .to_event(...): batch_shape must be {expected}."
        )


def check_supports(prior: TorchDistribution, posterior: TorchDistribution, *modules: nn.Module) -> None:
    """Raises an `InputError` if a draw of the prior or the posterior lies outside the support of the other.

    If the posterior's support is too small, importance weights miss part of the prior without an error. If it is too
    large, log p(z) is computed for an impossible z.

    Arguments:
        prior: The prior distribution.
        posterior: The posterior distribution.
        *modules: Modules that returned prior and posterior.
    """
    derived = "choose a posterior with the prior's support, or leave it out and it follows from the prior"
    with isolated(0), evaluating(nn.ModuleList(modules)):
        for name, drawn, other, support in (
            ("posterior", posterior, "prior", prior.support),
            ("prior", prior, "posterior", posterior.support),
        ):
            z = drawn.sample((256,)) if drawn.batch_shape else drawn.sample((256, 2))
            try:
                inside = bool(support.check(z).all())
            except (NotImplementedError, RuntimeError):  # a support that depends on more than is known here
                continue
            if not inside:
                raise InputError(
                    f"VAE: the {name} has support {drawn.support}, with draws outside the {other}'s, {support}; "
                    f"{remedy(prior) if is_discrete(prior.support) else derived}."
                )
