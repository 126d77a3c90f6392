"""A trained model in the data's own units and words, also of algorithms that train no posterior or its mean alone."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from annealing import short_pilot

import pyro_vae
from pyro_vae.comparison import trained_vae
from pyro_vae.comparison.compare import compare
from pyro_vae.comparison.folder import new_folder, write_run
from pyro_vae.errors import InputError
from pyro_vae.evaluation import annealed_importance_sampling
from pyro_vae.experiment import Experiment


@pytest.fixture(scope="module")
def run(everything, tmp_path_factory):
    comparison = everything.only("mcem", "autoencoder", "aevb", "vb")
    folder = tmp_path_factory.mktemp("runs") / "run"
    with new_folder(folder) as partial:
        write_run(comparison, partial)
    return folder, comparison


@pytest.mark.parametrize("label", ["mcem", "autoencoder"])
def test_without_a_posterior_scores_are_by_annealing(run, label, monkeypatch):
    annealing = functools.partial(annealed_importance_sampling, compile=False)  # the same on slow machines
    monkeypatch.setattr(trained_vae, "annealed_importance_sampling", annealing)
    monkeypatch.setattr(trained_vae, "_TEMPERATURES", 5)
    trained = pyro_vae.load(run[0], label)
    grey = np.random.default_rng(0).integers(0, 17, (6, 64))
    with short_pilot():
        scores = trained.score(grey)
        estimate = annealing(trained.vae, trained.read_rows(grey), 5, 16)
    assert list(scores.columns) == ["row", "log_p", "standard_error", "effective_sample_size"]
    assert scores.log_p.tolist() == estimate.pointwise.tolist()
    assert scores.effective_sample_size.tolist() == estimate.diagnostics["effective_sample_size"].tolist()


def test_what_the_encoder_does_not_know_is_not_printed(run):
    x = torch.zeros(3, 64)
    assert list(pyro_vae.load(run[0], "aevb").encode(x).columns) == ["z0", "z1", "z2", "z0_sd", "z1_sd", "z2_sd"]
    assert list(pyro_vae.load(run[0], "autoencoder").encode(x).columns) == ["z0", "z1", "z2"]
    trained = pyro_vae.load(run[0])
    for method in ("encode", "impute", "reconstruct"):
        with pytest.raises(InputError, match=rf"^{method}: `mcem` trains no posterior.*--algorithm"):
            getattr(trained, method)(x)


def test_every_algorithms_model_generates(run):
    for label in ("mcem", "autoencoder", "aevb"):
        assert pyro_vae.load(run[0], label).sample(4).shape == (4, 64)


def test_the_algorithms_state_comes_back(run):
    folder, comparison = run
    for label in ("mcem", "vb"):
        state = comparison.runs_of(label)[0].inference.state_dict()
        assert len(state) > 0
        for algorithm in (pyro_vae.load(folder, label).algorithm, pyro_vae.load_inference(folder, label)):
            assert not algorithm.training
            restored = algorithm.state_dict()
            assert restored.keys() == state.keys()
            assert all(torch.equal(restored[name], value) for name, value in state.items())
    assert float(restored["kl_per_datum"]) > 0
    assert repr(pyro_vae.load(folder, label).algorithm) == repr(comparison.runs_of(label)[0].inference)
    assert repr(pyro_vae.load_inference(folder, "aevb")) == "AEVB(num_particles=1)"
    assert not list((folder / "weights").glob("aevb*.inference.*"))


# ---------------------------------------------------------------------- own units and words


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A trained model of a table with numbers, counts, words and gaps, given a column of words; and its rows."""
    folder, random = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    n = 80
    frame = pd.DataFrame(
        {
            "name": [f"p{i}" for i in range(n)],  # not modelled
            "height": random.normal(174, 8, n).round(1),
            "visits": random.poisson(3, n).astype(float),
            "region": random.choice(["east", "north", "south"], n),
            "sex": random.choice(["f", "m"], n),
        },
        index=[f"row {i}" for i in range(n)],
    )
    frame.loc[frame.index[:9], "height"] = np.nan
    frame.loc[frame.index[5:14], "region"] = None
    frame.drop(columns="name").to_csv(folder / "people.csv", index=False)
    columns = {"region": "Categorical", "visits": "Poisson", "height": {"family": "Normal", "scale": "learned"}}
    experiment = Experiment.parse(
        {
            "data": {"name": str(folder / "people.csv"), "missing": "mask", "context": ["sex"]},
            "latent": 2,
            "likelihood": {"mixed": columns},
            "networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}},
            "inference": ["aevb"],
            "training": {"epochs": 2},
            "evaluation": {"num_samples": 20, "posterior_checks": 0},
            "seeds": 1,
        }
    )
    with new_folder(folder / "run") as partial:
        write_run(compare(experiment), partial)
    return pyro_vae.load(folder / "run"), frame


CALLS = {
    "score": lambda trained, rows, **options: trained.score(rows, 10, **options),
    "encode": lambda trained, rows, **options: trained.encode(rows, **options),
    "impute": lambda trained, rows, **options: trained.impute(rows, **options),
    "reconstruct": lambda trained, rows, **options: trained.reconstruct(rows, **options),
    "read_rows": lambda trained, rows, **options: trained.read_rows(rows, **options),
}
TABLES = [name for name in CALLS if name != "read_rows"]


