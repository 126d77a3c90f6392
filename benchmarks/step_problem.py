r"""The common problem of the contenders of `benchmarks.step_time`: networks, weights, data and loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float32]

RATE = 1e-3  # of Adam
ROWS = {"cpu": 10_000, "cuda": 60_000}  # data in an epoch


class Size(NamedTuple):
    """A VAE with a standard normal prior, a Normal posterior and a Bernoulli likelihood.

    Attributes:
        data: D; 784 with ``channels``, images of 1 x 28 x 28.
        hidden: Sizes of the encoder's hidden layers (tanh); the decoder has them in reverse order.
        latent: L, the number of latents.
        particles: K of the importance-weighted bound; 1 for the ELBO.
        channels: Channels of the encoder's 4 x 4 convolutions of stride 2 (ReLU), which replace hidden layers.
    """

    data: int
    hidden: tuple[int, ...]
    latent: int
    particles: int = 1
    channels: tuple[int, ...] = ()


SIZES = {
    "tiny": Size(64, (64,), 8),
    "paper": Size(784, (500,), 20),
    "wide": Size(784, (1000, 1000), 50),
    "wide-iwae": Size(784, (1000, 1000), 50, particles=50),
    "conv": Size(784, (), 20, channels=(32, 64)),
}
SAID = {
    "tiny": "64-64-8",
    "paper": "784-500-20",
    "wide": "784-2x1000-50",
    "wide-iwae": "784-2x1000-50, IWAE, K = 50",
    "conv": "1x28x28, 2 convolutions",
}


@dataclass(frozen=True)
class Problem:
    """One VAE to train.

    Attributes:
        name: Name of the size.
        batch: Number of data in a minibatch.
        device: ``"cpu"`` or ``"cuda"``.
        threads: Number of threads of a contender.
        rows: Number of data in an epoch.
        replicates: Number of VAEs that are trained at once.
    """

    name: str
    batch: int
    device: str
    threads: int
    rows: int
    replicates: int = 1

    @property
    def size(self) -> Size:
        return SIZES[self.name]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the only draw of standard normal noise in a step."""
        particles = () if self.size.particles == 1 else (self.size.particles,)
        return (*particles, self.batch, self.size.latent)

    def data(self) -> Array:
        """Returns binary data of ten kinds, shape ``(rows, D)``, the same in every process."""
        generator = np.random.default_rng(1)
        kinds = generator.choice([0.1, 0.9], size=(10, self.size.data), p=[0.75, 0.25])
        probabilities = kinds[generator.integers(10, size=self.rows)]
        return (generator.random(probabilities.shape) < probabilities).astype(np.float32)

    def noise(self) -> Array:
        """Returns the noise for the comparison of losses, the same in every process."""
        return np.random.default_rng(2).standard_normal(self.noise_shape).astype(np.float32)

    def weights(self) -> list[Array]:
        """Returns the initial weights of all contenders."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return [parameter.detach().numpy() for parameter in Networks(self.size).parameters()]


def linear_layers(size: Size) -> list[tuple[str, int, int]]:
    """Returns part, inputs and outputs of each linear layer of a size without convolutions."""
    into = (size.data, *size.hidden, 2 * size.latent)
    out = (size.latent, *reversed(size.hidden), size.data)
    return [("encoder", *pair) for pair in pairwise(into)] + [("decoder", *pair) for pair in pairwise(out)]


class Networks(nn.Module):
    """Encoder and decoder in plain PyTorch."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        if size.channels:
            self.encoder, self.decoder = _convolutions(size)
            return
        parts: dict[str, list[nn.Module]] = {"encoder": [], "decoder": []}
        for part, inputs, outputs in linear_layers(size):
            parts[part] += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.encoder, self.decoder = (nn.Sequential(*layers[:-1]) for layers in parts.values())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns location and log scale of q(z|x)."""
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        return loc, log_scale

    def decode(self, z: Tensor) -> Tensor:
        """Returns the logits of p(x|z)."""
        logits: Tensor = self.decoder(z)
        return logits

    def set(self, weights: list[Array]) -> Networks:
        """Copies weights into the networks; returns self."""
        copy_weights(list(self.parameters()), weights)
        return self


def _convolutions(size: Size) -> tuple[nn.Sequential, nn.Sequential]:
    first, second = size.channels
    encoder = nn.Sequential(
        nn.Unflatten(-1, (1, 28, 28)),
        nn.Conv2d(1, first, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * 49, 2 * size.latent),
    )
    decoder = nn.Sequential(
        nn.Linear(size.latent, second * 49),
        nn.Unflatten(-1, (second, 7, 7)),
        nn.ReLU(),
        nn.ConvTranspose2d(second, first, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(first, 1, 4, stride=2, padding=1),
        nn.Flatten(),
    )
    return encoder, decoder


@torch.no_grad()
def copy_weights(parameters: list[nn.Parameter], weights: list[Array]) -> None:
    """Copies weights into parameters, in order; raises if shapes differ."""
    for parameter, weight in zip(parameters, weights, strict=True):
        if parameter.shape != weight.shape:
            raise ValueError(f"a parameter of shape {tuple(parameter.shape)} cannot get weights {weight.shape}")
        parameter.copy_(torch.tensor(weight))


@torch.no_grad()
def reference_loss(problem: Problem, weights: list[Any], x: Array, noise: Array, estimator: str) -> float:
    r"""Returns the loss in float64, nats per datum, at given weights, data and noise.

    .. math:: \text{sampled: } -\frac{1}{B} \sum_b \log \frac{1}{K} \sum_k \frac{p(x_b, z_k)}{q(z_k|x_b)}, \qquad
        \text{analytic: } \frac{1}{B} \sum_b \mathrm{KL}(q(z|x_b) \| p(z)) - \log p(x_b|z)

    Arguments:
        problem: Problem with the sizes of the networks.
        weights: Weights in the order of `Problem.weights`.
        x: Data, shape ``(B, D)``.
        noise: Standard normal noise, shape ``(B, L)`` or ``(K, B, L)``.
        estimator: ``"sampled"``, or ``"analytic"`` for K = 1; both have the same expectation.
    """
    networks = Networks(problem.size).set(weights).double()
    data, epsilon = torch.from_numpy(x).double(), torch.from_numpy(noise).double()
    loc, log_scale = networks.encode(data)
    z = loc + log_scale.exp() * epsilon
    logits = networks.decode(z)
    log_likelihood = (data * logits - nn.functional.softplus(logits)).sum(-1)
    if estimator == "analytic":
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
        return float((kl - log_likelihood).mean())
    log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)
    log_q = (-0.5 * (epsilon**2 + math.log(2 * math.pi)) - log_scale).sum(-1)
    log_weights = log_likelihood + log_prior - log_q
    if problem.size.particles == 1:
        return -float(log_weights.mean())
    return -float((log_weights.logsumexp(0) - math.log(problem.size.particles)).mean())


def matrix_flops(problem: Problem) -> float | None:
    """Returns the floating-point operations of a step's matrix products; None for convolutions."""
    if problem.size.channels:
        return None
    return sum(2.0 * m * k * n * times for m, k, n, times in matrix_products(problem)) * problem.replicates


def matrix_products(problem: Problem) -> list[tuple[int, int, int, int]]:
    """Returns rows, inputs, outputs and number of products of each linear layer.

    There are 3 products: forward, the gradient of the weights, and the gradient of the input. The first layer has 2,
    since data need no gradient.
    """
    rows = {"encoder": problem.batch, "decoder": problem.batch * problem.size.particles}
    layers = linear_layers(problem.size)
    return [(rows[part], k, n, 2 if i == 0 else 3) for i, (part, k, n) in enumerate(layers)]
