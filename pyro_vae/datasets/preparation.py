"""Preparation of rows for the model: scaling, check against the support, binarisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_vae.datasets.binarisation import bernoulli_draw, generator_for, threshold
from pyro_vae.datasets.data_transform import fit_transform
from pyro_vae.datasets.large_arrays import row_blocks, taken
from pyro_vae.datasets.raw_data import Binarisation, RawData, Scaling
from pyro_vae.datasets.support import Kind, Support, outside, said
from pyro_vae.distributions.support import is_discrete
from pyro_vae.errors import InputError, shown


class Preparation:
    r"""The parts of a data set, scaled at construction, then checked and binarised by `finish`.

    Arguments:
        raw: The data set.
        parts: For each part the name of its array and its rows (None: all, in order).
        binarisation: `none`, `static`, `dynamic` or `threshold`.
        scaling: `none`, `unit` or `standardise`, fitted on the training rows.
        scaled: Mask of the columns to be scaled, (D,) bool; None for all.

    Raises:
        InputError: If a column is constant or empty, a row has no observed cell, or a cell is beyond float32.
    """

    def __init__(
        self,
        raw: RawData,
        parts: dict[str, tuple[str, Tensor | None]],
        binarisation: Binarisation,
        scaling: Scaling,
        scaled: Tensor | None = None,
    ) -> None:
        self.raw, self.parts = raw, parts
        self._check_observed()
        own = {part: taken(raw.arrays[array], rows) for part, (array, rows) in parts.items()}
        self.units = fit_transform(raw, own["train"], binarisation, scaling, scaled)
        # A part that is a copy takes its own place, and no part is held twice.
        self.x = {
            part: self.units.to_model_units(own.pop(part), in_place=rows is not None)
            for part, (_, rows) in parts.items()
        }
        self._check_float32()

    def finish(self, kind: Kind, support: Support | None, *, asked: bool, seed: int) -> None:
        r"""Checks every part against the support and binarise it.

        Arguments:
            kind: Kind of the support.
            support: Support of one datum, or of each column; None checks nothing.
            asked: Whether the user chose the binarisation; only then is a cross-entropy allowed.
            seed: Seed of the binarisation.

        Raises:
            InputError: If a cell is outside the support; the message names the first one.
        """
        how = self.units.binarisation
        if how != "none":
            self._check_unit(f"binarisation=`{how}`")
            if self.raw.bernoulli != "static":
                self._binarise(how, seed)
        elif kind == "binary":
            if not asked:
                self._check_binary()
            self._check_unit("a Bernoulli likelihood on grey values")
            # Neither a mass nor a cross-entropy has a Jacobian.
            self.units = replace(self.units, log_jacobian=0.0, cross_entropy=self._first_grey() is not None)
        if isinstance(support, Constraint) and is_discrete(support):
            self.units = replace(self.units, log_jacobian=0.0)  # a mass has no Jacobian
        if support is not None and kind != "binary":
            self._check_support(support, leave_out="train" if how == "dynamic" else None)

    def labels(self) -> dict[str, Tensor]:
        r"""Returns the labels of the rows of each part; parts without labels are left out."""
        return {
            part: taken(self.raw.labels[array], rows).to(torch.int64)
            for part, (array, rows) in self.parts.items()
            if array in self.raw.labels
        }

    def _binarise(self, how: Binarisation, seed: int) -> None:
        r"""Binarises every part; under dynamic binarisation, the training part stays grey."""
        for part, x in self.x.items():
            if how == "threshold":
                self.x[part] = threshold(x)
            elif how == "static" or part != "train":
                self.x[part] = bernoulli_draw(x, generator_for(seed, part))
            if self.raw.missing:
                self.x[part] = torch.where(x.isnan(), x, self.x[part])

    def _first(self, bad: Callable[[Tensor], Tensor], leave_out: str | None = None) -> str | None:
        r"""Returns a description of the first flagged cell in the order of the file; None where none is flagged.

        Arguments:
            bad: Function from rows to flags, true for the cells of interest.
            leave_out: A part that is not looked at.
        """
        places = []
        for part, x in self.x.items():
            if part == leave_out:
                continue
            hits = torch.cat([bad(x[rows]).any(1).nonzero().flatten() + rows.start for rows in row_blocks(x)])
            if len(hits):
                array, rows = self.parts[part]
                first = int((hits if rows is None else rows[hits]).argmin())
                row = int(hits[first])
                in_file = row if rows is None else int(rows[row])
                column = int(bad(x[row : row + 1])[0].to(torch.uint8).argmax())
                places.append(((list(self.raw.arrays).index(array), in_file), part, row, column))
        if not places:
            return None
        (_, in_file), part, row, column = min(places)
        scaled = "" if self.units.scale is None else f", scaled to {shown(self.x[part][row, column].item())}"
        return self.raw.cell(self.parts[part][0], in_file, column) + scaled

    def _first_grey(self) -> str | None:
        return self._first(lambda x: (x != 0) & (x != 1) & ~x.isnan())

    def _check_observed(self) -> None:
        for name, array in self.raw.arrays.items() if self.raw.missing else ():
            hidden = np.concatenate([np.isnan(array[rows]).all(1) for rows in row_blocks(array)])
            if hidden.any():
                of = "" if name == "all" else f" of `{name}`"
                raise InputError(
                    f"`{self.raw.title}`: data row {int(hidden.argmax()) + 1}{of} (counted from 1, below the header) "
                    "has no observed cell, so it has no information; drop the row"
                )

    def _check_float32(self) -> None:
        cell = self._first(lambda x: x.isinf() if self.raw.missing else ~x.isfinite())
        if cell:
            raise InputError(
                f"`{self.raw.title}`: found {cell}, beyond float32; rescale the column, or pass scaling=`standardise`"
            )

    def _check_unit(self, what: str) -> None:
        cell = self._first(lambda x: (x < 0) | (x > 1))
        if cell:
            raise InputError(
                f"`{self.raw.title}`: found {cell}; {what} needs values in [0, 1]: pass scaling=`unit`, "
                "or rescale the file (scaling is fitted on the training rows alone; other rows may exceed their range)"
            )

    def _check_binary(self) -> None:
        cell = self._first_grey()
        if cell:
            likelihood = (
                "a likelihood on grey values"
                if self.raw.level is not None
                else "a likelihood on such values, such as Normal (`likelihood: Normal`, or --likelihood Normal)"
            )
            raise InputError(
                f"`{self.raw.title}`: found {cell}, outside the likelihood's support {{0, 1}}; choose {likelihood}; "
                "or, for values in [0, 1], binarisation=`dynamic`, `static` or `threshold`, or `none` for a "
                "cross-entropy (no log-likelihood)"
            )

    def _check_support(self, support: Support, leave_out: str | None) -> None:
        each = list(support.values()) if isinstance(support, Mapping) else [support]
        for index, of_column in enumerate(each):
            column = index if isinstance(support, Mapping) else None
            if cell := self._first(partial(_outside, of_column, column), leave_out):
                raise InputError(
                    f"`{self.raw.title}`: found {cell}, outside the likelihood's support, {said(of_column)}; choose "
                    "another likelihood, or another `scaling` or `binarisation`"
                )


def _outside(support: Constraint, column: int | None, x: Tensor) -> Tensor:
    """Returns flags, true for cells outside the support; of one column alone if there is one."""
    flags = outside(support, x)
    return flags if column is None else flags & (torch.arange(flags.shape[1]) == column)
