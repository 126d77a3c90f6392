"""Each example runs, and finds what its text says; here with fewer steps than by its own command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples import counts, deep_markov, factor_analysis, mixture_vae, semi_supervised, topics, two_modalities, vae

FOLDER = Path(__file__).parents[2] / "examples"


def test_every_example_is_told_in_the_readme_and_tested_here() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")}
    told = set(re.findall(r"`python -m examples\.(\w+)`", (FOLDER / "README.md").read_text()))
    here = set(re.findall(r"(\w+)\.main\(", Path(__file__).read_text()))
    assert names == told == here


def test_a_vae_in_plain_functions() -> None:
    found = vae.main(epochs=12)
    assert list(found) == ["aevb", "iwae", "rws"]
    assert all(-26.5 < estimate.value < -24 for estimate in found.values())  # about -27.3 if the latent is not used


def test_a_mixture_finds_the_digits() -> None:
    estimate, purity = mixture_vae.main(epochs=10)
    assert -26.5 < estimate.value < -22
    assert purity > 0.35


def test_a_few_labels_teach_a_classifier() -> None:
    assert semi_supervised.main(epochs=5) > 0.4


def test_states_explain_sequences_better_than_independent_keys() -> None:
    estimate, without = deep_markov.main(epochs=20, size=1000)
    assert estimate.value > without + 1


def test_one_half_predicts_the_other() -> None:
    found = two_modalities.main(epochs=15)
    assert found["lower given upper"] > found["lower"] + 0.1


def test_the_posterior_of_loadings_narrows_with_the_data() -> None:
    found = factor_analysis.main(steps=300)
    (few, true, wide), (many, truth, narrow) = found.values()
    assert narrow < 0.6 * wide
    assert truth - 0.2 < many < truth + 0.02
    assert true - 1.5 < few < true + 0.02


def test_topics_predict_words() -> None:
    assert topics.main(epochs=40, drawn=True) > 0.3


def test_the_library_size_is_apart_from_type_and_batch() -> None:
    found = counts.main(epochs=10)
    assert found["type of the nearest cell"] > 0.6
    assert found["batch of the nearest cell"] < 0.7
    assert found["correlation of library sizes"] > 0.9


@pytest.mark.slow
def test_at_full_length() -> None:
    """What the examples' README says of their own commands."""
    assert all(-25 < estimate.value < -23.5 for estimate in vae.main().values())
    assert mixture_vae.main()[1] > 0.6
    assert semi_supervised.main() > 0.65
    estimate, without = deep_markov.main()
    assert estimate.value > without + 15
    found = two_modalities.main()
    assert found["lower given upper"] > found["lower"] + 0.3
    assert counts.main()["type of the nearest cell"] > 0.9
