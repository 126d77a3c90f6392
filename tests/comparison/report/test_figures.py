"""The figures: what they draw where, and that they take awkward input."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from report_page import contains, pixels

from pyro_vae.comparison.report import check_figures as posterior_figures
from pyro_vae.comparison.report import figures, images
from pyro_vae.comparison.report import style as drawing
from pyro_vae.evaluation import Calibration, Estimate, GradientNoise, InferenceGap
from pyro_vae.evaluation.intervals import Interval


def curves_of(ends):
    """Learning curves that rise by one nat to these ends."""
    rows = [
        {"algorithm": label, "seed": 0, "part": "train", "samples": n, "seconds": n / 10, "bound": end - 1 + n / 50}
        for label, end in ends.items()
        for n in range(1, 51)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are made, before they are files."""
    made = []
    for module in (figures, posterior_figures):
        monkeypatch.setattr(module, "png", lambda figure: made.append(figure) or drawing.png(figure))
    return made


@pytest.mark.parametrize("axis", ["samples", "seconds"])
def test_learning_curves_have_every_algorithm_in_its_colour(axis):
    labels = [f"algorithm {index}" for index in range(10)]
    image = pixels(figures.learning_curves(curves_of({label: -float(i) for i, label in enumerate(labels)}), axis))
    assert all(contains(image, colour) for colour in drawing.colours(labels).values())


def test_a_band_spans_the_seeds_and_ends_with_the_first_that_stops():
    long = pd.DataFrame({"seed": 0, "samples": [10, 20, 30], "seconds": [1.0, 2.0, 3.0], "bound": [-9.0, -5.0, -4.0]})
    short = pd.DataFrame({"seed": 1, "samples": [10, 20], "seconds": [3.0, 4.0], "bound": [-7.0, -5.0]})
    x, mean, low, high = figures._band(pd.concat([long, short]), "seconds")
    np.testing.assert_allclose((x, mean, low, high), ([2.0, 3.0], [-8.0, -5.0], [-9.0, -5.0], [-7.0, -5.0]))
    assert figures._band(long.assign(bound=math.nan), "samples") is None


