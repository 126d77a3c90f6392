r"""The state of a training run in a file, from which it goes on."""

from __future__ import annotations

import os
import random
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from pyro_vae.errors import InputError
from pyro_vae.training.minibatches import Minibatches, checksum
from pyro_vae.training.stepper import Stepper
from pyro_vae.training.validation import Watch

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
        loaded: Whether a state was put back.
        between: The last step after which all was done that was due.

    Raises:
        InputError: Where the file cannot be written.
    """

    def __init__(
        self, path: str | Path, run: Stepper, watch: Watch, source: Minibatches, seed: int, seconds: float
    ) -> None:
        self.path, self.run, self.watch, self.source, self.seconds = Path(path), run, watch, source, seconds
        if not self.path.parent.is_dir():
            raise InputError(f"fit: the folder `{self.path.parent}` of the checkpoint does not exist; make it first.")
        try:
            if self.path.is_dir():
                raise IsADirectoryError("it is a folder")
            with self._beside():
                pass
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"fit: the checkpoint `{path}` cannot be written: {reason}; choose another.") from None
        self.about = _about(run, watch, source, seed)
        self.loaded, self.between = False, 0
        self._begun, self._epoch = 0, source.get_state()
        self._random: dict[str, Any] = {}
        self._written, self._took = time.monotonic(), 0.0

    def load(self, total: int) -> None:
        """Puts back the state that the file holds, if there is one.

        Arguments:
            total: Steps that the run is to have.

        Raises:
            InputError: Where the file is none of `fit`, or of another run: the model as it prints itself and its fixed
                values, the algorithm, the optimizer's options, clipping, data, batch size, validation and seed are
                compared. Nothing has been changed then. Schedules and transforms are not compared, nor what a
                callback keeps.
        """
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            about, steps = state["about"], len(state["run"]["seconds"])
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"fit: `{self.path}` cannot be read as a checkpoint ({type(error).__name__}: {reason}); remove it, or "
                "name another file."
            ) from error
        other = [_said(key, about.get(key), mine) for key, mine in self.about.items() if about.get(key) != mine]
        if other:
            raise InputError(
                f"fit: the checkpoint `{self.path}` is of another run: {'; '.join(other)}. Remove it, or name another "
                "file."
            )
        if steps > total:
            raise InputError(f"fit: the checkpoint `{self.path}` has {steps} steps already, and {total} are asked for.")
        self.run.put_back(state["run"])
        self.watch.put_back(state["watch"])
        self.source.set_state(state["epoch"])
        self._begun, self._epoch, self._random = state["begun"], state["epoch"], state["random"]
        self.between, self.loaded = state["between"], True

    @property
    def position(self) -> int:
        """Minibatches of the present epoch that are taken."""
        return self.run.step - self._begun

    def begin_epoch(self) -> None:
        """Notes that an epoch is over."""
        self._begun, self._epoch = self.run.step, self.source.get_state()

    def resume_random(self) -> None:
        """Puts back the random states that were loaded."""
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
        """Writes the file; where that fails, warns, and leaves the last one."""
        self.run.settle()
        start = time.monotonic()
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
        state = {
            "about": self.about,
            "run": self.run.state(),
            "watch": self.watch.state(),
            "between": self.between,
            "begun": self._begun,
            "epoch": self._epoch,
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
                "python": [*_listed(random.getstate())],
            },
        }
        try:
            with self._beside() as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, self.path)
        except (OSError, RuntimeError) as error:  # torch raises the latter where the disk is full
            warnings.warn(f"fit: the checkpoint `{self.path}` is not written: {error}", stacklevel=2)
        self._written = time.monotonic()
        self._took = self._written - start

    @contextmanager
    def _beside(self) -> Iterator[IO[bytes]]:
        """A file beside the checkpoint, which is gone at the block's end unless it was moved."""
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False) as file:
            try:
                yield file
            finally:
                Path(file.name).unlink(missing_ok=True)


def _listed(value: Any) -> Any:
    return [_listed(inner) for inner in value] if isinstance(value, tuple) else value


def _about(run: Stepper, watch: Watch, source: Minibatches, seed: int) -> dict[str, Any]:
    """What tells one run from another."""
    groups = [
        {key: repr(value) for key, value in group.items() if key not in ("params", "lr")}
        for group in run.optimizer.param_groups
    ]
    held_out = None if watch.data is None else checksum(watch.data)
    return {
        "format": _FORMAT,
        "parameters": {name: list(p.shape) for name, p in run.both.named_parameters()},
        "fixed values": {name: b.tolist() for name, b in run.vae.named_buffers() if ".fixed_" in f".{name}"},
        "model": re.sub(r" at 0x[0-9a-f]+", "", repr(run.vae)).splitlines(),
        "type": str(run.vae.dtype),
        "algorithm": repr(run.inference),
        "optimizer": [type(run.optimizer).__name__, groups, [repr(rate) for rate in run.rates]],
        "clip_norm": run.clip_norm,
        "data": {"size": source.size, "batch_size": source.batch_size, "checksum": source.checksum()},
        "validation": {"checksum": held_out, "every": watch.every, "patience": watch.patience, "keep": watch.keep},
        "seed": seed,
    }


def _said(name: str, its: Any, mine: Any) -> str:
    """In which way two descriptions of a run differ."""
    if isinstance(its, dict) and isinstance(mine, dict):
        key = next(key for key in (*mine, *its) if its.get(key) != mine.get(key))
        return f"{name}: {key} {its.get(key)!r}, not {mine.get(key)!r}"
    if name == "model":
        pairs = zip_longest(its or [], mine, fillvalue="nothing")
        its, mine = next((one.strip(), other.strip()) for one, other in pairs if one != other)
    return f"{name} {its!r}, not {mine!r}"
