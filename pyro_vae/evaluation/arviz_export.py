r"""Export of trained models to ArviZ, as groups of labelled arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pyro_vae.runtime.random_streams import isolated, stream_seed
from pyro_vae.runtime.whole_file import write_whole
from pyro_vae.vae.latent_variable_model import LatentVariableModel
from pyro_vae.vae.named import DATUM, DRAW, Named
from pyro_vae.vae.vae import require_model

if TYPE_CHECKING:
    import xarray

# Dimensions and values of a variable.
Variable = tuple[tuple[str, ...], NDArray[Any]]

# Draws and densities by group and variable.
Drawn = dict[tuple[str, str], Named]

# Largest number of latents (draws x data) that are decoded at once; it bounds the memory beyond the result.
_ROWS = 20_000

# The groups in the order of the result.
_GROUPS = (
    *("posterior", "posterior_predictive", "prior", "prior_predictive"),
    *("log_likelihood", "sample_stats", "observed_data", "constant_data"),
)
# Groups whose variables have one type: those of the latents, and those of what is observed.
_ALIKE = (("posterior", "prior"), ("posterior_predictive", "prior_predictive", "observed_data"))


@torch.no_grad()
def to_arviz(
    vaes: LatentVariableModel | Sequence[LatentVariableModel],
    data: DataLike,
    *,
    num_samples: int = 100,
    seed: int = 0,
    units: Any = None,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    r"""Returns draws and densities of trained models as ArviZ's `InferenceData` (0.23) or xarray's `DataTree` (1.x).

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

    A chain is one model, such as a replicate over seeds. Events of more than one dimension are flattened (row-major) to
    ``cell`` and ``latent``. Draws are float32, or int32 if all are whole numbers (ArviZ plots integers as counts);
    densities are float64, in nats.

    The variables of a `Program` are its sites: each latent one in place of ``z``, each observed one in place of ``x``.
    In place of ``latent`` and ``cell`` stand the plates inside the one over data, by their names, and the dimensions
    of the event, ``<site>_dim_0`` and so on. Latents that all data share have the dimensions chain and draw, without
    datum: each draw has its own value of them, and its other variables and densities are those given this value. The
    sum of ``log_likelihood`` over variables is log p(x|z); a factor is one of them.

    z is a latent of each datum, not a parameter. So r-hat of z over chains has no meaning, since each seed has its own
    latent space. `az.loo` of log p(x|z) is not the model's predictive density: at the exact posterior it is the
    harmonic-mean estimate of log p(x), whose variance is mostly infinite; with any other q it is not even that.
    Compare models by log p(x) (`pyro_vae.evaluation.log_marginal`), the log of the mean of ``exp(log_weight)`` over
    the draws; it is reliable where ``pareto_k`` is below 0.7. If a datum is left out, its latent has the prior, so
    p(z) / q(z|x) are the leave-one-out weights, from which ArviZ 1.x computes the same log p(x):
    ``az.loo(groups, log_weights=log_weight - log_likelihood - log(chains * draws), pareto_k=...)``. This also works
    for few discrete z, where ArviZ 1.x refuses log p(x|z) alone, as its tail is one value.

    Arguments:
        vaes: One VAE or `Program`, or several of one structure.
        data: Shape ``(N, *event_shape)``, in any form that the model takes. The result is in memory: ``2 chains
            num_samples N`` times the cells of a datum, of 4 bytes.
        num_samples: Number of draws for each datum.
        seed: Seed of the draws, to which the number of the chain is added; the global random state does not change.
        units: Transform of the data, such as ``data.units``: then x is in own units, its cells have the names of the
            columns, and densities include the log-Jacobian (of the observed cells). Default: model units.
        attributes: Attributes to store with the posterior group, such as seeds and versions.

    Raises:
        InputError: If there is no model or no draw, the models differ in structure, the data do not fit, ``units``
            are of other columns than the model observes, or a site has the name of a dimension.

    Reference: Kumar, Carroll, Hartikainen and Martin, "ArviZ: a unified library for exploratory analysis of Bayesian
    models in Python", 2019; Newton and Raftery, "Approximate Bayesian inference with the weighted likelihood
    bootstrap", 1994 (the harmonic mean); Vehtari, Gelman and Gabry, "Practical Bayesian model evaluation using
    leave-one-out cross-validation and WAIC", 2017, section 2.1.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 8)))
        >>> groups = to_arviz(vae, torch.zeros(5, 6), num_samples=40)
        >>> groups["posterior"]["z"].shape, groups["sample_stats"]["pareto_k"].shape
        ((1, 40, 5, 2), (1, 5))
    """
    several = list(vaes) if isinstance(vaes, Sequence) else [vaes]
    batch = _checked(several, data, num_samples)
    size = rows_at_once(several[0], _ROWS)
    parts = [batch.select(slice(start, start + size)) for start in range(0, batch.size, size)]
    observed = _observed(several[0], parts)
    own, columns = _own_units(units, observed)
    shift = _log_jacobian(units, observed)
    chains = [_chain(model, batch, num_samples, seed + i, own) for i, model in enumerate(several)]
    found = _stacked(chains)
    for key, (dims, array) in found.items():
        if key[0] == "log_likelihood" or key == ("sample_stats", "log_weight"):
            found[key] = (dims, array + shift)
    found |= {("observed_data", name): (dims, own(values).numpy()) for name, (values, dims) in observed.items()}
    if batch.context is not None:
        context = batch.context.reshape(batch.size, -1).float().cpu().numpy()
        found["constant_data", "context"] = ((DATUM, "covariate"), context)
    described = {"units": "model units" if units is None else "the data's own units", "densities": "nats"}
    return _assemble(_groups(found), {**described, **(attributes or {})}, columns)


def _checked(models: Sequence[LatentVariableModel], data: DataLike, num_samples: int) -> Batch:
    """Returns the data as a batch, after a check that it fits every model."""
    if not models:
        raise InputError("to_arviz: expected at least one VAE, got none.")
    for model in models:
        require_model("to_arviz", model)
    if not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"to_arviz: `num_samples` is a positive integer, got `{num_samples!r}`.")
    shapes = sorted({tuple(model.latent_shape) for model in models})
    if len(shapes) > 1:
        raise InputError(
            f"to_arviz: chains must be VAEs of one structure, got latents of shapes {', '.join(map(str, shapes))}; "
            "export each separately."
        )
    batches = [model.check(data) for model in models]
    return batches[0]


def _observed(model: LatentVariableModel, parts: Sequence[Batch]) -> dict[str, Named]:
    """Returns what the model observes, in model units, with nan where it is hidden."""
    found = [_to_cpu(model.named_data(part.to(model.device, model.dtype))) for part in parts]
    return _joined(found, DATUM)


def _own_units(
    units: Any, observed: Mapping[str, Named]
) -> tuple[Callable[[Tensor], Tensor], tuple[str, list[str]] | None]:
    """Returns the map of x, shape ``(..., D)``, to the units of the result, and the dimension of named columns."""
    if units is None:
        return torch.Tensor.float, None
    shapes = {name: tuple(values.shape[1:]) for name, (values, _) in observed.items()}
    if list(shapes.values()) != [(units.dim,)]:
        said = ", ".join(f"`{name}` of shape {shape}" for name, shape in shapes.items())
        raise InputError(
            f"to_arviz: `units` are those of {units.dim} columns, and the model observes {said} for each datum; leave "
            "`units` out, or observe the columns as one vector."
        )
    (x,) = observed.values()
    columns = None if units.columns is None else (x.dims[-1], list(units.columns))
    return lambda x: units.to_own_units(x).float(), columns


def _log_jacobian(units: Any, observed: Mapping[str, Named]) -> NDArray[Any]:
    """Returns the addend to log densities for own units, over the observed cells, in nats: ``()`` or ``(N,)``."""
    if units is None:
        return np.asarray(0.0)
    (x,) = observed.values()
    hidden = x.values.isnan()
    return np.asarray(units.log_jacobian_of(~hidden if bool(hidden.any()) else None))


def _chain(
    model: LatentVariableModel, batch: Batch, num_samples: int, seed: int, own: Callable[[Tensor], Tensor]
) -> Drawn:
    """Returns draws and densities of one model; ``pareto_k`` has the dimension datum alone."""
    joined: Drawn = {}
    for stream, prior in (("draws", False), ("prior draws", True)):
        with evaluating(model), isolated(seed, stream):
            blocks = []
            for given, count in _given_globals(model, num_samples, stream_seed(seed, stream), prior):
                size = max(1, rows_at_once(model, _ROWS) // count)
                parts = [batch.select(slice(start, start + size)) for start in range(0, batch.size, size)]
                draw = _prior_draws if prior else _posterior_draws
                drawn = (draw(given, part.to(model.device, model.dtype), count, own) for part in parts)
                blocks.append(_joined([_to_cpu(part) for part in drawn], DATUM))
            joined |= _joined(blocks, DRAW)
    log_weight = joined["sample_stats", "log_weight"].values
    return {**joined, ("sample_stats", "pareto_k"): Named(pareto_k(log_weight), (DATUM,))}


def _given_globals(
    model: LatentVariableModel, num_samples: int, seed: int, prior: bool
) -> Iterator[tuple[LatentVariableModel, int]]:
    """Yields the model given each draw of what all data share, with the number of draws of each datum's latents."""
    if not model.has_globals:
        yield model, num_samples
        return
    for i in range(num_samples):
        yield model.at_globals(stream_seed(seed, f"globals of draw {i}"), prior=prior), 1


