r"""The description of a network in an experiment file."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_vae.errors import InputError


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
    to_spec = getattr(network, "to_spec", None)
    if to_spec is None:
        kind = type(network)
        raise InputError(
            f"to_spec: an experiment file cannot say `{kind.__name__}`; give it a method `to_spec` that returns "
            f"{{'module': '{kind.__module__}.{kind.__qualname__}', 'arguments': {{...}}}}."
        )
    spec: dict[str, Any] = to_spec()
    return spec
