r"""An amortized topic model of word counts.

.. math:: \theta \sim \mathrm{LogisticNormal}(0, 1), \qquad x | \theta \sim \mathrm{Multinomial}(n, \theta^\top \beta)

.. math:: q(\theta | x) = \mathrm{LogisticNormal}(\mathrm{encoder}(x))

A topic is a distribution over words; a document has shares of topics. The number of words n of a document is given.

Run: ``python -m examples.topics``. Where the variable ``PYRO_VAE_DATA`` names a folder with 20 Newsgroups, it reads
this, else documents that it draws.

Reference: Srivastava and Sutton, "Autoencoding variational inference for topic models", 2017, section 3.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import Program, Training, datasets, fit
from pyro_vae.errors import InputError
from pyro_vae.evaluation import elbo
from pyro_vae.inference import AEVB

TOPICS, HIDDEN = 20, 200


def documents(n: int, words: int = 60, seed: int = 0) -> Tensor:
    """Returns counts of words in documents with one or two of ten topics, each with words of its own.

    Arguments:
        n: Number of documents.
        words: Number of words.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    topics = torch.full((10, words), 0.1)
    for i, own in enumerate(torch.arange(words).chunk(10)):
        topics[i, own] = 5.0
    shares = torch.rand(n, 10, generator=generator).pow(8)
    rates = 50 * (shares / shares.sum(-1, keepdim=True)) @ (topics / topics.sum(-1, keepdim=True))
    return torch.poisson(rates, generator=generator)


def newsgroups() -> tuple[Tensor, Tensor, list[str]] | None:
    """Returns training and test documents of 20 Newsgroups and their words; None where they are not there."""
    try:
        data = datasets.load("20newsgroups", support=dist.Poisson.support)
    except InputError:
        return None
    return data.train, data.test, list(data.units.columns)


def program(example: Tensor) -> Program:
    """Returns model and guide as a `Program`.

    Arguments:
        example: Counts, shape ``(B, words)``.
    """
    words = example.shape[-1]
    encoder = nn.Sequential(nn.Linear(words, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * TOPICS))

    def model(x: Tensor) -> None:
        beta = pyro.param("beta", lambda: torch.randn(TOPICS, words)).softmax(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(TOPICS), 1.0).to_event(1))
            shares = z.softmax(-1)
            pyro.sample("x", dist.Multinomial(probs=shares @ beta, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x.log1p()).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(scale) + 1e-3).to_event(1))

    return Program(model, guide, example)


def top_words(trained: Program, words: list[str], n: int = 8) -> list[list[str]]:
    """Returns the n most probable words of each topic."""
    best = trained.model_parameters["beta"].topk(n, dim=-1).indices
    return [[words[i] for i in row] for row in best.tolist()]


def main(epochs: int = 50, drawn: bool = False) -> float:
    """Trains on documents, and prints the topics and the perplexity of test documents beside that of single words.

    Arguments:
        epochs: Number of epochs.
        drawn: Whether to draw documents, also where 20 Newsgroups are there.

    Returns:
        By how many nats a word of a test document is more probable than under the words' frequencies, at least.
    """
    found = None if drawn else newsgroups()
    names = [f"word{i}" for i in range(60)]
    train, test, words = (documents(2000), documents(200, seed=1), names) if found is None else found
    torch.manual_seed(0)
    trained = program(train[:10])
    fit(trained, train, AEVB(), Training(optimizer=lambda p: torch.optim.Adam(p, 2e-3), epochs=epochs), seed=0)
    test = test[test.sum(-1) > 0]
    count = test.sum()
    frequency = (train.sum(0) + 1) / (train.sum(0) + 1).sum()
    single = float(dist.Multinomial(probs=frequency, validate_args=False).log_prob(test).sum() / count)
    bound = elbo(trained, test, num_samples=20).value * len(test) / float(count)
    for row in top_words(trained, words):
        print(" ".join(row))
    gain = bound - single
    print(f"a word of a test document is {math.exp(gain):.2f} times as probable as by its frequency, at least")
    return gain


if __name__ == "__main__":
    main()
