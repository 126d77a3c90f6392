"""What a comparison leaves on disk, and how it comes back."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_comparisons import checked_hardly

import pyro_vae
from pyro_vae.comparison.compare import compare
from pyro_vae.comparison.curves import curves
from pyro_vae.comparison.folder import new_folder, unfinished, write_run
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment
from pyro_vae.runtime.random_streams import isolated

COLUMNS = ("height", "weight", "size")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = torch.randn(80, 3, generator=torch.Generator().manual_seed(0)).double()
    frame = pd.DataFrame((rows * torch.tensor([0.1, 10, 1]) + torch.tensor([1.7, 70, -3])).numpy(), columns=COLUMNS)
    path = tmp_path_factory.mktemp("data") / "people.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """A comparison on a table, and its run folder."""
    experiment = Experiment.parse(
        {
            "data": str(table),
            "latent": 2,
            "likelihood": {"family": "Normal", "scale": "learned"},
            "networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}},
            "inference": ["aevb", "wake-sleep"],
            "training": {"epochs": 3, "batch_size": 10},
            "evaluation": {"num_samples": 30, "posterior_checks": 2},
            "seeds": [0, 5],
        }
    )
    with checked_hardly():
        comparison = compare(experiment)
    folder = tmp_path_factory.mktemp("runs") / "people"
    with new_folder(folder) as partial:
        write_run(comparison, partial)
    return comparison, folder


def test_files(run):
    comparison, folder = run
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    labels, seeds = ("aevb", "wake-sleep"), (0, 5)
    assert files == {
        "SHA256SUMS",
        "experiment.yaml",
        "result.json",
        "metrics.csv",
        "curves.csv",
        *(f"results/{label}.nc" for label in labels),
        *(f"weights/{label}-seed{seed}.safetensors" for label in labels for seed in seeds),
    }
    assert Experiment.from_yaml(folder / "experiment.yaml") == comparison.experiment
    metrics = pd.read_csv(folder / "metrics.csv").set_index(["algorithm", "seed"])
    assert metrics.loc[("wake-sleep", 5), "elbo"] == comparison.runs_of("wake-sleep")[1].elbo.value
    assert json.loads((folder / "result.json").read_text()) == comparison.record()


def test_curves_average_the_steps(run):
    comparison, _ = run
    table = curves(comparison, points=6)
    one = table[(table.algorithm == "aevb") & (table.seed == 5) & (table.part == "train")]
    history = comparison.runs_of("aevb")[1].history
    steps, bound = history.curve(6)
    assert one.bound.tolist() == pytest.approx((bound + comparison.data.log_jacobian).tolist())
    assert one.step.tolist() == steps.tolist()
    assert one.samples.tolist() == history.samples[steps - 1].tolist()


@pytest.mark.parametrize(("algorithm", "seed"), [("aevb", 0), ("wake-sleep", 5)])
def test_a_loaded_vae_is_the_trained_one(run, algorithm, seed):
    comparison, folder = run
    trained = pyro_vae.load(folder, algorithm=algorithm, seed=seed)
    (original,) = [r.vae for r in comparison.runs_of(algorithm) if r.seed == seed]
    with isolated(0):
        expected = original.eval().log_weights(comparison.data.test, 3)
    with isolated(0):
        got = trained.vae.log_weights(comparison.data.test, 3)
    assert torch.equal(got, expected)
    assert trained.units.columns == COLUMNS
    assert trained.units.record().items() <= comparison.data.record().items()
    assert trained.algorithm.name == algorithm
    assert not trained.vae.training


def test_loading_leaves_the_random_streams_alone(run):
    state = torch.get_rng_state()
    pyro_vae.load(run[1])
    pyro_vae.load_inference(run[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_defaults_are_the_first(run):
    _, folder = run
    state, named = (trained.vae.state_dict() for trained in (pyro_vae.load(folder), pyro_vae.load(folder, "aevb", 0)))
    assert all(torch.equal(state[name], named[name]) for name in named)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("aevbb",), "did you mean `aevb`"), (("aevb", 3), r"no seed 3; it has \[0, 5\]")],
)
def test_load_refuses(run, arguments, message):
    with pytest.raises(InputError, match=message):
        pyro_vae.load(run[1], *arguments)


def unlisted(run, tmp_path):
    """A copy of the run folder without checksums, as one of an earlier version, or as a hostile hand makes it."""
    copy = tmp_path / "copy"
    shutil.copytree(run[1], copy)
    (copy / "SHA256SUMS").unlink()
    return copy


def test_load_names_what_is_damaged(run, tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        pyro_vae.load(tmp_path)
    copy = unlisted(run, tmp_path)
    weights = copy / "weights" / "aevb-seed0.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"aevb-seed0\.safetensors` cannot be read as weights.*; run the comparison"):
        pyro_vae.load(copy)
    (copy / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result\.json` cannot be read as the result.*; run the comparison again"):
        pyro_vae.load(copy)


def test_scores_are_densities_in_own_units(run, table):
    comparison, folder = run
    trained = pyro_vae.load(folder)
    scores = trained.score(table, num_samples=50)
    expected = (
        pyro_vae.evaluation.log_marginal(trained.vae, trained.read_rows(table), 50).pointwise
        - comparison.data.scale.log().sum()
    )
    torch.testing.assert_close(torch.tensor(scores.log_p.values), expected)
    assert list(scores.columns) == ["row", "log_p", "standard_error", "pareto_k"]


def test_an_outlier_has_the_lowest_score(run, tmp_path):
    trained = pyro_vae.load(run[1])
    path = tmp_path / "new.csv"
    path.write_text("weight,height,size,other\n70,1.7,-3,0\n170,1.7,-3,0\n71,1.75,-2.5,0\n")  # order is by name
    scores = trained.score(path, num_samples=100)
    assert int(scores.log_p.idxmin()) == 1


def test_encode_and_sample_in_the_datas_terms(run, table):
    _, folder = run
    trained = pyro_vae.load(folder)
    codes = trained.encode(table)
    assert list(codes.columns) == ["z0", "z1", "z0_sd", "z1_sd"]
    torch.testing.assert_close(
        torch.tensor(codes[["z0", "z1"]].values), trained.vae.encode(trained.read_rows(table)).mean.detach()
    )
    draws = trained.sample(4000)
    assert tuple(draws.columns) == COLUMNS
    assert 50 < draws.weight.mean() < 90  # the units, not the fit: z-scores would be near 0
    assert trained.sample(5, seed=1).equals(trained.sample(5, seed=1))


def test_new_rows_are_checked(run, tmp_path):
    trained = pyro_vae.load(run[1])
    path = tmp_path / "new.csv"
    path.write_text("weight,height\n70,1.7\n")
    with pytest.raises(InputError, match="size"):
        trained.read_rows(path)


def test_an_existing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_half_written_is_left(tmp_path, error):
    def fail_half_way():
        with new_folder(tmp_path / "a" / "b" / "run") as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_two_do_not_make_one_folder(tmp_path):
    code = f"""
