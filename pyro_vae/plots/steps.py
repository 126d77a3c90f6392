r"""Plots of what a model decodes step by step: traversals and interpolations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation.interpolation import Interpolation
from pyro_vae.evaluation.traversal import Traversal
from pyro_vae.plots.colours import QUANTITY, ink
from pyro_vae.plots.figures import ACROSS, figure_of, panels
from pyro_vae.plots.mosaic import images_of, mosaic_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Largest number of columns that are drawn as lines, and of names along an axis.
_LINES, _NAMES = 8, 30
_CENTRE = "centre of p(x|z), model units"


class _Rows(NamedTuple):
    """What is drawn: x of shape ``(rows, steps, *event_shape)``, the place of each step, and the words."""

    caller: str
    x: Tensor
    places: NDArray[np.float64]
    names: tuple[str, ...]
    axis: str
    axes_of_panels: tuple[str, ...]


def plot_traversal(
    traversal: Traversal,
    *,
    image_shape: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draws what a model decodes while one latent at a time moves.

    Images are drawn in one row for each latent. Tables have one panel for each latent: lines of up to eight columns,
    else a heat map. All panels have one scale, so the columns should be in comparable units, as scaled data are.

    Arguments:
        traversal: What `traverse` returns.
        image_shape: Shape of a datum as an image, such as ``data.image_shape``: ``(H, W)``, ``(C, H, W)`` or
            ``(H, W, C)``. None: data are images if an event has two or three dimensions, else rows of a table.
        columns: Names of a table's columns, such as ``data.columns``; None: ``x0`` and so on.
        limits: For images, the values that are black and white; None: 0 and 1, or the range of x where it is larger.
        ax: Axes to draw on: one for images, one for each latent for tables; None for those of a new figure.

    Returns:
        The figure.

    Raises:
        InputError: If the shape, the columns or the number of axes do not fit.

    Example:
        >>> import matplotlib, pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> from pyro_vae.evaluation import traverse
        >>> matplotlib.use("agg")
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 8)))
        >>> figure = plot_traversal(traverse(vae, torch.eye(6)), columns=list("abcdef"))
        >>> len(figure.axes)
        2
    """
    values = traversal.values.double().cpu().numpy()
    space = ", unconstrained" if traversal.unconstrained else ""
    names = tuple(f"{name}{space}" for name in traversal.names)
    rows = _Rows("plot_traversal", traversal.x, values, names, f"value of the latent{space}", names)
    return _draw(rows, image_shape, columns, limits, ax)


