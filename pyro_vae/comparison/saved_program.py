r"""A trained program in a run folder: saved rows, from which its function makes it again, and a check that it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.experiment.user_program import build_program, program_name, warned_once
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Number of training rows in a run folder. Densities that differ by more than this share are those of another model.
_ROWS, _TOLERANCE = 100, 1e-3
_Z, _LOG_WEIGHT = "z", "log_weight"


def program_state(model: LatentVariableModel, rows: Batch, seed: int) -> dict[str, Tensor]:
    """Returns the first training rows, a draw of z for each of them, and the log weights of these draws.

    Arguments:
        model: The trained program.
        rows: Its training data, as `training_rows` returns them.
        seed: Seed of the draws.

    Returns:
        The fields of the batch by name, ``z`` of shape ``(B, L)`` and ``log_weight`` of shape ``(B,)``, in nats.
    """
    first = rows.select(slice(_ROWS))
    given, batch = model.at_globals(seed), _ready(model, first)
    with torch.no_grad(), evaluating(model), isolated(seed, "saved"), pyro.validation_enabled(False):
        z = given.posterior_given(batch).sample()
    fields = {name: field for name, field in zip(first._fields, first, strict=True) if field is not None}
    return {**fields, _Z: z, _LOG_WEIGHT: _log_weight(given, z, batch)}


def program_again(program: Any, state: Mapping[str, Tensor], size: int, seed: int) -> LatentVariableModel:
    """Returns the program that a function makes of the saved rows, in turn, as many as there were training data.

    Its parameters and buffers are those of its first run; `check_again` comes after those of training are in place.

    Arguments:
        program: Name of the function, or the function, or a `Program`.
        state: What `program_state` returned.
        size: Number of training data.
        seed: Seed of the run.
    """
    rows = _rows(state)
    with isolated(seed), warned_once():
        return build_program(program, rows.select(torch.arange(size) % rows.size))


def check_again(model: LatentVariableModel, program: Any, state: Mapping[str, Tensor], seed: int) -> None:
    """Raises an `InputError` if a program does not have the densities that it had when it was saved.

    Arguments:
        model: The program, with its trained parameters.
        program: Name of the function, or the function, or a `Program`.
        state: What `program_state` returned.
        seed: Seed of the run.
    """
    given, batch = model.at_globals(seed), _ready(model, _rows(state))
    z, its = state[_Z], state[_LOG_WEIGHT]
    now = _log_weight(given, z, batch) if z.shape[1:] == given.latent_shape else torch.full_like(its, torch.nan)
    if not torch.allclose(now.to(its), its, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
        raise InputError(
            f"program: `{program_name(program)}` makes another model than the one that was trained: log p(x, z) - "
            f"log q(z|x) of a saved row is {float(now[0]):.6g} and was {float(its[0]):.6g}. Take the code of that run. "
            "If the function computes numbers from all training data, keep them in buffers of a module, which are "
            "saved with the weights: here it is given a few saved rows again and again."
        )


def _rows(state: Mapping[str, Tensor]) -> Batch:
    return Batch(**{name: field for name, field in state.items() if name in Batch._fields})


def _ready(model: LatentVariableModel, rows: Batch) -> Batch:
    return model.check(rows).to(model.device, model.dtype)


@torch.no_grad()
def _log_weight(model: LatentVariableModel, z: Tensor, batch: Batch) -> Tensor:
    with evaluating(model), isolated(0), pyro.validation_enabled(False):
        return model.log_joint_of(z, batch) - model.posterior_given(batch).log_prob(z)
