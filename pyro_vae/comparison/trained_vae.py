r"""A trained model: a VAE or a program with the transform of its data, in whose own units it takes and returns data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.comparison.new_data import read
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.new_rows import Context, Rows, read_given
from pyro_vae.datasets.user_file import Source
from pyro_vae.distributions.moments import centre, spread
from pyro_vae.errors import InputError
from pyro_vae.evaluation.annealed import annealed_importance_sampling
from pyro_vae.evaluation.importance import log_marginal
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated

# Settings of annealed importance sampling.
_TEMPERATURES, _CHAINS = 500, 16


@dataclass(frozen=True, eq=False)
class TrainedVAE:
    r"""A trained VAE or program that takes and returns data in their own units; `pyro_vae.load` returns it.

    Rows are a DataFrame, an array, a tensor, or a ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file, in the units of
    the training data. The columns of a table are found by their names; categories are given by their labels. Each
    result is a DataFrame with one line for each row. It has the index of the given DataFrame, if there is one, and
    contains columns that the model does not use, such as identifiers, unchanged. The context of rows is read from
    their own columns, or is given by ``context``: ``"label=3"``, ``"age=40,sex=f"``, the path of a table, or a
    DataFrame; a table has one row, or as many rows as the data.

    The functions of `pyro_vae.evaluation` take ``trained.vae`` and a batch in the model's units, which `read_rows`
    returns. Add ``units.log_jacobian_of(batch)`` to their log p(x) to get log p(x) in the data's own units.

    Attributes:
        vae: The `VAE`, or `Program`, in evaluation mode. It sees data in the model's units.
        units: The transform between the data's own units and the model's.
        algorithm: The inference algorithm that trained the VAE, with its state.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import pyro_vae
        >>> from pyro_vae.comparison.folder import write_run
        >>> experiment = pyro_vae.Experiment.parse(
        ...     {"data": {"name": "digits", "context": "labels"}, "latent": 2, "inference": ["aevb"], "seeds": 1,
        ...      "training": {"epochs": 1}, "evaluation": {"num_samples": 10, "posterior_checks": 0}}
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_run(pyro_vae.compare(experiment), Path(folder))
        ...     trained = pyro_vae.load(folder)
        >>> draws = trained.sample(3, context="label=7")
        >>> draws.shape, draws.label.tolist()
        ((3, 65), [7, 7, 7])
        >>> list(trained.encode(draws).columns)
        ['z0', 'z1', 'z0_sd', 'z1_sd']
    """

    vae: Any
    units: DataTransform
    algorithm: Inference

    def read_rows(self, source: Source, *, context: Context | None = None, seed: int = 0) -> Batch:
        """Returns rows in the model's units, with context, mask and offset, binarised if the training data were.

        Arguments:
            source: Rows in the data's own units.
            context: Context to use instead of the rows' own context columns.
            seed: Seed of the binarisation.

        Returns:
            ``x`` of shape ``(N, D)``, on the CPU.

        Raises:
            InputError: For a file, a column or a cell that cannot be used.
        """
        return read(self.vae, self.units, source, seed, context).batch

    def score(
        self,
        source: Source,
        num_samples: int = 1000,
        *,
        context: Context | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Returns log p of the observed cells of each row, in nats and in own units; the lowest are outliers.

        It is estimated by importance sampling, or by annealed importance sampling if the algorithm trains no posterior.

        Arguments:
            source: Rows in the data's own units.
            num_samples: Number of importance samples for each row; annealing has 500 temperatures and 16 chains.
            context: Context to use instead of the rows' own context columns.
            seed: Seed of the binarisation and of the draws.
            progress: Whether to show a progress bar.

        Returns:
            Columns ``row`` (from 1), ``log_p``, ``standard_error``, and ``pareto_k`` (above 0.7: not to be trusted),
            or ``effective_sample_size`` of the 16 chains (below 2: not to be trusted) after annealing.

        Raises:
            InputError: As `read_rows`; and if the model has no log p(x).
        """
        if self.units.cross_entropy:
            raise InputError(
                "score: this model was trained on grey levels under a Bernoulli likelihood, a cross-entropy that has "
                "no log p(x); train it with a binarisation, or with a likelihood on grey levels such as "
                "ContinuousBernoulli."
            )
        rows = self._read(source, seed, context)
        batch = rows.batch
        if self.algorithm.trains_posterior:
            reliability = "pareto_k"
            estimate = log_marginal(self.vae, batch, num_samples, seed=seed, progress=progress)
        else:
            reliability = "effective_sample_size"
            estimate = annealed_importance_sampling(
                self.vae, batch, _TEMPERATURES, _CHAINS, seed=seed, progress=progress
            )
        scores = pd.DataFrame(
            {
                "row": range(1, batch.size + 1),
                "log_p": estimate.shifted(self.units.log_jacobian_of(batch)).pointwise.cpu().numpy(),
                "standard_error": estimate.diagnostics["pointwise_error"].cpu().numpy(),
                reliability: estimate.diagnostics[reliability].cpu().numpy(),
            }
        )
        return _indexed(rows.identified(scores), source)

    @torch.no_grad()
    def encode(self, source: Source, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
        """Returns the posterior's mean of each row (columns ``z0 ...``), and its scale if it has one (``z0_sd ...``).

        Arguments:
            source: Rows in the data's own units.
            context: Context to use instead of the rows' own context columns.
            seed: Seed of the binarisation.

        Raises:
            InputError: As `read_rows`; and if the algorithm trains no parameter of the posterior.
        """
        self._check_encoder("encode", "the codes of rows have no meaning")
        rows = self._read(source, seed, context)
        with evaluating(self.vae), pyro.validation_enabled(False):  # the rows were checked when they were read
            q = self.vae.at_globals(seed).encode(self._placed(rows))
            codes = _columns(centre(q), "z{}")
            scale = spread(q) if self.algorithm.trains_posterior else None  # the autoencoder's scale is untrained
        if scale is not None:
            codes = codes.join(_columns(scale, "z{}_sd"))
        return _indexed(rows.identified(codes), source)

    def sample(self, n: int, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
        """Returns n draws of x, in the data's own units and columns (``x0 ...`` if they have no names).

        Categorical columns contain labels. If the model has a context, the context columns of each draw follow, as
        they were given. If the model has an offset, draws are those of a typical size, the geometric mean of the
        training rows.

        Arguments:
            n: Number of draws.
            context: Context of the draws; the rows of a table are used in turn. Required if the model has a context.
            seed: Seed of the draws.

        Raises:
            InputError: If the model has a context and none is given, or the reverse.
        """
        given = None
        if context is not None:
            given = read_given(context, self.units).in_turn(n)
        elif self.units.context:
            names = ",".join(f"{column.name}=..." for column in self.units.context)
            raise InputError(
                f'sample: the model needs a context, and none is given; pass context="{names}" '
                f'(--context "{names}"), or a table that has these columns.'
            )
        with evaluating(self.vae), isolated(seed, "sample"):
            covariates = None if given is None else given.covariates.to(self.vae.device, self.vae.dtype)
            frame = self.units.to_frame(self.vae.at_globals(seed).generate(n, covariates).flatten(1))
        return frame if given is None else pd.concat([frame, given.columns], axis=1)

    def impute(self, source: Source, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
        r"""Returns rows with their missing cells filled; observed cells are kept.

        .. math:: \hat x_j = E[x_j | z = E_q[z | x_\mathrm{observed}]]

        the likelihood's mean at the posterior's mean; in a categorical column, the most probable level. Columns have
        the order of the source.

        Arguments:
            source: Rows in the data's own units; the training data were read with ``missing: mask``.
            context: Context to use instead of the rows' own context columns.
            seed: Seed of the binarisation.

        Raises:
            InputError: As `read_rows`; and if the algorithm trains no parameter of the posterior, the training data
                were not read with ``missing: mask``, or the model is a program.
        """
        self._check_decoder("impute")
        self._check_encoder("impute", "missing cells cannot be predicted from observed ones")
        if self.units.missing != "mask":
            raise InputError(
                "impute: this model was trained without missing cells; train one with `data: {name: ..., "
                "missing: mask}`."
            )
        rows = self._read(source, seed, context)
        filled = torch.where(rows.own.isnan(), self._reconstruction(rows), rows.own)
        return _indexed(rows.table(self.units, filled), source)

    def reconstruct(self, source: Source, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
        r"""Returns the model's reconstruction of rows, in every cell, whether it is observed or missing.

        .. math:: \hat x = E[x | z = E_q[z | x_\mathrm{observed}]]

        as in `VAE.reconstruct`, in the data's own units; for binarised images, a grey level. Columns have the order of
        the source.

        Arguments:
            source: Rows in the data's own units.
            context: Context to use instead of the rows' own context columns.
            seed: Seed of the binarisation.

        Raises:
            InputError: As `read_rows`; and if the algorithm trains no parameter of the posterior.
        """
        self._check_decoder("reconstruct")
        self._check_encoder("reconstruct", "reconstructions are unrelated to the rows")
        rows = self._read(source, seed, context)
        return _indexed(rows.table(self.units, self._reconstruction(rows)), source)

    def _read(self, source: Source, seed: int, context: Context | None) -> Rows:
        return read(self.vae, self.units, source, seed, context)

    def _placed(self, rows: Rows) -> Batch:
        """The batch of rows on the VAE's device."""
        return rows.batch.to(self.vae.device, self.vae.dtype)

    def _reconstruction(self, rows: Rows) -> Tensor:
        """The reconstruction of rows, shape ``(N, D)``, in own units, on the CPU."""
        with evaluating(self.vae), pyro.validation_enabled(False):  # the rows were checked when they were read
            return self.units.to_own_units(self.vae.reconstruct(self._placed(rows)).flatten(1).cpu())

    def _check_decoder(self, caller: str) -> None:
        if not self.vae.has_decoder:
            raise InputError(
                f"{caller}: needs the likelihood of a VAE, whose mean fills the cells of a row, and this model is a "
                "Pyro program; score, encode and sample work with it."
            )

    def _check_encoder(self, caller: str, consequence: str) -> None:
        if not self.algorithm.trains_encoder:
            raise InputError(
                f"{caller}: `{self.algorithm.name}` trains no posterior, so {consequence}; load the model of "
                "another algorithm with `algorithm` (--algorithm)."
            )


def _columns(values: Tensor, name: str) -> pd.DataFrame:
    """Values of shape ``(N, ...)`` as a table with a column for each value of a row, named by a template."""
    array = values.flatten(1).cpu().numpy()
    return pd.DataFrame({name.format(i): column for i, column in enumerate(array.T)})


def _indexed(table: pd.DataFrame, source: Source) -> pd.DataFrame:
    """The table with the index of the source, if the source is a DataFrame."""
    return table.set_axis(source.index, axis=0) if isinstance(source, pd.DataFrame) else table
