"""Perplexity of document completion: for topic models by importance sampling, without topics in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pyro_vae import VAE
from pyro_vae.evaluation.estimate import LogMean
from pyro_vae.evaluation.pareto import pareto_k
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated

CHUNK = 4000  # rows of samples x documents that are decoded at once


def log_coefficient(x: Tensor) -> Tensor:
    """Returns the log of the number of different orders of a document's words, shape ``(N,)``."""
    return torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)


@torch.no_grad()
def completion(vae: VAE, first: Tensor, second: Tensor, samples: int, seed: int) -> dict[str, Tensor]:
    """Returns log p(h2|h1) of each document by three estimators, in nats, and diagnostics of the first two.

    Arguments:
        vae: Topic model in double precision, since topic proportions may be below 1e-38.
        first: First halves h1, shape ``(N, V)``.
        second: Second halves h2, shape ``(N, V)``.
        samples: Number of draws from q(theta|h1) for each document.
        seed: Seed of the draws.
    """
    parts: list[dict[str, Tensor]] = []
    size = max(1, CHUNK // samples)
    with evaluating(vae), isolated(seed, "completion"):
        p = vae.prior_given(None)
        for start in range(0, len(first), size):
            h1, h2 = (half[start : start + size].to(vae.device, vae.dtype) for half in (first, second))
            q = vae.encode(h1)
            z = q.sample((samples,))
            log_words = vae.decode(z).logits
            log_h1, log_h2 = (torch.einsum("sdv,dv->sd", log_words, half) for half in (h1, h2))
            log_w = log_h1 + p.log_prob(z) - q.log_prob(z)
            weighted = (log_w + log_h2).logsumexp(0) - log_w.logsumexp(0)
            share = log_w.softmax(0)
            predictive = LogMean.of(log_h2)
            parts.append(
                {
                    "predictive": predictive.value,
                    "predictive_error": predictive.error,
                    "weighted": weighted,
                    "weighted_error": (share * ((log_h2 - weighted).exp() - 1)).square().sum(0).sqrt(),
                    "plug-in": (vae.decode(q.mean).logits * h2).sum(-1),
                    "pareto_k": pareto_k(log_w),
                    "effective_sample_size": share.square().sum(0).reciprocal(),
                }
            )
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def perplexity(log_p: Tensor, lengths: Tensor, error: Tensor | None = None) -> dict[str, float]:
    """Returns the perplexity per word, its Monte Carlo error, and its standard error over documents.

    Arguments:
        log_p: Log probability of each document, in nats, shape ``(N,)``.
        lengths: Number of words of each document.
        error: Monte Carlo standard error of each log probability.
    """
    total, n = lengths.double().sum(), len(log_p)
    rate = -log_p.double().sum() / total
    spread = (log_p.double() + rate * lengths).square().sum() * n / max(n - 1, 1)
    value = float(rate.exp())
    known = {"value": value, "sampling_error": value * float(spread.sqrt() / total)}
    return known if error is None else {**known, "standard_error": value * float(error.square().sum().sqrt() / total)}


def document_perplexity(log_p: Tensor, lengths: Tensor) -> dict[str, float]:
    """Returns exp of the mean over documents of the loss per word, and its standard error over documents."""
    rates = -log_p.double() / lengths
    value = float(rates.mean().exp())
    return {"value": value, "sampling_error": value * float(rates.std() / len(rates) ** 0.5)}


def without_topics(train: Tensor, first: Tensor, second: Tensor, p: Tensor) -> dict[str, Any]:
    """Returns the perplexities of the models without topics, which have closed forms.

    Arguments:
        train: Counts of the training documents, shape ``(N, V)``.
        first: First halves h1 of the test documents.
        second: Second halves h2 of the test documents.
        p: Relative frequencies of the words in the training documents, shape ``(V,)``, in double precision.
    """
    first, second = first.double(), second.double()
    lengths = second.sum(-1)

    def urn(x: Tensor, c: float) -> Tensor:  # log probability of the words in a given order
        pairs = torch.lgamma(x + c * p) - torch.lgamma(c * p)
        return pairs.sum(-1) - torch.lgamma(x.sum(-1) + c) + math.lgamma(c)

    sample = train[:: max(1, len(train) // 2000)].double()
    best = minimize_scalar(lambda log_c: -float(urn(sample, math.exp(log_c)).sum()), bounds=(0, 12), method="bounded")
    c = math.exp(best.x)
    unigram, bursts = second @ p.log(), urn(first + second, c) - urn(first, c)
    given_first = (second * ((first + c * p) / (first.sum(-1, keepdim=True) + c)).log()).sum(-1)
    return {
        "unigram": {"predictive": perplexity(unigram, lengths), "documents": document_perplexity(unigram, lengths)},
        "dirichlet-multinomial": {
            "predictive": perplexity(bursts, lengths),
            "plug-in": perplexity(given_first, lengths),
            "documents": document_perplexity(given_first, lengths),
            "concentration": c,
        },
    }
