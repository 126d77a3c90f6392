"""Words, coherence and diversity of the topics of a log-linear topic model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae import VAE
from pyro_vae.runtime.modes import evaluating

WORDS, WORDS_OF_DIVERSITY = 10, 25  # words of each topic that are shown and used for NPMI; words used for diversity


@torch.no_grad()
def usage(vae: VAE, x: Tensor) -> Tensor:
    """Returns the mean topic proportions of the documents at the mean of q, shape ``(TOPICS,)``."""
    with evaluating(vae):
        return vae.likelihood.given(vae.encode(x.to(vae.device, vae.dtype)).mean).mean(0)


def coherence(top: Tensor, x: Tensor) -> Tensor:
    """Returns each topic's mean NPMI over pairs of its top words, from their common documents.

    Reference: Lau, Newman and Baldwin, "Machine reading tea leaves", 2014.
    """
    present = (x > 0).double()
    n, result = len(x), []
    for words in top:
        columns = present[:, words]
        joint, alone = (columns.T @ columns) / n, columns.mean(0)
        pmi = (joint.clamp_min(1e-12) / torch.outer(alone, alone).clamp_min(1e-24)).log()
        npmi = torch.where(joint > 0, pmi / -joint.clamp(1e-12, 1 - 1e-12).log(), torch.tensor(-1.0).double())
        upper = torch.triu_indices(len(words), len(words), 1)
        result.append(npmi[upper[0], upper[1]].mean())
    return torch.stack(result)


@torch.no_grad()
def described(vae: VAE, x: Tensor, vocabulary: Sequence[str], weight: float) -> dict[str, Any]:
    """Returns the topics, the most used first, with their words, coherence and diversity.

    Arguments:
        vae: VAE whose likelihood has the logits W theta + b.
        x: Test documents, for usage and coherence.
        vocabulary: Words of the vocabulary.
        weight: Weight of b in the relevance W_k + weight x b of a word to a topic, up to a constant.
    """
    head = vae.likelihood.head
    relevance = (head.weight.T + weight * head.bias).cpu()
    share = usage(vae, x).double().cpu()
    share = share / share.sum()
    top = relevance.topk(WORDS, -1).indices
    scores = coherence(top, x)
    wide = relevance.topk(WORDS_OF_DIVERSITY, -1).indices
    listed = [
        {
            "share": round(float(share[k]), 4),
            "npmi": round(float(scores[k]), 3),
            "words": " ".join(vocabulary[int(word)] for word in top[k]),
        }
        for k in share.argsort(descending=True).tolist()
    ]
    return {
        "coherence_npmi": float(scores.mean()),
        "diversity": len(wide.unique()) / wide.numel(),
        "topics_above_one_percent": int((share > 0.01).sum()),
        "effective_number": float(torch.special.entr(share).sum().exp()),
        "topics": listed,
    }
