r"""Export of trained VAEs to ArviZ, as groups of labelled arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.batch import Batch, DataLike
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import rows_at_once
from pyro_vae.evaluation.pareto import pareto_k
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.runtime.whole_file import write_whole
from pyro_vae.vae.vae import VAE

if TYPE_CHECKING:
    import xarray

# Dimensions and values of the variables of a group.
Variables = Mapping[str, tuple[tuple[str, ...], NDArray[Any]]]

# Largest number of latents (draws x data) that are decoded at once; it bounds the memory beyond the result.
_ROWS = 20_000

_DRAWS = ("chain", "draw", "datum")


@torch.no_grad()
def to_arviz(
    vaes: VAE | Sequence[VAE],
    data: DataLike,
    *,
    num_samples: int = 100,
    seed: int = 0,
    units: Any = None,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    r"""Returns draws and densities of trained VAEs as ArviZ's `InferenceData` (0.23) or xarray's `DataTree` (1.x).

    ==========================  ==================================================================================
    ``posterior``               ``z`` of q(z|x): chain, draw, datum, latent.
    ``posterior_predictive``    ``x`` of p(x|z) at these z: chain, draw, datum, cell.
    ``prior``                   ``z`` of p(z), for each datum (given its context), with the dimensions of ``posterior``.
    ``prior_predictive``        ``x`` of p(x|z) at these z: each draw is a replicate of the whole data set.
    ``log_likelihood``          ``x``: log p(x|z) at the z of ``posterior``: chain, draw, datum.
    ``sample_stats``            ``log_weight``: log p(x, z) - log q(z|x) at these z: chain, draw, datum; ``pareto_k``
                                of each datum's weights (nan below 30 draws): chain, datum.
    ``observed_data``           ``x``: datum, cell; hidden cells are nan, and ``posterior_predictive`` has their
                                imputations.
    ``constant_data``           ``context``: datum, covariate; if the data have a context.
    ==========================  ==================================================================================

    A chain is one VAE, such as a replicate over seeds. Events of more than one dimension are flattened (row-major) to
    ``cell`` and ``latent``. Draws are float32, or int32 if all are whole numbers (ArviZ plots integers as counts);
    densities are float64, in nats.

    z is a latent of each datum, not a parameter. So r-hat of z over chains has no meaning, since each seed has its own
    latent space. `az.loo` of log p(x|z) is not the model's predictive density: at the exact posterior it is the
    harmonic-mean estimate of log p(x), whose variance is mostly infinite; with any other q it is not even that.
    Compare models by log p(x) (`pyro_vae.evaluation.log_marginal`), the log of the mean of ``exp(log_weight)`` over
    the draws; it is reliable where ``pareto_k`` is below 0.7. If a datum is left out, its latent has the prior, so
    p(z) / q(z|x) are the leave-one-out weights, from which ArviZ 1.x computes the same log p(x):
    ``az.loo(groups, log_weights=log_weight - log_likelihood - log(chains * draws), pareto_k=...)``. This also works
    for few discrete z, where ArviZ 1.x refuses log p(x|z) alone, as its tail is one value.

    Arguments:
        vaes: One VAE, or several of one structure.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. The result is in memory: ``2 chains
            num_samples N`` times the cells of a datum, of 4 bytes.
        num_samples: Number of draws for each datum.
        seed: Seed of the draws, to which the number of the chain is added; the global random state does not change.
        units: Transform of the data, such as ``data.units``: then x is in own units, its cells have the names of the
            columns, and densities include the log-Jacobian (of the observed cells). Default: model units.
        attributes: Attributes to store with the posterior group, such as seeds and versions.

    Raises:
        InputError: If there is no VAE or no draw, the VAEs differ in structure, or the data do not fit.

    Reference: Kumar, Carroll, Hartikainen and Martin, "ArviZ: a unified library for exploratory analysis of Bayesian
    models in Python", 2019; Newton and Raftery, "Approximate Bayesian inference with the weighted likelihood
    bootstrap", 1994 (the harmonic mean); Vehtari, Gelman and Gabry, "Practical Bayesian model evaluation using
    leave-one-out cross-validation and WAIC", 2017, section 2.1.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import Conditional, Fixed, mlp
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 8)))
        >>> groups = to_arviz(vae, torch.zeros(5, 6), num_samples=40)
        >>> groups["posterior"]["z"].shape, groups["sample_stats"]["pareto_k"].shape
        ((1, 40, 5, 2), (1, 5))
    """
    several = [vaes] if isinstance(vaes, VAE) else list(vaes)
    batch = _checked(several, data, num_samples)
    own = _own_units(units)
    observed = _observed(batch, own)
    chains = [_chain(vae, batch, num_samples, seed + i, own) for i, vae in enumerate(several)]
    arrays = {name: np.stack([chain.pop(name).numpy() for chain in chains]) for name in list(chains[0])}
    shift = _log_jacobian(units, batch)
    z, prior_z = _whole(arrays["z"], arrays["prior_z"])
    x, prior_x, observed = _whole(arrays["x"], arrays["prior_x"], observed)
    groups: dict[str, Variables] = {
        "posterior": {"z": ((*_DRAWS, "latent"), z)},
        "posterior_predictive": {"x": ((*_DRAWS, "cell"), x)},
        "prior": {"z": ((*_DRAWS, "latent"), prior_z)},
        "prior_predictive": {"x": ((*_DRAWS, "cell"), prior_x)},
        "log_likelihood": {"x": (_DRAWS, arrays["log_likelihood"] + shift)},
        "sample_stats": {
            "log_weight": (_DRAWS, arrays["log_weight"] + shift),
            "pareto_k": (("chain", "datum"), arrays["pareto_k"]),
        },
        "observed_data": {"x": (("datum", "cell"), observed)},
    }
    if batch.context is not None:
        groups["constant_data"] = {"context": (("datum", "covariate"), batch.context.float().cpu().numpy())}
    described = {"units": "model units" if units is None else "the data's own units", "densities": "nats"}
    columns = None if units is None or units.columns is None else list(units.columns)
    return _assemble(groups, {**described, **(attributes or {})}, columns)


def _checked(vaes: Sequence[VAE], data: DataLike, num_samples: int) -> Batch:
    """Returns the data as a batch, after a check that it fits every VAE."""
    if not vaes:
        raise InputError("to_arviz: expected at least one VAE, got none.")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"to_arviz: `num_samples` is a positive integer, got `{num_samples!r}`.")
    shapes = sorted({tuple(vae.latent_shape) for vae in vaes})
    if len(shapes) > 1:
        raise InputError(
            f"to_arviz: chains must be VAEs of one structure, got latents of shapes {', '.join(map(str, shapes))}; "
            "export each separately."
        )
    batches = [vae.check(data) for vae in vaes]
    return batches[0]


def _own_units(units: Any) -> Callable[[Tensor], Tensor]:
    """Returns the map of x, shape ``(..., D)``, to the units of the result."""
    return (lambda x: x.float()) if units is None else (lambda x: units.to_own_units(x).float())


def _observed(batch: Batch, own: Callable[[Tensor], Tensor]) -> NDArray[Any]:
    """Returns x with nan in the hidden cells, shape ``(N, D)``."""
    x = own(batch.x.reshape(batch.size, -1))
    if batch.mask is not None:
        x = x.masked_fill(~batch.mask.reshape(x.shape).to(x.device), torch.nan)
    values: NDArray[Any] = x.cpu().numpy()
    return values


def _chain(vae: VAE, batch: Batch, num_samples: int, seed: int, own: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Returns draws and densities of one VAE, each ``(S, N, ...)``; ``pareto_k`` is ``(N,)``."""
    size = max(1, rows_at_once(vae, _ROWS) // num_samples)
    parts = [batch.select(slice(start, start + size)) for start in range(0, batch.size, size)]
    joined: dict[str, Tensor] = {}
    for stream, draw in (("draws", _posterior_draws), ("prior draws", _prior_draws)):
        with evaluating(vae), isolated(seed, stream):
            drawn = [draw(vae, part.to(vae.device, vae.dtype), num_samples, own) for part in parts]
        joined |= {name: torch.cat([part.pop(name) for part in drawn], dim=1) for name in list(drawn[0])}
    return {**joined, "pareto_k": pareto_k(joined["log_weight"])}


def _posterior_draws(vae: VAE, batch: Batch, num_samples: int, own: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    q = vae.posterior_given(batch)
    z = q.sample((num_samples,))
    log_likelihood = vae.log_likelihood_of(z, batch)
    log_weight = vae.prior_given(batch).log_prob(z) + log_likelihood - q.log_prob(z)
    return {
        "z": _rows(z, batch).float().cpu(),
        "x": own(_rows(vae.decode(z, batch).sample(), batch)).cpu(),
        "log_likelihood": log_likelihood.double().cpu(),
        "log_weight": log_weight.double().cpu(),
    }


def _prior_draws(vae: VAE, batch: Batch, num_samples: int, own: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    p = vae.prior_given(batch)
    z = p.sample((num_samples, batch.size) if p.batch_shape == () else (num_samples,))
    x = vae.decode(z, batch).sample()
    return {"prior_z": _rows(z, batch).float().cpu(), "prior_x": own(_rows(x, batch)).cpu()}


def _rows(draws: Tensor, batch: Batch) -> Tensor:
    """Returns draws with flattened events, shape ``(S, N, D)``."""
    return draws.reshape(len(draws), batch.size, -1)


def _whole(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Returns the arrays as integers if all values are whole numbers, since ArviZ draws histograms only of integers."""
    limit = np.iinfo(np.int32).max
    parts = (part for array in arrays for part in array)  # a chain at a time, to save memory
    if all(bool(((np.rint(part) == part) & (np.abs(part) < limit)).all()) for part in parts):
        return tuple(array.astype(np.int32) for array in arrays)
    return arrays


def _log_jacobian(units: Any, batch: Batch) -> NDArray[Any]:
    """Returns the addend to log densities for own units, over the observed cells, in nats: ``()`` or ``(N,)``."""
    return np.asarray(0.0 if units is None else units.log_jacobian_of(batch.mask))


def _assemble(groups: Mapping[str, Variables], attributes: dict[str, Any], columns: list[str] | None) -> Any:
    """Returns the groups in the class that the installed ArviZ uses."""
    datasets = {name: _dataset(variables, columns) for name, variables in groups.items()}
    datasets["posterior"].attrs.update(attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at import
        import arviz
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**datasets)
    import xarray

    return xarray.DataTree.from_dict(datasets)


def _dataset(variables: Variables, columns: list[str] | None) -> xarray.Dataset:
    """Returns the variables with coordinates: numbers, or names for cells with known names."""
    import xarray  # takes half a second to import

    sizes = {dim: n for dims, values in variables.values() for dim, n in zip(dims, values.shape, strict=True)}
    coordinates: dict[str, Any] = {dim: np.arange(n) for dim, n in sizes.items()}
    if columns is not None and "cell" in sizes:
        coordinates["cell"] = columns
    return xarray.Dataset(dict(variables), coords=coordinates)


def write_netcdf(groups: Any, path: Path) -> None:
    """Writes the groups of `to_arviz` as a netCDF file, which ArviZ and xarray can read.

    Arguments:
        groups: An `InferenceData` or a `DataTree`.
        path: File to write; it is compressed.

    Raises:
        WriteError: If the file cannot be written.
    """
    import xarray

    if isinstance(groups, xarray.DataTree):
        tree = groups
    else:
        tree = xarray.DataTree.from_dict({name: groups[name] for name in groups.groups()})
    numbers = {node.path: [name for name in node if node[name].dtype.kind in "if"] for node in tree.children.values()}
    compressed = {group: {name: {"zlib": True, "complevel": 1} for name in names} for group, names in numbers.items()}
    # In memory first: HDF5 crashes the process where a disk is full.
    write_whole(path, tree.to_netcdf(engine="h5netcdf", encoding=compressed))
