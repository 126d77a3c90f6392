r"""Losses of Pyro that cannot be captured."""

from __future__ import annotations

from typing import Any

from pyro.infer import ELBO, EnergyDistance

from pyro_vae.engine.errors import CaptureError

# Losses of Pyro that can be captured.
_CAPTURED = (
    *("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO", "TraceTMC_ELBO", "RenyiELBO"),
    *("ReweightedWakeSleep", "TraceTailAdaptive_ELBO", "Trace_MMD"),
)


def refuse_loss(loss: Any) -> None:
    """Raises a `CaptureError` for losses of Pyro that cannot be captured."""
    name = type(loss).__name__
    if isinstance(loss, EnergyDistance):
        raise CaptureError(
            f"CompiledSVI: `{name}` chooses pairs of particles, with a shape that depends on values, so it cannot be "
            f"captured; use one of {', '.join(_CAPTURED)}, or compile=False."
        )
    if name.startswith("Jit") and isinstance(loss, ELBO):
        raise CaptureError(
            f"CompiledSVI: `{name}` compiles itself by TorchScript; pass `{name.removeprefix('Jit')}`, the same loss."
        )
