r"""ArviZ: trained VAEs as groups of labelled arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.modes import evaluating, isolated
from pyro_vae.vae import VAE

Groups = Mapping[str, Mapping[str, NDArray[Any]]]


@torch.no_grad()
def to_arviz(
    vaes: VAE | Sequence[VAE],
    data: Tensor | Batch,
    *,
    num_samples: int = 100,
    seed: int = 0,
    units: Any = None,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Returns draws and densities of trained VAEs as ArviZ's `InferenceData` (0.23) or xarray `DataTree` (1.x).

    Groups: ``posterior`` (z of q(z|x)), ``posterior_predictive`` (x of p(x|z)), ``log_likelihood`` (log p(x|z)),
    ``sample_stats`` (``log_weight``: log p(x, z) - log q(z|x), in nats) and ``observed_data``. Dimensions: chain (one
    for each VAE, such as replicates over seeds), draw, datum, latent or cell.

    z is a latent of each datum, not a parameter: seeds have latents of their own, so that r-hat of z over chains says
    nothing, and `az.loo` of log p(x|z) is not the model's predictive density; compare models by log p(x)
    (`pyro_vae.evaluation.log_marginal`).

    Arguments:
        vaes: One VAE, or several of one structure.
        data: Shape ``(N, *event_shape)``, or a `Batch`.
        num_samples: Draws for each datum.
        seed: Of the draws; the global random state is left as it is.
        units: The transform of the data, such as ``data.units``: x then is in the data's own units, its cells have
            the names of the columns, and densities include the log-Jacobian. Default: model units.
        attributes: Kept with the posterior group, such as seeds and versions.

    Raises:
        InputError: Where the data do not fit.
    """
    several = [vaes] if isinstance(vaes, VAE) else list(vaes)
    if not several:
        raise InputError("to_arviz: expected at least one VAE, got none.")
    chains: dict[str, list[Tensor]] = {"z": [], "x": [], "log_likelihood": [], "log_weight": []}
    for i, vae in enumerate(several):
        with evaluating(vae), isolated(seed + i, "draws"):
            batch = vae.check(data).to(vae.device, vae.dtype)
            q = vae.encode(batch)
            z = q.sample((num_samples,))
            chains["z"].append(z.reshape(num_samples, batch.size, -1))
            chains["x"].append(vae.decode(z, batch).sample().reshape(num_samples, batch.size, -1))
            chains["log_likelihood"].append(vae.log_likelihood(z, batch))
            chains["log_weight"].append(vae.log_joint(z, batch) - q.log_prob(z))
    arrays = {name: torch.stack(parts).float().cpu().numpy() for name, parts in chains.items()}
    own = (lambda x: x) if units is None else (lambda x: units.to_own_units(x).float().numpy())
    shift = 0.0 if units is None else units.log_jacobian
    groups: Groups = {
        "posterior": {"z": arrays["z"]},
        "posterior_predictive": {"x": own(arrays["x"])},
        "log_likelihood": {"x": arrays["log_likelihood"] + shift},
        "sample_stats": {"log_weight": arrays["log_weight"] + shift},
        "observed_data": {"x": own(batch.x.reshape(batch.size, -1).float().cpu().numpy())},
    }
    described = {"units": "model units" if units is None else "the data's own units", "densities": "nats"}
    columns = None if units is None or units.columns is None else list(units.columns)
    return _assemble(groups, {**described, **(attributes or {})}, columns)


def _assemble(groups: Groups, attributes: dict[str, Any], columns: list[str] | None) -> Any:
    """The groups by whichever ArviZ is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at import
        import arviz
    if int(arviz.__version__.split(".")[0]) < 1:
        # Variables of one name have different dimensions in different groups, so each group is built by itself.
        parts = [
            arviz.from_dict(
                **{group: dict(content)}, dims=_dimensions(group, content), coords=_coordinates(group, columns)
            )
            for group, content in groups.items()
        ]
        result = arviz.concat(*parts)
        result.posterior.attrs.update(attributes)
        return result
    from xarray import DataTree

    trees = {
        group: arviz.from_dict(
            {group: dict(content)}, dims=_dimensions(group, content), coords=_coordinates(group, columns)
        )[group].to_dataset()
        for group, content in groups.items()
    }
    trees["posterior"].attrs.update(attributes)
    return DataTree.from_dict(trees)


def _dimensions(group: str, content: Mapping[str, NDArray[Any]]) -> dict[str, list[str]]:
    last = {"posterior": ["datum", "latent"], "log_likelihood": ["datum"], "sample_stats": ["datum"]}
    return {name: last.get(group, ["datum", "cell"]) for name in content}


def _coordinates(group: str, columns: list[str] | None) -> dict[str, list[str]]:
    return {"cell": columns} if columns is not None and group in ("posterior_predictive", "observed_data") else {}


def write_netcdf(groups: Any, path: Path) -> None:
    """Writes what `to_arviz` returns as netCDF, which ArviZ and xarray read.

    Arguments:
        groups: An `InferenceData` or a `DataTree`.
        path: The file to write.
    """
    groups.to_netcdf(str(path), engine="h5netcdf")
