"""The cost of compiling, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

# Whether to compile. "auto" compiles where that saves time, and warns where it fails.
Mode = Literal["auto"] | bool
# Returns a block that shows a title while something slow runs.
Busy = Callable[[str], AbstractContextManager[None]]

# Estimated seconds on two cores: compilation, loading from the cache on disk, and capture.
COLD, WARM, CAPTURE = 20.0, 4.0, 1.5

# Largest number of kinds of calls that are compiled: with more, shapes change too often for compiling to pay off.
MOST = 8


def compile_cost(known: str) -> float:
    """Returns the estimated seconds of compiling a captured program.

    Arguments:
        known: Where the compiled program is cached; see `backend.known`.
    """
    return {"process": 0.0, "disk": WARM, "": COLD}[known]
