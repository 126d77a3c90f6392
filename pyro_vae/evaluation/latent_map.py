r"""The map of the data in latent space: one point for each datum, in two coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.batch import DataLike, is_frame
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated, of_a_vae
from pyro_vae.evaluation.latent_coordinates import Points, points_of, positions
from pyro_vae.vae.latent_variable_model import LatentVariableModel

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["pca", "latents"]


class _Axes(NamedTuple):
    """The axes of a map: their names, and their directions in the coordinates, shape ``(n, axes)``."""

    names: list[str]
    directions: Tensor


@of_a_vae
@torch.no_grad()
def latent_map(
    vae: LatentVariableModel,
    data: DataLike,
    *,
    dims: Sequence[int] | None = None,
    method: Method | None = None,
    labels: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Returns the position of each datum in latent space, in two coordinates.

    A datum's point is the mean of q(z|x) (on a sphere, its mode), in unconstrained space: :math:`u = T^{-1}(z)`, where
    T is the bijection onto the prior's support. Where none is known (discrete latents, spheres), it is z itself. The
    two coordinates are

    * ``"pca"``: the points' two leading principal components, :math:`(u - \bar u)^\top v_k`. The sign of :math:`v_k`
      is such that its largest entry is positive. Inactive latents have no weight in them.
    * ``"latents"``: two latents as they are: ``dims``, or the two most active ones, with the largest variance of the
      means over the data.

    A model with one latent has one coordinate. Distances on the map are no measure of similarity in x, and a principal
    component is a direction of q's means, not of the data.

    Arguments:
        vae: A VAE or a `Program`; evaluated in evaluation mode.
        data: At least two data, shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Weights have no effect:
            each datum is one point.
        dims: Positions of one or two latents, the axes of method ``"latents"``; from 0.
        method: ``"pca"`` or ``"latents"``. None: ``"latents"`` where ``dims`` are given or there are at most two
            latents, else ``"pca"``.
        labels: What is known about the data: N values (column ``label``), or a mapping or data frame of columns.
        seed: Seed of the draw of latents that all data share.

    Returns:
        A data frame with one row for each datum. Columns: ``datum``, its position in the data; the coordinates,
        ``pc1`` and ``pc2`` or the latents' names; and the labels. Its ``attrs`` hold ``method``; ``coordinates``, their
        columns; ``explained_variance`` of each, and ``explained_share``, its share of the variance of all latents;
        ``latents``, all names, the most active first, and ``activity``, their variances in the same order;
        ``unconstrained``, whether u is not z itself; ``mean``, the mean of u, and ``directions``, one row for each
        coordinate: the coordinates are ``(u - mean) @ directions.T`` of ``"pca"``, ``u @ directions.T`` of
        ``"latents"``.

    Raises:
        InputError: If the data do not fit the model, there is only one of them, ``dims`` are no such positions, or
            ``labels`` are not N values each.

    Reference: Tipping and Bishop, "Probabilistic principal component analysis", 1999, section 2.1, for the components.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> prior = Conditional(dist.Normal, (5,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(5, 8)))
        >>> frame = latent_map(vae, torch.eye(6), labels=list("ababab"))
        >>> list(frame.columns), len(frame), frame.attrs["method"]
        (['datum', 'pc1', 'pc2', 'label'], 6, 'pca')
    """
    import pandas as pd  # it takes a second to import

    batch = evaluated("latent_map", vae, data, weighted=True)
    if batch.size < 2:
        raise InputError("latent_map: a map shows how data lie to each other, and needs at least two of them; got 1.")
    points = points_of(vae, batch)
    points = points._replace(u=points.u.double().cpu(), error=points.error.cpu())
    method = _method(method, dims, len(points.names))
    mean = points.u.mean(0)
    axes = _components(points.u - mean) if method == "pca" else _latents(points, dims)
    centred = (points.u - mean) @ axes.directions
    coordinates = centred if method == "pca" else points.u @ axes.directions
    columns: dict[str, Any] = {"datum": np.arange(batch.size)}
    columns |= {name: coordinates[:, i].numpy() for i, name in enumerate(axes.names)}
    frame = pd.DataFrame(columns | _labels(labels, batch.size, list(columns)))
    explained, total = centred.square().sum(0) / (batch.size - 1), points.u.var(0).sum()
    order = points.activity.argsort(descending=True)
    frame.attrs = {
        "method": method,
        "coordinates": axes.names,
        "explained_variance": explained.tolist(),
        "explained_share": (explained / total).nan_to_num(0.0).tolist(),
        "latents": [points.names[i] for i in order],
        "activity": points.activity[order].tolist(),
        "unconstrained": points.unconstrained,
        "mean": mean.tolist(),
        "directions": axes.directions.T.tolist(),
    }
    return frame


def _method(method: Method | None, dims: Sequence[int] | None, n: int) -> Method:
    if method is None:
        return "latents" if dims is not None or n <= 2 else "pca"
    if method not in ("pca", "latents"):
        raise InputError(f'latent_map: `method` is "pca" or "latents", got `{method!r}`.')
    if method == "pca" and dims is not None:
        raise InputError('latent_map: `dims` are the axes of method="latents", and method="pca" takes none; drop one.')
    return method


def _components(centred: Tensor) -> _Axes:
    """The two leading principal components of centred points; one where there is one coordinate."""
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return _Axes([f"pc{k + 1}" for k in range(directions.shape[1])], directions * largest.sign())


def _latents(points: Points, dims: Sequence[int] | None) -> _Axes:
    """The chosen latents, or the two most active ones."""
    n = len(points.names)
    chosen = points.activity.argsort(descending=True)[:2].sort().values.tolist() if dims is None else list(dims)
    chosen = positions("latent_map", chosen, n)
    if not 1 <= len(chosen) <= 2:
        raise InputError(f"latent_map: `dims` are one or two latents, got {len(chosen)}.")
    return _Axes([points.names[i] for i in chosen], torch.eye(n, dtype=points.u.dtype)[:, chosen])


def _labels(labels: Any, n: int, taken: list[str]) -> dict[str, Any]:
    """Returns the columns of labels by name."""
    if labels is None:
        return {}
    if isinstance(labels, Mapping) or is_frame(labels):
        given = {str(name): labels[name] for name in (labels if isinstance(labels, Mapping) else labels.columns)}
    else:
        given = {"label": labels}
    found = {}
    for name, values in given.items():
        column = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if column.shape != (n,):
            raise InputError(
                f"latent_map: `labels` are {n} values, one for each datum; `{name}` has shape {column.shape}."
            )
        if name in taken:
            raise InputError(f"latent_map: `{name}` is a column of the map itself; give these labels another name.")
        found[name] = column
    return found
