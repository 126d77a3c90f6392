r"""YAML as users expect it: ``1e-3`` is a number, and a repeated key is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pyro_vae.errors import InputError


class _Loader(yaml.SafeLoader):
    """A loader for YAML 1.1 with the floats of YAML 1.2 and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key `{sorted(map(str, repeated))[0]}` is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """Returns the value of a YAML text.

    Arguments:
        text: The text.
        source: Name of the text in errors.

    Raises:
        InputError: If the text is no valid YAML; the message is one line with the place.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = error.problem or error.context or ""
        advice = "; indent with spaces, not with tabs" if "'\\t'" in problem else ""
        raise InputError(f"{source}{place}: {problem}{advice}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
        InputError: If the file cannot be read or holds no mapping; the message is one line with the place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file in UTF-8; save it as one.") from None
    content = parse_yaml(text, str(path))
    if content is None or content == {}:
        raise InputError(f"{path}: is empty; name at least the data: `data: digits`, or `data: my_table.csv`.")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping such as `data: digits`, got {type(content).__name__}.")
    return content


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Writes a mapping as YAML, in the order of its keys."""
    path.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100), encoding="utf-8")
