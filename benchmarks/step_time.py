r"""Times one optimization step of a VAE: written by hand, in Pyro, NumPyro and pythae, and by `pyro_vae.fit`.

    python -m benchmarks.step_time                     # CPU, two threads; with one thread: --threads 1
    python -m benchmarks.step_time --device cuda
    python -m benchmarks.step_time --table             # the README's tables, from the committed result

Every contender has its own process. All train the same VAE with the same initial weights on the same binary data with
Adam, and work as in an epoch: shuffle once, gather a minibatch at each step. They take turns, A B C A B C ..., and are
idle while others run; a ratio is within one turn. Before the timing, the loss of each at the initial weights is
compared with a float64 reference at the same noise, and its loss after some steps with those of the others.

* ``hand``: eager PyTorch, the KL in closed form, `torch.optim.Adam`; ``hand-fused`` with its fused implementation.
* ``hand-compiled``: the same loss under `torch.compile`; ``hand-compiled-best``: the fastest of several ways.
* ``pyro-svi``: `pyro.infer.SVI` with `Trace_ELBO` (`RenyiELBO` for K > 1) and validation off; ``pyro-jit``:
  `JitTrace_ELBO`.
* ``numpyro-step``: NumPyro's `SVI.update` in `jax.jit`; ``numpyro-epoch``: whole epochs in `lax.fori_loop`.
* ``pythae``: the step of its trainer, with its loader.
* ``ours-eager``, ``ours``: the loop of `pyro_vae.fit` on `Trace_ELBO` (IWAE for K > 1), uncompiled and compiled.
* ``matrix-products``: the step's matrix products alone.
* ``replicates-8``, ``replicates-64``: `fit` of so many VAEs at once; a step is one of all of them.

NumPyro and pythae are included if they are installed (the extra ``benchmarks``). Results are stored for each size, so
the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS
from benchmarks.runs import Runs, device
from benchmarks.step_problem import ROWS, SIZES, Problem, matrix_flops
from benchmarks.step_tables import show, tables
from benchmarks.step_worker import NO_LOSS, PLACES, REPLICATED, Failed, Worker

BATCHES = (100, 1000)
# Cases that run on a CPU only with --all, since each takes minutes.
SPARED = {("wide", 1000), ("wide-iwae", 1000), ("conv", 1000)}
REPLICATED_SIZES = ("tiny", "paper")  # at the first batch size
REPLICATES = (8, 64)
COSTS = ("tiny", "paper")  # sizes for the measurement of first step and memory
TURNS, TURN_SECONDS = 9, 0.2
FEWER_TURNS = 5  # if a single step takes longer than a turn
TRAINED = {"tiny": 200, "paper": 100, "wide": 30, "wide-iwae": 5, "conv": 20}  # steps before weights are compared
LOSS_TOLERANCE = 1e-4  # relative, for float32
TRAINED_TOLERANCE = 0.1  # relative to the fall of the loss
MEMORY_STEPS = 20

# Features that a contender lacks.
LACKS = {
    ("pyro-jit", "wide-iwae"): "JitTrace_ELBO has no importance-weighted bound",
    ("pythae", "wide-iwae"): "its IWAE reports another number than the bound: sum of normalised weights times log w",
    ("matrix-products", "conv"): "convolutions",
}


def available(name: str, size: str) -> str:
    """Returns why a contender cannot take part; an empty string if it can."""
    missing = [package for package in PLACES.get(name, REPLICATED)[2] if importlib.util.find_spec(package) is None]
    return LACKS.get((name, size)) or (f"not installed: {', '.join(missing)}" if missing else "")


# ---------------------------------------------------------------------- the contenders of one case


def started(names: Sequence[str], problems: dict[str, Problem]) -> tuple[dict[str, Worker], dict[str, str]]:
    """Returns the processes that are ready to take steps, and the reasons for others that are left out."""
    left_out = {name: reason for name in names if (reason := available(name, problems[name].name))}
    workers = {name: Worker(name, problems[name]) for name in names if name not in left_out}
    for name, worker in list(workers.items()):
        try:
            worker.ask("make")
        except Failed as error:
            if name.startswith(("hand", "ours")):
                raise
            left_out[name] = str(error).strip().splitlines()[-1]
            workers.pop(name).close()
    for name, reason in left_out.items():
        print(f"  {name} is left out: {reason}", flush=True)
    return workers, left_out


def compared(workers: dict[str, Worker], problem: Problem, steps: int) -> dict[str, dict[str, Any]]:
    """Returns the losses of all contenders, at the initial weights and after some steps.

    Raises:
        SystemExit: If a contender's loss differs from the reference or the others.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        if name in NO_LOSS:
            continue
        mine = found[name] = worker.ask("agreement")
        if abs(mine["loss"] - mine["reference"]) > LOSS_TOLERANCE * abs(mine["reference"]):
            raise SystemExit(f"{name} computes a loss of {mine['loss']}; the reference is {mine['reference']}.")
        mine["trained"] = worker.ask("trained", steps)
    for estimator in ("analytic", "sampled"):
        agree({name: mine["trained"] for name, mine in found.items() if mine["estimator"] == estimator})
    return found


