r"""Classifies every distribution: trials find the roles that it can have."""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.distributions import constraints
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.family import ALIASES, constraints_of, parameters_of
from pyro_vae.distributions.protocol import posterior_family_of
from pyro_vae.distributions.registry import FAMILIES, family_in_place_of
from pyro_vae.distributions.support import is_discrete
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.families.declaration import Declaration, Failure, Free, declare, object_arguments
from pyro_vae.vae.families.trials import (
    networkable,
    normalisation,
    outcome,
    support_moves_with,
    try_derived_posterior,
    try_named_posterior,
    try_network,
    try_own_posterior,
    unmoved,
)
from pyro_vae.vae.families.verdict import ROLES, Entry, Parameter, words

_MODULE = "your own nn.Module"
# Families of one support are named as neighbours only if there are fewer than this.
_FEW = 5


def exported() -> dict[str, type]:
    """Returns every class that `pyro.distributions` exports, and our own families, by name."""
    classes = {name: member for name, member in vars(dist).items() if inspect.isclass(member) and name[0] != "_"}
    return dict(sorted({**classes, **FAMILIES}.items()))


@functools.cache
def classifications() -> dict[str, Entry]:
    """Returns the verdict on every class of `exported`, by name."""
    entries = {name: classify(family) for name, family in exported().items()}
    return {name: entry if entry.usable else _with_neighbour(entry, entries) for name, entry in entries.items()}


def counts() -> dict[str, int]:
    """Returns the number of families (classes that are distributions), of usable ones, and of those in each role.

    Example:
        >>> list(counts())
        ['classes', 'families', 'usable', 'prior', 'likelihood', 'posterior']
    """
    entries = classifications().values()
    number = {"classes": len(entries), "families": len(FAMILIES), "usable": sum(entry.usable for entry in entries)}
    return number | {role: sum(role in entry.roles for entry in entries) for role in ROLES}


