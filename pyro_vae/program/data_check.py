r"""A check of a program's data: every datum has a finite density."""

from __future__ import annotations

import pyro
import torch

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.finite import CellNames
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Number of data whose densities are computed at once.
_ROWS = 1000


class ProgramCheck:
    """Refuses data whose density is not finite at a draw from the guide.

    Arguments:
        program: The program.
        check_support: Whether values must lie in the supports of their sites; else -inf is accepted, and nan is not.
        names: Names the position of a bad datum in error messages.
    """

    def __init__(self, program: LatentVariableModel, check_support: bool, names: CellNames | None = None) -> None:
        self.program, self.check_support, self.names = program, check_support, names or CellNames()

    def __call__(self, batch: Batch, name: str) -> Batch:
        """Returns the data ``name`` as a ready batch; raises an `InputError` that names the first bad row."""
        ready = self.program.check(batch)
        with torch.no_grad(), evaluating(self.program), isolated(0), pyro.validation_enabled(False):
            for start in range(0, ready.size, _ROWS):
                part = ready.select(slice(start, start + _ROWS)).to(self.program.device, self.program.dtype)
                self._check(part, start, name)
        return ready

    def _check(self, part: Batch, start: int, name: str) -> None:
        try:
            z = self.program.posterior_given(part).sample()
            value = self.program.log_likelihood_of(z, part)
        except (ValueError, RuntimeError, IndexError) as error:
            rows = f"rows {start} to {start + part.size - 1}"
            raise InputError(f"{name}: the program fails on {rows}: {' '.join(str(error).split())}") from error
        bad = ~value.isfinite() if self.check_support else value.isnan()
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise InputError(
                f"{name}: the density of {self.names.row(start + row)} is {float(value[row])} at a draw from the "
                "guide; its values are not finite, or lie outside the support of their site."
            )
