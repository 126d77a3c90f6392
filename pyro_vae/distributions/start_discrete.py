r"""Initial parameters of discrete families at the location and scale of data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.distributions.start_rule import LEAST, MOST, Known, Start, from_logits
from pyro_vae.distributions.statistics import Statistics

# ------------------------------------------------------------------ yes or no, levels


def bernoulli(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return from_logits(((data.total() + 0.5) / (data.count + 1)).clamp(0, 1).logit())


def categorical(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    sizes = [known.sizes[name] for name in ("logits", "probs") if name in known.sizes]
    return _shares(data.frequencies(sizes[0])) if sizes else Start({})


def one_hot(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    counts = data.total() + 0.5
    return _shares(counts / counts.sum(-1, keepdim=True))


def _shares(shares: Tensor) -> Start:
    return Start({"probs": shares, "logits": shares.log() - shares.log().mean(-1, keepdim=True)})


def dirichlet_multinomial(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    counts = data.total() + 0.5
    return Start({"concentration": counts.shape[-1] * counts / counts.sum(-1, keepdim=True)})


# ------------------------------------------------------------------ counts


def _rate(data: Statistics) -> Tensor:
    return (data.total() + 0.5) / (data.count + 1)


def poisson(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return Start({"rate": _rate(data)})


def _overdispersed(mean: Tensor, variance: Tensor) -> Tensor:
    """The shape r of a Gamma distribution of rates, from variance = mean + mean^2 / r."""
    return (mean.square() / (variance - mean).clamp(1e-12)).clamp(LEAST, MOST)


def negative_binomial(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    mean = _rate(data)
    total = known.get("total_count", _overdispersed(mean, data.variance()))
    start = from_logits((mean / total).log())
    return Start({**start.parameters, "total_count": torch.as_tensor(total).to(mean)})


def gamma_poisson(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    mean = _rate(data)
    shape = known.get("concentration", mean * known.get("rate", _overdispersed(mean, data.variance()) / mean))
    return Start({"concentration": torch.as_tensor(shape).to(mean), "rate": shape / mean})


def geometric(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    return from_logits(-_rate(data).log())


def binomial(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    total = known.get("total_count", 1)
    return from_logits(((data.total() + 0.5) / (data.count * total + 1)).clamp(0, 1).logit())


def beta_binomial(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    total = known.get("total_count", 1)
    mean = (data.total() + 0.5) / (data.count * total + 1)
    share = data.variance() / (mean * (1 - mean) * total)  # of the variance of a Binomial
    excess = (share - 1) / max(float(torch.as_tensor(total).double().mean()) - 1, 1)
    size = (excess.clamp(1e-3).reciprocal() - 1).clamp(LEAST, MOST)
    return Start({"concentration1": mean * size, "concentration0": (1 - mean) * size})


def _gated(start: Start, gate: Tensor) -> Start:
    return Start({**start.parameters, "gate": gate, "gate_logits": gate.logit()})


def _gate(data: Statistics, excess: Tensor) -> Tensor:
    least = 0.5 / (data.count + 1)
    return torch.minimum(torch.maximum(excess, least), 1 - least)


def zero_inflated_poisson(data: Statistics, known: Known) -> Start:
    """Returns the start of this family; see `pyro_vae.distributions.start`."""
    mean = _rate(data)
    rate = torch.maximum(data.variance() / mean + mean - 1, mean)
    gate = _gate(data, 1 - mean / rate)
    return _gated(Start({"rate": mean / (1 - gate)}), gate)


def zero_inflated_negative_binomial(data: Statistics, known: Known) -> Start:
    """Half of the zeros beyond those of a Poisson of the same mean pass through the gate."""
    mean, zeros = _rate(data), data.mean(lambda x: (x == 0).to(x))
    gate = _gate(data, (zeros - (-mean).exp()) / 2)
    inside = mean / (1 - gate)
    variance = (data.variance() + mean.square()) / (1 - gate) - inside.square()
    total = known.get("total_count", _overdispersed(inside, variance))
    start = from_logits((inside / total).log())
    return _gated(Start({**start.parameters, "total_count": torch.as_tensor(total).to(mean)}), gate)


# ------------------------------------------------------------------ grey levels


def discretized_logistic(data: Statistics, known: Known) -> Start:
    """K components around the mean, with half of the variance between them; no cell is constant."""
    levels, sizes = known.get("levels", 256), [size for name, size in known.sizes.items() if name != "logits"]
    half = 1 / (levels - 1)
    mean, variance = 2 * half * data.mean() - 1, (2 * half) ** 2 * data.variance()
    count = data.count
    variance = (count * variance + variance.nanmean()) / (count + 1) + half**2
    components = sizes[0] if sizes else 1
    between = 0.0 if components == 1 else 0.5
    place = (torch.arange(components, dtype=mean.dtype, device=mean.device) + 0.5) / components
    normal = torch.special.ndtri(place) if components > 1 else torch.zeros_like(place)
    deviation = variance.sqrt().unsqueeze(-1)
    locs = mean.unsqueeze(-1) + deviation * math.sqrt(between) * normal
    scales = (deviation * math.sqrt((1 - between) * 3) / math.pi).expand_as(locs)
    return Start({"logits": torch.zeros_like(locs), "locs": locs, "scales": scales}, {"locs": scales})
