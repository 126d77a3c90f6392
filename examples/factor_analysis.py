r"""Bayesian factor analysis: the loadings have a posterior, which is trained with the latents of the data.

.. math:: W_{jd} \sim N(0, 1), \qquad z_i \sim N(0, I), \qquad x_i \sim N(W^\top z_i, \sigma^2), \qquad
    q(W) = \prod_{jd} N(m_{jd}, s_{jd}^2), \qquad q(z_i | x_i, W) = N(A x_i, C)

The loadings lie outside the plate over data: their KL counts once for all N data. Given W, the guide is the exact
posterior of z, so that only the loadings are approximated. The more data, the narrower their posterior.

Run: ``python -m examples.factor_analysis``.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import Program, Training, fit
from pyro_vae.evaluation import log_marginal
from pyro_vae.inference import STL

COLUMNS, FACTORS, NOISE = 8, 2, 0.5


def factors(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns n data, shape ``(n, 8)``, and the loadings by which they were drawn, shape ``(2, 8)``."""
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.randn(FACTORS, COLUMNS, generator=generator)
    z = torch.randn(n, FACTORS, generator=generator)
    return z @ loadings + NOISE * torch.randn(n, COLUMNS, generator=generator), loadings


def model(x: Tensor) -> None:
    """Draws the loadings once, and for each datum its factors; observes the data."""
    loadings = pyro.sample("loadings", dist.Normal(x.new_zeros(FACTORS, COLUMNS), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(FACTORS), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ loadings, NOISE).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    """Draws the loadings from their posterior, and the factors from the exact one given the loadings."""
    loc = pyro.param("loc", lambda: 0.5 * torch.randn(FACTORS, COLUMNS))
    scale = pyro.param("scale", lambda: torch.full((FACTORS, COLUMNS), 0.1), constraint=constraints.positive)
    loadings = pyro.sample("loadings", dist.Normal(loc, scale).to_event(2))
    precision = torch.eye(FACTORS, dtype=x.dtype) + loadings @ loadings.mT / NOISE**2
    covariance = torch.linalg.inv(precision)
    with pyro.plate("data", len(x)):
        mean = x @ loadings.mT @ covariance / NOISE**2
        pyro.sample("z", dist.MultivariateNormal(mean, covariance))


def exact(x: Tensor, loadings: Tensor) -> float:
    """Returns the exact log p(x | W), in nats per datum."""
    covariance = loadings.mT @ loadings + NOISE**2 * torch.eye(COLUMNS)
    return float(dist.MultivariateNormal(torch.zeros(COLUMNS), covariance).log_prob(x).mean())


def main(steps: int = 1000, sizes: tuple[int, ...] = (30, 300)) -> dict[int, tuple[float, float, float]]:
    """Trains on few and on many data, and prints what the posterior of the loadings says of new data.

    Returns:
        By the number of data: log p(x | W) of test data at a draw of W from its posterior, at the true W, both in nats
        per datum, and the mean posterior scale of the loadings.
    """
    found = {}
    for n in sizes:
        x, loadings = factors(n)
        test, _ = factors(1000 + n)
        torch.manual_seed(0)
        program = Program(model, guide, x[:5], size=n)
        training = Training(optimizer=lambda p: torch.optim.Adam(p, 0.02), steps=steps, batch_size=n)
        fit(program, x, STL(), training, seed=0)
        value = log_marginal(program, test[n:], num_samples=20).value
        scale = float(program.guide_parameters["scale"].detach().mean())
        found[n] = (value, exact(test[n:], loadings), scale)
        print(
            f"{n} data: log p(x | W) {value:.2f} at a draw of W, {found[n][1]:.2f} at the true one; scale {scale:.3f}"
        )
    return found


if __name__ == "__main__":
    main()
