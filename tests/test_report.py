"""The report: its tables say what the comparison says, its page needs nothing beside itself."""

import dataclasses
import io
import math
import random
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from pyro_vae import Conditional, Fixed
from pyro_vae.comparison import Comparison, compare
from pyro_vae.datasets import load
from pyro_vae.experiment import Experiment
from pyro_vae.report import difference_table, figures, page, summary_table, write_report
from pyro_vae.run_folder import curves

BINARY = torch.distributions.constraints.boolean
SMALL = {
    "networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}},
    "training": {"epochs": 1, "batch_size": 20},
    "evaluation": {"num_samples": 50},
    "device": "cpu",
    "seeds": 2,
}


def small(loaded, **changes):
    experiment = Experiment.parse({**SMALL, **changes})
    return compare(experiment, loaded, command="pyro-vae compare small.yaml")


def first_rows(data):
    return dataclasses.replace(data, train=data.train[:60], valid=data.valid[:20], test=data.test[:20])


@pytest.fixture(scope="module")
def digits():
    return small(first_rows(load("digits", support=BINARY)), latent=3)


@pytest.fixture(scope="module")
def plane():
    return small(first_rows(load("digits", support=BINARY)), latent=2, inference=["aevb", "wake-sleep"], seeds=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "table.csv"
    rows = np.random.default_rng(0).normal(100.0, 5.0, (80, 3))
    rows[:, 2] = rows[:, 2].round() > 100
    pd.DataFrame(rows, columns=["<script>alert(1)</script>", "price $x_1$ in $", "flag"]).to_csv(path, index=False)
    likelihood = {"family": "Normal", "scale": "learned"}
    return small(load(path), data=str(path), latent=3, likelihood=likelihood, inference=["aevb"], seeds=2)


@pytest.fixture(scope="module")
def cross_entropy():
    data = first_rows(load("digits", support=BINARY, binarisation="none"))
    return small(
        data, data={"name": "digits", "binarisation": "none"}, latent=3, inference=["aevb", "analytic-kl"], seeds=1
    )


def cells(table):
    return list(zip(*(map(str, column.cells) for column in table.columns), strict=True))


def headers(table):
    return [str(column.header) for column in table.columns]


def printed(table):
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


class Page(HTMLParser):
    """What a browser would see: sections, text, and every attribute that may load something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.sections, self.images, self.loads, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        if tag == "section":
            self.sections.append(attrs["id"])
        if tag == "img":
            self.images.append(attrs)
        if tag == "th":
            assert attrs["scope"] in ("col", "row")
        self.loads += [value for name, value in attrs.items() if name in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(comparison, folder):
    path = folder / "report.html"
    write_report(comparison, path)
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert not parsed.open
    assert all(value.startswith("data:image/png;base64,") for value in parsed.loads)
    for word in ("http:", "https:", "url(", "@import", "<script", "<link", "<iframe"):
        assert word not in text
    assert all(image["alt"] for image in parsed.images)
    assert len(text) < 3_000_000
    return text, parsed


def test_summary_table_holds_the_means_and_intervals_of_the_comparison(digits):
    rows = cells(summary_table(digits))
    assert [row[0] for row in rows] == ["aevb", "analytic-kl", "wake-sleep"]
    for label, *row in rows:
        summary = digits.summary(label)
        for cell, metric in zip(row, ("elbo", "log_marginal", "active_units", "seconds_per_epoch"), strict=True):
            mean, half = cell.removesuffix(" of 3").split(" ± ")
            digit = 0.5 * 10.0 ** -len(mean.partition(".")[2]) * 1.0001
            assert float(mean) == pytest.approx(summary[metric].mean, abs=digit)
            assert float(half) == pytest.approx(summary[metric].half_width, abs=digit)
        assert row[2].endswith(" of 3")


def test_difference_table_is_paired_against_the_first(digits):
    rows = cells(difference_table(digits))
    assert [row[0] for row in rows] == ["analytic-kl", "wake-sleep"]
    for label, elbo, elbo_zero, marginal, marginal_zero in rows:
        expected = digits.difference(label, "aevb")
        for cell, zero, metric in ((elbo, elbo_zero, "elbo"), (marginal, marginal_zero, "log_marginal")):
            assert float(cell.split(" ± ")[0]) == pytest.approx(expected[metric].mean, abs=0.006)
            assert float(cell.split(" ± ")[1]) == pytest.approx(expected[metric].half_width, abs=0.006)
            assert zero == ("yes" if 0.0 in expected[metric] else "no")


def test_caption_names_units_seeds_data_and_samples(digits):
    table = summary_table(digits)
    for phrase in ("Nats per datum", "2 seeds", "95 % Student-t", "digits", "dynamic binarisation"):
        assert phrase in str(table.caption)
    assert headers(table)[1:3] == ["test ELBO", "log p(x), 50 importance samples"]


def test_caption_warns_of_pareto_k(digits):
    run = digits.runs[0]
    k = torch.full((20,), 0.1, dtype=torch.float64)

    def caption(k):
        estimate = dataclasses.replace(run.log_marginal, diagnostics={**run.log_marginal.diagnostics, "pareto_k": k})
        return str(
            summary_table(dataclasses.replace(digits, runs=[dataclasses.replace(run, log_marginal=estimate)])).caption
        )

    digits = dataclasses.replace(
        digits, experiment=digits.experiment.model_copy(update={"inference": digits.experiment.inference[:1]})
    )
    assert "k-hat" not in caption(k)
    k[:3] = torch.tensor([0.71, 2.0, math.inf])
    assert "Pareto k-hat > 0.7 for 3 (aevb) of 20 test data" in caption(k)
    assert "unknown for 20 of 20" in caption(torch.full((20,), math.nan))


def test_one_seed_has_no_interval(plane):
    for row in cells(summary_table(plane)):
        assert not any("±" in cell for cell in row)
        assert row[1] == f"{plane.summary(row[0])['elbo'].mean:.2f}"
        assert row[3].endswith(" of 2")
    (row,) = cells(difference_table(plane))
    assert (row[2], row[4]) == ("-", "-")
    assert "one seed, so without intervals" in str(summary_table(plane).caption)


def test_what_there_is_not_is_a_dash(digits):
    runs = [dataclasses.replace(run, elbo=None) if run.algorithm == "aevb" else run for run in digits.runs]
    changed = dataclasses.replace(digits, runs=runs)
    assert [row[1] == "-" for row in cells(summary_table(changed))] == [True, False, False]
    assert all(row[1:3] == ("-", "-") for row in cells(difference_table(changed)))


def test_a_cross_entropy_is_called_so(cross_entropy, tmp_path):
    table = summary_table(cross_entropy)
    assert headers(table)[1] == "test cross-entropy bound (not a log-likelihood)"
    assert all(row[2] == "-" for row in cells(table))
    assert all(row[3:5] == ("-", "-") for row in cells(difference_table(cross_entropy)))
    assert "cross-entropy bound (not a log-likelihood)" in read(cross_entropy, tmp_path)[1].text


def test_tables_fit_a_hundred_columns_with_long_labels(digits):
    runs = [dataclasses.replace(run, algorithm=f"{run.algorithm}-num_particles=5") for run in digits.runs]
    specs = [spec.model_copy(update={"arguments": {"num_particles": 5}}) for spec in digits.experiment.inference]
    changed = Comparison(digits.experiment.model_copy(update={"inference": specs}), digits.data, runs, {})
    for table in (summary_table(changed), difference_table(changed)):
        text = printed(table)
        assert max(map(len, text.splitlines())) <= 100
        assert "…" not in text
        for row in cells(table):
            assert all(cell in text for cell in row[1:])


def test_the_page_of_images_has_every_part(digits, tmp_path):
    _, parsed = read(digits, tmp_path)
    wanted = ["results", "curves", "samples", "reconstructions", "latent", "seeds", "experiment", "provenance"]
    assert parsed.sections == wanted
    assert all(label in parsed.text for label in digits.labels)
    assert len(parsed.images) == 2 + (2 + 2 * 3) + 3 + 1
    for phrase in (
        "aevb, analytic-kl and wake-sleep compared as inference algorithms",
        "3 latent dimensions (Normal prior, Bernoulli likelihood): trained for one epoch on the 60 training data",
        "num_samples: 50",
        "pyro-vae compare small.yaml",
        digits.environment["versions"]["torch"],
        digits.data.source["sklearn.datasets.load_digits"],
        "0.8 / 0.1 / 0.1",
    ):
        assert phrase in parsed.text
    for row in cells(summary_table(digits)):
        assert all(cell in parsed.text for cell in row)
    estimate = digits.runs[0].log_marginal
    assert f"{estimate.value:.3f}" in parsed.text
    assert f"{estimate.sampling_error:.2g}" in parsed.text


def test_two_latent_dimensions_are_shown_as_a_manifold(plane, tmp_path):
    _, parsed = read(plane, tmp_path)
    assert "Latent manifold" in parsed.text
    assert "unit Gaussian" in parsed.text
    first, second, gaussian = page._latent_grid(plane.runs[0].vae)
    assert gaussian
    torch.testing.assert_close(torch.special.ndtr(first), (torch.arange(15) + 0.5) / 15)
    assert torch.equal(first, second)


def test_the_grid_of_another_prior_follows_its_quantiles(make_vae):
    vae = make_vae(prior=Conditional(dist.Normal, (2,), loc=Fixed([5.0, -1.0]), scale=Fixed(2.0)))
    first, second, gaussian = page._latent_grid(vae)
    assert not gaussian
    assert first[7] == pytest.approx(5.0, abs=0.1)  # five standard errors of a median of 20000
    assert second[7] == pytest.approx(-1.0, abs=0.1)
    simplex = make_vae(
        prior=Conditional(dist.Dirichlet, (2,), concentration=Fixed([1.0, 1.0])),
        posterior=Conditional(dist.Dirichlet, (2,), given=torch.nn.Linear(6, 5)),
    )
    assert page._latent_grid(simplex) is None


def test_the_page_of_a_table_escapes_names_and_compares_columns_in_own_units(table, tmp_path):
    text, parsed = read(table, tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    wanted = ["results", "curves", "marginals", "latent", "seeds", "experiment", "provenance"]
    assert parsed.sections == wanted
    assert "<script>alert(1)</script>" in parsed.text
    assert "in the data's own units" in parsed.text
    assert len(parsed.images) == 2 + 1 + 1


def test_without_a_kl_per_dimension_the_page_says_so(digits, tmp_path):
    changed = dataclasses.replace(digits, runs=[dataclasses.replace(run, kl=None) for run in digits.runs])
    assert "does not factorise" in read(changed, tmp_path)[1].text


def test_the_report_leaves_random_states_and_modes_alone(digits, tmp_path):
    for run in digits.runs:
        run.vae.train()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    write_report(digits, tmp_path / "a.html")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002
    assert all(run.vae.training for run in digits.runs)
    write_report(digits, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def pixels(png):
    return imread(io.BytesIO(png))


def contains(image, colour):
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(image[..., :3] - wanted).max(-1) < 0.01).any())


@pytest.mark.parametrize("axis", ["samples", "seconds"])
def test_learning_curves_have_every_algorithm_in_its_colour(digits, axis):
    image = pixels(figures.learning_curves(curves(digits), axis))
    assert all(contains(image, colour) for colour in figures.colours(digits.labels).values())


def test_a_band_spans_the_seeds_and_ends_with_the_first_that_stops():
    long = pd.DataFrame({"seed": 0, "samples": [10, 20, 30], "seconds": [1.0, 2.0, 3.0], "bound": [-9.0, -5.0, -4.0]})
    short = pd.DataFrame({"seed": 1, "samples": [10, 20], "seconds": [3.0, 4.0], "bound": [-7.0, -5.0]})
    x, mean, low, high = figures._band(pd.concat([long, short]), "seconds")
    np.testing.assert_allclose((x, mean, low, high), ([2.0, 3.0], [-8.0, -5.0], [-9.0, -5.0], [-7.0, -5.0]))
    assert figures._band(long.assign(bound=math.nan), "samples") is None


def test_image_grid_maps_the_limits_to_black_and_white():
    images = np.stack([np.full((4, 4), level) for level in (-3.0, 0.0, 5.0, 10.0, 99.0)])
    image = pixels(figures.image_grid(images, columns=3, limits=(0.0, 10.0)))
    height, width = image.shape[0] // 2, image.shape[1] // 3
    levels = [
        image[r * height + height // 2, c * width + width // 2] for r, c in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    ]
    np.testing.assert_allclose([level[0] for level in levels], [0, 0, 0.5, 1, 1], atol=0.01)
    assert image[height + height // 2, 2 * width + width // 2][3] == 0  # an empty place


def test_reconstructions_lie_under_the_data():
    image = pixels(figures.reconstructions(np.zeros((3, 4, 4)), np.ones((3, 4, 4))))
    assert image[10, 10, 0] == 0
    assert image[-10, -10, 0] == 1


def test_latent_manifold_rises_with_the_second_dimension():
    images = np.zeros((2, 3, 5, 5))
    images[0] = 1.0  # the least z₂
    image = pixels(figures.latent_manifold(images, [-1.0, 0.0, 1.0], [-1.0, 1.0]))
    inside = image[:-115, 200:-30, 0]
    assert inside[30].mean() < 0.1 < 0.9 < inside[-30].mean()


def test_kl_bars_and_marginals_are_drawn_in_each_colour():
    rng = np.random.default_rng(0)
    names = ["a", "b"]
    bars = pixels(figures.kl_bars({name: rng.random((2, 100)) for name in names}))
    histograms = pixels(figures.marginals(rng.random((9, 14)), {name: rng.random((50, 14)) for name in names}))
    for image in (bars, histograms):
        assert all(contains(image, colour) for colour in figures.colours(names).values())


def test_figures_take_awkward_input():
    same = np.ones((5, 1))
    drawn = np.full((5, 1), math.nan)
    assert figures.marginals(same, {"$\\bad": drawn}, ["列 $\\bad{" * 9]).startswith(b"\x89PNG")
    assert figures.kl_bars({"a": [0.0]}).startswith(b"\x89PNG")
    assert figures.image_grid(np.zeros((1, 3000, 2000))).startswith(b"\x89PNG")
