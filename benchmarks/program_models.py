r"""Five Pyro programs with their data, as Pyro's users write them, for `benchmarks.programs`.

* ``vae``: the variational autoencoder of Pyro's tutorial, 784-400-50.
* ``markov``: the deep Markov model of Pyro's tutorial, smaller: ragged sequences of 5 to 10 steps under a mask, a gated
  transition, and a guide that reads a sequence backwards by a GRU cell.
* ``modalities``: a Bernoulli image and a Normal vector given one z, in two PyroModules.
* ``factors``: factor analysis with a Normal posterior over the loadings, which all data share.
* ``counts``: negative-binomial counts of genes given z, a library size and the batch, after Pyro's scANVI tutorial.

Each call returns new networks with the same initial weights and the same data. All data are simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils import _pytree as pytree

from pyro_vae.runtime.random_streams import isolated


class Written(NamedTuple):
    """A Pyro program with its data.

    Attributes:
        model: Function or module of a batch: draws the latents and observes the data.
        guide: Function or module of a batch: draws the latents given the data.
        data: A tensor, or a mapping of tensors, of N rows.
        size: N where latents are shared by all data, else None.
    """

    model: Any
    guide: Any
    data: Any
    size: int | None = None

    def rows(self, rows: Any) -> Any:
        """Returns a batch of some rows of the data."""
        return pytree.tree_map(lambda tensor: tensor[rows], self.data)


Pair = tuple[Tensor, Tensor]


class Gaussian(nn.Module):
    """A network with one hidden layer whose output is a location and a scale."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.loc, self.log_scale = (
            nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus()),
            nn.Linear(hidden, outputs),
            nn.Linear(hidden, outputs),
        )

    def forward(self, x: Tensor) -> Pair:
        hidden = self.hidden(x)
        return self.loc(hidden), torch.exp(self.log_scale(hidden))


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Returns a network with one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus(), nn.Linear(hidden, outputs))


def images(rows: int, pixels: int) -> Tensor:
    """Returns binary images of ten kinds, shape ``(rows, pixels)``."""
    kinds = torch.where(torch.rand(10, pixels) < 0.25, 0.9, 0.1)
    return torch.bernoulli(kinds[torch.randint(10, (rows,))])


