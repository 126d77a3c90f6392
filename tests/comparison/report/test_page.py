"""The report: its tables say what the comparison says, its page needs nothing beside itself."""

import dataclasses
import math
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from report_page import cells, headers, printed, read
from small_comparisons import few_digits, small

from pyro_vae import Conditional, Fixed
from pyro_vae.comparison.candidate import Candidate
from pyro_vae.comparison.comparison import Comparison
from pyro_vae.comparison.report import difference_table, summary_table, write_report
from pyro_vae.comparison.report import samples as draws
from pyro_vae.comparison.report.tables import difference_text, summary_text
from pyro_vae.datasets import load
from pyro_vae.evaluation import LatentKL


@pytest.fixture(scope="module")
def plane():
    return small(few_digits(), latent=2, inference=["aevb", "wake-sleep"], seeds=1)


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
    data = few_digits(binarisation="none")
    return small(
        data, data={"name": "digits", "binarisation": "none"}, latent=3, inference=["aevb", "analytic-kl"], seeds=1
    )


def test_summary_table_holds_the_means_and_intervals_of_the_comparison(digits):
    rows = cells(summary_table(digits))
    assert [row[0] for row in rows] == ["aevb", "analytic-kl", "wake-sleep"]
    for label, *row in rows:
        summary = digits.summary(label)
        for cell, metric in zip(row[:2], ("elbo", "log_marginal"), strict=True):
            mean, half = cell.removesuffix(" (k-hat)").split(" ± ")
            digit = 0.5 * 10.0 ** -len(mean.partition(".")[2]) * 1.0001
            assert float(mean) == pytest.approx(summary[metric].mean, abs=digit)
            assert float(half) == pytest.approx(summary[metric].half_width, abs=digit)
        runs = digits.runs_of(label)
        assert row[2] == ", ".join(sorted({str(int(run.active.sum())) for run in runs})) + " of 3"
        low, high = map(float, row[3].split(" to ")) if " to " in row[3] else [float(row[3])] * 2
        seconds = [run.seconds_per_epoch for run in runs]
        assert (low, high) == pytest.approx((min(seconds), max(seconds)), rel=0.05)


def with_active(run, count):
    return replace(run, active=torch.arange(8) < count)


def test_active_units_are_never_more_than_there_are(digits):
    """A Student-t interval of 6, 6 and 8 of 8 is 6.7 ± 2.9."""
    (one, *_) = digits.runs_of("aevb")
    for counts, said in (((6, 8, 6), "6, 8 of 8"), ((8, 8, 8), "8 of 8"), ((0, 1, 0, 0), "0.2 (0.0 to 1.0) of 8")):
        runs = [replace(with_active(one, count), seed=seed) for seed, count in enumerate(counts)]
        experiment = digits.experiment.model_copy(update={"seeds": list(range(len(counts)))})
        text = summary_text(replace(digits, experiment=experiment, runs=runs).only("aevb"))
        assert text.rows[0][3] == said


@pytest.mark.parametrize(("share", "marked"), [(0.0, False), (0.04, False), (0.5, True)])
def test_a_difference_of_what_is_distrusted_does_not_speak_of_zero(digits, share, marked):
    """An interval that excludes 0 says nothing where importance sampling is off by an unknown amount."""
    runs = []
    for run in digits.runs:
        n = len(run.log_marginal.pointwise)
        k = torch.full((n,), 0.3)
        if run.algorithm == "wake-sleep":
            k[: round(share * n)] = 0.9
        estimate = replace(run.log_marginal, diagnostics={**run.log_marginal.diagnostics, "pareto_k": k})
        runs.append(replace(run, log_marginal=estimate))
    changed = replace(digits, runs=runs)
    rows = {row[0]: row for row in difference_text(changed).rows}
    assert rows["wake-sleep"][3].endswith(" (k-hat)") is marked
    assert (rows["wake-sleep"][4] == "unknown") is marked
    assert rows["analytic-kl"][4] in ("yes", "no")
    assert ("says nothing about 0" in difference_text(changed).caption) is marked
    marginals = {row[0]: row[2] for row in summary_text(changed).rows}
    assert marginals["wake-sleep"].endswith(" (k-hat)") is marked
    assert not marginals["aevb"].endswith(" (k-hat)")


