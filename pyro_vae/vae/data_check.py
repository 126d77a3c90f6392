r"""Checks of data before training: values that are not finite, or outside the likelihood's support."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.distributions.protocol import cell_support, complaint_of
from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.densities import Densities
from pyro_vae.vae.finite import CellNames as CellNames
from pyro_vae.vae.finite import blocks_of_rows, check_finite, refuse
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class ValueCheck:
    """Refuses values that are not finite, or that lie outside the likelihood's support.

    If the support depends on z (the bounds of a Uniform likelihood, say), the check takes two draws of z and accepts a
    value that lies in the support for one of them.

    Arguments:
        vae: VAE with the likelihood.
        check_support: Whether to check the support too.
        unknown_labels: Whether the context may have rows of nan.
        names: Names the position of a bad value in error messages.
    """

    def __init__(
        self, vae: Densities, check_support: bool, unknown_labels: bool = False, names: CellNames | None = None
    ) -> None:
        self.vae, self.supports, self.family, self.unknown_labels = vae, [], "", unknown_labels
        self.names = CellNames() if names is None else names
        if not check_support:
            return
        with torch.no_grad(), evaluating(vae), isolated(0):
            probe = vae.probe_batch()
            z = vae.prior_given(probe).expand((2,)).sample()
            for i in range(2):
                cells = cells_of(vae.likelihood_given(z[i : i + 1], probe.select(slice(i, i + 1))))
                self.supports.append(cells.support)
                self.family = type(cells).__name__

    def __call__(self, batch: Batch, name: str) -> Batch:
        """Returns the data ``name`` as a ready batch; raises an `InputError` that names the first bad cell."""
        ready = self.vae.check(batch)
        self._check_context(batch, name)
        self._check_cells(ready, name)
        return ready

    def _check_cells(self, batch: Batch, name: str) -> None:
        check_finite(batch, name, self.names)
        for rows in blocks_of_rows(batch.x) if self.supports else ():
            self._check_inside(batch.x[rows], None if batch.mask is None else batch.mask[rows], name, rows.start)

    def _check_inside(self, x: Tensor, observed: Tensor | None, name: str, first_row: int) -> None:
        """Checks some rows of the data, from ``first_row`` on, against the support."""
        inside = torch.zeros_like(x, dtype=torch.bool)
        for support in self.supports:
            # Parts of the data are moved to the VAE's device, which has the support's bounds.
            own = cell_support(support)
            check = support.check if own is None else own.check_cells
            within = check(x.to(self.vae.device)).to(x.device)
            inside |= within.reshape(within.shape + (1,) * (x.dim() - within.dim()))
            if bool(inside.all()):
                return
        bad = ~inside if observed is None else observed & ~inside
        if not bool(bad.any()):
            return
        support, family = self.supports[0], f"likelihood `{self.family}`"
        complaint, own = complaint_of(support), cell_support(support)
        if complaint is not None:
            row = int(bad.nonzero()[0, 0])
            raise InputError(f"{name}: {self.names.row(first_row + row)} {complaint(x[row])}, for the {family}.")
        if own is not None:
            column = int(bad.nonzero()[0, -1])
            support, family = own.supports[column], f"likelihood of column `{own.names[column]}`"
        reason = (
            f"lies outside the support {support} of the {family}; choose a likelihood for such values, or bring them "
            "into its support (grey levels: binarise them)"
        )
        refuse(name, x, bad, reason, self.names, first_row)

    def _check_context(self, batch: Batch, name: str) -> None:
        if batch.context is None:
            return
        bad = ~batch.context.isfinite()
        if self.unknown_labels:
            bad &= ~batch.context.isnan()
        rows = bad.any(-1).nonzero()
        if len(rows):
            row = int(rows[0])
            raise InputError(
                f"{name}: the context of {self.names.row(row)} is {batch.context[row].tolist()}; it must be finite. "
                "Rows of nan (unknown labels) are allowed in training by m2 alone."
            )
        if self.unknown_labels:
            self._check_labels(batch.context, name)

    def _check_labels(self, context: Tensor, name: str) -> None:
        one_hot = ((context == 0) | (context == 1)).all(-1) & (context.sum(-1) == 1)
        rows = (~(one_hot | context.isnan().all(-1))).nonzero()
        if len(rows):
            row = int(rows[0])
            raise InputError(
                f"{name}: the context of {self.names.row(row)} is {context[row].tolist()}; expected a one-hot label, "
                "or nan in every column if the label is unknown."
            )


def check_values(
    vae: LatentVariableModel,
    batch: Batch,
    check_support: bool,
    name: str = "data",
    *,
    unknown_labels: bool = False,
    names: CellNames | None = None,
) -> Batch:
    """Returns data as a ready batch, after a check of every value; see `ValueCheck`.

    Raises:
        InputError: For the first cell that is not finite or, if asked, outside the likelihood's support; rows of nan
            in the context are accepted if ``unknown_labels``.
    """
    return vae.value_check(check_support, unknown_labels, names)(batch, name)
