"""The sections of the page on the training and on the models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pyro_vae.comparison.comparison import Comparison
from pyro_vae.comparison.curves import curves
from pyro_vae.comparison.report import figures, images
from pyro_vae.comparison.report.elements import Picture, Section
from pyro_vae.comparison.report.samples import as_images, decode, draw, latent_grid, limits, reconstruct
from pyro_vae.comparison.report.wording import count, enumerated
from pyro_vae.comparison.run import Run
from pyro_vae.datasets.data import Data
from pyro_vae.errors import InputError
from pyro_vae.evaluation.latent import LatentKL

# Images drawn for each algorithm, the same for more than `_MANY` algorithms, images reconstructed, table rows drawn.
_DRAWN, _DRAWN_OF_MANY, _MANY, _RECONSTRUCTED, _ROWS = 40, 20, 4, 10, 5000

# A standard error in nats below this is rounding.
_ROUNDING = 1e-6


def model_sections(comparison: Comparison) -> list[Section]:
    """Returns the sections on the training and the models: curves, samples, reconstructions, latents."""
    is_table = comparison.data.image_shape is None
    try:
        samples = _marginals(comparison) if is_table else _samples(comparison)
    except InputError as error:  # of a program whose x cannot be drawn
        samples = Section("samples", "Samples", f"Not shown: {error}")
    rest = [] if is_table else [_reconstructions(comparison)]
    return [_curves(comparison), samples, *rest, _latent(comparison)]


def _curves(comparison: Comparison) -> Section:
    frame = curves(comparison)
    quantity = "cross-entropy bound" if comparison.data.cross_entropy else "bound on log p(x)"
    names = enumerated(comparison.labels)
    alt = f"Learning curves of {names}: {quantity} in nats per datum against"
    pictures = [
        Picture(figures.learning_curves(frame, "samples", quantity=quantity), f"{alt} training data seen"),
        Picture(figures.learning_curves(frame, "seconds", quantity=quantity), f"{alt} seconds of training"),
    ]
    text = "Each algorithm's own training bound. "
    if len(comparison.experiment.seeds) > 1:
        text = "Each algorithm's own training bound: mean over seeds, in a band from the least to the greatest seed. "
    if (frame["part"] == "validation").any():
        text += "Dashed: the ELBO of the validation data. "
    text += "The vertical axis shows the values after the first tenth of training; seconds do not include validation."
    text += " A number after a name is the final value of a curve far below the others."
    silent = [
        label
        for label in comparison.labels
        if not np.isfinite(frame.loc[(frame["algorithm"] == label) & (frame["part"] == "train"), "bound"]).any()
    ]
    if silent:
        text += f" {enumerated(silent)} {'trains' if len(silent) == 1 else 'train'} by no bound."
    return Section("curves", "Learning curves", text, pictures, "single")


def _samples(comparison: Comparison) -> Section:
    data, ends = comparison.data, limits(comparison.data)
    drawn = _DRAWN if len(comparison.labels) <= _MANY else _DRAWN_OF_MANY
    shown = [("Test data", data.test), ("Training data", data.train)]
    if data.binarisation == "dynamic":
        shown[1] = ("Training data, before binarisation", data.train)
    for run in _first_runs(comparison):
        draws, means = draw(run, drawn, comparison.candidate(run.algorithm).data)
        shown += [(f"{run.algorithm}: draws of x", draws), (f"{run.algorithm}: mean of p(x|z) at the same z", means)]
    pictures = [
        _picture(images.image_grid(as_images(x[:drawn], data), limits=ends), f"Grid of images. {what}", what)
        for what, x in shown
        if x is not None
    ]
    text = "Draws of x from each algorithm's model of the first seed, with z drawn from the prior"
    text += "." if _all_programs(comparison) else ", and the means of their likelihoods p(x|z)."
    return Section("samples", "Samples", text, pictures, "pairs")


def _reconstructions(comparison: Comparison) -> Section:
    pictures: list[Picture] = []
    if _all_programs(comparison):
        return Section("reconstructions", "Reconstructions", "Not shown: they need the likelihood of a VAE.")
    text = (
        "Test data (upper row) and their reconstructions by each algorithm's model of the first seed (lower row): the "
        "likelihood's centre at the posterior's centre."
    )
    unmoved = [each.label for each in comparison.candidates if not each.spec.build().trains_encoder]
    text = f"{text} {_left_out(unmoved)}".strip()
    for run in _first_runs(comparison):
        if run.algorithm in unmoved or comparison.candidate(run.algorithm).experiment.program is not None:
            continue
        data = comparison.candidate(run.algorithm).data
        batch = data.batch("train" if data.test is None else "test").select(slice(_RECONSTRUCTED))
        test = batch.x
        reconstructed = reconstruct(run, batch)
        if reconstructed is None:
            return Section(
                "reconstructions", "Reconstructions", "Not shown: posterior or likelihood has no mean or mode."
            )
        png = images.reconstructions(as_images(test, data), as_images(reconstructed, data), limits=limits(data))
        alt = f"Test data in the upper row, their reconstructions by {run.algorithm} in the lower"
        pictures.append(_picture(png, alt, run.algorithm))
    return Section("reconstructions", "Reconstructions", text, pictures)


def _marginals(comparison: Comparison) -> Section:
    data = comparison.data
    test = data.train[:0] if data.test is None else data.test
    own = data.to_own_units(test).numpy()
    samples = {
        run.algorithm: data.to_own_units(draw(run, _ROWS, comparison.candidate(run.algorithm).data)[0]).numpy()
        for run in _first_runs(comparison)
    }
    shown = min(data.units.dim, 12)
    names = list(data.columns or [f"column {index + 1}" for index in range(data.units.dim)])[:shown]
    text = (
        f"Histograms of {count(len(test), 'test row')} and of {_ROWS} samples from each "
        "algorithm's model of the first seed, in the data's own units."
    )
    if shown < data.units.dim:
        text += f" The first {shown} of {data.units.dim} columns."
    alt = f"Histograms of test data and samples for the columns {enumerated(names)}"
    return Section(
        "marginals",
        "Samples",
        text,
        [Picture(figures.marginals(own, samples, names), alt, f"Columns: {', '.join(names)}")],
    )


def _latent(comparison: Comparison) -> Section:
    data, runs = comparison.data, _first_runs(comparison)
    if data.image_shape is not None and (section := _manifolds(runs, data)) is not None:
        return section
    untrained = [label for label in comparison.labels if all(run.elbo is None for run in comparison.runs_of(label))]
    trained = [label for label in comparison.labels if label not in untrained]
    if not trained:
        return Section("latent", "Latent dimensions", "The KL of the latents is not shown: no posterior is trained.")
    kl = {label: np.stack([run.kl.value.numpy() for run in comparison.runs_of(label)]) for label in trained}
    first = comparison.runs_of(trained[0])[0].kl
    is_program = _all_programs(comparison)
    layers = first.names if is_program or first.names[0] != "z0" else ()
    ranked = {label: (values if layers else -np.sort(-values, axis=1)).mean(0)[:8] for label, values in kl.items()}
    numbers = [f"{label} {', '.join(f'{x:.2f}' for x in values)}" for label, values in ranked.items()]
    kind = "site" if is_program else "layer"
    text = f"{_kl_text(first, comparison.evaluated, kind)} {_left_out(untrained)}".strip()
    if len(first.names) == 1:
        return Section("latent", "Latent dimensions", f"{text} {'; '.join(numbers)} nats.")
    order = f"of the {kind}s {enumerated(layers)}" if layers else "of each latent, greatest first,"
    alt = f"Bar chart of the KL {order} in nats: {'; '.join(numbers)}"
    title = f"Latent {kind}s" if layers else "Latent dimensions"
    return Section("latent", title, text, [Picture(figures.kl_bars(kl, layers, kind), alt)])


def _kl_text(kl: LatentKL, over: str, kind: str) -> str:
    """The description of the KL that is shown, how it was computed, and over which data."""
    exact = all(kl.analytic) or bool((kl.standard_error < _ROUNDING).all())  # a program's terms may not depend on draws
    how = "in closed form" if exact else f"by Monte Carlo (standard error up to {kl.standard_error.max():.2g})"
    if len(kl.names) == 1 and kind == "site":
        return f"KL(q(z|x) ‖ p(z)) of the site {kl.names[0]}, mean over {over}, {how}."
    if len(kl.names) == 1:
        why = "prior or posterior does not factorise over dimensions"
        return f"KL(q(z|x) ‖ p(z)), mean over {over}, {how}; {why}."
    if kind == "site" or kl.names[0] != "z0":
        return (
            f"KL of each {kind} ({', '.join(kl.names)}) given those that it depends on, mean over {over}, {how}; "
            f"bars are means over seeds, and the sum is KL(q(z|x) ‖ p(z)). A {kind} with a KL of 0 is not used."
        )
    return (
        f"KL(q(z|x) ‖ p(z)) of each latent dimension, mean over {over}, {how}, from the greatest to the least; "
        "each seed is sorted by itself, and bars are means over seeds. A dimension with a KL of 0 is not used."
    )


def _manifolds(runs: Sequence[Run], data: Data) -> Section | None:
    """Images decoded from a grid in a two-dimensional latent space; None for any other latent space."""
    pictures = []
    standard = True
    for run in runs:
        grid = latent_grid(run.vae)
        if grid is None:
            return None
        first, second, gaussian = grid
        standard = standard and gaussian
        decoded = decode(run.vae, torch.cartesian_prod(second, first).flip(-1))
        if decoded is None:
            return None
        grey = as_images(decoded, data)
        grey = grey.reshape(len(second), len(first), *grey.shape[1:])
        png = images.latent_manifold(grey, first.tolist(), second.tolist(), limits=limits(data))
        alt = f"Images that {run.algorithm} decodes from a grid of points of its two latent dimensions"
        pictures.append(Picture(png, alt, run.algorithm))
    how = (
        "evenly spaced in probability: the inverse distribution function of the unit Gaussian"
        if standard
        else "at quantiles of draws from the prior, evenly spaced in probability"
    )
    text = f"The likelihood's centre over a grid of z, {how}; models of the first seed."
    return Section("latent", "Latent manifold", text, pictures)


def _left_out(labels: Sequence[str]) -> str:
    """The reason why algorithms without a posterior are not shown; empty if there are none."""
    if not labels:
        return ""
    return f"Left out: {enumerated(labels)}, which {'trains' if len(labels) == 1 else 'train'} no posterior."


def _all_programs(comparison: Comparison) -> bool:
    return all(each.experiment.program is not None for each in comparison.candidates)


def _first_runs(comparison: Comparison) -> list[Run]:
    return [comparison.runs_of(label)[0] for label in comparison.labels]


def _picture(png: bytes, alt: str, caption: str) -> Picture:
    return Picture(png, alt, caption, paper=False)
