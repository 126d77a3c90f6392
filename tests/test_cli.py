"""The console command: what it writes, and how it refuses."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from counted_checks import counted

from pyro_vae import cli
from pyro_vae.training.stepper import Stepper

QUICK = ["--latent", "2", "--epochs", "1", "--seeds", "1", "--set", "evaluation.num_samples=20"]
QUICK += ["--set", "evaluation.posterior_checks=0"]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyro-vae", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        streams = capsys.readouterr()
        return exit_.value.code or 0, streams.out, streams.err

    return command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder on a table of counts."""
    folder = tmp_path_factory.mktemp("cli")
    rows = np.random.default_rng(0).poisson(3, (60, 2))
    pd.DataFrame(rows, columns=["apples", "pears"]).to_csv(folder / "counts.csv", index=False)
    arguments = ["compare", "--data", "counts.csv", "--likelihood", "Poisson", "--inference", "aevb", "--out", "run"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pyro-vae", *arguments, *QUICK])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    assert "report:" in out.getvalue().splitlines()[-1]
    return folder


def test_compare_writes_its_run_folder(command, tmp_path):
    code, out, _ = command("compare", "--inference", "aevb,wake-sleep", *QUICK)
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0
    assert folder.name.startswith("digits-")
    assert out.strip().endswith(str(folder / "report.html"))
    sums = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sums == files - {"SHA256SUMS"} > {"report.html", "result.json"}
    record = json.loads((folder / "result.json").read_text())
    assert record["environment"]["command"].startswith("pyro-vae compare --inference aevb,wake-sleep")
    for label in ("aevb", "wake-sleep"):
        assert label in out
        assert f"{record['summary'][label]['elbo']['mean']:.2f}" in out


def test_compare_checks_once_and_before_it_makes_its_folder(command, tmp_path, monkeypatch):
    work = counted(monkeypatch, lambda what: (what, (tmp_path / "run.unfinished").exists()))
    assert command("compare", "--inference", "aevb", "--out", "run", *QUICK)[0] == 0
    checks = ["data are loaded", "a VAE is built", *["values are checked"] * 3]
    of_the_timing, of_the_run = ("a VAE is built", True), ("a VAE is built", True)
    assert work == [*((what, False) for what in checks), of_the_timing, of_the_run]


def test_a_stopped_compare_says_how_it_goes_on(command, tmp_path, monkeypatch):
    def stop(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", stop)
        code, _, err = command("compare", "--inference", "aevb", *QUICK)
    (unfinished,) = (tmp_path / "runs").iterdir()
    assert unfinished.name.endswith(".unfinished")
    assert code == 130
    again = err.splitlines()[-1].removeprefix("stopped; it goes on with: ")
    assert again.endswith(f"--out {Path('runs') / unfinished.stem}")
    code, _, err = command(*shlex.split(again)[1:])
    assert code == 0, err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [unfinished.stem]


def test_flags_change_what_the_file_says(command, tmp_path):
    (tmp_path / "e.yaml").write_text("latent: 3\ninference: [aevb]\ntraining: {epochs: 9}\nseeds: 2")
    code, _, err = command("compare", "e.yaml", "--out", "run", "--prior", "{family: Laplace, loc: 0}", *QUICK)
    assert code == 0, err
    resolved = json.loads((tmp_path / "run" / "result.json").read_text())["experiment"]
    assert (resolved["latent"], resolved["training"]["epochs"], resolved["seeds"]) == (2, 1, [0])
    assert resolved["prior"] == {"family": "Laplace", "loc": 0}


def test_score_encode_sample(command, run):
    code, out, _ = command("score", run / "run", run / "counts.csv", "--num-samples", "30")
    assert (code, len(out.splitlines()), out.splitlines()[0]) == (0, 61, "row,log_p,standard_error,pareto_k")
    code, out, _ = command("encode", run / "run", run / "counts.csv")
    assert (code, out.splitlines()[0]) == (0, "z0,z1,z0_sd,z1_sd")
    code, out, _ = command("sample", run / "run", "-n", "5")
    assert (code, len(out.splitlines()), out.splitlines()[0]) == (0, 6, "apples,pears")
    assert command("sample", run / "run", "-n", "5", "--out", "draws.npy")[0] == 0
    draws = np.load("draws.npy")
    assert draws.shape == (5, 2)
    assert (draws == draws.round()).all()  # counts, in the data's own units


@pytest.mark.parametrize("name", ["score", "encode", "impute"])
def test_the_rows_that_are_read_are_not_written_over(command, run, name):
    (run / "copy.csv").write_bytes((run / "counts.csv").read_bytes())
    before = (run / "copy.csv").read_bytes()
    code, _, err = command(name, run / "run", run / "copy.csv", "--out", run / "run" / ".." / "copy.csv")
    assert code == 2
    assert err.endswith("copy.csv` is a file that is read; choose another.\n")
    assert (run / "copy.csv").read_bytes() == before


def test_a_file_is_written_as_a_whole_or_not_at_all(command, run, monkeypatch):
    (run / "draws.csv").write_text("mine")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for place in (run / "draws.csv", run / "draws.npy"):
        code, _, err = command("sample", run / "run", "-n", "5", "--out", place)
        says = "No space left on device; free some space there, or choose another place."
        assert (code, err) == (2, f"`{place}` is not written: {says}\n")
    assert (run / "draws.csv").read_text() == "mine"
    assert not list(run.glob(".draws*"))


@pytest.mark.parametrize(
    ("name", "hint"), [("train", "`compare` does that."), ("scor", "did you mean `score`?"), ("q", "expected one of")]
)
def test_a_command_that_there_is_not_is_named_with_the_one_that_is_meant(command, name, hint):
    code, _, err = command(name, "--data", "digits")
    assert code == 2
    assert err.startswith(f"pyro-vae has no command `{name}`; {hint}")


def test_versions(command):
    """Also in a process of its own."""
    code, out, _ = command("--version")
    assert code == 0
    names = ("pyro-vae", "pyro-ppl", "torch", "numpy", "arviz")
    assert out == ", ".join(f"{name} {version(name)}" for name in names) + "\n"
    process = [sys.executable, "-m", "pyro_vae"]
    assert subprocess.run([*process, "--version"], check=True, capture_output=True, text=True).stdout == out
    failed = subprocess.run([*process, "comparee"], check=False, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")


def test_schema_is_json(command):
    code, out, _ = command("schema")
    assert code == 0
    assert "likelihood" in json.loads(out)["properties"]


def _write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD = {
    "unknown data": (["--data", "digts"], "did you mean `digits`"),
    "unknown algorithm": (["--inference", "aevbb"], "did you mean `aevb`"),
    "unknown family": (["--likelihood", "Bernouli"], "did you mean `Bernoulli`"),
    "unknown parameter": (["--likelihood", "{family: Normal, sclae: 1}"], "did you mean `scale`"),
    "unknown optimizer": (["--set", "training.optimizer=Adm"], "did you mean `Adam`"),
    "unknown key": (["--set", "trainig.epochs=1"], "did you mean `training`"),
    "not a mapping": (["--set", "seeds.x=1", "--seeds", "1"], "is not a mapping"),
    "no value": (["--set", "latent"], "expected key=value"),
    "a flag twice": (["--prior", "Normal", "--prior=Laplace"], "^--prior: given 2 times; give it once"),
    "a setting twice": (
        ["--set", "device=cpu", "--set", "device=cuda"],
        "^--set: `device` is given twice, also by --set",
    ),
    "a flag and a setting": (["--device", "cpu", "--set", "device=cuda"], "`device` is given twice, also by a flag"),
    "bad YAML": (["--likelihood", "{family"], "command line"),
    "no file": (["absent.yaml"], "absent.yaml: cannot be read"),
    "outside the support": (["--data", "grey.csv"], "data row 1.*column `a`, outside the likelihood.s support"),
    "NaN cell": (["--data", "nan.csv", "--likelihood", "Normal"], "missing cell in data row 2.*column `b`"),
    "inf cell": (["--data", "inf.csv", "--likelihood", "Normal"], "data row 1.*column `a`"),
    "text cell": (["--data", "text.csv", "--likelihood", "Normal"], "found `x` in data row 2.*column `a`"),
    "zero rows": (["--data", "empty.csv", "--likelihood", "Normal"], "holds 0 rows"),
    "truncated file": (
        ["--data", "short.npy", "--likelihood", "Normal"],
        r"short\.npy` cannot be read.*truncated or damaged",
    ),
    "corrupted file": (
        ["--data", "bad.npz", "--likelihood", "Normal"],
        r"bad\.npz` cannot be read.*truncated or damaged",
    ),
    "existing folder": (["--out", "taken"], "exists already"),
    "unwritable folder": (["--out", "grey.csv/run"], "cannot be made"),
    "no such device": (["--device", "cda"], "`cda` is unknown"),
    "no closed form": (["--prior", "Gamma", "--inference", "analytic-kl"], "no closed form; use aevb"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, arguments, message):
    import re

    buffer = io.BytesIO()
    np.save(buffer, np.zeros((50, 3)))
    _write(tmp_path, "short.npy", buffer.getvalue()[:200])
    _write(tmp_path, "bad.npz", b"PK\x03\x04 this is no archive")
    _write(tmp_path, "grey.csv", "a,b\n" + "0.5,1\n" * 30)
    _write(tmp_path, "nan.csv", "a,b\n1,2\n1,\n" + "3,4\n" * 30)
    _write(tmp_path, "inf.csv", "a,b\ninf,2\n" + "3,4\n" * 30)
    _write(tmp_path, "text.csv", "a,b\n1,2\nx,4\n" + "3,4\n" * 30)
    _write(tmp_path, "empty.csv", "a,b\n")
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, _, err = command("compare", *arguments, *(QUICK if "--seeds" not in arguments else []))
    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_diverges_is_judged_at_its_last_good_parameters_and_says_so(command):
    arguments = ["--inference", "aevb,wake-sleep", "--set", "training.optimizer={SGD: {lr: 1e30}}", "--out", "run"]
    code, out, _ = command("compare", *arguments, *QUICK)
    assert code == 0
    assert "aevb: " in out
    assert "not finite at step" in out or "infinite or nan" in out
    assert "wake-sleep: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "nowhere", "x.csv"], "is not a run folder"),
        (["sample", "RUN", "-n", "0"], "-n"),
        (["sample", "RUN", "--out", "x.txt"], "must end in .csv or .npy"),
        (["sample", "RUN", "--algorithm", "aevbb"], "did you mean `aevb`"),
        (["score", "RUN", "absent.csv"], "absent.csv"),
        # Before anything is read.
        (["score", "nowhere", "absent.csv", "--out", "x.txt"], "--out: `x.txt` must end in .csv or .npy"),
        (["encode", "nowhere", "absent.csv", "--out", "no/x.csv"], "--out: there is no folder `no`; make it"),
    ],
)
def test_a_trained_model_refuses(command, run, arguments, message):
    code, _, err = command(*[run / "run" if argument == "RUN" else argument for argument in arguments])
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_cross_entropy_is_run_encoded_and_not_scored(command, tmp_path):
    arguments = ["--data", "{name: digits, binarisation: none}", "--inference", "aevb", "--out", "run"]
    code, out, err = command("compare", *arguments, *QUICK)
    assert code == 0, err
    assert "cross-entropy" in out
    np.save(tmp_path / "grey.npy", np.full((2, 64), 8.0))
    assert command("encode", "run", "grey.npy")[0] == 0
    code, _, err = command("score", "run", "grey.npy")
    assert code == 2
    assert "cross-entropy that has no log p(x)" in err


def test_impossible_grey_levels_are_refused(command, tmp_path):
    assert command("compare", "--inference", "aevb", "--out", "run", *QUICK)[0] == 0
    np.save(tmp_path / "grey.npy", np.full((2, 64), 99.0))
    code, _, err = command("score", "run", "grey.npy")
    assert code == 2
    assert "needs values in [0, 1]" in err


def test_a_resolved_experiment_runs_from_another_folder(command, run, tmp_path):
    code, _, err = command("compare", run / "run" / "experiment.yaml", "--out", tmp_path / "again")
    assert code == 0, err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pyro_vae", "schema"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == []
    assert done.stderr.endswith("No space left on device; free some space there, or choose another place.\n")
