r"""The state of a training run in a file, from which it goes on."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import random
import re
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pyro_vae.errors import InputError, WriteError
from pyro_vae.runtime.outside_file import OutsideFile
from pyro_vae.runtime.random_streams import plain_states, states_of
from pyro_vae.runtime.whole_file import ELSEWHERE, check_writable, explained, write_whole
from pyro_vae.training.member import Member
from pyro_vae.training.minibatches import checksum
from pyro_vae.training.options import Training
from pyro_vae.training.schedules import Schedule
from pyro_vae.training.stacked_minibatches import Source

# Writing takes at most one part in so many of the run's time.
_SHARE = 20
_FORMAT = 3
# A file is this line, the sha256 of the rest, and the rest: what `torch.save` writes. torch misses flipped bits in it.
_HEAD = b"pyro_vae checkpoint\n"
_ADDRESS = r" at 0x[0-9a-f]+"
_DIGEST = hashlib.sha256().digest_size


class Run(Protocol):
    """The run whose state a checkpoint keeps: a `Loop`.

    Attributes:
        members: The VAEs in training.
        source: Source of their minibatches.
        training: The settings of the run.
        total: Number of its steps.
        step: Steps taken.
    """

    members: list[Member]
    source: Source
    training: Training
    total: int
    step: int

    def state(self) -> dict[str, Any]:
        """Returns all that the next step depends on, and the records."""
        ...

    def put_back(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        ...


class Checkpoint:
    """Writes the state of a run into a file from time to time, and puts it back.

    The file is written beside its place and then moved there, so that a reader sees the old state or the new one.

    Arguments:
        path: Path of the file.
        run: The run.
        seeds: Seed of each VAE.

    Attributes:
        loaded: Whether a state was put back.
        between: The last step after which all was done that was due.

    Raises:
        InputError: Where the file cannot be written.
    """

    def __init__(self, path: str | Path, run: Run, seeds: Sequence[int]) -> None:
        self.path, self.run = Path(path), run
        self._file = OutsideFile(self.path, "a checkpoint", "remove it, or name another file", "fit: the checkpoint ")
        if not self.path.parent.is_dir():
            raise InputError(f"fit: the folder `{self.path.parent}` of the checkpoint does not exist; make it first.")
        try:
            check_writable(self.path)
        except OSError as error:
            raise InputError(f"fit: the checkpoint `{path}` cannot be written: {explained(error, ELSEWHERE)}") from None
        self.about = _about(run, seeds)
        self.loaded, self.between = False, 0
        self._begun, self._epoch = 0, run.source.get_state()
        self._random: dict[str, Any] = {}
        self._written, self._took = time.monotonic(), 0.0

    def load(self) -> None:
        """Puts back the state that the file holds, if there is one.

        Raises:
            InputError: If the file is no checkpoint of `fit`, is damaged, or is one of another run. The run's model (as
                it prints itself), fixed values, algorithm, optimizer, clipping, data, validation and seeds must be the
                same. Transform and schedule are compared by name and parameters. What a callback keeps is not
                compared. Nothing has been changed then.
        """
        if not self.path.exists():
            return
        state = self._read()
        with self._file.reading():
            about, steps = state["about"], state["run"]["step"] if state["about"].get("format") == _FORMAT else 0
        other = [_said(key, about.get(key), mine) for key, mine in self.about.items() if about.get(key) != mine]
        if other:
            raise InputError(
                f"fit: the checkpoint `{self.path}` is of another run: {'; '.join(other)}. Remove it, or name another "
                "file."
            )
        if steps > self.run.total:
            raise InputError(
                f"fit: the checkpoint `{self.path}` has {steps} steps already, and {self.run.total} are asked for."
            )
        before = [copy.deepcopy(member.both.state_dict()) for member in self.run.members]
        try:
            with self._file.reading():
                self.run.put_back(state["run"])
                self.run.source.set_state(state["epoch"])
                self._begun, self._epoch, self._random = state["begun"], state["epoch"], state["random"]
                self.between, self.loaded = state["between"], True
        except InputError:
            for member, own in zip(self.run.members, before, strict=True):
                member.both.load_state_dict(own)
            raise

    def _read(self) -> Any:
        """The state in the file, whose checksum is right."""
        size, start = self._file.check(), len(_HEAD) + _DIGEST
        with self._file.reading(), self.path.open("rb") as stream:
            if stream.read(len(_HEAD)) != _HEAD:
                raise self._file.error("is no checkpoint of this version")
            digest = stream.read(_DIGEST)
            if hashlib.file_digest(stream, "sha256").digest() != digest:
                raise self._file.error("is damaged: its checksum is wrong")
            stream.seek(start)
            content = io.BytesIO(stream.read())
            with zipfile.ZipFile(content) as archive:
                if sum(info.file_size for info in archive.infolist()) > size:
                    raise self._file.error("is compressed, which no checkpoint of `fit` is")
            content.seek(0)
            return torch.load(content, map_location="cpu", weights_only=True)

    @property
    def position(self) -> int:
        """Minibatches of the present epoch that are taken."""
        return self.run.step - self._begun

    def begin_epoch(self) -> None:
        """Notes that an epoch is over."""
        self._begun, self._epoch = self.run.step, self.run.source.get_state()

    def resume_random(self) -> None:
        """Puts back the random states that were loaded."""
        torch.set_rng_state(self._random["torch"])
        if self._random["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self._random["cuda"])
        of_numpy, of_python = states_of(self._random["others"])
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)

    @property
    def due(self) -> bool:
        """Whether it is time to write: never more than a small part of the run goes into it."""
        least = self.run.training.checkpoint_seconds
        return time.monotonic() - self._written > max(least, _SHARE * self._took)

    def write(self) -> None:
        """Writes the file; where that fails, warns, and leaves the last one."""
        start = time.monotonic()
        state = {
            "about": self.about,
            "run": self.run.state(),
            "between": self.between,
            "begun": self._begun,
            "epoch": self._epoch,
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "others": plain_states(np.random.get_state(legacy=True), random.getstate()),  # noqa: NPY002
            },
        }
        content = io.BytesIO()
        torch.save(state, content)
        try:
            digest = hashlib.sha256(content.getbuffer()).digest()
            write_whole(self.path, _HEAD + digest, content.getbuffer())
        except WriteError as error:
            warnings.warn(f"fit: the checkpoint {error}", stacklevel=2)
        self._written = time.monotonic()
        self._took = self._written - start


def _about(run: Run, seeds: Sequence[int]) -> dict[str, Any]:
    """What tells one run from another."""
    source, watch = run.source, run.members[0].watch
    held_out = None if watch.data is None else checksum(watch.data)
    of_members = [_about_member(member) for member in run.members]
    return {
        "format": _FORMAT,
        "VAEs": len(run.members),
        **{name: [about[name] for about in of_members] for name in of_members[0]},
        "clip_norm": run.training.clip_norm,
        "data": {"size": source.size, "batch_size": source.batch_size, "checksum": source.checksum()},
        "validation": {"checksum": held_out, "every": watch.every, "patience": watch.patience, "keep": watch.keep},
        "seed": list(seeds),
        "schedule": _named(run.training.schedule),
        "transform": _named(source.transform),
    }


def _named(function: Any) -> str | None:
    """The qualified name of a function, with its parameters as far as they are known."""
    if function is None:
        return None
    if isinstance(function, Schedule):
        return f"{_named(function.shape)}, total={function.total}, warmup={function.warmup}"
    if isinstance(function, functools.partial):
        own = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in sorted(function.keywords.items()))]
        return re.sub(_ADDRESS, "", ", ".join([f"{_named(function.func)}", *own]))
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _about_member(member: Member) -> dict[str, Any]:
    groups = [
        {key: repr(value) for key, value in group.items() if key not in ("params", "lr")}
        for group in member.optimizer.param_groups
    ]
    return {
        "parameters": {name: list(p.shape) for name, p in member.both.named_parameters()},
        "fixed values": {name: b.tolist() for name, b in member.vae.named_buffers() if ".fixed_" in f".{name}"},
        "model": re.sub(_ADDRESS, "", repr(member.vae)).splitlines(),
        "type": str(member.vae.dtype),
        "algorithm": repr(member.inference),
        "optimizer": [type(member.optimizer).__name__, groups, [repr(rate) for rate in member.rates]],
    }


def _said(name: str, its: Any, mine: Any) -> str:
    """In which way two descriptions of a run differ."""
    if isinstance(its, list) and isinstance(mine, list) and len(its) == len(mine):
        r = next(r for r in range(len(mine)) if its[r] != mine[r])
        where = f"{name} of replicate {r}" if len(mine) > 1 else name
        if name == "model":
            pairs = zip_longest(its[r] or [], mine[r], fillvalue="nothing")
            its, mine = next((one.strip(), other.strip()) for one, other in pairs if one != other)
            return f"{where} {its!r}, not {mine!r}"
        return _said(where, its[r], mine[r])
    if isinstance(its, dict) and isinstance(mine, dict):
        key = next(key for key in (*mine, *its) if its.get(key) != mine.get(key))
        return f"{name}: {key} {its.get(key)!r}, not {mine.get(key)!r}"
    return f"{name} {its!r}, not {mine!r}"
