"""Data sets and files: what is read, how it is split, scaled and binarised, and what every error names."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import math
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Normal, constraints

from pyro_vae.datasets import (
    Data,
    DataTransform,
    catalogue,
    data_transform,
    files,
    large_arrays,
    load,
    names,
    read_table,
)
from pyro_vae.datasets.files import CatalogueFile, Download, fetch
from pyro_vae.errors import InputError

BINARY = constraints.independent(constraints.boolean, 1)
REAL = constraints.independent(constraints.real, 1)


def real_file(path: str) -> str:
    """Skip unless the data folder holds the file; return the folder."""
    folder = os.environ.get("PYRO_VAE_DATA")
    if not folder or not (Path(folder) / path).is_file():
        pytest.skip(f"`{path}` is not in PYRO_VAE_DATA")
    return folder


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    """Return an error's message, which must be one line with a name in backticks."""
    text = str(error.value)
    assert "\n" not in text
    assert text.count("`") >= 2
    return text


@pytest.fixture
def numbers(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """A table of 50 rows and three columns of different centres and scales."""
    frame = pd.DataFrame(
        np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 20.0, 0.01] + [0.0, 100.0, 1.6e6],
        columns=["a", "b", "time"],
    )
    frame.to_csv(tmp_path / "numbers.csv", index=False)
    return tmp_path / "numbers.csv", frame


# ---------------------------------------------------------------- the embedded set and the defaults


def test_names() -> None:
    assert names() == ("digits", "mnist", "static_mnist", "fashion_mnist", "frey", "20newsgroups")


def test_digits_is_split_without_overlap_and_keeps_labels_aligned() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    data = load("digits", scaling="none")
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    assert {part: len(x) for part, x in parts.items()} == {"train": 1437, "valid": 180, "test": 180}
    seen = sorted(
        (tuple(row), y)
        for part, x in parts.items()
        for row, y in zip(x.tolist(), data.labels[part].tolist(), strict=True)
    )
    assert seen == sorted((tuple(row), y) for row, y in zip(images.tolist(), labels.tolist(), strict=True))
    assert data.image_shape == (8, 8)
    assert data.columns is None
    assert data.train.dtype == torch.float32
    assert data.labels["test"].dtype == torch.int64


@pytest.mark.parametrize(
    ("support", "binarisation", "scaling", "greatest"),
    [
        (None, "none", "unit", 1.0),
        (constraints.real, "none", "unit", 1.0),
        (constraints.independent(constraints.real_vector, 0), "none", "unit", 1.0),
        (constraints.unit_interval, "none", "unit", 1.0),
        (constraints.interval(0, 1), "none", "unit", 1.0),
        (constraints.boolean, "dynamic", "unit", 1.0),
        (BINARY, "dynamic", "unit", 1.0),
        (constraints.integer_interval(0, 1), "dynamic", "unit", 1.0),
        (constraints.integer_interval(0, 16), "none", "none", 16.0),
        (constraints.independent(constraints.nonnegative_integer, 1), "none", "none", 16.0),
        (constraints.nonnegative, "none", "none", 16.0),
        (constraints.independent(constraints.one_hot, 1), "none", "none", 16.0),
        (constraints.dependent, "none", "none", 16.0),
    ],
)
def test_defaults_follow_the_support(
    support: constraints.Constraint | None, binarisation: str, scaling: str, greatest: float
) -> None:
    data = load("digits", support=support)
    assert (data.binarisation, data.scaling) == (binarisation, scaling)
    assert data.train.max() == greatest
    assert not data.cross_entropy


def test_dynamic_binarisation_keeps_train_grey_and_draws_minibatches_anew() -> None:
    data = load("digits", support=BINARY)
    assert data.valid is not None
    assert data.test is not None
    assert set(data.train.unique().tolist()) == {k / 16 for k in range(17)}
    assert set(data.valid.unique().tolist()) == set(data.test.unique().tolist()) == {0.0, 1.0}
    batch = data.train[:300]
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([data.transform(batch, generator) for _ in range(400)])
    assert draws.dtype == batch.dtype
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert bool((draws[:, batch == 0] == 0).all())
    assert bool((draws[:, batch == 1] == 1).all())
    # z-test over all draws: a sum of independent Bernoulli variables.
    mean, variance = 400 * batch.double().sum(), 400 * (batch * (1 - batch)).double().sum()
    assert abs(float((draws.double().sum() - mean) / variance.sqrt())) < 4.27
    again = data.transform(batch, torch.Generator().manual_seed(1))
    assert torch.equal(again, draws[0])


@pytest.mark.parametrize("binarisation", ["none", "static", "threshold"])
def test_transform_is_the_identity_without_dynamic_binarisation(binarisation: str) -> None:
    data = load("digits", binarisation=binarisation)
    batch = data.train[:5]
    assert data.transform(batch, torch.Generator()) is batch


def test_static_and_threshold_binarise_every_part() -> None:
    grey = load("digits")
    static, sharp = load("digits", binarisation="static"), load("digits", binarisation="threshold")
    assert torch.equal(sharp.train, (grey.train >= 0.5).float())
    assert grey.test is not None
    assert sharp.test is not None
    assert torch.equal(sharp.test, (grey.test >= 0.5).float())
    assert set(static.train.unique().tolist()) == {0.0, 1.0}
    variance = (grey.train * (1 - grey.train)).double().sum()
    assert abs(float((static.train.double().sum() - grey.train.double().sum()) / variance.sqrt())) < 4.27


