r"""The checksums of a run folder, by which a damaged file is told from the written one."""

from __future__ import annotations

import re
from pathlib import Path

from pyro_vae.datasets.files import checksum
from pyro_vae.runtime.outside_file import OutsideFile
from pyro_vae.runtime.whole_file import write_whole

# The list of the checksums, in the form of `sha256sum`, and its largest size in bytes.
NAME = "SHA256SUMS"
_MOST = 10 * 2**20
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_REMEDY = f"run the comparison again; or, if the change is meant, remove `{NAME}`, and no file is compared any more"


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files in a folder; ``sha256sum --check SHA256SUMS`` there compares them too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    lines = [f"{checksum(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_whole(folder / NAME, "".join(lines).encode())


class Checksums:
    """The checksums of a folder; those of one without a list, such as an older one, are not compared.

    Arguments:
        folder: The folder.

    Raises:
        InputError: If the list is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, str] | None = None
        if not (folder / NAME).exists():
            return
        source = OutsideFile(folder / NAME, "a list of checksums", _REMEDY)
        with source.reading():
            lines = source.bytes(_MOST).decode("utf-8").splitlines()
        found = [_LINE.fullmatch(line) for line in lines]
        if not all(found):
            raise source.error("is damaged")
        self._known = {match[2]: match[1] for match in found if match}

    def lists(self, name: str) -> bool:
        """Whether the folder had a file of this name, as far as is known."""
        return name in self._known if self._known is not None else (self.folder / name).exists()

    def check(self, name: str) -> None:
        """Raises an `InputError` if a file is not the one that was written."""
        source = OutsideFile(self.folder / name, "a file of a run", _REMEDY)
        source.check()
        if self._known is not None and self._known.get(name) != checksum(source.path):
            raise source.error(f"is not the file that was written: its checksum is not that in `{NAME}`")
