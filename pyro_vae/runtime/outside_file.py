"""Files from outside: checked before memory is taken; whatever is wrong with one is an error that names it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pyro_vae.errors import InputError

# Largest JSON file, and largest size of what a compressed file holds, in bytes.
MOST_JSON, MOST_EXPANDED = 100 * 2**20, 4 * 2**30
# Longest text of a foreign error that a message repeats.
_SAID = 200

_KINDS = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}


@dataclass(frozen=True)
class OutsideFile:
    """A file that may be damaged, hostile or no file at all.

    Attributes:
        path: Its path.
        kind: What it should be, such as ``a checkpoint``.
        remedy: What to do where it is not.
        caller: How messages begin, such as ``fit: ``.
    """

    path: Path
    kind: str
    remedy: str
    caller: str = ""

    def check(self, most: int | None = None, memory: bool = True) -> int:
        """Returns the size of the file in bytes.

        Arguments:
            most: Largest size, in bytes.
            memory: Whether the whole file must fit into the memory there is.

        Raises:
            InputError: If it is absent, a folder, pipe or device, empty, cannot be opened, or is larger than ``most``
                or, if asked, than the memory there is.
        """
        try:
            found = self.path.stat()
            if not stat.S_ISREG(found.st_mode):
                kind = next((name for test, name in _KINDS.items() if test(found.st_mode)), "device")
                raise self.error(f"is a {kind}, not a file")
            os.close(os.open(self.path, os.O_RDONLY))
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from None
        if not found.st_size:
            raise self.error("cannot be read: it is empty")
        if most is not None and found.st_size > most:
            raise self.error(f"has {found.st_size:,} bytes, and at most {most:,} are read")
        if memory:
            self.check_memory(found.st_size)
        return found.st_size

    def check_memory(self, needed: int) -> None:
        """Raises an `InputError` if so many bytes are more than the memory there is."""
        there = memory_available()
        if there is not None and needed > there:
            raise self.error(f"needs {needed:,} bytes of memory, and {there:,} are free")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A block that reads the file: any error of a reader means that the file is not what it should be.

        Readers of foreign formats raise errors of any class for a damaged file, so none is listed here.
        """
        try:
            yield
        except InputError:
            raise
        except MemoryError as error:
            raise self.error("needs more memory than there is") from error
        except Exception as error:
            said = " ".join(str(error).split())[:_SAID]
            name = type(error).__name__
            raise self.error(f"cannot be read as {self.kind} ({name}{': ' if said else ''}{said})") from error

    def bytes(self, most: int | None = None) -> bytes:
        """Returns the content, after `check`."""
        self.check(most)
        with self.reading():
            return self.path.read_bytes()

    def json(self) -> dict[str, Any]:
        """Returns the mapping in a JSON file; numbers that are not finite are refused."""
        content = self.bytes(MOST_JSON)
        with self.reading():
            found = json.loads(content, parse_constant=_refuse)
        if not isinstance(found, dict):
            raise self.error(f"holds a {type(found).__name__}, not a mapping")
        return found

    def error(self, fact: str) -> InputError:
        """Returns the error: the file, a fact about it, and what to do."""
        return InputError(f"{self.caller}`{self.path}` {fact}; {self.remedy}.")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")


def memory_available() -> int | None:
    """Returns the bytes of memory that this process can still take; None where that is unknown."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        import resource  # not on every system

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            found.append(max(0, limit - pages * resource.getpagesize()))
    except (OSError, ValueError, IndexError, ImportError):
        pass
    return min(found, default=None)
