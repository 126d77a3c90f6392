r"""Runs of a comparison in several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from pyro_vae.comparison.candidate import Candidate
from pyro_vae.comparison.run import Run
from pyro_vae.errors import InputError
from pyro_vae.runtime.progress import Line

# After so many broken pools in a row, in which no run has ended, nothing more is tried.
_MOST_BROKEN = 10

# Trains and evaluates one candidate under one seed.
Train = Callable[[Candidate, int], Run]


def runs_in_workers(tasks: Sequence[tuple[Candidate, int]], train: Train, workers: int, line: Line | None) -> list[Run]:
    """Returns the run of each candidate and seed, computed by processes of one thread each.

    On several CUDA devices, the runs are dealt out in turn. A run whose process was killed is done again, from its
    checkpoint if there is one; its result is that of an undisturbed one.

    Arguments:
        tasks: Candidates and seeds.
        train: Trains and evaluates one; it is pickled.
        workers: Number of processes.
        line: Shows how many runs have ended; None for none.

    Raises:
        InputError: If processes are killed again and again without ending a run.
    """
    import cloudpickle
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    placed = [(_placed(candidate, i), seed) for i, (candidate, seed) in enumerate(tasks)]
    blobs = [cloudpickle.dumps((train, candidate, seed)) for candidate, seed in placed]
    done: dict[int, Run] = {}
    broken = 0
    while len(done) < len(tasks):
        missing = [i for i in range(len(tasks)) if i not in done]
        before = len(done)
        pool = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered", batch_size=1)
        try:
            for i, run in pool(delayed(_work)(i, sys.path, blobs[i]) for i in missing):
                done[i] = run
                if line is not None:
                    line.begin(f"{run.algorithm}, seed {run.seed}: done", 1)
        except TerminatedWorkerError:
            broken = broken + 1 if len(done) == before else 1
            if broken >= _MOST_BROKEN:
                raise InputError(
                    f"processes were killed {broken} times in a row without ending a run; is there memory for "
                    f"{workers} at once? Take fewer --workers. The same command goes on from the checkpoints."
                ) from None
    return [replace(done[i], vae=done[i].vae.to(tasks[0][0].experiment.torch_device)) for i in range(len(tasks))]


def _placed(candidate: Candidate, index: int) -> Candidate:
    """The candidate on one of several CUDA devices."""
    if candidate.experiment.device != "auto" or torch.cuda.device_count() < 2:
        return candidate
    device = f"cuda:{index % torch.cuda.device_count()}"
    return replace(candidate, experiment=candidate.experiment.model_copy(update={"device": device}))


def _work(index: int, path: list[str], blob: bytes) -> tuple[int, Any]:
    """Runs in a process of its own, which may import what the caller may."""
    import cloudpickle

    sys.path[:] = path
    torch.set_num_threads(1)
    train, candidate, seed = cloudpickle.loads(blob)
    return index, train(candidate, seed)
