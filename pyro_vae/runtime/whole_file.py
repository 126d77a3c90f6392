"""Files that are written as a whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyro_vae.errors import WriteError

_SPACE = "free some space there, or choose another place"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), or choose another place",
}
ELSEWHERE = "choose a place where you may write"


def beside(path: Path) -> Path:
    """Returns the path of the unfinished file that becomes ``path``, in the same folder.

    It has one name, so that the next process removes what a killed one has left.
    """
    return path.with_name(f".{path.name}.unfinished")


def write_whole(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Writes a file, so that a reader sees the old content or the new one, and never a part.

    The content goes into a file beside the place, then to the disk, and then the file is moved there. After an error
    the old content stands as it was, and nothing is left beside it.

    Arguments:
        path: The file to make or to replace.
        parts: Its content, in order.

    Raises:
        WriteError: If the disk is full, the place cannot be written, or another limit is met.
    """
    path = Path(path)
    unfinished = beside(path)
    try:
        try:
            unfinished.unlink(missing_ok=True)  # a link there is not followed
            with unfinished.open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise WriteError(f"`{path}` is not written: {explained(error, ELSEWHERE)}") from error


def check_writable(path: Path) -> None:
    """Raises an `OSError` if `write_whole` could not begin: before long work, not after it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    unfinished = beside(path)
    unfinished.unlink(missing_ok=True)
    unfinished.touch(exist_ok=False)
    unfinished.unlink()


def explained(error: OSError, otherwise: str = "") -> str:
    """Returns the cause of an error in words, and what to do.

    Arguments:
        error: The error.
        otherwise: What to do where the disk is not the cause.
    """
    advice = _ADVICE.get(error.errno or 0, otherwise)
    return f"{error.strerror or error}{'; ' if advice else ''}{advice}."
