r"""The verdict on a family: the roles that it can have in a VAE."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from torch.distributions.constraints import Constraint

from pyro_vae.distributions.support import base_support
from pyro_vae.errors import InputError
from pyro_vae.vae.families.declaration import Declaration
from pyro_vae.vae.sources import Fixed

ROLES = ("prior", "likelihood", "posterior")


@dataclass(frozen=True)
class Parameter:
    """One argument of a family.

    Attributes:
        name: Name of the argument.
        constraint: Constraint on its values, in words; empty if the family declares none.
        sources: Allowed sources of it, from ``"network"``, ``"learned"`` and ``"fixed"``.
        shape: Size that must be declared, for the event of the trial; None if the event determines it.
        default: Default value, in words; empty if it has none.
    """

    name: str
    constraint: str
    sources: tuple[str, ...]
    shape: tuple[int, ...] | None = None
    default: str = ""


@dataclass(frozen=True)
class Entry:
    """The verdict on one class: the roles that it can have, or why it has none.

    Attributes:
        name: Name of the class.
        family: The class itself, or our own class that replaces it.
        roles: Roles that it can have, from prior, likelihood and posterior.
        reasons: Reason against each of the other roles, by role.
        instead: Recommended replacement, if it has no role.
        support: Support of its draws, in words.
        event_dim: Number of dimensions of one event; None if no declaration was found.
        discrete: Whether its support is discrete.
        reparameterizable: Whether gradients pass through its draws.
        enumerable: Whether it can enumerate its support.
        parameters: Parameters of the family.
        posteriors: Posteriors that fit it as prior, from ``"derived"`` (a Normal, pushed onto the support), its own
            name, and the name of its ``posterior_family``.
        normalised: Domain over which its total mass is 1: its ``"support"``, a ``"period"`` of 2 pi, or counts given
            their ``"total"``; None if this was not checked.
        declaration: Declaration that was used in the trials.
    """

    name: str
    family: type
    roles: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    instead: str = ""
    support: str = ""
    event_dim: int | None = None
    discrete: bool = False
    reparameterizable: bool = False
    enumerable: bool = False
    parameters: tuple[Parameter, ...] = ()
    posteriors: tuple[str, ...] = ()
    normalised: str | None = None
    declaration: Declaration | None = None

    @property
    def usable(self) -> bool:
        """Whether it has any role."""
        return bool(self.roles)

    @property
    def reason(self) -> str:
        """Reasons against the roles that it does not have; empty if it has all."""
        return "; ".join(dict.fromkeys(self.reasons.values()))

    def spec(self, role: str) -> dict[str, Any]:
        """Returns the entry of an experiment file that uses it in a role: the family, and the required options.

        Raises:
            InputError: If it does not have this role.
        """
        if self.declaration is None or role not in self.roles:
            raise InputError(f"families: `{self.name}` can be no {role}: {self.reasons.get(role, 'unknown role')}.")
        network = role != "prior" and self.networked
        named: dict[str, Any] = {}
        for name, option in self.declaration.options.items():
            if isinstance(option, Fixed):
                named[name] = option.to_spec()
            elif network and name not in network:
                named[name] = {"learned": {"shape": list(option.shape)}} if option.shape else "learned"
            elif option.shape is not None:
                named[name] = {"network" if network else "learned": {"shape": list(option.shape)}}
        return {"family": self.name, **named}

    @property
    def networked(self) -> tuple[str, ...]:
        """The parameters that a network can output."""
        return tuple(p.name for p in self.parameters if "network" in p.sources)


def words(constraint: Constraint | None) -> str:
    """Returns a constraint in words of the field.

    Example:
        >>> from torch.distributions import constraints
        >>> words(constraints.greater_than(0.0)), words(constraints.interval(0.0, 1.0))
        ('> 0', '[0, 1]')
    """
    if constraint is None:
        return ""
    base = base_support(constraint)
    dimensions = 0 if base is constraint else constraint.event_dim - base.event_dim
    text = _words(base)
    return text if not dimensions else f"{text}, {('a vector', 'a matrix')[min(dimensions, 2) - 1]}"


def _words(base: Any) -> str:
    if inspect.isclass(base):
        return str(base.__name__)
    name = type(base).__name__.lstrip("_")
    low, high = (_bound(getattr(base, f"{end}_bound", None)) for end in ("lower", "upper"))
    whole = name.startswith("Integer")
    if low and high and high != "inf":
        if whole:
            return f"{low} ... {high}"
        return f"[{low}, {high})" if name == "HalfOpenInterval" else f"[{low}, {high}]"
    if low:
        return f"{low}, {int(low) + 1}, ..." if whole else f"{'>' if name == 'GreaterThan' else '>='} {low}"
    if high:
        return f"< {high}"
    spaced = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
    return {"dependent property": "dependent"}.get(spaced, spaced)


def _bound(value: Any) -> str:
    """Returns a bound as a number; empty if there is none, `...` if it differs by element."""
    if value is None:
        return ""
    numbers = set(value.flatten().tolist()) if hasattr(value, "flatten") else {value}
    return f"{numbers.pop():g}" if len(numbers) == 1 else "..."
