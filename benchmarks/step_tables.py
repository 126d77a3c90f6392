r"""Targets and README tables from the results of `benchmarks.step_time`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.step_problem import SAID

Result = dict[str, Any]

# Targets for the ratios of ours to others: tiny and paper on a CPU, paper on CUDA, minibatches of 100.
TARGETS = {
    "pyro-svi": (0.10, 0.55, 0.02),
    "hand": (0.25, 0.90, 0.10),
    "hand-compiled": (0.60, 1.00, 0.50),
    "hand-compiled-best": (0.60, 1.00, 0.50),
    "numpyro-epoch": (1.0, 1.1, 0.67),
}
TARGET_CASES = (("cpu", "tiny", 2), ("cpu", "paper", 2), ("cuda", "paper", 2))
EPOCH_STEPS, EPOCH_MILLISECONDS = 600, 40.0  # an epoch of MNIST in minibatches of 100, on CUDA
REPLICATES_SHARE = 0.25  # target cost of 64 replicates relative to 64 single runs, on CUDA
FIRST_STEP = {"cold": 30.0, "warm": 5.0}  # seconds, on two cores


def show(run: Result) -> None:
    """Prints a measurement."""
    if run["kind"] == "costs":
        print("  first compiled step, s: " + said(run["seconds_to_first_compiled_step"], ".1f"))
        for name, value in run["memory_mib"].items():
            print(f"  MiB, {name}: " + (said(value, ".1f") if isinstance(value, dict) else f"{value:.2f}"))
        return
    for name, mine in run["contenders"].items():
        time, rate = mine["milliseconds"], mine.get("gflop_per_second")
        over = (run.get("ours_over") or {}).get(name)
        text = f"  {name:20} {time['median']:9.3f} ms ({time['min']:.3f} to {time['max']:.3f})"
        text += f", ours is {over['median']:.2f} of it" if over else ""
        print(text + (f", {rate:.1f} GFLOP/s" if rate else ""), flush=True)
    for name, share in run.get("cost_of_each_over_single", {}).items():
        print(f"  {name:20} one of them costs {share['median']:.3f} of a single run")


def said(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


def tables(results: Iterable[Result]) -> str:
    """Returns the tables of all results in Markdown: targets, and the measurements on each device."""
    by_device = {result["device"]: result for result in results}
    return "\n\n".join([targets(by_device), *(measured(result) for result in by_device.values())])


def measured(result: Result) -> str:
    """Returns the tables of one device in Markdown, for the README."""
    threads = sorted({run["threads"] for run in result["runs"].values()})
    parts = [part for n in threads for part in (steps(result, n), extras(result, n))]
    return "\n\n".join(part for part in parts if part)


def targets(by_device: dict[str, Result]) -> str:
    """Returns the table of targets: ratios of ours to others, reached and wanted."""
    rows = []
    for name, aims in TARGETS.items():
        cells = []
        for aim, (device, size, threads) in zip(aims, TARGET_CASES, strict=True):
            run = case_of(by_device.get(device), size, 100, threads)
            cells.append(f"{ratio((run or {}).get('ours_over', {}).get(name))} (≤ {aim:.2f})")
        rows.append([f"`{name}`", *cells])
    title = "ours over, reached (target)"
    return markdown([title, "CPU tiny", "CPU paper", "CUDA paper"], rows)


def case_of(result: Result | None, size: str, batch: int, threads: int) -> Result | None:
    """Returns the run of a size and batch with a number of threads; if there is none, with another number."""
    runs = [] if result is None else [run for run in result["runs"].values() if run["kind"] == "step"]
    found = [run for run in runs if (run["size"], run["batch"]) == (size, batch)]
    exact = [run for run in found if run["threads"] == threads]
    return (exact or found or [None])[0]


def steps(result: Result, threads: int) -> str:
    """Returns the table of a device: the ratio of our time to that of others, and on CUDA also milliseconds per step.

    Each number is the median over turns, with least and greatest. On a CPU, milliseconds depend too much on the
    machine to be shown.
    """
    runs = [run for run in result["runs"].values() if run["kind"] == "step" and run["threads"] == threads]
    if not runs:
        return ""
    names = list(dict.fromkeys(name for run in runs for name in run["contenders"]))
    heads = [f"{SAID[run['size']]}, {run['batch']}" for run in runs]
    rows = [[f"`{name}`", *(ratio(run["ours_over"].get(name)) for run in runs)] for name in names if name != "ours"]
    where = result["device"] if result["device"] != "cpu" else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    parts = [markdown([f"ours over, {where}", *heads], rows)]
    if result["device"] != "cpu":
        rows = [[f"`{name}`", *(milliseconds(run["contenders"].get(name)) for run in runs)] for name in names]
        parts.append(markdown([f"ms per step, {where}", *heads], rows))
    return "\n\n".join(parts)


def milliseconds(mine: dict[str, Any] | None) -> str:
    if mine is None:
        return "-"
    time = mine["milliseconds"]
    return f"{number(time['median'])} ({number(time['min'])} to {number(time['max'])})"


def number(value: float) -> str:
    """Returns the text of a number with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"


