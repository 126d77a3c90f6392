"""Figure 3 runs in miniature and goes on where it was killed; what it says follows from its runs."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_vae.datasets import load
from pyro_vae.evaluation import Estimate, annealed
from pyro_vae.inference import MCEM

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PYRO_VAE_DATA", ROOT / "nowhere"))
needs_data = pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="MNIST is not in the folder PYRO_VAE_DATA")
TIMED = {"processes", "made_by", "wall_seconds", "wall_milliseconds_per_step", "training_seconds"}
PILOT = {"_WARM_UP": 2, "_PILOT_BETAS": 4}  # of AIS, most of the time of a run in miniature
CELLS = 12  # of the histogram in each dimension: with 100, most of the rest
loaded = functools.cache(load)  # which takes longer than runs in miniature


@pytest.fixture
def module(monkeypatch):
    """Imports a benchmark."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def figure(module, monkeypatch):
    monkeypatch.setattr(module("aevb"), "load", loaded)
    monkeypatch.setattr(module("aevb_figure3_shared"), "CELLS", CELLS)
    for name, few in PILOT.items():
        monkeypatch.setattr(annealed, name, few)
    return module("aevb_figure3")


@pytest.fixture
def summary(module):
    return module("aevb_figure3_summary")


@pytest.fixture
def quick(figure, monkeypatch, tmp_path):
    """Runs it in miniature and returns its result."""

    def run(*arguments, folder=tmp_path):
        monkeypatch.setattr(sys, "argv", ["aevb_figure3", "--quick", "--output", str(folder), *arguments])
        figure.main()
        return json.loads((folder / "aevb_figure3.json").read_text())

    return run


def parsed(figure, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["aevb_figure3", *arguments])
    return figure.parse()


