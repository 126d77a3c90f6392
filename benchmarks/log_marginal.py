r"""Times `log_marginal`, the matrix products of its decoder alone, and pythae's `get_nll` with the same weights.

    python -m benchmarks.log_marginal                             # two threads, wall time
    python -m benchmarks.log_marginal --threads 1 --clock cpu     # on a machine with other processes
    python -m benchmarks.log_marginal --device cuda

The VAE is 784-500-20 with a Bernoulli likelihood and random weights; each datum has 5,000 samples. The contenders take
turns on the same data, so a slow moment of the machine affects all of them; each ratio is within one turn. pythae (the
extra ``benchmarks``) is left out if it is not installed. It is run without gradients (it does not turn them off
itself), once with its default batch of samples and once with its fastest.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from benchmarks.record import write
from benchmarks.runs import device
from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.evaluation import log_marginal

ROWS = (200, 500, 1000, 2500, 5000)  # numbers of rows to try: for matrix products, and as batch size of pythae
DEFAULT_BATCH = 100  # default of pythae's get_nll
D, HIDDEN, LATENT = 784, 500, 20
SEED = 0  # seed of the weights; the data have SEED + 1
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

clock = "wall"


def make_vae(device: str) -> VAE:
    torch.manual_seed(SEED)
    return VAE(
        prior=Conditional(dist.Normal, (LATENT,), loc=Fixed(0.0), scale=Fixed(1.0)),
        likelihood=Conditional(dist.Bernoulli, (D,), given=mlp(LATENT, HIDDEN)),
        posterior=Conditional(dist.Normal, (LATENT,), given=mlp(D, HIDDEN)),
    ).to(device)


def make_data(n: int, device: str) -> Tensor:
    return (torch.rand(n, D, generator=torch.Generator().manual_seed(SEED + 1)) < 0.3).float().to(device)


def layers(part: nn.Module) -> list[nn.Linear]:
    return [module for module in part.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def matrix_products(vae: VAE, total: int, rows: int) -> Callable[[], None]:
    """Returns a function that computes only the decoder's two matrix products, for ``total`` rows."""
    first, second = (layer.weight.T for layer in layers(vae.likelihood))
    z = torch.randn(rows, LATENT, device=first.device)
    hidden, logits = z.new_empty(rows, HIDDEN), z.new_empty(rows, D)

    @torch.no_grad()
    def run() -> None:
        for _ in range(total // rows):
            torch.mm(z, first, out=hidden)
            torch.mm(hidden, second, out=logits)

    return run


def pythae_twin(vae: VAE, device: str) -> Any:
    """Returns pythae's VAE with the same layer objects."""
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = layers(vae.posterior)

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = self.head(self.first(x.flatten(1)).tanh()).chunk(2, dim=-1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = layers(vae.likelihood)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.head(self.first(z).tanh()).sigmoid())

    config = VAEConfig(input_dim=(D,), latent_dim=LATENT, reconstruction_loss="bce")
    return PythaeVAE(config, encoder=Encoder(), decoder=Decoder()).to(device).eval()


def seconds(run: Callable[[], Any], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = CLOCKS[clock]()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return CLOCKS[clock]() - start


def fastest(runs: dict[int, Callable[[], Any]], device: str) -> int:
    """Returns the key of the fastest function, by the least time of three turns after a warm-up."""
    turns = [{key: seconds(run, device) for key, run in runs.items()} for _ in range(4)][1:]
    return min(runs, key=lambda key: min(turn[key] for turn in turns))


def contenders(vae: VAE, x: Tensor, samples: int, device: str) -> dict[str, Callable[[], Any]]:
    """Returns the functions to time, by name; the fastest setting of each is found with two data first."""
    rows = fastest({rows: matrix_products(vae, 2 * samples, rows) for rows in ROWS}, device)
    chosen: dict[str, Callable[[], Any]] = {
        "log_marginal": lambda: log_marginal(vae, x, samples, compile=False),
        f"matrix products, {rows} rows at once": matrix_products(vae, len(x) * samples, rows),
    }
    if importlib.util.find_spec("pythae") is None:
        print("pythae is not installed; it is left out.")
        return chosen
    twin = pythae_twin(vae, device)

    def get_nll(data: Tensor, batch: int) -> Callable[[], float]:
        return lambda: twin.get_nll(data, n_samples=samples, batch_size=batch)

    with torch.no_grad():
        batch = fastest({rows: get_nll(x[:2], rows) for rows in ROWS}, device)
    chosen[f"pythae get_nll, batch {DEFAULT_BATCH} (its default)"] = get_nll(x, DEFAULT_BATCH)
    chosen[f"pythae get_nll, batch {batch} (its fastest)"] = get_nll(x, batch)
    return chosen


def agreement(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Returns the mean log p(x) of each contender that estimates it; this also warms up all contenders."""
    values = {}
    for name, run in runs.items():
        result = run()
        if result is not None:
            values[name] = float(result.value) if name == "log_marginal" else float(result)
    return values


def peak_memory(options: SimpleNamespace) -> dict[str, float]:
    """Returns seconds and additional MiB of an evaluation of all data, measured in a new process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.log_marginal",
        "--only-memory",
        "--device",
        options.device,
        "--clock",
        options.clock,
        "--threads",
        str(options.threads),
    ]
    command += ["--data", str(options.data), "--samples", str(options.samples)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(run.stdout)
    return result


def high_water(device: str) -> float:
    """Returns the peak memory in MiB, of the process or of the CUDA allocator."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 2**10


def measure_memory(options: SimpleNamespace) -> dict[str, float]:
    vae, x = make_vae(options.device), make_data(options.data, options.device)
    log_marginal(vae, x[:1], 50, compile=False)
    before = high_water(options.device)
    elapsed = seconds(lambda: log_marginal(vae, x, options.samples, compile=False), options.device)
    return {"seconds": elapsed, "peak_mib": high_water(options.device) - before}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(options: SimpleNamespace) -> dict[str, Any]:
    vae, x = make_vae(options.device), make_data(options.data_per_turn, options.device)
    with torch.no_grad():
        runs = contenders(vae, x, options.samples, options.device)
        values = agreement(runs)
        turns = [{name: seconds(run, options.device) for name, run in runs.items()} for _ in range(options.turns)]
    names = list(runs)
    ours, products = names[:2]
    ratios = {f"{ours} / {products}": [turn[ours] / turn[products] for turn in turns]}
    ratios |= {f"{name} / {ours}": [turn[name] / turn[ours] for turn in turns] for name in names[2:]}
    rows = len(x) * options.samples
    return {
        "pythae": importlib.metadata.version("pythae") if len(names) > 2 else None,
        "threads": torch.get_num_threads(),
        "seed": SEED,
        "load_average": os.getloadavg()[0],
        "options": vars(options),
        "log_p": values,
        "seconds": {name: [turn[name] for turn in turns] for name in names},
        "microseconds_per_sample": {name: spread([1e6 * turn[name] / rows for turn in turns]) for name in names},
        "ratios": {name: spread(values) for name, values in ratios.items()},
        "whole": peak_memory(options),
    }


def show(result: dict[str, Any]) -> None:
    options, whole = result["options"], result["whole"]
    how = f"{options['device']}, {result['threads']} thread(s), {options['clock']} time"
    print(f"{how}, load average {result['load_average']:.1f}")
    for title, unit in (("microseconds_per_sample", "µs per sample and datum"), ("ratios", "times")):
        for name, value in result[title].items():
            print(f"{value['median']:9.2f} {unit} ({value['min']:.2f} to {value['max']:.2f})  {name}")
    for name, value in result["log_p"].items():
        print(f"{value:9.3f} nats per datum  {name}")
    print(
        f"{options['data']} data at {options['samples']} samples: {whole['seconds']:.1f} s, {whole['peak_mib']:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", type=device, help="cpu or cuda")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--data", type=int, default=1000, help="number of data for the measurement of memory")
    parser.add_argument("--data-per-turn", type=int, default=20)
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    options = SimpleNamespace(**vars(parser.parse_args()))
    if options.clock == "cpu" and (options.threads > 1 or options.device != "cpu"):
        parser.error("--clock cpu sums the time of all threads, even of waiting ones; pass --threads 1.")
    global clock
    clock = options.clock
    torch.set_num_threads(options.threads)
    if options.only_memory:
        print(json.dumps(measure_memory(options)))
        return
    del options.only_memory
    result = measure(options)
    show(result)
    write("log_marginal", result, options.device)


if __name__ == "__main__":
    main()
