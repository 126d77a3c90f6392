r"""A module's mode, training or evaluation, within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn


@contextmanager
def switched(module: nn.Module, training: bool) -> Iterator[None]:
    """Puts a module into training or evaluation mode within the block; every part's own mode comes back after it."""
    modes = {child: child.training for child in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for child, was_training in modes.items():
            child.training = was_training


def evaluating(module: nn.Module) -> AbstractContextManager[None]:
    """Puts a module into evaluation mode within the block."""
    return switched(module, training=False)