def test_difference_table_is_paired_against_the_first(digits):
    rows = cells(difference_table(digits))
    assert [row[0] for row in rows] == ["analytic-kl", "wake-sleep"]
    for label, elbo, elbo_zero, marginal, marginal_zero in rows:
        expected = digits.difference(label, "aevb")
        for cell, zero, metric in ((elbo, elbo_zero, "elbo"), (marginal, marginal_zero, "log_marginal")):
            assert float(cell.split(" ± ")[0]) == pytest.approx(expected[metric].mean, abs=0.006)
            half, *mark = cell.split(" ± ")[1].split(" ")
            assert float(half) == pytest.approx(expected[metric].half_width, abs=0.006)
            trusted = metric == "elbo" or digits.trusts(label, "aevb")
            assert mark == ([] if trusted else ["(k-hat)"])
            assert zero == ("unknown" if not trusted else "yes" if 0.0 in expected[metric] else "no")


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

    digits = digits.only("aevb")
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
    experiment = digits.experiment.model_copy(update={"inference": specs})
    candidates = [Candidate(spec.label, experiment, digits.data, spec) for spec in specs]
    changed = Comparison(experiment, candidates, runs, {})
    for table in (summary_table(changed), difference_table(changed)):
        text = printed(table)
        assert max(map(len, text.splitlines())) <= 100
        assert "…" not in text
        for row in cells(table):
            assert all(cell in text for cell in row[1:])


@pytest.fixture(scope="module")
def page(digits, tmp_path_factory):
    """The text of the page of images, and what a browser sees."""
    return read(digits, tmp_path_factory.mktemp("page"))


def test_the_page_of_images_has_every_part(digits, page):
    _, parsed = page
    wanted = ["verdict", "results", "curves", "samples", "reconstructions", "latent", "weights", "checks"]
    wanted += ["seeds", "experiment", "provenance"]
    assert parsed.sections == wanted
    assert all(label in parsed.text for label in digits.labels)
    assert len(parsed.images) == 2 + (2 + 2 * 3) + 3 + 1 + 1
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
    first, second, gaussian = draws.latent_grid(plane.runs[0].vae)
    assert gaussian
    torch.testing.assert_close(torch.special.ndtr(first), (torch.arange(15) + 0.5) / 15)
    assert torch.equal(first, second)


def test_the_grid_of_another_prior_follows_its_quantiles(make_vae):
    vae = make_vae(prior=Conditional(dist.Normal, (2,), loc=Fixed([5.0, -1.0]), scale=Fixed(2.0)))
    first, second, gaussian = draws.latent_grid(vae)
    assert not gaussian
    assert first[7] == pytest.approx(5.0, abs=0.1)  # five standard errors of a median of 20000
    assert second[7] == pytest.approx(-1.0, abs=0.1)
    simplex = make_vae(
        prior=Conditional(dist.Dirichlet, (2,), concentration=Fixed([1.0, 1.0])),
        posterior=Conditional(dist.Dirichlet, (2,), given=torch.nn.Linear(6, 5)),
    )
    assert draws.latent_grid(simplex) is None


def test_the_page_of_a_table_escapes_names_and_compares_columns_in_own_units(table, tmp_path):
    text, parsed = read(table, tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    wanted = ["verdict", "results", "curves", "marginals", "latent", "weights", "checks"]
    wanted += ["seeds", "experiment", "provenance"]
    assert parsed.sections == wanted
    assert "<script>alert(1)</script>" in parsed.text
    assert "in the data's own units" in parsed.text
    assert len(parsed.images) == 2 + 1 + 1 + 1


def test_a_kl_of_z_as_a_whole_is_a_number_and_layers_are_named(digits, tmp_path):
    whole = LatentKL(("z",), torch.tensor([3.25]), (False,), torch.tensor([0.011]))
    changed = dataclasses.replace(digits, runs=[dataclasses.replace(run, kl=whole) for run in digits.runs])
    text = read(changed, tmp_path)[1].text
    assert "does not factorise" in text
    assert "3.25" in text
    assert "by Monte Carlo (standard error up to 0.011)" in text
    layers = LatentKL(("z1", "z2"), torch.tensor([1.0, 3.0]), (True, True), torch.zeros(2))
    changed = dataclasses.replace(digits, runs=[dataclasses.replace(run, kl=layers) for run in digits.runs])
    page, parsed = read(changed, tmp_path)
    assert "each layer (z1, z2)" in parsed.text
    assert "in closed form" in parsed.text
    assert "1.00, 3.00" in page  # in the layers' order: a layer is known by its name, not by its rank


def test_the_report_leaves_random_states_and_modes_alone(digits, page, tmp_path):
    for run in digits.runs:
        run.vae.train()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    write_report(digits, tmp_path / "a.html")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002
    assert all(run.vae.training for run in digits.runs)
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page[0]
