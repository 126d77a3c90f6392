r"""A VAE whose prior is a mixture of Normals: images are clustered while their code is learned.

.. math:: k \sim \mathrm{Categorical}(\pi), \qquad z | k \sim N(\mu_k, \sigma_k^2), \qquad
    x | z \sim \mathrm{Bernoulli}(\mathrm{decoder}(z)), \qquad q(z|x) = N(\mathrm{encoder}(x))

The model marks the cluster k for enumeration, and the guide leaves it out: it is summed out of every density. p(k|x) is
exact given z.

Run: ``python -m examples.mixture_vae``.

Reference: Jiang, Zheng, Tan, Tang and Zhou, "Variational deep embedding", 2017, equations 1 to 3.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae import Estimate, Program, Training, datasets, fit
from pyro_vae.evaluation import log_marginal, site_probabilities
from pyro_vae.inference import IWAE

PIXELS, LATENT, HIDDEN, CLUSTERS = 64, 6, 200, 20


def program(example: Tensor) -> Program:
    """Returns model and guide as a `Program`.

    Arguments:
        example: Images, shape ``(B, 64)``.
    """
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        weights = pyro.param("weights", lambda: torch.full((CLUSTERS,), 1 / CLUSTERS), constraint=constraints.simplex)
        centres = pyro.param("centres", lambda: torch.randn(CLUSTERS, LATENT))
        scales = pyro.param("scales", lambda: torch.full((CLUSTERS, LATENT), 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(centres[k], scales[k]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Program(model, guide, example)


def purity(clusters: Tensor, labels: Tensor) -> float:
    """Returns the share of data whose label is the most frequent one of their cluster."""
    counts = torch.zeros(CLUSTERS, 10)
    counts.index_put_((clusters, labels), torch.ones(len(labels)), accumulate=True)
    return float(counts.amax(1).sum() / len(labels))


def main(epochs: int = 100) -> tuple[Estimate, float]:
    """Trains on digits, and prints log p(x) and how well the clusters are the ten digits.

    Returns:
        log p(x) of test images in nats, and the purity of the clusters.
    """
    data = datasets.load("digits", support=dist.Bernoulli.support)
    torch.manual_seed(0)
    trained = program(data.test)
    fit(trained, data.train, IWAE(), Training(epochs=epochs), transform=data.transform, seed=0)
    estimate = log_marginal(trained, data.test, num_samples=1000)
    clusters = site_probabilities(trained, data.test, "k").argmax(-1)
    share = purity(clusters, data.labels["test"])
    print(f"log p(x): {estimate}")
    print(f"purity of {len(clusters.unique())} clusters: {share:.2f}; by chance about 0.2")
    return estimate, share


if __name__ == "__main__":
    main()
