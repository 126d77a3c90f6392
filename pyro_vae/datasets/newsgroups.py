"""20 Newsgroups as bags of words, preprocessed as for the embedded topic model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.datasets.files import CatalogueFile, Download, fetch
from pyro_vae.datasets.raw_data import RawData

_MIRROR = (
    "https://raw.githubusercontent.com/MIND-Lab/OCTIS/8f9a0ac5a12e3b72ecd77dcba4f181c77e4595f1/"
    "octis/models/ETM_model/data/20ng/"
)
_SETS = {"train": "tr", "valid": "va", "test": "ts", "test_h1": "ts_h1", "test_h2": "ts_h2"}
_FILES = tuple(f"bow_{short}_{what}.mat" for short in _SETS.values() for what in ("tokens", "counts"))


def read_mat(paths: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    r"""Reads the vocabulary and, for each set, the word numbers and counts of its documents as CSR arrays."""
    from scipy.io import loadmat

    with paths["vocab.pkl"].open("rb") as stream:
        words = _PlainUnpickler(stream).load()
    arrays: dict[str, NDArray[Any]] = {"vocab": np.array(words)}
    for name, short in _SETS.items():
        rows = {}
        for what in ("tokens", "counts"):
            (found,) = (value for key, value in loadmat(paths[f"bow_{short}_{what}.mat"]).items() if key[0] != "_")
            rows[what] = [np.asarray(row).ravel() for row in found.ravel()]
        arrays[f"{name}_indptr"] = np.cumsum([0, *map(len, rows["tokens"])]).astype(np.int32)
        arrays[f"{name}_indices"] = np.concatenate(rows["tokens"]).astype(np.int16)
        arrays[f"{name}_data"] = np.concatenate(rows["counts"]).astype(np.int16)
    return arrays


class _PlainUnpickler(pickle.Unpickler):
    r"""Reads pickled lists of words; refuses everything else, since an unknown pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        r"""Refuses every name."""
        raise pickle.UnpicklingError(f"`{module}.{name}` is no list of words")


NEWSGROUPS_FILE = CatalogueFile(
    "20newsgroups/20news_etm_bow.npz",
    "e24b62c6b13e276fc86fe07598fa5bc616402f50cd5291ef89ca245f05a7e511",
    (tuple(Download(name, (_MIRROR + name,), None) for name in (*_FILES, "vocab.pkl")),),
    read_mat,
    "38474b012041fa828e1039ab21842bba2fbd3964ff70a97426fea2c1757811ef",
)


def read_newsgroups(folder: str | os.PathLike[str] | None, progress: bool) -> RawData:
    r"""Reads the official train, valid and test documents as dense counts, float32 (train: 138 MB)."""
    with np.load(fetch(NEWSGROUPS_FILE, folder, progress), allow_pickle=False) as archive:
        vocabulary = tuple(str(word) for word in archive["vocab"])
        arrays = {part: _dense(archive, part, len(vocabulary)) for part in ("train", "valid", "test")}
    files = {NEWSGROUPS_FILE.path: NEWSGROUPS_FILE.sha256}
    return RawData("20newsgroups", arrays, files, columns=vocabulary)


def newsgroups_halves(folder: str | os.PathLike[str] | None = None, progress: bool = False) -> tuple[Tensor, Tensor]:
    r"""Returns the two halves of each test document of `20newsgroups`, for document completion.

    A model infers a document's topics from the first half; the perplexity of the second half measures its quality.
    Row by row, the halves sum to the test documents.

    Arguments:
        folder: Data folder, as for `load`.
        progress: Whether downloads show a progress bar.

    Returns:
        Counts, each 7531 x 3072 float32.

    Reference: Wallach, Murray, Salakhutdinov and Mimno, "Evaluation methods for topic models", 2009, section 5.
    """
    with np.load(fetch(NEWSGROUPS_FILE, folder, progress), allow_pickle=False) as archive:
        first, second = (_dense(archive, part, len(archive["vocab"])) for part in ("test_h1", "test_h2"))
    return torch.from_numpy(first), torch.from_numpy(second)


def _dense(archive: Mapping[str, NDArray[Any]], part: str, width: int) -> NDArray[np.float32]:
    pointers, columns = archive[f"{part}_indptr"], archive[f"{part}_indices"]
    rows = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
    dense = np.zeros((len(pointers) - 1, width), np.float32)
    dense[rows, columns] = archive[f"{part}_data"]
    return dense
