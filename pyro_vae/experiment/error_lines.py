r"""Errors of an experiment file, with the keys of the file."""

from __future__ import annotations

import typing
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Tag

from pyro_vae.errors import near_match

# Fields of the specifications that are no keys of a file.
_HIDDEN = frozenset({"of", "layers", "part", "columns"})

# Where that stands which is often looked for elsewhere.
_ELSEWHERE = {
    **dict.fromkeys(("lr", "learning_rate", "rate"), "training: {optimizer: {Adam: {lr: 0.001}}}"),
    **dict.fromkeys(("encoder", "decoder", "hidden"), "networks: {encoder: {mlp: [200]}, decoder: {mlp: [200]}}"),
    **dict.fromkeys(("beta", "kl_weight"), "inference: {beta-vae: {beta: 4}}"),
    **dict.fromkeys(("latent_dim", "latents", "z_dim", "dim"), "latent: 8"),
    **dict.fromkeys(("algorithm", "algorithms"), "inference: [aevb, iwae]"),
    **dict.fromkeys(("seed",), "seeds: [0]"),
}


def line_of(source: str, model: type[BaseModel], detail: Any) -> str:
    """Returns one line for an error detail of pydantic: the path in the file, the value and what is allowed."""
    path, fields = _walk(model, detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("model_type", "model_attributes_type"):
        message = f"expected a mapping with keys among {', '.join(f'`{key}`' for key in fields)}"
    if detail["type"] == "extra_forbidden":
        _, fields = _walk(model, detail["loc"][:-1])
        hint = _ELSEWHERE.get(str(detail["loc"][-1]))
        return f"{source}: `{path}` is no key here; " + (
            near_match(str(detail["loc"][-1]), fields) if hint is None else f"write `{hint}`."
        )
    if detail["type"] == "missing":
        return f"{source}: `{path}` is missing"
    given = f" (got {detail['input']!r})" if detail["type"] != "value_error" else ""
    return f"{source}: {f'`{path}`: ' if path else ''}{message}{given}"


def _walk(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[str, list[str]]:
    """Returns the path in the file, and the keys that are allowed there."""
    shown: list[str] = []
    here: type[BaseModel] | None = model
    choices: dict[str, type[BaseModel]] = {}
    skipped = False
    for element in map(str, location):
        if skipped:  # the element names the form of the value
            skipped = False
            continue
        if choices:  # the element names the kind of part
            here, choices = choices.get(element), {}
            if element != "family":
                shown.append(element)
            continue
        field = None if here is None else here.model_fields.get(element)
        if field is None or element not in _HIDDEN:
            shown.append(element)
        if field is not None:
            nested = _models(field.annotation, *field.metadata)
            here = next(iter(nested.values())) if len(nested) == 1 else None
            choices = nested if len(nested) > 1 else {}
            skipped = not choices and any(isinstance(item, Discriminator) for item in field.metadata)
    return ".".join(shown), [] if here is None else _keys(here)


def _keys(model: type[BaseModel]) -> list[str]:
    """Returns the keys of a part of the file."""
    own: Any = getattr(model, "own_fields", None)
    fields = list(model.model_fields) if own is None else own()
    return [name for name in fields if name not in _HIDDEN]


def _models(annotation: Any, *metadata: Any) -> dict[str, type[BaseModel]]:
    """Returns the models that a field may hold, by their tags."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        tag = next((item.tag for item in metadata if isinstance(item, Tag)), annotation.__name__)
        return {tag: annotation}
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return _models(arguments[0], *arguments[1:])
    found: dict[str, type[BaseModel]] = {}
    for argument in arguments:
        found |= _models(argument)
    return found
