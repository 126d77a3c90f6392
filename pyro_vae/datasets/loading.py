"""From a name to data in model units."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from torch.distributions.constraints import Constraint

from pyro_vae.datasets.catalogue import SETS
from pyro_vae.datasets.data import Data
from pyro_vae.datasets.errors import DataError, check_choice, suggestion
from pyro_vae.datasets.preparation import Preparation
from pyro_vae.datasets.raw import Binarisation, RawData, Scaling
from pyro_vae.datasets.split import partition
from pyro_vae.datasets.support import choose, support_kind
from pyro_vae.datasets.table import FORMATS, read_file


def names() -> tuple[str, ...]:
    r"""Return the names of the data sets that `load` knows."""
    return tuple(SETS)


def load(
    name: str | os.PathLike[str],
    *,
    support: Constraint | None = None,
    binarisation: str | None = None,
    scaling: str | None = None,
    split: Sequence[float] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
) -> Data:
    r"""Load a named data set or a file, prepared for a likelihood.

    The likelihood's support decides what is not asked for:

    ================  ===================================  ====================================
    support           image sets                           tables
    ================  ===================================  ====================================
    {0, 1}            dynamic binarisation of unit scale   as they are: must hold only 0 and 1
    [0, 1]            unit scale                           as they are: must lie in [0, 1]
    real line, None   unit scale                           standardised
    any other         grey levels as they are              as they are
    ================  ===================================  ====================================

    `unit` divides an image's grey levels by the greatest (16 for `digits`; for arrays 1 where all values are at
    most 1, 255 where the greatest is above 127, else the greatest), so that `log_jacobian` is -D log 255, and
    maps a table's columns to [0, 1];
    `standardise` centres and scales columns to mean 0 and variance 1. Both are fitted on the training rows
    alone. `static` draws every part once from `seed`, `dynamic` only `valid` and `test`, `threshold` is
    1 from 0.5 on. An image file of the user's is not binarised unless asked for, and `static_mnist`, which
    is binarised in its file, always counts as `static`. Grey values are not data of a Bernoulli likelihood:
    with `binarisation="none"` they are allowed, and the result is marked as a cross-entropy.

    The same arguments give the same rows and the same binarised test set; torch's global random state is
    neither read nor changed.

    Args:
        name: one of `names()`, or the path of a `.csv`, `.parquet`, `.npy` (N x D, or N images) or `.npz`
            file (arrays `train` and `valid` or `test`, or one array `x`, `images` or the only one).
        support: support of the likelihood, maybe inside `constraints.independent`.
        binarisation: `none`, `static`, `dynamic` or `threshold`.
        scaling: `none`, `unit` or `standardise`.
        split: fractions of train, valid and test that sum to 1, 0 for none; (0.8, 0.1, 0.1) by default. Where
            `train` and `test` are official (`mnist`, `fashion_mnist`), two fractions carve a validation set
            out of `train`, and by default there is none. Refused where a validation set is official.
        seed: of the split and of the binarisation, at least 0.
        folder: data folder in which the files of named sets are looked for first, in the layout
            `mnist/train-images-idx3-ubyte.gz`, `static_mnist/binarized_mnist.npz`, `frey/frey_faces.npz`;
            then that of the environment variable `PYRO_VAE_DATA`, then the cache (`PYRO_VAE_CACHE`), then
            public mirrors, always with a checksum.
        progress: whether downloads show a bar.

    Returns:
        The data in model units.

    Raises:
        DataError: one line that names what was given, what was expected and what to do.

    Example:
        >>> from torch.distributions import constraints
        >>> from pyro_vae.datasets import load
        >>> data = load("digits", support=constraints.boolean)
        >>> data.train.shape, data.test.shape, data.binarisation
        (torch.Size([1437, 64]), torch.Size([180, 64]), 'dynamic')
        >>> data.test.unique()
        tensor([0., 1.])
    """
    check_choice("binarisation", binarisation, get_args(Binarisation))
    check_choice("scaling", scaling, get_args(Scaling))
    if scaling == "standardise" and binarisation not in (None, "none"):
        raise DataError(
            f"`scaling`: got `standardise` with binarisation=`{binarisation}`, which needs grey values "
            "in [0, 1]; pass scaling=`unit`, or binarisation=`none`"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"`seed`: got {seed!r}; pass an integer of at least 0")
    raw = _read(name, folder, progress)
    if raw.bernoulli == "static" and binarisation not in (None, "static"):
        raise DataError(
            f"`{raw.name}`: got binarisation=`{binarisation}`, but its file is binarised; leave it out, or "
            "load `mnist` for grey levels"
        )
    kind = support_kind(support)
    how, scaled = choose(raw, kind, cast("Binarisation | None", binarisation), cast("Scaling | None", scaling))
    parts, fractions = partition(raw, split, seed)
    preparation = Preparation(raw, parts, how, scaled)
    preparation.finish(kind, support, asked=binarisation is not None, seed=seed)
    x = preparation.x
    return Data(
        x["train"],
        x.get("valid"),
        x.get("test"),
        preparation.units,
        preparation.labels(),
        seed,
        fractions,
        raw.files,
    )


def _read(name: str | os.PathLike[str], folder: Path | None, progress: bool) -> RawData:
    if isinstance(name, str) and name in SETS:
        return SETS[name](folder, progress)
    if Path(name).suffix.lower() in FORMATS or Path(name).expanduser().is_file():
        return read_file(name)
    known = ", ".join(f"`{known}`" for known in SETS)
    raise DataError(
        f"`{name}` is no data set{suggestion(str(name), names())} and no file; pass one of {known}, "
        f"or the path of a {', '.join(f'`{form}`' for form in FORMATS)} file"
    )
