"""Loading of a named data set or a file as data in model units."""

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
from pyro_vae.datasets.errors import check_choice, suggestion
from pyro_vae.datasets.number_format import NumberFormat
from pyro_vae.datasets.preparation import Preparation
from pyro_vae.datasets.raw_data import Binarisation, Missing, RawData, Scaling
from pyro_vae.datasets.split import partition
from pyro_vae.datasets.support import Support, choose, has_levels, number_of_levels, support_kind
from pyro_vae.datasets.user_file import FORMATS, Wanted, read_file
from pyro_vae.distributions.support import base_support
from pyro_vae.errors import InputError


def names() -> tuple[str, ...]:
    r"""Returns the names of the data sets that `load` knows."""
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
    decimal: str | None = None,
    thousands: str | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
) -> Data:
    r"""Loads a named data set or a file, prepared for a likelihood.

    The likelihood's support gives the defaults of `binarisation` and `scaling`:

    ================  ===================================  ====================================
    support           image sets                           tables
    ================  ===================================  ====================================
    {0, 1}            dynamic binarisation of unit scale   as they are: must hold only 0 and 1
    [0, 1]            unit scale                           as they are: must lie in [0, 1]
    real line, None   unit scale                           standardised
    any other         grey levels as they are              as they are
    ================  ===================================  ====================================

    Scaling `unit` divides grey levels by the greatest level g, so `log_jacobian` is -D log g; it maps a table's
    columns to [0, 1]. g is 16 for `digits`, 1 for `static_mnist` and 255 for the other image sets. For image files, g
    is 1 if no value exceeds 1, 255 if the greatest value is above 127 and at most 255, else the greatest value.
    Scaling `standardise` gives columns mean 0 and variance 1. Columns are scaled by numbers from the training rows
    alone.

    Binarisation `static` draws every part once, from `seed`; `dynamic` draws only `valid` and `test` once;
    `threshold` replaces values of at least 0.5 by 1 and others by 0. A user's image file is binarised only on
    request. `static_mnist`, whose file holds bits, is always `static`. A Bernoulli likelihood on grey values needs
    `binarisation="none"`; its results are marked as cross-entropies.

    A mapping from columns to supports selects the modelled columns of a table and their order. Columns whose support
    is the real line are standardised; the others stay as they are. If the support of a column holds codes (that of
    Categorical, or {0, 1} for two levels), words become the codes 0, 1, ... of their sorted levels; numbers become
    codes in the same way, unless they are codes already.

    The same arguments give the same rows and the same binarised test set. The global random state of torch is
    neither used nor changed.

    Arguments:
        name: One of `names()`; or the path of a `.csv`, `.parquet`, `.npy` (N x D, or N images) or `.npz`
            file (with the arrays `train` and `valid` or `test`, or an array `x` or `images`, or a single array).
        support: Support of the likelihood, maybe inside `constraints.independent`; or, for a table, a mapping from
            column names to supports.
        binarisation: `none`, `static`, `dynamic` or `threshold`.
        scaling: `none`, `unit` or `standardise`.
        missing: `mask` accepts empty cells (NaN), which `Data.batch` hides from the likelihood; `error`, the default,
            refuses them.
        context: Covariates, which condition the model and are not modelled: `labels` for the labels of a named set
            (one-hot); or names of a table's columns (numbers are standardised on the training rows, words are
            one-hot); or a mapping from names to `standardise`, `one-hot` (also for numbers, such as codes) or `none`.
        offset: `total` for the log of the sum of a row's cells (a library size, a document's length), or a column's
            name for the log of its cells; the mean over the training rows is subtracted, see `Offset`.
        labelled: Number of training rows that keep their label, spread evenly over the labels. The context of the
            other training rows is nan, which only the algorithm `m2` accepts. None: all rows.
        split: Fractions of train, valid and test, which sum to 1; 0 for no such part; (0.8, 0.1, 0.1) by default.
            Where only `train` and `test` are official (`mnist`, `fashion_mnist`): two fractions, to split a
            validation set off `train`; by default there is none. Not allowed where a validation set is official.
        decimal: Decimal sign of a `.csv` file, such as ``","``; a point by default.
        thousands: Sign between thousands in a `.csv` file, such as ``","``, ``"."``, ``" "`` or ``"'"``; none by
            default. Both hold for all columns, also for new rows of a trained model. Numbers in another format are
            refused.
        seed: Seed of the split, of the binarisation and of the choice of labelled rows; at least 0.
        folder: Data folder, where the files of named sets are searched first, such as
            `mnist/train-images-idx3-ubyte.gz`, `static_mnist/binarized_mnist.npz`, `frey/frey_faces.npz`. Next are
            the folder of the environment variable `PYRO_VAE_DATA`, the cache (`PYRO_VAE_CACHE`) and public mirrors.
            Checksums are always compared.
        progress: Whether downloads show a progress bar.

    Returns:
        The data in model units.

    Raises:
        InputError: If an argument, a file or a cell cannot be used.

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
    numbers = NumberFormat.of(decimal, thousands)
    if numbers is not None and Path(name).suffix.lower() != ".csv":
        raise InputError(
            f"`{name}`: got `{numbers.keys()}`, which says how numbers are written in a `.csv` file; leave it out"
        )
    raw = _read(name, folder, progress, replace(_wanted(support, missing, beside), numbers=numbers))
    if isinstance(support, Mapping):
        raw = _with_codes(raw, support)
    if raw.bernoulli == "static" and binarisation not in (None, "static"):
        raise InputError(
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
    r"""Checks the arguments that need no data; raises an `InputError` if one is unknown or two exclude each other."""
    check_choice("binarisation", binarisation, get_args(Binarisation))
    check_choice("scaling", scaling, get_args(Scaling))
    if scaling == "standardise" and binarisation not in (None, "none"):
        raise InputError(
            f"`scaling`: got `standardise` with binarisation=`{binarisation}`, which needs grey values "
            "in [0, 1]; pass scaling=`unit`, or binarisation=`none`"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"`seed`: got {seed!r}; pass an integer of at least 0")
    check_choice("missing", missing, get_args(Missing))


def _wanted(support: Support | None, missing: str | None, beside: Sequence[str]) -> Wanted:
    """Returns the requirements on a user's file."""
    others, mask = tuple(dict.fromkeys(beside)), missing == "mask"
    if isinstance(support, Mapping):
        words = frozenset(name for name, each in support.items() if has_levels(each))
        return Wanted(tuple(support), others, mask, words, exhaustive=True)
    return Wanted(None, others, mask, all_words=support is not None and has_levels(support))


