r"""One contender of `benchmarks.step_time` in its own process, which takes steps on request.

The parent writes a line for each request to its standard input, and reads a line of JSON for each answer.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.step_problem import Problem, reference_loss

ROOT = Path(__file__).parents[1]

# Module, class and required packages of each contender.
PLACES = {
    "hand": ("step_contenders", "Hand", ()),
    "hand-fused": ("step_contenders", "HandFused", ()),
    "hand-compiled": ("step_contenders", "HandCompiled", ()),
    "hand-compiled-best": ("step_contenders", "HandCompiledBest", ()),
    "pyro-svi": ("step_pyro", "PyroSVI", ()),
    "pyro-jit": ("step_pyro", "PyroJit", ()),
    "numpyro-step": ("step_jax", "NumPyroStep", ("jax", "numpyro")),
    "numpyro-epoch": ("step_jax", "NumPyroEpoch", ("jax", "numpyro")),
    "pythae": ("step_contenders", "Pythae", ("pythae",)),
    "ours-eager": ("step_ours", "OursEager", ()),
    "ours": ("step_ours", "Ours", ()),
    "matrix-products": ("step_contenders", "MatrixProducts", ()),
}
REPLICATED = ("step_ours", "Replicates", ())
NO_LOSS = ("matrix-products",)

CALIBRATION_SECONDS = 0.03
COMPARED = 1000  # number of data for the comparison of trained weights


class Failed(RuntimeError):
    """A contender that cannot run; the message has the end of its output."""


class Worker:
    """The parent's interface to a contender's process.

    Arguments:
        name: Name of the contender.
        problem: Problem to train.
        environment: Additional environment variables of the process.
    """

    def __init__(self, name: str, problem: Problem, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "benchmarks.step_worker", name, json.dumps(asdict(problem))]
        variables = os.environ | _threads(problem.threads) | dict(environment or {})
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True
        )

    def ask(self, *request: str | int) -> Any:
        """Sends a request and returns the answer.

        Raises:
            Failed: If the process has ended.
        """
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("a worker has pipes")
        try:
            self.process.stdin.write(" ".join(map(str, request)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.said.seek(0)
            raise Failed(f"{self.name}: {self.said.read().strip()[-1500:]}")
        return json.loads(line)

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.said.close()


def _threads(threads: int) -> dict[str, str]:
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # contenders share a GPU's memory
    if threads == 1:
        variables["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return variables


def make(name: str, problem: Problem) -> Any:
    """Returns a new contender."""
    module, attribute, _ = PLACES.get(name, REPLICATED)
    return getattr(importlib.import_module(f"benchmarks.{module}"), attribute)(problem)


def agreement(contender: Any, problem: Problem) -> dict[str, Any]:
    """Returns a contender's loss at the initial weights, and the loss in float64 with the same noise."""
    x = problem.data()[: problem.batch]
    value, noise = contender.loss(x, problem.noise())
    reference = reference_loss(problem, problem.weights(), x, noise, contender.estimator)
    return {"loss": value, "reference": reference, "estimator": contender.estimator}


def trained(contender: Any, problem: Problem, steps: int) -> dict[str, float]:
    """Returns the loss before training and after ``steps`` steps in total, in float64, with common data and noise."""
    contender.steps(steps - contender.taken)
    rows = min(COMPARED, problem.rows)
    compared = replace(problem, batch=rows if problem.size.particles == 1 else rows // problem.size.particles)
    x, noise = compared.data()[: compared.batch], compared.noise()
    before, after = (reference_loss(compared, w, x, noise, "sampled") for w in (problem.weights(), contender.weights()))
    return {"before": before, "after": after}


def timed(contender: Any, steps: int) -> float:
    start = time.perf_counter()
    contender.steps(steps)
    return time.perf_counter() - start


def calibrated(contender: Any, seconds: float) -> int:
    """Returns the number of steps that take the given seconds."""
    steps = 1
    while (took := timed(contender, steps)) < CALIBRATION_SECONDS:
        steps *= 2
    return max(1, round(seconds * steps / took))


# ---------------------------------------------------------------------- memory


def memory(contender: Any, problem: Problem, steps: int) -> dict[str, float]:
    """Returns the MiB of the tensors before the next steps, and the largest amount that the steps add.

    ``process`` is the peak of the process's resident memory during the steps (CUDA: of the allocator).
    """
    import torch

    contender.steps(3)
    gc.collect()
    if problem.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.steps(steps)
        peak = torch.cuda.max_memory_allocated()
        return {"tensors": before / 2**20, "in_a_step": (peak - before) / 2**20, "process": peak / 2**20}
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    contender.steps(steps)
    peak = float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
    live = {o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in _tensors()}
    return {"tensors": sum(live.values()) / 2**20, "in_a_step": most_allocated(contender, steps), "process": peak}


def _tensors() -> list[Any]:
    import torch

    return [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter) and o.device.type == "cpu"]


def most_allocated(contender: Any, steps: int) -> float:
    """Returns the peak of the memory, in MiB, that the CPU's allocator handed out during steps."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        contender.steps(steps)
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    most = total = 0.0
    for _, change in sorted(changes):
        total += change
        most = max(most, total)
    return most / 2**20


# ---------------------------------------------------------------------- the process


def answer(contender: Any, problem: Problem, request: list[str]) -> Any:
    match request:
        case ["agreement"]:
            return agreement(contender, problem)
        case ["trained", steps]:
            return trained(contender, problem, int(steps))
        case ["calibrate", seconds]:
            return calibrated(contender, float(seconds))
        case ["steps", steps]:
            return timed(contender, int(steps))
        case ["memory", steps]:
            return memory(contender, problem, int(steps))
        case ["remark"]:
            return contender.remark
    raise ValueError(f"unknown request: {' '.join(request)}")


def main() -> None:
    name, problem = sys.argv[1], Problem(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with answers
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if problem.threads < len(cores):
        os.sched_setaffinity(0, cores[: problem.threads])
    import torch

    torch.set_num_threads(problem.threads)
    importlib.import_module(f"benchmarks.{PLACES.get(name, REPLICATED)[0]}")
    start = time.perf_counter()
    contender: Any = None
    for line in sys.stdin:
        request = line.split()
        if request == ["start"]:
            contender = make(name, problem)
            contender.steps(max(0, 2 - contender.taken))
            result: Any = time.perf_counter() - start
        elif request == ["make"]:
            contender = make(name, problem)
            result = time.perf_counter() - start
        else:
            result = answer(contender, problem, request)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
