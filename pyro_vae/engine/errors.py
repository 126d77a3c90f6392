"""What the engine raises."""

from __future__ import annotations

import re

from pyro_vae.errors import InputError


class CaptureError(InputError):
    """A program that is no fixed list of tensor operations, and the line that makes it so."""

    def __init__(self, message: str) -> None:
        super().__init__(without_shapes(message))


def without_shapes(message: object) -> str:
    """Returns what an error says without the table of shapes that Pyro appends as it passes."""
    return re.split(r"\n *Trace Shapes:", str(message))[0].strip()


class CompilationError(RuntimeError):
    """A captured program that could not be compiled on this machine, and why."""
