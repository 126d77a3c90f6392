r"""The run folder: writes a comparison to disk, and loads trained models from it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from pyro_vae.comparison.candidate import Declared, declared_candidates, file_name
from pyro_vae.comparison.checkpoint_folder import NOTED
from pyro_vae.comparison.checksums import Checksums, write_checksums
from pyro_vae.comparison.comparison import Comparison
from pyro_vae.comparison.curves import curves
from pyro_vae.comparison.saved_program import check_again, program_again, program_state
from pyro_vae.comparison.trained_vae import TrainedVAE
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.errors import InputError, near_match
from pyro_vae.evaluation.arviz_export import to_arviz, write_netcdf
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.experiment.user_program import training_rows
from pyro_vae.experiment.yaml_file import read_yaml
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.outside_file import OutsideFile
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.runtime.whole_file import beside, write_whole

# Largest number of data in a netCDF file, and number of draws for each datum.
_DATA, _DRAWS = 100, 100
# What a comparison makes in the folder of an unfinished run, and there in the folder of its checkpoints.
_CHECKPOINTS, _PARTIAL = "checkpoints", ".pyro_vae-partial."
_OWN = {"": ("lock", f"{_PARTIAL}*"), _CHECKPOINTS: (NOTED, beside(Path(NOTED)).name, "*-seed*.checkpoint*")}
_EXPERIMENT, _RESULT, _AGAIN = "experiment.yaml", "result.json", "run the comparison again"
# Values of weights beyond this are refused.
_LARGEST = 1e30
# Files of a VAE's parameters and of its algorithm's state, by label and seed.
_WEIGHTS, _STATE = "weights/{}-seed{}.safetensors", "weights/{}-seed{}.inference.safetensors"
# What makes a program again.
_PROGRAM = "weights/{}-seed{}.program.safetensors"


def default_folder(experiment: Experiment) -> Path:
    """Returns ``runs/<data>-<time>``."""
    return Path("runs") / f"{Path(experiment.data.name).stem}-{datetime.now():%Y%m%d-%H%M%S}"


def unfinished(path: Path) -> Path:
    """Returns ``<path>.unfinished``, the folder for files of an unfinished run folder ``path``."""
    return path.with_name(f"{path.name}.unfinished")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder, which is renamed to ``path`` when the block ends without an error.

    The empty folder lies in `unfinished`, whose own files are removed after success. After an error the checkpoints
    stay. Files of other origin are never removed.

    Raises:
        InputError: If ``path`` exists or cannot be made, `unfinished` holds files of other origin, or another process
            is writing it.
    """
    _check_free(path)
    with _locked(unfinished(path), path) as kept:
        try:
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=kept))
        except OSError as error:
            raise _cannot_be_made(path, error) from None
        try:
            yield partial
            partial.chmod(0o755)
            os.rename(partial, path)
            _remove_own(kept)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _check_free(path: Path) -> None:
    """Raises an `InputError` if a run folder cannot be made, or files of other origin lie where it keeps its own."""
    if os.path.lexists(path):
        what = f", a link to `{os.readlink(path)}`," if path.is_symlink() else ""
        raise InputError(f"run folder `{path}`{what} exists already; choose another with --out, or remove it.")
    if path.name in ("", "..") or (".." in path.parts and not path.parent.is_dir()):
        raise InputError(f"run folder `{path}` names no folder in one that exists; choose another with --out.")
    kept = unfinished(path)
    if kept.is_symlink() or (kept.exists() and not kept.is_dir()):
        raise InputError(f"`{kept}` is no folder of an unfinished run; remove it, or choose another with --out.")
    for foreign in (file for file, own in _unfinished_files(kept) if not own):
        raise InputError(
            f"`{kept}` is kept for the files of the unfinished run, and `{foreign}` is none of them; move it "
            "elsewhere, or choose another folder with --out."
        )


