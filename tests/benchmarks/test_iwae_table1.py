"""The IWAE table has the published networks and schedule, tells paired differences, and goes on where it was killed."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_table1 import small

from pyro_vae.datasets import load

ROOT = Path(__file__).parents[2]
SMALL = ["--quick", "--layers", "1", "--data-sets", "dynamic"]


@pytest.fixture
def table1(monkeypatch):
    """The benchmark on the embedded digits of 64 pixels, which need no file, with a checkpoint after each step."""
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.iwae_table1")
    monkeypatch.setattr(benchmark, "load", functools.cache(load))
    small(benchmark, monkeypatch.setattr)
    benchmark.data_of.cache_clear()
    yield benchmark
    benchmark.data_of.cache_clear()


@pytest.fixture
def report(table1):
    return importlib.import_module("benchmarks.iwae_report")


@pytest.fixture
def done(table1, monkeypatch, tmp_path):
    """Runs it in miniature and returns the JSON."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iwae_table1", "--output", str(tmp_path), *arguments])
        table1.main()
        return json.loads((tmp_path / "iwae_table1.json").read_text())

    return run


def timeless(value):
    """What is left of a result without what the clock tells."""
    if isinstance(value, dict):
        clock = (
            "processes",
            "made_by",
            "seconds",
            "training_seconds",
            "milliseconds_per_step",
            "wall_seconds",
            "wall_seconds_of_all_runs",
        )
        clock = (*clock, "environment")
        return {key: timeless(inner) for key, inner in value.items() if key not in clock}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


# ------------------------------------------------------------------ schedule and networks


@pytest.mark.parametrize("per_epoch", [3000, 2500])
def test_the_whole_schedule_is_that_of_the_paper(table1, per_epoch):
    ends = table1.stage_ends(3280 * per_epoch)
    assert [(b - a) / per_epoch for a, b in zip([0, *ends[:-1]], ends, strict=True)] == [3**i for i in range(8)]
    rate = table1.factor(ends)
    for i, end in enumerate(ends):
        assert 1e-3 * rate(end - 1) == pytest.approx(0.001 * 10 ** (-i / 7), rel=1e-12)
    assert rate(0) == 1
    assert table1.steps_of(1.0, 20 * per_epoch) == 3280 * per_epoch


@pytest.mark.parametrize("steps", [8, 9, 100, 3281, 98_400])
def test_a_shortened_schedule_keeps_the_proportions(table1, steps):
    ends = table1.stage_ends(steps)
    lengths = [b - a for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert ends[-1] == steps
    assert min(lengths) >= 1
    if steps > 3280:
        assert all(abs(length - steps * 3**i / 3280) <= 1 for i, length in enumerate(lengths))
    looks = table1.looked_at(ends)
    assert looks == sorted(set(looks))
    assert set(ends) <= set(looks)


def test_networks_have_the_published_sizes(table1, monkeypatch):
    monkeypatch.setattr(table1, "PIXELS", 784)
    mean = torch.rand(784)

    def weights(*sizes):
        return sum((a + 1) * b for a, b in pairwise(sizes))

    one, two = (table1.make_vae(layers, 0, mean) for layers in (1, 2))
    assert sum(p.numel() for p in one.parameters()) == weights(784, 200, 200, 100) + weights(50, 200, 200, 784)
    outer = weights(784, 200, 200, 200) + weights(100, 200, 200, 784)
    assert sum(p.numel() for p in two.parameters()) == outer + weights(100, 100, 100, 100) + weights(50, 100, 100, 200)
    assert two.latent_shape == (150,)
    assert two.prior().blocks == {"z1": slice(0, 100), "z2": slice(100, 150)}


@pytest.mark.parametrize("layers", [1, 2])
def test_initial_weights_are_glorots(table1, layers):
    vae = table1.make_vae(layers, 3, torch.linspace(0, 1, 64))
    bernoulli = vae.likelihood if layers == 1 else vae.likelihood.likelihood
    expected = torch.linspace(0, 1, 64).clamp(0.001, 0.999)
    assert torch.allclose(bernoulli.head.bias.sigmoid(), expected, atol=1e-6)
    blocks = []
    for part in vae.modules():
        if isinstance(part, table1.Conditional) and part.given is not None:
            blocks += [layer.weight for layer in part.given if isinstance(layer, torch.nn.Linear)]
            blocks += part.head.weight.split(list(part.network_sizes.values()))
            biases = [layer.bias for layer in part.given if isinstance(layer, torch.nn.Linear)]
            biases += [] if part is bernoulli else [part.head.bias]
            assert all(bool((bias == 0).all()) for bias in biases)
    assert len(blocks) == {1: 2 + 2 + 2 + 1, 2: 2 * (2 + 2) + (2 + 2) + (2 + 1)}[layers]
    for weight in blocks:
        bound = math.sqrt(6 / sum(weight.shape))
        relative = weight.detach().double().flatten() / bound  # uniform on [-1, 1]: mean square 1/3, variance 4/45
        assert float(relative.abs().max()) <= 1 + 1e-6
        assert abs(float(relative.square().mean()) - 1 / 3) < 4.3 * math.sqrt(4 / 45 / len(relative))
        assert abs(float(relative.mean())) < 4.3 * math.sqrt(1 / 3 / len(relative))
    again = table1.make_vae(layers, 3, torch.linspace(0, 1, 64))
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))


