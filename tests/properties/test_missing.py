"""Tables with missing cells: read, masked, scored, imputed."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.distributions import MultivariateNormal, constraints
from typer.testing import CliRunner
from z_test import FAILURE_RATE

import pyro_vae
from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, Training, cli, datasets, fit, mlp
from pyro_vae.comparison.compare import compare
from pyro_vae.comparison.folder import new_folder, write_run
from pyro_vae.comparison.trained_vae import TrainedVAE
from pyro_vae.datasets import DataTransform, load
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment
from pyro_vae.inference import AEVB, AnalyticKL
from pyro_vae.vae.mixed import Column, Mixed


def write(path, text):
    path.write_text(text)
    return path


# ---------------------------------------------------------------------- reading


def test_missing_cells_are_read_only_on_request(tmp_path):
    path = write(tmp_path / "t.csv", "a,b\n" + "1,10\n,20\n3,\n4,50\n" * 5)
    with pytest.raises(InputError, match=r"missing cell in data row 2 .*column `a`.*`missing: mask`"):
        load(path)
    data = load(path, missing="mask")
    everything = torch.cat([data.train, data.valid, data.test])
    assert everything.isnan().sum(0).tolist() == [5, 5]
    batch = data.batch("train")
    assert torch.equal(batch.mask, ~data.train.isnan())
    assert torch.equal(batch.x, data.train.nan_to_num(0.0))
    # Fitted on the observed cells of the training rows alone.
    own = data.to_own_units(data.train)
    for column in range(2):
        seen = own[~own[:, column].isnan(), column]
        assert float(data.centre[column]) == pytest.approx(float(seen.mean()), rel=1e-6)
        assert float(data.scale[column]) == pytest.approx(float(seen.std(correction=0)), rel=1e-6)
    assert data.record()["observed"]["train"] == float(batch.mask.double().mean())
    assert load(path, missing="mask", scaling="none").batch("test").mask is not None


def test_nan_in_an_array_is_missing_too(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 3))
    x[4, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=r"`nan` in data row 5 .*`missing: mask`"):
        load(tmp_path / "x.npy")
    assert int(load(tmp_path / "x.npy", missing="mask", split=(1, 0, 0)).train.isnan().sum()) == 1
    x[7, 2] = np.inf
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match="`inf` in data row 8"):
        load(tmp_path / "x.npy", missing="mask")


def test_columns_and_rows_without_observed_cells_are_named(tmp_path):
    empty = write(tmp_path / "column.csv", "a,b\n" + "1,\n2,\n3,\n" * 5)
    with pytest.raises(InputError, match="column `b` is empty on all 11 training rows"):
        load(empty, missing="mask")
    row = write(tmp_path / "row.csv", "a,b\n1,2\n,\n" + "3,5\n" * 10)
    with pytest.raises(InputError, match=r"data row 2 .*has no observed cell"):
        load(row, missing="mask")
    with pytest.raises(InputError, match=r"`missing`: got `masc` \(did you mean `mask`\?\)"):
        load(row, missing="masc")


def test_a_support_is_asked_of_observed_cells_alone(tmp_path):
    path = write(tmp_path / "counts.csv", "a,b\n" + "1,2\n,3\n4,\n" * 5)
    data = load(path, support=constraints.nonnegative_integer, missing="mask")
    assert data.scaling == "none"
    for bad in ("-1", "0.5"):
        wrong = write(tmp_path / "wrong.csv", f"a,b\n1,2\n,{bad}\n" + "1,2\n" * 10)
        with pytest.raises(InputError, match=f"`{bad}` in data row 2 .*column `b`.*outside the likelihood's support"):
            load(wrong, support=constraints.nonnegative_integer, missing="mask")
    bits = write(tmp_path / "bits.csv", "a,b\n" + "1,0\n,1\n0,\n" * 5)
    assert int(load(bits, support=constraints.boolean, missing="mask").train.isnan().sum()) > 0
    grey = load(bits, support=constraints.boolean, missing="mask", binarisation="static")
    assert int(grey.train.isnan().sum()) > 0


# ---------------------------------------------------------------------- densities


@pytest.mark.parametrize("kind", ["conditional", "mixed"])
def test_a_mask_leaves_the_marginal_of_the_observed_cells(kind):
    """log p(x, z) - log p(z | observed x) is log p(observed x) at every z, exactly."""
    torch.manual_seed(0)
    scales = torch.tensor([0.5, 0.8, 0.5, 0.8], dtype=torch.float64)
    decoder = nn.Linear(2, 4).double()
    if kind == "conditional":
        likelihood = Conditional(dist.Normal, (4,), given=decoder, head=None, scale=Fixed(scales))
    else:
        columns = [Column(dist.Normal, scale=Fixed(scale)) for scale in scales]
        likelihood = Mixed(columns, given=mlp(2)).double()
        for i, group in enumerate(likelihood.groups):
            index = getattr(likelihood, f"index_{i}")
            group.head.weight.data, group.head.bias.data = decoder.weight[index].clone(), decoder.bias[index].clone()
    prior = Conditional(dist.Normal, (2,), loc=Fixed(torch.zeros(2).double()), scale=Fixed(torch.ones(2).double()))
    vae = VAE(prior, likelihood, Conditional(dist.Normal, (2,), given=nn.Linear(4, 3).double()))
    x, mask = torch.randn(6, 4).double(), torch.rand(6, 4) < 0.6
    mask[0], mask[1] = False, True
    z = torch.randn(6, 2).double()
    log_joint = vae.log_joint(z, Batch(torch.where(mask, x, math.nan), mask=mask))
    for row in range(6):
        seen = mask[row]
        w, b, noise = decoder.weight[seen], decoder.bias[seen], torch.diag(scales[seen] ** 2)
        precision = torch.eye(2).double() + w.T @ noise.inverse() @ w
        mean = precision.inverse() @ w.T @ noise.inverse() @ (x[row, seen] - b)
        log_posterior = MultivariateNormal(mean, precision_matrix=precision).log_prob(z[row])
        exact = torch.zeros(()).double()
        if bool(seen.any()):
            exact = MultivariateNormal(b, w @ w.T + noise).log_prob(x[row, seen])
        torch.testing.assert_close(log_joint[row] - log_posterior, exact, rtol=0, atol=1e-10)


def test_the_jacobian_counts_observed_cells_alone(tmp_path):
    path = write(tmp_path / "t.csv", "a,b\n" + "1,10\n,20\n3,\n4,50\n" * 5)
    data = load(path, missing="mask", split=(1, 0, 0))
    batch = data.batch()
    shift, log_scale = data.units.log_jacobian_of(batch.mask), data.scale.log()
    torch.testing.assert_close(shift, -(batch.mask.double() @ log_scale))
    assert data.mean_log_jacobian("train") == pytest.approx(float(shift.mean()))
    assert data.units.log_jacobian_of(None) == data.log_jacobian == -float(log_scale.sum())


# ---------------------------------------------------------------------- imputation


def test_imputation_beats_the_mean():
    """30 % of the cells of `diabetes`, completely at random, imputed by the column's mean and by a Mixed likelihood."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    own = torch.tensor(table.data)
    own[:, 1] -= 1  # sex
    better = []
    for seed in range(2):
        hidden = torch.rand(own.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        seen = own.masked_fill(hidden, math.nan)
        real = torch.ones(10, dtype=torch.bool)
        real[1] = False
        centre = seen.nanmean(0)
        scale = (seen - centre).square().nanmean(0).sqrt()
        x = torch.where(real, (seen - centre) / scale, seen).float()
        torch.manual_seed(seed)
        columns = {name: Column(dist.Normal, scale=Learned(1.0)) for name in table.feature_names}
        likelihood = Mixed({**columns, "sex": Column(dist.Bernoulli)}, given=mlp(3, 32))
        vae = VAE(Conditional(dist.Normal, (3,), loc=Fixed(0.0), scale=Fixed(1.0)), likelihood)
        batch = Batch(x.nan_to_num(0.0), mask=~hidden)
        fit(
            vae,
            batch,
            AnalyticKL(),
            Training(optimizer=lambda p: torch.optim.Adam(p, lr=2e-2), epochs=30, batch_size=128),
            seed=seed,
        )
        filled = torch.where(real, vae.reconstruct(batch).double() * scale + centre, vae.reconstruct(batch).double())
        errors = [((own - guess) / scale).square() * hidden for guess in (centre, filled)]
        rmse = [float((error.sum() / hidden.sum()).sqrt()) for error in errors]
        assert rmse[1] < rmse[0]
        better.append((errors[0] - errors[1]).sum(1))
    # Paired over rows: of each the mean over the seeds, so that rows are independent given the tables' columns.
    difference = torch.stack(better).mean(0)
    z = float(difference.mean() / (difference.std() / len(difference) ** 0.5))
    assert z > norm.isf(FAILURE_RATE), f"z = {z:.1f}"


# ---------------------------------------------------------------------- from the file to the run folder and back


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A comparison on a table of numbers, counts, words and gaps, and its folder."""
    folder = tmp_path_factory.mktemp("missing")
    random = np.random.default_rng(0)
    n = 90
    sex = random.choice(["f", "m"], n)
    frame = pd.DataFrame(
        {
            "height": random.normal(np.where(sex == "m", 180, 168), 5).round(1),
            "visits": random.poisson(2, n),
            "smoker": random.choice(["no", "yes"], n),
            "region": random.choice(["east", "north", "south"], n),
            "sex": sex,
            "grade": random.choice([2, 4, 6], n),
        }
    ).astype(object)
    gaps = random.random((n, 6)) < 0.15
    gaps[:, 4], gaps[:, 0] = False, gaps[:, 0] & ~gaps[:, 1]
    frame = frame.mask(gaps)
    frame.to_csv(folder / "people.csv", index=False)
    experiment = Experiment.parse(
        {
            "data": {"name": str(folder / "people.csv"), "missing": "mask", "context": ["sex"]},
            "latent": 2,
            "likelihood": {
                "mixed": {
                    "visits": "Poisson",
                    "height": {"family": "Normal", "scale": "learned"},
                    "smoker": "Bernoulli",
                    "region": "Categorical",
                    "grade": {"Categorical": 3},
                }
            },
            "networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}},
            "inference": ["aevb"],
            "training": {"epochs": 2},
            "evaluation": {"num_samples": 20, "posterior_checks": 0},
            "seeds": 1,
        }
    )
    comparison = compare(experiment)
    with new_folder(folder / "run") as partial:
        write_run(comparison, partial)
    return folder, frame, comparison


def test_the_run_folder_knows_columns_levels_and_context(run):
    folder, _, comparison = run
    trained = pyro_vae.load(folder / "run")
    assert trained.units.columns == ("visits", "height", "smoker", "region", "grade")  # in the likelihood's order
    assert trained.units.levels == (None, None, ("no", "yes"), ("east", "north", "south"), (2.0, 4.0, 6.0))
    assert trained.units.scale.tolist()[2:] == [1.0, 1.0, 1.0]
    assert trained.units.scale[0] == 1.0
    assert trained.units.scale[1] > 2
    assert trained.vae.context_features == 2
    said = Experiment.from_yaml(folder / "run" / "experiment.yaml").likelihood.columns["region"]
    assert said.model_extra == {"logits": {"network": [3]}}
    assert DataTransform.from_record(json.loads(json.dumps(trained.units.record()))).record() == trained.units.record()
    estimate, batch = comparison.runs[0].elbo, comparison.data.batch("test")
    assert len(estimate.pointwise) == batch.size
    assert estimate.value == pytest.approx(float(estimate.pointwise.mean()))


def test_records_of_before_still_load():
    record = load("digits").units.record()
    old = {name: value for name, value in record.items() if name not in ("missing", "levels", "context", "offset")}
    units = DataTransform.from_record(old)
    assert (units.missing, units.levels, units.context, units.offset) == ("error", None, (), None)


def test_new_rows_have_words_gaps_and_context(run, tmp_path):
    folder, frame, _ = run
    trained = pyro_vae.load(folder / "run")
    batch = trained.read_rows(folder / "people.csv")
    names = list(trained.units.columns)
    assert torch.equal(batch.mask, torch.tensor(frame[names].notna().to_numpy()))
    assert torch.equal(batch.context.argmax(1), torch.tensor((frame.sex == "m").to_numpy().astype(int)))
    scores = trained.score(folder / "people.csv", num_samples=20)
    estimate = pyro_vae.evaluation.log_marginal(trained.vae, batch, 20)
    expected = estimate.pointwise - batch.mask[:, 1] * trained.units.scale[1].log()
    torch.testing.assert_close(torch.tensor(scores.log_p.values), expected)
    blank = write(tmp_path / "blank.csv", "visits,height,smoker,region,grade,sex\n,,,,,f\n")
    assert float(trained.score(blank).log_p[0]) == pytest.approx(0.0, abs=0.05)
    other = write(tmp_path / "other.csv", "visits,height,smoker,region,grade,sex\n1,170,yes,norht,4,f\n")
    with pytest.raises(InputError, match=r"`norht` in data row 1 .*column `region`.*no level.*did you mean `north`"):
        trained.read_rows(other)
    with pytest.raises(InputError, match=r"`5` in data row 1 .*column `grade`.*no level"):
        trained.read_rows(write(tmp_path / "g.csv", "visits,height,smoker,region,grade,sex\n1,170,yes,north,5,f\n"))
    with pytest.raises(InputError, match=r"missing cell in data row 1 .*column `sex`"):
        trained.read_rows(write(tmp_path / "s.csv", "visits,height,smoker,region,grade,sex\n1,170,yes,north,4,\n"))


@pytest.mark.parametrize("given", [None, "sex=m", pd.DataFrame({"sex": ["f"]})], ids=["own", "said", "frame"])
def test_a_data_frame_has_the_numbers_that_the_command_has_of_its_file(run, tmp_path, given):
    """Missing cells and the context are in the batch, and each row's Jacobian is that of its observed cells."""
    folder, frame, _ = run
    trained = pyro_vae.load(folder / "run")
    named = f"sex={given.sex[0]}" if isinstance(given, pd.DataFrame) else given
    out = tmp_path / "scores.csv"
    command = ["score", str(folder / "run"), str(folder / "people.csv"), "--num-samples", "20", "--out", str(out)]
    result = CliRunner().invoke(cli.app, command + ([] if named is None else ["--context", named]))
    assert result.exit_code == 0, result.output
    rows = trained.read_rows(frame.sample(frac=1, axis=1, random_state=0), context=given)
    estimate = pyro_vae.evaluation.log_marginal(trained.vae, rows, 20).shifted(trained.units.log_jacobian_of(rows))
    assert estimate.pointwise.tolist() == pytest.approx(pd.read_csv(out).log_p.tolist(), abs=1e-9)
    pd.testing.assert_frame_equal(trained.impute(frame), trained.impute(folder / "people.csv"))


def test_a_data_frame_is_read_by_its_names(run):
    folder, frame, _ = run
    trained = pyro_vae.load(folder / "run")
    misnamed, without = frame.rename(columns={"height": "heigth"}), frame.drop(columns="visits")
    text = frame.astype({"height": object})
    text.loc[3, "height"] = "171,5"
    for given, message in (
        (misnamed, r"lacks the columns `height` \(did you mean `heigth`"),
        (without, "lacks the columns `visits`"),
        (text, "`171,5` in data row 4 .*column `height`"),
    ):
        for call in (trained.units.to_model_units, trained.read_rows):
            with pytest.raises(InputError, match=message):
                call(given)
    with pytest.raises(InputError, match=r"dtype `.*`; pass real numbers"):
        trained.units.to_model_units(text[list(trained.units.columns)].to_numpy())
    bare = frame[list(trained.units.columns)].set_axis(range(5), axis=1)  # columns without names: by position
    torch.testing.assert_close(trained.units.to_model_units(bare), trained.units.to_model_units(frame), equal_nan=True)


def test_a_value_that_the_likelihood_cannot_have_is_named_by_its_place_in_the_file(run, tmp_path):
    """As in training: the file, the row from 1, the column's name, and the value as it stands there."""
    trained = pyro_vae.load(run[0] / "run")
    good = "171.5,2,no,east,f,4\n"
    path = write(tmp_path / "v.csv", "height,visits,smoker,region,sex,grade\n" + 3 * good + "1,-1,yes,north,f,2\n")
    place = r"^`.*v\.csv`: `-1` in data row 4 \(counted from 1, below the header\), column `visits` lies outside the "
    for call in (trained.read_rows, trained.impute):
        with pytest.raises(InputError, match=place + r"support .* of the likelihood of column `visits`; choose"):
            call(path)


def test_samples_have_the_words_and_what_they_are_given(run):
    trained = pyro_vae.load(run[0] / "run")
    draws = trained.sample(40, context="sex=f")
    assert list(draws.columns) == ["visits", "height", "smoker", "region", "grade", "sex"]
    assert set(draws.region) == {"east", "north", "south"}
    assert set(draws.smoker) == {"no", "yes"}
    assert set(draws.grade) <= {2.0, 4.0, 6.0}
    assert set(draws.sex) == {"f"}
    assert 100 < draws.height.mean() < 240
    with pytest.raises(InputError, match=r"--context \"sex=\.\.\.\""):
        trained.sample(3)
    with pytest.raises(InputError, match=r"no context `sx` .*did you mean `sex`"):
        trained.sample(3, context="sx=f")
    with pytest.raises(InputError, match=r"column `sex`.*no level"):
        trained.sample(3, context="sex=x")


def test_impute_keeps_what_is_observed_and_fills_the_rest(run, monkeypatch, capsys):
    folder, frame, _ = run
    monkeypatch.setattr("sys.argv", ["pyro-vae", "impute", str(folder / "run"), str(folder / "people.csv")])
    with pytest.raises(SystemExit):
        cli.main()
    out, _ = capsys.readouterr()
    write(folder / "filled.csv", out)
    filled = pd.read_csv(folder / "filled.csv")
    names = list(filled.columns)
    assert names == ["height", "visits", "smoker", "region", "sex", "grade"]  # the file's, its context too
    assert not filled.isna().any().any()
    seen = frame[names].notna()
    assert (filled.astype(object)[seen] == frame[names])[seen].fillna(True).to_numpy().all()
    trained = pyro_vae.load(folder / "run")
    expected = trained.units.to_frame(trained.vae.reconstruct(trained.read_rows(folder / "people.csv")))
    gaps = ~seen.height
    np.testing.assert_allclose(filled.height[gaps], expected.height[gaps], rtol=1e-6)
    assert filled.sex.tolist() == frame.sex.tolist()
    as_women = trained.impute(folder / "people.csv", context="sex=f")
    assert list(as_women.columns) == names
    assert set(as_women.sex) == {"f"}
    without = write(folder / "without.csv", "id,grade,height,smoker,region,visits,of\n007,4,,no,east,1,NA\n")
    filled = trained.impute(without, context="sex=m")
    assert list(filled.columns) == ["id", "grade", "height", "smoker", "region", "visits", "of", "sex"]
    assert (filled.id[0], filled.of[0]) == ("007", "NA")  # what is not modelled, as it stands
    kept = trained.impute(frame.assign(id=[f"p{i}" for i in range(len(frame))])[["id", *frame.columns]])
    assert (list(kept.columns), kept.id[11]) == (["id", *frame.columns], "p11")
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    digits = VAE(prior, Conditional(dist.Bernoulli, (64,), given=mlp(2, 4)))
    with pytest.raises(InputError, match="trained without missing cells"):
        TrainedVAE(digits, load("digits").units, AEVB()).impute(folder / "people.csv")


def test_scores_and_codes_stand_behind_what_is_not_modelled(run, tmp_path):
    folder, frame, _ = run
    path = tmp_path / "named.csv"
    frame.assign(name=[f"0{i}" for i in range(len(frame))], z0="x").to_csv(path, index=False)
    for command, first in (("score", ["name", "z0", "row", "log_p"]), ("encode", ["name", "z0", "z1", "z0_sd"])):
        for out in ("out.csv", "out.npy"):
            arguments = [command, str(folder / "run"), str(path), "--out", str(tmp_path / out)]
            assert CliRunner().invoke(cli.app, arguments).exit_code == 0
        written = pd.read_csv(tmp_path / "out.csv", dtype={"name": str})
        assert list(written.columns)[:4] == first
        assert written.name[7] == "07"
        assert np.load(tmp_path / "out.npy").shape == (len(frame), 4)  # without names, the numbers alone


# ---------------------------------------------------------------------- families by name and by content


def test_columns_without_a_family_and_families_without_a_column_are_named(run):
    comparison = run[2]
    content = comparison.experiment.model_dump(mode="json", exclude_none=True)
    columns = content["likelihood"]["mixed"]
    for changed, message in (
        ({**columns, "heigth": "Normal"}, "no column `heigth` to model; did you mean `height`"),
        ({name: c for name, c in columns.items() if name != "grade"}, "column `grade` of the table has no family"),
        ({**columns, "sex": "Bernoulli"}, "no column `sex` to model"),
    ):
        with pytest.raises(InputError, match=message):
            Experiment.parse({**content, "likelihood": {"mixed": changed}}).load_data()
    with pytest.raises(InputError, match="has 3 levels"):
        Experiment.parse({**content, "likelihood": {"mixed": {**columns, "grade": {"Categorical": 2}}}}).load_data()
    with pytest.raises(InputError, match="named set"):
        Experiment.parse({"data": "digits", "likelihood": "mixed"}).load_data()
    with pytest.raises(InputError, match="unknown family `Norml`"):
        Experiment.parse({"likelihood": {"mixed": {"a": "Norml"}}})


def test_auto_chooses_by_content(tmp_path):
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "bit": random.integers(0, 2, 200),
            "answer": random.choice(["no", "yes"], 200),
            "word": random.choice(["a", "b", "c"], 200),
            "code": random.choice([1, 2, 3, 4], 200),
            "few": random.poisson(3, 200),
            "burst": random.negative_binomial(1, 0.1, 200),
            "year": random.integers(1950, 2000, 200),
            "real": random.normal(size=200),
        }
    )
    frame.to_csv(tmp_path / "auto.csv", index=False)
    experiment = Experiment.parse({"data": str(tmp_path / "auto.csv"), "likelihood": {"mixed": "auto"}})
    families = {name: spec.family for name, spec in experiment.resolved().likelihood.columns.items()}
    assert families == {
        "bit": "Bernoulli",
        "answer": "Bernoulli",
        "word": "Categorical",
        "code": "Categorical",
        "few": "Poisson",
        "burst": "NegativeBinomial",
        "year": "Normal",
        "real": "Normal",
    }
    data = experiment.load_data()
    assert data.units.levels[3] == (1.0, 2.0, 3.0, 4.0)
    vae = experiment.build(data)
    assert bool(vae.log_weights(data.batch("test")).isfinite().all())
    frame["name"] = [f"person {i}" for i in range(200)]
    frame.to_csv(tmp_path / "auto.csv", index=False)
    with pytest.raises(InputError, match="`name` holds 200 different words"):
        experiment.resolved()
    assert datasets.describe(tmp_path / "auto.csv")[0].distinct == 2


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ("23.4 kg", "`23.4 kg` .*most cells of the column are numbers; "),
        ("23,4", '`23,4` .*`decimal: ","` .* reads `23,4` as 23.4'),
    ],
)
def test_a_word_in_a_column_of_numbers_makes_it_no_column_of_levels(tmp_path, odd, message):
    path = tmp_path / "t.csv"
    path.write_text("weight,age\n" + f'"{odd}",1\n' + "".join(f"{60 + i / 10},{i}.5\n" for i in range(70)))
    with pytest.raises(InputError, match=message):
        Experiment.parse({"data": str(path), "likelihood": {"mixed": "auto"}}).load_data()
