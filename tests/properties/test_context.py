"""What conditions the model: labels, covariates and offsets, from the file to the run folder."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from torch.distributions import constraints

import pyro_vae
from pyro_vae import cli
from pyro_vae.comparison.compare import check, compare
from pyro_vae.comparison.folder import new_folder, write_run
from pyro_vae.datasets import (
    DataTransform,
    load,
    newsgroups,
    newsgroups_halves,
    read_context,
    read_given,
    read_rows,
)
from pyro_vae.datasets.files import content_digest
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment

COUNTS = constraints.nonnegative_integer


@pytest.fixture
def table(tmp_path):
    """Sixty rows: two numbers, a covariate, a word, a code and a size."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": random.poisson(5, 60) + 1,
            "b": random.poisson(2, 60),
            "age": random.integers(20, 80, 60),
            "sex": random.choice(["f", "m"], 60),
            "ward": random.choice([3, 5, 9], 60),
            "days": random.integers(1, 30, 60),
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv", frame


def generator():
    return torch.Generator().manual_seed(0)


# ---------------------------------------------------------------------- context


def test_labels_are_one_hot_and_stay_beside_their_rows():
    plain, data = load("digits"), load("digits", context="labels")
    for part in ("train", "valid", "test"):
        batch = data.batch(part)
        assert torch.equal(batch.x, getattr(plain, part))
        assert torch.equal(batch.context, torch.nn.functional.one_hot(data.labels[part], 10).float())
    assert data.context_features == 10
    assert plain.batch().context is None
    assert torch.equal(data.context_of(3000), data.context["train"].repeat(3, 1)[:3000])
    with pytest.raises(InputError, match=r"no part `vallid`; choose one of `train`, `valid`, `test`"):
        data.batch("vallid")


def test_covariates_are_standardised_on_train_and_words_one_hot(table):
    path, frame = table
    data = load(path, context=["age", "sex"])
    assert data.columns == ("a", "b", "ward", "days")
    batch = data.batch("train")
    assert batch.context.shape == (48, 3)
    assert batch.context[:, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert batch.context[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    parts = [data.batch(part) for part in ("train", "valid", "test")]
    age, sex = data.units.context
    beside = [
        pd.DataFrame(
            {
                "age": part.context[:, 0].double() * age.scale + age.centre,
                "sex": np.array(sex.levels)[part.context[:, 1:].argmax(1)],
            }
        )
        for part in parts
    ]
    own = pd.concat([data.units.to_frame(part.x).join(given) for part, given in zip(parts, beside, strict=True)])
    order = list(frame.columns)
    found = own[order].round({name: 0 for name in order if name != "sex"})
    assert sorted(found.itertuples(index=False, name=None)) == sorted(frame.itertuples(index=False, name=None))


def test_an_encoding_may_be_asked_for(table):
    path, frame = table
    data = load(path, context={"ward": "one-hot", "age": "none", "sex": None}, split=(1, 0, 0))
    assert [column.levels for column in data.units.context] == [(3.0, 5.0, 9.0), None, ("f", "m")]
    assert data.context["train"][:, :3].sum(0).tolist() == frame.ward.value_counts().sort_index().tolist()
    assert sorted(data.context["train"][:, 3].tolist()) == sorted(frame.age.tolist())
    units = DataTransform.from_record(json.loads(json.dumps(data.record())))
    assert units.context == data.units.context
    assert units.record() == data.units.record()


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (["aeg"], r"`aeg` of `context` or `offset` \(did you mean `age`\?\)"),
        ({"age": "one-hott"}, r"`context.age`: got `one-hott` \(did you mean `one-hot`\?\)"),
        ({"sex": "standardise"}, r"context column `sex` holds words \(`f`\)"),
        (["a", "b", "age", "sex", "ward", "days"], "no column is left to be modelled"),
    ],
)
def test_context_that_cannot_be_is_named(table, context, message):
    with pytest.raises(InputError, match=message):
        load(table[0], context=context)


def test_context_needs_names_labels_and_every_cell(table, tmp_path):
    path, frame = table
    np.save(tmp_path / "x.npy", np.zeros((20, 3)))
    with pytest.raises(InputError, match=r"column `age` is wanted by name, but a `.npy` file has no names"):
        load(tmp_path / "x.npy", context=["age"])
    with pytest.raises(InputError, match=r"`context: lables`: a named set has no columns .*did you mean `labels`"):
        load("digits", context="lables")
    frame.drop(columns="sex").assign(age=7).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"context column `age` is constant \(7\)"):
        load(path, context="age")
    frame.drop(columns="sex").astype({"age": float}).assign(age=lambda f: f.age.mask(f.index == 2)).to_csv(
        path, index=False
    )
    with pytest.raises(
        InputError, match=r"missing cell in data row 3 .*column `age`; .*fill them in, or drop the row; for `m2`"
    ):
        load(path, context="age", missing="mask")
    if os.environ.get("PYRO_VAE_DATA") and (Path(os.environ["PYRO_VAE_DATA"]) / "frey").is_dir():
        with pytest.raises(InputError, match="`frey`: `context: labels`: this set has no labels"):
            load("frey", context="labels")


