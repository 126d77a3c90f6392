r"""Blocks that set a module's mode, training or evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn


@contextmanager
def switched(module: nn.Module, training: bool) -> Iterator[None]:
    """A block with a module in training or evaluation mode; the former mode of every submodule is restored after it."""
    modes = {child: child.training for child in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for child, was_training in modes.items():
            child.training = was_training


@contextmanager
def in_training(module: nn.Module) -> Iterator[None]:
    """A block with a module in training mode; after it the module is in evaluation mode."""
    module.train()
    try:
        yield
    finally:
        module.eval()


def evaluating(module: nn.Module) -> AbstractContextManager[None]:
    """Returns a block with a module in evaluation mode."""
    return switched(module, training=False)