def test_image_grid_maps_the_limits_to_black_and_white():
    levels = np.stack([np.full((4, 4), level) for level in (-3.0, 0.0, 5.0, 10.0, 99.0)])
    image = pixels(images.image_grid(levels, columns=3, limits=(0.0, 10.0)))
    height, width = image.shape[0] // 2, image.shape[1] // 3
    levels = [
        image[r * height + height // 2, c * width + width // 2] for r, c in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    ]
    np.testing.assert_allclose([level[0] for level in levels], [0, 0, 0.5, 1, 1], atol=0.01)
    assert image[height + height // 2, 2 * width + width // 2][3] == 0  # an empty place


def test_reconstructions_lie_under_the_data():
    image = pixels(images.reconstructions(np.zeros((3, 4, 4)), np.ones((3, 4, 4))))
    assert image[10, 10, 0] == 0
    assert image[-10, -10, 0] == 1


def test_latent_manifold_rises_with_the_second_dimension():
    grid = np.zeros((2, 3, 5, 5))
    grid[0] = 1.0  # the least z₂
    image = pixels(images.latent_manifold(grid, [-1.0, 0.0, 1.0], [-1.0, 1.0]))
    inside = image[:-115, 200:-30, 0]
    assert inside[30].mean() < 0.1 < 0.9 < inside[-30].mean()


def test_marginals_are_drawn_in_each_colour():
    rng = np.random.default_rng(0)
    names = ["a", "b"]
    histograms = pixels(figures.marginals(rng.random((9, 2)), {name: rng.random((50, 2)) for name in names}))
    assert all(contains(histograms, colour) for colour in drawing.colours(names).values())


def test_of_many_columns_the_first_twelve_are_drawn(drawn):
    figures.marginals(np.ones((9, 14)), {})
    assert len(drawn[0].axes) == 12


def test_kl_bars_have_a_panel_for_each_algorithm():
    one, two = (pixels(figures.kl_bars(dict.fromkeys(range(n), np.ones((2, 100))))) for n in (2, 6))
    assert two.shape[0] > 1.5 * one.shape[0]
    assert contains(one, drawing.BLUE)


def test_kl_bars_of_layers_stay_in_their_order_under_their_names(drawn):
    figures.kl_bars({"a": [[1.0, 3.0], [2.0, 3.0]]}, ["z1", "z2"])
    (axes,) = drawn[0].axes
    assert [bar.get_height() for bar in axes.patches] == [1.5, 3.0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["z1", "z2"]


def test_figures_take_awkward_input():
    same = np.ones((5, 1))
    drawn = np.full((5, 1), math.nan)
    assert figures.marginals(same, {"$\\bad": drawn}, ["列 $\\bad{" * 9]).startswith(b"\x89PNG")
    assert figures.kl_bars({"a": [0.0]}).startswith(b"\x89PNG")
    assert images.image_grid(np.zeros((1, 3000, 2000))).startswith(b"\x89PNG")


def test_a_curve_far_below_leaves_the_others_their_axis(drawn):
    figures.learning_curves(curves_of({"a": -24.0, "b": -25.0, "far": -160.0, "silent": math.nan}))
    (axes,) = drawn[0].axes
    assert -27 < axes.get_ylim()[0] < -25
    assert [text.get_text() for text in axes.texts] == ["a", "b", "far (−160)"]


def test_names_of_curves_do_not_overlap():
    for wanted in ([0.5] * 19, [0.0, 0.01, 0.02, 1.0, 1.0], [math.inf, -3.0], []):
        places = drawing.spread(wanted, 0.05)
        assert ((places >= 0) & (places <= 1)).all()
        assert (np.diff(np.sort(places)) >= 0.05 - 1e-9).all()
    np.testing.assert_allclose(drawing.spread([0.9, 0.1], 0.05), [0.9, 0.1])
    assert np.isfinite(drawing.spread([0.5] * 40, 0.05)).all()


def test_nineteen_algorithms_are_told_apart():
    inks = drawing.inks([str(index) for index in range(19)])
    assert len(set(inks.values())) == 19


def gap(approximation, amortization, error=0.1):
    parts = {"approximation": approximation, "amortization": amortization, "total": approximation + amortization}
    estimates = {name: Estimate(value, error / 2, error, torch.zeros(3)) for name, value in parts.items()}
    return InferenceGap(*(Estimate(0.0, 0.0, 0.0, torch.zeros(3)),) * 3, **estimates)


def test_gaps_are_stacked_and_negative_ones_lie_left_of_zero(drawn):
    gaps = {"a": gap(0.5, 1.0), "b": gap(-0.2, 0.7), "c": gap(-0.1, -0.3), "$d$": gap(math.nan, math.inf, math.nan)}
    assert posterior_figures.gap_bars(gaps).startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches[:6]]
    np.testing.assert_allclose(bars, [(0, 0.5), (0.5, 1.5), (0, -0.2), (0, 0.7), (0, -0.1), (-0.1, -0.4)], atol=1e-12)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(gaps)


def calibration(ecdf):
    """Of so many dimensions, within a band that is 0.1 wide on either side."""
    points = torch.arange(1, 10).double() / 10
    return Calibration(torch.zeros(5, len(ecdf)), 9, points, points + ecdf, points - 0.1, points + 0.1, 0.95)


def test_calibration_lines_are_ecdf_less_uniform_and_red_outside_the_band(drawn):
    off = torch.tensor([[0.05], [0.15]]).double().expand(2, 9)
    posterior_figures.calibration_panels({"a": calibration(off), "b": calibration(0 * off)})
    a, b = drawn[0].axes
    assert (a.get_title(), b.get_title()) == ("a: 1 of 2 leaves the band", "b: none of 2 leave the band")
    inside, outside = a.lines[:2]
    assert (inside.get_color(), outside.get_color()) == (drawing.BLUE, drawing.RED)
    np.testing.assert_allclose(outside.get_ydata(), [0, *[0.15] * 9, 0], atol=1e-12)
    np.testing.assert_allclose(outside.get_xdata(), np.arange(11) / 10)


def test_signal_to_noise_without_noise_or_signal_is_an_arrow_at_the_edge(drawn):
    def noise(mean, half=0.1):
        return GradientNoise(Interval(1.0, 0.1, 50), Interval(mean, half, 50), 3)

    gradients = {"a": {"theta": noise(1.0), "phi": noise(0.01, 0.2)}, "b": {"theta": noise(1e150, math.nan)}}
    gradients["c"] = {"phi": noise(0.0, 0.0)}
    posterior_figures.signal_to_noise_dots(gradients)
    (axes,) = drawn[0].axes
    left, right = axes.get_xlim()
    assert 0 < left < 0.01
    assert 1.1 < right < 2.0
    edges = {line.get_marker(): line.get_xdata()[0] for line in axes.lines if line.get_marker() in "<>"}
    assert edges == {">": right, "<": left}
    assert posterior_figures.signal_to_noise_dots({"c": gradients["c"]}).startswith(b"\x89PNG")


def test_pareto_bars_count_every_finite_datum(drawn):
    k = {"a": [-9.0, 0.1, 0.69, 0.7, 0.71, 9.0, math.nan, -math.inf], "b": [-math.inf, -math.inf]}
    posterior_figures.pareto_panels(k, 0.7)
    a, b = drawn[0].axes
    assert a.get_title() == "a: 2 of 6 above 0.7"
    bars = [(bar.get_x(), bar.get_height(), bar.get_facecolor()) for bar in a.patches]
    assert sum(height for _, height, _ in bars) == 6
    assert sum(height for place, height, _ in bars if place > 0.69) == 3
    assert len({colour for *_, colour in bars}) == 2
    assert sum(bar.get_height() for bar in b.patches) == 0


def test_panels_share_their_axes_and_hold_every_title():
    for n in (1, 4, 5, 19):
        figure, axes = drawing.panels([f"$\\bad {index}" for index in range(n)], 1.0)
        assert isinstance(figure, Figure)
        assert len(axes) == n