import sys
from pathlib import Path
from pyro_vae.comparison.folder import new_folder
with new_folder(Path({str(tmp_path / "run")!r})):
    print("made", flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "made\n"
        with pytest.raises(InputError, match="another process is writing the run folder"), new_folder(tmp_path / "run"):
            pass
        other.communicate("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_error_of_the_disk_is_not_taken_for_one_of_the_folder(tmp_path):
    with pytest.raises(OSError, match="No space left"), new_folder(tmp_path / "run"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_gone_at_the_end(tmp_path):
    stale = unfinished(tmp_path / "run") / ".pyro_vae-partial.abc"
    stale.mkdir(parents=True)
    with pytest.raises(RuntimeError), new_folder(tmp_path / "run"):
        raise RuntimeError
    assert list(unfinished(tmp_path / "run").iterdir()) == [stale]
    with new_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("whole")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["run", "run/file"]


FOREIGN = ["precious", "folder.original", "checkpoints/notes.txt", "checkpoints/own/file", "mine/aevb-seed0.checkpoint"]


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_the_user_are_not_removed_and_are_named_before_any_work(tmp_path, name):
    beside = unfinished(tmp_path / "run")
    precious = beside / name
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    own = beside / "checkpoints" / "aevb-seed0.checkpoint"
    own.parent.mkdir(exist_ok=True)
    own.write_text("state")
    worked = []
    says = r"is kept for the files of the unfinished run.*is none of them; move it"
    with pytest.raises(InputError, match=says), new_folder(tmp_path / "run"):
        worked.append(1)
    assert not worked
    assert (precious.read_text(), own.read_text()) == ("mine", "state")


def test_files_that_come_while_it_works_stay(tmp_path):
    beside = unfinished(tmp_path / "run")
    with new_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("whole")
        (beside / "precious").write_text("mine")
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"run", "run/file", "run.unfinished", "run.unfinished/precious"}


@pytest.mark.parametrize("what", ["a link there", "a file there", "a dangling link", "a link", "nothing", "a parent"])
def test_a_place_that_is_no_place_for_it_is_refused_and_left_as_it_is(tmp_path, what):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    match what:
        case "a link there":
            unfinished(run).symlink_to(elsewhere)
        case "a file there":
            unfinished(run).write_text("mine")
        case "a dangling link":
            run.symlink_to(tmp_path / "absent")
        case "a link":
            run.symlink_to(elsewhere)
        case "nothing":
            run = tmp_path / "absent" / ".."
        case "a parent":
            run = tmp_path / "absent" / ".." / "run"
    before = sorted(tmp_path.rglob("*"))
    says = r"is no folder of an unfinished run|exists already|names no folder"
    with pytest.raises(InputError, match=says), new_folder(run):
        pytest.fail("it works")
    assert sorted(tmp_path.rglob("*")) == before
    assert (elsewhere / "precious").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"), new_folder(tmp_path / "file" / "run"):
        pass


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match="cannot be made: Permission denied"), new_folder(tmp_path / "a" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e38])
def test_weights_that_no_training_reaches_are_refused_by_name(run, tmp_path, value):
    folder = unlisted(run, tmp_path)
    path = folder / "weights" / "aevb-seed0.safetensors"
    state = load_file(path)
    name = "likelihood.head.weight"
    state[name][1, 2] = value
    save_file(state, path)
    says = rf"aevb-seed0.safetensors` is damaged: `{name}` has a value that is not finite, or beyond"
    with pytest.raises(InputError, match=says):
        pyro_vae.load(folder)
    assert pyro_vae.load(folder, "aevb", 5).vae is not None


