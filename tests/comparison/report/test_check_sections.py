"""The report of algorithms without a posterior, and its sections of posteriors and gradients."""

import dataclasses
import math

import pytest
import torch
from report_page import cells, headers, printed, read

from pyro_vae.comparison.checks import PosteriorChecks
from pyro_vae.comparison.report import difference_table, summary_table, wording
from pyro_vae.comparison.report.check_sections import check_sections
from pyro_vae.comparison.report.tables import seeds_text
from pyro_vae.evaluation.intervals import Interval


@pytest.fixture(scope="module")
def text_of(everything, tmp_path_factory):
    return read(everything, tmp_path_factory.mktemp("page"))[1]


def row_of(table, label):
    (row,) = [row for row in cells(table) if row[0] == label]
    return row


@pytest.mark.parametrize("label", ["mcem", "autoencoder"])
def test_an_annealed_log_p_is_named_in_its_row(everything, label):
    (run,) = everything.runs_of(label)
    assert run.elbo is None
    _, elbo, marginal, active, _ = row_of(summary_table(everything), label)
    assert (elbo, marginal, active) == ("-", f"{run.log_marginal.value:.2f} (AIS)", "-")
    assert "(AIS)" not in row_of(summary_table(everything), "iwae")[2]
    (row,) = [row for row in seeds_text(everything).rows if row[0] == label]
    assert row[5] == f"{run.log_marginal.value:.3f} (AIS)"
    assert row[8:11] == ("-", "-", "-")


def test_the_caption_says_of_how_many_data_and_how_well(everything):
    caption = str(summary_table(everything).caption)
    for phrase in (
        "(AIS): mcem and autoencoder train no posterior",
        "5 temperatures, 3 chains",
        "of the first 15 of 20 test data, too low by an estimated",
    ):
        assert phrase in caption
    assert headers(summary_table(everything))[2] == "log p(x), 50 importance samples"


def test_differences_from_an_annealed_row_are_of_the_common_data(everything):
    mine, base = (everything.runs_of(label)[0].log_marginal.pointwise for label in ("mcem", "aevb"))
    assert len(mine) == 15
    assert len(base) == 20
    cell = row_of(difference_table(everything), "mcem")[3]
    assert cell.removesuffix(" (k-hat)") == f"{float((mine - base[:15]).mean()):+.2f} (AIS)"
    assert "(AIS)" not in row_of(difference_table(everything), "stl")[3]
    assert "both of the same data" in str(difference_table(everything).caption)


def test_too_few_effective_chains_are_a_warning(everything):
    def caption(size):
        def changed(run):
            if run.algorithm != "mcem":
                return run
            about = {**run.log_marginal.diagnostics, "effective_sample_size": torch.tensor([size] * 2 + [3.0] * 13)}
            return dataclasses.replace(run, log_marginal=dataclasses.replace(run.log_marginal, diagnostics=about))

        kept = everything.only(*[label for label in everything.labels if label != "autoencoder"])
        return str(summary_table(dataclasses.replace(kept, runs=[changed(run) for run in kept.runs])).caption)

    assert "(AIS): mcem trains no posterior" in caption(2.5)
    assert "effective sample size" not in caption(2.5)
    assert "effective sample size below 2 of the 3 chains for 2 of 15 test data" in caption(1.5)


def test_remarks_are_footnotes_of_table_and_page(everything, text_of):
    first, second, third = everything.remarks
    assert first.startswith("mcem: took 5 updates of theta for each minibatch")
    assert second.startswith("beta-vae-beta=0.5: ended at a KL weight of 0.5")
    assert third.startswith("vb: ")
    for remark in (first, second, third):
        assert remark in str(summary_table(everything).caption)
        assert remark in text_of.text


def test_tables_of_all_algorithms_fit_a_hundred_columns(everything):
    for table in (summary_table(everything), difference_table(everything)):
        text = printed(table)
        assert max(map(len, text.splitlines())) <= 100
        assert all(cell in text for row in cells(table) for cell in row[1:])


def test_the_page_has_every_section_with_its_numbers_in_words(everything, text_of):
    first = [
        "verdict",
        "results",
        "curves",
        "samples",
        "reconstructions",
        "latent",
        "gap",
        "calibration",
        "weights",
        "gradients",
    ]
    assert text_of.sections == [*first, "seeds", "experiment", "provenance"]
    alts = [image["alt"] for image in text_of.images]
    checks = everything.checks
    total = checks.gaps["iwae"].total.value
    assert any(alt.startswith("Stacked bars") and f"= {total:.2f} (±" in alt for alt in alts)
    outside = int((~checks.calibrations["iwae"].uniform).sum())
    assert any(f"iwae: {outside or 'none'} of 3 leave" in alt and "ECDF" in alt for alt in alts)
    k = everything.runs_of("iwae")[0].log_marginal.diagnostics["pareto_k"]
    assert any(f"iwae: median {k.nanquantile(0.5):.2f}, {int((k > 0.7).sum())} of 20 above 0.7" in alt for alt in alts)
    ratio = wording.significant(checks.gradients["iwae"]["phi"].signal_to_noise)
    assert any(
        f"iwae θ {wording.significant(checks.gradients['iwae']['theta'].signal_to_noise)}, φ {ratio}" in alt
        for alt in alts
    )
    for phrase in ("the first 4 of 20 test data", "those of aevb trained under the first seed", "3 gradients of each"):
        assert phrase in text_of.text
    assert wording.significant(checks.gradients["mcem"]["theta"].variance) in text_of.text
    assert wording.with_errors(checks.gaps["rws"].amortization) in text_of.text


