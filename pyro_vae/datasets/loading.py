"""From a name to data in model units."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.datasets.catalogue import SETS
from pyro_vae.datasets.cells import Cells, with_levels
from pyro_vae.datasets.conditioning import condition, hide_labels
from pyro_vae.datasets.context import TOTAL, Asked, asked_for
from pyro_vae.datasets.data import Data
from pyro_vae.datasets.errors import DataError, check_choice, suggestion
from pyro_vae.datasets.preparation import Preparation
from pyro_vae.datasets.raw_data import Binarisation, Missing, RawData, Scaling
from pyro_vae.datasets.split import partition
from pyro_vae.datasets.support import Support, choose, has_levels, number_of_levels, support_kind
from pyro_vae.datasets.user_file import FORMATS, Wanted, read_file
from pyro_vae.distributions.support import base_support


def names() -> tuple[str, ...]:
    r"""Return the names of the data sets that `load` knows."""
    return tuple(SETS)


def load(
    name: str | os.PathLike[str],
    *,
    support: Support | None = None,
    binarisation: str | None = None,
    scaling: str | None = None,
    missing: str | None = None,
    context: Asked = None,
    offset: str | None = None,
    labelled: int | None = None,
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

    A mapping from columns to supports chooses the modelled columns of a table and their order; those whose support
    is the real line are standardised, and the others stay as they are. A column of words becomes the codes
    0, 1, ... of its sorted levels where its support holds codes (that of Categorical, or {0, 1} for two levels);
    one of numbers, where these are not codes already.

    The same arguments give the same rows and the same binarised test set; torch's global random state is
    neither read nor changed.

    Args:
        name: one of `names()`, or the path of a `.csv`, `.parquet`, `.npy` (N x D, or N images) or `.npz`
            file (arrays `train` and `valid` or `test`, or one array `x`, `images` or the only one).
        support: support of the likelihood, maybe inside `constraints.independent`; or, for a table, that of each
            column by name.
        binarisation: `none`, `static`, `dynamic` or `threshold`.
        scaling: `none`, `unit` or `standardise`.
        missing: `mask` accepts empty cells (NaN), which `Data.batch` hides from the likelihood; by default, `error`,
            they are refused.
        context: what conditions the model and is not modelled: `labels` of a named set, one-hot; or names of a
            table's columns, numbers standardised on the training rows and words one-hot. A mapping from names to
            `standardise`, `one-hot` (also of numbers, such as codes) or `none` says so itself.
        offset: `total`, the log of the sum of a row's cells (a library size, a document's length), or a column's
            name, the log of its cells; less its mean over the training rows, see `Offset`.
        labelled: number of training rows that keep their label, spread evenly over the labels; the context of the
            others is nan, which only the algorithm `m2` takes. Validation and test rows keep theirs. None: all.
        split: fractions of train, valid and test that sum to 1, 0 for none; (0.8, 0.1, 0.1) by default. Where
            `train` and `test` are official (`mnist`, `fashion_mnist`), two fractions carve a validation set
            out of `train`, and by default there is none. Refused where a validation set is official.
        seed: of the split, of the binarisation and of which rows keep their label, at least 0.
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
    _check_arguments(binarisation, scaling, missing, seed)
    asked = asked_for(context)
    beside = [*asked, *([] if offset in (None, TOTAL) else [str(offset)])]
    raw = _read(name, folder, progress, _wanted(support, missing, beside))
    if isinstance(support, Mapping):
        raw = _with_codes(raw, support)
    if raw.bernoulli == "static" and binarisation not in (None, "static"):
        raise DataError(
            f"`{raw.name}`: got binarisation=`{binarisation}`, but its file is binarised; leave it out, or "
            "load `mnist` for grey levels"
        )
    kind = support_kind(support)
    how, scaled = choose(raw, kind, cast("Binarisation | None", binarisation), cast("Scaling | None", scaling))
    parts, fractions = partition(raw, split, seed)
    preparation = Preparation(raw, parts, how, scaled, _scaled_columns(support))
    preparation.finish(kind, support, asked=binarisation is not None, seed=seed)
    given = condition(raw, parts, preparation.units, asked, offset)
    if labelled is not None:
        given.context["train"] = hide_labels(raw.title, given.units, given.context.get("train"), labelled, seed)
    x = preparation.x
    return Data(
        x["train"],
        x.get("valid"),
        x.get("test"),
        given.units,
        preparation.labels(),
        seed,
        fractions,
        raw.files,
        given.context,
        given.offset,
    )


def _check_arguments(binarisation: str | None, scaling: str | None, missing: str | None, seed: int) -> None:
    r"""Raise a `DataError` for a choice that is not one, or two that exclude each other."""
    check_choice("binarisation", binarisation, get_args(Binarisation))
    check_choice("scaling", scaling, get_args(Scaling))
    if scaling == "standardise" and binarisation not in (None, "none"):
        raise DataError(
            f"`scaling`: got `standardise` with binarisation=`{binarisation}`, which needs grey values "
            "in [0, 1]; pass scaling=`unit`, or binarisation=`none`"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"`seed`: got {seed!r}; pass an integer of at least 0")
    check_choice("missing", missing, get_args(Missing))


def _wanted(support: Support | None, missing: str | None, beside: Sequence[str]) -> Wanted:
    """What is asked of a user's file."""
    others, mask = tuple(dict.fromkeys(beside)), missing == "mask"
    if isinstance(support, Mapping):
        words = frozenset(name for name, each in support.items() if has_levels(each))
        return Wanted(tuple(support), others, mask, words, exhaustive=True)
    return Wanted(None, others, mask, all_words=support is not None and has_levels(support))


