r"""Fixed transformations of an encoder's input before the first layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError, near_match
from pyro_vae.networks.log_scale import LogScale, log1p
from pyro_vae.networks.sizes import check_count
from pyro_vae.networks.specification import spec_of

# Lower and upper bound, each a number or one number for each cell.
Bounds = tuple[float | Tensor, float | Tensor]
# Preprocessing of a column: "raw", "log1p", "log", the number of levels of a code, or the bounds of a whole number.
Cell = str | int | tuple[float, float]


def normalise(x: Tensor) -> Tensor:
    r"""Returns :math:`x / \sum_j |x_j|`: the relative frequencies of counts, and 0 for an empty row."""
    total = x.abs().sum(-1, keepdim=True)
    return x / torch.where(total > 0, total, 1)


def unit(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    r"""Returns :math:`(x - a) / (b - a)` for whole numbers from a to b, and 0 for a cell with a = b."""
    width = torch.as_tensor(high - low, dtype=x.dtype, device=x.device)
    return (x - low) / torch.where(width > 0, width, 1)


def one_hot(x: Tensor, levels: int) -> Tensor:
    r"""Returns :math:`\max(0, 1 - |x - k|)` for k = 0, ..., K - 1: one-hot of codes, shape ``(..., K)``.

    Between two codes it is a mixture of their levels, so learned inputs (of a `VampPrior`) have gradients.
    """
    codes = torch.arange(levels, dtype=x.dtype, device=x.device)
    return (1 - (x.unsqueeze(-1) - codes).abs()).clamp(min=0)


PREPROCESSING: dict[str, Callable[[Tensor], Tensor]] = {"log1p": log1p, "normalise": normalise}
KINDS = (*PREPROCESSING, "log", "unit", "columns")


class Preprocess(nn.Module):
    r"""A network after a fixed function of the data; the context passes unchanged.

    ``log1p`` brings counts of several orders of magnitude to one scale; ``log`` does the same for positive numbers in
    any unit, with a scale from the training rows (see `fit`); ``normalise`` makes bags of words comparable for
    documents of all lengths; ``unit`` maps whole numbers between bounds, such as grey levels, to [0, 1]; ``columns``
    has one function for each column of a table. Only the encoder's input changes, not the data of the likelihood.
    Hidden cells of a `Batch` are 0 and are treated like any 0: they stay 0 for ``log1p`` and ``normalise``.

    Arguments:
        kind: ``"log1p"``, ``"log"``, ``"normalise"``, ``"unit"`` or ``"columns"``.
        network: Network from ``(..., D + context_features)`` to features; for ``columns``, it receives `width`
            features in place of the D cells.
        context_features: Number of covariates at the end of the input.
        bounds: For ``unit``: the smallest and the largest value, numbers or tensors of shape ``(D,)``.
        columns: For ``columns``, one of these for each of the D cells: ``"raw"``, ``"log1p"``, ``"log"``, a number K of
            levels whose codes 0, ..., K - 1 become one-hot, or a pair of bounds as for ``unit``.
        cells: For ``log``: the number D of cells.

    Raises:
        InputError: For an unknown kind, and for bounds, columns or cells that are missing or do not belong to the kind.

    Reference:
        Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018, for log(1 + x).

    Example:
        >>> from pyro_vae.networks import mlp
        >>> Preprocess("log1p", mlp(2000, 128)).to_spec()
        {'mlp': [128], 'input': 'log1p'}
        >>> Preprocess("normalise", nn.Identity())(torch.tensor([[1.0, 3.0]]))
        tensor([[0.2500, 0.7500]])
        >>> Preprocess("unit", nn.Identity(), bounds=(0, 255))(torch.tensor([[0.0, 51.0]]))
        tensor([[0.0000, 0.2000]])
        >>> Preprocess("columns", nn.Identity(), columns=("raw", 3))(torch.tensor([[-0.7, 1.0]]))
        tensor([[-0.7000,  0.0000,  1.0000,  0.0000]])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        kind: str,
        network: nn.Module,
        context_features: int = 0,
        *,
        bounds: Bounds | None = None,
        columns: Sequence[Cell] | None = None,
        cells: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"Preprocess: unknown kind `{kind}`; {near_match(str(kind), KINDS)}")
        check_count("Preprocess", "context_features", context_features, 0)
        given = (("bounds", bounds, "unit"), ("columns", columns, "columns"), ("cells", cells, "log"))
        for name, value, owner in given:
            if (value is None) == (kind == owner):
                said = "needs" if value is None else "has no"
                raise InputError(f"Preprocess: `{kind}` {said} `{name}`; `{name}` are for `{owner}`.")
        self.kind, self.network, self.context_features = kind, network, context_features
        for end, bound in zip(("low", "high"), () if bounds is None else bounds, strict=False):
            self.register_buffer(end, torch.as_tensor(bound).to(torch.get_default_dtype()), persistent=False)
        self.columns = None if columns is None else tuple(map(_checked, columns))
        if cells is not None:
            check_count("Preprocess", "cells", cells, 1)
        logs = len(self._log_columns()) if cells is None else cells
        self.logs = LogScale(logs) if logs else None
        for size in ("in_features", "out_features"):
            if hasattr(network, size):
                setattr(self, size, getattr(network, size))
        if self.columns is not None:
            self.in_features = len(self.columns) + context_features

    @staticmethod
    def width(columns: Sequence[Cell]) -> int:
        """Returns the number of features that replace the columns."""
        return sum(cell if isinstance(cell, int) else 1 for cell in columns)

    def fit(self, x: Tensor) -> Preprocess:
        """Fits the scale of ``log`` to training rows; see `LogScale`.

        Arguments:
            x: Training rows without the context, shape ``(N, D)``; nan where a cell is hidden.

        Returns:
            Self.
        """
        if self.logs is not None:
            self.logs.fit(x if self.columns is None else x[:, self._log_columns()])
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Returns the network's output for x, shape ``(..., D + context_features)``."""
        cells = x.shape[-1] - self.context_features
        data = self._of_data(x[..., :cells])
        features: Tensor = self.network(torch.cat([data, x[..., cells:]], dim=-1) if self.context_features else data)
        return features

    def _of_data(self, x: Tensor) -> Tensor:
        if self.kind == "unit":
            return unit(x, self.low, self.high)
        if self.columns is None:
            whole = self.logs if self.kind == "log" else PREPROCESSING.get(self.kind)
            return x if whole is None else whole(x)
        features = [_of_cell(cell, x[..., i : i + 1]) for i, cell in enumerate(self.columns)]
        if self.logs is not None:
            index = self._log_columns()
            for i, feature in zip(index, self.logs(x[..., index]).split(1, dim=-1), strict=True):
                features[i] = feature
        return torch.cat(features, dim=-1)

    def _log_columns(self) -> list[int]:
        return [i for i, cell in enumerate(self.columns or ()) if cell == "log"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Loads weights; old ones without a log scale were trained on unscaled numbers, so the scale is removed."""
        if self.logs is not None and not any(name.startswith(f"{prefix}logs.") for name in state_dict):
            self.logs = None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{self.kind}, context_features={self.context_features}"

    def to_spec(self) -> dict[str, Any]:
        """Returns the description in an experiment file: ``{"mlp": [128], "input": "log1p"}``.

        Bounds and columns are left out, since a file derives them from its likelihood.
        """
        return {**spec_of(self.network), "input": self.kind}


def _checked(cell: Cell) -> Cell:
    levels = isinstance(cell, int) and not isinstance(cell, bool) and cell > 1
    pair = isinstance(cell, tuple) and len(cell) == 2 and cell[0] < cell[1]
    if not (levels or pair or (isinstance(cell, str) and cell in ("raw", "log1p", "log"))):
        raise InputError(
            "Preprocess: a column is `raw`, `log1p`, `log`, a number of levels from 2 or a pair of bounds, got "
            f"`{cell!r}`."
        )
    return cell


def _of_cell(cell: Cell, x: Tensor) -> Tensor:
    """Returns the features of one column x, shape ``(..., 1)``."""
    if isinstance(cell, int):
        return one_hot(x.squeeze(-1), cell)
    if isinstance(cell, tuple):
        return unit(x, *cell)
    return log1p(x) if cell == "log1p" else x
