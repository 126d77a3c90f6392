r"""The plot of learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pyro_vae.errors import InputError
from pyro_vae.plots.colours import ink
from pyro_vae.plots.figures import axes_or_new
from pyro_vae.training.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Axis = Literal["step", "samples", "seconds"]
_LABELS = {"step": "step", "samples": "training data seen", "seconds": "time of training, seconds"}


def plot_curves(
    histories: History | Mapping[str, History] | Sequence[History],
    *,
    x: Axis = "step",
    points: int = 100,
    ax: Axes | None = None,
) -> Axes:
    """Draws the bound on log p(x) during training, and dashed the ELBO of validation data.

    A curve is the mean bound over the data in consecutive intervals of steps; see `History.curve`. The vertical axis
    shows the values after the first tenth of the training.

    Arguments:
        histories: What `pyro_vae.fit` returns: one, several by name, or several in a row, named by their positions.
        x: Quantity of the horizontal axis: ``"step"``, ``"samples"`` or ``"seconds"``.
        points: Largest number of intervals of a curve.
        ax: Axes to draw on; None for new ones.

    Returns:
        The axes.

    Raises:
        InputError: If no history has a finite bound, or ``x`` is another quantity.

    Example:
        >>> import matplotlib, pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, Training, fit, mlp
        >>> from pyro_vae.inference import AEVB
        >>> matplotlib.use("agg")
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 8)))
        >>> history = fit(vae, torch.eye(6), AEVB(), Training(steps=20, batch_size=3))
        >>> plot_curves(history).get_ylabel()
        'bound on log p(x), nats per datum'
    """
    if x not in _LABELS:
        raise InputError(f'plot_curves: `x` is "step", "samples" or "seconds", got `{x!r}`.')
    named = _named(histories)
    axes = axes_or_new(ax, (7.0, 4.0))
    settled: list[NDArray[np.float64]] = []
    for index, (name, history) in enumerate(named.items()):
        style = ink(index)
        validation = (history.validation_step, history.validation_bound)
        for part, dashes, (steps, bound) in (("", "-", history.curve(points)), (", validation", "--", validation)):
            finite = np.isfinite(bound)
            if not finite.any():
                continue
            at, values = _positions(history, steps[finite], x), bound[finite]
            label = (name + part).removeprefix(", ") or None
            marker = style.marker if len(values) == 1 or index >= 8 else ""
            axes.plot(at, values, color=style.colour, ls=dashes, lw=1.3, marker=marker, markevery=0.1, label=label)
            settled.append(values[at >= at[-1] / 10])
    if not settled:
        raise InputError(
            "plot_curves: no history has a finite bound; algorithms such as wake-sleep have none: train with "
            "validation=x, whose ELBO is drawn."
        )
    low, high = float(min(map(np.min, settled))), float(max(map(np.max, settled)))
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel(_LABELS[x])
    axes.set_ylabel("bound on log p(x), nats per datum")
    if len(axes.get_legend_handles_labels()[1]):
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)
    return axes


def _named(histories: History | Mapping[str, History] | Sequence[History]) -> dict[str, History]:
    if isinstance(histories, History):
        return {"": histories}
    named = dict(histories) if isinstance(histories, Mapping) else {str(i): each for i, each in enumerate(histories)}
    other = next((each for each in named.values() if not isinstance(each, History)), None)
    if other is not None or not named:
        got = "none" if other is None else f"`{type(other).__name__}`"
        raise InputError(f"plot_curves: draws a `History`, as `fit` returns it, or several; got {got}.")
    return named


def _positions(history: History, steps: NDArray[np.int64], x: Axis) -> NDArray[np.float64]:
    """Returns where steps lie on the horizontal axis; step 0 is before the training."""
    along = {"step": np.arange(1, history.steps + 1), "samples": history.samples, "seconds": history.seconds}[x]
    positions: NDArray[np.float64] = np.concatenate([[0.0], along])[steps]
    return positions
