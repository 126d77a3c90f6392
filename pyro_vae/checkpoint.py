r"""The state of a training run in a file, from which it goes on."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.errors import InputError
from pyro_vae.minibatches import Minibatches
from pyro_vae.stepping import Stepper
from pyro_vae.validation import Watch

# What writing may take of the run: one part in so many.
_SHARE = 20
_FORMAT = 1


class Checkpoint:
    """Writes the state of a run into a file from time to time, and puts it back.

    The file is written beside its place and then moved there, so that a reader sees the old state or the new one.

    Arguments:
        path: Of the file.
        run: Its parameters, optimizer and records.
        watch: Its validation.
        source: Its minibatches.
        seed: Of the run.
        seconds: Between two writings, at least.

    Attributes:
        position: Minibatches of the present epoch that are taken.
        epoch: The source's random state at the epoch's begin.

    Raises:
        InputError: Where the folder of the file does not exist.
    """

    def __init__(
        self, path: str | Path, run: Stepper, watch: Watch, source: Minibatches, seed: int, seconds: float
    ) -> None:
        self.path, self.run, self.watch, self.source, self.seconds = Path(path), run, watch, source, seconds
        if not self.path.parent.is_dir():
            raise InputError(f"fit: the folder `{self.path.parent}` of the checkpoint does not exist; make it first.")
        self.about = _about(run, source, seed)
        self.position, self.epoch = 0, source.get_state()
        self._random: dict[str, Any] = {}
        self._written, self._took = time.monotonic(), 0.0

    def load(self) -> bool:
        """Puts back the state that the file holds; returns whether there is one.

        Raises:
            InputError: Where the file is none of `fit`, or of a run of another model, algorithm, optimizer, seed or
                number of data; nothing has been changed then.
        """
        if not self.path.exists():
            return False
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            about = state["about"]
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"fit: `{self.path}` cannot be read as a checkpoint ({type(error).__name__}: {reason}); remove it, or "
                "name another file."
            ) from error
        other = [
            f"{key} {about.get(key)!r}, not {mine!r}" for key, mine in self.about.items() if about.get(key) != mine
        ]
        if other:
            raise InputError(
                f"fit: the checkpoint `{self.path}` is of another run: {'; '.join(other)}. Remove it, or name another "
                "file."
            )
        self.run.put_back(state["run"])
        self.watch.put_back(state["watch"])
        self.source.set_state(state["epoch"])
        self.position, self.epoch, self._random = state["position"], state["epoch"], state["random"]
        return True

    def begin_epoch(self) -> None:
        """Notes that an epoch is over."""
        self.position, self.epoch = 0, self.source.get_state()

    def resume_random(self) -> None:
        """Puts back the random states, where some were loaded."""
        if not self._random:
            return
        torch.set_rng_state(self._random["torch"])
        if self._random["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self._random["cuda"])
        name, keys, *rest = self._random["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        version, internal, gauss = self._random["python"]
        random.setstate((version, tuple(internal), gauss))

    @property
    def due(self) -> bool:
        """Whether it is time to write: never more than a small part of the run goes into it."""
        return time.monotonic() - self._written > max(self.seconds, _SHARE * self._took)

    def write(self) -> None:
        """Writes the file."""
        start = time.monotonic()
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
        state = {
            "about": self.about,
            "run": self.run.state(),
            "watch": self.watch.state(),
            "position": self.position,
            "epoch": self.epoch,
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
                "python": [*_listed(random.getstate())],
            },
        }
        beside = self.path.with_name(self.path.name + ".tmp")
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        self._written = time.monotonic()
        self._took = self._written - start


def _listed(value: Any) -> Any:
    return [_listed(inner) for inner in value] if isinstance(value, tuple) else value


def _about(run: Stepper, source: Minibatches, seed: int) -> dict[str, Any]:
    """What tells one run from another."""
    groups = [
        {key: repr(value) for key, value in group.items() if key not in ("params", "lr")}
        for group in run.optimizer.param_groups
    ]
    return {
        "format": _FORMAT,
        "parameters": {name: list(p.shape) for name, p in run.both.named_parameters()},
        "type": str(run.vae.dtype),
        "algorithm": repr(run.inference),
        "optimizer": [type(run.optimizer).__name__, groups, [repr(rate) for rate in run.rates]],
        "clip_norm": run.clip_norm,
        "data": [source.size, source.steps],
        "seed": seed,
    }