def test_same_seed_same_data_and_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two, other = (load("digits", support=BINARY, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(one, part), getattr(two, part))
        assert not torch.equal(getattr(one, part), getattr(other, part))


def test_valid_and_test_do_not_depend_on_each_other() -> None:
    usual = load("digits", support=BINARY)
    small_test = load("digits", support=BINARY, split=(0.85, 0.1, 0.05))
    small_valid = load("digits", support=BINARY, split=(0.85, 0.05, 0.1))
    assert torch.equal(usual.valid, small_test.valid)  # type: ignore[arg-type]
    assert torch.equal(usual.test, small_valid.test)  # type: ignore[arg-type]


def test_bernoulli_on_grey_values_only_on_request_and_marked() -> None:
    data = load("digits", support=BINARY, binarisation="none")
    assert data.cross_entropy
    assert data.record()["cross_entropy"] is True
    assert data.log_jacobian == 0.0
    assert data.test is not None
    assert data.test.unique().numel() == 17
    assert not load("digits", binarisation="none").cross_entropy


# ---------------------------------------------------------------- units


def test_log_jacobian_moves_a_normal_density_to_own_units(numbers: tuple[Path, pd.DataFrame]) -> None:
    path, frame = numbers
    for data in (load(path), load(path, scaling="unit")):
        assert data.scale is not None
        assert data.centre is not None
        own = torch.from_numpy(frame.to_numpy(copy=True))
        mean, spread = torch.tensor([0.3, -0.2, 0.5]).double(), torch.tensor([1.0, 0.7, 2.0]).double()
        model_units = (own - data.centre) / data.scale
        in_model = Normal(mean, spread).log_prob(model_units).sum(-1)
        in_own = Normal(data.centre + data.scale * mean, data.scale * spread).log_prob(own).sum(-1)
        torch.testing.assert_close(in_model + data.log_jacobian, in_own, rtol=0, atol=1e-6)
        assert data.log_jacobian == pytest.approx(-float(data.scale.log().sum()), abs=1e-12)


def test_log_jacobian_of_images_counts_every_pixel_and_a_mass_has_none() -> None:
    assert load("digits").log_jacobian == pytest.approx(-64 * math.log(16), abs=1e-12)
    assert load("digits", scaling="none").log_jacobian == 0.0
    for how in ("static", "dynamic", "threshold"):
        assert load("digits", binarisation=how).log_jacobian == 0.0


def test_standardise_is_fitted_on_train_alone(numbers: tuple[Path, pd.DataFrame]) -> None:
    path, frame = numbers
    data = load(path)
    assert (data.binarisation, data.scaling) == ("none", "standardise")
    assert data.columns == ("a", "b", "time")
    torch.testing.assert_close(data.train.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(data.train.std(0, correction=0), torch.ones(3), rtol=0, atol=1e-6)
    own = data.to_own_units(data.train)
    torch.testing.assert_close(own.mean(0), data.centre, rtol=1e-12, atol=1e-6)
    everything = torch.cat([data.train, data.valid, data.test])  # type: ignore[list-item]
    back = data.to_own_units(everything)
    rows = torch.from_numpy(frame.to_numpy(copy=True))
    order, wanted = back[:, 1].argsort(), rows[:, 1].argsort()
    # float32 in model units: an error of one part in 2^24 of the scale, not of the centre 1.6e6.
    assert data.scale is not None
    assert bool(((back[order] - rows[wanted]).abs() < 4e-7 * data.scale).all())
    unit = load(path, scaling="unit")
    assert unit.train.amin(0).tolist() == [0.0] * 3
    assert unit.train.amax(0).tolist() == [1.0] * 3


@pytest.mark.parametrize("scaling", ["none", "unit", "standardise"])
def test_round_trip_through_own_units_is_exact(numbers: tuple[Path, pd.DataFrame], scaling: str) -> None:
    data = load(numbers[0], scaling=scaling)
    again = data.to_model_units(data.to_own_units(data.train))
    torch.testing.assert_close(again, data.train, rtol=2e-7, atol=1e-7 if scaling != "none" else 0)
    images = load("digits")
    assert torch.equal(images.to_model_units(images.to_own_units(images.train)), images.train)
    assert set(images.to_own_units(images.train).unique().tolist()) == set(map(float, range(17)))


def test_transform_is_restored_from_its_json_record(numbers: tuple[Path, pd.DataFrame]) -> None:
    for data in (load(numbers[0]), load("digits", support=BINARY), load("digits", scaling="none")):
        units = DataTransform.from_record(json.loads(json.dumps(data.record())))
        assert torch.equal(units.to_own_units(data.train), data.to_own_units(data.train))
        own = data.to_own_units(data.train)
        assert torch.equal(units.to_model_units(own), data.to_model_units(own))
        assert units.record() == data.units.record()
        assert (units.name, units.columns, units.image_shape) == (data.name, data.columns, data.image_shape)
    with pytest.raises(InputError, match="lacks `centre`"):
        DataTransform.from_record({k: v for k, v in units.record().items() if k != "centre"})


def test_transform_binarises_new_data_as_the_set_does() -> None:
    grey = load("digits").train[:20]
    units = {how: load("digits", binarisation=how).units for how in ("none", "dynamic", "threshold")}
    assert units["none"].binarise(grey, torch.Generator()) is grey
    assert torch.equal(units["threshold"].binarise(grey, torch.Generator()), (grey >= 0.5).float())
    assert set(units["dynamic"].binarise(grey, torch.Generator()).unique().tolist()) == {0.0, 1.0}


def test_transform_refuses_data_of_another_width() -> None:
    units = load("digits").units
    with pytest.raises(InputError, match=r"shape \(3, 8, 8\); expected \(\.\.\., 64\)"):
        units.to_model_units(torch.zeros(3, 8, 8))


def test_record_holds_what_a_result_must_record(numbers: tuple[Path, pd.DataFrame]) -> None:
    path, _ = numbers
    record = load(path, seed=5, split=(0.6, 0.2, 0.2)).record()
    assert record["source"] == {"numbers.csv": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert record["n"] == {"train": 30, "valid": 10, "test": 10}
    wanted = {"name": "numbers", "dim": 3, "seed": 5, "split": [0.6, 0.2, 0.2], "scaling": "standardise"}
    assert wanted.items() <= record.items()
    assert record["columns"] == ["a", "b", "time"]
    assert len(record["centre"]) == len(record["scale"]) == 3
    digits = load("digits", support=BINARY).record()
    assert digits["binarisation"] == "dynamic"
    assert len(digits["source"]["sklearn.datasets.load_digits"]) == 64


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "split", [(0.5, 0.5), (0.8, 0.1, 0.2), (0.8, 0.3, -0.1), (0.0, 0.5, 0.5), "abc", 3, (math.nan, 0.5, 0.5)]
)
def test_fractions_that_are_no_split_are_refused(split: object) -> None:
    with pytest.raises(InputError, match="sum to 1") as error:
        load("digits", split=split)  # type: ignore[arg-type]
    assert "split=" in message(error)


def test_split_without_valid_or_test() -> None:
    data = load("digits", split=(1, 0, 0))
    assert (len(data.train), data.valid, data.test) == (1797, None, None)
    assert set(data.labels) == {"train"}
    data = load("digits", split=(0.9, 0.0, 0.1))
    assert data.valid is None
    assert data.test is not None
    assert len(data.test) == 180


def test_every_part_that_is_asked_for_needs_a_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "few.csv", "a\n1\n2\n3\n4\n")
    with pytest.raises(InputError, match="no row for `valid` out of 4"):
        load(path)
    assert len(load(path, split=(0.5, 0.25, 0.25)).train) == 2


@pytest.mark.parametrize("seed", [-1, 1.5, True, "x"])
def test_seeds_are_non_negative_integers(seed: object) -> None:
    with pytest.raises(InputError, match="`seed`: got"):
        load("digits", seed=seed)  # type: ignore[arg-type]


# ---------------------------------------------------------------- names and words


def test_unknown_names_and_words_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean `mnist`") as error:
        load("minst")
    assert "`fashion_mnist`" in message(error)
    with pytest.raises(InputError, match=r"`binarisation`: got `dinamic` \(did you mean `dynamic`\?\)"):
        load("digits", binarisation="dinamic")
    with pytest.raises(InputError, match=r"`scaling`: got `standardize` \(did you mean `standardise`\?\)"):
        load("digits", scaling="standardize")


def test_files_that_are_absent_or_of_unknown_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.csv`: there is no such file"):
        load(tmp_path / "absent.csv")
    with pytest.raises(InputError, match=r"got a file of type `\.txt`; expected one of `\.csv`"):
        load(write_csv(tmp_path / "some.txt", "1 2"))


# ---------------------------------------------------------------- cells


@pytest.mark.parametrize(
    ("text", "place", "given"),
    [
        ("a,b\n1,2\n3,x\n", "row 2 .*column `b`", "`x`"),
        ("a,b\n1,2\n,4\n", "row 2 .*column `a`", "missing cell"),
        ("a,b\n1,nan\n3,4\n", "row 1 .*column `b`", "missing cell"),
        ("a,b\n1,2\n3,inf\n", "row 2 .*column `b`", "`inf`"),
        ("a,b\n1,2\n-inf,1\n", "row 2 .*column `a`", "`-inf`"),
        ("a\n1\n\n2\n", "row 2 .*column `a`", "missing cell"),
        ("a,b\n1,2\n3\n", "row 2 .*column `b`", "missing cell"),
    ],
)
def test_bad_cells_are_named_by_row_and_column(tmp_path: Path, text: str, place: str, given: str) -> None:
    path = write_csv(tmp_path / "bad.csv", text)
    for read in (load, read_table):
        with pytest.raises(InputError, match=place) as error:
            read(path)
        assert given in message(error)
        assert "bad.csv" in message(error)
        assert "counted from 1" in message(error)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("\n", "zero rows"),
        ("a,b\n", "0 rows of 2 columns"),
        ("1.5,2\n3,4\n", "first line holds numbers"),
        ("a,a\n1,2\n", "`a` occurs twice"),
        (",a\n0,1\n", "column 1 has no name"),
        ("a,b\n1,2\n3,4,5\n", "cannot be read"),
        ("a,b\n1,2,3\n4,5,6\n", "cannot be read"),
        ('a,b\n1,"2\n', "cannot be read|found"),
    ],
)
def test_tables_that_are_no_tables_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        read_table(write_csv(tmp_path / "odd.csv", text))
    assert "odd.csv" in message(error)


def test_csv_as_pandas_and_spreadsheets_write_it(tmp_path: Path) -> None:
    rows = np.arange(6.0).reshape(3, 2)
    pd.DataFrame(rows).to_csv(tmp_path / "plain.csv", index=False)
    x, columns = read_table(tmp_path / "plain.csv")
    assert columns == ("0", "1")
    assert x.dtype == torch.float64
    assert torch.equal(x, torch.from_numpy(rows))
    (tmp_path / "bom.csv").write_bytes("\ufeffa, b\r\n1, 2\r\n".encode())
    assert read_table(tmp_path / "bom.csv")[1] == ("a", "b")
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\x00\x01\x02")
    with pytest.raises(InputError, match=r"latin\.csv` is not in UTF-8 .*encoding='utf-16'"):
        read_table(tmp_path / "latin.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a;b\n1,5;2\n", r"separated by ';', not by commas; .*read_csv\(path, sep=';', decimal=','\)\.to_csv\("),
        (b"a;b\n1.5;2\n", r"separated by ';', .*read_csv\(path, sep=';'\)"),
        (b"a\tb\n1\t2\n", r"separated by '\\t', .*sep='\\t'\)"),
        (b"\xe2ge,b\n1,2\n", r"is not in UTF-8 \(byte 0xe2\); .*read_csv\(path, encoding='latin-1'\)"),
        (b"\xe2ge;b\n1,5;2\n", r"encoding='latin-1', sep=';', decimal=','\)"),
        ("a,b\n1,2\n".encode("utf-16"), r"encoding='utf-16'\)"),
        (b"a,b\n1,5,2,5\n", "as many cells as the first line has names .*decimal points, not commas"),
        (b'a,b\n"1,5",2\n', '`1,5` in data row 1 .*column `a`; .*`decimal: ","` .* reads `1,5` as 1.5'),
        (
            b"a,b\n1,2\n3,4\n-,6\n",
            "`-` in data row 3 .*column `a`; .*most cells of the column are numbers; ",
        ),
        (b"a,b\nx,2\ny,4\n1,6\n", "`x` in data row 1 .*make them levels"),
    ],
    ids=repr,
)
def test_another_dialect_is_called_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "t.csv")


