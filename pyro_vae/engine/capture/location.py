"""The current location of a running program: source line and sample site."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import CodeType, FrameType

import pyro
import torch
from torch.distributions import Distribution

from pyro_vae.distributions.support import cells_of

# Functions of Pyro that call the distribution of a site.
_AT_SITES = ("sample", "compute_log_prob", "log_prob_sum", "compute_score_parts")
# Largest number of characters of a source line in a message.
_WIDTH = 120
_TORCH, _PYRO = (str(Path(str(package.__file__)).parent) + "/" for package in (torch, pyro))
_ENGINE = str(Path(__file__).parents[1]) + "/"


def caller_outside_torch() -> FrameType:
    """Returns the innermost frame that is neither torch's nor the engine's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _ENGINE)):
        frame = frame.f_back
    return frame or sys._getframe(1)


def caller_outside_engine() -> FrameType:
    """Returns the innermost frame that is not the engine's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_ENGINE):
        frame = frame.f_back
    return frame or sys._getframe(1)


def is_pyros(frame: FrameType) -> bool:
    """Returns whether a frame runs Pyro's own code."""
    return frame.f_code.co_filename.startswith(_PYRO)


def is_librarys(code: CodeType) -> bool:
    """Returns whether some code is torch's or Pyro's own."""
    return code.co_filename.startswith((_TORCH, _PYRO))


def current_location() -> str:
    """Returns the current line outside torch, Pyro and the engine, with the current sample site, if any."""
    frames = []
    frame: FrameType | None = caller_outside_torch()
    while frame is not None:
        if not frame.f_code.co_filename.startswith((_TORCH, _ENGINE)):
            frames.append(frame)
        frame = frame.f_back
    line = next((frame for frame in frames if not is_pyros(frame)), frames[0])
    name, number = line.f_code.co_filename, line.f_lineno
    source = linecache.getline(name, number).strip()
    shown = f"{Path(name).name}, line {number}"
    return f"{shown}: `{source[:_WIDTH]}`{_site(frames)}" if source else f"{shown}{_site(frames)}"


def _site(frames: list[FrameType]) -> str:
    """Returns the sample site of the frames, else their distribution, else an empty string."""
    for frame in frames:
        name = frame.f_locals.get("name")
        if is_pyros(frame) and frame.f_code.co_name in _AT_SITES and isinstance(name, str):
            site = frame.f_locals.get("site", {})
            family = site["fn"] if isinstance(site, dict) and "fn" in site else frame.f_locals.get("fn")
            named = f", {type(cells_of(family)).__name__}" if isinstance(family, Distribution) else ""
            return f" (site `{name}`{named})"
    owners = (frame.f_locals.get("self") for frame in frames)
    family = next((type(cells_of(owner)).__name__ for owner in owners if isinstance(owner, Distribution)), "")
    return f" ({family})" if family else ""


def families_here() -> list[str]:
    """Returns the names of the distributions whose methods are running, the innermost first."""
    found, frame = [], sys._getframe(1)
    while frame.f_back is not None:
        if isinstance(owner := frame.f_locals.get("self"), Distribution):
            found.append(type(owner).__name__)
        frame = frame.f_back
    return found