def test_a_context_is_read_from_words_or_from_a_table(table, tmp_path):
    units = load(table[0], context=["age", "sex"]).units
    given = read_context("sex=m, age=50", units)
    age = units.context[0]
    torch.testing.assert_close(given, torch.tensor([[(50 - age.centre) / age.scale, 0.0, 1.0]]))
    (tmp_path / "c.csv").write_text("sex,age\nm,50\nf,20\n")
    rows = read_context(tmp_path / "c.csv", units)
    assert torch.equal(rows[:1], given)
    assert rows[:, 1:].argmax(1).tolist() == [1, 0]
    assert read_given(tmp_path / "c.csv", units).columns.to_dict("list") == {"age": [50, 20], "sex": ["m", "f"]}
    for said in ("50", "0.1", "1", "1e300", "-7"):  # what was asked, to the last digit
        (value,) = read_given(f"sex=m,age={said}", units).columns.age
        assert value == float(said)
        assert isinstance(value, int) == (said in ("50", "1", "-7"))
    for text, message in (
        ("sex=m", "lacks the context `age`; the model needs `age`, `sex`"),
        ("sex=m,age=50,aeg=3", "no context `aeg` .*did you mean `age`"),
        ("sex=m,age=old", "found `old` in data row 1"),
    ):
        with pytest.raises(InputError, match=message):
            read_context(text, units)
    with pytest.raises(InputError, match="the model of `digits` has none"):
        read_context("label=3", load("digits").units)


# ---------------------------------------------------------------------- offset


def test_the_offset_is_the_log_of_the_total_or_of_a_column(table):
    path, frame = table
    data = load(path, support=COUNTS, context=["age", "sex", "ward"], offset="days", split=(1, 0, 0))
    assert data.columns == ("a", "b")
    offset, x = data.batch().offset, data.batch().x
    order = np.lexsort((frame.a, frame.days))
    expected = np.log(frame.days) - np.log(frame.days).mean()
    torch.testing.assert_close(offset.squeeze(1).sort().values, torch.tensor(expected[order].to_numpy()).float())
    total = load(path, support=COUNTS, context=["age", "sex", "ward", "days"], offset="total", split=(0.5, 0.5, 0))
    for part in ("train", "valid"):
        batch = total.batch(part)
        log = batch.x.sum(1, keepdim=True).log()
        torch.testing.assert_close(batch.offset, log - total.units.offset.centre)
    assert total.batch("train").offset.mean().item() == pytest.approx(0, abs=1e-6)
    rows = read_rows(path, total.units, generator(), "age=30,sex=f,ward=3,days=5")
    torch.testing.assert_close(rows.offset, rows.x.sum(1, keepdim=True).log() - total.units.offset.centre)
    assert DataTransform.from_record(json.loads(json.dumps(total.record()))).offset == total.units.offset
    assert x.shape == (60, 2)


def test_offsets_that_cannot_be_are_named(table, tmp_path):
    path, frame = table
    for offset, message in (("dayz", "did you mean `days`"), ("sex", r"holds words \(`f`\), which have no log")):
        with pytest.raises(InputError, match=message):
            load(path, context=["sex"], offset=offset)
    frame.assign(days=frame.days.where(frame.index != 4, 0)).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"data row 5 .* has `days` 0, but `offset: days` takes its log"):
        load(path, context=["sex"], offset="days")
    frame[["a", "b"]].mul(frame.index != 3, axis=0).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"data row 4 .* has total 0, but `offset: total`"):
        load(path, support=COUNTS, offset="total")
    frame[["a", "b"]].rename(columns={"b": "total"}).to_csv(path, index=False)
    with pytest.raises(InputError, match="the table has a column of that name"):
        load(path, support=COUNTS, offset="total")
    with pytest.raises(InputError, match="`offset: words`: a named set has no columns"):
        load("digits", offset="words")


@pytest.mark.parametrize("likelihood", ["Poisson", {"mixture": {"family": "Poisson"}}], ids=str)
def test_an_offset_that_no_parameter_takes_is_refused_in_the_words_of_the_file(tmp_path, likelihood):
    np.save(tmp_path / "counts.npy", np.random.default_rng(0).poisson(3.0, (40, 4)) + 1.0)
    content = {**QUICK, "data": {"name": str(tmp_path / "counts.npy"), "offset": "total"}, "likelihood": likelihood}
    with pytest.raises(InputError, match=r"data: `offset: total` .*rate: \{network: \{offset: true\}\}"):
        compare(Experiment.parse(content))


# ---------------------------------------------------------------------- end to end


QUICK = {
    "latent": 2,
    "networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}},
    "inference": ["aevb"],
    "training": {"epochs": 1},
    "evaluation": {"num_samples": 20, "posterior_checks": 5},
    "seeds": 1,
}