def test_a_column_whose_name_has_a_separator_in_it_is_no_dialect(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("p(x|z)\n1\n2\n")
    assert read_table(tmp_path / "t.csv")[1] == ("p(x|z)",)


def test_read_table_selects_the_training_columns(numbers: tuple[Path, pd.DataFrame]) -> None:
    path, frame = numbers
    x, columns = read_table(path, columns=["time", "a"])
    assert columns == ("time", "a")
    np.testing.assert_allclose(x.numpy(), frame[["time", "a"]].to_numpy(), rtol=1e-15)
    with pytest.raises(InputError, match=r"lacks the columns `c`; it has `a`, `b`, `time`"):
        read_table(path, columns=["a", "c"])


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True]})
    path = tmp_path / "table.parquet"
    frame.to_parquet(path)
    x, columns = read_table(path)
    assert columns == ("a", "b", "c")
    assert x.tolist() == [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]]
    pd.DataFrame({"a": [1, None, 3], "w": ["u", "v", "w"]}).to_parquet(tmp_path / "holes.parquet")
    with pytest.raises(InputError, match=r"missing cell in data row 2 .*column `a`"):
        load(tmp_path / "holes.parquet")
    with pytest.raises(InputError, match=r"`u` in data row 1 .*column `w`"):
        read_table(tmp_path / "holes.parquet", columns=["w"])
    pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}).to_parquet(tmp_path / "dates.parquet")
    with pytest.raises(InputError, match=r"data row 1 .*column `when`"):
        read_table(tmp_path / "dates.parquet")
    (tmp_path / "short.parquet").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"short\.parquet` cannot be read .*truncated or damaged; write"):
        load(tmp_path / "short.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install pyro-vae\[parquet\]"):
        load(path)