def test_a_reconstruction_is_the_vaes_in_own_units(people):
    trained, frame = people
    made, rows = trained.reconstruct(frame), trained.read_rows(frame)
    with torch.no_grad():
        region, visits, height = trained.vae.reconstruct(rows).double().T  # in the likelihood's order
    centre, scale = trained.units.centre, trained.units.scale
    np.testing.assert_allclose(made.height, height * scale[2] + centre[2], rtol=1e-12)
    np.testing.assert_allclose(made.visits, visits, rtol=1e-12)
    assert made.region.tolist() == [("east", "north", "south")[int(level)] for level in region]
    assert list(made.columns) == list(frame.columns)  # the rows' order, with what is not modelled
    assert made[["name", "sex"]].equals(frame[["name", "sex"]])
    assert not made.isna().any().any()
    assert 150 < made.height.mean() < 200


def test_an_imputation_is_the_reconstruction_where_cells_are_missing(people):
    trained, frame = people
    filled, made = trained.impute(frame), trained.reconstruct(frame)
    pd.testing.assert_frame_equal(filled, frame.where(frame.notna(), made))


def test_reconstructions_of_images_are_grey_levels_and_of_arrays_have_names(run):
    trained = pyro_vae.load(run[0], "aevb")
    grey = np.random.default_rng(1).integers(0, 17, (5, 64))
    made = trained.reconstruct(grey, seed=3)
    with torch.no_grad():
        expected = 16 * trained.vae.reconstruct(trained.read_rows(grey, seed=3)).double()
    np.testing.assert_allclose(made.to_numpy(), expected, rtol=1e-12)
    assert list(made.columns) == [f"x{i}" for i in range(64)]
    assert not made.equals(trained.reconstruct(grey, seed=4))  # other bits of the same grey levels


@pytest.mark.parametrize("call", CALLS)
def test_files_frames_and_other_orders_of_columns_are_the_same(people, tmp_path, call):
    trained, frame = people
    frame.to_csv(tmp_path / "rows.csv", index=False)
    expected = CALLS[call](trained, frame)
    for rows in (tmp_path / "rows.csv", str(tmp_path / "rows.csv"), frame[frame.columns[::-1]]):
        got = CALLS[call](trained, rows)
        if call == "read_rows":
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        elif isinstance(rows, pd.DataFrame):
            pd.testing.assert_frame_equal(got[expected.columns], expected)
        else:
            pd.testing.assert_frame_equal(got, expected.reset_index(drop=True))


@pytest.mark.parametrize("call", TABLES)
def test_results_have_the_index_of_the_rows(people, call):
    trained, frame = people
    some = frame.iloc[[7, 3, 20]]
    table = CALLS[call](trained, some)
    assert table.index.tolist() == ["row 7", "row 3", "row 20"]
    assert table.name.tolist() == ["p7", "p3", "p20"]


@pytest.mark.parametrize("call", CALLS)
def test_a_context_that_is_said_replaces_the_rows_own(people, call):
    trained, frame = people
    given = pd.DataFrame({"sex": ["m"] * len(frame)}, index=frame.index)
    expected = CALLS[call](trained, frame.assign(sex="m"))
    assert len(frame.sex.unique()) == 2
    for rows, context in ((frame, "sex=m"), (frame.drop(columns="sex"), "sex=m"), (frame, given)):
        got = CALLS[call](trained, rows, context=context)
        if call == "read_rows":
            assert torch.equal(got.context, expected.context)
        else:
            pd.testing.assert_frame_equal(got[expected.columns], expected)


@pytest.mark.parametrize("call", CALLS)
def test_rows_that_do_not_fit_are_refused(people, call):
    trained, frame = people
    for rows, message in (
        (frame.rename(columns={"height": "heigth"}), r"lacks the columns `height` \(did you mean `heigth`"),
        (frame.drop(columns="sex"), r"lacks the columns `sex`"),
        (frame.assign(region="norht"), r"`norht` in data row 1 .*did you mean `north`"),
        (frame.assign(visits=-1), r"`-1` in data row 1 .*column `visits` lies outside the support"),
        (frame[["region", "visits", "height"]].to_numpy()[:, 1:].astype(float), "column `sex` is wanted by name"),
        (trained.read_rows(frame), "the rows are a `Batch`, which is in the model's units"),
    ):
        with pytest.raises(InputError, match=message):
            CALLS[call](trained, rows)


def test_samples_are_in_own_words(people):
    trained, _ = people
    draws = trained.sample(200, context="sex=f")
    assert list(draws.columns) == ["region", "visits", "height", "sex"]
    assert set(draws.region) == {"east", "north", "south"}
    assert set(draws.sex) == {"f"}
    assert 150 < draws.height.mean() < 200
    assert trained.encode(draws).shape == (200, 4)  # what is drawn can be encoded


def test_a_trained_vae_refuses_a_data_frame_in_own_units(people):
    trained, frame = people
    with pytest.raises(InputError, match=r"VAE: the VAE is of transformed data"):
        trained.vae.encode(frame[list(trained.units.columns)])


def test_what_is_loaded_cannot_be_set(people):
    trained, _ = people
    with pytest.raises(AttributeError):
        trained.units = None
    assert not hasattr(trained.vae, "units")
    assert not hasattr(trained.vae, "algorithm")
