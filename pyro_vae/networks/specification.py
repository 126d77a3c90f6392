r"""The description of a network in an experiment file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from pyro_vae.errors import InputError


class Described(Protocol):
    """A network, or a part of a VAE, that says what an experiment file would say of it."""

    def to_spec(self) -> dict[str, Any]:
        """Returns what the file says: keys with plain values."""
        ...


def description_of(module: nn.Module) -> Callable[[], dict[str, Any]] | None:
    """Returns the method ``to_spec`` of a module; None where it has none, so that a file has no word for it."""
    return getattr(module, "to_spec", None)


def spec_of(network: nn.Module) -> dict[str, Any]:
    """Returns the description of a network in an experiment file: the result of its ``to_spec()``.

    Arguments:
        network: A network of this package, one that an experiment file names by ``module:``, or another one with a
            method ``to_spec``.

    Raises:
        InputError: If the network has no ``to_spec``, or an option that has no name in a file.

    Example:
        >>> from pyro_vae.networks import mlp
        >>> spec_of(mlp(784, 500, 200))
        {'mlp': [500, 200]}
    """
    to_spec = description_of(network)
    if to_spec is None:
        kind = type(network)
        raise InputError(
            f"to_spec: an experiment file cannot say `{kind.__name__}`; give it a method `to_spec` that returns "
            f"{{'module': '{kind.__module__}.{kind.__qualname__}', 'arguments': {{...}}}}."
        )
    return to_spec()
