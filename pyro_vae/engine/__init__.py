"""How a program runs, never what it computes: capture, compiled steps, replicates."""

from pyro_vae.engine.backend import interpreted
from pyro_vae.engine.capture import Capture, Outputs, capture, tensors_of
from pyro_vae.engine.errors import CaptureError, CompilationError
from pyro_vae.engine.function import Routine, enabled, repeated, routine
from pyro_vae.engine.noise import Draw, Lifted
from pyro_vae.engine.step import Ledger, Step
from pyro_vae.engine.stretch import Stretch
from pyro_vae.engine.svi import CompiledSVI

__all__ = [
    "Capture",
    "CaptureError",
    "CompilationError",
    "CompiledSVI",
    "Draw",
    "Ledger",
    "Lifted",
    "Outputs",
    "Routine",
    "Step",
    "Stretch",
    "capture",
    "enabled",
    "interpreted",
    "repeated",
    "routine",
    "tensors_of",
]
