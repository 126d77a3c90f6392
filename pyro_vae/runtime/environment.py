r"""The machine and the software versions of a result."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PACKAGES = ("pyro-vae", "pyro-ppl", "torch", "numpy", "arviz")


def environment(device: torch.device, command: str) -> dict[str, Any]:
    """Returns command, date, device, threads and versions, ready for JSON.

    Arguments:
        device: Device of the computation.
        command: Command that reproduces the result.
    """
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of this package and of its main dependencies."""
    return {package: version(package) for package in _PACKAGES}