def plot_interpolation(
    interpolation: Interpolation,
    *,
    image_shape: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draws what a model decodes on the paths between pairs of data, one row or panel for each pair.

    Arguments:
        interpolation: What `interpolate` returns.
        image_shape: As for `plot_traversal`.
        columns: As for `plot_traversal`.
        limits: As for `plot_traversal`.
        ax: Axes to draw on: one for images, one for each pair for tables; None for those of a new figure.

    Returns:
        The figure.

    Raises:
        InputError: If the shape, the columns or the number of axes do not fit.

    Example:
        >>> import matplotlib, pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> from pyro_vae.evaluation import interpolate
        >>> matplotlib.use("agg")
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 8)))
        >>> x = torch.eye(6)
        >>> figure = plot_interpolation(interpolate(vae, x[:3], x[3:]), image_shape=(2, 3))
        >>> figure.axes[0].get_xlabel()
        'share of the path'
    """
    n = len(interpolation.x)
    places = np.tile(interpolation.position.double().cpu().numpy(), (n, 1))
    names = tuple(f"pair {i}" for i in range(n))
    axis = "share of the path"
    rows = _Rows("plot_interpolation", interpolation.x, places, names, axis, (axis,) * n)
    return _draw(rows, image_shape, columns, limits, ax)


def _draw(
    rows: _Rows,
    image_shape: Sequence[int] | None,
    columns: Sequence[str] | None,
    limits: tuple[float, float] | None,
    ax: Axes | Sequence[Axes] | None,
) -> Figure:
    event = tuple(rows.x.shape[2:])
    if image_shape is None and columns is None and len(event) in (2, 3):
        image_shape = event
    if image_shape is not None:
        return _images(rows, image_shape, limits, ax)
    return _table(rows, columns, ax)


def _images(
    rows: _Rows, image_shape: Sequence[int], limits: tuple[float, float] | None, ax: Axes | Sequence[Axes] | None
) -> Figure:
    images = images_of(rows.caller, rows.x, image_shape)
    low, high = limits or (min(0.0, float(images.min())), max(1.0, float(images.max())))
    mosaic = mosaic_of(images, (low, high))
    height, width = mosaic.array.shape[:2]
    size = min(9.0, 0.9 * images.shape[1])
    (axes,) = panels(rows.caller, ax, 1, (size + 1.2, size * height / width + 0.7))
    axes.imshow(np.ma.masked_invalid(mosaic.array), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    alike = np.allclose(rows.places, rows.places[:1])
    names = (
        rows.names if alike else [f"{name}\n{_range(row)}" for name, row in zip(rows.names, rows.places, strict=True)]
    )
    axes.set_yticks(mosaic.down, names, parse_math=False)
    axes.set_xticks(mosaic.across, [_number(v) for v in rows.places[0]] if alike else [""] * len(mosaic.across))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(rows.axis if alike else f"{rows.axis}, from the lowest to the highest")
    return figure_of(axes)


def _table(rows: _Rows, columns: Sequence[str] | None, ax: Axes | Sequence[Axes] | None) -> Figure:
    x = rows.x.double().cpu().flatten(2).numpy() if rows.x.dim() > 2 else rows.x.double().cpu().unsqueeze(2).numpy()
    names = [f"x{i}" for i in range(x.shape[2])] if columns is None else [str(name) for name in columns]
    if len(names) != x.shape[2]:
        raise InputError(f"{rows.caller}: `columns` are {len(names)} names, and a datum has {x.shape[2]} cells.")
    lines = len(names) <= _LINES
    tall = 2.6 if lines else min(8.0, 1.2 + 0.16 * min(len(names), _NAMES))
    drawn = panels(rows.caller, ax, len(x), (3.6, tall))
    margin = 0.05 * (float(x.max()) - float(x.min())) or 1.0
    for index, axes in enumerate(drawn):
        if lines:
            for column, name in enumerate(names):
                style = ink(column)
                axes.plot(rows.places[index], x[index, :, column], color=style.colour, label=name, lw=1.5)
            axes.set_ylim(float(x.min()) - margin, float(x.max()) + margin)
        else:
            named = names if ax is not None or index % ACROSS == 0 else [""] * len(names)
            _heat_map(axes, x[index].T, rows.places[index], named, (float(x.min()), float(x.max())))
        axes.set_xlabel(rows.axes_of_panels[index], parse_math=False)
        if rows.names[index] != rows.axes_of_panels[index] and len(x) > 1:
            axes.set_title(rows.names[index], parse_math=False)
    figure = figure_of(drawn[0])
    if not lines:
        figure.colorbar(drawn[0].images[0], ax=drawn, label=_CENTRE)
        return figure
    drawn[0].set_ylabel(_CENTRE)
    legend = drawn[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _heat_map(
    axes: Axes, values: NDArray[np.float64], places: NDArray[np.float64], names: list[str], limits: tuple[float, float]
) -> None:
    axes.imshow(values, cmap=QUANTITY, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    shown = np.unique(np.linspace(0, len(names) - 1, min(_NAMES, len(names))).round().astype(int))
    axes.set_yticks(shown, [names[i] for i in shown], parse_math=False)
    ticks = np.unique(np.linspace(0, len(places) - 1, min(5, len(places))).round().astype(int))
    axes.set_xticks(ticks, [_number(places[i]) for i in ticks])


def _range(values: NDArray[np.float64]) -> str:
    return f"{_number(values[0])} to {_number(values[-1])}"


def _number(value: float) -> str:
    """Returns a number in three digits, with a minus sign.

    Example:
        >>> _number(-1.23456), _number(-0.0)
        ('−1.23', '0')
    """
    return f"{round(value, 9) + 0.0:.3g}".replace("-", "−")