def test_untrained_posteriors_are_left_out_and_named(text_of):
    alts = " ".join(image["alt"] for image in text_of.images if "eyond" not in image["alt"])
    assert "reconstructions by mcem" not in alts
    assert "reconstructions by autoencoder" in alts
    for phrase in (
        "Left out: mcem, which trains no posterior.",
        "Left out: mcem and autoencoder, which train no posterior.",
        "Left out: mcem and autoencoder, without a trained posterior.",
        "mcem and autoencoder: log p(x) is by annealed importance sampling, without k-hat.",
        "mcem and autoencoder train by no bound.",
    ):
        assert phrase in text_of.text


def sections_of(comparison):
    return {section.name: section for section in check_sections(comparison)}


def test_what_was_not_checked_is_said(everything):
    sections = sections_of(dataclasses.replace(everything, checks=PosteriorChecks(0)))
    assert list(sections) == ["weights", "checks"]
    assert "Not computed (evaluation.posterior_checks is 0)" in sections["checks"].text


def test_a_gap_that_cannot_be_split_is_noted(everything):
    note = "aevb: needs a reparameterizable posterior"
    checks = dataclasses.replace(everything.checks, notes=[note], calibrations={})
    assert sections_of(dataclasses.replace(everything, checks=checks, runs=[]))["gap"].tables[0].notes == (note,)
    none = dataclasses.replace(checks, gaps={})
    assert sections_of(dataclasses.replace(everything, checks=none, runs=[]))["gap"].text.endswith(note)


def test_constant_and_unknown_k_are_counted_in_words(everything):
    def changed(run):
        if run.algorithm != "stl":
            return run
        k = torch.tensor([-math.inf] * 2 + [math.nan] * 3 + [0.1] * 14 + [9.0], dtype=torch.float64)
        about = {**run.log_marginal.diagnostics, "pareto_k": k}
        return dataclasses.replace(run, log_marginal=dataclasses.replace(run.log_marginal, diagnostics=about))

    runs = [changed(run) for run in everything.runs]
    text = sections_of(dataclasses.replace(everything, runs=runs, checks=PosteriorChecks(0)))["weights"].text
    assert "Not drawn: 2 (stl) with constant weights (k-hat −∞). Not drawn: 3 (stl) with an unknown k-hat." in text
    assert "The outermost bars contain values beyond them." in text


def test_k_may_be_unknown_throughout(everything):
    def changed(run):
        about = {**run.log_marginal.diagnostics, "pareto_k": torch.full((20,), math.nan)}
        return dataclasses.replace(run, log_marginal=dataclasses.replace(run.log_marginal, diagnostics=about))

    runs = [changed(run) for run in everything.runs_of("stl")]
    section = sections_of(dataclasses.replace(everything, runs=runs, checks=PosteriorChecks(0)))["weights"]
    assert section.pictures[0].alt.endswith("stl: unknown, 0 of 20 above 0.7")


def test_an_algorithm_without_a_posterior_alone(everything, tmp_path):
    alone = dataclasses.replace(
        everything.only("mcem"),
        checks=PosteriorChecks(4, "mcem", gradients={"mcem": everything.checks.gradients["mcem"]}),
    )
    assert headers(summary_table(alone))[2] == "log p(x)"
    text = read(alone, tmp_path)[1].text
    assert "no bound was recorded" not in text  # the figure says it
    assert "The KL of the latents is not shown: no posterior is trained." in text
    assert text.count("Not shown: no posterior was trained") == 3


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(30.26, 5.48, 50), "30.3 ± 5.5"),
        (Interval(0.01234, 0.00056, 50), "0.01234 ± 0.00056"),
        (Interval(1234567.0, 45678.0, 50), "(1.235 ± 0.046)×10⁶"),
        (Interval(-2.3e-15, 5.7e-16, 50), "(-2.30 ± 0.57)×10⁻¹⁵"),
        (Interval(123.4, 0.0, 50), "123"),
        (Interval(2.5, math.nan, 50), "2.50"),
        (Interval(1e7, math.nan, 50), "1.00×10⁷"),
        (Interval(3.0, 1e-30, 50), "3.000000 ± 0.000000"),
        (Interval(0.0, 0.0, 50), "0"),
        (Interval(math.nan, math.nan, 0), "-"),
        (Interval(math.inf, math.nan, 3), "inf"),
    ],
)
def test_numbers_of_any_magnitude(interval, text):
    assert wording.significant(interval) == text
