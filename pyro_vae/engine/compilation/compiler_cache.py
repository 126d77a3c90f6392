r"""Inductor's cache on disk: a writable folder, without truncated files of killed processes."""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Fields of a 64-bit ELF header (offset, format): start of the section table; size and number of its entries.
_SECTIONS, _ENTRIES = (0x28, "<Q"), (0x3A, "<HH")

_cleaned: set[str] = set()


@contextmanager
def writable_cache() -> Iterator[None]:
    """A block in which Inductor's cache is a writable folder without truncated libraries."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        folder = cache_dir()
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        temporary = tempfile.mkdtemp(prefix="pyro_vae_")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        warnings.warn(
            f"the compilation cache cannot be written ({error}); compiled programs are kept in {temporary} for this "
            "process alone. Set TORCHINDUCTOR_CACHE_DIR to a writable folder.",
            stacklevel=5,
        )
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder = temporary
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_unfinished(Path(folder))
    yield


def remove_unfinished(folder: Path) -> None:
    """Removes truncated libraries, unless another process is writing them.

    A process that is killed while it links leaves a truncated library. Inductor uses it nevertheless: later processes
    fail to load it; or, if the library was a test of the processor, they take the processor for an older one.
    """
    from torch.utils._filelock import FileLock

    for library in folder.glob("*/*.so"):
        if is_whole(library):
            continue
        with suppress(OSError, TimeoutError):
            (folder / "locks").mkdir(exist_ok=True)
            with FileLock(str(folder / "locks" / f"{library.name.split('.')[0]}.lock"), timeout=0):
                if not is_whole(library):
                    library.unlink(missing_ok=True)


def is_whole(library: Path) -> bool:
    """Returns whether a shared library is as long as its header says; for other formats, whether it is not empty."""
    try:
        size = library.stat().st_size
        with library.open("rb") as file:
            header = file.read(64)
    except OSError:
        return True  # the file is gone
    if not header.startswith(b"\x7fELF\x02\x01"):
        return size > 0
    if len(header) < 64:
        return False
    (begin,) = struct.unpack_from(_SECTIONS[1], header, _SECTIONS[0])
    entry, count = struct.unpack_from(_ENTRIES[1], header, _ENTRIES[0])
    return size >= begin + entry * count > 0
