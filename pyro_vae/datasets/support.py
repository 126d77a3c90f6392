"""Requirements of a likelihood's support on its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.datasets.raw_data import Binarisation, RawData, Scaling
from pyro_vae.distributions.support import base_support
from pyro_vae.errors import shown

Kind = Literal["binary", "unit", "real", "other", "columns"]

# The support of one datum; or the support of each column of a table, by name.
Support = Constraint | Mapping[str, Constraint]


def support_kind(support: Support | None) -> Kind:
    r"""Returns the kind of a support.

    `binary` is {0, 1}; `unit` is [0, 1]; `real` is the real line (and None); `columns` is a mapping from columns to
    supports.
    """
    if support is None:
        return "real"
    if isinstance(support, Mapping):
        return "columns"
    base = base_support(support)
    if isinstance(base, type(constraints.boolean)):
        return "binary"
    if isinstance(base, type(constraints.real)):
        return "real"
    if isinstance(base, (constraints.interval, constraints.integer_interval)):
        low, high = (torch.as_tensor(getattr(base, f"{end}_bound")) for end in ("lower", "upper"))
        if bool((low == 0).all() and (high == 1).all()):
            return "binary" if base.is_discrete else "unit"
    return "other"


def has_levels(support: Constraint) -> bool:
    r"""Returns whether a support holds the codes 0, 1, ... of levels, so that a column may hold words."""
    base = base_support(support)
    if isinstance(base, type(constraints.boolean)):
        return True
    return isinstance(base, constraints.integer_interval) and bool((torch.as_tensor(base.lower_bound) == 0).all())


def number_of_levels(support: Constraint) -> int | None:
    r"""Returns the number of codes in a support of levels; None for another support."""
    if not has_levels(support):
        return None
    base = base_support(support)
    return int(torch.as_tensor(base.upper_bound).max()) + 1 if isinstance(base, constraints.integer_interval) else 2


def choose(
    raw: RawData, kind: Kind, binarisation: Binarisation | None, scaling: Scaling | None
) -> tuple[Binarisation, Scaling]:
    r"""Fills in the defaults of `load` where binarisation or scaling is None."""
    if raw.bernoulli == "static":
        binarisation = "static"
    elif binarisation is None:
        binarisation = raw.bernoulli if kind == "binary" else "none"
    if scaling is None:
        if raw.level is not None:
            scaling = "none" if kind == "other" and binarisation == "none" else "unit"
        else:
            scaling = "standardise" if kind in ("real", "columns") and binarisation == "none" else "none"
    return binarisation, scaling


_WORDS = {
    constraints.boolean: "0 and 1",
    constraints.real: "the finite numbers",
    constraints.positive: "the numbers above 0",
    constraints.nonnegative: "the numbers from 0",
    constraints.unit_interval: "the numbers from 0 to 1",
    constraints.nonnegative_integer: "the whole numbers from 0",
    constraints.positive_integer: "the whole numbers from 1",
    constraints.simplex: "vectors of shares that sum to 1",
}


def said(support: Constraint) -> str:
    """Returns a support in words."""
    base = base_support(support)
    if base in _WORDS:
        return _WORDS[base]
    bounds = [getattr(base, f"{end}_bound", None) for end in ("lower", "upper")]
    whole = isinstance(base, constraints.integer_interval)
    if (whole or isinstance(base, constraints.interval)) and all(torch.as_tensor(b).numel() == 1 for b in bounds):
        low, high = (shown(float(torch.as_tensor(bound))) for bound in bounds)
        return f"the {'whole ' if whole else ''}numbers from {low} to {high}"
    return f"`{' '.join(str(support).split())[:100]}`"


def outside(support: Constraint, x: Tensor) -> Tensor:
    r"""Returns flags, true for cells outside the support.

    A support of whole vectors (a simplex) is checked row by row; column 0 of a bad row is flagged. Nothing is flagged
    where flat rows are not enough for the check (a support that depends on parameters, several vectors in a datum,
    bounds of another shape); the likelihood's own validation follows later.

    Arguments:
        support: Support of one datum, maybe inside `constraints.independent`.
        x: N x D, model units; NaN where a cell is missing; such cells are not flagged.

    Returns:
        N x D, bool.
    """
    flags = torch.zeros(x.shape, dtype=torch.bool)
    base = base_support(support)
    if isinstance(base, type) or constraints.is_dependent(base) or (base.event_dim > 0 and base is not support):
        return flags
    try:
        inside = base.check(x)
    except (RuntimeError, AssertionError, NotImplementedError):
        return flags
    if inside.shape == x.shape:
        return ~inside & ~x.isnan()
    if inside.shape == x.shape[:1]:
        flags[:, 0] = ~inside
    return flags