def extras(result: Result, threads: int) -> str:
    """Returns lines about matrix products, the first step, memory and replicates."""
    lines: list[str] = []
    kinds: dict[str, Callable[[Result], list[str]]] = {
        "step": _limit,
        "costs": _costs,
        "replicates": _replicates,
    }
    for run in result["runs"].values():
        if run["threads"] == threads:
            lines += kinds[run["kind"]](run)
    epoch = case_of(result, "paper", 100, threads)
    if result["device"] == "cuda" and epoch is not None and "ours" in epoch["contenders"]:
        took = EPOCH_STEPS * epoch["contenders"]["ours"]["milliseconds"]["median"]
        lines.append(
            f"An epoch of {EPOCH_STEPS} steps of the paper's size: {took:.0f} ms (≤ {EPOCH_MILLISECONDS:.0f})."
        )
    return "\n".join(f"* {line}" for line in lines)


def _limit(run: Result) -> list[str]:
    ours, products = (run["contenders"].get(name, {}).get("gflop_per_second") for name in ("ours", "matrix-products"))
    if run["size"] != "paper" or ours is None or products is None:
        return []
    share = run["ours_over"]["matrix-products"]["median"]
    return [
        f"{SAID[run['size']]}, {run['batch']}: {ours:.0f} GFLOP/s of the {products:.0f} that its matrix products reach "
        f"alone; a step takes {share:.2f} times as long as they do."
    ]


def _costs(run: Result) -> list[str]:
    first, memory = run["seconds_to_first_compiled_step"], run["memory_mib"]
    ours, eager = memory["ours"], memory["ours-eager"]
    return [
        f"{SAID[run['size']]}, first compiled step: {first['cold']:.1f} s (≤ {FIRST_STEP['cold']:.0f}), with the cache "
        f"on disk {first['warm']:.1f} s (≤ {FIRST_STEP['warm']:.0f}).",
        f"{SAID[run['size']]}, tensors at the peak of a step: {ours['tensors'] + ours['in_a_step']:.1f} MiB compiled, "
        f"{eager['tensors'] + eager['in_a_step']:.1f} uncompiled; parameters are {memory['parameters']:.1f}, noise "
        f"{memory['noise']:.2f}. The process: {ours['process']:.0f} and {eager['process']:.0f} MiB.",
    ]


def _replicates(run: Result) -> list[str]:
    lines = []
    for name, share in run["cost_of_each_over_single"].items():
        count = run["contenders"][name]["replicates"]
        if count > 1:
            aim = f" (CUDA: ≤ {REPLICATES_SHARE:.2f})" if count == 64 else ""
            lines.append(f"{SAID[run['size']]}: {count} replicates cost {ratio(share)} of {count} single runs{aim}.")
    return lines


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown with right-aligned numbers."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
