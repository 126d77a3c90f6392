"""The comparison by turns: what each algorithm gives does not depend on the others, on its turn or on a kill."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from pyro_vae import Training, fit
from pyro_vae.engine import interpreted
from pyro_vae.experiment import Experiment
from pyro_vae.runtime.random_streams import isolated

ROOT = Path(__file__).parents[2]
# What depends on when and where a run was made; nothing else does.
TIMES = {
    "environment",
    "processes",
    "made_by",
    "wall_seconds",
    "wall_seconds_of_all_runs",
    "memory_mib",
    "execution",
    "peak_mib",
}


@pytest.fixture
def module(monkeypatch):
    """Imports a benchmark."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def quick(module, monkeypatch, tmp_path):
    """Runs the benchmark in miniature on the embedded data, and returns its result."""

    def run(*arguments, folder=tmp_path):
        common = ["--quick", "--data", "digits", "--output", str(folder)]
        monkeypatch.setattr(sys, "argv", ["compare_inference", *common, *arguments])
        module("compare_inference").main()
        return json.loads((folder / "compare_inference.json").read_text())

    return run


@pytest.fixture
def problem(module):
    """Makes a problem of few digits, and the specifications of its algorithms."""

    def make(*algorithms, compile=False, rate=0.01, optimizer="Adam"):
        experiment = Experiment.parse(
            {
                "data": "digits",
                "latent": 2,
                "networks": {"encoder": {"mlp": [6]}, "decoder": {"mlp": [5]}},
                "inference": list(algorithms),
                "training": {"epochs": 3, "batch_size": 40, "optimizer": {optimizer: {"lr": rate}}},
                "device": "cpu",
            }
        )
        data = experiment.load_data()
        short = type(data)(data.train[:100], None, data.test[:40], data.units)
        return module("interleaved").Problem.of(experiment, short, 3, compile), experiment.inference

    return make


