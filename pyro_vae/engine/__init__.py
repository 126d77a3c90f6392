"""Execution of programs: capture, compiled steps, replicates. The engine never changes what a program computes."""

from pyro_vae.engine.capture.capture import Capture, Outputs, capture, tensors_of
from pyro_vae.engine.capture.noise import Draw, Lifted
from pyro_vae.engine.compilation.backend import interpreted
from pyro_vae.engine.compilation.routine import Routine, enabled, repeated, routine
from pyro_vae.engine.errors import CaptureError, CompilationError
from pyro_vae.engine.step.consecutive_steps import Stretch
from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.engine.step.step import Step
from pyro_vae.engine.svi.svi import CompiledSVI

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