READ = ["experiment.yaml", "result.json", "weights/aevb-seed0.safetensors", "SHA256SUMS"]


@pytest.mark.parametrize("name", READ)
def test_one_changed_byte_is_refused_by_the_name_of_its_file(run, tmp_path, name):
    """As in a result, whose scale would change all scores, and in a weight, whose lowest bits nothing else shows."""
    copy = tmp_path / "copy"
    shutil.copytree(run[1], copy)
    content = bytearray((copy / name).read_bytes())
    line = content.index(b"experiment.yaml") if name == "SHA256SUMS" else 0
    for position in (line - 5, line + 5) if line else (0, 40, len(content) // 2, len(content) - 2):
        damaged = bytearray(content)
        damaged[position] ^= 1
        (copy / name).write_bytes(damaged)
        with pytest.raises(InputError, match="SHA256SUMS") as error:
            pyro_vae.load(copy)
        assert len(str(error.value).splitlines()) == 1
    (copy / name).write_bytes(content)
    assert pyro_vae.load(copy).algorithm.name == "aevb"


def test_the_checksums_are_those_of_sha256sum(run):
    listed = dict(reversed(line.split("  ")) for line in (run[1] / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(run[1]).as_posix(): path for path in run[1].rglob("*") if path.is_file()}
    assert listed == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name != "SHA256SUMS"
    }


def test_weights_and_states_that_are_gone_are_missed(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run[1], copy)
    (copy / "weights" / "aevb-seed0.safetensors").unlink()
    with pytest.raises(InputError, match=r"aevb-seed0.safetensors` cannot be read: No such file"):
        pyro_vae.load(copy)
    copy_of_state = copy / "weights" / "aevb-seed5.inference.safetensors"
    assert not copy_of_state.exists()
    with (copy / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  weights/{copy_of_state.name}\n")
    with pytest.raises(InputError, match=r"aevb-seed5.inference.safetensors` cannot be read: No such file"):
        pyro_vae.load(copy, seed=5)


@pytest.mark.parametrize("what", ["folder", "pipe", "device", "nothing"])
@pytest.mark.parametrize("name", ["weights/aevb-seed0.safetensors", "SHA256SUMS"])
def test_what_is_no_file_is_refused_at_once(run, tmp_path, name, what):
    copy = unlisted(run, tmp_path)
    path = copy / name
    path.unlink(missing_ok=True)
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "nothing":
            path.touch()
    says = "it is empty" if what == "nothing" else f"is a {what}, not a file"
    with pytest.raises(InputError, match=f"{name}` .*{says}; run the comparison again"):
        pyro_vae.load(copy)


def places(value, path=()):
    """The places of all values in a record."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def changed(record, path, value):
    """The record with another value at a place, or without the place."""
    copy = json.loads(json.dumps(record))
    *way, last = path
    at = functools.reduce(lambda inner, key: inner[key], way, copy)
    if value is GONE:
        del at[last]
    else:
        at[last] = value
    return copy


GONE = object()
VALUES = [GONE, None, True, -1, 0, 10**400, 1e308, "", "x", [], [[]], {}, ["a", 1], [1e308] * 3]


def test_a_result_that_is_edited_is_used_or_refused_by_the_name_of_the_file(run, tmp_path):
    copy = unlisted(run, tmp_path)
    path = copy / "result.json"
    record, said = json.loads(path.read_text()), []
    data = [place for place in places(record["data"]) if place and place[0] not in ("source", "split")]
    edits = [(("data", *place), value) for place in data for value in VALUES] + [(("data",), value) for value in VALUES]
    assert len(edits) > 400
    for place, value in edits[::2]:
        path.write_text(json.dumps(changed(record, place, value)))
        try:
            assert pyro_vae.load(copy).sample(2).shape == (2, 3)
        except InputError as error:
            said.append(str(error))
    assert all(len(text.splitlines()) == 1 and len(text) < 2000 for text in said)
    assert len([text for text in said if "result.json` " in text]) > 150


RAW = {
    "nested": ("[" * 100_000 + "]" * 100_000, "cannot be read as the result of a comparison .RecursionError"),
    "a list": ("[]", "holds a list, not a mapping"),
    "a number": ("1", "holds a int, not a mapping"),
    "nan": ('{"data": NaN}', "it holds NaN"),
    "a long number": ('{"data": ' + "9" * 10_000 + "}", "cannot be read as the result"),
    "no text": (b"\xff\xfe\x00", "cannot be read as the result"),
    "no data": ("{}", "is damaged|cannot be read"),
}


@pytest.mark.parametrize(("content", "says"), RAW.values(), ids=RAW)
def test_a_result_that_is_none_is_refused(run, tmp_path, content, says):
    copy = unlisted(run, tmp_path)
    (copy / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"result.json` .*{says}.*; run the comparison again") as error:
        pyro_vae.load(copy)
    assert len(str(error.value)) < 1000


def test_a_result_too_large_to_be_one_is_not_read(run, tmp_path):
    copy = unlisted(run, tmp_path)
    with (copy / "result.json").open("r+b") as file:
        file.truncate(2**33)  # zeros that take no space
    with pytest.raises(InputError, match="has 8,589,934,592 bytes, and at most 104,857,600 are read"):
        pyro_vae.load(copy)