def values(content):
    """A result without what depends on when and where it was made."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in TIMES and "seconds" not in key}
        return {key: values(value) for key, value in kept.items() if not key.startswith(("time_over", "steps_per_sec"))}
    return [values(value) for value in content] if isinstance(content, list) else content


def state_of(contender):
    return {name: tensor.clone() for name, tensor in contender.vae.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_result_tells_all(quick, capsys, tmp_path):
    result = quick("--seeds", "2")
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["compare_inference.json", "compare_inference.png"]
    assert set(result["runs"]) == {"digits-0", "digits-1"}
    printed = capsys.readouterr().out
    for title in ("cost", "quality", "gradients"):
        assert f"digits: {title}" in printed
    for run in result["runs"].values():
        contenders = run["contenders"]
        assert list(contenders) == ["aevb", "analytic-kl", "wake-sleep"]
        for contender in contenders.values():
            seconds = [point["training_seconds"] for point in contender["curve"]]
            assert seconds == sorted(seconds)
            assert [point["samples"] for point in contender["curve"]] == [300, 600, 900]
            assert contender["memory_mib"]["in_a_step"] > 0
        start = {name: of["gradients"]["start"] for name, of in contenders.items()}
        # theta's gradient does not see how the KL is had; phi's does.
        assert start["aevb"]["theta"] == start["analytic-kl"]["theta"]
        assert start["aevb"]["phi"]["variance"] > start["analytic-kl"]["phi"]["variance"]
    summary = result["summary"]["digits"]["analytic-kl"]
    for what in ("elbo", "log_p"):
        pairs = [
            run["contenders"]["analytic-kl"][what]["value"] - run["contenders"]["aevb"][what]["value"]
            for run in result["runs"].values()
        ]
        assert summary["minus"][what]["seeds"] == pytest.approx(pairs, abs=1e-6)
        half = 12.7062 * abs(pairs[0] - pairs[1]) / 2  # Student-t, one degree of freedom
        assert summary["minus"][what]["half_width"] == pytest.approx(half, rel=1e-4)


def test_an_epoch_is_that_of_fit(module, problem):
    given, (spec,) = problem("autoencoder")  # which draws nothing, so that streams do not matter
    contender = module("interleaved").Contender(spec, given)
    with isolated(given.seed):
        vae = given.experiment.build(given.data)
    assert same(state_of(contender), vae.state_dict())
    for _ in range(3):
        contender.epoch()
    fit(
        vae,
        given.data.train,
        spec.build(),
        Training(
            optimizer=given.experiment.training.optimizer.build,
            epochs=3,
            batch_size=40,
            compile=False,
            start_at_data=False,
        ),
        seed=given.seed,
        transform=given.data.transform,
    )
    assert same(state_of(contender), vae.state_dict())
    assert len(contender.seconds) == 3


def test_a_contender_does_not_see_the_others(module, problem):
    part = module("interleaved")
    given, specs = problem("aevb", "wake-sleep", "iwae")
    together = [part.Contender(spec, given) for spec in specs]
    for epoch in range(3):
        part.by_turns(together, epoch)
    alone = part.Contender(specs[1], given)
    for _ in range(3):
        alone.epoch()
        torch.rand(5)  # the stream of whoever calls is another
    assert same(state_of(together[1]), state_of(alone))
    assert together[1].bounds == alone.bounds
    assert not same(state_of(together[0]), state_of(together[2]))


def test_who_begins_changes(module):
    order = []
    part = module("interleaved")
    contenders = [SimpleNamespace(epoch=lambda name=name: order.append(name)) for name in "abc"]
    for epoch in range(3):
        part.by_turns(contenders, epoch)
    assert "".join(order) == "abcbcacab"


def test_compiled_steps_are_timed_without_compilation(module, problem):
    part = module("interleaved")
    given, (spec,) = problem("autoencoder", compile=True)
    with interpreted():
        contender = part.Contender(spec, given)
        for _ in range(6):
            contender.epoch()
    assert contender.loop.execution(contender.member)[0].startswith("compiled")
    assert contender.compile_seconds > 0
    # Three steps of a kind come before its compilation: of 40 data two an epoch, of the last 20 one.
    assert contender.clean == [False, False, True, False, True, True]
    eager, _ = problem("autoencoder")
    other = part.Contender(spec, eager)
    for _ in range(6):
        other.epoch()
    for name, tensor in state_of(other).items():
        torch.testing.assert_close(contender.vae.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_slow_minute_falls_on_all(module):
    part = module("interleaved")
    slow = [1.0, 1.0, 9.0, 1.0]
    baseline = SimpleNamespace(seconds=[7.0, *slow], clean=[False, True, True, True, True])
    mine = SimpleNamespace(seconds=[99.0, *(1.5 * second for second in slow)], clean=baseline.clean)
    found = part.timed(mine, baseline)
    assert found["time_over_baseline"] == {"median": 1.5, "quartiles": [1.5, 1.5], "n": 4}
    assert found["seconds_per_epoch"] == {"median": 1.5, "quartiles": [1.5, 4.5], "n": 4}


def test_what_diverges_stops_alone(module, problem):
    part = module("interleaved")
    given, (spec,) = problem("aevb", rate=1e30, optimizer="SGD")
    contender = part.Contender(spec, given)
    for _ in range(2):
        contender.epoch()
    assert "is not finite at step" in contender.stopped
    assert len(contender.seconds) == 1
    assert all(bool(parameter.isfinite().all()) for parameter in contender.vae.parameters())


@pytest.mark.parametrize(
    ("name", "family"),
    [("mnist", "Bernoulli"), ("frey", "Normal"), ("20newsgroups", "Multinomial"), ("people.csv", "Normal")],
)
def test_every_data_set_has_a_likelihood(module, name, family):
    benchmark = module("compare_inference")
    experiment = benchmark.experiment_of(name, benchmark.parse([]))
    assert experiment.likelihood.family == family
    if name in ("mnist", "frey"):
        pixels, hidden, latents = {"mnist": (784, 500, 20), "frey": (560, 200, 10)}[name]
        vae = experiment.assemble(pixels, None, 100)
        sizes = sorted(parameter.numel() for parameter in vae.parameters() if parameter.dim() == 2)
        outputs = pixels * (2 if name == "frey" else 1)
        assert sizes == sorted([pixels * hidden, 2 * latents * hidden, latents * hidden, outputs * hidden])
        if name == "frey":
            mean = vae.decode(100 * torch.randn(50, latents)).base_dist.loc.detach()
            assert 0 <= float(mean.min()) < 0.5 < float(mean.max()) <= 1


def start(folder):
    """The benchmark as a process, with two runs to make."""
    command = [sys.executable, "-m", "benchmarks.compare_inference", "--quick", "--data", "digits", "--seeds", "2"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, "--output", str(folder)], cwd=ROOT, env=variables, text=True, **streams)


def killed(folder, line, seconds):
    """Starts it and kills it so long after a line."""
    process = start(folder)
    for printed in process.stdout:
        if line in printed:
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait()


def test_killed_it_goes_on_with_the_same_values(quick, tmp_path, capsys):
    first, second = tmp_path / "killed", tmp_path / "whole"
    assert killed(first, "digits-1: 2 of 2", 0.0) == -signal.SIGKILL
    there = json.loads((first / "compare_inference.json").read_text())["runs"]
    assert list(there) == ["digits-0"]
    capsys.readouterr()
    resumed = quick("--seeds", "2", folder=first)
    assert "digits-0: " not in capsys.readouterr().out.split("digits: cost;")[0]
    assert resumed["runs"]["digits-0"] == there["digits-0"]
    assert values(resumed) == values(quick("--seeds", "2", folder=second))


def test_runs_of_other_data_are_not_continued(module, quick, monkeypatch, tmp_path):
    table = tmp_path / "people.csv"
    table.write_text("a,b\n" + "\n".join(f"{i},{i % 7}" for i in range(60)) + "\n")
    arguments = ["--data", str(table), "--seeds", "1", "--inference", "aevb"]
    quick(*arguments)
    table.write_text(table.read_text().replace("3,3", "3,4"))
    with pytest.raises(SystemExit, match="holds runs of other data with the name `people`; pass --restart"):
        quick(*arguments)
    with pytest.raises(SystemExit):
        module("compare_inference").parse(["--data", "a/x.csv,b/x.csv"])


def test_it_is_started_once(quick, tmp_path):
    process = start(tmp_path)
    for printed in process.stdout:
        if "digits-0: 1 of 2" in printed:
            break
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(SystemExit, match="another process is at work on digits-0: algorithms are timed"):
        quick("--data", "digits", "--seeds", "2", folder=tmp_path)
    process.kill()
    process.stdout.close()
    process.wait()


@pytest.mark.slow
def test_killed_at_random_moments_it_gives_the_same_values(quick, tmp_path):
    first, second = tmp_path / "killed", tmp_path / "whole"
    moments = random.Random(0)
    for line in ("digits-0: 1 of 2", "digits-0: 1 of 2", "digits-1: 2 of 2"):
        assert killed(first, line, moments.uniform(0.0, 0.4)) == -signal.SIGKILL
    assert values(quick("--seeds", "2", folder=first)) == values(quick("--seeds", "2", folder=second))


def test_two_machines(quick, module, tmp_path):
    one = quick("--seeds", "1", "--inference", "aevb,mcem")
    mcem = one["runs"]["digits-0"]["contenders"]["mcem"]  # which trains no posterior
    assert mcem["elbo"] is None
    assert mcem["log_p"]["method"] == "annealed importance sampling"
    assert mcem["minus_baseline"]["elbo"] is None
    assert math.isfinite(mcem["minus_baseline"]["log_p"]["value"])
    other = json.loads(json.dumps(one))
    other["environment"]["device"] = "cuda (a card)"
    for contender in other["runs"]["digits-0"]["contenders"].values():
        contender["seconds_per_epoch"]["median"] /= 4
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, result in zip(paths, (one, other), strict=True):
        path.write_text(json.dumps(result))
    tables, console = module("compare_tables"), Console(width=200, record=True)
    tables.overlay(*paths, tmp_path / "both.png", console)
    printed = console.export_text()
    assert printed.count("4.00 (4.00 to 4.00)") == 2
    assert "cuda (a card)" in printed
    assert f"torch {one['environment']['versions']['torch']}" in printed
    assert (tmp_path / "both.png").stat().st_size > 10_000
    other["settings"]["rate"] = 1.0
    paths[1].write_text(json.dumps(other))
    with pytest.raises(SystemExit, match=r"different settings \(rate\)"):
        tables.overlay(*paths, tmp_path / "both.png", console)


def test_summary_over_three_seeds(module):
    """The interval of paired differences is narrower than that of the values, which seeds move together."""
    tables = module("compare_tables")

    def contender(shift, seed):
        estimate = {"value": 10.0 * seed + shift, "standard_error": 0.1}
        return {
            "stopped": None,
            "compile_seconds": 1.0,
            "steps_per_epoch": 10,
            "seconds_per_epoch": {"median": 0.5},
            "time_over_baseline": {"median": 1.0},
            "memory_mib": {"peak": 3.0},
            "elbo": estimate,
            "log_p": {**estimate, "share_of_pareto_k_above_0.7": 0.25},
            "minus_baseline": {what: {"value": shift} for what in ("elbo", "log_p")},
            "gradients": {"trained": {"theta": {"variance": 2.0, "signal_to_noise": 1.0}}},
        }

    runs = {
        f"x-{seed}": {"data": "x", "seed": seed, "contenders": {"a": contender(0.0, seed), "b": contender(2.0, seed)}}
        for seed in range(3)
    }
    row = tables.summarise(runs)["x"]["b"]
    assert row["elbo"]["half_width"] == pytest.approx(4.30265 * 10 / math.sqrt(3), rel=1e-4)
    assert (row["minus"]["elbo"]["mean"], row["minus"]["elbo"]["half_width"]) == (2.0, 0.0)
    assert row["steps_per_second"]["mean"] == 20.0
    assert row["share_of_pareto_k_above_0.7"] == 0.25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card(module, problem):
    part = module("interleaved")
    given, specs = problem("aevb", "wake-sleep", compile=True)
    experiment = given.experiment.model_copy(update={"device": "cuda"})
    given = part.Problem.of(experiment, given.data, 0)
    contenders = [part.Contender(spec, given) for spec in specs]
    for epoch in range(6):
        part.by_turns(contenders, epoch)
    for contender in contenders:
        assert contender.loop.execution(contender.member)[0].startswith("compiled")
        assert contender.clean[-1]
        assert contender.memory()["peak"] > 0


# ---------------------------------------------------------------------- the page of all benchmarks


def test_published_rows(module, tmp_path):
    published = module("published_table")
    row = {"what": "test bound", "published": -104.8, "ours": -104.5, "unit": "nats", "source": "a paper"}
    row["error"] = {"half_width": 0.25, "of": "95 % over 3 seeds"}
    result = {"environment": {"command": "python -m benchmarks.b"}, "against_published": [row]}
    (tmp_path / "b.json").write_text(json.dumps(result))
    (tmp_path / "a.json").write_text(json.dumps({"environment": {}}))
    made = published.table(published.rows_of(tmp_path)).splitlines()
    command = "`python -m benchmarks.b` ([result](results/b.json))"
    assert made[2] == f"| test bound, nats [1] | -104.80 | -104.50 ± 0.25 (95 % over 3 seeds) | +0.30 | {command} |"
    assert made[-1] == "1. a paper"
    result["against_published"][0]["theirs"] = 1
    (tmp_path / "b.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit, match=r"b\.json: a row of `against_published`: `theirs` is unknown"):
        published.rows_of(tmp_path)


def test_the_page_holds_the_committed_table_and_every_script(module):
    published = module("published_table")
    page = published.README.read_text()
    assert published.within(page) == published.table(published.rows_of())
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert f"`python -m benchmarks.{path.stem}`" in page or f"`{path.stem}`" in page, path.stem
    for name in re.findall(r"`python -m benchmarks\.(\w+)`", page):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name
