r"""Figures 4 and 5 of "Auto-encoding variational Bayes": decoded points of a plane, and decoded draws from the prior.

    python -m benchmarks.aevb_figures45                      # an hour; start it twice for two cores
    python -m benchmarks.aevb_figures45 --panels mnist-2,frey-2

Figure 4: with 2 latents, the mean of p(x|z) on a grid of z. The inverse distribution function of the Gaussian maps
evenly spaced coordinates of the unit square to this grid, so each cell has the same probability under the prior.

.. math:: z_{ij} = (\Phi^{-1}(u_j), \Phi^{-1}(1 - u_i)), \qquad u_i = (i + 1/2) / n

Figure 5: for MNIST with 2, 5, 10 and 20 latents, the mean of p(x|z) at draws of z from the prior.

The VAEs are trained by AEVB to 1e7 samples with the protocol of figure 2; see `benchmarks.aevb`. The final bound, with
one draw of z for each datum, is compared with the published one of figure 2, if that has the same N_z. The result file
contains the images (zlib, base 85), so the figures can be drawn again from it.
"""

from __future__ import annotations

import argparse
import base64
import math
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import aevb
from benchmarks.aevb import EVALUATION_SEED, Setting
from benchmarks.curves import fit_with_curve, logarithmic
from benchmarks.runs import Runs, add_arguments, at_least, positive
from pyro_vae import VAE
from pyro_vae.datasets import Data
from pyro_vae.distributions.moments import centre
from pyro_vae.inference import AEVB
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated

PANELS = ("mnist-2", "frey-2", "mnist-20", "mnist-10", "mnist-5")  # data set and N_z; the most important first
SAMPLES = 10_000_000  # training samples evaluated
SEED = 0
FIRST, PER_DECADE = 100_000, 4
MANIFOLD, DRAWS = 20, 10  # images on a side of figure 4 and of figure 5
SHAPES = {"mnist": (28, 28), "frey": (28, 20)}
SETTING = Setting(binarisation="none", warmup=aevb.WARMUP)
QUICK = {"samples": 3_000, "choice": 500, "hidden": 12, "training": 400, "warmup": 2}
INK = {"mnist": "gray_r", "frey": "gray"}  # dark digits on white, as on paper; faces as in the photographs


def plane(n: int) -> Tensor:
    """Returns an n x n grid whose cells have equal probability under N(0, I), row by row, shape ``(n * n, 2)``.

    The first coordinate rises from left to right, the second from the bottom to the top.
    """
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    z = math.sqrt(2) * torch.erfinv(2 * u - 1)
    down, right = torch.meshgrid(z.flip(0), z, indexing="ij")
    return torch.stack([right, down], dim=-1).reshape(n * n, 2)


@torch.no_grad()
def pictures(vae: VAE, z: Tensor) -> Tensor:
    """Returns the mean of p(x|z) as grey levels from 0 to 255, shape ``(..., pixels)``."""
    with evaluating(vae):
        mean = centre(vae.decode(z.to(vae.device, vae.dtype)))
    return (255 * mean.clamp(0, 1)).round().to(torch.uint8).cpu()


def packed(images: Tensor) -> str:
    """Returns images of bytes as text."""
    return base64.b85encode(zlib.compress(images.numpy().tobytes(), 9)).decode("ascii")


def unpacked(text: str, shape: tuple[int, ...]) -> Tensor:
    """Returns the images of a text from `packed`, shape ``(n, *shape)``."""
    flat = torch.frombuffer(bytearray(zlib.decompress(base64.b85decode(text))), dtype=torch.uint8)
    return flat.reshape(-1, *shape)


