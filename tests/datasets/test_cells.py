"""Advice on cells that are no numbers keeps their values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from torch.distributions import constraints

from pyro_vae.datasets import load
from pyro_vae.datasets.cells import not_numbers
from pyro_vae.datasets.support import said
from pyro_vae.errors import InputError, shown
from pyro_vae.experiment import Experiment


@pytest.mark.parametrize(
    ("words", "numbers", "advice"),
    [
        (["1,070", "1,457", "12,345,678.5"], 3, '^`thousands: ","` .* reads `1,070` as 1070$'),
        (["1,070", "2,123"], 0, '`thousands: ","` .* as 1070; `decimal: ","` reads it as 1.07: choose the one'),
        (["1,070", "12,345,678"], 0, '^`thousands: ","` .* as 1070$'),
        (["0,917", "1,070"], 0, '^`decimal: ","` .* reads `0,917` as 0.917$'),
        (["1,5", "2,25"], 0, '^`decimal: ","` .* reads `1,5` as 1.5$'),
        (["1,0705", "2,123"], 0, '^`decimal: ","` .* as 1.0705$'),
        (["1.070,5"], 0, '^`decimal: ",", thousands: "."` .* as 1070.5$'),
        (["1 070", "12\u00a0345.5"], 3, '^`thousands: " "` .* as 1070$'),
        (["1 070,5"], 0, '^`decimal: ",", thousands: " "` .* as 1070.5$'),
        (["1'070", "2’345"], 3, """^`thousands: "'"` .* as 1070$"""),
        (["€330.63", "€1,070.00"], 0, 'leave out the sign `€` .*; `thousands: ","` .* reads `1,070.00` as 1070$'),
        (["53%", "7.5%"], 0, r"^leave out the sign `%` and write the number alone \(in pandas, .*'%', ''"),
        (["12,50 €"], 0, 'leave out the sign `€`.*; `decimal: ","` .* reads `12,50` as 12.5$'),
        (["$ 5", "-$7"], 9, r"leave out the sign `\$`"),
        (["12.50-", "1.5-"], 9, "^write a negative number with a `-` in front, `-12.50` for `12.50-`$"),
        (["(1,070)", "1,457"], 9, '`-1,070` for `\\(1,070\\)`; `thousands: ","` .* reads `-1,070` as -1070$'),
        (["\u22125"], 9, "`-5` for `\u22125`"),
        (["(€5.00)"], 9, r"leave out the sign `€` .*`-5.00` for `\(5.00\)`"),
        (["3 kg"], 9, "write the number alone, without a unit"),
    ],
)
def test_advice_on_what_is_no_number(words, numbers, advice):
    assert pd.Series([not_numbers(words, numbers)]).str.contains(advice, regex=True).all()


def test_words_are_no_numbers():
    assert not_numbers(["north", "south"], 0) is None
    assert not_numbers(["5% off", "north"], 1) is None


def column(tmp_path, cells, name="price"):
    path = tmp_path / "table.csv"
    pd.DataFrame({name: cells, "b": np.arange(len(cells)) % 7}).to_csv(path, index=False)
    return path


def test_thousands_are_not_taken_for_decimals(tmp_path):
    """With decimal=',' the cell 1,070 would be 1.07."""
    path = column(tmp_path, ["1,070", "917", "1,457"] * 10)
    with pytest.raises(InputError, match=r"found `1,070` in data row 1 .*: `thousands: \",\"` in the data") as error:
        load(path)
    assert "decimal" not in str(error.value)


def test_a_semicolon_between_cells_and_commas_between_thousands(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a;b\n" + "1,070;2\n" * 5)
    with pytest.raises(InputError, match=r"read_csv\(path, sep=';', thousands=','\)"):
        load(path)
    path.write_text("a;b\n" + "1,07;2\n1,070;3\n" * 5)
    with pytest.raises(InputError, match=r"read_csv\(path, sep=';', decimal=','\)"):
        load(path)


def test_auto_names_the_sign_and_no_levels(tmp_path):
    path = column(tmp_path, [f"€{i}.63" for i in range(300)])
    with pytest.raises(InputError, match=r"column `price` holds `€.*leave out the sign `€`"):
        Experiment.parse({"data": str(path), "likelihood": {"mixed": "auto"}}).resolved()


def test_an_identifier_is_not_offered_as_400_levels(tmp_path):
    path = column(tmp_path, [f"C{i:04d}" for i in range(400)], "customer_id")
    with pytest.raises(InputError, match=r"holds 400 different words.*drop the column if it names rows") as error:
        Experiment.parse({"data": str(path), "likelihood": {"mixed": "auto"}}).resolved()
    assert "Categorical" not in str(error.value)


def test_empty_labels_are_not_made_a_level(tmp_path):
    path = column(tmp_path, ["a", "", "b"] * 10, "label")
    with pytest.raises(InputError, match=r"for `m2`, which takes unknown labels, pass rows of nan") as error:
        load(path, context=["label"])
    assert "level of their own" not in str(error.value)


def test_a_sparse_matrix_is_named(tmp_path):
    arrays = {"indices": [0], "indptr": [0, 1], "format": b"csr", "shape": [1, 3], "data": [2.0]}
    np.savez(tmp_path / "counts.npz", **arrays)
    with pytest.raises(InputError, match=r"holds a sparse matrix of scipy; .*load_npz\(path\).toarray\(\)"):
        load(tmp_path / "counts.npz")


def test_a_cell_is_named_with_the_digits_that_are_wrong(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("a\n" + "3\n61959.03\n" * 10)
    with pytest.raises(InputError, match=r"found `61959.03` in data row 2.*support, the whole numbers from 0;"):
        load(path, support=constraints.nonnegative_integer)


@pytest.mark.parametrize("value", [0.1, 2.0, 61959.03, 1e-30, 123456789.0, -0.5, float("inf"), float("nan")])
def test_a_number_is_shown_with_as_many_digits_as_it_needs(value):
    text = shown(value)
    assert float(text) == pytest.approx(value, rel=1e-7, nan_ok=True)
    assert float(shown(float(np.float32(value)))) == pytest.approx(value, rel=1e-6, nan_ok=True)
    assert len(shown(0.1)) == 3


def test_supports_are_said_in_words():
    assert said(constraints.independent(constraints.boolean, 1)) == "0 and 1"
    assert said(constraints.integer_interval(0, 4)) == "the whole numbers from 0 to 4"
    assert said(constraints.interval(-1.0, 1.0)) == "the numbers from -1 to 1"
    assert said(constraints.greater_than(3)).startswith("`GreaterThan")


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (
            {"training": {"lr": 0.1}},
            r"training.lr` is no key here; write `training: \{optimizer: \{Adam:",
        ),
        ({"encoder": {"mlp": [3]}}, "`encoder` is no key here; write `networks:"),
        ({"beta": 4}, "write `inference: {beta-vae: {beta: 4}}`"),
        ({"latent_dim": 4}, "write `latent: 8`"),
    ],
)
def test_a_key_that_stands_elsewhere_is_named_with_its_place(content, hint):
    with pytest.raises(InputError, match=hint):
        Experiment.parse(content)
