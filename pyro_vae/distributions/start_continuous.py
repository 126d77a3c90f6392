r"""Initial parameters of continuous families at the location and scale of data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.distributions.start_rule import LEAST, MOST, Known, Start, from_logits
from pyro_vae.distributions.statistics import Statistics

EULER = 0.5772156649015329
# Spread of a cell, relative to its size, below which it counts as constant.
_CONSTANT = 1e-6
# Quartile of StudentT with 4 degrees of freedom, which is also the initial number of them.
_DF, _QUARTILE = 4.0, 0.7407


# ------------------------------------------------------------------ the real line


def _scale(spread: Tensor, size: Tensor) -> Tensor:
    """Returns a spread; where it is 0 the size, or 1 if that is 0 too; nan where the size is."""
    size = size.abs()
    return torch.where(spread <= _CONSTANT * size, torch.where(size > 0, size, torch.ones_like(size)), spread)


def _located(loc: Tensor, scale: Tensor, **others: Any) -> Start:
    more = {name: torch.as_tensor(value).to(loc) for name, value in others.items()}
    return Start({"loc": loc, "scale": scale, **more}, {"loc": scale})


def _moments(data: Statistics) -> tuple[Tensor, Tensor]:
    mean = data.mean()
    return mean, _scale(data.variance().sqrt(), mean)


def _robust(data: Statistics, average: bool = False) -> tuple[Tensor, Tensor]:
    """The median, and the median (or mean) distance from it."""
    median = data.median()

    def distance(x: Tensor) -> Tensor:
        return (x - median).abs()

    mean = data.mean(distance)
    middle = mean if average else data.median(distance)
    # More than half of the values may be equal.
    return median, _scale(torch.where(middle > _CONSTANT * median.abs(), middle, mean), median)


def normal(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return _located(*_moments(data))


def logistic(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    mean, scale = _moments(data)
    return _located(mean, scale * math.sqrt(3) / math.pi, asymmetry=1.0)


def soft_laplace(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    mean, scale = _moments(data)
    return _located(mean, scale * 2 / math.pi)


def gumbel(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    mean, deviation = _moments(data)
    scale = deviation * math.sqrt(6) / math.pi
    return _located(mean - EULER * scale, scale)


def laplace(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return _located(*_robust(data, average=True), asymmetry=1.0, softness=1.0)


def cauchy(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return _located(*_robust(data))


def student(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    median, middle = _robust(data)
    return _located(median, middle / _QUARTILE, df=_DF)


def vector_normal(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    mean, scale = _moments(data)
    roots = {"scale_tril": scale, "covariance_matrix": scale, "precision_matrix": scale.reciprocal()}
    values = {name: torch.diag_embed(root if name == "scale_tril" else root.square()) for name, root in roots.items()}
    column = scale.unsqueeze(-1)  # the factor starts at 0, but for what a network adds
    values |= {"loc": mean, "cov_diag": scale.square(), "cov_factor": torch.zeros_like(column)}
    return Start(values, {"loc": scale, "cov_factor": column, **{n: _triangle(root) for n, root in roots.items()}})


def _triangle(root: Tensor) -> Tensor:
    """The units of the rows of a triangular matrix whose diagonal is an exp."""
    rows = root.unsqueeze(-1).expand(*root.shape, root.shape[-1])
    return torch.where(torch.eye(root.shape[-1], dtype=torch.bool, device=root.device), 1.0, rows)


def vector_student(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    median, middle = _robust(data)
    scale = middle / _QUARTILE
    return Start(
        {"loc": median, "scale_tril": torch.diag_embed(scale), "df": torch.full_like(median[..., 0], _DF)},
        {"loc": scale, "scale_tril": _triangle(scale)},
    )


def von_mises(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    cosine, sine = data.mean(torch.cos), data.mean(torch.sin)
    length = (cosine.square() + sine.square()).sqrt().clamp(1e-3, 0.999)
    concentration = length * (2 - length.square()) / (1 - length.square())
    loc = torch.atan2(sine, cosine)
    return Start({"loc": loc, "concentration": concentration}, {"loc": concentration.rsqrt().clamp_max(1.0)})


# ------------------------------------------------------------------ positive numbers


def log_normal(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    data = data.where(data.x > 0)
    loc, variance = data.mean(torch.log), data.variance(torch.log)
    return _located(loc, _scale(variance.sqrt(), loc))


def _gamma_of(mean: Tensor, mean_log: Tensor, known: Known) -> Start:
    """Nearly the maximum of the likelihood of Gamma."""
    gap = (mean.log() - mean_log).clamp(1e-6)
    shape = (3 - gap + ((gap - 3).square() + 24 * gap).sqrt()) / (12 * gap)
    shape = known.get("concentration", mean * known.get("rate", shape / mean))
    return Start({"concentration": torch.as_tensor(shape).to(mean), "rate": shape / mean})


def gamma(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    data = data.where(data.x > 0)
    return _gamma_of(data.mean(), data.mean(torch.log), known)


def inverse_gamma(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    data = data.where(data.x > 0)
    return _gamma_of(data.mean(torch.reciprocal), -data.mean(torch.log), known)


def exponential(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return Start({"rate": data.mean().reciprocal()})


def chi2(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return Start({"df": data.mean()})


def half_normal(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return Start({"scale": data.mean(torch.square).sqrt()})


def half_cauchy(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return Start({"scale": data.median()})


def weibull(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    data = data.where(data.x > 0)
    loc, deviation = data.mean(torch.log), data.variance(torch.log).sqrt()
    shape = known.get("concentration", math.pi / math.sqrt(6) / deviation.clamp(1e-2))
    return Start({"scale": (loc + EULER / shape).exp(), "concentration": torch.as_tensor(shape).to(loc)})


# ------------------------------------------------------------------ proportions


def _beta_of(mean: Tensor, variance: Tensor) -> Start:
    mean = mean.clamp(1e-3, 1 - 1e-3)
    total = (mean * (1 - mean) / variance.clamp(1e-12) - 1).clamp(LEAST, MOST)
    return Start({"concentration1": mean * total, "concentration0": (1 - mean) * total})


def beta(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return _beta_of(data.mean(), data.variance())


def continuous_bernoulli(data: Statistics, known: Known) -> Start:
    """Inverts the mean, 1 / (1 - exp(-logit)) - 1 / logit, by bisection."""
    mean = (data.total() + 0.5) / (data.count + 1)
    low, high = torch.full_like(mean, -1e3), torch.full_like(mean, 1e3)
    for _ in range(60):
        middle = (low + high) / 2
        middle = torch.where(middle.abs() < 1e-3, torch.full_like(middle, 1e-3), middle)
        above = -torch.expm1(-middle).reciprocal() - middle.reciprocal() > mean
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return from_logits((low + high) / 2)


def dirichlet(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    mean = data.mean().clamp(1e-6)
    total = (mean * (1 - mean) / data.variance().clamp(1e-12) - 1).clamp(LEAST, MOST)
    return Start({"concentration": mean * total.log().mean(-1, keepdim=True).exp()})
