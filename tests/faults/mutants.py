"""Damaged and hostile files: used, or refused by one line that names the file."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_vae.experiment.yaml_file import parse_yaml
from tests.faults.mutate import bytes_of, flipped, record_of, text_of
from tests.faults.trial import Part, attempt
from tests.faults.work import command, fit_job, listed, make, read_only, result_of

# Memory of a trial in bytes, beyond what the process has: far less than what a bomb takes.
_MEMORY = 2 * 2**30
WEIGHTS = "weights/aevb-seed0.safetensors"
_FULL = """data: {name: table.csv, missing: mask}
latent: 8
prior: {mixture: {family: Normal, components: 3, scale: learned}}
likelihood: {family: Normal, scale: learned}
networks: {encoder: {mlp: [20]}, decoder: {mlp: [20]}}
parameter_prior: {family: Normal, loc: 0, scale: 1}
inference: [aevb, {iwae: {num_particles: 5}}]
training: {epochs: 5, optimizer: {Adam: {lr: 1e-3}}, schedule: {cosine: {}}}
evaluation: {num_samples: 100}
seeds: [0, 1]
device: cpu
"""


def _made(folder: Path) -> Path:
    """Makes an experiment, and its run folder, in a folder."""
    make(folder)
    done = attempt(command("compare", "file.yaml", "--out", "run"), folder, patience=120)
    assert done.code == 0, done.err
    return folder / "run"


def experiments(trials: int, folder: Path, generator: random.Random) -> Part:
    """Reads mutated experiment files, and checks and builds what they say, up to the first step."""
    part = Part("mutated experiment files")
    make(folder)
    there = listed(folder)
    record = json.dumps(parse_yaml(_FULL, "file"))
    for trial in range(trials):
        text = record_of(record, generator) if trial % 2 else text_of(_FULL, generator)
        (folder / "file.yaml").write_text(text)
        ended = attempt(read_only("file.yaml", "--out", "run"), folder, memory=_MEMORY)
        part.judge(ended, True, ("file.yaml", "`", "AnalyticKL"), listed(folder) - there, repr(text))
    return part


def data_files(trials: int, folder: Path, generator: random.Random) -> Part:
    """Reads mutated data files: for a comparison, and as new rows for a trained model."""
    part = Part("mutated data files")
    _made(folder)
    frame = pd.read_csv(folder / "table.csv")
    forms: dict[str, Callable[[Path], Any]] = {
        "rows.csv": lambda path: frame.to_csv(path, index=False),
        "words.csv": lambda path: frame.assign(kind=["a", "b"] * (len(frame) // 2)).to_csv(path, index=False),
        "rows.npy": lambda path: np.save(path, frame.to_numpy()),
        "stored.npz": lambda path: np.savez(path, x=frame.to_numpy(), other=np.arange(3)),
        "packed.npz": lambda path: np.savez_compressed(path, train=frame.to_numpy(), test=frame.to_numpy()[:9]),
        "rows.parquet": frame.to_parquet,
    }
    contents = {}
    for name, write in forms.items():
        attempt(lambda name=name, write=write: write(folder / name), folder)  # pyarrow's threads end with the process
        contents[name] = (folder / name).read_bytes()
        (folder / name).unlink()
    there = listed(folder)
    for trial in range(trials):
        name = list(contents)[trial % len(contents)]
        content = contents[name]
        if name.endswith(".csv") and generator.random() < 0.5:
            mutant = text_of(content.decode(), generator).encode()
        else:
            mutant = bytes_of(content, generator)
        (folder / name).write_bytes(mutant)
        arguments = ("--data", name, "--likelihood", "Normal", "--out", "out", "--set", "evaluation.num_samples=9")
        reads = (read_only(*arguments), command("score", "run", name, "--num-samples", 9))
        ended = attempt(reads[trial // len(contents) % 2], folder, memory=_MEMORY)
        part.judge(ended, True, (name, "data:"), listed(folder) - there - {name}, f"{name}: {mutant[:3000]!r}")
        (folder / name).unlink()
    return part


def bombs(trials: int, folder: Path, generator: random.Random) -> Part:
    """Reads files that are small on the disk, and would fill the memory."""
    part = Part("files that would fill the memory")
    _made(folder)
    header = _header((5 * 2**27, 1))
    for trial in range(trials):
        kind = ("bomb.npz", "bomb.npy", "bomb.csv", "bomb.parquet", "result.json", WEIGHTS)[trial % 6]
        hostile = folder / f"copy{trial}"
        shutil.copytree(folder / "run", hostile)
        (hostile / "SHA256SUMS").unlink()
        path = folder / kind if kind.startswith("bomb") else hostile / kind
        if kind == "bomb.npz":
            with (
                zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
                archive.open("x.npy", "w", force_zip64=True) as member,
            ):
                member.write(header)
                for _ in range(5 * 2**8):
                    member.write(bytes(2**22))
        elif kind == "bomb.parquet":
            frame = pd.DataFrame({"height": np.zeros(2**25), "weight": 0.0, "size": 0.0})
            attempt(lambda frame=frame, path=path: frame.to_parquet(path), folder, patience=60)
        else:
            if kind == "bomb.npy":
                path.write_bytes(header)
            with path.open("ab") as stream:
                stream.truncate(len(header) + 5 * 2**30)
        rows = kind if kind.startswith("bomb") else "table.csv"
        memory = 2**29 if kind == "bomb.parquet" else 2**30
        ended = attempt(command("score", hostile.name, rows, "--num-samples", 9), folder, memory=memory)
        part.judge(ended, False, (path.name,), (), kind)
        path.unlink()
    return part


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def run_folders(trials: int, folder: Path, generator: random.Random) -> Part:
    """Loads mutated run folders; nothing but the written files gives a result."""
    part = Part("mutated run folders")
    run = _made(folder)
    call = command("score", "run", "table.csv", "--num-samples", 9)
    wanted = attempt(call, folder).out
    names = ("result.json", "experiment.yaml", WEIGHTS, "SHA256SUMS")
    there = listed(folder)
    for trial in range(trials):
        path = run / names[trial % len(names)]
        content = path.read_bytes()
        path.write_bytes(bytes_of(content, generator))
        ended = attempt(call, folder, memory=_MEMORY)
        part.judge(ended, ended.out == wanted, (path.name, "run"), listed(folder) - there, path.name)
        path.write_bytes(content)
    return part


def hostile_folders(trials: int, folder: Path, generator: random.Random) -> Part:
    """Loads run folders that were edited and have no checksums: what is used must be usable."""
    part = Part("edited run folders without checksums")
    run = _made(folder)
    (run / "SHA256SUMS").unlink()
    there = listed(folder)
    for trial in range(trials):
        path = run / ("result.json", "experiment.yaml", WEIGHTS)[trial % 3]
        content = path.read_bytes()
        if path.name == "result.json":
            mutant = record_of(content.decode(), generator).encode()
        elif path.name == "experiment.yaml":
            mutant = text_of(content.decode(), generator).encode()
        else:
            mutant = bytes_of(content, generator)
        path.write_bytes(mutant)
        verb = command("score", "run", "table.csv", "--num-samples", 9) if trial % 2 else command("sample", "run")
        ended = attempt(verb, folder, memory=_MEMORY)
        about = f"{path.name} {mutant[:2000] if path.suffix == '.yaml' else b''!r}"
        part.judge(ended, True, (path.name, "run", "table.csv"), listed(folder) - there, about)
        path.write_bytes(content)
    return part


def unfinished_folders(trials: int, folder: Path, generator: random.Random) -> Part:
    """Goes on with comparisons whose checkpoint or notes are damaged."""
    part = Part("mutated unfinished runs")
    make(folder)
    call = command("compare", "file.yaml", "--out", "run")
    whole = attempt(call, folder, patience=120)
    wanted = result_of(folder / "run")
    beside = folder / "run.unfinished"
    while not (beside / "checkpoints" / "aevb-seed0.checkpoint").exists():
        shutil.rmtree(folder / "run", ignore_errors=True)
        attempt(call, folder, kill_after=whole.seconds * generator.uniform(0.3, 0.9))
    shutil.copytree(beside, folder / "kept")
    for trial in range(trials):
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(folder / "kept", beside)
        path = beside / "checkpoints" / ("aevb-seed0.checkpoint", "comparison.json")[trial % 2]
        mutant = bytes_of(path.read_bytes(), generator)
        path.write_bytes(mutant)
        ended = attempt(call, folder, memory=_MEMORY, patience=60)
        right = ended.code == 0 and result_of(folder / "run") == wanted
        left = [] if ended.code else listed(folder) & {beside.name}
        about = f"{path.name} {mutant if path.suffix == '.json' else b''!r}"
        part.judge(ended, right, (path.name, "checkpoints"), left, about)
        shutil.rmtree(folder / "run", ignore_errors=True)
    return part


def flips_of_weights(trials: int, folder: Path, generator: random.Random) -> Part:
    """Loads weights with one flipped bit."""
    part = Part("flipped bits of weights")
    path = _made(folder) / WEIGHTS
    call = command("encode", "run", "table.csv")
    wanted, content = attempt(call, folder).out, path.read_bytes()
    for _ in range(trials):
        mutant, about = flipped(content, generator)
        path.write_bytes(mutant)
        ended = attempt(call, folder, memory=_MEMORY)
        part.judge(ended, ended.out == wanted, (path.name,), (), about)
    return part


def flips_of_checkpoints(trials: int, folder: Path, generator: random.Random) -> Part:
    """Goes on with a run of `fit` whose checkpoint has one flipped bit."""
    part = Part("flipped bits of checkpoints")
    place = folder / "run.checkpoint"
    whole = attempt(fit_job(folder / "whole"), folder)
    attempt(fit_job(place), folder, kill_after=whole.seconds * 0.8)
    content = place.read_bytes() if place.exists() else (folder / "whole").read_bytes()
    (folder / "whole").unlink()
    for _ in range(trials):
        mutant, about = flipped(content, generator)
        place.write_bytes(mutant)
        ended = attempt(fit_job(place), folder, memory=_MEMORY)
        part.judge(ended, ended.out == whole.out, (place.name,), listed(folder) - {place.name}, about)
    return part
