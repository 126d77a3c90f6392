r"""What a trained VAE from a run folder says of new data, in the data's own units and column names."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.new_rows import Context, Rows, read_given, read_whole
from pyro_vae.datasets.user_file import Source
from pyro_vae.distributions.moments import centre, spread
from pyro_vae.errors import InputError
from pyro_vae.evaluation.annealed import annealed_importance_sampling
from pyro_vae.evaluation.importance import log_marginal
from pyro_vae.inference.algorithms import algorithm
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.data_check import Place, check_values
from pyro_vae.vae.vae import VAE

# Of annealed importance sampling.
_TEMPERATURES, _CHAINS = 500, 16


class _InFile(Place):
    """Says where a value stands in a file or a table, and what it is there.

    Arguments:
        rows: The rows of the file.
        units: Of the model.
    """

    def __init__(self, rows: Rows, units: DataTransform) -> None:
        self.own, self.columns = rows.own, units.columns

    def row(self, row: int) -> str:
        return f"data row {row + 1} (counted from 1, below the header)"

    def cell(self, row: int, column: int | tuple[int, ...], value: float) -> str:
        if isinstance(column, tuple):  # rows of a file are flat
            return super().cell(row, column, value)
        name = f"`{self.columns[column]}`" if self.columns else str(column + 1)
        return f"`{self.own[row, column].item():g}` in {self.row(row)}, column {name}"


def read(vae: VAE, source: Source, seed: int = 0, context: Context | None = None) -> Rows:
    """Returns rows as `read_rows` does, with their own numbers and the columns that the model does not know."""
    rows = read_whole(source, vae.units, torch.Generator().manual_seed(seed), context)
    place = _InFile(rows, vae.units)
    check_values(vae, rows.batch, not vae.units.cross_entropy, f"`{rows.title}`", place=place)
    return rows


def read_rows(vae: VAE, source: Source, seed: int = 0, context: Context | None = None) -> Batch:
    """Returns rows in model units, with context, mask and offset, binarised where the training data were.

    ``vae.units.log_jacobian_of`` of the batch is what log p(x) of each row adds in the rows' own units.

    Arguments:
        vae: From `pyro_vae.load`.
        source: A DataFrame, an array, a tensor, or a ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file, in the training
            data's own units; the columns of a table are taken by their names.
        seed: Of the binarisation.
        context: ``"label=3"``, the path of a table, or a DataFrame, in place of the rows' own context columns.

    Returns:
        ``x`` of shape ``(N, D)``.

    Raises:
        InputError: For a file, a column or a cell that cannot be used.
    """
    return read(vae, source, seed, context).batch


def score(
    vae: VAE, x: Tensor | Batch, num_samples: int = 1000, *, seed: int = 0, progress: bool = False
) -> pd.DataFrame:
    """Returns log p of the observed cells of each row, in nats and in the data's own units; the lowest are outliers.

    By importance sampling; where the algorithm trained no posterior, by annealed importance sampling.

    Arguments:
        vae: From `pyro_vae.load`.
        x: Shape ``(N, D)``, model units; or what `read_rows` returns.
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
    batch = Batch.of(x)
    return pd.DataFrame(
        {
            "row": range(1, batch.size + 1),
            "log_p": estimate.shifted(vae.units.log_jacobian_of(batch)).pointwise.numpy(),
            "standard_error": estimate.diagnostics["pointwise_error"].numpy(),
            reliability: estimate.diagnostics[reliability].numpy(),
        }
    )


@torch.no_grad()
def encode(vae: VAE, x: Tensor | Batch) -> pd.DataFrame:
    """Returns the posterior's mean of each row (columns ``z0 ...``), and its scale where it has one (``z0_sd ...``).

    Arguments:
        vae: From `pyro_vae.load`.
        x: Shape ``(N, D)``, model units; or what `read_rows` returns.

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


def sample(vae: VAE, n: int, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
    """Returns n draws of x from the model, in the data's own units and columns (``x0 ...`` where they have no names).

    Columns of words hold words. Where the model has a context, its columns stand behind, as they were given, so that
    each draw says what it is given. Where it has an offset, draws are those of a typical size, the geometric mean of
    the training rows.

    Arguments:
        vae: From `pyro_vae.load`.
        n: Number of draws.
        context: ``"label=3"`` or ``"age=40,sex=f"``; or a DataFrame, or the path of a table, with the context columns,
            whose rows are taken in turn. Needed where the model has a context.
        seed: Of the draws.

    Raises:
        InputError: Where the model has a context and none is given, or the reverse.
    """
    units = vae.units
    given = None
    if context is not None:
        given = read_given(context, units).in_turn(n)
    elif units.context:
        names = ",".join(f"{column.name}=..." for column in units.context)
        raise InputError(
            f'sample: the model is conditioned; say on what: --context "{names}", or --context with the path of a '
            "table that has these columns."
        )
    with evaluating(vae), isolated(seed, "sample"):
        x = vae.generate(n, None if given is None else given.covariates.to(vae.device, vae.dtype)).flatten(1)
    frame = units.to_frame(x)
    return frame if given is None else pd.concat([frame, given.columns], axis=1)


@torch.no_grad()
def impute(vae: VAE, source: Source, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
    r"""Returns rows with their missing cells filled, in own units; observed cells are kept.

    All columns are there, in the file's order; those that the model does not know, such as identifiers, as they stand.

    .. math:: \hat x_j = E[x_j | z = E_q[z | x_\mathrm{observed}]]

    the likelihood's mean at the posterior's mean; the most probable level in a column of levels.

    Arguments:
        vae: From `pyro_vae.load`; its data were read with ``missing: mask``.
        source: As for `read_rows`.
        context: As for `read_rows`.
        seed: Of the binarisation.

    Raises:
        InputError: Where the algorithm moved no parameter of the posterior, or the data have no missing cells.
    """
    trained_by = _algorithm(vae)
    if not trained_by.trains_encoder:
        raise InputError(
            f"impute: `{trained_by.name}` trains no posterior, so that observed cells tell nothing of the others; take "
            "the model of another algorithm with --algorithm."
        )
    if vae.units.missing != "mask":
        raise InputError("impute: this model knows no missing cells; train it with `data: {name: ..., missing: mask}`.")
    rows = read(vae, source, seed, context)
    with evaluating(vae), pyro.validation_enabled(False):  # the rows were checked just now
        expected = vae.reconstruct(rows.batch.to(vae.device, vae.dtype)).flatten(1).cpu()
    return rows.table(vae.units, torch.where(rows.own.isnan(), vae.units.to_own_units(expected), rows.own))
