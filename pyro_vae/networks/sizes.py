r"""Checks of a network's sizes, and its output size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pyro_vae.errors import InputError


def check_sizes(network: str, sizes: Sequence[object]) -> None:
    """Raises an `InputError` if a layer's size is not a positive integer."""
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InputError(f"{network}: layer sizes are positive integers, got {tuple(sizes)}.")


def check_count(network: str, name: str, count: object, least: int) -> None:
    """Raises an `InputError` if a count is not an integer, or less than ``least``."""
    if not isinstance(count, int) or count < least:
        raise InputError(f"{network}: `{name}` is an integer of at least {least}, got `{count!r}`.")


def out_features(module: nn.Module) -> int:
    """Returns the output size of a network: its attribute ``out_features``, else that of its last linear layer.

    Raises:
        InputError: If the network has neither.
    """
    declared = getattr(module, "out_features", None)
    if isinstance(declared, int):
        return declared
    linear = [child for child in module.modules() if isinstance(child, nn.Linear)]
    if not linear:
        raise InputError(
            f"Conditional: the output size of `{type(module).__name__}` is unknown; pass features=, or give the "
            "module an attribute out_features."
        )
    return linear[-1].out_features
