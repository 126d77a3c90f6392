r"""What a trained VAE from a run folder says of new data, in the data's own units and column names."""

from __future__ import annotations

import os
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets import read_table
from pyro_vae.errors import InputError
from pyro_vae.evaluation import annealed_importance_sampling, log_marginal
from pyro_vae.inference import Inference, algorithm
from pyro_vae.minibatches import check_values
from pyro_vae.modes import evaluating, isolated
from pyro_vae.moments import centre, spread
from pyro_vae.vae import VAE

# Of annealed importance sampling.
_TEMPERATURES, _CHAINS = 500, 16


def read_rows(vae: VAE, path: str | os.PathLike[str], seed: int = 0) -> Tensor:
    """Returns a file's rows in model units, binarised where the training data were.

    Arguments:
        vae: From `pyro_vae.load`.
        path: A ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file in the training data's own units.
        seed: Of the binarisation.

    Returns:
        Shape ``(N, D)``.

    Raises:
        InputError: For a file, a column or a cell that cannot be used.
    """
    units = vae.units
    values, _ = read_table(path, units.columns)
    x = units.binarise(units.to_model_units(values), torch.Generator().manual_seed(seed))
    check_values(vae, Batch(x), check_support=not units.cross_entropy)
    return x


def score(vae: VAE, x: Tensor, num_samples: int = 1000, *, seed: int = 0, progress: bool = False) -> pd.DataFrame:
    """Returns log p(x) of each row, in nats and in the data's own units; the lowest are outliers.

    By importance sampling; where the algorithm trained no posterior, by annealed importance sampling.

    Arguments:
        vae: From `pyro_vae.load`.
        x: Shape ``(N, D)``, model units.
        num_samples: Importance samples for each row; annealing has 500 temperatures and 16 chains.
        seed: Of the draws.
        progress: Whether to show a progress bar.

    Returns:
        Columns ``row`` (from 1), ``log_p``, ``standard_error``, and ``pareto_k`` (above 0.7: not to be trusted), or
        ``effective_sample_size`` of the 16 chains (below 2: not to be trusted) after annealing.
    """
    if vae.units.cross_entropy:
        raise InputError(
            "score: this model was trained on grey levels under a Bernoulli likelihood, a cross-entropy that has no "
            "log p(x); train it with a binarisation, or with a likelihood on grey levels such as ContinuousBernoulli."
        )
    if _algorithm(vae).trains_posterior:
        reliability, estimate = "pareto_k", log_marginal(vae, x, num_samples, seed=seed, progress=progress)
    else:
        reliability = "effective_sample_size"
        estimate = annealed_importance_sampling(vae, x, _TEMPERATURES, _CHAINS, seed=seed, progress=progress)
    return pd.DataFrame(
        {
            "row": range(1, len(x) + 1),
            "log_p": estimate.shifted(vae.units.log_jacobian).pointwise.numpy(),
            "standard_error": estimate.diagnostics["pointwise_error"].numpy(),
            reliability: estimate.diagnostics[reliability].numpy(),
        }
    )


@torch.no_grad()
def encode(vae: VAE, x: Tensor) -> pd.DataFrame:
    """Returns the posterior's mean of each row (columns ``z0 ...``), and its scale where it has one (``z0_sd ...``).

    Arguments:
        vae: From `pyro_vae.load`.
        x: Shape ``(N, D)``, model units.

    Raises:
        InputError: Where the algorithm moved no parameter of the posterior.
    """
    trained_by = _algorithm(vae)
    if not trained_by.trains_encoder:
        raise InputError(
            f"encode: `{trained_by.name}` trains no posterior, so that it tells nothing of a row's latents; take the "
            "model of another algorithm with --algorithm."
        )
    with evaluating(vae), pyro.validation_enabled(False):  # x was checked when it was read
        q = vae.encode(x)
        columns: dict[str, Any] = {f"z{i}": column for i, column in enumerate(centre(q).flatten(1).T.numpy())}
        scale = spread(q) if trained_by.trains_posterior else None  # the autoencoder's scale is untrained
    if scale is not None:
        columns |= {f"z{i}_sd": column for i, column in enumerate(scale.flatten(1).T.numpy())}
    return pd.DataFrame(columns)


def _algorithm(vae: VAE) -> Inference:
    """The algorithm that trained the VAE, with its defaults."""
    return algorithm("aevb" if vae.algorithm is None else vae.algorithm)()


def sample(vae: VAE, n: int, *, seed: int = 0) -> pd.DataFrame:
    """Returns n draws of x from the model, in the data's own units and columns (``x0 ...`` where they have no names).

    Arguments:
        vae: From `pyro_vae.load`.
        n: Number of draws.
        seed: Of the draws.
    """
    with evaluating(vae), isolated(seed, "sample"):
        x = vae.units.to_own_units(vae.generate(n).flatten(1))
    columns = vae.units.columns or [f"x{i}" for i in range(x.shape[1])]
    return pd.DataFrame(x.numpy(), columns=list(columns))
