"""The named data sets: their files, mirrors and checksums, and the function that reads each."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.datasets.files import CatalogueFile, Download, fetch
from pyro_vae.datasets.newsgroups import read_newsgroups
from pyro_vae.datasets.raw_data import RawData
from pyro_vae.runtime.random_streams import restored

Folder = str | os.PathLike[str] | None

_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
_AMAT = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_FREY_MIRRORS = (
    "http://www.cs.nyu.edu/~roweis/data/frey_rawface.mat",
    "https://raw.githubusercontent.com/jmtomczak/vae_vampprior/master/datasets/Freyfaces/freyfaces.pkl",
)


def _idx_file(folder: str, name: str, sha256: str, mirrors: tuple[str, ...]) -> CatalogueFile:
    urls = tuple(mirror + name for mirror in mirrors)
    return CatalogueFile(f"{folder}/{name}", sha256, ((Download(name, urls, f"sha256:{sha256}"),),))


def read_amat(paths: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    r"""Packs the text rows "0 1 ... 0" of the three binarized_mnist_*.amat files into bits, N x 98 bytes each."""
    arrays = {}
    for part in ("train", "valid", "test"):
        text = np.fromfile(paths[f"binarized_mnist_{part}.amat"], dtype=np.uint8)
        arrays[part] = np.packbits(text.reshape(-1, 2 * 784)[:, ::2] - ord("0"), axis=1)
    return arrays


class _ArrayUnpickler(pickle.Unpickler):
    r"""Reads a pickled numpy array; refuses everything else, since an unknown pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        r"""Returns one of the four names that an array's pickle needs; refuses any other."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray.__reduce__(np.empty(0))[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: str(text).encode("latin1")
        raise pickle.UnpicklingError(f"`{module}.{name}` is not part of an array")


def read_frey(paths: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    r"""Reads frey_rawface.mat (array `ff`, 560 x 1965) or freyfaces.pkl (1 x 1965 x 560): the one downloaded."""
    path = paths["frey_faces"]
    with path.open("rb") as stream:
        matlab = stream.read(6) == b"MATLAB"
        stream.seek(0)
        if matlab:
            from scipy.io import loadmat

            rows = loadmat(stream)["ff"].T
        else:
            rows = _ArrayUnpickler(stream, encoding="latin1").load()
    return {"images": np.ascontiguousarray(np.asarray(rows, dtype=np.uint8).reshape(1965, 28, 20))}


# sha256 of train images, train labels, test images, test labels
_IDX_SHA256 = {
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion_mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}
_IDX_NAMES = {
    "train-images": "train-images-idx3-ubyte.gz",
    "train-labels": "train-labels-idx1-ubyte.gz",
    "test-images": "t10k-images-idx3-ubyte.gz",
    "test-labels": "t10k-labels-idx1-ubyte.gz",
}
IDX_FILES = {
    name: {
        key: _idx_file(name, file, sha256, mirrors)
        for (key, file), sha256 in zip(_IDX_NAMES.items(), _IDX_SHA256[name], strict=True)
    }
    for name, mirrors in (("mnist", _MNIST_MIRRORS), ("fashion_mnist", _FASHION_MIRRORS))
}

STATIC_MNIST_FILE = CatalogueFile(
    "static_mnist/binarized_mnist.npz",
    "50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5",
    (
        tuple(
            Download(f"binarized_mnist_{part}.amat", (f"{_AMAT}binarized_mnist_{part}.amat",), f"sha1:{sha1}")
            for part, sha1 in (
                ("train", "cf70514ec5f481e54ad3eb0e6c03c83326ff96f8"),
                ("valid", "13418487742e6ea6d48db7b5187353a20b1b1f8c"),
                ("test", "ca70bd7775e182596dec148d4dc1bc6bd6c4c5f4"),
            )
        ),
    ),
    read_amat,
    "6d1f4b43487acc5d9757aa44c153f794acc688a66a8608cb44eda9c01de30854",
)

FREY_FILE = CatalogueFile(
    "frey/frey_faces.npz",
    "3c70375e0a9c4751ad49ad5f1f692bd094c46f133cf4aa8ea77d1cb14e1efcd1",
    tuple((Download("frey_faces", (url,), None),) for url in _FREY_MIRRORS),
    read_frey,
    "22e53d6ebb4e1af643106cb95913ae6a821cc0b1d16ef7bb98474c4ee8871a7b",
)


def read_idx(path: Path) -> NDArray[np.uint8]:
    r"""Reads a gzipped idx file of bytes, in the shape that its header gives."""
    content = gzip.decompress(path.read_bytes())
    dims = struct.unpack_from(f">{content[3]}I", content, 4)
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * len(dims)).reshape(dims)


def _digits(folder: Folder, progress: bool) -> RawData:
    with restored():
        from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    levels = images.astype(np.uint8)
    return RawData(
        "digits",
        {"all": levels},
        {"sklearn.datasets.load_digits": hashlib.sha256(levels.tobytes()).hexdigest()},
        {"all": labels},
        image_shape=(8, 8),
        level=16.0,
        bernoulli="dynamic",
    )


def _idx_set(name: str, folder: Folder, progress: bool) -> RawData:
    files = IDX_FILES[name]
    arrays = {key: read_idx(fetch(file, folder, progress)) for key, file in files.items()}
    return RawData(
        name,
        {part: arrays[f"{part}-images"].reshape(-1, 784) for part in ("train", "test")},
        {file.path: file.sha256 for file in files.values()},
        {part: arrays[f"{part}-labels"] for part in ("train", "test")},
        image_shape=(28, 28),
        level=255.0,
        bernoulli="dynamic",
    )


def _static_mnist(folder: Folder, progress: bool) -> RawData:
    with np.load(fetch(STATIC_MNIST_FILE, folder, progress), allow_pickle=False) as archive:
        arrays = {part: np.unpackbits(archive[part], axis=1) for part in ("train", "valid", "test")}
    return RawData(
        "static_mnist",
        arrays,
        {STATIC_MNIST_FILE.path: STATIC_MNIST_FILE.sha256},
        image_shape=(28, 28),
        level=1.0,
        bernoulli="static",
    )


def _frey(folder: Folder, progress: bool) -> RawData:
    with np.load(fetch(FREY_FILE, folder, progress), allow_pickle=False) as archive:
        images = archive["images"].reshape(-1, 560)
    return RawData(
        "frey",
        {"all": images},
        {FREY_FILE.path: FREY_FILE.sha256},
        image_shape=(28, 20),
        level=255.0,
        bernoulli="dynamic",
    )


SETS: dict[str, Callable[[Folder, bool], RawData]] = {
    "digits": _digits,
    "mnist": lambda folder, progress: _idx_set("mnist", folder, progress),
    "static_mnist": _static_mnist,
    "fashion_mnist": lambda folder, progress: _idx_set("fashion_mnist", folder, progress),
    "frey": _frey,
    "20newsgroups": read_newsgroups,
}