def test_a_conditional_vae_runs_from_its_file_to_its_folder(tmp_path, monkeypatch):
    experiment = Experiment.parse({**QUICK, "data": {"name": "digits", "context": "labels"}})
    comparison = compare(experiment)
    with new_folder(tmp_path / "run") as partial:
        write_run(comparison, partial)
    trained = pyro_vae.load(tmp_path / "run")
    assert trained.vae.context_features == 10
    drawn = trained.sample(6, context="label=3")
    assert drawn.label.tolist() == [3] * 6
    for n, out in ((2, "three.npy"), (2, "three.csv")):
        command = ["sample", str(tmp_path / "run"), "-n", str(n), "--context", "label=3", "--out", str(tmp_path / out)]
        monkeypatch.setattr("sys.argv", ["pyro-vae", *command])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
    written = pd.read_csv(tmp_path / "three.csv")
    assert written.label.tolist() == [3, 3]
    assert np.array_equal(np.load(tmp_path / "three.npy"), written.drop(columns="label").to_numpy())  # the images
    np.save(tmp_path / "new.npy", load("digits", scaling="none").test.numpy())
    with pytest.raises(InputError, match="column `label` is wanted by name"):
        trained.read_rows(tmp_path / "new.npy")
    three, eight = (trained.score(tmp_path / "new.npy", 20, context=f"label={label}").log_p for label in (3, 8))
    assert (three != eight).any()
    rows = trained.read_rows(tmp_path / "new.npy", context="label=3")
    expected = pyro_vae.evaluation.log_marginal(trained.vae, rows, 20).pointwise
    torch.testing.assert_close(torch.tensor(three.values), expected)
    with pytest.raises(InputError, match="--context"):
        trained.sample(3)


def test_an_offset_and_covariates_run_end_to_end(table, tmp_path):
    data = {"name": str(table[0]), "context": {"age": None, "sex": None, "ward": "one-hot"}, "offset": "days"}
    rate = {"family": "Poisson", "rate": {"network": {"offset": True}}}
    comparison = compare(Experiment.parse({**QUICK, "data": data, "likelihood": rate}))
    assert math.isfinite(comparison.runs[0].metrics()["log_marginal"])
    with new_folder(tmp_path / "run") as partial:
        write_run(comparison, partial)
    trained = pyro_vae.load(tmp_path / "run")
    assert trained.read_rows(table[0]).offset.shape == (60, 1)
    (tmp_path / "given.csv").write_text("ward,sex,age\n3,f,41\n9,m,1\n")
    drawn = trained.sample(3, context=tmp_path / "given.csv")
    assert drawn[["age", "sex", "ward"]].to_dict("list") == {
        "age": [41, 1, 41],
        "sex": ["f", "m", "f"],
        "ward": [3, 9, 3],
    }
    assert trained.score(table[0], 20).log_p.notna().all()
    without = Experiment.parse({**QUICK, "data": data, "likelihood": "Poisson"})
    with pytest.raises(InputError, match=r"no parameter of the likelihood takes it"):
        check(without, without.load_data())


# ---------------------------------------------------------------------- 20 Newsgroups


def test_newsgroups():
    folder = os.environ.get("PYRO_VAE_DATA")
    if not folder or not (Path(folder) / newsgroups.NEWSGROUPS_FILE.path).is_file():
        pytest.skip("`20newsgroups` is not in PYRO_VAE_DATA")
    data = load("20newsgroups", support=COUNTS, offset="total")
    assert [tuple(x.shape) for x in (data.train, data.valid, data.test)] == [(11214, 3072), (100, 3072), (7531, 3072)]
    assert [int(x.sum()) for x in (data.train, data.valid, data.test)] == [919850, 8334, 594276]
    assert data.scaling == "none"
    assert len(set(data.columns)) == 3072
    first, second = newsgroups_halves()
    assert torch.equal(first + second, data.test)
    torch.testing.assert_close(data.offset["test"].squeeze(1) + data.units.offset.centre, data.test.sum(1).log())
    with pytest.raises(InputError, match="this set has no labels"):
        load("20newsgroups", support=COUNTS, context="labels")


def test_newsgroups_are_converted_from_their_public_format(tmp_path):
    """Rows of different lengths as MATLAB cells, and a pickled list of words, which alone may be unpickled."""
    tokens = [np.array([[0, 2]]), np.array([[1]]), np.array([[0, 1, 2]])]
    for short in newsgroups._SETS.values():
        for what in ("tokens", "counts"):
            cells = np.empty((1, 3), object)
            cells[0, :] = tokens if what == "tokens" else [row + 1 for row in tokens]
            scipy.io.savemat(tmp_path / f"bow_{short}_{what}.mat", {what: cells})
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(["a", "b", "c"]))
    arrays = newsgroups.read_mat({path.name: path for path in tmp_path.iterdir()})
    assert newsgroups._dense(arrays, "test", 3).tolist() == [[1, 0, 3], [0, 2, 0], [1, 2, 3]]
    assert len(content_digest(arrays)) == 64
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(np.float64))
    with pytest.raises(pickle.UnpicklingError, match="no list of words"):
        newsgroups.read_mat({path.name: path for path in tmp_path.iterdir()})
