r"""Checks of each algorithm's posterior (inference gap, calibration), and the noise of its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.evaluation.calibration import Calibration, simulation_based_calibration
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.gap import InferenceGap, inference_gap
from pyro_vae.evaluation.gradients import GradientNoise, gradient_variance
from pyro_vae.evaluation.intervals import finite_or_none
from pyro_vae.inference.interface import Inference
from pyro_vae.vae.vae import VAE

# Number of data simulated for the calibration, and of gradients drawn for each algorithm.
_SIMULATED, _GRADIENTS = 1000, 50
# Probability that at least one latent dimension of a calibrated posterior leaves its band.
_MISSES = 0.05


@dataclass(frozen=True)
class PosteriorChecks:
    """Checks of the models that were trained under one seed.

    Attributes:
        num_data: Number of test data for the gaps; the same data are the minibatch of the gradients.
        at: Label of one algorithm; all gradients were computed at its trained parameters.
        gaps: Inference gap by label, for the algorithms that train a posterior.
        calibrations: Simulation-based calibration by label, for the same algorithms.
        gradients: Gradient noise by label and group of parameters, for all algorithms.
        notes: Reasons why a check was not possible.
    """

    num_data: int
    at: str = ""
    gaps: Mapping[str, InferenceGap] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    gradients: Mapping[str, Mapping[str, GradientNoise]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def record(self) -> dict[str, Any]:
        """Returns the checks ready for JSON."""
        return {
            "num_data": self.num_data,
            "gradients_at": self.at,
            "gaps": {
                label: {name: _estimate(getattr(gap, name)) for name in ("total", "approximation", "amortization")}
                for label, gap in self.gaps.items()
            },
            "calibrated": {label: c.uniform.flatten().tolist() for label, c in self.calibrations.items()},
            "gradients": {
                label: {
                    group: {
                        "variance": noise.variance.record(),
                        "signal_to_noise": noise.signal_to_noise.record(),
                        "num_parameters": noise.num_parameters,
                    }
                    for group, noise in groups.items()
                }
                for label, groups in self.gradients.items()
            },
            "notes": list(self.notes),
        }


def check_posteriors(
    trained: Mapping[str, VAE],
    algorithms: Mapping[str, Inference],
    test: Tensor | Batch,
    num_data: int,
    *,
    is_likelihood: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorChecks:
    """Returns the checks of trained models.

    Arguments:
        trained: The VAEs or programs, by label.
        algorithms: The algorithms that trained them, under the same labels; the noise of their gradients is compared
            where the models are alike.
        test: Test data, shape ``(N, *event_shape)``, or a `Batch`. Its contexts, repeated in turn, are the contexts of
            the data simulated for the calibration.
        num_data: Number of test data to use, from the first; 0 for no checks.
        is_likelihood: Whether the data lie in the likelihood's support. Otherwise gaps and calibration are undefined.
        seed: Seed of all draws.
        progress: Whether to show progress bars.
    """
    with_posterior = {label: vae for label, vae in trained.items() if algorithms[label].trains_posterior}
    if num_data == 0 or not trained:
        return PosteriorChecks(0)
    batch, first = Batch.of(test), next(iter(trained.values()))
    x = batch.select(slice(num_data))
    context = (
        None
        if batch.context is None or not first.context_features
        else batch.context[torch.arange(_SIMULATED) % batch.size]
    )
    gaps: dict[str, InferenceGap] = {}
    calibrations: dict[str, Calibration] = {}
    notes: list[str] = []
    at = next(iter(with_posterior or trained))
    with pyro.validation_enabled(False):  # the data were checked before the first run
        for label, vae in with_posterior.items() if is_likelihood else ():
            level = 1 - _MISSES / max(vae.latent_shape.numel(), 1)
            try:
                calibrations[label] = simulation_based_calibration(
                    vae, _SIMULATED, level=level, context=context, seed=seed, progress=progress
                )
            except InputError as error:  # a program whose data cannot be simulated
                notes.append(f"{label}: {error}")
            try:
                gaps[label] = inference_gap(vae, x, seed=seed, progress=progress)
            except InputError as error:
                notes.append(f"{label}: {error}")
        alike = {label: each for label, each in algorithms.items() if _alike(trained[label], trained[at])}
        gradients = gradient_variance(trained[at], x, alike, _GRADIENTS, seed=seed, progress=progress)
    return PosteriorChecks(x.size, at, gaps, calibrations, gradients, notes)


def _alike(mine: VAE, its: VAE) -> bool:
    """Whether two models have parameters of the same names and shapes."""
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (mine, its)]
    return shapes[0] == shapes[1]


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    errors = {name: finite_or_none(getattr(estimate, name)) for name in ("standard_error", "sampling_error")}
    return {"mean": finite_or_none(estimate.value), **errors}