def _posterior_draws(
    model: LatentVariableModel, batch: Batch, num_samples: int, own: Callable[[Tensor], Tensor]
) -> Drawn:
    q = model.posterior_given(batch)
    z = q.sample((num_samples,))
    terms = model.log_likelihoods_of(z, batch)
    log_likelihood = torch.stack(list(terms.values())).sum(0)
    log_weight = model.prior_given(batch).log_prob(z) + log_likelihood - q.log_prob(z)
    return {
        **_variables("posterior", model, z, batch, own),
        **{("log_likelihood", name): Named(term.double(), (DRAW, DATUM)) for name, term in terms.items()},
        ("sample_stats", "log_weight"): Named(log_weight.double(), (DRAW, DATUM)),
    }


def _prior_draws(model: LatentVariableModel, batch: Batch, num_samples: int, own: Callable[[Tensor], Tensor]) -> Drawn:
    p = model.prior_given(batch)
    z = p.sample((num_samples, batch.size) if p.batch_shape == () else (num_samples,))
    return _variables("prior", model, z, batch, own)


def _variables(
    group: str, model: LatentVariableModel, z: Tensor, batch: Batch, own: Callable[[Tensor], Tensor]
) -> Drawn:
    """Returns the latents in a group, and draws given them in the group of predictions."""
    shared = {
        name: Named(values.expand(len(z), *values.shape), (DRAW, *dims))
        for name, (values, dims) in model.named_globals().items()
    }
    latents = {**shared, **model.named_latents(z, batch)}
    return {
        **{(group, name): Named(values.float(), dims) for name, (values, dims) in latents.items()},
        **{
            (f"{group}_predictive", name): Named(own(values), dims)
            for name, (values, dims) in model.named_draws(z, batch).items()
        },
    }


