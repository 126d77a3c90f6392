"""Files of the named data sets: found in a folder or the cache, or downloaded; always with a checksum."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.datasets.errors import first_line
from pyro_vae.datasets.numpy_file import read_numpy
from pyro_vae.errors import InputError
from pyro_vae.runtime.whole_file import write_whole

TIMEOUT = 30.0  # seconds without a byte until a mirror counts as dead


@dataclass(frozen=True)
class Download:
    r"""A public file: its name, its mirrors in order, and the hash its bytes must have (None: unknown)."""

    name: str
    urls: tuple[str, ...]
    known_hash: str | None


@dataclass(frozen=True)
class CatalogueFile:
    r"""A file of a named data set.

    Attributes:
        path: Path below a data folder, such as `mnist/train-images-idx3-ubyte.gz`.
        sha256: sha256 of its bytes.
        alternatives: Ways to get it, in order of preference; each way is a tuple of all downloads that it needs.
        convert: Function from the downloads' paths, by name, to the arrays of the npz file; None where the only
            download is the file itself.
        digest: `content_digest` of the arrays of an npz file. A file whose arrays have this digest is valid, even if
            another compressor wrote other bytes. None where only the bytes are checked.
    """

    path: str
    sha256: str
    alternatives: tuple[tuple[Download, ...], ...]
    convert: Callable[[Mapping[str, Path]], dict[str, NDArray[Any]]] | None = None
    digest: str | None = None


def cache_folder() -> Path:
    r"""Returns the folder of downloads: the environment variable `PYRO_VAE_CACHE`, else the user's cache folder."""
    import pooch

    given = os.environ.get("PYRO_VAE_CACHE")
    return Path(given).expanduser() if given else Path(pooch.os_cache("pyro_vae"))


def fetch(file: CatalogueFile, folder: str | os.PathLike[str] | None = None, progress: bool = False) -> Path:
    r"""Returns the path of a valid copy of a file; downloads it if needed.

    The file is searched in `folder`, in `PYRO_VAE_DATA` and in the cache. If it is absent, it is downloaded into the
    cache. A damaged file in a data folder is an error; a damaged file in the cache is downloaded again.

    Arguments:
        file: The file.
        folder: Data folder with the layout of `CatalogueFile.path`.
        progress: Whether to show a progress bar during a download.

    Raises:
        InputError: If a data folder holds a damaged file (the message has both checksums), or the file is found in
            no folder and on no mirror (the message names all of them).
    """
    places = [("folder", folder), ("PYRO_VAE_DATA", os.environ.get("PYRO_VAE_DATA"))]
    looked = []
    for place, root in places:
        if not root:
            continue
        path = Path(root).expanduser() / file.path
        looked.append(f"`{path}` ({place})")
        if path.is_file():
            found = checksum(path)
            if not _genuine(file, path, found):
                raise InputError(
                    f"`{path}` is damaged or another file: expected sha256 `{file.sha256}`, found `{found}`; "
                    f"delete it, so that it is downloaded, or get it again from {file.alternatives[0][0].urls[0]}"
                )
            return path
    cache = cache_folder()
    target = cache / file.path
    looked.append(f"`{target}` (cache)")
    reasons: list[str] = []
    try:
        if target.is_file():
            if _genuine(file, target, checksum(target)):
                return target
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        if any(_download(file, way, target, progress, reasons) for way in file.alternatives):
            return target
    except OSError as error:
        reasons.append(f"cache not writable: {first_line(error)}")
    raise InputError(
        f"`{file.path}` was not found: looked for {', '.join(looked)}; then every download failed "
        f"({'; '.join(reasons)}); connect to the network, or put the file below a folder and name "
        "that folder by `folder` or the environment variable `PYRO_VAE_DATA`"
    )


def checksum(path: Path) -> str:
    r"""Returns the sha256 of a file's bytes.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"`{path}` cannot be read ({first_line(error)}); check its permissions") from error


def content_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    r"""Returns a sha256 of the names, dtypes, shapes and values of arrays, independent of their compression."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _genuine(file: CatalogueFile, path: Path, found: str) -> bool:
    if found == file.sha256:
        return True
    if file.digest is None:
        return False
    try:
        arrays = read_numpy(path, lambda names: {name: name for name in names}, kinds="biufSU")
    except InputError:
        return False
    return content_digest(arrays) == file.digest


def _download(file: CatalogueFile, way: tuple[Download, ...], target: Path, progress: bool, reasons: list[str]) -> bool:
    if file.convert is None:
        return _retrieve(way[0], target, progress, reasons)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        sources = {download.name: Path(scratch) / download.name for download in way}
        for download in way:
            if not _retrieve(download, sources[download.name], progress, reasons):
                return False
        try:
            arrays = file.convert(sources)
        except Exception as error:  # an unknown format can fail in any way; then the next way is tried
            reasons.append(f"{way[0].urls[0]}: unreadable ({first_line(error)})")
            return False
        if content_digest(arrays) != file.digest:
            reasons.append(f"{way[0].urls[0]}: not the expected arrays")
            return False
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_whole(target, content.getbuffer())
    return True


def _retrieve(download: Download, target: Path, progress: bool, reasons: list[str]) -> bool:
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    for url in download.urls:
        bar = _Bar(download.name) if progress else None
        logger.setLevel("WARNING")
        try:
            pooch.retrieve(
                url,
                known_hash=download.known_hash,
                fname=target.name,
                path=target.parent,
                downloader=pooch.HTTPDownloader(progressbar=bar or False, timeout=TIMEOUT),
            )
            return True
        except (OSError, ValueError) as error:
            reasons.append(f"{url}: {first_line(error)}")
        finally:
            logger.setLevel(level)
            if bar:
                bar.close()
    return False


class _Bar:
    r"""The progress bar that pooch asks for, drawn by rich."""

    def __init__(self, name: str) -> None:
        from pyro_vae.runtime.terminal import BarColumn, Console, DownloadColumn, Progress, TextColumn

        self.total = 0
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._progress.add_task(name, total=None)
        self._progress.start()

    def update(self, count: int) -> None:
        self._progress.update(self._task, advance=count, total=self.total)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()