def agree(losses: dict[str, dict[str, float]]) -> None:
    """Raises `SystemExit` if a contender's loss after the same steps differs from that of the others."""
    middle = statistics.median(mine["after"] for mine in losses.values()) if losses else 0.0
    for name, mine in losses.items():
        if abs(mine["after"] - middle) > TRAINED_TOLERANCE * (mine["before"] - middle):
            raise SystemExit(f"{name} goes from {mine['before']:.3f} to {mine['after']:.3f}, others to {middle:.3f}.")


def turns(workers: dict[str, Worker], given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the seconds per step of each contender in each of its turns."""
    steps = {name: worker.ask("calibrate", given.turn_seconds) for name, worker in workers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    slow = statistics.median(steps.values()) <= 1
    for _ in range(min(given.turns, FEWER_TURNS) if slow else given.turns):
        for name, worker in workers.items():
            seconds[name].append(worker.ask("steps", steps[name]) / steps[name])
    return {name: {"steps_per_turn": steps[name], "seconds": seconds[name]} for name in workers}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, quartiles, minimum and maximum."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "lower_quartile": low,
        "upper_quartile": high,
        "min": min(values),
        "max": max(values),
    }


def ratios(timed: dict[str, dict[str, Any]], above: str, below: str) -> dict[str, float] | None:
    """Returns the ratio of two contenders, turn by turn."""
    if above not in timed or below not in timed:
        return None
    pairs = zip(timed[above]["seconds"], timed[below]["seconds"], strict=True)
    return spread([mine / other for mine, other in pairs])


def case(problem: Problem, given: argparse.Namespace) -> dict[str, Any]:
    """Checks and times all contenders on one problem."""
    names = [name for name in given.contenders if not name.startswith("replicates")]
    workers, left_out = started(names, dict.fromkeys(names, problem))
    try:
        losses = compared(workers, problem, given.trained or TRAINED[problem.name])
        timed = turns(workers, given)
        remarks = {name: worker.ask("remark") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    flops = matrix_flops(problem)
    for name, mine in timed.items():
        mine |= losses.get(name, {}) | ({"remark": remarks[name]} if remarks[name] else {})
        mine["milliseconds"] = spread([1e3 * s for s in mine["seconds"]])
        if flops is not None:
            mine["gflop_per_second"] = flops / statistics.median(mine["seconds"]) / 1e9
    return {
        "kind": "step",
        **described(problem),
        "matrix_gflop_per_step": None if flops is None else flops / 1e9,
        "load_average": os.getloadavg()[0],
        "contenders": timed,
        "ratios_to_hand": {name: ratios(timed, name, "hand") for name in timed},
        "ours_over": {name: ratios(timed, "ours", name) for name in timed if name != "ours"},
        "left_out": left_out,
    }


def replicated(problem: Problem, given: argparse.Namespace) -> dict[str, Any]:
    """Times a step of many VAEs at once and a step of one VAE."""
    counts = {"ours": 1} | {f"replicates-{r}": r for r in given.replicates}
    problems = {name: replace(problem, replicates=r) for name, r in counts.items()}
    workers, left_out = started(list(counts), problems)
    try:
        steps = given.trained or TRAINED[problem.name]
        fallen = {name: worker.ask("trained", steps) for name, worker in workers.items()}
        timed = turns(workers, given)
    finally:
        for worker in workers.values():
            worker.close()
    agree(fallen)
    shares = {}
    for name in timed:
        timed[name] |= {"replicates": counts[name], "trained": fallen[name]}
        timed[name]["milliseconds"] = spread([1e3 * s for s in timed[name]["seconds"]])
        each = {"each": {"seconds": [s / counts[name] for s in timed[name]["seconds"]]}, "ours": timed["ours"]}
        shares[name] = ratios(each, "each", "ours")
    return {
        "kind": "replicates",
        **described(problem),
        "load_average": os.getloadavg()[0],
        "contenders": timed,
        "cost_of_each_over_single": shares,
        "left_out": left_out,
    }


def costs(problem: Problem, given: argparse.Namespace) -> dict[str, Any]:
    """Measures the time to the first compiled step, without and with a cache on disk, and the memory of a step."""
    with tempfile.TemporaryDirectory(prefix="step_time_") as folder:
        found: dict[str, float] = {}
        for kind in ("cold", "warm"):
            worker = Worker(
                "ours", problem, {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": f"{folder}/triton"}
            )
            found[kind] = worker.ask("start")
            worker.close()
    memory: dict[str, Any] = {}
    for name in ("ours-eager", "ours"):
        worker = Worker(name, problem)
        worker.ask("make")
        memory[name] = worker.ask("memory", MEMORY_STEPS)
        worker.close()
    sizes = sum(weight.nbytes for weight in problem.weights()), problem.noise().nbytes
    return {
        "kind": "costs",
        **described(problem),
        "seconds_to_first_compiled_step": found,
        "memory_mib": memory | {"parameters": sizes[0] / 2**20, "noise": sizes[1] / 2**20},
    }


def described(problem: Problem) -> dict[str, Any]:
    return {"size": problem.name, "batch": problem.batch, "threads": problem.threads, "rows": problem.rows}


# ---------------------------------------------------------------------- all of them


def versions() -> dict[str, str | None]:
    """Returns the versions of the contenders' packages; None for a package that is not installed."""
    found: dict[str, str | None] = {}
    for package in ("numpyro", "jax", "jaxlib", "pythae"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {os.cpu_count()} cores"


def jobs(given: argparse.Namespace) -> dict[str, tuple[Any, Problem]]:
    """Returns the measurements by key: first the sizes, then replicates and costs."""
    chosen = [(name, batch) for name in given.sizes for batch in given.batches]
    if given.device == "cpu" and not given.all:
        chosen = [pair for pair in chosen if pair not in SPARED]
    found: dict[str, tuple[Any, Problem]] = {}
    for threads in given.threads:
        where = f"{threads} thread{'s' if threads > 1 else ''}"
        problems = [Problem(name, batch, given.device, threads, given.rows) for name, batch in chosen]
        found |= {f"{p.name}, batch {p.batch}, {where}": (case, p) for p in problems}
        first = [p for p in problems if p.batch == min(given.batches)]
        if given.replicates:
            found |= {f"replicates, {p.name}, {where}": (replicated, p) for p in first if p.name in REPLICATED_SIZES}
        if given.costs:
            found |= {f"costs, {p.name}, {where}": (costs, p) for p in first if p.name in COSTS}
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", type=device, help="cpu or cuda")
    parser.add_argument("--threads", type=int, nargs="+", default=[min(2, os.cpu_count() or 1)])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--all", action="store_true", help="all sizes with minibatches of 1,000, also on a CPU")
    parser.add_argument("--contenders", nargs="+", default=list(PLACES), choices=list(PLACES))
    parser.add_argument("--replicates", type=int, nargs="*", default=list(REPLICATES), help="no number: leave them out")
    parser.add_argument("--no-costs", dest="costs", action="store_false", help="leave out first step and memory")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--turn-seconds", type=float, default=TURN_SECONDS)
    parser.add_argument("--output", default=str(RESULTS), help="folder of the result")
    parser.add_argument("--restart", action="store_true", help="put existing runs aside")
    parser.add_argument("--quick", action="store_true", help="under a minute; the numbers mean nothing")
    parser.add_argument("--table", action="store_true", help="print the tables of existing results")
    given = parser.parse_args(arguments)
    given.rows, given.trained = ROWS[given.device], None
    if given.quick:
        given.sizes, given.batches, given.replicates, given.costs = ["tiny"], [100], [], False
        given.turns, given.turn_seconds, given.rows, given.trained = 3, 0.05, 2000, 20
    return given


def main() -> None:
    given = parse()
    if given.table:
        print(tables([json.loads(path.read_text()) for path in sorted(Path(given.output).glob("step_time*.json"))]))
        return
    torch.set_num_threads(given.threads[0])
    settings = {"turns": given.turns, "turn_seconds": given.turn_seconds, "rows": given.rows, "quick": given.quick}
    settings |= {"contenders": given.contenders, "replicates": given.replicates}
    runs = Runs("step_time", settings, given)
    todo = jobs(given)

    def run(key: str) -> dict[str, Any]:
        measure, problem = todo[key]
        result: dict[str, Any] = measure(problem, given)
        show(result)
        return result

    def about(found: dict[str, Any]) -> dict[str, Any]:
        return {"processor": processor(), "versions_of_others": versions(), "device": given.device}

    runs.complete(todo, run, about)


if __name__ == "__main__":
    main()
