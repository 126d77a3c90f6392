r"""YAML as users expect it: ``1e-3`` is a number, and a repeated key is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pyro_vae.errors import InputError
from pyro_vae.runtime.whole_file import write_whole

# Limits of a file, far beyond what an experiment needs: characters, depth of nesting, values with aliases spelled out.
MOST_CHARACTERS, MOST_DEPTH, MOST_VALUES = 1_000_000, 50, 100_000


class _Loader(yaml.SafeLoader):
    """A loader for YAML 1.1 with the floats of YAML 1.2, without dates, repeated keys and files that explode."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def get_single_node(self) -> Any:
        """Returns the root node, whose size with all aliases spelled out is within the limits."""
        root = super().get_single_node()
        if root is not None and _size(root, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"it has more than {MOST_VALUES:,} values, with its aliases spelled out")
        return root

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Returns the next node; nested no deeper than the limit."""
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"it is nested more than {MOST_DEPTH} levels deep", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Returns a whole number that fits into 64 bits."""
        value = int(super().construct_yaml_int(node))
        if abs(value) >= 2**63:
            raise yaml.constructor.ConstructorError(
                None, None, "a whole number is below 2^63; write a larger one as 1e20", node.start_mark
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping; refuses keys that are no words, and keys that are given twice."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a word, not a list or a mapping", key_node.start_mark
                )
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{key}` is given twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _size(node: Any, known: dict[int, int]) -> int:
    """The number of values of a node, with aliases spelled out; a node that contains itself is infinite."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_VALUES + 1  # of a node within itself
    if isinstance(node, yaml.MappingNode):
        size = 1 + sum(_size(part, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size = 1 + sum(_size(part, known) for part in node.value)
    else:
        size = 1
    known[id(node)] = size
    return size


# What looks like a date is a word.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)
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
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{source}: has {len(text):,} characters; an experiment has {MOST_CHARACTERS:,} at most.")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = error.problem or error.context or ""
        advice = "; indent with spaces, not with tabs" if "'\\t'" in problem else ""
        raise InputError(f"{source}{place}: {problem}{advice}.") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # the latter for a tag whose value does not fit it
        raise InputError(f"{source}: {' '.join(str(error).split())}.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
        InputError: If the file cannot be read or holds no mapping; the message is one line with the place.
    """
    try:
        with path.open("rb") as file:
            content = file.read(4 * MOST_CHARACTERS + 1)  # a device never ends
        if len(content) > 4 * MOST_CHARACTERS:
            raise InputError(f"{path}: is larger than an experiment file can be ({MOST_CHARACTERS:,} characters).")
        text = content.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file in UTF-8; save it as one.") from None
    found = parse_yaml(text, str(path))
    if found is None or found == {}:
        raise InputError(f"{path}: is empty; name at least the data: `data: digits`, or `data: my_table.csv`.")
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a mapping such as `data: digits`, got {type(found).__name__}.")
    return found


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Writes a mapping as YAML, in the order of its keys."""
    write_whole(path, yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100).encode())
