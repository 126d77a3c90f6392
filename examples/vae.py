r"""A VAE as Pyro's tutorial writes it, in two plain functions, trained by three algorithms.

.. math:: z \sim N(0, I), \qquad x | z \sim \mathrm{Bernoulli}(\mathrm{decoder}(z)), \qquad
    q(z|x) = N(\mathrm{encoder}(x))

Run: ``python -m examples.vae``.
"""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import Program, Training, datasets, fit
from pyro_vae.evaluation import Estimate, log_marginal
from pyro_vae.inference import AEVB, IWAE, RWS

PIXELS, LATENT, HIDDEN = 64, 8, 200


def program(example: Tensor) -> Program:
    """Returns model and guide as a `Program`.

    Arguments:
        example: Images, shape ``(B, 64)``.
    """
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Program(model, guide, example)


def main(epochs: int = 40) -> dict[str, Estimate]:
    """Trains the program on digits by three algorithms from one start, and prints log p(x) of test images.

    Returns:
        log p(x) in nats per image, by the algorithm's name.
    """
    data = datasets.load("digits", support=dist.Bernoulli.support)
    torch.manual_seed(0)
    start, found = program(data.test), {}
    for inference in (AEVB(), IWAE(), RWS()):
        trained = copy.deepcopy(start)
        fit(trained, data.train, inference, Training(epochs=epochs), transform=data.transform, seed=0)
        found[inference.name] = log_marginal(trained, data.test, num_samples=1000)
        print(f"{inference.name}: {found[inference.name]}")
    return found


if __name__ == "__main__":
    main()
