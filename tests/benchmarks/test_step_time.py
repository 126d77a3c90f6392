"""The contenders of the step benchmark compute one loss, take the steps they are told, and are compared by turns."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pyro
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from pyro_vae import Training, fit
from pyro_vae.engine import interpreted
from pyro_vae.errors import InputError
from pyro_vae.runtime.random_streams import isolated

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(monkeypatch):
    """Imports a part of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def small(module):
    """The tiny VAE on few data."""
    return module("step_problem").Problem("tiny", 20, "cpu", 1, 60)


@pytest.fixture
def pyro_as_it_was():
    """Contenders switch Pyro's validation off and use its param store."""
    yield
    pyro.clear_param_store()
    pyro.enable_validation(True)


def needs(name):
    packages = {"numpyro-step": "numpyro", "numpyro-epoch": "numpyro", "pythae": "pythae"}
    package = packages.get(name, "torch")
    missing = importlib.util.find_spec(package) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed"))


def densities(problem, networks, x, noise):
    """The three log densities of a particle, by torch's distributions, and KL(q||p)."""
    loc, log_scale = networks.encode(x)
    q = Independent(Normal(loc, log_scale.exp()), 1)
    z = loc + log_scale.exp() * noise
    p = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
    likelihood = Independent(Bernoulli(logits=networks.decode(z)), 1).log_prob(x.expand(*z.shape[:-1], -1))
    return likelihood, p.log_prob(z), q.log_prob(z), kl_divergence(q, p)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "wide-iwae", "conv"])
def test_the_reference_is_the_bound(module, name):
    steps = module("step_problem")
    problem = steps.Problem(name, 3, "cpu", 1, 3)
    x, noise, weights = problem.data(), problem.noise(), problem.weights()
    networks = steps.Networks(problem.size).set(weights).double()
    of = densities(problem, networks, torch.from_numpy(x).double(), torch.from_numpy(noise).double())
    log_weights = of[0] + of[1] - of[2]
    if name == "wide-iwae":
        shift = log_weights.max()
        bound = ((log_weights - shift).exp().mean(0).log() + shift).mean()
    else:
        bound = log_weights.mean()
        analytic = float((of[3] - of[0]).mean())
        assert steps.reference_loss(problem, weights, x, noise, "analytic") == pytest.approx(analytic, rel=1e-12)
    assert steps.reference_loss(problem, weights, x, noise, "sampled") == pytest.approx(-float(bound), rel=1e-12)


@pytest.mark.usefixtures("pyro_as_it_was")
@pytest.mark.parametrize(
    "name",
    [
        *("hand", "hand-fused", "pyro-svi", "pyro-jit", "ours-eager"),
        *map(needs, ("numpyro-step", "numpyro-epoch", "pythae")),
    ],
)
def test_contenders_compute_the_reference_and_learn(module, small, name):
    worker = module("step_worker")
    contender = worker.make(name, small)
    found = worker.agreement(contender, small)
    assert found["loss"] == pytest.approx(found["reference"], rel=1e-5)
    losses = worker.trained(contender, small, 12)
    assert contender.taken == 12
    assert losses["after"] < losses["before"] - 0.2


def test_the_compiled_step_computes_the_reference(module, small):
    worker = module("step_worker")
    with interpreted():
        contender = worker.make("ours", small)
        found = worker.agreement(contender, small)
    assert found["loss"] == pytest.approx(found["reference"], rel=1e-5)
    assert contender.taken == 0
    for weight, initial in zip(contender.weights(), small.weights(), strict=True):
        assert (weight == initial).all()


@pytest.mark.usefixtures("pyro_as_it_was")
@pytest.mark.parametrize("name", ["hand", "pyro-svi", "ours-eager", *map(needs, ("numpyro-step",))])
@pytest.mark.parametrize("size", ["wide-iwae", "conv"])
def test_other_sizes_compute_the_reference(module, size, name):
    worker, problem = module("step_worker"), module("step_problem").Problem(size, 4, "cpu", 1, 8)
    found = worker.agreement(worker.make(name, problem), problem)
    assert found["loss"] == pytest.approx(found["reference"], rel=1e-5)


