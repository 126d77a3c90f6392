r"""The folder of a comparison's checkpoints: it says which comparison it belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_vae.comparison.candidate import Candidate
from pyro_vae.comparison.execution import Execution
from pyro_vae.errors import InputError
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.experiment.user_program import code_record
from pyro_vae.runtime.environment import versions
from pyro_vae.runtime.outside_file import OutsideFile
from pyro_vae.runtime.whole_file import write_whole

# What a folder of checkpoints says about its comparison.
NOTED = "comparison.json"


def checkpoint_folder(folder: Path, experiment: Experiment, candidates: Sequence[Candidate], threads: int) -> Path:
    """Creates the folder of a comparison's checkpoints, or checks that it belongs to the same comparison.

    Candidates, seeds and evaluation may differ: each run has its own checkpoint, which is made before evaluation.
    """
    data = candidates[0].data
    others = experiment.model_dump(mode="json", exclude={"data", "inference", "seeds", "evaluation", "vary", "models"})
    others["changes"] = {each.label: dict(each.changes) for each in candidates if each.changes}
    device = experiment.torch_device
    where = {"device": str(device), "threads": threads, "versions": versions()}
    about = {"data": data.record(), **others, **where}
    if experiment.program is not None:
        about["code"] = code_record(experiment.program)
    about = json.loads(json.dumps(about))  # lists and strings, as in the file
    noted = folder / NOTED
    if noted.exists():
        its = _notes(folder).json()
        its.pop(_EXECUTION, None)
        _join_changes(about, its)
        other = sorted(key for key in about | its if about.get(key) != its.get(key))
        if other:
            raise InputError(
                f"`{folder}` holds checkpoints of another comparison (different {', '.join(other)}); remove it to "
                "start again, or choose another folder."
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _replace(noted, about)
    return folder


def _join_changes(about: dict[str, Any], its: dict[str, Any]) -> None:
    """Lets both have the candidates of either; those in both must be the same."""
    mine, others = about.get("changes", {}), its.get("changes", {})
    about["changes"], its["changes"] = {**others, **mine}, {**mine, **others}


# The key under which the notes of a folder of checkpoints have how all runs execute.
_EXECUTION = "execution"


def noted_execution(folder: Path | None) -> Execution | None:
    """How the runs of an interrupted comparison execute, so that the others run alike."""
    if folder is None:
        return None
    source = _notes(folder)
    noted = source.json().get(_EXECUTION)
    with source.reading():
        return None if noted is None else Execution.of(noted)


def note_execution(folder: Path | None, execution: Execution) -> None:
    """Notes how the runs execute beside their checkpoints."""
    if folder is not None:
        _replace(folder / NOTED, {**_notes(folder).json(), _EXECUTION: execution.record()})


def _notes(folder: Path) -> OutsideFile:
    """The file in which a folder of checkpoints says what its comparison is."""
    remedy = f"remove `{folder}` to start again, or choose another folder"
    return OutsideFile(folder / NOTED, "the notes of a comparison", remedy)


def _replace(noted: Path, content: dict[str, Any]) -> None:
    write_whole(noted, f"{json.dumps(content)}\n".encode())
