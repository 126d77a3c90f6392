"""What the trials do: small runs of `fit` and of the command, and what is compared of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch

from pyro_vae import VAE, Conditional, Fixed, Training, cli, fit, mlp
from pyro_vae.comparison.compare import Prepared
from pyro_vae.inference import AEVB
from pyro_vae.training import checkpoint

EXPERIMENT = """data: {{name: table.csv}}
latent: 2
likelihood: {{family: Normal, scale: learned}}
networks: {{encoder: {{mlp: [8]}}, decoder: {{mlp: [8]}}}}
inference: [aevb]
training: {{epochs: 12, batch_size: 10, compile: {compile}}}
evaluation: {{num_samples: 20, posterior_checks: 0}}
seeds: [0]
device: cpu
"""
ROWS = 60
# In memory, where a write to the disk takes no time.
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def make(folder: Path, compile: str = "false") -> None:
    """Makes an experiment and its data in a folder."""
    rows = np.random.default_rng(0).normal(size=(ROWS, 3)) * [0.1, 10, 1] + [1.7, 70, -3]
    pd.DataFrame(rows.round(3), columns=["height", "weight", "size"]).to_csv(folder / "table.csv", index=False)
    (folder / "file.yaml").write_text(EXPERIMENT.format(compile=compile))


def warm() -> None:
    """Imports all that a run needs, so that forked processes have it at once."""
    with tempfile.TemporaryDirectory(dir=PLACE) as folder, contextlib.chdir(folder):
        make(Path())
        for call in (
            command("compare", "file.yaml", "--out", "run"),
            command("score", "run", "table.csv", "--num-samples", 9),
            command("encode", "run", "table.csv"),
        ):
            with contextlib.suppress(SystemExit), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                call()


def _written_often() -> AbstractContextManager[Any]:
    """A block in which a checkpoint is due after every seventh step."""
    return patch.object(checkpoint.Checkpoint, "due", property(lambda self: self.run.step % 7 == 0))


def command(*arguments: object) -> Callable[[], None]:
    """Returns a call of the command, which writes a checkpoint after every step."""

    def call() -> None:
        with patch.object(sys, "argv", ["pyro-vae", *map(str, arguments)]), _written_often():
            cli.main()

    return call


def read_only(*arguments: object) -> Callable[[], None]:
    """Returns a call of `compare` that ends where all is read and checked, before the first run."""

    def stop(*_: Any, **__: Any) -> None:
        raise SystemExit(0)

    def call() -> None:
        with patch.object(Prepared, "run", stop):
            command("compare", *arguments)()

    return call


def fit_job(place: Path, compile: Any = False) -> Callable[[], None]:
    """Returns a call of `fit` with a checkpoint after every step; it prints the sha256 of what it has learnt."""

    def call() -> None:
        torch.manual_seed(0)
        x = (torch.rand(70, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
        prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 5)), mlp(6, 5))
        training = Training(steps=80, batch_size=10, compile=compile)
        with _written_often():
            fit(vae, x, AEVB(), training, seed=0, checkpoint=place)
        sys.stdout.write(digest_of({name: value.numpy().tobytes() for name, value in vae.state_dict().items()}))

    return call


def digest_of(parts: dict[str, bytes]) -> str:
    """Returns the sha256 of named bytes."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(name.encode() + b"\0" + parts[name])
    return digest.hexdigest()


def result_of(run: Path) -> str:
    """Returns a digest of what a run folder holds, without times and where it was made."""
    files = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    record = json.loads(files["result.json"].read_text())
    parts = {name: path.read_bytes() for name, path in files.items() if name.startswith("weights/")}
    parts["files"] = " ".join(sorted(files)).encode()
    parts["runs"] = json.dumps([_timeless(each) for each in record["runs"]], sort_keys=True).encode()
    return digest_of(parts)


def _timeless(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if "seconds" not in name and name != "execution"}


def listed(folder: Path) -> set[str]:
    """Returns the names of what lies in a folder."""
    return {path.name for path in folder.iterdir()}