def test_two_layers_weigh_as_the_paper_has_it(table1):
    """log w = log p(z2) + log p(z1|z2) + log p(x|z1) - log q(z1|x) - log q(z2|z1)."""
    vae, x = table1.make_vae(2, 0, torch.full((64,), 0.3)), torch.rand(5, 64).round()
    p, q = vae.prior.layers, vae.posterior.layers
    with torch.no_grad():
        z1 = q["z1"](x).sample()
        z2 = q["z2"](z1).sample()
        by_hand = p["z2"]().log_prob(z2) + p["z1"](z2).log_prob(z1) + vae.likelihood.likelihood(z1).log_prob(x)
        by_hand = by_hand - q["z1"](x).log_prob(z1) - q["z2"](z1).log_prob(z2)
        z = torch.cat([z1, z2], -1)
        assert torch.allclose(vae.log_joint(z, x) - vae.encode(x).log_prob(z), by_hand, atol=1e-4)


# ------------------------------------------------------------------ which cells


def asked(table1, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["iwae_table1", *arguments])
    return table1.keys_of(table1.parse())


def test_table_1_comes_first(table1, monkeypatch):
    keys = asked(table1, monkeypatch)
    assert keys[:5] == [f"dynamic-1-{cell}-0" for cell in ("vae-50", "iwae-50", "vae-5", "iwae-5", "vae-1")]
    assert keys[5:8] == [f"dynamic-1-{row}-50-0" for row in ("dreg", "stl", "rws")]
    assert [key[:9] for key in keys[::11]] == ["dynamic-1", "dynamic-2", "fixed-1-v", "fixed-2-v"]
    assert len(set(keys)) == len(keys) == 44
    assert asked(table1, monkeypatch, "--rows", "iwae", "--k", "1,50", "--layers", "2", "--data-sets", "fixed") == [
        "fixed-2-iwae-50-0",
        "fixed-2-vae-1-0",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rows", "vae,miwae"],
        ["--k", "2"],
        ["--layers", "3"],
        ["--data-sets", "omniglot"],
        ["--rows", "dreg", "--k", "1"],
        ["--fraction", "0"],
        ["--test-data", "1"],
    ],
)
def test_what_cannot_be_had_is_refused(table1, monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit):
        asked(table1, monkeypatch, *arguments)
    assert "error: " in capsys.readouterr().err


# ------------------------------------------------------------------ what is told


