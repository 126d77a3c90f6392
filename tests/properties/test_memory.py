"""The memory that work on large data takes beside the data, each case in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from memory import extra_bytes
from numpy.typing import NDArray

CELLS = 1000
FIT = """
import numpy as np, pandas as pd, torch
import pyro.distributions as dist
from pyro_vae import VAE, Conditional, Fixed, Training, fit, mlp
from pyro_vae.inference import AEVB

def trained(x, family="Bernoulli", **arguments):
    fixed = {"scale": Fixed(1.0)} if family == "Normal" else {}
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    likelihood = Conditional(getattr(dist, family), (x.shape[1],), given=mlp(2, 8), **fixed)
    vae = VAE(prior, likelihood, Conditional(dist.Normal, (2,), given=mlp(x.shape[1], 8)))
    fit(vae, x, AEVB(), Training(steps=2, batch_size=100, compile=False), **arguments)

def work(path, how):
    if how == "array":
        trained(np.load(path))
    elif how == "memmap":
        trained(np.load(path, mmap_mode="r"), "Normal")
    elif how == "counts":
        trained(np.load(path, mmap_mode="r"), "Poisson")
    elif how == "validation":
        x = np.load(path, mmap_mode="r")
        trained(x[len(x) // 10 :], validation=x[: len(x) // 10])
    elif how == "transform":
        trained(np.load(path), transform=lambda x, generator: torch.bernoulli(x, generator=generator))
"""
FRAME = (
    FIT
    + """
def work(rows):
    columns = np.empty((100, rows))
    columns[:] = np.arange(100)[:, None]
    frame = pd.DataFrame(columns.T, copy=False)
    trained(frame, "Normal")
"""
)
COMPARE = """
from pyro_vae import Experiment, compare

def work(path, likelihood, binarisation=None):
    data = {"name": path} if binarisation is None else {"name": path, "binarisation": binarisation}
    layers = {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}}
    training = {"epochs": 1, "batch_size": 1000, "compile": False}
    evaluation = {"num_samples": 2, "elbo_samples": 2, "posterior_checks": 0}
    choices = {"data": data, "likelihood": likelihood, "latent": 2, "networks": layers, "inference": "aevb"}
    compare(Experiment.parse({**choices, "seeds": 1, "training": training, "evaluation": evaluation, "device": "cpu"}))
"""
# Beside the data: a few blocks of them, and what the allocator keeps.
BLOCKS = 96 * 2**20


def binary(rows: int) -> NDArray[np.float32]:
    return (
        (np.arange(rows * CELLS, dtype=np.uint32) * np.uint32(2654435761) > 2**31).astype(np.float32).reshape(rows, -1)
    )


def files(folder: Path, rows: int) -> tuple[str, str, int]:
    """Returns the paths of a small and a large file, and the bytes of the large one."""
    small, large = folder / "small.npy", folder / "large.npy"
    np.save(small, binary(400))
    np.save(large, binary(rows))
    return str(small), str(large), rows * CELLS * 4


def test_fit_reads_a_mapped_file_once(tmp_path: Path) -> None:
    small, large, size = files(tmp_path, 40_000)
    assert extra_bytes(FIT, f"{small!r}, 'memmap'", f"{large!r}, 'memmap'") < 1.2 * size


@pytest.mark.slow
@pytest.mark.parametrize("how", ["array", "memmap", "counts", "validation", "transform"])
def test_fit_holds_data_once(how: str, tmp_path: Path) -> None:
    small, large, size = files(tmp_path, 100_000)
    assert extra_bytes(FIT, f"{small!r}, {how!r}", f"{large!r}, {how!r}") < 1.2 * size


@pytest.mark.slow
def test_fit_converts_a_data_frame_without_another_copy() -> None:
    size = 500_000 * 100 * 8  # of the frame; the data are float32, half of it
    assert extra_bytes(FRAME, "200", "500_000") < 1.5 * size + BLOCKS


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    ["'Bernoulli'", "'Bernoulli', 'dynamic'", "'Normal'", "'Poisson'"],
    ids=lambda text: text.replace("'", ""),
)
def test_a_comparison_holds_a_file_once(choices: str, tmp_path: Path) -> None:
    small, large, size = files(tmp_path, 125_000)
    assert extra_bytes(COMPARE, f"{small!r}, {choices}", f"{large!r}, {choices}") < size + BLOCKS
