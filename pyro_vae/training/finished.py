r"""Trained replicates in a file, from which they come back without being trained again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.errors import InputError
from pyro_vae.inference.interface import Inference
from pyro_vae.training.history import History
from pyro_vae.vae.vae import VAE


def keep(path: Path, vaes: Sequence[VAE], algorithms: Sequence[Inference], histories: Sequence[History]) -> None:
    """Writes VAEs, the algorithms that trained them and their histories into a file, which appears as a whole.

    Arguments:
        path: Of the file.
        vaes: Trained.
        algorithms: One of each.
        histories: One of each.
    """
    state = {
        "algorithms": [repr(algorithm) for algorithm in algorithms],
        "vaes": [vae.state_dict() for vae in vaes],
        "states": [algorithm.state_dict() for algorithm in algorithms],
        "histories": [_plain(history) for history in histories],
    }
    beside = path.with_name(f"{path.name}.tmp")
    torch.save(state, beside)
    os.replace(beside, path)


def put_back(path: Path, vaes: Sequence[VAE], algorithms: Sequence[Inference]) -> list[History]:
    """Gives VAEs and algorithms the state that `keep` wrote, in place, and returns their histories.

    Arguments:
        path: Of the file.
        vaes: Of the same structure.
        algorithms: The same.

    Raises:
        InputError: Where the file cannot be read, or is of other algorithms.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        said, mine = state["algorithms"], [repr(algorithm) for algorithm in algorithms]
        if said != mine:
            raise InputError(f"`{path}` is of other algorithms, {said} and not {mine}: remove it.")
        for vae, found in zip(vaes, state["vaes"], strict=True):
            vae.load_state_dict(found)
        for algorithm, found in zip(algorithms, state["states"], strict=True):
            algorithm.load_state_dict(found)
        return [_history(found) for found in state["histories"]]
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"`{path}` cannot be read ({type(error).__name__}: {reason}): remove it.") from error


def _plain(history: History) -> dict[str, Any]:
    values = {field.name: getattr(history, field.name) for field in fields(history)}
    return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}


def _history(found: dict[str, Any]) -> History:
    values: dict[str, Any] = {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in found.items()}
    return History(**values)
