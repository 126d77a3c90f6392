r"""Tries a declared family as prior, likelihood and posterior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.distributions.protocol import posterior_family_of
from pyro_vae.distributions.support import is_discrete
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.derived_posterior import derive_posterior
from pyro_vae.vae.families.declaration import FAILURES, Declaration, Failure
from pyro_vae.vae.families.quadrature import Quadrature, follows, quadrature

# Tolerance of a total mass of 1, and standard deviation of the unconstrained parameters at which it is computed.
_TOLERANCE, _SPREAD = 1e-3, 0.3
_CONTEXT = 3


def unmoved(declaration: Declaration) -> list[str]:
    """Returns the free parameters for which the density at its draws has no finite, non-zero gradient."""
    if not declaration.free:
        return []
    conditional = declaration.conditional(noise=_SPREAD)
    with pyro.validation_enabled(False):
        distribution = conditional()
        log_prob = distribution.log_prob(distribution.sample((64,)).detach()).sum()
    if not log_prob.requires_grad:
        return declaration.free
    log_prob.backward()
    return [name for name in declaration.free if not _reached(getattr(conditional, f"learned_{name}").grad)]


def _reached(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all()) and bool((gradient != 0).any())


def support_moves_with(declaration: Declaration) -> list[str]:
    """Returns the free parameters on which the support depends."""
    found = []
    for name in declaration.free:
        conditional = declaration.conditional()
        before = _bounds(conditional().support)
        with torch.no_grad():
            getattr(conditional, f"learned_{name}").add_(1.0)
        after = _bounds(conditional().support)
        if len(before) != len(after) or not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            found.append(name)
    return found


def _bounds(support: Any) -> list[Tensor]:
    """The numbers in a support."""
    found = []
    for value in vars(support).values() if hasattr(support, "__dict__") else ():
        if isinstance(value, int | float | Tensor):
            found.append(torch.as_tensor(value).detach().clone())
        elif isinstance(value, torch.distributions.constraints.Constraint):
            found.extend(_bounds(value))
    return found


def total_mass(declaration: Declaration, spread: float) -> tuple[Any, Quadrature]:
    """Returns a family's distribution, in float64 if possible, and its quadrature.

    Arguments:
        declaration: Declaration of the family.
        spread: Standard deviation of the unconstrained parameters.

    Raises:
        NotImplementedError: If no quadrature over the support is known.
    """
    conditional = declaration.conditional(noise=spread)
    with pyro.validation_enabled(False), torch.no_grad():
        try:
            distribution = conditional.double()()
            return distribution, quadrature(distribution)
        except RuntimeError as error:  # some families take no float64 (NotImplementedError is a RuntimeError)
            if isinstance(error, NotImplementedError):
                raise
            distribution = conditional.float()()
            return distribution, quadrature(distribution)


def normalisation(declaration: Declaration) -> str:
    """Returns the domain over which a family's density has mass 1; checks mass and draws at two parameter values.

    Raises:
        Failure: If the mass is not 1 or cannot be computed, or if the draws do not follow the density.
    """
    over = ""
    for spread in (0.0, _SPREAD):
        try:
            distribution, rule = total_mass(declaration, spread)
        except NotImplementedError as error:
            raise Failure(f"its total mass cannot be checked: {error}") from None
        mass, over = float(rule.masses.sum()), rule.over
        if not abs(mass - 1) < _TOLERANCE:
            kind = "masses sum" if is_discrete(distribution.support) else "density integrates"
            raise Failure(f"its {kind} to {mass:.4g}, not to 1, over the support that it declares")
        with pyro.validation_enabled(False):
            if not follows(distribution, rule):
                raise Failure("its draws do not follow its density")
    return over


def networkable(declaration: Declaration) -> tuple[str, ...]:
    """Returns the largest set of the free parameters that may come from a network together.

    Raises:
        Failure: If there is none, with the reason.
    """
    if not declaration.free:
        raise Failure("none of its parameters can be moved")
    reason = ""
    for size in range(len(declaration.free), 0, -1):
        for names in combinations(declaration.free, size):
            complaint = outcome(partial(try_network, network=names), declaration)
            if not complaint:
                return names
            reason = reason or complaint
    raise Failure(reason)


def try_network(declaration: Declaration, network: Sequence[str]) -> None:
    """Tries p(x|z): batches, gradients to every parameter of the network, and independence between data.

    Raises:
        Failure: If the trial fails, with the reason.
    """
    shapes = [declaration.event_shape, *([(3,)] if declaration.event_shape == () else [])]
    for shape in shapes:
        conditional, context = declaration.conditional(network, event_shape=shape), torch.randn(7, _CONTEXT)
        distribution = conditional(context)
        x = distribution.sample().detach()
        log_prob = distribution.log_prob(x)
        if x.shape != (7, *shape) or log_prob.shape != (7,):
            raise Failure("its parameters take no batch")
        if not bool(distribution.support.check(x).all()) or not bool(log_prob.isfinite().all()):
            raise Failure("its draws have no finite density")
        alone = conditional(context[:1]).log_prob(x[:1])
        if not bool(torch.isclose(alone, log_prob[:1], rtol=1e-3, atol=1e-4).all()):
            raise Failure("the density of one datum depends on the others")
        raw = conditional.network_output(torch.randn(64, _CONTEXT)).detach().requires_grad_()
        distribution = conditional.distribution(raw)
        distribution.log_prob(distribution.sample().detach()).sum().backward()
        assert raw.grad is not None  # a leaf
        sizes = conditional.network_sizes
        for name, gradient in zip(sizes, raw.grad.split(list(sizes.values()), dim=-1), strict=True):
            if not _reached(gradient):
                raise Failure(f"no finite gradient reaches {name} where it comes from a network")


def try_own_posterior(declaration: Declaration, network: Sequence[str]) -> None:
    """Tries the amortised family as posterior with the same family as prior: gradients of the ELBO's terms.

    Raises:
        Failure: If the trial fails, with the reason.
    """
    _try_posterior(declaration.conditional(network), declaration, "as its own posterior")


def try_named_posterior(declaration: Declaration) -> None:
    """Tries the family's ``posterior_family`` as posterior, with the family as prior.

    Raises:
        Failure: If the trial fails, with the reason.
    """
    named = posterior_family_of(declaration.family)
    if named is None:
        raise Failure("it names no posterior")
    posterior = Conditional(named, declaration.event_shape, given=nn.Linear(_CONTEXT, 5))
    _try_posterior(posterior, declaration, f"under the posterior `{named.__name__}`")


def _try_posterior(conditional: Conditional, declaration: Declaration, where: str) -> None:
    prior = declaration.conditional(noise=_SPREAD)()
    q = conditional(torch.randn(7, _CONTEXT))
    z = q.rsample((5,)) if q.has_rsample else q.sample((5,))
    log_weights = prior.log_prob(z) - q.log_prob(z)
    if not bool(log_weights.isfinite().all()):
        raise Failure(f"{where}, its log weights are not finite")
    objective = log_weights if q.has_rsample else log_weights.detach() * q.log_prob(z)
    objective.mean().backward()
    if not isinstance(conditional.head, nn.Linear) or not _reached(conditional.head.weight.grad):
        raise Failure(f"{where}, its gradients vanish or are not finite")


def try_derived_posterior(declaration: Declaration) -> None:
    """Tries the posterior that follows from the family as prior: a Normal in unconstrained space.

    Raises:
        Failure: If the trial fails, with the reason.
    """
    conditional = declaration.conditional(noise=_SPREAD)
    if is_discrete(conditional().support):
        raise Failure("no posterior follows from a discrete prior")
    posterior = derive_posterior(conditional, nn.Linear(_CONTEXT, 5))
    q = posterior(torch.randn(7, _CONTEXT))
    z = q.rsample((5,))
    log_weights = conditional().log_prob(z) - q.log_prob(z)
    if z.shape[2:] != declaration.event_shape or log_weights.shape != (5, 7):
        raise Failure("the posterior derived from its support has another shape")
    if not bool(log_weights.isfinite().all()):
        raise Failure("under the posterior derived from its support, its density is not finite")
    log_weights.mean().backward()
    if any(p.grad is None or not bool(p.grad.isfinite().all()) for p in posterior.parameters()):
        raise Failure("under the posterior derived from its support, gradients are missing or not finite")


def outcome(trial: Callable[[Declaration], None], declaration: Declaration) -> str:
    """Returns the reason why a trial fails; empty if it does not fail."""
    try:
        trial(declaration)
    except (Failure, *FAILURES) as error:
        text = " ".join(str(error).split())
        return text or type(error).__name__
    return ""
