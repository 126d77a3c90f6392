r"""Counts of genes in cells, with a latent library size and a covariate for the batch in which a cell was measured.

.. math:: z \sim N(0, I), \qquad \ell \sim \mathrm{LogNormal}(\mu, s^2), \qquad
    x_j | z, \ell, b \sim \mathrm{NegativeBinomial}(\mathrm{mean} = \ell \rho_j(z, b), \mathrm{dispersion} = r_j)

The guide follows from the model: `auto_guide` reads the counts and the covariate, and makes a posterior for both
latents. z has what is left when library size and batch are taken out.

Run: ``python -m examples.counts``.

Reference: Lopez, Regier, Cole, Jordan and Yosef, "Deep generative modeling for single-cell transcriptomics", 2018.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae import Batch, Program, Training, auto_guide, fit
from pyro_vae.evaluation import elbo, posterior_means
from pyro_vae.inference import AEVB

GENES, LATENT, HIDDEN, BATCHES, TYPES = 30, 2, 64, 2, 3


def cells(n: int, seed: int = 0) -> tuple[Batch, Tensor, Tensor]:
    """Returns counts of n cells with their batch as context, their types, and their library sizes.

    Each type has genes of its own; the second batch measures some genes more weakly; library sizes differ tenfold.

    Arguments:
        n: Number of cells.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    types, batch = (torch.randint(k, (n,), generator=generator) for k in (TYPES, BATCHES))
    profiles = torch.ones(TYPES, GENES)
    for i in range(TYPES):
        profiles[i, 6 * i : 6 * i + 6] = 6.0
    weaker = torch.ones(BATCHES, GENES)
    weaker[1, 20:] = 0.3
    rates = profiles[types] * weaker[batch]
    library = 30 * torch.exp(1.1 * torch.randn(n, 1, generator=generator))
    counts = torch.poisson(library * rates / rates.sum(-1, keepdim=True), generator=generator)
    context = torch.nn.functional.one_hot(batch, BATCHES).float()
    return Batch(counts, context=context), types, library.squeeze(-1)


class Model(nn.Module):
    """p(x, z, library) of a batch of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(LATENT + BATCHES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, GENES))

    def forward(self, batch: Batch) -> None:
        """Draws the latents and observes the counts."""
        x, context = batch.x, batch.context
        dispersion = pyro.param("dispersion", lambda: torch.ones(GENES), constraint=constraints.positive)
        size = pyro.param("size", lambda: torch.tensor(3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            library = pyro.sample("library", dist.LogNormal(size, 1.0))
            given = torch.cat([z, context.expand(*z.shape[:-1], BATCHES)], dim=-1)
            mean = library.unsqueeze(-1) * self.network(given).softmax(-1)
            logits = (mean + 1e-6).log() - dispersion.log()
            pyro.sample("x", dist.NegativeBinomial(dispersion, logits=logits).to_event(1), obs=x)


def nearest_type(z: Tensor, types: Tensor) -> float:
    """Returns the share of cells whose nearest other cell in the latent space has their type."""
    distance = torch.cdist(z, z).fill_diagonal_(torch.inf)
    return float((types[distance.argmin(1)] == types).float().mean())


def main(epochs: int = 60) -> dict[str, float]:
    """Trains on drawn cells, and prints what the latents found.

    Returns:
        The share of test cells whose nearest one has their type, the same for their batch (by chance a half), and the
        correlation of the logs of found and true library sizes.
    """
    train, _, _ = cells(2000)
    test, types, library = cells(300, seed=1)
    torch.manual_seed(0)
    model = Model()
    program = Program(model, auto_guide(model, train.select(slice(0, 500))), train.select(slice(0, 10)))
    fit(program, train, AEVB(), Training(optimizer=lambda p: torch.optim.Adam(p, 3e-3), epochs=epochs), seed=0)
    means = posterior_means(program, test)
    z, size = means[:, :LATENT], means[:, LATENT]
    found = {
        "type of the nearest cell": nearest_type(z, types),
        "batch of the nearest cell": nearest_type(z, test.context.argmax(-1)),
        "correlation of library sizes": float(torch.corrcoef(torch.stack([size.log(), library.log()]))[0, 1]),
    }
    print(f"ELBO: {elbo(program, test, num_samples=100)}")
    for name, value in found.items():
        print(f"{name}: {value:.2f}")
    return found


if __name__ == "__main__":
    main()