@needs_data
def test_in_miniature(quick, tmp_path):
    choice = ("--training-data", "200", "--samples", "10000", "--algorithms")
    result = quick(*choice, "wake-sleep")
    kept = result["runs"]["200-wake-sleep-0-1e4"]
    result = quick(*choice, "wake-sleep,mcem")
    assert result["runs"]["200-wake-sleep-0-1e4"] == kept
    assert set(result["runs"]) == {"200-wake-sleep-0-1e4", "200-mcem-0-1e4"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aevb_figure3.json", "aevb_figure3.png"]
    for run in result["runs"].values():
        trained = {"bound", "importance"} if run["algorithm"] == "wake-sleep" else set()
        begun = {"appendix_d_from_q_by_2", "appendix_d_from_q_by_3"} if trained else set()
        for point in run["curve"][:-1]:
            assert set(point["train"]) == set(point["test"]) == {"shared"} | trained
        end, final = run["curve"][-1], run["final"]
        assert set(end["train"]) == set(end["test"]) == {"shared", "appendix_d", "ais"} | trained | begun
        for part in ("train", "test"):
            assert len(final[part]["shared"].pop("pointwise")) == 20
            assert end[part] == final[part]
            apart = end[part]["appendix_d"]["value"] - end[part]["shared"]["value"]
            assert end[part]["appendix_d"]["error"]["value"] == pytest.approx(apart, abs=2e-4)
    bound = [point["train"]["bound"]["value"] for point in result["runs"]["200-wake-sleep-0-1e4"]["curve"]]
    assert bound[-1] > bound[0] + 1  # it learns
    judged = result["summary"]["errors_of_estimators"]
    offs = judged["200 data, wake-sleep, seed 0"]["test"]
    assert offs == {name: said["error"] for name, said in kept["final"]["test"].items() if name != "shared"}
    assert set(judged["200 data, MCEM, seed 0"]["test"]) == {"appendix_d", "ais"}
    mcem = result["runs"]["200-mcem-0-1e4"]
    assert [point["samples"] for point in mcem["curve"]] == [200 * 15 * point["step"] for point in mcem["curve"]]
    assert mcem["curve"][-1]["step"] == 4


def test_the_runs_and_what_their_steps_count_for(figure, monkeypatch):
    curves = figure.planned(parsed(figure, monkeypatch, "--seeds", "2"))
    assert list(curves)[:6] == [f"{n}-{name}-0" for n in (1000, 50000) for name in ("aevb", "mcem", "wake-sleep")]
    assert (curves["1000-aevb-0"].samples_of_step, curves["1000-aevb-0"].steps) == (100, 600_000)
    mcem = curves["50000-mcem-0"]
    assert isinstance(mcem.inference(), MCEM)
    assert (mcem.samples_of_step, mcem.steps) == (50_000 * 15, 80)
    assert mcem.passes == mcem.inference().updates + mcem.inference().leapfrog_steps * mcem.inference().transitions
    small = figure.planned(parsed(figure, monkeypatch, "--mcem-batch", "100", "--samples", "1e6"))
    assert small["1000-mcem-100-0-1e6"].samples_of_step == 1500


def test_a_run_is_evaluated_at_the_published_points(figure):
    curve = figure.Curve(1000, "aevb", 0, 60_000_000, 100, 1, figure.SETTING)
    looks = figure.looks(curve)
    assert figure.marks(curve) == {50_000, 100_000, 200_000, 400_000}
    assert looks[0] * 100 == figure.FIRST
    assert len([step for step in looks if 1_000 <= step < 10_000]) == figure.PER_DECADE
    second = replace(curve, seed=1)
    assert (figure.looks(second), figure.marks(second)) == ([], set())
    mcem = figure.Curve(50_000, "mcem", 0, 20_100_000, 50_000, 15, figure.SETTING)
    assert (figure.looks(mcem)[-1], figure.marks(mcem)) == (27, {6, 13, 26})  # 5, 10 and 20 million are between


def test_estimates_are_split_by_part(figure):
    judge = figure.Judge.__new__(figure.Judge)
    judge.splits = {"train": 2, "test": 3}
    errors = torch.tensor([0.3, 0.4, 0.1, 0.2, 0.2])
    exact = Estimate.of(torch.tensor([-1.0, -3.0, -5.0, -6.0, -7.0]), errors, bias=errors, effective_sample_size=errors)
    papers = Estimate.of(torch.tensor([-1.0, -2.0, -5.0, -6.0, -1.0]), torch.full((5,), torch.inf))
    found = judge._by_part({"shared": exact, "appendix_d": papers}, True)
    about = {"share_without_error": 0.0, "pointwise": [-1.0, -3.0], "least_effective_sample_size": 0.3}
    assert found["train"]["shared"] == {"value": -2.0, "standard_error": 0.25, "bias": 0.35} | about
    about |= {"pointwise": [-5.0, -6.0, -7.0], "least_effective_sample_size": 0.1}
    assert found["test"]["shared"] == {"value": -6.0, "standard_error": 0.1, "bias": 0.1667} | about
    apart = {"value": 2.0, "standard_error": 2.0, "share_a_nat_low": 0.0}
    apart |= {"quantile_0.05": 0.0, "quantile_0.5": 0.0, "quantile_0.95": 5.4}
    unknown = {"standard_error": None, "share_without_error": 1.0}
    assert found["test"]["appendix_d"] == {"value": -4.0, "error": apart} | unknown


def test_the_judge_evaluates_the_first_data(figure, module):
    data = load("digits", binarisation="threshold")
    data = replace(data, train=data.train[:7], test=data.test[:9])
    judge = figure.Judge(data, replace(figure.QUICK_SIZES, data=8), "cpu", compiled=False)
    assert judge.splits == {"train": 7, "test": 8}
    assert torch.equal(judge.x, torch.cat([data.train, data.test[:8]]))
    vae = module("aevb").make_vae(data, 3, 5, 0)
    found = judge(vae, trains_posterior=True)
    x = 64 * torch.tensor(0.5).log()  # near which all parameters of std 0.01 begin
    for part in found.values():
        for name in ("shared", "appendix_d", "importance", "bound"):
            assert part[name]["value"] == pytest.approx(float(x), abs=0.5)
        assert part["bound"]["value"] <= part["importance"]["value"] + 1e-4
    assert judge.training_data(vae) == pytest.approx(found["train"]["shared"]["value"], abs=0.1)


def as_run(size, algorithm, curves, seed=0):
    """A run whose estimates are given curves, by part."""
    points = []
    for i, (samples, _) in enumerate(curves["train"]):
        values = {part: {"value": curve[i][1], "standard_error": 0.1, "bias": 0.0} for part, curve in curves.items()}
        points.append(
            {"samples": samples, **{part: {"shared": value, "appendix_d": value} for part, value in values.items()}}
        )
    final = {part: {**points[-1][part]} for part in curves}
    for part, ends in final.items():
        value = points[-1][part]["shared"]["value"]
        spread = [0.5, -0.5] if seed == 0 else [0.6, -0.6]  # of which differences over data are made
        ends["shared"] = {**ends["shared"], "pointwise": [value + s * (1 + 0.1 * len(algorithm)) for s in spread]}
    about = {"training_data": size, "algorithm": algorithm, "seed": seed, "samples": points[-1]["samples"]}
    about |= {"stopped": "completed", "batch_size": size if algorithm == "mcem" else 100}
    setting = {"encoder_log_variance": 0.1 if algorithm == "wake-sleep" else 1.0}
    return {**about, "stepsize": 0.02, "scores": {"0.02": -1.0}, "setting": setting, "curve": points, "final": final}


def test_the_published_curves_meet_every_claim(module, summary):
    """At 6e7 samples all orderings of the paper's figure, and no difference from itself."""
    curves = module("aevb").published()["figure 3"]
    runs = {
        f"{size}-{name}-0": as_run(int(size), name, curve) for size in curves for name, curve in curves[size].items()
    }
    found = summary.summarise(runs)
    assert len(found["claims"]) == 2 * 6 + 5 + 4
    assert [claim["claim"] for claim in found["claims"] if not claim["holds"]] == []
    at = found["1000"]["MCEM"]["at_samples"]["5000000"]["test"]
    assert (at["published"], at["difference"], at["shared"]["mean"]) == (-143.9, 0.0, -143.9)
    swapped = {**runs, "1000-mcem-0": as_run(1000, "mcem", curves["1000"]["wake-sleep"])}
    missed = [claim["claim"] for claim in summary.summarise(swapped)["claims"] if not claim["holds"]]
    assert "1000 training data: MCEM above AEVB (test)" in missed
    assert "1000 training data: MCEM (train) within 3 nats of the published value (its axis is an assumption)" in missed


def test_a_row_is_of_the_last_published_mark(module, summary):
    published = module("aevb").published()["figure 3"]["1000"]["aevb"]
    curves = {part: [*points, [68_000_000, -100.0]] for part, points in published.items()}
    run = as_run(1000, "aevb", curves) | {"made_by": {"command": "python"}}
    for point in run["curve"]:
        point["train"]["shared"] = {**point["train"]["shared"], "value": point["train"]["appendix_d"]["value"] + 2.0}
    rows = summary.against_published({"1000-aevb-0": run})
    assert [row["what"] for row in rows] == [
        "figure 3: 1,000 data, AEVB, train, 6e+07 samples, appendix D (log p(x): -107.1)",
        "figure 3: 1,000 data, AEVB, test, 6e+07 samples, appendix D (log p(x): -143.2)",
    ]
    claims = [c for c in summary.summarise({"1000-aevb-0": run})["claims"] if "within 3 nats" in c["claim"]]
    assert [(claim["samples"], claim["value"], claim["holds"]) for claim in claims] == [(60_000_000, 0.0, True)] * 2


def test_what_was_given_stands_beside_the_protocols_runs(module, summary):
    """A row for itself, and in the note of the protocol's own; nothing of it in the claims."""
    published = module("aevb").published()["figure 3"]["1000"]["wake-sleep"]
    own = {part: [[at, value + 5.0] for at, value in points] for part, points in published.items()}
    given = {part: [[at, value + 1.5] for at, value in points[:3]] for part, points in published.items()}
    runs = {"1000-wake-sleep-0": as_run(1000, "wake-sleep", own)}
    claims = summary.summarise(runs)["claims"]
    for command, (variance, scores, title) in enumerate(
        [(1.0, {"0.1": -1.0}, "whole log variances"), (0.5, {}, "stepsize 0.02, log variances × 0.5")]
    ):
        run = as_run(1000, "wake-sleep", given)
        run |= {"scores": scores, "setting": {"encoder_log_variance": variance}}
        runs[f"1000-wake-sleep-0-{command}"] = run
        assert summary.contender(run).title == f"wake-sleep, {title}"
    for key, run in runs.items():
        run["made_by"] = {"command": key}
    found = summary.summarise(runs)
    assert found["claims"] == claims
    assert list(found["1000"]["wake-sleep, whole log variances"]["at_samples"]) == ["5000000", "10000000", "20000000"]
    rows = {row["what"]: row for row in summary.against_published(runs)}
    assert len(rows) == 6
    row = rows[
        "figure 3: 1,000 data, wake-sleep, whole log variances, test, 2e+07 samples, appendix D (log p(x): -144.8)"
    ]
    assert (row["ours"], row["command"]) == (-144.8, "1000-wake-sleep-0-0")
    assert row["note"] == summary.NOTE + summary.OWN_NOTES["wake-sleep"]
    (note,) = {row["note"] for what, row in rows.items() if "6e+07" in what}
    assert " With whole log variances it is +1.5 in place of +5.0 at 2e+07 samples." in note
    assert summary.UNKNOWN_NOTE not in note
    for point in [point for key in list(runs)[1:] for point in runs[key]["curve"]]:
        for part in published:
            point[part]["appendix_d"] = {"value": point[part]["appendix_d"]["value"] + 2.0}
    notes = {row["note"] for row in summary.against_published(runs) if "6e+07" in row["what"]}
    assert len(notes) == 1
    assert notes.pop().endswith(" in place of +5.0 at 2e+07 samples." + summary.UNKNOWN_NOTE)  # nearer, but not near


def test_a_stepsize_that_was_chosen_is_not_chosen_again(figure, monkeypatch):
    first, _, second, _ = figure.planned(parsed(figure, monkeypatch, "--algorithms", "aevb", "--seeds", "2")).values()
    run = json.loads(json.dumps(figure.asdict(first))) | {"stepsize": 0.02, "scores": {"0.02": -1.0}}
    assert second.seed == 1
    assert figure.chosen_before({"x": run}, replace(second, samples=1000)) == {
        "stepsize": 0.02,
        "scores": {"0.02": -1.0},
    }
    whole = replace(second, setting=replace(second.setting, encoder_log_variance=0.5))
    for other in (whole, replace(second, training_data=50_000), replace(second, stepsize=0.1)):
        assert figure.chosen_before({"x": run}, other) is None
    assert figure.chosen_before({"x": run | {"scores": {}}}, second) is None


@needs_data
def test_a_second_seed_is_evaluated_at_its_end(quick):
    result = quick("--training-data", "200", "--samples", "2000", "--algorithms", "aevb", "--seeds", "2")
    first, second = (result["runs"][f"200-aevb-{seed}-2e3"] for seed in (0, 1))
    assert first["scores"] == second["scores"]
    assert [point["samples"] for point in second["curve"]] == [first["curve"][-1]["samples"]] == [2000]
    assert set(second["final"]["test"]) == {"shared", "appendix_d", "bound", "importance"}
    ends = result["summary"]["200"]["AEVB"]["at_samples"]["2000"]["test"]["shared"]["seeds"]
    assert ends == [run["final"]["test"]["shared"]["value"] for run in (first, second)]
    assert len(set(ends)) == 2


@needs_data
def test_a_stepsize_and_log_variances_can_be_given(quick):
    choice = ("--training-data", "200", "--samples", "2000", "--algorithms", "wake-sleep")
    keys = [f"200-wake-sleep-0-2e3{own}" for own in ("", "-stepsize-0.05", "-log-variance-1")]
    quick(*choice)
    quick(*choice, "--stepsize", "0.05")
    result = quick(*choice, "--encoder-log-variance", "1")
    runs = [result["runs"][key] for key in keys]
    assert [run["setting"]["encoder_log_variance"] for run in runs] == [0.1, 0.1, 1.0]
    assert runs[1]["stepsize"] == 0.05
    assert [sorted(run["scores"]) for run in runs] == [["0.01", "0.02", "0.1"], [], ["0.01", "0.02", "0.1"]]
    assert len({run["curve"][-1]["test"]["bound"]["value"] for run in runs}) == 3
    assert list(result["summary"]["200"]) == [
        "wake-sleep",
        "wake-sleep, stepsize 0.05",
        "wake-sleep, whole log variances",
    ]


def test_monte_carlo_em_by_minibatches_stands_beside_its_own(module, summary):
    curve = module("aevb").published()["figure 3"]["1000"]["mcem"]
    small, whole = (as_run(1000, "mcem", curve) | {"batch_size": size} for size in (100, 1000))
    assert summary.contender(small).title == "MCEM, batches of 100"
    for runs in ({"a": small, "b": whole}, {"b": whole, "a": small}):
        assert summary.grouped(runs)[summary.Contender(1000, "mcem")] == {0: whole}


def test_an_own_choice_that_is_given_is_the_same_run(figure, monkeypatch):
    curves = figure.planned(parsed(figure, monkeypatch, "--encoder-log-variance", "0.1"))
    assert [key for key in curves if key.startswith("1000")] == [
        "1000-aevb-0-log-variance-0.1",
        "1000-mcem-0",  # which has no encoder
        "1000-wake-sleep-0",
    ]


def test_orderings_need_an_interval_and_runs_that_ended(module, summary):
    curves = module("aevb").published()["figure 3"]["1000"]
    runs = {name: as_run(1000, name, curves[name]) for name in ("aevb", "wake-sleep")}

    def said():
        claims = {claim["claim"]: claim for claim in summary.summarise(runs)["claims"]}
        return claims.get("1000 training data: AEVB above wake-sleep (test)")

    assert said()["holds"] is True
    assert said()["value"] == pytest.approx(-143.2 + 144.8)
    runs["aevb"]["final"]["test"]["shared"]["pointwise"] = [-133.2, -153.2]
    assert said()["holds"] is None  # 1.6 nats, of which the error over data is ten
    runs["aevb"]["stopped"] = "diverged"
    assert said() is None
    assert summary.above(1.0, 2.0) is summary.about(0.5, 1.0) is None
    assert [summary.above(-3.0, 2.0), summary.about(3.0, 1.0)] == [False, False]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--training-data", "2000"),
        ("--algorithms", "iwae"),
        ("--training-data", "x"),
        ("--stepsize", "0"),
        ("--samples", "nan"),
        ("--seeds", "0"),
        ("--mcem-batch", "-5"),
        ("--warmup", "-1"),
    ],
)
def test_what_there_is_not_is_refused(figure, monkeypatch, arguments):
    with pytest.raises(SystemExit):
        parsed(figure, monkeypatch, *arguments)


