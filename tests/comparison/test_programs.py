"""A user's own Pyro program in `compare`: on the console, by a file, in Python, and from its run folder."""

from __future__ import annotations

import io
import json
import math
import shlex
import shutil
import sys
import textwrap
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from report_page import Page
from torch import nn

import pyro_vae
from pyro_vae import Experiment, Program, cli
from pyro_vae.comparison.folder import write_run
from pyro_vae.comparison.report.page import write_report
from pyro_vae.errors import InputError
from pyro_vae.training.stepper import Stepper

# x = z + N(0, 1) with z ~ N(0, 1), whose posterior N(x / 2, 1 / 2) the guide has at its initial parameter.
EXACT = """
    import pyro, pyro.distributions as dist, torch
    from pyro_vae import Program

    def make(x):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            gain = pyro.param("gain", torch.tensor(0.5))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(gain * x, 0.5**0.5).to_event(1))

        return Program(model, guide, example=x[:10])
"""
QUICK = ["--epochs", "2", "--seeds", "2", "--set", "evaluation.num_samples=50"]
QUICK += ["--set", "evaluation.posterior_checks=4", "--set", "training.optimizer={SGD: {lr: 1.0e-12}}"]
COMPARE = ["compare", "--data", "rows.csv", "--inference", "aevb,rws", "--allow-code"]


def command(*arguments):
    """Runs the console command; returns exit code and standard output."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", ["pyro-vae", *map(str, arguments)])
        patch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as end:
            cli.main()
    return end.value.code or 0, out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a module, a table of one column and a run of two algorithms and two seeds."""
    path = tmp_path_factory.mktemp("programs")
    (path / "exact_program.py").write_text(textwrap.dedent(EXACT))
    rows = np.random.default_rng(0).normal(3, 2, 80)
    pd.DataFrame({"a": rows}).to_csv(path / "rows.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        code, out = command(*COMPARE, "--program", "exact_program:make", *QUICK, "--out", "run")
    assert code == 0
    (path / "printed.txt").write_text(out)
    return path


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def exact_log_p(frame, record):
    """log p of a row in its own units: a = scale x + centre with x ~ N(0, 2)."""
    centre, scale = record["data"]["centre"][0], record["data"]["scale"][0]
    x = torch.tensor(frame["a"].to_list(), dtype=torch.float64).sub(centre).div(scale)
    return dist.Normal(0.0, math.sqrt(2)).log_prob(x).numpy() - math.log(scale)


def test_the_console_prints_the_table_and_writes_the_run_folder(folder):
    out, record = (folder / "printed.txt").read_text(), json.loads((folder / "run" / "result.json").read_text())
    assert record["experiment"]["program"] == "exact_program:make"
    assert list(record["code"]) == ["exact_program.py"]
    for label in ("aevb", "rws"):
        means = [record["summary"][label][metric] for metric in ("elbo", "log_marginal")]
        assert f"│ {label} " in out
        for cell in (f"{each['mean']:.2f} ± {each['half_width']:.2f}" for each in means):
            assert cell in out or "± 0.00" in cell
    assert "program: exact_program:make" in (folder / "run" / "experiment.yaml").read_text()
    curves = pd.read_csv(folder / "run" / "curves.csv")
    assert set(curves.algorithm) == {"aevb", "rws"}


def test_elbo_and_log_p_of_the_exact_posterior_are_those_of_the_closed_form(here):
    record = json.loads((here / "run" / "result.json").read_text())
    test = Experiment.from_yaml(here / "run" / "experiment.yaml", allow_code=True).load_data()
    truth = exact_log_p(pd.DataFrame({"a": test.to_own_units(test.test)[:, 0].numpy()}), record).mean()
    for run in record["runs"]:
        assert run["elbo"] == pytest.approx(truth, abs=1e-5)
        assert run["log_marginal"] == pytest.approx(truth, abs=1e-5)


def test_the_report_shows_the_program_and_its_draws(folder):
    page = Page((folder / "run" / "report.html").read_text())
    assert "the Pyro program exact_program:make with one latent dimension (z)" in " ".join(page.text.split())
    assert {"curves", "marginals", "latent", "calibration", "gradients"} <= set(page.sections)
    assert "of the site z, mean over the test data, in closed form" in " ".join(page.text.split())


def test_new_rows_are_scored_encoded_and_drawn_by_the_run_folder(here):
    record = json.loads((here / "run" / "result.json").read_text())
    new = pd.DataFrame({"name": ["p", "q", "r"], "a": [2.0, 5.5, -1.0]})
    new.to_csv("new.csv", index=False)
    code, out = command("score", "run", "new.csv", "--allow-code", "--algorithm", "rws", "--seed", "1")
    scores = pd.read_csv(io.StringIO(out))
    assert (code, scores.name.tolist()) == (0, ["p", "q", "r"])
    np.testing.assert_allclose(scores.log_p, exact_log_p(new, record), atol=1e-5)
    trained = pyro_vae.load("run", allow_code=True)
    assert isinstance(trained.vae, Program)
    codes = trained.encode(new)
    x = (new.a - record["data"]["centre"][0]) / record["data"]["scale"][0]
    # From 1,000 draws: five standard errors of a mean, and of a standard deviation.
    np.testing.assert_allclose(codes.z0, x / 2, atol=5 * math.sqrt(0.5 / 1000))
    np.testing.assert_allclose(codes.z0_sd, math.sqrt(0.5), rtol=5 / math.sqrt(2000))
    draws = trained.sample(2000).a.to_numpy()
    assert abs(draws.mean() - record["data"]["centre"][0]) < 5 * draws.std() / math.sqrt(2000)
    for name in ("reconstruct", "impute"):
        with pytest.raises(InputError, match=f"^{name}: needs the likelihood of a VAE.*score, encode and sample"):
            getattr(trained, name)(new)
    assert command("score", "run", "new.csv")[0] == 2  # code is not allowed


def test_a_run_folder_of_other_code_is_refused(here, tmp_path):
    def other(x):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.5).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            gain = pyro.param("gain", torch.tensor(0.5))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(gain * x, 0.5**0.5).to_event(1))

        return Program(model, guide, example=x[:10])

    with pytest.raises(InputError, match=r"makes another model than the one that was trained: .* Take the code"):
        pyro_vae.load("run", program=other)
    import exact_program

    assert pyro_vae.load("run", program=exact_program.make).vae.latent_shape == (1,)