# ---------------------------------------------------------------- arrays


def test_npy_tables_and_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, size=(20, 4, 3), dtype=np.uint8)
    images[0, 0, 0] = 255
    np.save(tmp_path / "images.npy", images)
    data = load(tmp_path / "images.npy", split=(1, 0, 0))
    assert (data.image_shape, data.scaling, data.columns) == ((4, 3), "unit", None)
    assert data.log_jacobian == pytest.approx(-12 * math.log(255))
    assert data.train.shape == (20, 12)
    np.save(tmp_path / "grey.npy", (images / 255).astype(np.float32))
    grey = load(tmp_path / "grey.npy", split=(1, 0, 0))
    assert grey.log_jacobian == 0.0
    torch.testing.assert_close(grey.train, data.train, rtol=0, atol=1e-7)
    np.save(tmp_path / "table.npy", generator.normal(size=(30, 2)).astype(">f4"))
    table = load(tmp_path / "table.npy")
    assert (table.image_shape, table.scaling, len(table.train)) == (None, "standardise", 24)
    for dtype in (np.int16, np.uint16, np.uint32, np.float16, np.longdouble, np.bool_):
        np.save(tmp_path / "kind.npy", np.array([[0, 1], [1, 0]], dtype=dtype))
        assert read_table(tmp_path / "kind.npy")[0].tolist() == [[0, 1], [1, 0]]