def test_what_was_kept_is_not_made_again(figure, tmp_path):
    made = []
    for _ in range(2):
        found = figure.kept(tmp_path / "place" / "x.stepsize", lambda: made.append(1) or {"stepsize": 0.1})
        assert found == {"stepsize": 0.1}
    assert made == [1]


_KILLED = f"""
import os, signal, sys
import torch
torch.set_num_threads(1)
from dataclasses import replace
from benchmarks import aevb_figure3, aevb_figure3_shared
from pyro_vae.evaluation import annealed
from pyro_vae.training.stepper import Stepper
vars(annealed).update({PILOT})
aevb_figure3_shared.CELLS = {CELLS}
fit_with_curve = aevb_figure3.fit_with_curve
aevb_figure3.fit_with_curve = lambda *given, **named: fit_with_curve(
    *given[:4], replace(given[4], checkpoint_seconds=0.0), **named
)
left, take = int(os.environ["STEPS"]), Stepper.take

def counting(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(*arguments)

Stepper.take = counting
sys.argv = ["aevb_figure3", "--quick", "--training-data", "200", *sys.argv[1:]]
aevb_figure3.main()
"""


def start(steps, *arguments):
    """Runs it in a process of its own, which is killed at a step; never for 0."""
    command = [sys.executable, "-c", _KILLED, *arguments]
    environment = {**os.environ, "STEPS": str(steps), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == (-9 if steps else 0), process.stderr


def untimed(result):
    return {key: {k: v for k, v in run.items() if k not in TIMED} for key, run in result["runs"].items()}


@needs_data
def test_killed_within_its_run_it_gives_the_same_result(quick, tmp_path):
    """Monte Carlo EM, which keeps a chain for each datum: 9 steps for the choice of the stepsize, then 10."""
    arguments = ("--algorithms", "mcem", "--samples", "30000")
    start(14, *arguments, "--output", str(tmp_path / "killed"))
    assert (tmp_path / "killed/aevb_figure3.unfinished/200-mcem-0-3e4.checkpoint").exists()
    found = quick("--training-data", "200", *arguments, folder=tmp_path / "killed")
    whole = quick("--training-data", "200", *arguments, folder=tmp_path / "whole")
    assert untimed(found) == untimed(whole)
    assert found["summary"] == whole["summary"]


@needs_data
@pytest.mark.slow
def test_killed_three_times_at_random_it_gives_the_same_result(tmp_path):
    killed, whole = ("--output", str(tmp_path / "killed")), ("--output", str(tmp_path / "whole"))
    for step in (random.SystemRandom().randint(1, 150) for _ in range(3)):  # of 230 + 16 + 230
        start(step, *killed)
    start(0, *killed)
    start(0, *whole)
    found, once = (json.loads((tmp_path / name / "aevb_figure3.json").read_text()) for name in ("killed", "whole"))
    assert list(found["runs"]) == list(once["runs"])
    assert untimed(found) == untimed(once)
    assert found["summary"] == once["summary"]


def test_it_says_how_its_numbers_came_about(figure, monkeypatch):
    given = parsed(figure, monkeypatch)
    assert isinstance(given, argparse.Namespace)
    settings = figure.settings_of(given)
    assert settings["mcem"] == repr(MCEM(transitions=1, persistent=True))
    assert settings["evaluation"]["posterior_samples"] == 50
    assert settings["evaluation"]["leapfrog_steps"] == 4