def test_a_stopped_comparison_goes_on_and_changed_code_is_refused(here, monkeypatch, tmp_path):
    for name in ("rows.csv", "exact_program.py"):
        shutil.copy(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text("data: rows.csv\nprogram: stopped_program:make\ninference: [aevb, stl]\n")
    Path("exact_program.py").rename("stopped_program.py")
    take, taken = Stepper.take, []

    def counted(self, *arguments):
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(1)
        return take(self, *arguments)

    arguments = ["compare", "e.yaml", "--allow-code", *QUICK, "--set", "training.compile=false", "--out", "out"]
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", counted)
        assert command(*arguments)[0] == 130
    source = Path("stopped_program.py").read_text()
    Path("stopped_program.py").write_text(source + "\n# changed\n")
    assert command(*arguments)[0] == 2  # the checkpoints are of other code
    Path("stopped_program.py").write_text(source)
    with monkeypatch.context() as patch:
        taken.clear()
        patch.setattr(Stepper, "take", lambda self, *rest: (taken.append(1), take(self, *rest))[1])
        assert command(*arguments)[0] == 0, shlex.join(arguments)
    assert len(taken) == 2 * 2 * 2 - 3  # of two epochs, two algorithms and two seeds
    assert json.loads(Path("out/result.json").read_text())["environment"]["resumed"]


def mixture(x):
    """Discrete latents, and global ones; x is observed cell by cell, so that no draw can take its place."""
    encoder = nn.Linear(x.shape[1], 3)

    def model(x):
        shift = pyro.sample("shift", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            for i in range(x.shape[1]):
                pyro.sample(f"x{i}", dist.Normal(k.float() + shift, 1.0), obs=x[:, i])

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.1))
        pyro.sample("shift", dist.Normal(loc, 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=encoder(x)))

    return Program(model, guide, example=x[:10], size=len(x))


def discrete(x):
    """The same without what all data share."""
    encoder = nn.Linear(x.shape[1], 3)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            for i in range(x.shape[1]):
                pyro.sample(f"x{i}", dist.Normal(k.float(), 1.0), obs=x[:, i])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=encoder(x)))

    return Program(model, guide, example=x[:10])


def test_discrete_latents_and_data_that_cannot_be_drawn(here, tmp_path):
    evaluation = {"num_samples": 200, "posterior_checks": 3}
    settings = {"training": {"epochs": 1}, "seeds": 1, "evaluation": evaluation, "inference": ["score-function"]}
    result = pyro_vae.compare(Experiment(program=discrete, data="rows.csv", **settings))
    (run,) = result.runs
    x = result.data.test[:, 0].double()
    exact = (
        torch.logsumexp(dist.Normal(torch.arange(3.0), 1.0).log_prob(x[:, None]) - math.log(3), -1)
        + result.data.log_jacobian
    )
    z = (run.log_marginal.pointwise - exact) / run.log_marginal.diagnostics["pointwise_error"].clamp_min(1e-6)
    assert float(z.abs().max()) < 5
    assert run.active.shape == (1,)
    assert any("is none of the batch's tensors" in note for note in result.checks.notes)
    write_report(result, tmp_path / "report.html")
    assert "Not shown: Program: the value of the site x0" in Page((tmp_path / "report.html").read_text()).text.replace(
        "`", ""
    )
    write_run(result, tmp_path)
    trained = pyro_vae.load(tmp_path, program=discrete)
    with pytest.raises(InputError, match="a draw cannot take its place"):
        trained.sample(3)


def test_a_program_whose_algorithm_has_no_posterior_over_what_all_data_share_is_refused(here):
    with pytest.raises(InputError, match="the model has latents that all data share"):
        pyro_vae.compare(Experiment(program=mixture, data="rows.csv", inference=["rws"]))
