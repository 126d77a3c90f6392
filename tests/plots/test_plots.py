"""What the plots draw: points, images, curves and words, on matplotlib's Agg backend."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from linear_gaussian import LinearGaussian
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb

from pyro_vae import History
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Interpolation, Traversal, interpolate, latent_map, traverse
from pyro_vae.plots import plot_curves, plot_interpolation, plot_latent_map, plot_traversal
from pyro_vae.plots.colours import MOST, ink

MODEL = LinearGaussian.random(5, 3)
X = MODEL.sample(30)
VAE = MODEL.vae(MODEL.exact_encoder())


@pytest.fixture(autouse=True)
def _agg() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.1 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_colours_stand_out_on_white_and_on_black() -> None:
    for index in range(8):
        value = luminance(ink(index).colour)
        assert min(1.05 / (value + 0.05), (value + 0.05) / 0.05) > 2
    assert len({ink(index) for index in range(MOST)}) == MOST


# ---------------------------------------------------------------------- latent map


def test_a_map_has_one_point_a_datum_and_the_shares_on_its_axes() -> None:
    frame = latent_map(VAE, X)
    axes = plot_latent_map(frame)
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), frame[["pc1", "pc2"]])
    share = [f"{100 * value:.0f}" for value in frame.attrs["explained_share"]]
    assert axes.get_xlabel() == f"pc1 ({share[0]} % of the variance)"
    assert axes.get_ylabel() == f"pc2 ({share[1]} % of the variance)"
    assert axes.get_legend() is None


def test_categories_have_a_colour_and_a_word_each() -> None:
    kind = [["b", "a", "$c"][i % 3] for i in range(30)]
    frame = latent_map(VAE, X, labels=kind)
    axes = plot_latent_map(frame)  # `label` without a choice
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["$c", "a", "b"]
    assert axes.get_legend().get_title().get_text() == "label"
    for index, (name, points) in enumerate(zip(["$c", "a", "b"], axes.collections, strict=True)):
        np.testing.assert_array_equal(points.get_offsets(), frame.loc[frame["label"] == name, ["pc1", "pc2"]])
        assert to_hex(points.get_facecolor()[0]).upper() == ink(index).colour
    axes.figure.savefig("/dev/null", format="png")  # a dollar sign is no mathematics


def test_few_whole_numbers_are_categories_and_other_numbers_a_scale() -> None:
    frame = latent_map(VAE, X, labels={"few": torch.arange(30) % 10, "many": torch.arange(30), "part": X[:, 0]})
    few, many, part = (plot_latent_map(frame, name) for name in ("few", "many", "part"))
    assert [text.get_text() for text in few.get_legend().get_texts()] == [str(i) for i in range(10)]
    for axes, name in ((many, "many"), (part, "part")):
        np.testing.assert_array_equal(axes.collections[0].get_array(), frame[name])
        assert axes.get_legend() is None
        assert axes.figure.axes[1].get_ylabel() == name


def test_points_without_a_value_are_grey() -> None:
    frame = latent_map(VAE, X, labels={"known": [None, *"ab" * 14, np.nan], "number": [np.nan, *range(29)]})
    axes = plot_latent_map(frame, "known")
    assert [len(points.get_offsets()) for points in axes.collections] == [2, 14, 14]
    assert axes.get_legend().get_texts()[0].get_text() == "no value"
    assert [len(points.get_offsets()) for points in plot_latent_map(frame, "number").collections] == [1, 29]


def test_a_map_of_one_latent_has_the_data_in_a_row() -> None:
    frame = latent_map(VAE, X, dims=[1])
    axes = plot_latent_map(frame)
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), frame[["datum", "z1"]])
    assert axes.get_xlabel() == "datum"


def test_axes_of_the_user_are_drawn_on() -> None:
    _, mine = plt.subplots()
    assert plot_latent_map(latent_map(VAE, X), ax=mine) is mine
    assert len(plt.get_fignums()) == 1


def test_what_is_no_map_is_refused() -> None:
    frame = latent_map(VAE, X, labels={"name": [f"n{i}" for i in range(30)]})
    with pytest.raises(InputError, match="the map has no column `nam`; did you mean `name`"):
        plot_latent_map(frame, "nam")
    with pytest.raises(InputError, match="needs the data frame that latent_map returns"):
        plot_latent_map(pd.DataFrame({"a": [1.0]}))
    twice = pd.concat([frame, frame.assign(name=frame["name"] + "'")])
    twice.attrs = frame.attrs
    with pytest.raises(InputError, match="`name` has 60 categories, and 40 can be distinguished"):
        plot_latent_map(twice, "name")


# ---------------------------------------------------------------------- steps


def traversal(*event: int) -> Traversal:
    x = torch.rand(2, 3, *event, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    return Traversal(x, torch.zeros(2, 3, 4), values, (3, 1), ("z3", "z1"), False)


def block(array: np.ndarray, row: int, column: int, height: int, width: int) -> np.ndarray:
    return array[row * (height + 1) : row * (height + 1) + height, column * (width + 1) : column * (width + 1) + width]


@pytest.mark.parametrize(("event", "shape"), [((20,), (5, 4)), ((1, 5, 4), None), ((5, 4, 1), None)])
def test_grey_images_lie_in_a_row_for_each_latent(event: tuple[int, ...], shape: tuple[int, ...] | None) -> None:
    moved = traversal(*event)
    figure = plot_traversal(moved, image_shape=shape)
    (axes,) = figure.axes
    array = axes.images[0].get_array()
    assert array.shape == (11, 14)
    for row in range(2):
        for column in range(3):
            drawn = block(array, row, column, 5, 4)
            np.testing.assert_array_equal(drawn, moved.x[row, column].reshape(5, 4).double())
    assert array.mask[5].all()
    assert array.mask[:, 4].all()  # gaps are transparent
    assert int((~array.mask).sum()) == 2 * 3 * 20
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["z3", "z1"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["−1", "0", "1"]
    assert axes.get_xlabel() == "value of the latent"
    assert axes.images[0].get_clim() == (0, 1)
    assert plot_traversal(moved, image_shape=shape, limits=(-1, 2)).axes[0].images[0].get_clim() == (-1, 2)


@pytest.mark.parametrize("event", [(3, 5, 4), (5, 4, 3)])
def test_colour_images_keep_their_colours(event: tuple[int, ...]) -> None:
    moved = traversal(*event)
    array = plot_traversal(moved).axes[0].images[0].get_array()
    image = moved.x[1, 2].double()
    image = image.movedim(0, -1) if event[0] == 3 else image
    np.testing.assert_allclose(block(array, 1, 2, 5, 4), torch.cat([image, torch.ones(5, 4, 1).double()], dim=-1))
    assert not array[5].any()  # transparent


def test_rows_with_values_of_their_own_tell_them() -> None:
    moved = traversal(2, 2)
    moved.values[1] *= 2
    (axes,) = plot_traversal(moved).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["z3\n−1 to 1", "z1\n−2 to 2"]
    assert axes.get_xlabel() == "value of the latent, from the lowest to the highest"


def test_a_table_has_a_panel_a_latent_and_a_line_a_column() -> None:
    moved = traverse(VAE, X, dims=[2, 0], steps=4)
    figure = plot_traversal(moved, columns=["a", "b", "c", "$d", "e"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["z2", "z0"]
    for row, axes in enumerate(figure.axes):
        for column, line in enumerate(axes.lines):
            np.testing.assert_array_equal(line.get_xdata(), moved.values[row])
            np.testing.assert_array_equal(line.get_ydata(), moved.x[row, :, column])
        assert axes.get_ylim() == figure.axes[0].get_ylim()
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["a", "b", "c", "$d", "e"]
    assert figure.axes[0].get_ylabel() == "centre of p(x|z), model units"
    figure.savefig("/dev/null", format="png")


def test_a_wide_table_is_a_heat_map() -> None:
    moved = traversal(40)
    figure = plot_traversal(moved, columns=[f"c{i}" for i in range(40)])
    first, second, bar = figure.axes
    np.testing.assert_array_equal(first.images[0].get_array(), moved.x[0].double().T)
    np.testing.assert_array_equal(second.images[0].get_array(), moved.x[1].double().T)
    assert first.images[0].get_clim() == second.images[0].get_clim() == (float(moved.x.min()), float(moved.x.max()))
    names = [tick.get_text() for tick in first.get_yticklabels()]
    assert (len(names), names[0], names[-1]) == (30, "c0", "c39")
    assert bar.get_ylabel() == "centre of p(x|z), model units"


def test_unconstrained_values_are_named_so() -> None:
    moved = traversal(3)
    moved = Traversal(moved.x, moved.z, moved.values, moved.dims, moved.names, True)
    assert plot_traversal(moved).axes[0].get_xlabel() == "z3, unconstrained"
    assert plot_traversal(moved, image_shape=(1, 3)).axes[0].get_xlabel() == "value of the latent, unconstrained"


def test_an_interpolation_has_a_row_or_a_panel_for_each_pair() -> None:
    way = interpolate(VAE, X[:2], X[2:4], steps=3)
    figure = plot_interpolation(way)
    assert [axes.get_title() for axes in figure.axes] == ["pair 0", "pair 1"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["share of the path"] * 2
    np.testing.assert_array_equal(figure.axes[1].lines[4].get_ydata(), way.x[1, :, 4])
    (axes,) = plot_interpolation(way, image_shape=(1, 5)).axes
    np.testing.assert_array_equal(block(axes.images[0].get_array(), 1, 2, 1, 5), way.x[1, 2].reshape(1, 5))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.5", "1"]
    scalar = Interpolation(way.x[..., 0], way.z, way.position, "linear")
    assert len(plot_interpolation(scalar).axes[0].lines) == 1


def test_steps_are_drawn_on_the_axes_of_the_user() -> None:
    moved = traversal(5)
    figure, mine = plt.subplots(1, 2)
    assert plot_traversal(moved, ax=mine) is figure
    assert [len(axes.lines) for axes in mine] == [5, 5]
    assert plot_traversal(moved, image_shape=(1, 5), ax=mine[0]) is figure
    assert len(plt.get_fignums()) == 1
    with pytest.raises(InputError, match="plot_traversal: `ax` has 1 axes, and 2 are drawn on"):
        plot_traversal(moved, ax=mine[0])


def test_shapes_and_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"plot_traversal: `image_shape` is .* 20 cells in all; got \(4, 6\)"):
        plot_traversal(traversal(20), image_shape=(4, 6))
    with pytest.raises(InputError, match=r"1, 3 or 4 channels .* got \(2, 2, 5\)"):
        plot_traversal(traversal(20), image_shape=(2, 2, 5))
    with pytest.raises(InputError, match="`columns` are 1 names, and a datum has 20 cells"):
        plot_traversal(traversal(20), columns=["a"])


# ---------------------------------------------------------------------- curves


def history(scale: float = 1.0, validation: bool = True) -> History:
    steps = np.arange(1, 101)
    return History(
        scale * -1000.0 / steps,
        10 * steps,
        0.5 * steps,
        np.array([0, 50, 100] if validation else [], dtype=np.int64),
        np.array([-900.0, -21.0, -11.0] if validation else []),
    )


def test_a_curve_is_that_of_the_history_with_validation_dashed() -> None:
    one = history()
    axes = plot_curves({"AEVB": one}, points=20)
    train, validation = axes.lines
    steps, bound = one.curve(20)
    np.testing.assert_array_equal(train.get_xdata(), steps)
    np.testing.assert_array_equal(train.get_ydata(), bound)
    np.testing.assert_array_equal(validation.get_xydata(), [[0, -900], [50, -21], [100, -11]])
    assert (train.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    assert train.get_color() == validation.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["AEVB", "AEVB, validation"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "bound on log p(x), nats per datum")
    low, high = axes.get_ylim()  # the values after the first tenth
    settled = [*bound[steps >= 10], -21, -11]
    assert low == pytest.approx(min(settled) - 0.05 * (max(settled) - min(settled)))
    assert high == pytest.approx(max(settled) + 0.05 * (max(settled) - min(settled)))


@pytest.mark.parametrize(("x", "factor"), [("samples", 10), ("seconds", 0.5)])
def test_the_horizontal_axis_may_be_data_or_seconds(x: str, factor: float) -> None:
    axes = plot_curves(history(), x=x)  # type: ignore[arg-type]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), factor * np.arange(1, 101))
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), [0, 50 * factor, 100 * factor])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["validation"]


def test_several_histories_have_colours_of_their_own() -> None:
    axes = plot_curves([history(validation=False), history(2.0, validation=False)])
    assert [line.get_color() for line in axes.lines] == [ink(0).colour, ink(1).colour]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "1"]


def test_bounds_that_are_not_finite_are_left_out() -> None:
    broken = history()
    broken.bound[:] = np.nan
    (line,) = plot_curves(broken).lines
    assert line.get_linestyle() == "--"
    broken = history(validation=False)
    broken.bound[:] = np.nan
    with pytest.raises(InputError, match=r"no history has a finite bound; .* validation=x"):
        plot_curves(broken)


@pytest.mark.parametrize(
    ("given", "message"),
    [([], "got none"), ([3], "got `int`"), ({}, "got none")],
)
def test_what_is_no_history_is_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot_curves(given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match='`x` is "step", "samples" or "seconds", got `\'epochs\'`'):
        plot_curves(history(), x="epochs")  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_words_and_ground_are_those_of_the_current_style(style: str) -> None:
    with plt.style.context(style):
        ground, word = mpl.rcParams["figure.facecolor"], mpl.rcParams["axes.labelcolor"]
        figures = [
            plot_latent_map(latent_map(VAE, X, labels=["a", "b"] * 15)).figure,
            plot_traversal(traversal(2, 2)),
            plot_curves(history()).figure,
        ]
        for figure in figures:
            assert to_rgb(figure.get_facecolor()) == to_rgb(ground)
            assert to_rgb(figure.axes[0].xaxis.label.get_color()) == to_rgb(word)
            figure.savefig("/dev/null", format="png")
