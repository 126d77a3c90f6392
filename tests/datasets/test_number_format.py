"""Numbers with other signs are read as they are meant, or refused."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch.distributions import constraints

from pyro_vae.datasets import describe, load, read_table
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.new_rows import read_context, read_rows
from pyro_vae.datasets.number_format import NumberFormat
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment


@pytest.mark.parametrize(
    ("signs", "cell", "number"),
    [
        ((".", ","), "1,070", 1070.0),
        ((".", ","), "-12,345,678.5", -12345678.5),
        ((".", ","), "917", 917.0),
        ((".", ","), "1070.5", 1070.5),
        ((".", ","), "1.5e-3", 0.0015),
        ((".", ","), "1,07", None),
        ((".", ","), "1,0705", None),
        ((".", ","), "1070,123", None),
        ((".", ","), "0,917", None),
        ((",", None), "1,070", 1.07),
        ((",", None), ",5", 0.5),
        ((",", None), "1.5", None),
        ((",", "."), "1.070,50", 1070.5),
        ((",", "."), "1.07", None),
        ((",", "."), "1,5E3", 1500.0),
        ((".", " "), "1\u202f070", 1070.0),
        ((".", "'"), "1’070.25", 1070.25),
        ((".", ","), "", None),
        ((".", ","), ".", None),
        ((".", ","), "north", None),
        ((".", ","), "١,٠٧٠", None),
    ],
)
def test_a_cell_is_the_number_that_it_writes(signs, cell, number):
    assert NumberFormat(*signs).number(f" {cell} ") == number


@pytest.mark.parametrize(
    ("signs", "message"),
    [
        ({"thousands": "."}, "`thousands`: got '.', which is the decimal sign too; give `decimal` another sign"),
        ({"decimal": ",", "thousands": ","}, "which is the decimal sign too"),
        ({"decimal": ""}, "`decimal`: got ''; expected one character"),
        ({"thousands": ",,"}, "`thousands`: got ',,'; expected one character"),
        ({"thousands": "3"}, "no digit, letter or minus"),
        ({"decimal": "-"}, "no digit, letter or minus"),
        ({"decimal": " "}, "`decimal`: got ' '; expected a sign"),
    ],
)
def test_signs_are_checked(signs, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "no.csv", **signs)
    with pytest.raises(InputError, match=message):
        Experiment.parse({"data": {"name": "table.csv", **signs}})


PRICES = ["1,070", "917", "1,457.5"] * 10


@pytest.fixture
def table(tmp_path):
    def write(**columns):
        path = tmp_path / "table.csv"
        pd.DataFrame(columns).to_csv(path, index=False)
        return path

    return write


def test_a_table_with_thousands_is_read(table):
    path = table(price=PRICES, size=range(30), name=["a", "b, c", "d"] * 10)
    x, _ = read_table(path, columns=["size", "price"], thousands=",")
    assert x[:3].tolist() == [[0, 1070], [1, 917], [2, 1457.5]]
    price, size, name = describe(path, thousands=",")
    assert (price.high, price.levels, size.high, name.levels) == (1457.5, None, 29, ("a", "b, c", "d"))


def test_empty_cells_and_truth_values_are_read_as_without_the_keys(table):
    columns = {"price": [*PRICES[:29], None], "told": [True, False] * 15}
    path = table(**columns)
    data = load(path, support=constraints.real, scaling="none", missing="mask", thousands=",", split=(1, 0, 0))
    assert int(data.train.isnan().sum()) == 1
    assert sorted(data.train[:, 1].unique().tolist()) == [0.0, 1.0]
    with pytest.raises(InputError, match="found an empty or missing cell in data row 30"):
        load(path, thousands=",")


def test_a_number_in_another_format_is_refused_and_no_level(table):
    path = table(price=["1.070,50", "1.07"] * 15)
    for read in (read_table, describe):
        with pytest.raises(InputError, match=r"found `1.07` in data row 2 .*no number with `decimal: \",\", thousands"):
            read(path, decimal=",", thousands=".")
    with pytest.raises(InputError, match=r"which says how numbers are written in a `\.csv` file"):
        load("digits", decimal=",")


def test_new_rows_and_context_are_read_as_the_training_data(table):
    path = table(price=[price.replace(",", " ").replace(".", ",") for price in PRICES], age=["1,5", "2,25", "3"] * 10)
    signs = {"decimal": ",", "thousands": " "}
    data = load(path, scaling="none", context="age", split=(1, 0, 0), seed=0, **signs)
    assert sorted(data.train.unique().tolist()) == [917, 1070, 1457.5]
    units = DataTransform.from_record(data.units.record())
    assert units.numbers == NumberFormat(",", " ")
    batch = read_rows(path, units, torch.Generator())
    assert batch.x[:3, 0].tolist() == [1070, 917, 1457.5]
    torch.testing.assert_close(read_context(path, units), batch.context)
    # A row that is typed has decimal points, since commas separate its columns.
    torch.testing.assert_close(read_context("age=2.25", units)[0], batch.context[1])


def test_an_experiment_file_declares_the_signs(table):
    path = table(price=PRICES, size=range(30))
    spec = {"data": {"name": str(path), "thousands": ","}, "likelihood": {"mixed": "auto"}}
    experiment = Experiment.parse(spec).resolved()
    assert experiment.likelihood.columns["price"].family == "Normal"
    assert float(experiment.load_data().units.centre[0]) > 900
