r"""A deep Markov model of sequences of different lengths.

.. math:: z_t | z_{t-1} \sim N(\mathrm{transition}(z_{t-1})), \qquad
    x_t | z_t \sim \mathrm{Bernoulli}(\mathrm{emitter}(z_t)), \qquad
    q(z_t | z_{t-1}, x_{t:T}) = N(\mathrm{combiner}(z_{t-1}, h_t))

A recurrent network reads a sequence from its end; h_t knows what comes after t. A mask leaves out the steps behind a
sequence's end, in the model and in the guide. IWAE, log p(x) and k-hat weigh each sequence by itself.

Run: ``python -m examples.deep_markov``.

Reference: Krishnan, Shalit and Sontag, "Structured inference networks for nonlinear state space models", 2017.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import Estimate, Program, Training, fit
from pyro_vae.evaluation import log_marginal
from pyro_vae.inference import AEVB

STEPS, KEYS, LATENT, HIDDEN = 12, 16, 4, 32


def sequences(n: int, seed: int = 0) -> dict[str, Tensor]:
    """Returns bars of a piano: a note goes up or down the keys, in its own tempo, with some keys wrong.

    Arguments:
        n: Number of sequences.
        seed: Seed of the draws.

    Returns:
        ``x`` of shape ``(n, 12, 16)`` in {0, 1}, and ``length`` of shape ``(n,)``, between 5 and 12.
    """
    generator = torch.Generator().manual_seed(seed)
    start, tempo = (torch.rand(n, 1, generator=generator) for _ in range(2))
    height = KEYS * (start + (2 * tempo - 1) * torch.arange(STEPS) / STEPS)
    keys = torch.arange(KEYS)
    played = ((height.unsqueeze(-1) - keys + KEYS / 2) % KEYS - KEYS / 2).abs() < 1
    wrong = torch.rand(n, STEPS, KEYS, generator=generator) < 0.03
    length = torch.randint(5, STEPS + 1, (n,), generator=generator)
    inside = torch.arange(STEPS) < length.unsqueeze(-1)
    return {"x": ((played ^ wrong) & inside.unsqueeze(-1)).float(), "length": length}


class Gaussian(nn.Module):
    """A network whose outputs are location and scale of a Normal."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(features, HIDDEN), nn.Linear(HIDDEN, 2 * LATENT)

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both, shape ``(..., 4)``."""
        loc, scale = self.head(self.hidden(given).tanh()).chunk(2, dim=-1)
        return loc, nn.functional.softplus(scale) + 1e-3


class Model(nn.Module):
    """p(x, z) of a batch of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.transition = Gaussian(LATENT)
        self.emitter = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, KEYS))

    def forward(self, batch: dict[str, Tensor]) -> None:
        """Draws the states and observes the notes, step by step."""
        x, length = batch["x"], batch["length"]
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), LATENT)
            for t in pyro.markov(range(STEPS)):
                loc, scale = self.transition(z) if t else (x.new_zeros(LATENT), x.new_ones(LATENT))
                with pyro.poutine.mask(mask=t < length):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emitter(z)).to_event(1), obs=x[:, t])


class Guide(nn.Module):
    """q(z|x): a recurrent network reads the notes backwards, and the states are drawn forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.GRUCell(KEYS, HIDDEN)
        self.combiner = Gaussian(HIDDEN + LATENT)

    def forward(self, batch: dict[str, Tensor]) -> None:
        """Draws the states, step by step."""
        x, length = batch["x"], batch["length"]
        h, read = x.new_zeros(len(x), HIDDEN), []
        for t in reversed(range(STEPS)):
            h = torch.where((t < length).unsqueeze(-1), self.reader(x[:, t], h), h)
            read.insert(0, h)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), LATENT)
            for t in pyro.markov(range(STEPS)):
                given = torch.cat([read[t].expand(*z.shape[:-1], HIDDEN), z], dim=-1)
                with pyro.poutine.mask(mask=t < length):
                    z = pyro.sample(f"z_{t}", dist.Normal(*self.combiner(given)).to_event(1))


def independent(train: dict[str, Tensor], test: dict[str, Tensor]) -> float:
    """Returns log p(x) of test sequences, in nats, where each key has its own rate at all times."""
    inside = torch.arange(STEPS) < train["length"].unsqueeze(-1)
    rate = train["x"][inside].mean(0)
    log_prob = dist.Bernoulli(rate).log_prob(test["x"]).sum(-1)
    return float((log_prob * (torch.arange(STEPS) < test["length"].unsqueeze(-1))).sum(-1).mean())


def main(epochs: int = 60, size: int = 2000) -> tuple[Estimate, float]:
    """Trains on sequences, and prints log p(x) of test sequences beside that of independent keys.

    Returns:
        Both, in nats per sequence.
    """
    train, test = sequences(size), sequences(200, seed=1)
    torch.manual_seed(0)
    program = Program(Model(), Guide(), {name: part[:10] for name, part in train.items()})
    fit(program, train, AEVB(), Training(optimizer=lambda p: torch.optim.Adam(p, 3e-3), epochs=epochs), seed=0)
    estimate, without = log_marginal(program, test, num_samples=1000), independent(train, test)
    print(f"log p(x): {estimate}")
    print(f"independent keys: {without:.2f}")
    return estimate, without


if __name__ == "__main__":
    main()