def test_ours_takes_the_steps_of_fit(module, small):
    ours = module("step_ours")
    contender = ours.OursEager(small)
    with isolated(0, "training"):
        contender.steps(7)
    vae, data = ours.make_vae(small), torch.from_numpy(small.data())
    optimizer = contender.adam
    history = fit(
        vae, data, ours.algorithm(small), Training(optimizer=optimizer, steps=7, batch_size=20, compile=False), seed=0
    )
    assert contender.loop.members[0].records.bounds == history.bound.tolist()


@pytest.mark.slow
def test_replicates_take_as_many_steps_as_they_are_told(module, small):
    ours = module("step_ours")
    with interpreted():
        contender = ours.Replicates(replace(small, replicates=2))
        contender.steps(3)
        contender.steps(2)
        contender.close()
    vae = ours.make_vae(small)
    fit(vae, contender.data, ours.algorithm(small), Training(optimizer=ours.Ours.adam, steps=5, batch_size=20), seed=0)
    for mine, alone in zip(contender.weights(), ours.parameters_of(vae), strict=True):
        assert torch.allclose(torch.from_numpy(mine), alone, atol=1e-5)


def test_a_run_of_replicates_that_fails_says_why(module, monkeypatch, small):
    ours = module("step_ours")
    monkeypatch.setattr(ours, "algorithm", lambda problem: "no algorithm")
    with pytest.raises(InputError, match="`inference` is an algorithm"):
        ours.Replicates(replace(small, replicates=2))


def test_an_epoch_has_each_datum_once(module, small):
    contender = module("step_contenders").Hand(small)
    epochs = contender.epochs()
    for _ in range(2):
        seen = torch.cat([next(epochs) for _ in range(3)])
        assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, contender.data.tolist()))


def test_matrix_products_are_those_of_the_layers(module, small):
    # x 64-64-16, 8-64-64: forward, gradient of the weights, and that of the input but for the data
    forward = 2 * 20 * (64 * 64 + 64 * 16 + 8 * 64 + 64 * 64)
    assert module("step_problem").matrix_flops(small) == 3 * forward - 2 * 20 * 64 * 64
    products = module("step_contenders").MatrixProducts(small)
    products.steps(1)
    (x, weight, gradient), (into_x, into_weight, into_y), _ = products.layers[-1]
    assert torch.allclose(into_y, x @ weight.T)
    assert torch.allclose(into_weight, gradient.T @ x)
    assert torch.allclose(into_x, gradient @ weight)


class Fake:
    """A contender's process that answers what it is told to."""

    def __init__(self, **answers):
        self.answers = answers

    def ask(self, request, *_):
        return self.answers[request]


def test_another_loss_is_refused(module, small):
    benchmark = module("step_time")

    def worker(loss=50.0, after=40.0):
        agreement = {"loss": loss, "reference": 50.0, "estimator": "sampled"}
        return Fake(agreement=agreement, trained={"before": 50.0, "after": after})

    assert set(benchmark.compared({"a": worker(), "b": worker(50.001, 40.5)}, small, 5)) == {"a", "b"}
    with pytest.raises(SystemExit, match=r"b computes a loss of 50\.1"):
        benchmark.compared({"a": worker(), "b": worker(50.1)}, small, 5)
    with pytest.raises(SystemExit, match=r"c goes from 50.000 to 42.000, others to 40.000"):
        benchmark.compared({"a": worker(), "b": worker(), "c": worker(after=42.0)}, small, 5)


def test_ratios_are_of_one_turn(module):
    benchmark = module("step_time")
    timed = {"ours": {"seconds": [1.0, 20.0, 3.0]}, "hand": {"seconds": [2.0, 40.0, 5.0]}}
    found = benchmark.ratios(timed, "ours", "hand")
    assert (found["median"], found["min"], found["max"]) == pytest.approx((0.5, 0.5, 0.6))
    assert benchmark.ratios(timed, "ours", "pyro-svi") is None


def run_of(ours, size="tiny", **others):
    time = {"median": 0.2, "min": 0.1, "max": 0.3}
    over = {name: {"median": value, "min": value, "max": value} for name, value in others.items()}
    contenders = {"ours": {"milliseconds": time | {"median": ours}, "gflop_per_second": 30.0}}
    contenders["matrix-products"] = {"milliseconds": time, "gflop_per_second": 40.0}
    facts = {"kind": "step", "size": size, "batch": 100, "threads": 2}
    return facts | {"contenders": contenders, "ours_over": over | {"matrix-products": time}}


