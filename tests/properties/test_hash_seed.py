"""Numbers do not depend on the seed of Python's hashes, which differs from process to process."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

# Trains one small model of each kind for two steps, and prints a digest of its parameters.
SCRIPT = """
import hashlib, warnings
import torch
from pyro_vae import Experiment, datasets, fit, Training
from pyro_vae.runtime.random_streams import isolated
warnings.simplefilter("ignore")
torch.set_num_threads(1)
KINDS = [
    {"prior": {"mixture": {"components": 3}}},
    {"prior": {"mixture": {"family": "Gamma", "components": 3}}},
    {"prior": "flow"},
    {"prior": {"vamp": {"components": 3}}, "posterior": "Normal"},
    {"prior": "Dirichlet"},
    {"prior": "StudentT"},
    {"posterior": {"mixture": {"components": 2}}},
    {"posterior": "MultivariateNormal", "likelihood": "ContinuousBernoulli"},
    {"likelihood": {"mixture": {"family": "Normal", "components": 2}}},
]
for kind in KINDS:
    small = {"networks": {"encoder": {"mlp": [6]}, "decoder": {"mlp": [6]}}, "latent": 3, "inference": ["aevb"]}
    experiment = Experiment.parse({"data": "digits", **small, **kind})
    data = experiment.load_data()
    with isolated(0):
        vae = experiment.build(data)
        algorithm = experiment.inference[0].build()
    fit(vae, data.train, algorithm, Training(steps=2), seed=0, transform=data.minibatch_transform)
    print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in vae.parameters())).hexdigest())
"""


def digests(seed: int) -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_models_are_the_same_whatever_the_hashes_are() -> None:
    with ThreadPoolExecutor(2) as pool:  # of two names, seeds 0 and 1 give both orders
        first, *others = pool.map(digests, (0, 1, 2))
    assert len(first) == 9
    assert all(each == first for each in others)