def _unfinished_files(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yields what lies in the folder of an unfinished run, and whether a comparison has made it."""
    for inner, patterns in _OWN.items():
        place = folder / inner
        if not place.is_dir() or place.is_symlink():
            continue
        for path in sorted(place.iterdir()):
            if inner or path.name != _CHECKPOINTS or path.is_symlink() or not path.is_dir():
                yield path, any(path.match(pattern) for pattern in patterns)


def _remove_own(folder: Path) -> None:
    """Removes the files of an unfinished run, and the folders that are then empty."""
    for path in [path for path, own in _unfinished_files(folder) if own]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    _remove_empty([folder / _CHECKPOINTS, folder])


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[Path]:
    """Creates a folder if needed and locks it for this process; at the end, removes the new folders that are empty."""
    made = [each for each in (folder, *path.parents) if not each.exists()]
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except OSError as error:
        _remove_empty(made)
        if isinstance(error, Timeout):
            raise InputError(
                f"another process is writing the run folder `{path}`; wait for it, or choose another."
            ) from None
        raise _cannot_be_made(path, error) from None
    try:
        yield folder
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        _remove_empty(made)


def _cannot_be_made(path: Path, error: OSError) -> InputError:
    return InputError(f"run folder `{path}` cannot be made: {error.strerror or error}; choose another.")


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes the empty ones of these folders, which are given innermost first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def write_run(comparison: Comparison, folder: Path) -> None:
    """Writes a comparison without its report: ``experiment.yaml``, ``result.json``, tables, draws and weights.

    ``SHA256SUMS`` comes last; `load` compares what it reads with it.

    Arguments:
        comparison: The comparison to write.
        folder: An existing folder.

    Raises:
        WriteError: If a file cannot be written.
    """
    comparison.experiment.to_yaml(folder / _EXPERIMENT)
    rows = [
        {"algorithm": run.algorithm, "seed": run.seed, **run.metrics(), **run.errors(), **run.scores}
        for run in comparison.runs
    ]
    for name, table in (("metrics", pd.DataFrame(rows)), ("curves", curves(comparison))):
        write_whole(folder / f"{name}.csv", table.to_csv(index=False).encode())
    (folder / "weights").mkdir()
    for run in comparison.runs:
        candidate = comparison.candidate(run.algorithm)
        _save(run.vae, folder / _WEIGHTS.format(candidate.file_name, run.seed))
        if run.inference.state_dict():
            _save(run.inference, folder / _STATE.format(candidate.file_name, run.seed))
        if candidate.experiment.program is not None:
            state = program_state(run.vae, training_rows(candidate.data), run.seed)
            _write_tensors(state, folder / _PROGRAM.format(candidate.file_name, run.seed))
    left_out = _write_draws(comparison, folder)
    record = comparison.record() | ({"results_left_out": left_out} if left_out else {})
    write_whole(folder / _RESULT, json.dumps(record, indent=1, allow_nan=False).encode())
    write_checksums(folder)


def _write_draws(comparison: Comparison, folder: Path) -> dict[str, str]:
    """Writes draws of each algorithm's models; returns why those of a program are left out, by label."""
    left_out: dict[str, str] = {}
    (folder / "results").mkdir()
    for candidate in comparison.candidates:
        label, data = candidate.label, candidate.data
        runs = comparison.runs_of(label)
        trained = int(runs[0].inference.trains_posterior)  # netCDF has no booleans
        attributes = {"algorithm": label, "seeds": [run.seed for run in runs], "posterior_trained": trained}
        if data.test is None:
            continue
        try:
            with pyro.validation_enabled(False):  # the data were checked before the first run
                draws = to_arviz(
                    [run.vae for run in runs],
                    data.batch("test").select(slice(_DATA)),
                    num_samples=_DRAWS,
                    units=data.units,
                    attributes=attributes,
                )
        except InputError as error:
            if candidate.experiment.program is None:
                raise
            left_out[label] = str(error)
            continue
        write_netcdf(draws, folder / "results" / f"{candidate.file_name}.nc")
    return left_out


def load(
    run_folder: str | os.PathLike[str],
    algorithm: str | None = None,
    seed: int | None = None,
    *,
    allow_code: bool = False,
    program: Any = None,
) -> TrainedVAE:
    """Returns a trained model from a run folder: a VAE or a program, the data's transform, and the algorithm.

    The global random states are not changed.

    Arguments:
        run_folder: A folder that `pyro-vae compare` wrote.
        algorithm: Label of the algorithm; default: the first.
        seed: Seed of the run; default: the first.
        allow_code: Whether the user's own networks and program that the folder names may be imported, which runs
            their code.
        program: The program of an experiment in Python (a function, or a `Program`), in place of its name in the
            folder.

    Returns:
        The model in evaluation mode, on the CPU. Its methods, such as `TrainedVAE.score` and `TrainedVAE.encode`, take
        and return data in their own units; ``trained.vae`` is the `VAE`, or the `Program`.

    Raises:
        InputError: If the folder, the algorithm or the seed does not exist, a file in the folder is damaged, or the
            program is not the one that was trained.
    """
    folder, chosen, seed, sums = _select_run(run_folder, algorithm, seed, allow_code, program)
    result = OutsideFile(folder / _RESULT, "the result of a comparison", _AGAIN)
    experiment, record = chosen.experiment, result.json().get("data")
    with result.reading():
        candidates = result.json().get("candidates")
        if candidates is not None:
            record = candidates[chosen.label]["data"]
    if not isinstance(record, dict):
        raise result.error("is damaged: it has no `data`")
    with result.reading():
        try:
            units, size = DataTransform.from_record(record), _size(record)
        except InputError as error:
            raise result.error(f"is damaged: {error}") from None
    algorithm_again = _load_algorithm(sums, chosen, seed)
    name = file_name(chosen.label)
    weights = _WEIGHTS.format(name, seed)
    if experiment.program is None:
        with isolated(0):  # the drawn initial parameters are overwritten
            vae: Any = experiment.assemble(units.dim, units.image_shape, size, units.context_features)
        _restore(vae, sums, weights)
        return TrainedVAE(vae.eval(), units, algorithm_again)
    state = _read_tensors(sums, _PROGRAM.format(name, seed))
    again = program_again(experiment.program, state, size, seed)
    _restore(again, sums, weights)
    check_again(again, experiment.program, state, seed)
    return TrainedVAE(again.eval(), units, algorithm_again)


def _size(record: dict[str, Any]) -> int:
    """The number of training data in a record."""
    size = record["n"]["train"]
    if type(size) is not int or not 0 < size < 2**53:
        raise InputError(f"`n.train` is {size!r}, not a number of data")
    return size


def load_inference(
    run_folder: str | os.PathLike[str],
    algorithm: str | None = None,
    seed: int | None = None,
    *,
    allow_code: bool = False,
) -> Inference:
    """Returns the algorithm that trained a VAE in a run folder, with its state, such as q(theta) of ``vb``.

    It equals the attribute ``algorithm`` of the model that `load` returns; the VAE is not loaded.

    Arguments:
        run_folder: A folder that `pyro-vae compare` wrote.
        algorithm: Label of the algorithm; default: the first.
        seed: Seed of the run; default: the first.
        allow_code: As for `load`.

    Raises:
        InputError: As `load`.
    """
    _, chosen, seed, sums = _select_run(run_folder, algorithm, seed, allow_code)
    return _load_algorithm(sums, chosen, seed)


def _load_algorithm(sums: Checksums, chosen: Declared, seed: int) -> Inference:
    """The algorithm of a run, with its state after training, in evaluation mode."""
    inference = chosen.spec.build()
    name = _STATE.format(file_name(chosen.label), seed)
    if sums.lists(name):
        _restore(inference, sums, name)
    return inference.eval()


def _select_run(
    run_folder: str | os.PathLike[str],
    algorithm: str | None,
    seed: int | None,
    allow_code: bool,
    program: Any = None,
) -> tuple[Path, Declared, int, Checksums]:
    """The folder, the candidate and seed of the requested run, and the checksums."""
    folder = Path(run_folder)
    if not (folder / _EXPERIMENT).is_file() or not (folder / _RESULT).is_file():
        raise InputError(f"`{folder}` is not a run folder (it has no {_EXPERIMENT} and {_RESULT}).")
    sums = Checksums(folder)
    for name in (_EXPERIMENT, _RESULT):
        sums.check(name)
    content = read_yaml(folder / _EXPERIMENT)
    given = content if program is None else {**content, "program": program}
    experiment = Experiment.parse(given, str(folder / _EXPERIMENT), allow_code=allow_code)
    candidates = {each.label: each for each in declared_candidates(experiment) if not each.reason}
    algorithm = next(iter(candidates)) if algorithm is None else algorithm
    seed = experiment.seeds[0] if seed is None else seed
    if algorithm not in candidates:
        what = "candidate" if experiment.vary or experiment.models else "algorithm"
        raise InputError(f"`{folder}` has no {what} `{algorithm}`; {near_match(algorithm, candidates)}")
    if seed not in experiment.seeds:
        raise InputError(f"`{folder}` has no seed {seed}; it has {experiment.seeds}.")
    return folder, candidates[algorithm], seed, sums


def _save(module: nn.Module, path: Path) -> None:
    _write_tensors(module.state_dict(), path)


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    state = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    write_whole(path, safetensors.torch.save(state))


def _read_tensors(sums: Checksums, name: str) -> dict[str, Tensor]:
    sums.check(name)
    source = OutsideFile(sums.folder / name, "a saved program", _AGAIN)
    with source.reading():
        state: dict[str, Tensor] = safetensors.torch.load_file(sums.folder / name)
    return state


def _restore(module: nn.Module, sums: Checksums, name: str) -> None:
    """Puts a state in place, whose values must be of a size that training can reach."""
    path = sums.folder / name
    sums.check(name)
    source = OutsideFile(path, "weights", _AGAIN)
    with source.reading():
        state = safetensors.torch.load_file(path)
        _check_state(source, module.state_dict(), state)
        module.load_state_dict(state)


def _check_state(source: OutsideFile, declared: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Checks the values of a state before they are put in place."""
    for name, value in state.items():
        own = declared.get(name)
        if own is not None and own.is_floating_point() != value.is_floating_point():
            raise source.error(f"has `{name}` of type {value.dtype}, and the model has {own.dtype}")
        as_declared = own is not None and own.shape == value.shape and torch.equal(own, value.to(own.dtype))
        if value.is_floating_point() and not as_declared and not bool((value.abs() < _LARGEST).all()):
            raise source.error(f"is damaged: `{name}` has a value that is not finite, or beyond {_LARGEST:g}")
