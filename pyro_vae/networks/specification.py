r"""The description of a network in an experiment file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from pyro_vae.errors import InputError


class Described(Protocol):
    """A network or a part of a VAE that has a description in an experiment file."""

    def to_spec(self) -> dict[str, Any]:
        """Returns the description: keys with plain values."""
        ...


def description_of(module: nn.Module) -> Callable[[], dict[str, Any]] | None:
    """Returns the method ``to_spec`` of a module; None if it has none, so an experiment file cannot describe it."""
    return getattr(module, "to_spec", None)


def spec_of(network: nn.Module) -> dict[str, Any]:
    """Returns the description of a network in an experiment file: the result of its ``to_spec()``.

    Arguments:
        network: A network of this package, one that an experiment file names by ``module:``, or another one with a
            method ``to_spec``.

    Raises:
        InputError: If the network has no ``to_spec``, or an option that an experiment file does not have.

    Example:
        >>> from pyro_vae.networks import mlp
        >>> spec_of(mlp(784, 500, 200))
        {'mlp': [500, 200]}
    """
    to_spec = description_of(network)
    if to_spec is None:
        kind = type(network)
        raise InputError(
            f"to_spec: an experiment file cannot describe `{kind.__name__}`; give it a method `to_spec` that returns "
            f"{{'module': '{kind.__module__}.{kind.__qualname__}', 'arguments': {{...}}}}."
        )
    return to_spec()
