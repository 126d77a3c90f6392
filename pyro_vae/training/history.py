r"""The history of a training run, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.training.validation import Watch


@dataclass
class Records:
    """Bound, number of data seen and wall time of each step, in order.

    Attributes:
        bounds: Bound of each step, nan where the algorithm has none.
        samples: Data seen up to and including each step.
        seconds: Wall time up to and including each step.
    """

    bounds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, bounds: Sequence[float], sizes: Sequence[int], now: float) -> None:
        """Records steps; the time since the last recorded step is shared equally among them.

        Arguments:
            bounds: Bound of each step.
            sizes: Size of each step's minibatch.
            now: Wall time after the last of them.
        """
        before, samples = (self.seconds[-1], self.samples[-1]) if self.seconds else (0.0, 0)
        for i, (bound, size) in enumerate(zip(bounds, sizes, strict=True)):
            samples += size
            self.bounds.append(bound)
            self.samples.append(samples)
            self.seconds.append(before + (now - before) * (i + 1) / len(sizes))

    def state(self) -> dict[str, Tensor]:
        """Returns the records as tensors."""
        return {
            "bounds": torch.tensor(self.bounds, dtype=torch.float64),
            "samples": torch.tensor(self.samples, dtype=torch.int64),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }

    def fall(self) -> str:
        """Returns a sentence where the bound has run away downwards; empty elsewhere.

        It has if the median of the last tenth of the steps is below twice the median of the first tenth, and by more
        than 10 nats per datum.
        """
        bounds = np.array(self.bounds)
        tenth = max(1, len(bounds) // 10)
        if not len(bounds) or not np.isfinite([*bounds[:tenth], *bounds[-tenth:]]).all():
            return ""
        first, last = float(np.median(bounds[:tenth])), float(np.median(bounds[-tenth:]))
        if last > first - abs(first) - 10:
            return ""
        return (
            f"its bound fell from {first:.4g} to {last:.4g} nats per datum: training ran away, and the numbers do not "
            "tell what the algorithm can do"
        )

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Records:
        """Returns the records that `state` returned as tensors."""
        return cls(*(state[name].tolist() for name in ("bounds", "samples", "seconds")))


@dataclass(repr=False)
class History:
    """The history of a training run, step by step.

    Attributes:
        bound: Bound on log p(x) of each step's minibatch before its update, nats per datum, shape ``(steps,)``; nan
            where the algorithm has none.
        samples: Number of data seen up to and including each step.
        seconds: Wall time of training up to and including each step, without validation and compilation.
        validation_step: Steps after which the validation bound was evaluated.
        validation_bound: ELBO of the validation data after each of these steps, nats per datum.
        stopped: ``"completed"``, ``"early stopping"``, ``"interrupted"`` or ``"diverged"``.
        best_step: Step of the best validation bound; None without validation.
        remark: What a reader of the numbers must know; see `Inference.remark` and `Records.fall`.
        execution: How the steps ran: ``"compiled in 12.3 s"``, or ``"uncompiled"`` and why.
        compile_seconds: Wall time of capturing and compiling, which is not part of ``seconds``.
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

    @classmethod
    def of(
        cls, records: Records, watch: Watch, stopped: str, remark: str, execution: str, compile_seconds: float
    ) -> History:
        """Returns the history of recorded steps.

        Arguments:
            records: Records of the steps.
            watch: Evaluations of the validation data.
            stopped: See the attributes of this class.
            remark: See the attributes of this class.
            execution: See the attributes of this class.
            compile_seconds: See the attributes of this class.
        """
        return cls(
            np.array(records.bounds),
            np.array(records.samples, dtype=np.int64),
            np.array(records.seconds),
            np.array(watch.steps, dtype=np.int64),
            np.array(watch.values),
            stopped,
            watch.best_step,
            remark,
            execution,
            compile_seconds,
        )

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

    def curve(self, points: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the learning curve: the mean bound over data, in consecutive intervals of steps.

        A step counts by the size of its minibatch. Every interval has at least as many data as the largest minibatch,
        so a short last minibatch of an epoch is no point of its own.

        Arguments:
            points: Largest number of intervals.

        Returns:
            The last step of each interval, from 1, and the mean bound, nats per datum.
        """
        sizes = np.diff(self.samples, prepend=0)
        least = max(int(sizes.max(initial=1)), -(-int(sizes.sum()) // points))
        ends: list[int] = []
        held = 0
        for step, size in enumerate(sizes, start=1):
            held += size
            if held >= least:
                ends.append(step)
                held = 0
        if held and ends:
            ends[-1] = self.steps  # the rest, in the last interval
        sums = (
            np.add.reduceat(np.stack([self.bound * sizes, sizes]), [0, *ends[:-1]], axis=1) if ends else np.ones((2, 0))
        )
        return np.array(ends, dtype=np.int64), sums[0] / sums[1]