def _to_cpu(variables: Mapping[Any, Named]) -> dict[Any, Named]:
    return {name: Named(values.cpu(), dims) for name, (values, dims) in variables.items()}


def _joined(several: list[dict[Any, Named]], dim: str) -> dict[Any, Named]:
    """Joins values along a dimension; those without it are the same in all parts."""
    joined = {}
    for name in list(several[0]):
        dims = several[0][name].dims
        values = [part.pop(name).values for part in several]  # to save memory
        joined[name] = Named(torch.cat(values, dim=dims.index(dim)) if dim in dims else values[0], dims)
    return joined


def _stacked(chains: list[Drawn]) -> dict[tuple[str, str], Variable]:
    """Returns the values of all chains as arrays with the dimension chain before all others."""
    shapes = [{key: (dims, values.shape) for key, (values, dims) in chain.items()} for chain in chains]
    for shape in shapes[1:]:
        for key in shapes[0].keys() | shape.keys():
            if shapes[0].get(key) != shape.get(key):
                raise InputError(
                    f"to_arviz: chains must be models of one structure, but `{key[1]}` is not the same in all; export "
                    "each separately."
                )
    stacked = {}
    for key in list(chains[0]):
        dims = chains[0][key].dims
        stacked[key] = (("chain", *dims), np.stack([chain.pop(key).values.numpy() for chain in chains]))
    return stacked


def _groups(found: Mapping[tuple[str, str], Variable]) -> dict[str, dict[str, Variable]]:
    """Returns the variables of each group, after a check of their names; whole numbers are integers."""
    groups: dict[str, dict[str, Variable]] = {group: {} for group in _GROUPS}
    for (group, name), variable in found.items():
        groups[group][name] = variable
    every = {dim for dims, _ in found.values() for dim in dims}
    for (_, name), (dims, _) in found.items():
        if name in every or len(set(dims)) < len(dims):
            raise InputError(
                f"to_arviz: the variable `{name}` has the dimensions {', '.join(dims)}; neither a site nor a plate in "
                "the one over data may have the name of another dimension: rename it in the model."
            )
    for alike in _ALIKE:
        for name in dict.fromkeys(name for group in alike for name in groups[group]):
            members = [group for group in alike if name in groups[group]]
            arrays = _whole(*(groups[group][name][1] for group in members))
            for group, array in zip(members, arrays, strict=True):
                groups[group][name] = (groups[group][name][0], array)
    return {group: variables for group, variables in groups.items() if variables}


def _whole(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Returns the arrays as integers if all values are whole numbers, since ArviZ draws histograms only of integers."""
    limit = np.iinfo(np.int32).max
    parts = (part for array in arrays for part in array)  # a chain at a time, to save memory
    if all(bool(((np.rint(part) == part) & (np.abs(part) < limit)).all()) for part in parts):
        return tuple(array.astype(np.int32) for array in arrays)
    return arrays


def _assemble(
    groups: Mapping[str, Mapping[str, Variable]], attributes: dict[str, Any], columns: tuple[str, list[str]] | None
) -> Any:
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


def _dataset(variables: Mapping[str, Variable], columns: tuple[str, list[str]] | None) -> xarray.Dataset:
    """Returns the variables with coordinates: numbers, or names for cells with known names."""
    import xarray  # takes half a second to import

    sizes = {dim: n for dims, values in variables.values() for dim, n in zip(dims, values.shape, strict=True)}
    coordinates: dict[str, Any] = {dim: np.arange(n) for dim, n in sizes.items()}
    if columns is not None and columns[0] in sizes:
        coordinates[columns[0]] = columns[1]
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