def _with_codes(raw: RawData, support: Mapping[str, Constraint]) -> RawData:
    """The data with each column that must hold codes in codes, those of its levels where it held none.

    Raises:
        DataError: naming a column with more levels than its likelihood.
    """
    array, levels = raw.arrays["all"].copy(), list(raw.levels or (None,) * len(support))
    for index, (name, each) in enumerate(support.items()):
        number = number_of_levels(each)
        if number is None:
            continue
        values = array[:, index]
        observed = values[~np.isnan(values)]
        codes = levels[index] is not None or bool(np.isin(observed, np.arange(number)).all())
        two = len(np.unique(observed)) <= 2 and bool((np.rint(observed) == observed).all())
        # Grey values are no levels of a Bernoulli.
        if not codes and (two or not isinstance(base_support(each), type(constraints.boolean))):
            coded = with_levels(Cells(values))
            array[:, index], levels[index] = coded.values, coded.levels
        found = levels[index]
        if found is not None and len(found) > number:
            said = ", ".join(f"`{level}`" for level in found)
            raise DataError(
                f"`{raw.title}`: column `{name}` has {len(found)} levels ({said[:200]}), and its likelihood {number}; "
                f"declare {len(found)}, such as `{name}: {{Categorical: {len(found)}}}`"
            )
    return replace(raw, arrays={"all": array}, levels=tuple(levels) if any(levels) else None)


def _scaled_columns(support: Support | None) -> Tensor | None:
    """Which columns are scaled: those whose likelihood lives on the real line; None for all."""
    if not isinstance(support, Mapping):
        return None
    return torch.tensor([support_kind(each) == "real" for each in support.values()])


def _read(name: str | os.PathLike[str], folder: Path | None, progress: bool, wanted: Wanted) -> RawData:
    if isinstance(name, str) and name in SETS:
        if wanted.exhaustive:
            raise DataError(
                f"`{name}`: a likelihood of each column is for tables with named columns, and this is a named set; "
                "choose one likelihood for all of its cells"
            )
        return replace(SETS[name](folder, progress), missing=wanted.missing)
    if Path(name).suffix.lower() in FORMATS or Path(name).expanduser().is_file():
        return read_file(name, wanted)
    known = ", ".join(f"`{known}`" for known in SETS)
    raise DataError(
        f"`{name}` is no data set{suggestion(str(name), names())} and no file; pass one of {known}, "
        f"or the path of a {', '.join(f'`{form}`' for form in FORMATS)} file"
    )
