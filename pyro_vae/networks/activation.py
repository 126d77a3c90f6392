r"""Activations by their names in an experiment file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pyro_vae.errors import InputError

Activation = Callable[[], nn.Module]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activation_spec(activation: Activation | None, default: Activation | None) -> dict[str, Any]:
    """Returns ``{"activation": name}``, or an empty mapping for the network's default.

    Raises:
        InputError: For an activation that has no name in an experiment file.

    Example:
        >>> activation_spec(nn.ReLU, nn.Tanh), activation_spec(nn.Tanh, nn.Tanh)
        ({'activation': 'relu'}, {})
    """
    if activation is default:
        return {}
    for name, named in ACTIVATIONS.items():
        if activation is named:
            return {"activation": name}
    given = getattr(activation, "__name__", repr(activation))
    raise InputError(
        f"to_spec: the activation `{given}` has no name in an experiment file; use one of {', '.join(ACTIVATIONS)}."
    )
