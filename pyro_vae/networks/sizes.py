r"""What the sizes of a network may be."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pyro_vae.errors import InputError


def check_sizes(network: str, sizes: Sequence[object]) -> None:
    """Raises an `InputError` where a layer's size is no positive integer."""
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InputError(f"{network}: layer sizes are positive integers, got {tuple(sizes)}.")


def check_count(network: str, name: str, count: object, least: int) -> None:
    """Raises an `InputError` where a count is no integer, or less than ``least``."""
    if not isinstance(count, int) or count < least:
        raise InputError(f"{network}: `{name}` is an integer of at least {least}, got `{count!r}`.")


def out_features(module: nn.Module) -> int:
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
