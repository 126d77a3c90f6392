r"""An experiment from a file and the flags of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae.errors import InputError
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.experiment.grid import assign
from pyro_vae.experiment.yaml_file import parse_yaml, read_yaml


def experiment_of(file: Path | None, flags: dict[str, Any], settings: list[str], vary: list[str]) -> Experiment:
    """Returns the experiment of a file, changed by flags and then by settings.

    A data file's path is relative to where it is named.

    Arguments:
        file: The experiment file, if there is one.
        flags: Values of keys.
        settings: Settings of other keys, such as ``training.batch_size=50``.
        vary: Keys that vary, with their values, such as ``prior=Normal,flow``.

    Raises:
        InputError: For a setting that is none, a key that is given twice, or an experiment that is not valid.
    """
    content = {} if file is None else read_yaml(file)
    for key, value in flags.items():
        assign(content, key, value, "--set")
    given = dict.fromkeys(flags, "a flag")
    for setting in settings:
        key, separator, text = setting.partition("=")
        key = key.strip()
        if not separator or not key:
            raise InputError(f"--set: expected key=value, such as training.batch_size=50; got `{setting}`.")
        if key in given:
            raise InputError(f"--set: `{key}` is given twice, also by {given[key]}; give it once.")
        given[key] = "--set"
        assign(content, key, parse_yaml(text, f"--set {key}"), "--set")
    for setting in vary:
        key, values = _varied(setting)
        grid = content.setdefault("vary", {})
        if not isinstance(grid, dict):
            raise InputError("vary: expected a mapping from keys to lists of values.")
        grid[key] = values
    folder = Path() if file is None or "data" in flags else file.parent
    return Experiment.parse(content, "command line" if file is None else str(file)).relative_to(folder)


def _varied(text: str) -> tuple[str, list[Any]]:
    """The key and the values of ``prior=Normal,flow``; values may be mappings in braces."""
    key, separator, values = text.partition("=")
    if not separator or not key.strip() or not values.strip():
        raise InputError(f"--vary: expected key=value,value, such as prior=Normal,flow; got `{text}`.")
    listed = values if values.lstrip().startswith("[") else f"[{values}]"
    found = parse_yaml(listed, f"--vary {key.strip()}")
    return key.strip(), found if isinstance(found, list) else [found]


def part(text: str | None) -> Any:
    """Returns a family's name, another part's (flow, mixture), or a mapping with its parameters."""
    return None if text is None else _parsed(text)


def path_or_mapping(text: str | None) -> Any:
    """Returns a data set's name, or a mapping such as ``{name: digits, binarisation: none}``."""
    return _parsed(text) if text is not None and text.lstrip().startswith("{") else text


def _parsed(text: str) -> Any:
    return parse_yaml(text, "command line")