def test_tables_say_what_was_reached(module):
    costs = {"kind": "costs", "size": "tiny", "batch": 100, "threads": 2}
    costs["seconds_to_first_compiled_step"] = {"cold": 20.04, "warm": 3.0}
    memory = {"tensors": 1.0, "in_a_step": 2.0, "process": 300.0}
    costs["memory_mib"] = {"ours": memory, "ours-eager": memory, "parameters": 1.0, "noise": 0.1}
    many = {"kind": "replicates", "size": "tiny", "batch": 100, "threads": 2}
    many["contenders"] = {"ours": {"replicates": 1}, "replicates-64": {"replicates": 64}}
    share = {"median": 0.2, "min": 0.1, "max": 0.3}
    many["cost_of_each_over_single"] = {"ours": share, "replicates-64": share}
    cpu = {"device": "cpu", "runs": {"a": run_of(0.123, hand=0.24), "b": costs, "c": many}}
    cuda = {"device": "cuda", "runs": {"d": run_of(0.05, "paper", hand=0.09)}}
    text = module("step_tables").tables([cpu, cuda])
    assert "| `hand` | 0.24 (0.24 to 0.24) (≤ 0.25) | - (≤ 0.90) | 0.09 (0.09 to 0.09) (≤ 0.10) |" in text
    assert "| ours over, CPU, 2 threads | 64-64-8, 100 |" in text
    assert "| `ours` | 0.05 (0.1 to 0.3) |" in text
    assert "first compiled step: 20.0 s (≤ 30), with the cache on disk 3.0 s (≤ 5)" in text
    assert "64 replicates cost 0.20 (0.10 to 0.30) of 64 single runs" in text
    assert "An epoch of 600 steps of the paper's size: 30 ms (≤ 40)." in text
    assert "784-500-20, 100: 30 GFLOP/s of the 40 that its matrix products reach alone" in text


def run_main(module, monkeypatch, capsys, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["step_time", "--quick", "--threads", "1", "--output", str(folder), *arguments])
    module("step_time").main()
    return json.loads((folder / "step_time.json").read_text()), capsys.readouterr().out


def test_the_command(module, monkeypatch, tmp_path, capsys):
    chosen = ("--contenders", "hand", "matrix-products")
    result, out = run_main(module, monkeypatch, capsys, tmp_path, *chosen)
    ((key, run),) = result["runs"].items()
    assert key == "tiny, batch 100, 1 thread"
    assert f"{key}: 1 of 1" in out
    mine = run["contenders"]["hand"]
    assert mine["loss"] == pytest.approx(mine["reference"], rel=1e-5)
    assert len(mine["seconds"]) == 3
    assert mine["gflop_per_second"] == pytest.approx(run["matrix_gflop_per_step"] / sorted(mine["seconds"])[1])
    assert run["ratios_to_hand"]["hand"]["median"] == 1.0
    assert math.isfinite(run["ratios_to_hand"]["matrix-products"]["median"])
    again, out = run_main(module, monkeypatch, capsys, tmp_path, *chosen)
    assert (again["runs"], out) == (result["runs"], "")  # nothing is run twice
    _, out = run_main(module, monkeypatch, capsys, tmp_path, "--table")
    assert "| `matrix-products` | " in out


def test_a_worker_that_fails_says_why(module, small):
    worker = module("step_worker")
    failing = worker.Worker("matrix-products", small)
    try:
        with pytest.raises(worker.Failed, match="unknown request: nonsense"):
            failing.ask("nonsense")
    finally:
        failing.close()


@pytest.mark.slow
def test_all_contenders(module, monkeypatch, tmp_path, capsys):
    result, _ = run_main(module, monkeypatch, capsys, tmp_path)
    (run,) = result["runs"].values()
    assert {*run["contenders"], *run["left_out"]} == set(module("step_worker").PLACES)
    assert {"hand", "hand-compiled", "hand-compiled-best", "pyro-svi", "ours"} <= set(run["contenders"])
