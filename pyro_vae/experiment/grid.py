r"""Several models in one experiment: every combination of the values of some keys, or candidates with names."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.part import spelled_out

# Keys that are the same for all candidates.
FIXED = ("vary", "models", "seeds", "device", "evaluation")
_MOST = 10_000
# Keys whose values name themselves in a label; others stand there with their key.
_NAMED = ("prior", "likelihood", "posterior", "inference", "program")


@dataclass(frozen=True)
class Variant:
    """One combination of a grid.

    Attributes:
        label: The values that vary, in words.
        changes: Value of each key that varies, by its path in the file.
        experiment: The experiment with these values; None where they cannot work.
        reason: Why they cannot work.
    """

    label: str
    changes: Mapping[str, Any]
    experiment: Any
    reason: str = ""


def variants(experiment: Any) -> list[Variant]:
    """Returns the combinations of an experiment: one without changes where nothing varies.

    Raises:
        InputError: For more than 10,000 combinations, or two of one label.
    """
    if not experiment.vary and not experiment.models:
        return [Variant("", {}, experiment)]
    axes = [_axis(keys, values) for keys, values in experiment.vary.items()]
    if experiment.models:
        axes.insert(0, [(name, dict(changes)) for name, changes in experiment.models.items()])
    if (n := math.prod(map(len, axes))) > _MOST:
        raise InputError(f"vary: {n:,} combinations; expected at most {_MOST:,}.")
    found = [_variant(experiment, combination) for combination in itertools.product(*axes)]
    labels = [variant.label for variant in found]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"vary: two combinations are `{label}`; give each value once, or name them by `models`.")
    return found


def check_grid(vary: Mapping[str, Any], models: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises a `ValueError` for a grid whose keys or values have no meaning.

    Arguments:
        vary: Values of keys, or of several keys that vary together (``prior, latent``).
        models: Changes by the candidate's name.
        keys: Keys of an experiment.
    """
    allowed = [key for key in keys if key not in FIXED]
    for written, values in vary.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"`{written}` varies over a list of values, such as [4, 8] (got {values!r})")
        names = _keys(written)
        _check_keys(names, allowed)
        for value in values:
            if len(names) > 1 and (not isinstance(value, list) or len(value) != len(names)):
                raise ValueError(
                    f"`{written}` varies over lists of {len(names)} values, one for each key (got {value!r})"
                )
    for name, changes in models.items():
        if not isinstance(changes, dict):
            raise ValueError(
                f"`models`: `{name}` is a mapping of keys to values, such as {{latent: 4}} (got {changes!r})"
            )
        _check_keys(list(changes), allowed)
    seen = [key for written in vary for key in _keys(written)]
    seen += sorted({key for changes in models.values() for key in changes})
    for key in seen:
        if seen.count(key) > 1:
            raise ValueError(f"`{key}` varies twice")


def _check_keys(names: Iterable[str], allowed: list[str]) -> None:
    for name in names:
        first = name.split(".")[0]
        if first in FIXED or name in ("data", "data.name"):
            raise ValueError(
                f"`{name}` is the same for all candidates of a comparison; leave it out of those that vary"
            )
        if first not in allowed:
            raise ValueError(f"no key `{first}`; {near_match(first, allowed)}")


def _keys(written: str) -> list[str]:
    return [key.strip() for key in written.split(",")]


def _axis(written: str, values: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """The labels and changes of one key, or of several that vary together; a single value has no label."""
    names = _keys(written)
    rows = values if len(names) > 1 else [[value] for value in values]
    return [
        (", ".join(map(_said, names, row)) if len(rows) > 1 else "", dict(zip(names, row, strict=True))) for row in rows
    ]


def _said(key: str, value: Any) -> str:
    text = _text(value)
    return text if key in _NAMED and isinstance(value, str | dict) else f"{key.rsplit('.', 1)[-1]}={text}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        parts = [f"{key}={_text(inner)}" for key, inner in value.items()]
        if len(value) == 1:
            ((name, inner),) = value.items()
            return f"{name} {_text(inner)}".strip() if isinstance(inner, dict) else parts[0]
        if "family" in value:
            return " ".join([str(value["family"]), *(part for part in parts if not part.startswith("family="))])
        return " ".join(parts)
    if isinstance(value, list):
        return "x".join(map(_text, value))
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _variant(experiment: Any, combination: Iterable[tuple[str, dict[str, Any]]]) -> Variant:
    parts = list(combination)
    label = ", ".join(said for said, _ in parts if said)
    changes = {key: value for _, changed in parts for key, value in changed.items()}
    own = {name: getattr(experiment, name) for name in experiment.model_fields_set if name not in ("vary", "models")}
    content = {name: _plain(value) for name, value in own.items()}
    for key, value in changes.items():
        assign(content, key, copy.deepcopy(value))
    try:
        return Variant(label, changes, type(experiment).parse(content, f"vary: {label}"))
    except InputError as error:
        return Variant(label, changes, None, str(error))


def _plain(value: Any) -> Any:
    """A field as it stands in a file; a program stays as it is."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def assign(content: dict[str, Any], path: str, value: Any, source: str = "vary") -> None:
    """Sets a value at a dotted path of an experiment file's content.

    Arguments:
        content: The content; shorthands on the way are spelled out.
        path: Path of the key.
        value: Its value.
        source: Where the path stands, for errors.
    """
    *parents, last = path.split(".")
    for i, parent in enumerate(parents):
        inner = content.setdefault(parent, {})
        if isinstance(inner, str):  # a shorthand, such as `data: digits`
            inner = content[parent] = spelled_out(parent, inner)
        if not isinstance(inner, dict):
            raise InputError(f"{source}: `{'.'.join(parents[: i + 1])}` is not a mapping, so `{path}` cannot be set.")
        content = inner
    content[last] = value
