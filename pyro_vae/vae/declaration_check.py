r"""Calls the parts of a VAE once, on zeros, so that what does not fit is said at construction."""

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
    """Returns what a part of a VAE returns, in evaluation mode and off the global random stream.

    Arguments:
        part: ``"prior"``, ``"likelihood"`` or ``"posterior"``.
        module: The part.
        *arguments: What it is called with: one tensor, or none.
        context_features: How many of the last features of that tensor are covariates.
        **handed: What the prior is handed besides.

    Raises:
        InputError: Where it fails, or returns no distribution (nor, for a posterior, features).
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
    """What to say where the network of a part was made for another number of features than it gets; else None."""
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
    """Returns two draws of z, off the global random stream, shape ``(2, *latent_shape)``.

    Arguments:
        prior: The prior.
        module: That returned it; a hierarchy runs its networks when it is drawn from.
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
    """Raises an `InputError` where prior and posterior are both layered, but not in the same layers."""
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
    """Raises an `InputError` where prior and posterior do not have the same support, as far as draws of each tell.

    Where the posterior leaves part of the prior's support out, importance weights miss that part in silence; where
    it goes beyond, log p(z) is that of an impossible z.

    Arguments:
        prior: The prior.
        posterior: The posterior.
        *modules: That returned them.
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
