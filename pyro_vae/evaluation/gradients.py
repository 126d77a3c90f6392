r"""Noise of the gradients of each algorithm."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.batch import Batch, DataLike
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated, of_a_vae
from pyro_vae.evaluation.intervals import Interval
from pyro_vae.inference.interface import Inference
from pyro_vae.runtime.modes import evaluating, switched
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# A variance below this share of the squared norm counts as rounding error.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class GradientNoise:
    r"""The noise of one algorithm's gradient in one group of parameters, at fixed data.

    Attributes:
        variance: Trace of the covariance of the gradient over all parameters of the group, with its 95 % interval.
        signal_to_noise: :math:`\|E g\| / \sqrt{\mathrm{tr}\,\mathrm{Cov}(g)}`, with its 95 % interval. The squared
            norm is corrected for the noise of the mean, and at least 0; the ratio is infinite without noise.
        num_parameters: Number of parameters of the group.
    """

    variance: Interval
    signal_to_noise: Interval
    num_parameters: int

    def __repr__(self) -> str:
        variance, ratio = self.variance, self.signal_to_noise
        return (
            f"GradientNoise(variance={variance.mean:.3g} ± {variance.half_width:.1g}, "
            f"signal_to_noise={ratio.mean:.3g} ± {ratio.half_width:.1g}, {self.num_parameters} parameters)"
        )


@of_a_vae
def gradient_variance(
    vae: LatentVariableModel,
    data: DataLike,
    algorithms: Mapping[str, Inference],
    num_draws: int = 100,
    *,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[str, GradientNoise]]:
    r"""Returns variance and signal-to-noise ratio of the gradients of theta and of phi, for each algorithm.

    All algorithms have the same parameters and the same data, so only their own draws vary. The gradient of an
    algorithm includes all its phases, before any update; for a parameter that several phases move, it is the mean
    over these phases. The VAE and the algorithms do not change.

    Different objectives have different gradients. So compare variances only between algorithms of the same objective
    (``aevb``, ``analytic-kl``, ``stl``, ``score-function``; ``iwae``, ``dreg``); compare signal-to-noise ratios
    between any.

    Arguments:
        vae: The VAE; the gradients are taken at its parameters, in training mode.
        data: One minibatch, shape ``(B, *event_shape)``, or a `Batch`.
        algorithms: Algorithms by label. Their state, such as a running baseline or a warm-up, does not change.
        num_draws: Number of gradients of each algorithm, at least 3.
        seed: Seed of the draws.
        progress: Whether to show a progress bar.

    Returns:
        The noise by label, then by group (``"theta"``, ``"phi"``), for the groups that the algorithm moves.

    Raises:
        InputError: If an algorithm cannot train the VAE.

    Reference: Rainforth et al., "Tighter variational bounds are not necessarily better", 2018, equation 3; Roeder,
    Wu and Duvenaud, "Sticking the landing", 2017, section 5.
    """
    if not isinstance(num_draws, int) or num_draws < 3:
        raise InputError(f"gradient_variance: `num_draws` is an integer of at least 3, got `{num_draws!r}`.")
    batch = evaluated("gradient_variance", vae, data, weighted=True).to(vae.device, vae.dtype)
    result = {}
    for label, algorithm in algorithms.items():
        mine, its = copy.deepcopy((vae, algorithm))
        its.to(vae.device).check(mine)
        draws: dict[str, list[Tensor]] = {"theta": [], "phi": []}
        with isolated(seed, "gradients"), switched(mine, training=True), evaluating(its):
            for _ in tracked(range(num_draws), f"gradients of {label}" if progress else None):
                for group, gradient in _gradient(mine, its, batch).items():
                    draws[group].append(gradient)
        result[label] = {group: _noise(torch.stack(rows)) for group, rows in draws.items() if rows}
    return result


def _gradient(vae: LatentVariableModel, algorithm: Inference, batch: Batch) -> dict[str, Tensor]:
    """Returns the gradient of one step for each group that moves, as one vector."""
    sums: dict[str, Tensor] = {}
    times: dict[str, int] = {}
    for phase, loss in zip(algorithm.phases, algorithm.losses(vae, batch), strict=True):
        moved = algorithm.moved(vae, phase)
        if not moved:
            continue
        for name, gradient in zip(
            moved, torch.autograd.grad(loss.value, list(moved.values()), allow_unused=True), strict=True
        ):
            if gradient is not None:
                sums[name] = sums.get(name, 0) + gradient.detach()
                times[name] = times.get(name, 0) + 1
    groups = {"theta": vae.theta, "phi": vae.phi}
    vectors = {
        group: [(sums[name] / times[name]).flatten() for name in members if name in sums]
        for group, members in groups.items()
    }
    return {group: torch.cat(parts) for group, parts in vectors.items() if parts}


def _noise(gradients: Tensor) -> GradientNoise:
    """Returns the statistics of independent gradients, shape ``(n, P)``, with errors by the jackknife."""
    n, size = gradients.shape
    values = gradients.double()
    products = values @ values.T
    variance, ratio = _statistics(products.trace(), products.sum(), n)
    # Without draw i: subtract its square from the trace, and its row and column from the sum.
    traces = products.trace() - products.diagonal()
    sums = products.sum() - 2 * products.sum(1) + products.diagonal()
    variances, ratios = _statistics(traces, sums, n - 1)
    return GradientNoise(_interval(variance, variances), _interval(ratio, ratios), size)


def _statistics(trace: Tensor, total: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Returns variance and signal-to-noise ratio from the sum of squared norms and the squared norm of the sum."""
    variance = ((trace - total / n) / (n - 1)).clamp_min(0)
    signal = (total / n**2 - variance / n).clamp_min(0)
    rounding = _ROUNDING * trace / n
    return variance, torch.where(variance > rounding, signal / variance.clamp_min(1e-300), math.inf).sqrt()


def _interval(value: Tensor, without_one: Tensor) -> Interval:
    n = len(without_one)
    if not math.isfinite(float(value)):
        return Interval(float(value), math.nan, n, bounds=(0.0, math.inf))
    error = ((n - 1) / n * (without_one - without_one.mean()).square().sum()).sqrt()
    half = 1.96 * float(error) if math.isfinite(float(error)) else math.nan
    return Interval(float(value), half, n, bounds=(0.0, math.inf))
