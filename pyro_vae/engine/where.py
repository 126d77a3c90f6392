"""Where a program is: the line of its source and the site of its model."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import FrameType

import pyro
import torch
from pyro.distributions import TorchDistribution

from pyro_vae.families import cells_of

_TORCH, _PYRO, _ENGINE = (str(Path(file).parent) + "/" for file in (str(torch.__file__), str(pyro.__file__), __file__))


def caller_outside_torch() -> FrameType:
    """Returns the innermost frame that is neither torch's nor the engine's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _ENGINE)):
        frame = frame.f_back
    return frame or sys._getframe(1)


def is_pyros(frame: FrameType) -> bool:
    """Whether a frame runs Pyro's own code."""
    return frame.f_code.co_filename.startswith(_PYRO)


def where() -> str:
    """Returns the line that runs now, outside torch, Pyro and the engine, and the site that is being sampled."""
    site, frame = "", caller_outside_torch()
    innermost = frame
    while is_pyros(frame) and frame.f_back is not None:
        if not site and frame.f_code.co_name == "sample" and isinstance(frame.f_locals.get("name"), str):
            family = frame.f_locals.get("fn")
            named = f", {type(cells_of(family)).__name__}" if isinstance(family, TorchDistribution) else ""
            site = f" (site `{frame.f_locals['name']}`{named})"
        frame = frame.f_back
        while frame.f_code.co_filename.startswith((_TORCH, _ENGINE)) and frame.f_back is not None:
            frame = frame.f_back
    if frame.f_back is None:
        frame = innermost
    name, line = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(name, line).strip()
    shown = f"{Path(name).name}, line {line}"
    return f"{shown}: `{source}`{site}" if source else f"{shown}{site}"
