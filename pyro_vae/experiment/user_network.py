r"""The user's own network in an experiment file: ``{module: my_package.nets.Encoder}``.

Reading such a file and building the network runs code that the file names, so it must be allowed explicitly.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vae.errors import InputError, near_match, nearest
from pyro_vae.experiment.user_code import check_allowed, imported, reason_of
from pyro_vae.networks.specification import description_of
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated


def check_path(path: str) -> None:
    """Raises an `InputError` if ``path`` is no path of a class, or code is not allowed; imports nothing."""
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise InputError(f"`module` names a class by its import path, such as my_package.nets.Encoder; got `{path}`.")
    check_allowed(f"module: {path}")


def build_user_network(
    path: str, arguments: Mapping[str, Any], sizes: Mapping[str, Any], expected: int | None = None
) -> nn.Module:
    """Returns a network of the user's own class, after a test run on zeros.

    Arguments:
        path: Import path of an `nn.Module` class, after `check_path`.
        arguments: Arguments of the class in the file.
        sizes: Arguments from the data: ``in_features``, and others that are passed if the signature has them.
        expected: Expected size of the output; None for any size, which becomes the network's ``out_features``.

    Raises:
        InputError: If the class cannot be imported, called or run, or the size of its output is not the declared or
            expected one.
    """
    kind = _find(path)
    try:
        network: Any = kind(**_keywords(path, kind, arguments, sizes))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"`{path}` cannot be made: {reason_of(error)}") from error
    _run_once(path, network, sizes["in_features"], expected)
    if description_of(network) is None:
        spec = {"module": path, **({"arguments": dict(arguments)} if arguments else {})}
        network.to_spec = functools.partial(copy.deepcopy, spec)
    built: nn.Module = network
    return built


def accepts(path: str, name: str) -> bool:
    """Returns whether the class at ``path`` has an argument ``name``."""
    return name in _signature(_find(path))


def _find(path: str) -> type[nn.Module]:
    """Returns the class at an import path."""
    module_name, _, name = path.rpartition(".")
    module = imported(module_name)
    if not hasattr(module, name):
        raise InputError(f"`{module_name}` has no `{name}`; {_offer(name, _networks(module))}")
    found = getattr(module, name)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        given = f"the class `{name}`" if inspect.isclass(found) else f"a {type(found).__name__}"
        raise InputError(f"`{path}` is {given}, and no nn.Module; name a class of networks.")
    return found


def _networks(module: ModuleType) -> list[str]:
    """Returns the names of the `nn.Module` classes in a module."""
    return [name for name, kind in vars(module).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)]


def _offer(name: str, names: Iterable[str]) -> str:
    """Returns a hint for an error: the nearest name, or all names if they are few."""
    names = sorted(names)
    if not names:
        return "it has no nn.Module class."
    if nearest(name, names) is None and len(names) > 10:
        return f"it has {len(names)} nn.Module classes, none of a similar name."
    return near_match(name, names)


def _signature(kind: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind).parameters


def _keywords(
    path: str, kind: type[nn.Module], arguments: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments for the call of the class."""
    signature = _signature(kind)
    any_name = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    if "in_features" not in signature and not any_name:
        raise InputError(
            f"`{path}` has no argument `in_features`, the size of its input; add it. Its arguments are "
            f"{', '.join(f'`{name}`' for name in signature) or 'none'}."
        )
    for name in arguments:
        if name in sizes:
            raise InputError(f"`{path}`: `{name}` comes from the data and is no key of `arguments`; leave it out.")
        if name not in signature and not any_name:
            free = [free for free in signature if free not in sizes]
            offer = near_match(name, free) if free else "it has none except the sizes."
            raise InputError(f"`{path}` has no argument `{name}`; {offer}")
    given = {name: size for name, size in sizes.items() if name in signature or name == "in_features"}
    return {**given, **copy.deepcopy(dict(arguments))}


@torch.no_grad()
def _run_once(path: str, network: Any, in_features: int, expected: int | None) -> None:
    """Checks the output for two data of zeros, in evaluation mode, with its own random stream."""
    # Lazy parameters are drawn in the first run, so they need the global stream, like all other parameters.
    lazy = any(is_lazy(parameter) for parameter in network.parameters())
    stream: AbstractContextManager[None] = nullcontext() if lazy else isolated(0)
    try:
        with evaluating(network), stream:
            output = network(torch.zeros(2, in_features))
    except Exception as error:
        raise InputError(f"`{path}` fails on {(2, in_features)}: {reason_of(error)}") from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"`{path}` maps {(2, in_features)} to {got}; expected a tensor (2, features).")
    width = output.shape[1]
    declared = getattr(network, "out_features", None)
    if declared is None:
        network.out_features = declared = width
    if declared != width:
        raise InputError(
            f"`{path}` maps {(2, in_features)} to {tuple(output.shape)}, but its out_features is {declared}."
        )
    if expected is not None and width != expected:
        raise InputError(
            f"`{path}` has the argument `num_parameters`, so it emits the parameters of the likelihood, map by map: "
            f"expected (2, {expected}) for an input of {(2, in_features)}, got {tuple(output.shape)}."
        )
