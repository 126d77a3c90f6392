"""The page of a comparison: one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_vae.comparison import Comparison, Run
from pyro_vae.datasets import Data
from pyro_vae.errors import InputError
from pyro_vae.modes import evaluating, isolated
from pyro_vae.moments import centre
from pyro_vae.report import figures
from pyro_vae.report.table import count, data_phrase, difference_text, enumerated, seeds_text, summary_text
from pyro_vae.run_folder import curves
from pyro_vae.vae import VAE

# Images drawn and reconstructed, points of a latent grid along a side, rows drawn of a table.
_DRAWN, _RECONSTRUCTED, _POINTS, _ROWS = 40, 10, 15, 5000


@dataclass(frozen=True)
class _Picture:
    """A figure in the page."""

    png: bytes
    alt: str
    caption: str = ""
    paper: bool = True  # text in dark ink, which needs a white ground

    @property
    def source(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"

    @property
    def width(self) -> int:
        """In page pixels: half the pixels of the file, whose header holds them."""
        return int.from_bytes(self.png[16:20], "big") // 2

    @property
    def height(self) -> int:
        return int.from_bytes(self.png[20:24], "big") // 2


@dataclass(frozen=True)
class _Section:
    """A part of the page: a sentence or two, then pictures."""

    name: str
    title: str
    text: str
    pictures: list[_Picture] = field(default_factory=list)
    layout: str = ""


def write_report(comparison: Comparison, path: Path) -> None:
    """Writes a comparison as one HTML file that opens from disk, without any network.

    Draws from the models have a seed of their own; the global random states are left as they are.

    Arguments:
        comparison: What was run.
        path: The file to write.
    """
    template = files("pyro_vae.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    dump = comparison.experiment.model_dump(mode="json", exclude_none=True)
    page = environment.from_string(template).render(
        title=f"{enumerated(comparison.labels)} on {comparison.data.name}",
        sentence=_sentence(comparison),
        tables=[summary_text(comparison), *([difference_text(comparison)] if len(comparison.labels) > 1 else [])],
        sections=_sections(comparison),
        seeds=seeds_text(comparison),
        experiment=yaml.safe_dump(dump, sort_keys=False, default_flow_style=None, width=100),
        environment=_environment(comparison.environment),
        data=_data_record(comparison.data),
    )
    Path(path).write_text(page, encoding="utf-8")


def _sentence(comparison: Comparison) -> str:
    """What was compared on what."""
    experiment, data = comparison.experiment, comparison.data
    families = [f"{experiment.prior.family} prior", f"{experiment.likelihood.family} likelihood"]
    if experiment.posterior is not None:
        families.append(f"{experiment.posterior.family} posterior")
    training = experiment.training
    length = count(training.epochs, "epoch") if training.epochs is not None else count(training.steps or 0, "step")
    verb = "compared as inference algorithms for" if len(comparison.labels) > 1 else "used to train"
    return (
        f"{enumerated(comparison.labels)} {verb} a variational autoencoder with "
        f"{count(experiment.latent, 'latent dimension')} ({', '.join(families)}): trained for {length} on the "
        f"{len(data.train)} training data of {data_phrase(comparison)}, under {count(len(experiment.seeds), 'seed')}, "
        f"and evaluated on {0 if data.test is None else len(data.test)} test data."
    )


def _sections(comparison: Comparison) -> list[_Section]:
    sections = [_curves(comparison)]
    if comparison.data.image_shape is None:
        sections.append(_marginals(comparison))
    else:
        sections += [_samples(comparison), _reconstructions(comparison)]
    return [*sections, _latent(comparison)]


def _curves(comparison: Comparison) -> _Section:
    frame = curves(comparison)
    quantity = "cross-entropy bound" if comparison.data.cross_entropy else "bound on log p(x)"
    names = enumerated(comparison.labels)
    alt = f"Learning curves of {names}: {quantity} in nats per datum against"
    pictures = [
        _Picture(figures.learning_curves(frame, "samples", quantity=quantity), f"{alt} training data seen"),
        _Picture(figures.learning_curves(frame, "seconds", quantity=quantity), f"{alt} seconds of training"),
    ]
    text = "Each algorithm's own training bound. "
    if len(comparison.experiment.seeds) > 1:
        text = "Each algorithm's own training bound: mean over seeds, in a band from the least to the greatest seed. "
    if (frame["part"] == "validation").any():
        text += "Dashed: the ELBO of the validation data. "
    text += "The vertical axis is zoomed to what follows the first tenth of training; seconds leave validation out."
    silent = [
        label
        for label in comparison.labels
        if not np.isfinite(frame.loc[(frame["algorithm"] == label) & (frame["part"] == "train"), "bound"]).any()
    ]
    if silent:
        text += f" {enumerated(silent)} trains by no bound."
    return _Section("curves", "Learning curves", text, pictures)


def _samples(comparison: Comparison) -> _Section:
    data, limits = comparison.data, _limits(comparison.data)
    shown = [("Test data", data.test), ("Training data", data.train)]
    if data.binarisation == "dynamic":
        shown[1] = ("Training data, before binarisation", data.train)
    for run in _first_runs(comparison):
        draws, means = _draw(run, _DRAWN)
        shown += [(f"{run.algorithm}: draws of x", draws), (f"{run.algorithm}: mean of p(x|z) at the same z", means)]
    pictures = [
        _picture(figures.image_grid(_as_images(x[:_DRAWN], data), limits=limits), f"Grid of images. {what}", what)
        for what, x in shown
        if x is not None
    ]
    text = "From each algorithm's model of the first seed, for z drawn from the prior"
    text += ": draws of x, and the mean of the likelihood that they are drawn from."
    return _Section("samples", "Samples", text, pictures, "pairs")


def _reconstructions(comparison: Comparison) -> _Section:
    data, pictures = comparison.data, []
    text = (
        "Test data over what each algorithm's model of the first seed makes of them: the likelihood's centre at the "
        "posterior's centre."
    )
    test = data.test[:_RECONSTRUCTED] if data.test is not None else data.train[:0]
    for run in _first_runs(comparison):
        reconstructed = _reconstruct(run, test)
        if reconstructed is None:
            text = "Not shown: prior or likelihood has neither mean nor mode."
            break
        png = figures.reconstructions(_as_images(test, data), _as_images(reconstructed, data), limits=_limits(data))
        alt = f"Test data in the upper row, their reconstructions by {run.algorithm} in the lower"
        pictures.append(_picture(png, alt, run.algorithm))
    return _Section("reconstructions", "Reconstructions", text, pictures)


def _marginals(comparison: Comparison) -> _Section:
    data = comparison.data
    test = data.train[:0] if data.test is None else data.test
    own = data.to_own_units(test).numpy()
    samples = {run.algorithm: data.to_own_units(_draw(run, _ROWS)[0]).numpy() for run in _first_runs(comparison)}
    shown = min(data.units.dim, 12)
    names = list(data.columns or [f"column {index + 1}" for index in range(data.units.dim)])[:shown]
    text = (
        f"Histograms of {count(len(test), 'test row')} and of {_ROWS} samples from each "
        "algorithm's model of the first seed, in the data's own units."
    )
    if shown < data.units.dim:
        text += f" The first {shown} of {data.units.dim} columns."
    alt = f"Histograms of test data and samples for the columns {enumerated(names)}"
    return _Section(
        "marginals",
        "Samples",
        text,
        [_Picture(figures.marginals(own, samples, names), alt, f"Columns: {', '.join(names)}")],
    )


def _latent(comparison: Comparison) -> _Section:
    data, runs = comparison.data, _first_runs(comparison)
    if data.image_shape is not None and (section := _manifolds(runs, data)) is not None:
        return section
    kl = {
        label: np.stack([run.kl.numpy().ravel() for run in comparison.runs_of(label) if run.kl is not None])
        for label in comparison.labels
        if all(run.kl is not None for run in comparison.runs_of(label))
    }
    if not kl:
        text = "The KL of each latent dimension is not shown: prior or posterior does not factorise over dimensions."
        return _Section("latent", "Latent dimensions", text)
    text = (
        "KL(q(z|x) ‖ p(z)) of each latent dimension, mean over the test data, from the greatest to the least; each "
        "seed is sorted by itself, and bars are means over seeds. A dimension with a KL of 0 is not used."
    )
    numbers = [f"{label} {', '.join(f'{x:.2f}' for x in -np.sort(-v, axis=1).mean(0)[:8])}" for label, v in kl.items()]
    alt = f"Bar chart of the KL of each latent dimension in nats, greatest first: {'; '.join(numbers)}"
    return _Section("latent", "Latent dimensions", text, [_Picture(figures.kl_bars(kl), alt)])


def _manifolds(runs: Sequence[Run], data: Data) -> _Section | None:
    """What a two-dimensional latent space decodes to; None for any other latent space."""
    pictures = []
    standard = True
    for run in runs:
        grid = _latent_grid(run.vae)
        if grid is None:
            return None
        first, second, gaussian = grid
        standard = standard and gaussian
        decoded = _decode(run.vae, torch.cartesian_prod(second, first).flip(-1))
        if decoded is None:
            return None
        images = _as_images(decoded, data)
        images = images.reshape(len(second), len(first), *images.shape[1:])
        png = figures.latent_manifold(images, first.tolist(), second.tolist(), limits=_limits(data))
        alt = f"Images that {run.algorithm} decodes from a grid of points of its two latent dimensions"
        pictures.append(_Picture(png, alt, run.algorithm))
    how = (
        "evenly spaced in probability: the inverse distribution function of the unit Gaussian"
        if standard
        else "at quantiles of draws from the prior, evenly spaced in probability"
    )
    text = f"The likelihood's centre over a grid of z, {how}; models of the first seed."
    return _Section("latent", "Latent manifold", text, pictures)


def _first_runs(comparison: Comparison) -> list[Run]:
    return [comparison.runs_of(label)[0] for label in comparison.labels]


@torch.no_grad()
def _draw(run: Run, n: int) -> tuple[Tensor, Tensor | None]:
    """Draws of x, and the mean of the likelihood at the same z; on the CPU."""
    with isolated(run.seed), evaluating(run.vae):
        x_given_z = run.vae.decode(run.vae.prior().sample((n,)))
        draws = x_given_z.sample().cpu()
        try:
            return draws, centre(x_given_z).cpu()
        except InputError:
            return draws, None


def _reconstruct(run: Run, x: Tensor) -> Tensor | None:
    with isolated(run.seed), evaluating(run.vae):
        try:
            return run.vae.reconstruct(x.to(run.vae.device)).cpu()
        except InputError:
            return None


@torch.no_grad()
def _decode(vae: VAE, z: Tensor) -> Tensor | None:
    with evaluating(vae):
        try:
            return centre(vae.decode(z.to(vae.device, vae.dtype))).cpu()
        except InputError:
            return None


@torch.no_grad()
def _latent_grid(vae: VAE) -> tuple[Tensor, Tensor, bool] | None:
    """The grid's z₁ and z₂, and whether the prior is the unit Gaussian; None where there is no such grid."""
    if tuple(vae.latent_shape) != (2,):
        return None
    probability = (torch.arange(_POINTS) + 0.5) / _POINTS
    with isolated(0), evaluating(vae):
        prior = vae.prior()
        if _is_unit_gaussian(prior):
            z = Normal(0.0, 1.0).icdf(probability)
            return z, z, True
        draws = prior.sample((20_000,))
        if draws.unique().numel() < 1000:  # discrete: its quantiles are no grid
            return None
        first, second = draws.double().cpu().quantile(probability.double(), dim=0).unbind(1)
        corners = torch.cartesian_prod(first[[0, -1]], second[[0, -1]]).to(draws)
        inside = bool(prior.support.check(corners).all())
    return (first, second, False) if inside else None


