"""Errors of the engine."""

from __future__ import annotations

import re

from pyro_vae.errors import InputError


class CaptureError(InputError):
    """A program that cannot be captured as a fixed list of tensor operations; the message names the line."""

    def __init__(self, message: str) -> None:
        super().__init__(without_shapes(message))


def without_shapes(message: object) -> str:
    """Returns the message of an error without the table of shapes that Pyro appends."""
    return re.split(r"\n *Trace Shapes:", str(message))[0].strip()


class CompilationError(RuntimeError):
    """A captured program that cannot be compiled on this machine; the message says why."""
