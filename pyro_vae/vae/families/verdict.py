r"""What a family can be in a VAE."""

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
        name: Its name.
        constraint: What values it takes, in words; empty where the family declares none.
        sources: Which of network, learned and fixed it may come from.
        shape: The size that must be declared, at the sizes of the trial; None where the event tells it.
        default: Its default, in words; empty where it has none.
    """

    name: str
    constraint: str
    sources: tuple[str, ...]
    shape: tuple[int, ...] | None = None
    default: str = ""


@dataclass(frozen=True)
class Entry:
    """The verdict on one class: what it can be, or why not.

    Attributes:
        name: Name of the class.
        family: The class itself; our own where that stands in the place of Pyro's.
        roles: Which of prior, likelihood and posterior it can be.
        reasons: For each other role, why not.
        instead: What to use in its place, where it has no role.
        support: The support that its draws have, in words.
        event_dim: The number of dimensions of one event; None where no declaration was found.
        discrete: Whether its support holds masses.
        reparameterizable: Whether gradients pass through its draws.
        enumerable: Whether it lists its support.
        parameters: Its parameters.
        posteriors: As a prior: the posteriors that fit it, of ``"derived"`` (a Normal, pushed onto the support),
            its own name, and the family that it names for it.
        normalised: Whether it was found to have a total mass of 1: over its ``"support"``, a ``"period"`` of 2 pi,
            or given the ``"total"`` of its counts; None where that was not checked.
        declaration: How it was declared in the trials.
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
        """Why it has no role, or not all of them; empty where it has all."""
        return "; ".join(dict.fromkeys(self.reasons.values()))

    def spec(self, role: str) -> dict[str, Any]:
        """Returns what an experiment file says to use it in a role: the family, and what it must name.

        Raises:
            InputError: Where it has not this role.
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
        """The parameters that a network may put out."""
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
    """A bound as a number; empty where there is none, `...` where it differs by element."""
    if value is None:
        return ""
    numbers = set(value.flatten().tolist()) if hasattr(value, "flatten") else {value}
    return f"{numbers.pop():g}" if len(numbers) == 1 else "..."
