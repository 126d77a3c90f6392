"""What the engine raises."""

from __future__ import annotations

from pyro_vae.errors import InputError


class CaptureError(InputError):
    """A program that is no fixed list of tensor operations, and the line that makes it so."""


class CompilationError(RuntimeError):
    """A captured program that could not be compiled on this machine, and why."""
