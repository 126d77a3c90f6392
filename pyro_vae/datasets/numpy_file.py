"""Reading of `.npy` and `.npz` files: what they declare is checked before an array is read."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.errors import InputError
from pyro_vae.runtime.outside_file import MOST_EXPANDED, OutsideFile

# Largest number of members of an `.npz` file.
_MOST_MEMBERS = 10_000
_MAGIC = np.lib.format.MAGIC_PREFIX
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# Types that torch takes as they are.
KEPT = (np.uint8, np.float32, np.float64)

# From the names of the arrays of a file to those that are read, by the name that they get.
Choice = Callable[[Sequence[str]], Mapping[str, str]]


def read_numpy(path: Path, choose: Choice, kinds: str = "biuf") -> dict[str, NDArray[Any]]:
    r"""Reads arrays of a `.npy` or `.npz` file; which of the two it is, its first bytes tell.

    A matrix or larger array of a `.npy` file stays in the file until its rows are used, if its dtype is one of `KEPT`.

    Arguments:
        path: Path of the file.
        choose: Choice of the arrays; the only array of a `.npy` file has the stem of the file as its name.
        kinds: Kinds of dtype that may be read.

    Raises:
        InputError: If the file is damaged or encrypted, or an array is of another kind, holds Python objects, has more
            values than the file, or needs more memory than there is; and if a compressed file holds more than 4 GiB.
    """
    kind = f"`{path.suffix.lower()}`"
    source = OutsideFile(path, kind, "it may be truncated or damaged; write or copy it again")
    size = source.check(memory=False)
    with source.reading(), path.open("rb") as stream, ExitStack() as stack:
        if stream.read(2) != b"PK":
            chosen = choose([path.stem])
            stream.seek(0)
            return {name: _array(source, its, stream, size, kinds, mapped=True) for name, its in chosen.items()}
        archive = stack.enter_context(zipfile.ZipFile(stream))
        members = _members(source, archive)
        chosen = choose(list(members))
        infos = [members[its] for its in chosen.values()]
        _check_size(source, infos, size)
        arrays = {}
        for (name, its), info in zip(chosen.items(), infos, strict=True):
            with archive.open(info) as member:
                arrays[name] = _array(source, its, member, info.file_size, kinds)
        return arrays


def _members(source: OutsideFile, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the arrays of an archive by name; other files in it are no arrays."""
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if len(infos) > _MOST_MEMBERS:
        raise source.error(f"holds {len(infos):,} arrays, and at most {_MOST_MEMBERS:,} are read")
    if encrypted := [info for info in infos if info.flag_bits & 1]:
        raise InputError(f"`{source.path}`: array `{_name(encrypted[0])}` is encrypted; save it without a password.")
    twice = next((name for name, count in Counter(map(_name, infos)).items() if count > 1), None)
    if twice is not None:
        raise source.error(f"holds the array `{twice}` twice")
    return {_name(info): info for info in infos}


def _name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _check_size(source: OutsideFile, infos: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Checks the sizes that the archive declares, before anything is expanded."""
    if sum(info.compress_size for info in infos) > size:
        raise source.error("declares more bytes than it has")
    expanded = sum(info.file_size for info in infos)
    if expanded > max(MOST_EXPANDED, size):
        raise InputError(
            f"`{source.path}`: its {size:,} bytes expand to {expanded:,}, and at most {MOST_EXPANDED:,} are read from "
            "a compressed file; save larger arrays with `numpy.save` or `numpy.savez`, which do not compress."
        )
    source.check_memory(expanded)


def _array(
    source: OutsideFile, name: str, stream: IO[bytes], size: int, kinds: str, mapped: bool = False
) -> NDArray[Any]:
    """Reads an array from a stream of so many bytes, after a check of what its header declares."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise _no_numbers(source)
    stream.seek(0)
    with source.reading():
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"its format version {version} is unknown")
        shape, _, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise _no_numbers(source)
    if dtype.kind not in kinds:
        raise InputError(f"`{source.path}`: array `{name}` is of dtype `{dtype}`; save real numbers.")
    declared, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or declared != there:
        raise source.error(f"cannot be read: its array `{name}` declares {declared:,} bytes, and {there:,} follow")
    if mapped and dtype in KEPT and len(shape) > 1 and declared:
        in_file: NDArray[Any] = np.load(source.path, mmap_mode="r", allow_pickle=False)
        return in_file
    source.check_memory(declared)
    stream.seek(0)
    found: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return found


def _no_numbers(source: OutsideFile) -> InputError:
    return InputError(
        f"`{source.path}`: holds Python objects or is no numpy file, and unpickling may run any code; save "
        "a plain array of numbers with `numpy.save`."
    )
