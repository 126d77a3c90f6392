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
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Returns draws and densities of trained VAEs as ArviZ's `InferenceData` (0.23) or xarray `DataTree` (1.x).

    Groups: ``posterior`` (z of q(z|x)), ``posterior_predictive`` (x of p(x|z)), ``log_likelihood`` (log p(x|z)),
    ``sample_stats`` (``log_weight``: log p(x, z) - log q(z|x), in nats) and ``observed_data``. Dimensions: chain (one
    for each VAE, such as replicates over seeds), draw, datum, latent or cell.

    Arguments:
        vaes: One VAE, or several of one structure.
        data: Shape ``(N, *event_shape)``, or a `Batch`.
        num_samples: Draws for each datum.
        seed: Of the draws; the global random state is left as it is.
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
    groups: Groups = {
        "posterior": {"z": arrays["z"]},
        "posterior_predictive": {"x": arrays["x"]},
        "log_likelihood": {"x": arrays["log_likelihood"]},
        "sample_stats": {"log_weight": arrays["log_weight"]},
        "observed_data": {"x": batch.x.reshape(batch.size, -1).float().cpu().numpy()},
    }
    return _assemble(groups, dict(attributes or {}))


def _assemble(groups: Groups, attributes: dict[str, Any]) -> Any:
    """The groups by whichever ArviZ is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at import
        import arviz
    if int(arviz.__version__.split(".")[0]) < 1:
        # Variables of one name have different dimensions in different groups, so each group is built by itself.
        parts = [
            arviz.from_dict(**{group: dict(content)}, dims=_dimensions(group, content))
            for group, content in groups.items()
        ]
        result = arviz.concat(*parts)
        result.posterior.attrs.update(attributes)
        return result
    from xarray import DataTree

    trees = {
        group: arviz.from_dict({group: dict(content)}, dims=_dimensions(group, content))[group].to_dataset()
        for group, content in groups.items()
    }
    trees["posterior"].attrs.update(attributes)
    return DataTree.from_dict(trees)


def _dimensions(group: str, content: Mapping[str, NDArray[Any]]) -> dict[str, list[str]]:
    last = {"posterior": ["datum", "latent"], "log_likelihood": ["datum"], "sample_stats": ["datum"]}
    return {name: last.get(group, ["datum", "cell"]) for name in content}


def write_netcdf(groups: Any, path: Path) -> None:
    """Writes what `to_arviz` returns as netCDF, which ArviZ and xarray read.

    Arguments:
        groups: An `InferenceData` or a `DataTree`.
        path: The file to write.
    """
    groups.to_netcdf(str(path), engine="h5netcdf")
