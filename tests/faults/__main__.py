"""Tries faults on the library: kills, flipped bits, full disks, damaged and hostile files; prints one table.

``python -m tests.faults`` takes about half an hour. ``--share 0.1`` or ``PYRO_VAE_FAULTS=0.1`` takes a
tenth of the trials. It ends with exit code 1 where a trial is silent, has a traceback, hangs or leaves files behind.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.faults import full_disk, kills, mutants
from tests.faults.trial import Part, table
from tests.faults.work import PLACE, warm

# Number of trials of each part.
TRIALS: dict[str, tuple[int, Callable[[int, Path, random.Random], Part]]] = {
    "fit": (40, partial(kills.kill_fit, compile=False)),
    "fit-compiled": (25, partial(kills.kill_fit, compile=True)),
    "compare": (25, partial(kills.kill_compare, compile=False)),
    "compare-compiled": (10, partial(kills.kill_compare, compile=True)),
    "checkpoint-flips": (100, mutants.flips_of_checkpoints),
    "weight-flips": (100, mutants.flips_of_weights),
    "file-size": (40, full_disk.file_size),
    "small-disk": (30, full_disk.small_disk),
    "experiments": (1000, mutants.experiments),
    "data": (1000, mutants.data_files),
    "bombs": (6, mutants.bombs),
    "run-folders": (200, mutants.run_folders),
    "hostile-folders": (200, mutants.hostile_folders),
    "unfinished": (40, mutants.unfinished_folders),
}


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description="Tries faults on pyro_vae.")
    parser.add_argument("parts", nargs="*", help=f"parts to run; default: all of {', '.join(TRIALS)}")
    parser.add_argument("--share", type=float, default=float(os.environ.get("PYRO_VAE_FAULTS", "1")))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warm()
    done = []
    for name in asked.parts or TRIALS:
        count, part_of = TRIALS[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory(dir=PLACE) as folder:
            part = part_of(max(1, round(count * asked.share)), Path(folder), random.Random(f"{name} {asked.seed}"))
        part.seconds = time.monotonic() - start
        sys.stderr.write(f"{part.row()}\n")
        sys.stderr.writelines(f"{fault}\n" for fault in part.faults[:10])
        done.append(part)
    sys.stdout.write(f"{table(done)}\n")
    sys.exit(any(part.faults for part in done))


if __name__ == "__main__":
    main()
