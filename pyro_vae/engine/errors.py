"""What the engine raises."""

from __future__ import annotations

from pyro_vae.errors import InputError


class CaptureError(InputError):
    """A program that is no fixed list of tensor operations, and the line that makes it so."""

    def __init__(self, message: str) -> None:
        super().__init__(str(message).partition("\nTrace Shapes:")[0].strip())  # which Pyro appends as it passes


class CompilationError(RuntimeError):
    """A captured program that could not be compiled on this machine, and why."""