def cell(row, k, values, seed=0, units=(20,)):
    values = [float(value) for value in values]
    about = {"data_set": "dynamic", "layers": 1, "row": row, "k": k, "seed": seed, "active_units": list(units)}
    nll = {"value": sum(values) / len(values), "pointwise": values}
    nll |= {"standard_error": 0.03, "share_of_pareto_k_above_0.7": 0.25}
    return {**about, "curve": [], "nll": nll, "made_by": {"command": f"python -m benchmarks.iwae_table1 --k {k}"}}


def test_claims_are_of_paired_differences(report):
    runs = [cell("vae", 1, [90, 80]), cell("iwae", 5, [88, 79]), cell("iwae", 50, [87, 76]), cell("vae", 5, [91, 79])]
    (table,) = report.summarise(dict(enumerate(runs)), {})
    improves = table["iwae_improves_with_k"]
    assert improves["holds"] is True
    assert [(d["minus"], d["of"], d["value"]) for d in improves["differences"]] == [
        (["iwae", 1], ["iwae", 5], -1.5),
        (["iwae", 5], ["iwae", 50], -2.0),
    ]
    errors = [d["sampling_error"] for d in improves["differences"]]
    assert errors == pytest.approx([0.5, 1.0])  # of -2, -1 and of -1, -3
    assert table["iwae_beats_vae"]["holds"] is None  # VAE with k = 50 is missing
    assert table["vae_from_best_to_worst"] in ([1, 5], [5, 1])
    runs += [cell("vae", 50, [85, 74])]  # by 2 nats, beyond all doubt
    (table,) = report.summarise(dict(enumerate(runs)), {})
    assert table["iwae_beats_vae"]["holds"] is False
    assert table["iwae_improves_with_k"]["holds"] is True
    assert table["vae_from_best_to_worst"][0] == 50
    by_cell = {(c["row"], c["k"]): c for c in table["cells"]}
    assert by_cell["iwae", 50]["minus_published"] == pytest.approx(81.5 - 84.78)
    assert by_cell["vae", 1]["sampling_error"] == pytest.approx(5.0)


def test_a_difference_within_its_error_decides_nothing(report):
    runs = [cell("vae", 1, [90, 80]), cell("iwae", 5, [88, 79]), cell("iwae", 50, [90, 76])]
    (table,) = report.summarise(dict(enumerate(runs)), {})
    assert [d["value"] for d in table["iwae_improves_with_k"]["differences"]] == [-1.5, -0.5]
    assert table["iwae_improves_with_k"]["holds"] is None
    assert report.said(table["iwae_improves_with_k"]).startswith("a difference is within its error; IWAE 5 - IWAE 1: ")
    assert report.said(table["iwae_beats_vae"]).startswith("not all cells are finished")


def test_rows_tell_how_they_were_made_and_how_far_to_trust_them(report):
    runs = [cell("iwae", 5, [88, 79]), cell("iwae", 50, [90, 76]), cell("iwae", 50, [92, 78], seed=1)]
    settings = {"fraction": 0.025, "published_epochs": 3280, "test_data": 2}
    few, many = report.against_published(report.summarise(dict(enumerate(runs)), {}), settings)
    assert [few["command"], many["command"]] == [f"python -m benchmarks.iwae_table1 --k {k}" for k in (5, 50)]
    assert few["error"]["of"] == "standard error over 2 test data; Monte Carlo 0.030, k-hat above 0.7: 25 %"
    assert (
        many["error"]["of"] == "standard error over 2 test data; Monte Carlo 0.021, k-hat above 0.7: 25 %"
    )  # 0.03 / sqrt(2)
    assert few["note"] == "Ours after 2.5 % of the published 3,280 passes over the data."


def test_only_common_seeds_are_paired(report):
    runs = [cell("vae", 1, [90, 80]), cell("vae", 1, [70, 60], seed=1), cell("iwae", 5, [68, 59], seed=1)]
    (table,) = report.summarise(dict(enumerate(runs)), {})
    (difference,) = table["iwae_improves_with_k"]["differences"]
    assert (difference["value"], difference["seeds"]) == (-1.5, [1])
    assert table["cells"][0]["nll"]["mean"] == 75


