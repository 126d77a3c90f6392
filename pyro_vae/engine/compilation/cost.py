"""What compiling costs, and what it saves: the one rule of when to compile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

# Whether to compile. "auto" compiles where that saves time, and warns where it fails.
Mode = Literal["auto"] | bool
# Returns a block that shows a title while something slow runs.
Busy = Callable[[str], AbstractContextManager[None]]

# Estimated seconds on two cores: compilation, loading from the cache on disk, and capture.
COLD, WARM, CAPTURE = 20.0, 4.0, 1.5

# Number of uncompiled calls of a kind that are timed before the decision to compile it.
TIMED = 3

# Largest number of kinds of calls that are compiled: with more, shapes change too often for compiling to pay off.
MOST = 8


def compile_cost(known: str) -> float:
    """Returns the estimated seconds of compiling a captured program.

    Arguments:
        known: Where the compiled program is cached; see `backend.known`.
    """
    return {"process": 0.0, "disk": WARM, "": COLD}[known]


class Saving(NamedTuple):
    """A cautious estimate of the seconds that a faster way to run saves in a call.

    Attributes:
        overhead: Seconds of each call that are saved in any case.
        share: Share of the call's time that is saved beside them.
        most: Share of the call's time that is saved at most.
    """

    overhead: float
    share: float
    most: float

    def of(self, seconds: float, calls: float) -> float:
        """Returns the seconds that are saved in all.

        Arguments:
            seconds: Time of one call.
            calls: Number of calls that are still to come.
        """
        return min(self.overhead + self.share * seconds, self.most * seconds) * calls


# Compiling a step that runs operation by operation, under Pyro's handlers and autograd.
STEP = Saving(0.001, 0.3, 0.8)
# Capturing the steps of several VAEs, which run one after another, as one program.
STACKING = Saving(0.0, 0.5, 0.5)
# Compiling a captured program that runs operation by operation.
CAPTURED = Saving(0.0, 0.4, 0.4)
# Compiling a function that an algorithm or an estimate calls over and over.
FUNCTION = Saving(0.0, 0.3, 0.3)
