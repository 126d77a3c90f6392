r"""A trained model: a VAE with the transform of its data, which takes and returns the data's own units and words."""

from __future__ import annotations

from dataclasses import dataclass

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
from pyro_vae.vae.vae import VAE

# Of annealed importance sampling.
_TEMPERATURES, _CHAINS = 500, 16


@dataclass(frozen=True, eq=False)
class TrainedVAE:
    r"""What `pyro_vae.load` returns: a trained VAE that takes and returns the data's own units and words.

    Rows are a DataFrame, an array, a tensor, or a ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file, in the units of
    the training data; a table's columns are taken by their names, and categories are their labels. Each result is a
    DataFrame with one line for each row, with the index of a DataFrame that was given; columns that the model does not
    know, such as identifiers, stand in it as they are. The context of rows is read from their own columns, unless
    ``context`` says it: ``"label=3"``, ``"age=40,sex=f"``, the path of a table, or a DataFrame, of one row or of as
    many as the rows are.

    The functions of `pyro_vae.evaluation` take ``trained.vae`` and a batch in the model's units, which `read_rows`
    makes; what they say of log p(x) becomes that of the data's own units by ``units.log_jacobian_of(batch)``.

    Attributes:
        vae: The VAE, in evaluation mode. It sees data in the model's units.
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

    vae: VAE
    units: DataTransform
    algorithm: Inference

    def read_rows(self, source: Source, *, context: Context | None = None, seed: int = 0) -> Batch:
        """Returns rows in the model's units, with context, mask and offset, binarised where the training data were.

        Arguments:
            source: Rows in the data's own units.
            context: In place of the rows' own context columns.
            seed: Of the binarisation.

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

        By importance sampling; where the algorithm trained no posterior, by annealed importance sampling.

        Arguments:
            source: Rows in the data's own units.
            num_samples: Importance samples for each row; annealing has 500 temperatures and 16 chains.
            context: In place of the rows' own context columns.
            seed: Of the binarisation and of the draws.
            progress: Whether to show a progress bar.

        Returns:
            Columns ``row`` (from 1), ``log_p``, ``standard_error``, and ``pareto_k`` (above 0.7: not to be trusted),
            or ``effective_sample_size`` of the 16 chains (below 2: not to be trusted) after annealing.

        Raises:
            InputError: As `read_rows`; and where the model has no log p(x).
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
            context: In place of the rows' own context columns.
            seed: Of the binarisation.

        Raises:
            InputError: As `read_rows`; and where the algorithm moved no parameter of the posterior.
        """
        self._check_encoder("encode", "it tells nothing of a row's latents")
        rows = self._read(source, seed, context)
        with evaluating(self.vae), pyro.validation_enabled(False):  # the rows were checked when they were read
            q = self.vae.encode(self._placed(rows))
            codes = _columns(centre(q), "z{}")
            scale = spread(q) if self.algorithm.trains_posterior else None  # the autoencoder's scale is untrained
        if scale is not None:
            codes = codes.join(_columns(scale, "z{}_sd"))
        return _indexed(rows.identified(codes), source)

    def sample(self, n: int, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
        """Returns n draws of x, in the data's own units and columns (``x0 ...`` where they have no names).

        Columns of words hold words. Where the model has a context, its columns stand behind, as they were given, so
        that each draw says what it is given. Where it has an offset, draws are those of a typical size, the geometric
        mean of the training rows.

        Arguments:
            n: Number of draws.
            context: The rows of a table are taken in turn. Needed where the model has a context.
            seed: Of the draws.

        Raises:
            InputError: Where the model has a context and none is given, or the reverse.
        """
        given = None
        if context is not None:
            given = read_given(context, self.units).in_turn(n)
        elif self.units.context:
            names = ",".join(f"{column.name}=..." for column in self.units.context)
            raise InputError(
                f'sample: the model is conditioned; say on what: context="{names}" (--context "{names}"), or name a '
                "table that has these columns."
            )
        with evaluating(self.vae), isolated(seed, "sample"):
            covariates = None if given is None else given.covariates.to(self.vae.device, self.vae.dtype)
            frame = self.units.to_frame(self.vae.generate(n, covariates).flatten(1))
        return frame if given is None else pd.concat([frame, given.columns], axis=1)

    def impute(self, source: Source, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
        r"""Returns rows with their missing cells filled; observed cells are kept.

        .. math:: \hat x_j = E[x_j | z = E_q[z | x_\mathrm{observed}]]

        the likelihood's mean at the posterior's mean; the most probable level in a column of levels. Columns are in
        the order of the rows'.

        Arguments:
            source: Rows in the data's own units; the training data were read with ``missing: mask``.
            context: In place of the rows' own context columns.
            seed: Of the binarisation.

        Raises:
            InputError: As `read_rows`; and where the algorithm moved no parameter of the posterior, or the training
                data had no missing cells.
        """
        self._check_encoder("impute", "observed cells tell nothing of the others")
        if self.units.missing != "mask":
            raise InputError(
                "impute: this model knows no missing cells; train it with `data: {name: ..., missing: mask}`."
            )
        rows = self._read(source, seed, context)
        filled = torch.where(rows.own.isnan(), self._reconstruction(rows), rows.own)
        return _indexed(rows.table(self.units, filled), source)

    def reconstruct(self, source: Source, *, context: Context | None = None, seed: int = 0) -> pd.DataFrame:
        r"""Returns what the model makes of rows after encoding them, in every cell, whether it is observed or missing.

        .. math:: \hat x = E[x | z = E_q[z | x_\mathrm{observed}]]

        as `VAE.reconstruct` has it, in the data's own units; of binarised images, a grey level. Columns are in the
        order of the rows'.

        Arguments:
            source: Rows in the data's own units.
            context: In place of the rows' own context columns.
            seed: Of the binarisation.

        Raises:
            InputError: As `read_rows`; and where the algorithm moved no parameter of the posterior.
        """
        self._check_encoder("reconstruct", "what it decodes has nothing to do with the rows")
        rows = self._read(source, seed, context)
        return _indexed(rows.table(self.units, self._reconstruction(rows)), source)

    def _read(self, source: Source, seed: int, context: Context | None) -> Rows:
        return read(self.vae, self.units, source, seed, context)

    def _placed(self, rows: Rows) -> Batch:
        """The batch of rows on the VAE's device."""
        return rows.batch.to(self.vae.device, self.vae.dtype)

    def _reconstruction(self, rows: Rows) -> Tensor:
        """What the model makes of rows, shape ``(N, D)``, in own units, on the CPU."""
        with evaluating(self.vae), pyro.validation_enabled(False):  # the rows were checked when they were read
            return self.units.to_own_units(self.vae.reconstruct(self._placed(rows)).flatten(1).cpu())

    def _check_encoder(self, caller: str, consequence: str) -> None:
        if not self.algorithm.trains_encoder:
            raise InputError(
                f"{caller}: `{self.algorithm.name}` trains no posterior, so that {consequence}; load the model of "
                "another algorithm, by `algorithm` (--algorithm)."
            )


def _columns(values: Tensor, name: str) -> pd.DataFrame:
    """Values of shape ``(N, ...)``, a column for each of a row, named by a template."""
    array = values.flatten(1).cpu().numpy()
    return pd.DataFrame({name.format(i): column for i, column in enumerate(array.T)})


def _indexed(table: pd.DataFrame, source: Source) -> pd.DataFrame:
    """A table with the index of the DataFrame that it is of."""
    return table.set_axis(source.index, axis=0) if isinstance(source, pd.DataFrame) else table