def test_the_published_table_is_whole(report):
    cells = {(c["data_set"], c["layers"], c["row"], c["k"]): c for c in report.PUBLISHED["cells"]}
    assert len(cells) == 24
    for (data_set, layers, row, k), told in cells.items():
        assert len(told["active_units"]) == layers
        if k == 1:
            assert told["nll"] == cells[data_set, layers, "vae" if row == "iwae" else "iwae", 1]["nll"]
        elif row == "iwae":
            assert told["nll"] < cells[data_set, layers, "iwae", {5: 1, 50: 5}[k]]["nll"]
            assert told["nll"] < cells[data_set, layers, "vae", k]["nll"]


# ------------------------------------------------------------------ runs in miniature


def test_all_rows_and_both_depths(done, capsys):
    quick = ("--quick", "--k", "5", "--data-sets", "dynamic")
    done(*quick, "--rows", "dreg,stl", "--layers", "1")
    result = done(*quick, "--rows", "vae,rws", "--layers", "1,2")
    assert len(result["runs"]) == 2 + 2 * 2
    for key, run in result["runs"].items():
        assert len(run["active_units"]) == run["layers"]
        assert len(run["nll"]["pointwise"]) == 20
        assert run["nll"]["value"] == pytest.approx(sum(run["nll"]["pointwise"]) / 20, abs=1e-3)
        assert [look["stages"] for look in run["curve"]][-1] == 8
        assert [look["step"] for look in run["curve"]][-1] == run["steps"] == 10
        assert key == "-".join(str(run[name]) for name in ("data_set", "layers", "row", "k", "seed"))
    written = capsys.readouterr().out
    assert "dynamic MNIST, two stochastic layers" in written
    assert "IWAE improves with k: not all cells are finished" in written


def test_stopped_in_training_it_goes_on(table1, done, monkeypatch, tmp_path, capsys):
    arguments = [*SMALL, "--rows", "iwae", "--k", "5"]
    whole = done(*arguments)
    (tmp_path / "iwae_table1.json").unlink()
    true = table1.log_marginal
    looks = []

    def stopping(*given, **named):
        looks.append(1)
        if len(looks) == 6:
            raise RuntimeError("killed")
        return true(*given, **named)

    monkeypatch.setattr(table1, "log_marginal", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        done(*arguments)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["iwae_table1", "--output", str(tmp_path), *arguments, "--table"])
    table1.main()
    assert "unfinished: stage " in capsys.readouterr().out
    assert timeless(done(*arguments)) == timeless(whole)


CHILD = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from benchmarks import iwae_table1
from small_table1 import small
small(iwae_table1, setattr)
sys.argv = ["iwae_table1", *{arguments!r}]
iwae_table1.main()
"""


@pytest.mark.slow
def test_killed_three_times_it_gives_the_same_numbers(tmp_path):
    def start(folder):
        arguments = [*SMALL, "--rows", "vae,iwae", "--k", "5", "--output", str(folder)]
        code = CHILD.format(root=str(ROOT), tests=str(ROOT / "tests" / "support"), arguments=arguments)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment)

    assert start(tmp_path / "whole").wait() == 0
    whole = json.loads((tmp_path / "whole/iwae_table1.json").read_text())
    unfinished, chance = tmp_path / "killed/iwae_table1.unfinished", random.Random(0)
    for looks in sorted(chance.sample(range(1, 8), 3)):
        process = start(tmp_path / "killed")
        while process.poll() is None and looks_in(unfinished) < looks:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed").wait() == 0
    killed = json.loads((tmp_path / "killed/iwae_table1.json").read_text())
    assert timeless(killed) == timeless(whole)


def looks_in(folder):
    """How many looks there are of unfinished runs."""
    return sum(path.read_text().count("\n") for path in folder.glob("*.jsonl"))
