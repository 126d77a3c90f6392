"""Split of the rows into training, validation and test set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.datasets.binarisation import generator_for
from pyro_vae.datasets.raw_data import RawData
from pyro_vae.errors import InputError

DEFAULT_SPLIT = (0.8, 0.1, 0.1)


def partition(
    raw: RawData, split: Sequence[float] | None, seed: int
) -> tuple[dict[str, tuple[str, Tensor | None]], tuple[float, ...] | None]:
    r"""Returns the array and the rows that form each of `train`, `valid` and `test`.

    A single array is permuted: the first rows are the test set, the last rows the validation set, the others the
    training set. So the size of the test set does not change the validation set, and vice versa. Official sets stay
    as they are; where only `train` and `test` are official, `split` takes a validation set from `train`.

    Arguments:
        raw: The data set.
        split: Fractions of train, valid and test (the last left out, or 0, where the test set is official).
        seed: Seed of the permutation.

    Returns:
        For each part the array's name and the rows (None: all, in order); and the fractions, None if unsplit.

    Raises:
        InputError: If the fractions are not valid, official sets were to be split, or a part has no rows.
    """
    official = "all" not in raw.arrays
    if official and split is None:
        return {part: (part, None) for part in raw.arrays}, None
    if official and set(raw.arrays) != {"train", "test"}:
        sets = ", ".join(f"`{part}`" for part in raw.arrays)
        raise InputError(f"`{raw.title}`: its sets {sets} are official; leave `split` out to use them as they are")
    fractions = _fractions(raw.title, DEFAULT_SPLIT if split is None else split, official)
    source = "train" if official else "all"
    size = len(raw.arrays[source])
    test = 0 if official else round(fractions[2] * size)
    valid = round(fractions[1] * size)
    sizes = {"train": size - valid - test, "valid": valid, "test": test}
    for (part, number), fraction in zip(sizes.items(), fractions, strict=False):
        if fraction > 0 and number < 1:
            raise InputError(
                f"`{raw.title}`: split={fractions} leaves no row for `{part}` out of {size}; give it a "
                "greater fraction, or 0 for none"
            )
    order = torch.randperm(size, generator=generator_for(seed, "split"))
    parts: dict[str, tuple[str, Tensor | None]] = {"train": (source, order[test : size - valid])}
    if valid:
        parts["valid"] = (source, order[size - valid :])
    if official:
        parts["test"] = ("test", None)
    elif test:
        parts["test"] = (source, order[:test])
    return parts, fractions


def _fractions(name: str, split: Sequence[float], official: bool) -> tuple[float, ...]:
    try:
        fractions = tuple(float(fraction) for fraction in split)
    except (TypeError, ValueError):
        fractions = ()
    if official and len(fractions) == 3 and fractions[2] != 0:
        raise InputError(
            f"`{name}`: got split={fractions}, but its test set is official and stays whole; pass two "
            "fractions for train and valid, such as split=(0.9, 0.1)"
        )
    if official and len(fractions) == 3:
        fractions = fractions[:2]
    good = (
        len(fractions) == (2 if official else 3)
        and all(math.isfinite(fraction) and fraction >= 0 for fraction in fractions)
        and fractions[0] > 0
        and abs(sum(fractions) - 1) <= 1e-9
    )
    if not good:
        wanted = "(train, valid)" if official else "(train, valid, test)"
        example = "(0.9, 0.1)" if official else "(0.8, 0.1, 0.1)"
        raise InputError(
            f"`{name}`: got split={split!r}; expected fractions {wanted} that sum to 1, train above 0 and "
            f"the others at least 0, such as {example}"
        )
    return fractions