def _with_codes(raw: RawData, support: Mapping[str, Constraint]) -> RawData:
    """Returns the data with codes in each column whose support holds codes; other numbers there become levels.

    Raises:
        InputError: If a column has more levels than its likelihood; the message names it.
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
        # The grey values of a Bernoulli column are not levels.
        if not codes and (two or not isinstance(base_support(each), type(constraints.boolean))):
            coded = with_levels(Cells(values))
            array[:, index], levels[index] = coded.values, coded.levels
        found = levels[index]
        if found is not None and len(found) > number:
            said = ", ".join(f"`{level}`" for level in found)
            raise InputError(
                f"`{raw.title}`: column `{name}` has {len(found)} levels ({said[:200]}), but its likelihood has "
                f"{number}; declare {len(found)}, such as `{name}: {{Categorical: {len(found)}}}`"
            )
    return replace(raw, arrays={"all": array}, levels=tuple(levels) if any(levels) else None)


def _scaled_columns(support: Support | None) -> Tensor | None:
    """Returns the mask of the columns whose support is the real line, which are scaled; None for all."""
    if not isinstance(support, Mapping):
        return None
    return torch.tensor([support_kind(each) == "real" for each in support.values()])


def _read(name: str | os.PathLike[str], folder: Path | None, progress: bool, wanted: Wanted) -> RawData:
    if isinstance(name, str) and name in SETS:
        if wanted.exhaustive:
            raise InputError(
                f"`{name}`: a likelihood for each column needs a table with named columns, but this is a named set; "
                "choose one likelihood for all cells"
            )
        return replace(SETS[name](folder, progress), missing=wanted.missing)
    if Path(name).suffix.lower() in FORMATS or Path(name).expanduser().is_file():
        return read_file(name, wanted)
    known = ", ".join(f"`{known}`" for known in SETS)
    raise InputError(
        f"`{name}` is no data set{suggestion(str(name), names())} and no file; pass one of {known}, "
        f"or the path of a {', '.join(f'`{form}`' for form in FORMATS)} file"
    )