def _is_unit_gaussian(prior: Any) -> bool:
    base = prior.base_dist if isinstance(prior, Independent) else prior
    return isinstance(base, Normal) and bool((base.loc == 0).all() and (base.scale == 1).all())


def _limits(data: Data) -> tuple[float, float]:
    """What is black and what is white: the range of the training data."""
    if data.binarisation != "none":
        return 0.0, 1.0
    low, high = float(data.train.min()), float(data.train.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _as_images(x: Tensor, data: Data) -> NDArray[np.float64]:
    """Grey images, ``(N, H, W)``: channels, first or last, are averaged."""
    images = x.double().reshape(len(x), *(data.image_shape or (1, -1)))
    if images.dim() == 4 and images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.movedim(-1, 1)
    return images.reshape(len(x), -1, *images.shape[-2:]).mean(1).numpy()


def _picture(png: bytes, alt: str, caption: str) -> _Picture:
    return _Picture(png, alt, caption, paper=False)


def _environment(environment: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in environment.items():
        if name == "versions":
            rows += [(package, str(version)) for package, version in value.items()]
        elif value not in ("", None):
            rows.append(
                (
                    "wall time" if name == "wall_seconds" else name,
                    f"{value} s" if name == "wall_seconds" else str(value),
                )
            )
    return rows


def _data_record(data: Data) -> list[tuple[str, str]]:
    record = data.record()
    shape = record["image_shape"]
    rows = [
        ("name", record["name"]),
        ("data", ", ".join(f"{n} {part}" for part, n in record["n"].items())),
        ("cells", " × ".join(map(str, shape)) if shape else f"{record['dim']} columns"),
        ("binarisation", record["binarisation"]),
        ("scaling", record["scaling"]),
        ("split", "official" if record["split"] is None else " / ".join(f"{part:g}" for part in record["split"])),
        ("seed", str(record["seed"])),
        ("log-Jacobian", f"{record['log_jacobian']:.4f} nats"),
    ]
    return rows + [(f"sha256 of {Path(name).name}", digest) for name, digest in record["source"].items()]
