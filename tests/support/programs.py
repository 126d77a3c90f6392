"""Pyro models and guides with exact answers, as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from linear_gaussian import LinearGaussian
from torch import Tensor, nn

from pyro_vae.program import Program


class GaussianEncoder(nn.Module):
    """q(z|x) = N(Vx + c, diag(t²)) as a network."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(encoder.V.shape[1], encoder.V.shape[0]).double()
        with torch.no_grad():
            self.linear.weight.copy_(encoder.V)
            self.linear.bias.copy_(encoder.c)
        self.log_scale = nn.Parameter(encoder.t.log())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.log_scale.exp()


class GaussianDecoder(nn.Module):
    """p(x|z) = N(Wz + b, diag(s²)) as a network."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.linear = nn.Linear(model.W.shape[1], model.W.shape[0]).double()
        with torch.no_grad():
            self.linear.weight.copy_(model.W)
            self.linear.bias.copy_(model.b)
        self.log_scale = nn.Parameter(model.s.expand(model.W.shape[0]).log().clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(z), self.log_scale.exp()


def linear_gaussian(model: LinearGaussian, encoder: Any, **options: Any) -> Program:
    """The linear-Gaussian model in plain functions, as Pyro's tutorial writes a VAE."""
    decode, encode = GaussianDecoder(model), GaussianEncoder(encoder)
    latent = model.W.shape[1]

    def generative(x: Tensor) -> None:
        pyro.module("decoder", decode)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], latent), 1.0).to_event(1))
            loc, scale = decode(z)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encode)
        with pyro.plate("data", x.shape[0]):
            loc, scale = encode(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Program(generative, guide, model.sample(4), **options)


def state_space(
    length: int, *, a: float = 0.8, q: float = 0.6, r: float = 0.5
) -> tuple[Callable[[Tensor], Tensor], Any]:
    r"""A linear state space with exact log p(x): z_t = a z_{t-1} + N(0, q²), x_t = z_t + N(0, r²), z_0 ~ N(0, 1).

    Returns:
        The exact log p(x) as a function of x, shape ``(B, T)``, and the model.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z_0", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x_0", dist.Normal(z, r), obs=x[:, 0])
            for t in pyro.markov(range(1, length)):
                z = pyro.sample(f"z_{t}", dist.Normal(a * z, q))
                pyro.sample(f"x_{t}", dist.Normal(z, r), obs=x[:, t])

    def log_marginal(x: Tensor) -> Tensor:
        return dist.MultivariateNormal(torch.zeros(length).double(), covariances(length, a, q, r)[1]).log_prob(x)

    return log_marginal, model


def covariances(length: int, a: float, q: float, r: float) -> tuple[Tensor, Tensor]:
    """The covariance of the states, and that of the observations."""
    states = torch.zeros(length, length).double()
    variance = 1.0
    for t in range(length):
        for s in range(t, length):
            states[t, s] = states[s, t] = variance * a ** (s - t)
        variance = a**2 * variance + q**2
    return states, states + r**2 * torch.eye(length).double()


def exact_state_guide(length: int, a: float = 0.8, q: float = 0.6, r: float = 0.5) -> Callable[[Tensor], None]:
    """The exact posterior of the states, drawn one after the other: z_t given earlier states and all of x."""
    states, observations = covariances(length, a, q, r)
    gain = states @ torch.linalg.inv(observations)
    covariance = states - gain @ states
    lower = torch.linalg.cholesky(covariance)

    def guide(x: Tensor) -> None:
        means = x @ gain.T
        noise: list[Tensor] = []
        with pyro.plate("data", x.shape[0]):
            for t in range(length):
                loc = means[:, t] + sum((lower[t, s] * noise[s] for s in range(t)), x.new_zeros(()))
                z = pyro.sample(f"z_{t}", dist.Normal(loc, lower[t, t]))
                noise.append((z - loc) / lower[t, t])

    return guide