def test_npz_sets_and_single_arrays(tmp_path: Path) -> None:
    rows = np.random.default_rng(2).normal(size=(40, 2))
    path = tmp_path / "sets.npz"
    np.savez(path, train=rows[:30], valid=rows[30:35], test=rows[35:])
    data = load(path, scaling="none")
    assert torch.equal(data.valid, torch.from_numpy(rows[30:35]).float())  # type: ignore[arg-type]
    assert data.split is None
    with pytest.raises(InputError, match=r"`train`, `valid`, `test` are official; leave `split` out"):
        load(path, split=(0.8, 0.1, 0.1))
    with pytest.raises(InputError, match=r"holds the sets `train`, `valid`, `test`; expected one array"):
        read_table(path)
    np.savez(path, train=rows[:30], test=rows[30:])
    data = load(path, split=(0.8, 0.2), scaling="none")
    assert (len(data.train), len(data.valid), len(data.test)) == (24, 6, 10)  # type: ignore[arg-type]
    assert data.split == (0.8, 0.2)
    assert load(path).valid is None
    for arrays in ({"x": rows, "other": rows[:3]}, {"images": rows}, {"anything": rows}):
        np.savez(path, **arrays)  # type: ignore[arg-type]
        assert len(load(path).train) == 32
    np.savez(path, one=rows, two=rows)
    with pytest.raises(InputError, match=r"its arrays are `one`, `two`; expected `train`"):
        load(path)
    np.savez(path, train=rows, test=rows[:, :1])
    with pytest.raises(InputError, match="rows of different shapes"):
        load(path)
    np.savez(path, train=rows, test=rows[:0])
    with pytest.raises(InputError, match="`test` holds zero rows"):
        load(path)


