r"""The plot of a map of the data in latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_vae.errors import InputError, near_match
from pyro_vae.plots.colours import GREY, MOST, QUANTITY, ink
from pyro_vae.plots.figures import axes_or_new

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Number of different whole numbers that are still categories.
_CATEGORIES = 10


def plot_latent_map(frame: pd.DataFrame, color: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Draws each datum as a point at its coordinates.

    Words, yes or no, and at most ten different whole numbers are categories: each has a colour and a marker, and the
    legend lists them. Other numbers are a colour scale. Rows without a value are grey. A map of one coordinate has the
    position of the datum on the horizontal axis.

    Arguments:
        frame: What `latent_map` returns.
        color: Column that decides the colour; None: ``label`` where there is one, else all points have one colour.
        ax: Axes to draw on; None for new ones.

    Returns:
        The axes.

    Raises:
        InputError: If the frame is no latent map, has no such column, or the column has more than 40 categories.

    Example:
        >>> import matplotlib, pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> from pyro_vae.evaluation import latent_map
        >>> matplotlib.use("agg")
        >>> prior = Conditional(dist.Normal, (5,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(5, 8)))
        >>> axes = plot_latent_map(latent_map(vae, torch.eye(6), labels=list("ababab")))
        >>> axes.get_xlabel()[:3], len(axes.collections)
        ('pc1', 2)
    """
    names = frame.attrs.get("coordinates", [])
    if not names or not set(names) <= set(frame.columns):
        raise InputError(
            "plot_latent_map: needs the data frame that latent_map returns, with its `attrs`; where an operation of "
            "pandas dropped them, set frame.attrs = original.attrs."
        )
    color = "label" if color is None and "label" in frame.columns else color
    if color is not None and color not in frame.columns:
        raise InputError(
            f"plot_latent_map: the map has no column `{color}`; {near_match(color, map(str, frame.columns))}"
        )
    axes = axes_or_new(ax, (6.0, 5.0))
    columns = names if len(names) == 2 else ["datum", *names]
    if color is None:
        _points(axes, frame, columns, c=ink(0).colour)
    else:
        _coloured(axes, frame, columns, color)
    labels = ["datum"] * (2 - len(names)) + [_label(frame, i) for i in range(len(names))]
    axes.set_xlabel(labels[0], parse_math=False)
    axes.set_ylabel(labels[1], parse_math=False)
    if len(names) == 2:
        axes.set_aspect("equal", adjustable="datalim")
    return axes


def _label(frame: pd.DataFrame, index: int) -> str:
    """The name of a coordinate and its share of the variance."""
    space = ", unconstrained" if frame.attrs.get("unconstrained") else ""
    shares = frame.attrs.get("explained_share")
    share = f" ({100 * shares[index]:.0f} % of the variance)" if shares else ""
    return f"{frame.attrs['coordinates'][index]}{space}{share}"


def _points(axes: Axes, frame: pd.DataFrame, columns: list[str], **options: Any) -> Any:
    x, y = (frame[name].to_numpy() for name in columns)
    return axes.scatter(x, y, s=14, linewidths=0, alpha=0.8, **options)


def _coloured(axes: Axes, frame: pd.DataFrame, columns: list[str], color: str) -> None:
    missing, values = frame[color].isna(), frame[color]
    known = frame[~missing]
    categories = _categories(values[~missing])
    if missing.any():
        _points(axes, frame[missing], columns, c=GREY, label="no value")
    if categories is None:
        drawn = _points(axes, known, columns, c=known[color].to_numpy(dtype=float), cmap=QUANTITY)
        axes.figure.colorbar(drawn, ax=axes).set_label(color, parse_math=False)
        return
    for index, value in enumerate(categories):
        style = ink(index)
        rows = known[known[color] == value]
        _points(axes, rows, columns, c=style.colour, marker=style.marker, label=str(value))
    legend = axes.legend(title=color, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0)
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def _categories(values: pd.Series[Any]) -> list[Any] | None:
    """Returns the different values in order; None where they are a scale."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    different = list(values.unique())
    number = is_numeric_dtype(values) and not is_bool_dtype(values)
    if number and (len(different) > _CATEGORIES or any(value != round(value) for value in different)):
        return None
    if len(different) > MOST:
        raise InputError(
            f"plot_latent_map: `{values.name}` has {len(different)} categories, and {MOST} can be distinguished; "
            "choose a column of numbers, or join categories."
        )
    return sorted(different, key=lambda value: value if number else str(value))
