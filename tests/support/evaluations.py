"""Every function of `pyro_vae.evaluation` on small data, by name."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from annealing import short_pilot
from linear_gaussian import LinearGaussian
from torch import Tensor, nn

from pyro_vae import VAE, Conditional, Fixed, Learned, evaluation
from pyro_vae.evaluation import Estimate
from pyro_vae.inference import AEVB

X = LinearGaussian.random(5, 2).sample(25)


# From a VAE, data and a seed to all numbers that the function returns.
EVALUATIONS: dict[str, Callable[[VAE, Tensor, int], list[Estimate | Tensor]]] = {
    "log_marginal": lambda vae, x, seed: [evaluation.log_marginal(vae, x, 30, seed=seed)],
    "elbo": lambda vae, x, seed: [evaluation.elbo(vae, x, 30, seed=seed)],
    "annealed_importance_sampling": lambda vae, x, seed: annealing(vae, x, seed),
    "bidirectional_monte_carlo": lambda vae, x, seed: bidirectional(vae, 25, seed),
    "posterior_density_estimator": lambda vae, x, seed: density(vae, x, seed),
    "inference_gap": lambda vae, x, seed: gap(vae, x, seed),
    "simulation_based_calibration": lambda vae, x, seed: [
        evaluation.simulation_based_calibration(vae, 25, 9, seed=seed).ranks
    ],
    "rate_distortion": lambda vae, x, seed: rates(vae, x, seed),
    "mutual_information": lambda vae, x, seed: [evaluation.mutual_information(vae, x, 5, seed=seed)],
    "aggregate_posterior": lambda vae, x, seed: aggregate(vae, x, seed),
    "gradient_variance": lambda vae, x, seed: gradients(vae, x, seed),
    "kl_per_dimension": lambda vae, x, seed: [evaluation.kl_per_dimension(vae, x, seed=seed)],
    "latent_kl": lambda vae, x, seed: [evaluation.latent_kl(vae, x, seed=seed).value],
    "posterior_means": lambda vae, x, seed: [evaluation.posterior_means(vae, x)],
    "active_units": lambda vae, x, seed: [evaluation.active_units(vae, x)],
    "latent_map": lambda vae, x, seed: [mapped(vae, x, seed)],
    "traverse": lambda vae, x, seed: [evaluation.traverse(vae, x, steps=3, seed=seed).x],
    "interpolate": lambda vae, x, seed: [evaluation.interpolate(vae, x, x, steps=3, seed=seed).x],
}


def mapped(vae: VAE, x: Tensor, seed: int) -> Tensor:
    frame = evaluation.latent_map(vae, x, seed=seed)
    return torch.from_numpy(frame[frame.attrs["coordinates"]].to_numpy(copy=True))


def annealing(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    with short_pilot():
        return [evaluation.annealed_importance_sampling(vae, x, 4, 3, num_leapfrog=2, seed=seed)]


def density(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    with short_pilot():
        return [evaluation.posterior_density_estimator(vae, x, 20, chains=4, burn_in=3, num_leapfrog=2, seed=seed)]


def bidirectional(vae: VAE, n: int, seed: int) -> list[Estimate | Tensor]:
    with short_pilot():
        result = evaluation.bidirectional_monte_carlo(vae, n, 4, 3, num_leapfrog=2, seed=seed)
    return [result.lower, result.upper, result.width, result.data]


def gap(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    result = evaluation.inference_gap(vae, x, num_samples=30, steps=2, seed=seed)
    return [result.total, result.approximation, result.amortization, result.log_marginal, result.elbo]


def rates(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    result = evaluation.rate_distortion(vae, x, 5, seed=seed)
    return [result.rate, result.distortion]


def aggregate(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    result = evaluation.aggregate_posterior(vae, x, 5, seed=seed)
    return [result.mean, result.variance, result.mutual_information, result.marginal_kl]


def gradients(vae: VAE, x: Tensor, seed: int) -> list[Estimate | Tensor]:
    groups = evaluation.gradient_variance(vae, x, {"aevb": AEVB()}, 4, seed=seed)["aevb"]
    return [torch.tensor([noise.variance.mean, noise.signal_to_noise.mean]) for noise in groups.values()]


def numbers(results: list[Estimate | Tensor]) -> Tensor:
    return torch.cat([(r.pointwise if isinstance(r, Estimate) else r).cpu().double().flatten() for r in results])


def vae_with_modes() -> VAE:
    """Dropout in the decoder, batch normalisation in the encoder, one part in evaluation mode, a sampled KL."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5))
    vae = VAE(
        Conditional(dist.StudentT, (2,), df=Fixed(5.0), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(dist.Normal, (5,), given=decoder, scale=Learned(0.7)),
        Conditional(dist.Normal, (2,), given=encoder),
    )
    vae.posterior.given[2].eval()
    return vae
