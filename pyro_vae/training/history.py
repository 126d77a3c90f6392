r"""What a training run was like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(repr=False)
class History:
    """What a training run was like, step by step.

    Attributes:
        bound: Bound on log p(x) of each step's minibatch before its update, nats per datum, shape ``(steps,)``; nan
            where the algorithm has none.
        samples: Data seen up to and including each step.
        seconds: Wall time of training up to each step, without validation.
        validation_step: Steps after which the validation bound was evaluated.
        validation_bound: ELBO of the validation data there, nats per datum.
        stopped: ``"completed"``, ``"early stopping"``, ``"interrupted"`` or ``"diverged"``.
        best_step: Step of the best validation bound; None without validation.
        execution: How the steps ran: ``"compiled in 12.3 s"``, or ``"uncompiled"`` and why.
        compile_seconds: Wall time of capturing and compiling, which ``seconds`` leave out.
        remark: What the algorithm says of its run that a reader of its numbers must know; see `Inference.remark`.
    """

    bound: NDArray[np.float64]
    samples: NDArray[np.int64]
    seconds: NDArray[np.float64]
    validation_step: NDArray[np.int64]
    validation_bound: NDArray[np.float64]
    stopped: str = "completed"
    best_step: int | None = None
    remark: str = ""
    execution: str = "uncompiled"
    compile_seconds: float = 0.0

    def __repr__(self) -> str:
        last = f", last bound {self.bound[-1]:.4g}" if self.steps and np.isfinite(self.bound[-1]) else ""
        remark = f", {self.remark!r}" if self.remark else ""
        return (
            f"History({self.steps} steps, {self.stopped}, {self.seconds[-1] if self.steps else 0:.3g} s{last}{remark})"
        )

    @property
    def steps(self) -> int:
        """The number of steps taken."""
        return len(self.bound)

    def smoothed(self, window: int) -> NDArray[np.float64]:
        """Returns the mean bound of each ``window`` steps, shape ``(steps // window,)``."""
        whole = self.steps // window * window
        return self.bound[:whole].reshape(-1, window).mean(axis=1)