def vae(rows: int, subsampled: bool) -> Written:
    """Returns the variational autoencoder; see `PROGRAMS`."""
    encoder, decoder = Gaussian(784, 400, 50), network(50, 400, 784)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(x.shape[0], 50)
            z_scale = x.new_ones(x.shape[0], 50)
            z = pyro.sample("z", dist.Normal(z_loc, z_scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = encoder(x)
            pyro.sample("z", dist.Normal(z_loc, z_scale).to_event(1))

    return Written(model, guide, images(rows, 784))


class GatedTransition(nn.Module):
    """p(z_t | z_{t-1}): a linear and a nonlinear mean, mixed by a gate."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.proposal = network(latent, hidden, latent), network(latent, hidden, latent)
        self.linear, self.scale = nn.Linear(latent, latent), nn.Linear(latent, latent)

    def forward(self, z: Tensor) -> Pair:
        gate, proposal = torch.sigmoid(self.gate(z)), self.proposal(z)
        loc = (1 - gate) * self.linear(z) + gate * proposal
        return loc, nn.functional.softplus(self.scale(torch.relu(proposal)))


class DeepMarkovModel(nn.Module):
    """A deep Markov model and its guide."""

    def __init__(self, features: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.transition, self.emitter = GatedTransition(latent, hidden), network(latent, hidden, features)
        self.cell = nn.GRUCell(features, hidden)
        self.from_z = nn.Linear(latent, hidden)
        self.loc, self.scale = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.zeros(latent))
        self.h_0 = nn.Parameter(torch.zeros(hidden))

    def model(self, batch: dict[str, Tensor]) -> None:
        x, mask = batch["x"], batch["mask"]
        pyro.module("dmm", self)
        z = self.z_0.expand(len(x), -1)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, scale = self.transition(z)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).mask(mask[:, t : t + 1]).to_event(1))
                emitted = dist.Bernoulli(logits=self.emitter(z)).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"x_{t}", emitted, obs=x[:, t])

    def guide(self, batch: dict[str, Tensor]) -> None:
        x, mask = batch["x"], batch["mask"]
        pyro.module("dmm", self)
        h, backwards = self.h_0.expand(len(x), -1), []
        for t in reversed(range(x.shape[1])):
            h = torch.where(mask[:, t : t + 1], self.cell(x[:, t], h), h)
            backwards.append(h)
        z = self.z_q_0.expand(len(x), -1)
        with pyro.plate("data", len(x)):
            for t, h in zip(pyro.markov(range(x.shape[1])), reversed(backwards), strict=True):
                combined = 0.5 * (torch.tanh(self.from_z(z)) + h)
                loc, scale = self.loc(combined), nn.functional.softplus(self.scale(combined))
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).mask(mask[:, t : t + 1]).to_event(1))


def markov(rows: int, subsampled: bool) -> Written:
    """Returns the deep Markov model; see `PROGRAMS`."""
    length, features = 10, 88
    program = DeepMarkovModel(features, latent=16, hidden=64)
    mask = torch.arange(length) < torch.randint(length // 2, length + 1, (rows, 1))
    x = images(rows * length, features).reshape(rows, length, features) * mask[..., None]
    return Written(program.model, program.guide, {"x": x, "mask": mask})


class ModalitiesModel(PyroModule):
    """p(z) p(image | z) p(vector | z)."""

    def __init__(self, pixels: int, features: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.latent = latent
        self.image, self.vector = network(latent, hidden, pixels), network(latent, hidden, features)
        self.scale = PyroParam(torch.ones(features), constraint=constraints.positive)

    def forward(self, batch: dict[str, Tensor]) -> None:
        image, vector = batch["image"], batch["vector"]
        with pyro.plate("data", len(image)):
            z = pyro.sample("z", dist.Normal(image.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("image", dist.Bernoulli(logits=self.image(z)).to_event(1), obs=image)
            pyro.sample("vector", dist.Normal(self.vector(z), self.scale).to_event(1), obs=vector)


class ModalitiesGuide(PyroModule):
    """q(z | image, vector)."""

    def __init__(self, pixels: int, features: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.encoder = Gaussian(pixels + features, hidden, latent)

    def forward(self, batch: dict[str, Tensor]) -> None:
        loc, scale = self.encoder(torch.cat([batch["image"], batch["vector"]], dim=-1))
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def modalities(rows: int, subsampled: bool) -> Written:
    """Returns the model of an image and a vector; see `PROGRAMS`."""
    sizes = {"pixels": 196, "features": 20, "latent": 10, "hidden": 200}
    model, guide = ModalitiesModel(**sizes), ModalitiesGuide(**sizes)
    image = images(rows, 196)
    vector = image @ torch.randn(196, 20) / 10 + torch.randn(rows, 20)
    return Written(model, guide, {"image": image, "vector": vector})


def factors(rows: int, subsampled: bool) -> Written:
    """Returns factor analysis with a posterior over the loadings; see `PROGRAMS`."""
    features, latent = 100, 10
    encoder = nn.Linear(features, latent)

    def plate(x: Tensor) -> Any:
        return pyro.plate("data", rows, subsample=x) if subsampled else pyro.plate("data", len(x))

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", x.new_ones(features), constraint=constraints.positive)
        loadings = pyro.sample("loadings", dist.Normal(x.new_zeros(latent, features), 1.0).to_event(2))
        with plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loadings, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        loc = pyro.param("loadings_loc", 0.1 * initial)
        scale = pyro.param("loadings_scale", x.new_full((latent, features), 0.1), constraint=constraints.positive)
        z_scale = pyro.param("z_scale", x.new_full((latent,), 0.5), constraint=constraints.positive)
        pyro.sample("loadings", dist.Normal(loc, scale).to_event(2))
        with plate(x):
            pyro.sample("z", dist.Normal(encoder(x), z_scale).to_event(1))

    initial, loadings = torch.randn(latent, features), torch.randn(latent, features)
    x = torch.randn(rows, latent) @ loadings + torch.randn(rows, features)
    return Written(model, guide, x, rows)


def counts(rows: int, subsampled: bool) -> Written:
    """Returns the model of counts with a library size; see `PROGRAMS`."""
    genes, latent, batches, hidden = 500, 10, 3, 128
    z_encoder, l_encoder = Gaussian(genes + batches, hidden, latent), Gaussian(genes, hidden, 1)
    decoder = network(latent + batches, hidden, genes)

    def model(batch: dict[str, Tensor]) -> None:
        x, s = batch["counts"], batch["batch"]
        pyro.module("decoder", decoder)
        dispersion = pyro.param("dispersion", x.new_full((genes,), 10.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent), 1.0).to_event(1))
            library = pyro.sample("library", dist.LogNormal(x.new_full((1,), 6.0), 0.5).to_event(1))
            covariates = one_hot(s, batches).to(z).expand(*z.shape[:-1], batches)
            rate = library * decoder(torch.cat([z, covariates], dim=-1)).softmax(-1)
            logits = (rate + 1e-6).log() - (dispersion + 1e-6).log()
            pyro.sample("x", dist.NegativeBinomial(dispersion, logits=logits).to_event(1), obs=x)

    def guide(batch: dict[str, Tensor]) -> None:
        x, s = batch["counts"], batch["batch"]
        pyro.module("z_encoder", z_encoder)
        pyro.module("l_encoder", l_encoder)
        logs = (1 + x).log()
        with pyro.plate("data", len(x)):
            z_loc, z_scale = z_encoder(torch.cat([logs, one_hot(s, batches).to(x)], dim=-1))
            pyro.sample("z", dist.Normal(z_loc, z_scale).to_event(1))
            l_loc, l_scale = l_encoder(logs)
            pyro.sample("library", dist.LogNormal(6.0 + l_loc, l_scale).to_event(1))

    s = torch.randint(batches, (rows,))
    kinds = torch.distributions.Dirichlet(torch.full((genes,), 0.3)).sample((10,))
    totals = torch.exp(6.0 + 0.5 * torch.randn(rows, 1))
    x = torch.poisson(totals * kinds[torch.randint(10, (rows,))] * (1 + 0.2 * s[:, None]))
    return Written(model, guide, {"counts": x, "batch": s})


PROGRAMS: dict[str, Callable[[int, bool], Written]] = {
    each.__name__: each for each in (vae, markov, modalities, factors, counts)
}
"""The programs by name: functions of N, the number of rows, and of whether the plate over data says that a batch is a
part of N rows, as Pyro's SVI needs for latents that all data share; a `Program` takes ``size=N`` for this."""


def written(name: str, rows: int, subsampled: bool = False) -> Written:
    """Returns a program with its data; see `PROGRAMS`.

    Arguments:
        name: Its name in `PROGRAMS`.
        rows: N, the number of rows of data.
        subsampled: Whether the plate over data says that a batch is a part of N rows.
    """
    with isolated(0):
        return PROGRAMS[name](rows, subsampled)