def classify(family: type) -> Entry:
    """Returns the roles that a family can have in a VAE, found by trials, or the reasons why it has none.

    The search finds a way to declare the family through `Conditional`. Then its total mass is computed, and it is tried
    as prior, likelihood and posterior. The global random stream stays unchanged.

    Arguments:
        family: Any class; a subclass of Pyro's or torch's distributions may be usable.

    Example:
        >>> import pyro.distributions as dist
        >>> entry = classify(dist.Gamma)
        >>> entry.roles, entry.support, entry.parameters[0].sources
        (('prior', 'likelihood', 'posterior'), '>= 0', ('network', 'learned', 'fixed'))
    """
    with isolated(0, "classification"), pyro.validation_enabled(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _classify(family)


def _classify(family: type) -> Entry:
    name = family.__name__
    if not (inspect.isclass(family) and issubclass(family, Distribution)):
        return _refused(name, family, "is no distribution of torch: it has no batch and event shape")
    family = family_in_place_of(family)
    if family.log_prob is Distribution.log_prob:
        return _refused(name, family, "is a base class: it has no log_prob of its own")
    try:
        declaration = declare(family, prefer=lambda trial: not outcome(_network, trial))
    except Failure as failure:
        objects = object_arguments(family)
        if objects:
            return _refused(name, family, f"is made of other distributions: {', '.join(f'`{o}`' for o in objects)}")
        return _refused(name, family, _short(str(failure)))
    try:
        return _tried(name, declaration)
    except Failure as failure:
        return replace(_described(name, declaration, ()), reasons=dict.fromkeys(ROLES, _short(str(failure))))


def _network(declaration: Declaration) -> None:
    try_network(declaration, declaration.free)


def _tried(name: str, declaration: Declaration) -> Entry:
    """Tries the roles of a family that can be declared."""
    moving = support_moves_with(declaration)
    for parameter in dict.fromkeys([*moving, *unmoved(declaration)]):
        declaration = declaration.fixed(parameter)
    normalised = normalisation(declaration)
    network, likelihood = _networked(declaration)
    derived = outcome(try_derived_posterior, declaration)
    posterior = likelihood or outcome(lambda declaration: try_own_posterior(declaration, network), declaration)
    posteriors = (*(() if derived else ("derived",)), *(() if posterior else (name,)), *_named_posterior(declaration))
    if likelihood and not declaration.free and _bounded_by_constants(declaration):
        likelihood = posterior = "its support depends on its parameters, which must be constants"
    reasons = {"prior": "" if posteriors else f"{derived}; {posterior}", "likelihood": likelihood}
    reasons["posterior"] = posterior
    return replace(
        _described(name, declaration, network),
        roles=tuple(role for role in ROLES if not reasons[role]),
        reasons={role: _short(reason) for role, reason in reasons.items() if reason},
        posteriors=posteriors,
        normalised=normalised,
    )


def _networked(declaration: Declaration) -> tuple[tuple[str, ...], str]:
    try:
        return networkable(declaration), ""
    except Failure as failure:
        return (), str(failure)


def _named_posterior(declaration: Declaration) -> tuple[str, ...]:
    """Returns the family's ``posterior_family``, if it works."""
    named = posterior_family_of(declaration.family)
    return () if named is None or outcome(try_named_posterior, declaration) else (named.__name__,)


def _bounded_by_constants(declaration: Declaration) -> bool:
    constrained = constraints_of(declaration.family, declaration.event_shape)
    return any(constraints.is_dependent(constraint) for constraint in constrained.values())


def _described(name: str, declaration: Declaration, network: tuple[str, ...]) -> Entry:
    conditional = declaration.conditional()
    distribution: Any = conditional()
    return Entry(
        name,
        declaration.family,
        support=words(distribution.support),
        event_dim=conditional.family_event_dim,
        discrete=is_discrete(distribution.support),
        reparameterizable=bool(distribution.has_rsample),
        enumerable=bool(distribution.has_enumerate_support),
        parameters=tuple(_parameter(declaration, parameter, network) for parameter in _arguments(declaration)),
        declaration=declaration,
    )


def _arguments(declaration: Declaration) -> list[inspect.Parameter]:
    return list(parameters_of(declaration.family).values())


def _parameter(declaration: Declaration, parameter: inspect.Parameter, network: tuple[str, ...]) -> Parameter:
    name = parameter.name
    constraint = constraints_of(declaration.family, declaration.event_shape).get(name)
    stands_for = next((a for aliases in ALIASES if name in aliases for a in aliases if a in declaration.options), name)
    option = declaration.options.get(stands_for)
    sources: tuple[str, ...] = ("fixed",)
    if isinstance(option, Free) and constraint is not None:
        sources = ("network", "learned", "fixed") if stands_for in network else ("learned", "fixed")
    shape = option.shape if isinstance(option, Free) and stands_for == name else None
    default = "" if parameter.default in (inspect.Parameter.empty, None) else str(parameter.default)
    return Parameter(name, words(constraint), sources, shape, default)


def _refused(name: str, family: type, reason: str) -> Entry:
    support = getattr(family, "support", None)
    told = isinstance(support, Constraint) and not constraints.is_dependent(support)
    return Entry(name, family, reasons=dict.fromkeys(ROLES, reason), support=words(support) if told else "")


def _with_neighbour(entry: Entry, entries: dict[str, Entry]) -> Entry:
    """Adds what to use instead: a usable base class, a family whose name is in its name, or one of its support."""
    usable = [other for other in entries.values() if other.usable]
    names = [other.name for other in usable]
    kinds = [ancestor.__name__ for ancestor in entry.family.__mro__[1:] if ancestor.__name__ in names]
    same = [other.name for other in usable if entry.support and other.support == entry.support]
    contained = [name for name in same or names if name in entry.name]
    alike = same if len(same) < _FEW else []
    near = ", ".join(f"`{name}`" for name in kinds[:1] or sorted(contained, key=len)[-1:] or alike)
    return replace(entry, instead=near or (f"a family with the support {entry.support}" if same else _MODULE))


def _short(text: str) -> str:
    """Returns a reason on one line."""
    line = " ".join(text.replace("Conditional: ", "").replace("VAE: ", "").split())
    line = re.sub(r"^`\w+` cannot be built for event_shape \([^)]*\): ", "cannot be built: ", line)
    return line if len(line) <= 160 else line[:157] + "..."
