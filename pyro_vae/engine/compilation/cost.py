"""What compiling costs, which it must save."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

# Whether to compile: with "auto" where that saves time, and with a warning where it cannot be done.
Mode = Literal["auto"] | bool
# A block with a title, for what takes long.
Busy = Callable[[str], AbstractContextManager[None]]

# Seconds that compiling a program takes on two cores; from the cache on disk; and what capturing takes before it.
COLD, WARM, CAPTURE = 20.0, 4.0, 1.5

# Kinds of calls that are compiled at most: shapes that change all the time are not worth it.
MOST = 8


def price(known: str) -> float:
    """Returns the seconds that a captured program takes to compile.

    Arguments:
        known: Where it is already; see `known`.
    """
    return {"process": 0.0, "disk": WARM, "": COLD}[known]
