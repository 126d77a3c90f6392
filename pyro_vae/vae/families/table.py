r"""The verdicts on all families as a table, and the page of one family with examples."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import yaml

from pyro_vae.distributions.registry import usual_name
from pyro_vae.errors import InputError, near_match
from pyro_vae.runtime.terminal import SIMPLE, Group, RenderableType, Table, Text
from pyro_vae.vae.families.classify import classifications, counts, exported
from pyro_vae.vae.families.verdict import ROLES, Entry
from pyro_vae.vae.sources import Fixed

_LATENT, _HIDDEN = 2, 100
_POSTERIOR = {"derived": "follows from the support", "own": "the family itself, amortised"}


def entry_of(name: str) -> Entry:
    """Returns the verdict on a class of `pyro.distributions`, or on one of our own families, by name.

    Raises:
        InputError: For an unknown name, with its near match.
    """
    known = exported()
    if name not in known:
        raise InputError(f"families: unknown family `{name}`; {near_match(usual_name(name), known)}")
    return classifications()[name]


def families_table() -> RenderableType:
    """Returns the verdicts on all classes: those that are usable, and those that are refused with their reason."""
    entries = classifications().values()
    number = counts()
    usable = Table(box=SIMPLE, title=_title(number), title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    usable.add_column("family", overflow="fold", max_width=27)
    usable.add_column("support", overflow="fold", max_width=17)
    usable.add_column("parameters", overflow="fold")
    for column in ("grad", "enum", "prior", "lik.", "post."):
        usable.add_column(column, no_wrap=True, min_width=len(column))
    for entry in (entry for entry in entries if entry.usable):
        usable.add_row(
            entry.name,
            entry.support,
            ", ".join(_parameter(parameter) for parameter in entry.parameters),
            _mark(entry.reparameterizable),
            _mark(entry.enumerable),
            _derived(entry),
            _mark("likelihood" in entry.roles),
            _mark("posterior" in entry.roles),
        )
    refused = Table(box=SIMPLE, title="Refused", title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    refused.add_column("family", no_wrap=True)
    refused.add_column("why", overflow="fold")
    refused.add_column("instead", overflow="fold")
    for entry in (entry for entry in entries if not entry.usable):
        refused.add_row(entry.name, entry.reason, entry.instead)
    return Group(usable, Text(_LEGEND), refused)


_LEGEND = (
    "Parameters come from a network, the optimizer or a constant; those in (brackets) are constants, those in "
    "<angles> learned or constants. grad: gradients pass through draws. enum: the support can be listed. prior: `yes` "
    "where a posterior follows from the support, `own q` where the same family must be the posterior. Your own "
    "nn.Module: any whose forward(context) returns the distribution.\n"
)


def family_page(name: str) -> str:
    """Returns one verdict in words, with examples in Python and YAML for a usable family.

    Arguments:
        name: Name of the class.

    Raises:
        InputError: For an unknown name, with its near match.
    """
    entry = entry_of(name)
    lines = [entry.name, ""]
    if entry.support:
        lines += [f"support: {entry.support}{' (discrete)' if entry.discrete else ''}, event_dim {entry.event_dim}"]
        lines += [_OVER[entry.normalised]] if entry.normalised in _OVER else []
        lines += [
            f"reparameterizable: {_word(entry.reparameterizable)}, enumerable: {_word(entry.enumerable)}",
            "parameters:",
            *(f"  {line}" for line in _parameter_lines(entry)),
        ]
    for role in ROLES:
        if role in entry.roles:
            how = f"; posterior: {_posteriors(entry)}" if role == "prior" else ""
            lines.append(f"{role}: yes{how}")
        else:
            lines.append(f"{role}: no: {entry.reasons[role]}")
    if not entry.usable:
        return "\n".join([*lines, f"instead: {entry.instead}"])
    return "\n".join(
        [*lines, "", "Python:", _indented(python_example(entry)), "", "YAML:", _indented(yaml_example(entry))]
    )


_OVER = {
    "period": "its density has the period 2 pi, and is one over a single period, not over the support that it declares",
    "total": "its masses are those of counts given their sum",
}


def python_example(entry: Entry) -> str:
    """Returns lines of Python that declare a usable family in each of its roles."""
    names = ["Conditional"]
    body = []
    for role in entry.roles:
        call, used = _call(entry, role)
        names += [name for name in dict.fromkeys(used) if name not in names]
        body.append(f"{role} = {call}")
    imports = [f"from pyro_vae import {', '.join(sorted(names, key=lambda n: (n.islower(), n)))}"]
    imports.insert(0, "import pyro.distributions as dist" if hasattr(dist, entry.name) else _import(entry))
    return "\n".join([*imports, "", *body])


def yaml_example(entry: Entry) -> str:
    """Returns lines of YAML that declare a usable family in each of its roles."""
    return "\n".join(
        f"{role}: {yaml.safe_dump(entry.spec(role), default_flow_style=True, sort_keys=False, width=1000).strip()}"
        for role in entry.roles
    )


def _call(entry: Entry, role: str) -> tuple[str, list[str]]:
    """Returns a call of `Conditional`, and the other names that it uses."""
    assert entry.declaration is not None  # it has a role
    shape = entry.declaration.event_shape or (_LATENT,)
    family = f"dist.{entry.name}" if hasattr(dist, entry.name) else entry.name
    arguments, used = [family, str(tuple(shape))], []
    if role != "prior":
        arguments.append(f"given=mlp({_LATENT}, {_HIDDEN})")
        used.append("mlp")
    network = entry.networked if role != "prior" else ()
    for name, option in entry.declaration.options.items():
        kind = "Network" if name in network else "Learned"
        if isinstance(option, Fixed):
            source, kind = f"Fixed({option.value!r})", "Fixed"
        elif option.shape is not None:
            source = f"{kind}(shape={option.shape})"
        elif role != "prior" and name not in network:
            source = "Learned()"
        else:
            continue
        arguments.append(f"{name}={source}")
        used.append(kind)
    return f"Conditional({', '.join(arguments)})", used


def _import(entry: Entry) -> str:
    return f"from {entry.family.__module__} import {entry.name}"


def _title(number: dict[str, int]) -> str:
    return (
        f"{number['usable']} of {number['families']} families are usable: {number['prior']} as prior, "
        f"{number['likelihood']} as likelihood, {number['posterior']} as posterior"
    )


def _parameter(parameter: Any) -> str:
    if "network" in parameter.sources:
        return str(parameter.name)
    return f"<{parameter.name}>" if "learned" in parameter.sources else f"({parameter.name})"


def _parameter_lines(entry: Entry) -> list[str]:
    lines = []
    for parameter in entry.parameters:
        constraint = f" ({parameter.constraint})" if parameter.constraint else ""
        size = f"; size to be declared, here {parameter.shape}" if parameter.shape else ""
        default = f"; default {parameter.default}" if parameter.default and parameter.sources == ("fixed",) else ""
        lines.append(f"{parameter.name}{constraint}: {', '.join(parameter.sources)}{size}{default}")
    return lines or ["none"]


def _posteriors(entry: Entry) -> str:
    words = {"derived": _POSTERIOR["derived"], entry.name: _POSTERIOR["own"]}
    return " or ".join(words.get(name, f"`{name}`") for name in entry.posteriors)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())


def _derived(entry: Entry) -> str:
    if "derived" in entry.posteriors or "prior" not in entry.roles:
        return _mark("prior" in entry.roles)
    return "own q" if entry.name in entry.posteriors else "named q"


def _mark(true: bool) -> str:
    return "yes" if true else ""


def _word(true: bool) -> str:
    return "yes" if true else "no"