def run(panel: str, data: Data, setting: Setting, given: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Trains the VAE of a panel; decodes draws from the prior and, with 2 latents, the plane.

    Arguments:
        panel: One of `PANELS`.
        data: Training data.
        setting: Choices that the paper does not specify.
        given: Parsed arguments.
        place: Path of the files of the unfinished run.
    """
    latents, batch = int(panel.split("-")[1]), aevb.batch_size(data)
    hidden = QUICK["hidden"] if given.quick else aevb.HIDDEN[data.name]
    make = partial(made, data, latents, hidden, setting, given.device)
    choose = partial(aevb.choose_stepsize, make, AEVB, data, setting, seed=SEED, compile=not given.quick)
    chosen = choose(samples=QUICK["choice"] if given.quick else aevb.CHOICE_SAMPLES)
    vae, steps = make(), -(-given.samples // batch)
    parts = {part: x.to(given.device) for part, x in aevb.evaluated_data(data).items()}
    history, records = fit_with_curve(
        *(place, vae, data.train.to(given.device), AEVB()),
        replace(aevb.training(data, setting, chosen["stepsize"], steps, not given.quick), divergence="raise"),
        at=logarithmic(max(1, min(FIRST // batch, steps // 10)), steps, PER_DECADE),
        evaluate=lambda step: {part: round(aevb.bound(vae, x), 4) for part, x in parts.items()},
        seed=SEED,
        transform=data.minibatch_transform,
        progress=f"{aevb.DATA_TITLES[data.name]}, {latents} latents",
    )
    with isolated(EVALUATION_SEED, "draws"):
        z = torch.randn(DRAWS**2, latents)
    return {
        "data_set": data.name,
        "latents": latents,
        "seed": SEED,
        "samples": records[-1]["samples"],
        **chosen,
        "execution": history.execution.split(" in ")[0],
        "training_seconds": round(float(history.seconds[-1]), 1),
        "curve": [{name: record[name] for name in ("samples", "train", "test")} for record in records],
        "draws": packed(pictures(vae, z)),
        **({"manifold": packed(pictures(vae, plane(MANIFOLD)))} if latents == 2 else {}),
    }


def made(data: Data, latents: int, hidden: int, setting: Setting, device: str) -> VAE:
    """Returns the paper's VAE on a device."""
    return aevb.make_vae(data, latents, hidden, SEED, setting).to(device)


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Returns the final bounds of the runs, and the published test bound at the same number of samples."""
    summary = {}
    for panel, run in runs.items():
        known = aevb.published()["figure 2"][run["data_set"]].get(str(run["latents"]), {}).get("aevb", {})
        last = run["curve"][-1]
        summary[panel] = {
            **{name: last[name] for name in ("samples", "train", "test")},
            "published_test": aevb.value_at(known.get("test", []), last["samples"]),
            "stepsize": run["stepsize"],
        }
    return summary


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints the bounds."""
    table = Table(title="bound, nats per datum")
    for column in ("panel", "samples", "stepsize", "train", "test", "published test"):
        table.add_column(column, justify="left" if column == "panel" else "right")
    for panel, row in summary.items():
        known = "-" if row["published_test"] is None else f"{row['published_test']:.1f}"
        bounds = (f"{row[part]:.2f}" for part in ("train", "test"))
        table.add_row(panel, f"{row['samples']:,}", f"{row['stepsize']:g}", *bounds, known)
    console.print(table)


def tiled(images: Tensor, side: int) -> Tensor:
    """Returns ``side * side`` images, row by row, as one image."""
    height, width = images.shape[1:]
    rows = images.reshape(side, side, height, width)
    return rows.permute(0, 2, 1, 3).reshape(side * height, side * width)


def put(axes: Axes, run: dict[str, Any], what: str, side: int) -> None:
    """Draws the images of a run."""
    shape = SHAPES[run["data_set"]]
    axes.imshow(
        tiled(unpacked(run[what], shape), side).numpy(), cmap=INK[run["data_set"]], vmin=0, vmax=255, aspect="equal"
    )
    axes.set_xticks([])
    axes.set_yticks([])


def draw_manifolds(runs: dict[str, Any], path: Path) -> None:
    """Draws figure 4: the decoded plane with 2 latents, for Frey Face and MNIST."""
    shown = [runs[panel] for panel in ("frey-2", "mnist-2") if panel in runs]
    if not shown:
        return
    ratios = [SHAPES[run["data_set"]][1] / SHAPES[run["data_set"]][0] for run in shown]
    figure = Figure(figsize=(7 * sum(ratios) + 0.3, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, run in zip(figure.subplots(1, len(shown), width_ratios=ratios, squeeze=False)[0], shown, strict=True):
        put(axes, run, "manifold", MANIFOLD)
        axes.set_title(f"{aevb.DATA_TITLES[run['data_set']]}, 2 latents, {run['samples']:.0e} samples", fontsize=11)
    figure.savefig(path, dpi=140)


def draw_samples(runs: dict[str, Any], path: Path) -> None:
    """Draws figure 5: decoded draws from the prior, for MNIST."""
    shown = sorted((run for run in runs.values() if run["data_set"] == "mnist"), key=lambda run: run["latents"])
    if not shown:
        return
    figure = Figure(figsize=(3.6 * len(shown), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, run in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        put(axes, run, "draws", DRAWS)
        axes.set_title(f"{run['latents']} latents", fontsize=11)
    figure.savefig(path, dpi=140)


def settings_of(given: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Returns all settings that determine the numbers of a run, except its panel."""
    return {
        **aevb.protocol(setting),
        "samples": given.samples,
        "hidden": QUICK["hidden"] if given.quick else aevb.HIDDEN,
        "stepsize_chosen_after_samples": QUICK["choice"] if given.quick else aevb.CHOICE_SAMPLES,
        "training_data": QUICK["training"] if given.quick else aevb.TRAINING,
        "manifold": MANIFOLD,
        "draws": DRAWS,
        "bound": "ELBO, one draw of z for each datum, nats per datum; MNIST's grey levels: a cross-entropy",
        "quick": given.quick,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, seeds=False)
    parser.add_argument("--samples", type=positive, help=f"training samples evaluated, {SAMPLES:.0e} by default")
    parser.add_argument("--panels", default=",".join(PANELS), help="which, separated by commas")
    parser.add_argument("--binarisation", choices=aevb.BINARISATIONS, default=SETTING.binarisation, help="of MNIST")
    parser.add_argument("--warmup", type=at_least(0), default=SETTING.warmup, help="steps of Adagrad without update")
    parser.set_defaults(threads=1)
    given = parser.parse_args()
    given.panels = given.panels.split(",")
    if unknown := sorted(set(given.panels) - set(PANELS)):
        parser.error(f"--panels: {', '.join(unknown)}: not among {', '.join(PANELS)}.")
    default = QUICK["samples"] if given.quick else SAMPLES
    given.samples = default if given.samples is None else round(given.samples)
    given.warmup = QUICK["warmup"] if given.quick else given.warmup
    return given


def main() -> None:
    """Runs what is missing, prints the bounds, writes the result and draws it."""
    given = parse()
    torch.set_num_threads(given.threads)
    setting, size = Setting(given.binarisation, given.warmup), QUICK["training"] if given.quick else None
    data = {
        name: aevb.load_data(name, given.binarisation, size) for name in {panel.split("-")[0] for panel in given.panels}
    }
    runs = Runs("aevb_figures45", settings_of(given, setting), given)

    def one(panel: str) -> dict[str, Any]:
        return run(panel, data[panel.split("-")[0]], setting, given, runs.unfinished / panel)

    published = aevb.published()["source"]
    runs.complete(given.panels, one, lambda found: {"published": published, "summary": summarise(found)})
    console = Console(width=110)
    show(summarise(runs.by_key), console)
    for draw, name in ((draw_manifolds, "manifolds"), (draw_samples, "samples")):
        path = runs.path.with_name(f"{runs.path.stem}_{name}.png")
        draw(runs.by_key, path)
        console.print(path)
    console.print(runs.path)


if __name__ == "__main__":
    main()
