"""Context and offset of every row, with encodings fitted on the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.datasets.binarisation import generator_for
from pyro_vae.datasets.cells import Cells
from pyro_vae.datasets.context import LABEL, LABELS, TOTAL, ContextColumn, Offset, fit_context
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.errors import suggestion
from pyro_vae.datasets.raw_data import RawData
from pyro_vae.errors import InputError

Parts = Mapping[str, tuple[str, Tensor | None]]


class Conditioning(NamedTuple):
    r"""Context and offset of the rows of each part.

    Attributes:
        units: The data transform, completed by the encodings of the context columns and the rule of the offset.
        context: Covariates of each part, N x C float32; empty where no context is wanted.
        offset: Offsets of each part, N x 1 float32; empty where no offset is wanted.
    """

    units: DataTransform
    context: dict[str, Tensor]
    offset: dict[str, Tensor]


def condition(
    raw: RawData, parts: Parts, units: DataTransform, asked: Mapping[str, str | None], offset: str | None
) -> Conditioning:
    r"""Returns the context and the offset of every row.

    Arguments:
        raw: The data set.
        parts: For each part the name of its array and its rows (None: all, in order).
        units: Data transform of the modelled columns.
        asked: Wanted encoding of each context column; None for the default of the column's type.
        offset: `total`, or the name of a column; None for no offset.

    Raises:
        InputError: If a column cannot condition the model; the message names it.
    """
    rows = _positions(raw, parts)
    columns: list[ContextColumn] = []
    cells: dict[str, Cells] = {}
    for name, encoding in asked.items():
        if name in raw.others:
            column, coded = fit_context(raw.title, name, raw.others[name], rows["train"], encoding)
        else:
            column, coded = fit_context(raw.title, LABEL, _labels(raw, name), rows["train"], encoding or "one-hot")
        columns.append(column)
        cells[column.name] = coded
    units = replace(units, context=tuple(columns))
    context = units.encode_context(cells)
    size = None if offset is None else _sizes(raw, offset)
    offsets = None
    if offset is not None and size is not None:
        rule = Offset(offset)
        rule.of(raw.title, size)  # raises for a size that is not above 0
        rule = Offset(offset, float(size[torch.from_numpy(rows["train"])].log().mean()))
        units, offsets = replace(units, offset=rule), rule.of(raw.title, size)
    return Conditioning(
        units,
        {} if context is None else {part: context[index] for part, index in rows.items()},
        {} if offsets is None else {part: offsets[index] for part, index in rows.items()},
    )


def hide_labels(title: str, units: DataTransform, context: Tensor | None, known: int, seed: int) -> Tensor:
    r"""Returns the context of the training rows, with nan in all but ``known`` rows, which are drawn at random.

    The kept labels are spread over the levels as evenly as the numbers of rows allow.

    Arguments:
        title: Name of the data set in errors.
        units: Data transform with the encoding of the context.
        context: N x C, one-hot.
        known: Number of rows that keep their label.
        seed: Seed of the draw.

    Raises:
        InputError: If the context is not a single one-hot column, or `known` is not between 1 and N.
    """
    if context is None or len(units.context) != 1 or units.context[0].encoding != "one-hot":
        raise InputError(
            f"`{title}`: `labelled: {known}` hides labels, and needs a context of one one-hot column; pass "
            f"`context: {LABELS}` (a named set), or `context: {{column: one-hot}}`"
        )
    if isinstance(known, bool) or not isinstance(known, int) or not 1 <= known <= len(context):
        raise InputError(
            f"`{title}`: `labelled`: got {known!r}; pass the number of training rows that keep their label, from 1 to "
            f"{len(context)}"
        )
    order = torch.randperm(len(context), generator=generator_for(seed, "labelled"))
    shuffled = context[order]
    rank = (shuffled.cumsum(0) * shuffled).sum(1)  # of a row among the rows of its level
    kept = order[rank.argsort(stable=True)[:known]]
    return torch.full_like(context, torch.nan).index_copy(0, kept, context[kept])


def row_totals(x: NDArray[np.float64] | Tensor) -> Tensor:
    r"""Returns the sum over the observed cells (not NaN) of each row, (N,) float64."""
    return torch.from_numpy(np.nansum(np.asarray(x), axis=1, dtype=np.float64))


def _positions(raw: RawData, parts: Parts) -> dict[str, NDArray[np.int64]]:
    """Returns the indices of each part's rows in the concatenation of all arrays."""
    starts, start = {}, 0
    for name, array in raw.arrays.items():
        starts[name] = start
        start += len(array)
    return {
        part: starts[array] + (np.arange(len(raw.arrays[array])) if rows is None else rows.numpy())
        for part, (array, rows) in parts.items()
    }


def _labels(raw: RawData, name: str) -> Cells:
    if name != LABELS:
        raise InputError(
            f"`{raw.title}`: `context: {name}`: a named set has no columns to choose from{suggestion(name, [LABELS])}; "
            f"pass `{LABELS}`"
        )
    if set(raw.labels) != set(raw.arrays):
        raise InputError(
            f"`{raw.title}`: `context: {LABELS}`: this set has no labels; choose a set with labels, such as `digits`, "
            "or leave `context` out"
        )
    return Cells(np.concatenate([raw.labels[array] for array in raw.arrays]).astype(np.float64))


def _sizes(raw: RawData, offset: str) -> Tensor:
    if offset != TOTAL:
        if offset not in raw.others:
            raise InputError(
                f"`{raw.title}`: `offset: {offset}`: a named set has no columns to choose from; pass `{TOTAL}`"
            )
        if (levels := raw.others[offset].levels) is not None:
            raise InputError(
                f"`{raw.title}`: `offset: {offset}`: the column holds words (`{levels[0]}`), which have no log; name a "
                "column of numbers above 0"
            )
        return torch.from_numpy(raw.others[offset].values)
    if raw.path is not None and TOTAL in (raw.columns or ()):
        raise InputError(
            f"`{raw.title}`: `offset: {TOTAL}` means the sum of a row's cells, but the table has a column of that "
            "name; rename the column"
        )
    return torch.cat([row_totals(array) for array in raw.arrays.values()])