class _Trap:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.putenv, ("PYRO_VAE_TRAP",)


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npy"
    np.save(path, np.array([[1, "a"]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"bad\.npy`: holds Python objects .*`numpy\.save`"):
        load(path)
    path.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(InputError, match="holds Python objects"):
        load(path)
    np.save(path, np.array([["a", "b"]]))
    with pytest.raises(InputError, match="is of dtype `<U1`; save real numbers"):
        load(path)
    np.save(path, np.zeros(5))
    with pytest.raises(InputError, match=r"shape \(5,\).*reshape a single column to \(N, 1\)"):
        load(path)
    np.save(path, np.zeros((0, 3)))
    with pytest.raises(InputError, match="zero rows"):
        load(path)
    rows = np.zeros((4, 3))
    rows[2, 1] = np.nan
    np.save(path, rows)
    with pytest.raises(InputError, match=r"bad\.npy`: found `nan` in data row 3 .*column 2"):
        read_table(path)
    np.save(path, np.zeros((50, 3)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"bad\.npy` cannot be read: .*truncated or damaged; write or copy"):
        load(path)
    np.savez(tmp_path / "bad.npz", x=np.zeros((50, 3)))
    whole = bytearray((tmp_path / "bad.npz").read_bytes())
    whole[700] ^= 255
    for content in (bytes(whole), bytes(whole[:300]), b""):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.npz` cannot be read"):
            load(tmp_path / "bad.npz")


# ---------------------------------------------------------------- the support of user's files


def test_binary_tables(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bits.csv", "a,b\n" + "0,1\n1,1\n" * 10)
    data = load(path, support=BINARY)
    assert (data.binarisation, data.scaling, data.cross_entropy) == ("none", "none", False)
    assert data.train[:, 1].tolist() == [1.0] * 16
    grey = write_csv(tmp_path / "grey.csv", "a,b\n" + "0,1\n" * 6 + "0.25,1\n" + "0,0.75\n" * 13)
    with pytest.raises(
        InputError, match=r"found `0\.25` in data row 7 .*column `a`.*choose a likelihood on such values"
    ) as error:
        load(grey, support=BINARY)
    assert "cross-entropy" in message(error)
    assert load(grey, support=BINARY, binarisation="none").cross_entropy
    assert not load(path, support=BINARY, binarisation="none").cross_entropy
    dynamic = load(grey, support=BINARY, binarisation="dynamic")
    assert 0.75 in dynamic.train
    assert set(dynamic.test.unique().tolist()) <= {0.0, 1.0}  # type: ignore[union-attr]
    large = write_csv(tmp_path / "large.csv", "a\n" + "0\n0.5\n" * 10 + "3\n")
    for how in ("none", "dynamic", "static", "threshold"):
        with pytest.raises(InputError, match=r"`3` in data row 21 .*column `a`.*needs values in \[0, 1\]"):
            load(large, support=BINARY, binarisation=how)
    with pytest.raises(InputError, match=r"`scaling`: got `standardise` with binarisation=`static`"):
        load(grey, binarisation="static", scaling="standardise")
    assert set(load(large, binarisation="threshold", scaling="unit", split=(1, 0, 0)).train.unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("support", "cell"),
    [
        (constraints.unit_interval, "`-2` in data row 3 .*column `b`"),
        (constraints.independent(constraints.positive, 1), "`0` in data row 2 .*column `a`"),
        (constraints.nonnegative_integer, "`0.5` in data row 1 .*column `b`"),
        (constraints.integer_interval(0, 4), "`0.5` in data row 1 .*column `b`"),
        (constraints.greater_than(-1.0), "`-2` in data row 3 .*column `b`"),
        (constraints.simplex, "data row 1 "),
    ],
)
def test_data_outside_the_support_are_named(tmp_path: Path, support: constraints.Constraint, cell: str) -> None:
    path = write_csv(tmp_path / "out.csv", "a,b\n1,0.5\n0,0.5\n1,-2\n" + "1,0.5\n" * 17)
    for seed in (0, 1):
        with pytest.raises(InputError, match=cell + ".*outside the likelihood's support") as error:
            load(path, support=support, seed=seed)
        assert "out.csv" in message(error)


def test_supports_that_fit_leave_tables_as_they_are(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "shares.csv", "a,b\n" + "0.25,0.75\n0.5,0.5\n" * 10)
    for support in (
        constraints.simplex,
        constraints.unit_interval,
        constraints.positive,
        constraints.half_open_interval(0.0, 1.0),
    ):
        data = load(path, support=support)
        assert (data.binarisation, data.scaling, data.log_jacobian) == ("none", "none", 0.0)
    bounds = constraints.independent(constraints.interval(torch.zeros(2), torch.tensor([0.6, 0.8])), 1)
    assert load(path, support=bounds).scaling == "none"


def test_constant_columns_and_huge_cells_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "flat.csv", "a,b\n" + "".join(f"{i},7\n" for i in range(20)))
    for scaling in ("standardise", "unit"):
        with pytest.raises(InputError, match=r"column `b` is constant \(7\) on the 16 training rows"):
            load(path, scaling=scaling)
    huge = write_csv(tmp_path / "huge.csv", "a\n" + "1\n" * 18 + "1e200\n2\n")
    with pytest.raises(InputError, match=r"`1e\+200` in data row 19 .*beyond float32"):
        load(huge, scaling="none")


# ---------------------------------------------------------------- the catalogue's files


def test_mnist() -> None:
    real_file("mnist/train-images-idx3-ubyte.gz")
    data = load("mnist", support=BINARY)
    assert data.train.shape == (60000, 784)
    assert data.test is not None
    assert data.test.shape == (10000, 784)
    assert (data.valid, data.binarisation, data.image_shape) == (None, "dynamic", (28, 28))
    assert data.labels["train"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.labels["test"][:5].tolist() == [7, 2, 1, 0, 4]
    assert float(data.train.double().mean()) == pytest.approx(0.1306604762738429, abs=1e-8)
    assert set(data.test.unique().tolist()) == {0.0, 1.0}
    assert data.record()["source"]["mnist/train-images-idx3-ubyte.gz"].startswith("440fcabf")
    with pytest.raises(InputError, match=r"its test set is official and stays whole; pass two fractions"):
        load("mnist", split=(0.8, 0.1, 0.1))
    carved = load("mnist", support=BINARY, split=(0.9, 0.1))
    assert carved.valid is not None
    assert (len(carved.train), len(carved.valid)) == (54000, 6000)
    assert torch.equal(carved.test, data.test)  # type: ignore[arg-type]
    assert sorted(torch.cat([carved.labels["train"], carved.labels["valid"]]).bincount().tolist()) == sorted(
        data.labels["train"].bincount().tolist()
    )


def test_fashion_mnist() -> None:
    real_file("fashion_mnist/train-images-idx3-ubyte.gz")
    data = load("fashion_mnist", support=constraints.integer_interval(0, 255), split=(0.9, 0.1, 0))
    assert (len(data.train), len(data.valid), len(data.test)) == (54000, 6000, 10000)  # type: ignore[arg-type]
    assert data.train.max() == 255
    assert data.scaling == "none"
    assert data.labels["test"].bincount().tolist() == [1000] * 10


def test_static_mnist() -> None:
    real_file("static_mnist/binarized_mnist.npz")
    for support in (BINARY, None):
        data = load("static_mnist", support=support)
        sizes = [len(x) for x in (data.train, data.valid, data.test)]  # type: ignore[arg-type]
        assert sizes == [50000, 10000, 10000]
        assert data.binarisation == "static"
        assert (data.labels, data.log_jacobian, data.split) == ({}, 0.0, None)
    assert set(data.test.unique().tolist()) == {0.0, 1.0}  # type: ignore[union-attr]
    text = b"".join(b" ".join(b"1" if v else b"0" for v in row) + b"\n" for row in data.valid[:2].tolist())  # type: ignore[index]
    assert len(text) == 2 * 1568
    for wrong in ("none", "dynamic"):
        with pytest.raises(InputError, match="its file is binarised"):
            load("static_mnist", binarisation=wrong)
    with pytest.raises(InputError, match="are official"):
        load("static_mnist", split=(0.8, 0.1, 0.1))


def test_frey() -> None:
    real_file("frey/frey_faces.npz")
    data = load("frey", support=REAL)
    assert [len(x) for x in (data.train, data.valid, data.test)] == [1573, 196, 196]  # type: ignore[arg-type]
    assert data.train.shape[1] == 560
    assert data.image_shape == (28, 20)
    levels = data.to_own_units(torch.cat([data.train, data.valid, data.test]))  # type: ignore[list-item]
    assert (levels.min().item(), levels.max().item()) == (8, 238)
    assert data.log_jacobian == pytest.approx(-560 * math.log(255))


def test_folder_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = real_file("frey/frey_faces.npz")
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    assert len(load("frey", folder=Path(folder), split=(1, 0, 0)).train) == 1965
    broken = tmp_path / "frey" / "frey_faces.npz"
    broken.parent.mkdir()
    broken.write_bytes((Path(folder) / "frey/frey_faces.npz").read_bytes()[:-5])
    with pytest.raises(InputError, match="frey_faces") as error:
        load("frey")
    text = message(error)
    assert str(broken) in text
    assert "expected sha256 `3c70375e" in text
    assert hashlib.sha256(broken.read_bytes()).hexdigest() in text
    assert "delete it" in text
    assert broken.exists()


def test_repacked_npz_is_known_by_its_arrays(tmp_path: Path) -> None:
    folder = real_file("frey/frey_faces.npz")
    with np.load(Path(folder) / "frey/frey_faces.npz") as archive:
        images = archive["images"]
    (tmp_path / "frey").mkdir()
    np.savez(tmp_path / "frey" / "frey_faces.npz", images=images)
    assert fetch(catalogue.FREY_FILE, tmp_path) == tmp_path / "frey" / "frey_faces.npz"


def test_frey_is_converted_from_its_public_formats(tmp_path: Path) -> None:
    from scipy.io import savemat

    images = np.random.default_rng(3).integers(0, 256, size=(1965, 28, 20), dtype=np.uint8)
    savemat(tmp_path / "faces.mat", {"ff": images.reshape(1965, 560).T})
    assert np.array_equal(catalogue.read_frey({"frey_faces": tmp_path / "faces.mat"})["images"], images)
    for protocol in (2, 4):
        (tmp_path / "faces.pkl").write_bytes(pickle.dumps(images.reshape(1, 1965, 560), protocol=protocol))
        assert np.array_equal(catalogue.read_frey({"frey_faces": tmp_path / "faces.pkl"})["images"], images)
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(pickle.UnpicklingError, match="is not part of an array"):
        catalogue.read_frey({"frey_faces": tmp_path / "trap.pkl"})


def test_amat_rows_are_packed_to_bits(tmp_path: Path) -> None:
    bits = np.random.default_rng(4).integers(0, 2, size=(3, 784), dtype=np.uint8)
    paths = {}
    for part in ("train", "valid", "test"):
        name = f"binarized_mnist_{part}.amat"
        paths[name] = tmp_path / name
        paths[name].write_text("".join(" ".join(map(str, row)) + "\n" for row in bits))
    arrays = catalogue.read_amat(paths)
    assert np.array_equal(np.unpackbits(arrays["valid"], axis=1), bits)


# ---------------------------------------------------------------- downloads, from a loopback server

GOOD = b"the right bytes" * 2000


class _Handler(http.server.BaseHTTPRequestHandler):
    contents: dict[str, bytes]

    def do_GET(self) -> None:
        kind, _, name = self.path.strip("/").partition("/")
        if kind == "slow":
            time.sleep(0.6)
        content = self.contents.get(name)
        if content is None or kind == "absent":
            self.send_error(404)
            return
        if kind == "corrupt":
            content = content[:-1] + b"?"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if kind == "truncated" else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client that stopped waiting is the point of the slow test


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A loopback server of `GOOD`, an empty cache, no data folder, and a short timeout."""
    monkeypatch.setenv("PYRO_VAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    monkeypatch.setattr(files, "TIMEOUT", 0.25)
    monkeypatch.setattr(_Handler, "contents", {"file.bin": GOOD}, raising=False)
    with _Server(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def source(server: str, *kinds: str) -> CatalogueFile:
    sha256 = hashlib.sha256(GOOD).hexdigest()
    urls = tuple(f"{server}/{kind}/file.bin" for kind in kinds)
    return CatalogueFile("set/file.bin", sha256, ((Download("file.bin", urls, f"sha256:{sha256}"),),))


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_download_lands_in_the_cache_and_is_not_repeated(server: str, tmp_path: Path) -> None:
    path = fetch(source(server, "good"))
    assert path == tmp_path / "cache" / "set" / "file.bin"
    assert path.read_bytes() == GOOD
    assert fetch(source(server, "absent")) == path
    assert cached(tmp_path) == ["file.bin"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "404"),
        ("corrupt", "hash"),
        ("truncated", "IncompleteRead|hash"),
        ("slow", "timed out|timeout"),
    ],
)
def test_failed_downloads_say_why_and_leave_nothing(server: str, tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        fetch(source(server, kind), folder=tmp_path / "mine")
    text = message(error)
    for place in ("mine", "cache"):
        assert str(tmp_path / place / "set" / "file.bin") in text
    assert f"{server}/{kind}/file.bin" in text
    assert "PYRO_VAE_DATA" in text
    assert cached(tmp_path) == []


@pytest.mark.parametrize("dead", ["absent", "corrupt", "truncated", "slow"])
def test_a_failing_mirror_falls_to_the_next(server: str, dead: str) -> None:
    assert fetch(source(server, dead, "good")).read_bytes() == GOOD


def test_no_network_is_an_error_with_every_place(server: str, tmp_path: Path) -> None:
    dead = "http://127.0.0.1:1"
    with pytest.raises(InputError, match="was not found") as error:
        fetch(source(dead, "good"), folder=tmp_path / "mine")
    assert "connect to the network" in message(error)


def test_damaged_cache_is_downloaded_again(server: str, tmp_path: Path) -> None:
    path = fetch(source(server, "good"))
    path.write_bytes(GOOD[:100])
    assert fetch(source(server, "good")).read_bytes() == GOOD
    path.write_bytes(GOOD[:100])
    with pytest.raises(InputError, match="404"):
        fetch(source(server, "absent"))
    assert cached(tmp_path) == []


def test_progress_bar_is_drawn_only_on_request(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(source(server, "good")).unlink()
    assert capsys.readouterr() == ("", "")
    fetch(source(server, "good"), progress=True).unlink()
    assert capsys.readouterr() == ("", "")  # a bar is for terminals
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    fetch(source(server, "good"), progress=True)
    assert "file.bin" in capsys.readouterr().err


def test_conversions_are_checked_by_their_arrays(server: str, tmp_path: Path) -> None:
    arrays = {"x": np.arange(6, dtype=np.uint8)}
    wanted = files.content_digest(arrays)

    def ways(*kinds: str) -> tuple[tuple[Download, ...], ...]:
        return tuple((Download("file.bin", (f"{server}/{kind}/file.bin",), None),) for kind in kinds)

    def convert(paths: object) -> dict[str, np.ndarray]:
        content = paths["file.bin"].read_bytes()  # type: ignore[index]
        if content != GOOD:
            raise ValueError("foreign format")
        return arrays

    good = CatalogueFile("set/it.npz", "0" * 64, ways("corrupt", "good"), convert, wanted)
    path = fetch(good)
    with np.load(path) as archive:
        assert np.array_equal(archive["x"], arrays["x"])
    assert fetch(good) == path
    assert cached(tmp_path) == ["it.npz"]
    other = CatalogueFile("set/other.npz", "0" * 64, ways("corrupt", "good"), convert, "1" * 64)
    with pytest.raises(InputError, match=r"unreadable \(foreign format\); .*not the expected arrays"):
        fetch(other)
    assert cached(tmp_path) == ["it.npz"]


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(head + array.tobytes(), mtime=0)


def test_an_image_set_from_a_mirror_to_model_units(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    arrays = {
        "train-images": generator.integers(0, 256, size=(30, 28, 28), dtype=np.uint8),
        "train-labels": generator.integers(0, 10, size=30, dtype=np.uint8),
        "test-images": generator.integers(0, 256, size=(8, 28, 28), dtype=np.uint8),
        "test-labels": generator.integers(0, 10, size=8, dtype=np.uint8),
    }
    small = {}
    for key, array in arrays.items():
        content = idx(array)
        _Handler.contents[key] = content
        sha256 = hashlib.sha256(content).hexdigest()
        urls = (f"{server}/absent/{key}", f"{server}/good/{key}")
        small[key] = CatalogueFile(f"mnist/{key}.gz", sha256, ((Download(key, urls, f"sha256:{sha256}"),),))
    monkeypatch.setitem(catalogue.IDX_FILES, "mnist", small)
    data: Data = load("mnist")
    assert np.array_equal(data.to_own_units(data.train).numpy(), arrays["train-images"].reshape(30, 784))
    assert data.labels["test"].tolist() == arrays["test-labels"].tolist()


def test_masses_have_no_jacobian(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("a,b\n" + "0,5\n5,0\n" * 10)
    data = load(path, support=constraints.nonnegative_integer, scaling="unit")
    assert data.log_jacobian == 0.0


@pytest.mark.parametrize(
    ("top", "divisor"), [(1, 1.0), (16, 16.0), (127, 127.0), (200, 255.0), (255, 255.0), (4000, 4000.0)]
)
def test_the_greatest_grey_level_of_an_array_follows_from_its_values(tmp_path: Path, top: int, divisor: float) -> None:
    np.save(tmp_path / "images.npy", np.linspace(0, top, 30 * 4).reshape(30, 2, 2).astype(np.uint16))
    data = load(tmp_path / "images.npy", support=constraints.boolean, binarisation="dynamic")
    assert float(data.units.scale) == divisor


def test_own_units_may_be_arrays_and_frames() -> None:
    data = load("digits")
    rows = np.arange(128).reshape(2, 64) % 17
    expected = data.to_model_units(torch.from_numpy(rows))
    assert torch.equal(data.to_model_units(rows), expected)
    assert torch.equal(data.to_model_units(pd.DataFrame(rows)), expected)
    assert repr(data).startswith("Data(digits: train (1437, 64)")


def test_a_batch_of_some_rows_is_a_random_sample_with_their_context() -> None:
    data = load("digits", support=BINARY, context="labels", seed=3)
    ten, twenty, everything = data.batch("test", 10), data.batch("test", 20), data.batch("test")
    assert torch.equal(ten.x, twenty.x[:10])
    assert ten.context is not None
    assert everything.context is not None
    rows = [int((everything.x == x).all(1).nonzero()[0]) for x in twenty.x]
    assert rows != sorted(rows)  # not the first ones
    assert torch.equal(ten.context, everything.context[rows[:10]])
    assert torch.equal(data.batch("test", 10).x, ten.x)
    assert torch.equal(data.batch("test", len(everything.x)).x, everything.x)
    assert not torch.equal(load("digits", support=BINARY, seed=4).batch("test", 10).x, ten.x)


@pytest.mark.parametrize("scaling", ["standardise", "unit"])
def test_blocks_change_no_number(scaling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        np.save(tmp_path / "x.npy", (rng.normal(size=(173, 41)) * 7 + 3).astype(dtype))
        whole = load(tmp_path / "x.npy", scaling=scaling)
        with monkeypatch.context() as patch:
            patch.setattr(data_transform, "_CELLS", 1)
            patch.setattr(large_arrays, "_CELLS", 100)
            blocks = load(tmp_path / "x.npy", scaling=scaling)
        assert torch.equal(whole.train, blocks.train)
        assert torch.equal(whole.test, blocks.test)
        assert torch.equal(whole.centre, blocks.centre)
        assert torch.equal(whole.scale, blocks.scale)
