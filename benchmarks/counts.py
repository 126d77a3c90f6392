r"""Topic models of 20 Newsgroups: a Multinomial likelihood under a Dirichlet and under a logistic-normal prior.

    python -m benchmarks.counts

Words of a document are drawn from p(w|theta) = softmax(W theta + b), log-linear in the topic proportions theta
(ProdLDA; Srivastava and Sutton, "Autoencoding variational inference for topic models", 2017), with b at the words'
log frequencies at the start. The priors, both learned:

* ``dirichlet``: theta ~ Dirichlet(a), with a Dirichlet posterior and its KL in closed form;
* ``logistic-normal``: theta = softmax(z), z ~ N(m, s^2) in as many dimensions as topics, with a Normal posterior.

Perplexity is that of document completion: of the second half h2 of a test document given the first, h1.

.. math:: \exp\Big(-\frac{\sum_d \log p(h_{2,d} | h_{1,d})}{\sum_d n_{2,d}}\Big), \qquad
    p(h_2 | h_1) = \frac{E_{p(\theta)} p(h_1 | \theta) p(h_2 | \theta)}{E_{p(\theta)} p(h_1 | \theta)}

by self-normalised importance sampling of theta from q(theta|h1): the model's own perplexity, whatever its q. Beside it:
``posterior``, with q(theta|h1) in place of p(theta|h1); ``plug-in``, at the mean of q (of z for the logistic-normal);
and ``documents``, the plug-in with each document weighed alike, as Dieng, Ruiz and Blei, "Topic modeling in embedding
spaces", 2020, section 5, have it. h1 and h2 are sequences of words here: perplexities leave out the multinomial
coefficient, which log p(x|n) contains.

What has to be beaten, in closed form: the unigram model, and the Dirichlet-multinomial whose base measure is the
unigram model, p(w|h1) = (n_w + c p_w) / (n + c), which knows no topics, only that a word comes again; c is the one of
the greatest likelihood of the training documents.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pyro.distributions import constraints
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from benchmarks.runs import Runs, add_arguments, over_seeds
from pyro_vae import VAE, Conditional, Fixed, Learned, Network, fit
from pyro_vae.datasets import load, newsgroups_halves
from pyro_vae.evaluation import log_marginal
from pyro_vae.evaluation.pareto import pareto_k
from pyro_vae.inference import BetaVAE
from pyro_vae.modes import evaluating, isolated
from pyro_vae.networks import Preprocess, mlp

TOPICS, HIDDEN = 50, 300
CONCENTRATION = 0.1  # of the Dirichlet prior at the start
RATE, MOMENTUM, BATCH, EPOCHS, WARMUP, CLIP = 1e-2, 0.9, 200, 30, 0.2, 20.0  # warm-up: share of the steps
PRIORS = ("dirichlet", "logistic-normal")
KINDS = ("predictive", "posterior", "plug-in", "documents")
WORDS, WORDS_OF_DIVERSITY = 10, 25  # of each topic: shown and judged by NPMI; judged by diversity
EVALUATION_SEED = 777
CHUNK = 4000  # rows of samples x documents that are decoded at once


@dataclass(frozen=True)
class Documents:
    """20 Newsgroups as preprocessed for the embedded topic model: counts, float32.

    Attributes:
        train: Shape ``(11214, 3072)``.
        test: Shape ``(7531, 3072)``.
        first: First halves of the test documents.
        second: Second halves.
        words: The vocabulary.
        record: Where they come from.
    """

    train: Tensor
    test: Tensor
    first: Tensor
    second: Tensor
    words: tuple[str, ...]
    record: dict[str, Any]

    @classmethod
    def load(cls, quick: bool) -> Documents:
        """Returns all of them, or a few."""
        data = load("20newsgroups", support=constraints.nonnegative_integer)
        if data.test is None or data.columns is None:
            raise RuntimeError("20newsgroups has test documents and words")
        first, second = newsgroups_halves()
        train, test = (1000, 40) if quick else (len(data.train), len(data.test))
        parts = data.train[:train], data.test[:test], first[:test], second[:test]
        return cls(*parts, tuple(data.columns), data.record())

    @property
    def frequencies(self) -> Tensor:
        """Of the words in the training documents; none is 0 in all of them."""
        counts = self.train.double().sum(0) + (1e-3 if len(self.train) <= 1000 else 0.0)
        return counts / counts.sum()


def make_vae(prior: str, seed: int, documents: Documents) -> VAE:
    """Returns the topic model of a prior; networks of one seed start from the same weights under both."""
    cells, longest = len(documents.words), int(documents.train.sum(-1).max())
    longest = max(longest, int(documents.test.sum(-1).max()))
    with isolated(seed, "networks"):
        proportions = nn.Softmax(dim=-1) if prior == "logistic-normal" else nn.Identity()
        likelihood = Conditional(
            dist.Multinomial,
            (cells,),
            given=proportions,
            features=TOPICS,
            total_count=Fixed(longest),
            logits=Network(),
        )
        encoder = Preprocess("log1p", mlp(cells, HIDDEN, activation=nn.Softplus))
        positive = Network(transform=constraints.softplus_positive)
        if prior == "dirichlet":
            start = Learned(torch.full((TOPICS,), CONCENTRATION))
            p = Conditional(dist.Dirichlet, (TOPICS,), concentration=start)
            q = Conditional(dist.Dirichlet, (TOPICS,), given=encoder, concentration=positive)
        else:
            shape = (TOPICS,)
            p = Conditional(dist.Normal, shape, loc=Learned(0.0, shape=shape), scale=Learned(1.0, shape=shape))
            q = Conditional(dist.Normal, shape, given=encoder, scale=positive)
    if likelihood.head is None:
        raise RuntimeError("the likelihood has a linear head")
    with torch.no_grad():
        likelihood.head.bias.copy_(documents.frequencies.log())
    return VAE(p, likelihood, q)


# ---------------------------------------------------------------------- perplexity


def log_coefficient(x: Tensor) -> Tensor:
    """Returns the log of the number of orders of a document's words, shape ``(N,)``."""
    return torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)


@torch.no_grad()
def completion(vae: VAE, first: Tensor, second: Tensor, samples: int) -> dict[str, Tensor]:
    """Returns log p(h2|h1) of each document by three ways, in nats, and what tells how good the first is.

    Arguments:
        vae: The topic model, in double precision: topic proportions below 1e-38 have a density too.
        first: h1, shape ``(N, V)``.
        second: h2.
        samples: Draws from q(theta|h1) for each document.
    """
    parts: list[dict[str, Tensor]] = []
    size = max(1, CHUNK // samples)
    with evaluating(vae), isolated(EVALUATION_SEED, "completion"):
        p = vae.prior_given(None)
        for start in range(0, len(first), size):
            h1, h2 = (half[start : start + size].to(vae.device, vae.dtype) for half in (first, second))
            q = vae.encode(h1)
            z = q.sample((samples,))
            log_words = vae.decode(z).logits
            log_h1, log_h2 = (torch.einsum("sdv,dv->sd", log_words, half) for half in (h1, h2))
            log_w = log_h1 + p.log_prob(z) - q.log_prob(z)
            predictive = (log_w + log_h2).logsumexp(0) - log_w.logsumexp(0)
            share = log_w.softmax(0)
            parts.append(
                {
                    "predictive": predictive,
                    "error": (share * ((log_h2 - predictive).exp() - 1)).square().sum(0).sqrt(),
                    "posterior": log_h2.logsumexp(0) - math.log(samples),
                    "plug-in": (vae.decode(q.mean).logits * h2).sum(-1),
                    "pareto_k": pareto_k(log_w),
                    "effective_sample_size": share.square().sum(0).reciprocal(),
                }
            )
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def perplexity(log_p: Tensor, lengths: Tensor, error: Tensor | None = None) -> dict[str, float]:
    """Returns the perplexity per word, its Monte Carlo error, and its standard error over documents.

    Arguments:
        log_p: Of each document, in nats, shape ``(N,)``.
        lengths: Words of each.
        error: Monte Carlo standard error of each.
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


def baselines(documents: Documents) -> dict[str, Any]:
    """Returns the perplexities of the models without topics, which have closed forms."""
    p, first, second = documents.frequencies, documents.first.double(), documents.second.double()
    lengths = second.sum(-1)

    def urn(x: Tensor, c: float) -> Tensor:  # log probability of the words in their order
        pairs = torch.lgamma(x + c * p) - torch.lgamma(c * p)
        return pairs.sum(-1) - torch.lgamma(x.sum(-1) + c) + math.lgamma(c)

    sample = documents.train[:: max(1, len(documents.train) // 2000)].double()
    best = minimize_scalar(lambda log_c: -float(urn(sample, math.exp(log_c)).sum()), bounds=(0, 12), method="bounded")
    c = math.exp(best.x)
    unigram, bursts = second @ p.log(), urn(documents.first + second, c) - urn(first, c)
    return {
        "unigram": {"predictive": perplexity(unigram, lengths), "documents": document_perplexity(unigram, lengths)},
        "dirichlet-multinomial": {
            "predictive": perplexity(bursts, lengths),
            "documents": document_perplexity(bursts, lengths),
            "concentration": c,
        },
    }


# ---------------------------------------------------------------------- topics


@torch.no_grad()
def topic_words(vae: VAE) -> Tensor:
    """Returns log p(w|theta) where theta is one topic alone, shape ``(TOPICS, V)``."""
    head = vae.likelihood.head
    return (head.weight.T + head.bias).log_softmax(-1)


@torch.no_grad()
def usage(vae: VAE, x: Tensor) -> Tensor:
    """Returns the mean topic proportions of the documents at the mean of q, shape ``(TOPICS,)``."""
    with evaluating(vae):
        return vae.likelihood.given(vae.encode(x.to(vae.device, vae.dtype)).mean).mean(0)


def coherence(top: Tensor, x: Tensor) -> Tensor:
    """Returns each topic's mean NPMI over pairs of its top words, by the documents that both are in.

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


def describe_topics(vae: VAE, documents: Documents) -> dict[str, Any]:
    """Returns the topics, the most used first, with their words, coherence and diversity."""
    log_p = topic_words(vae).cpu()
    share = usage(vae, documents.test).double().cpu()
    share = share / share.sum()
    top = log_p.topk(WORDS, -1).indices
    scores = coherence(top, documents.test)
    wide = log_p.topk(WORDS_OF_DIVERSITY, -1).indices
    listed = [
        {
            "share": round(float(share[k]), 4),
            "npmi": round(float(scores[k]), 3),
            "words": " ".join(documents.words[int(word)] for word in top[k]),
        }
        for k in share.argsort(descending=True).tolist()
    ]
    return {
        "coherence_npmi": float(scores.mean()),
        "diversity": len(wide.unique()) / wide.numel(),
        "effective_number": float(torch.special.entr(share).sum().exp()),
        "topics": listed,
    }


# ---------------------------------------------------------------------- runs


def settings_of(given: argparse.Namespace, documents: Documents) -> dict[str, Any]:
    """Returns all that decides the numbers of a run beside its prior and seed."""
    steps = given.epochs * -(-len(documents.train) // BATCH)
    return {
        "data": documents.record,
        "training_documents": len(documents.train),
        "test_documents": len(documents.test),
        "topics": TOPICS,
        "encoder": f"log(1 + counts), {HIDDEN} softplus units",
        "optimizer": f"Adam, {RATE:g}, beta1 {MOMENTUM:g}, gradient norm at most {CLIP:g}",
        "batch_size": BATCH,
        "epochs": given.epochs,
        "steps": steps,
        "warmup_steps": round(WARMUP * steps),
        "completion_samples": given.samples,
        "log_p_documents": given.data,
        "log_p_samples": given.log_p_samples,
        "quick": given.quick,
    }


def run(prior: str, seed: int, documents: Documents, settings: dict[str, Any], device: str) -> dict[str, Any]:
    """Trains and evaluates one prior with one seed."""
    vae = make_vae(prior, seed, documents).to(device)
    start = time.perf_counter()
    history = fit(
        vae,
        documents.train,
        BetaVAE(beta=1.0, warmup=settings["warmup_steps"]),
        optimizer=lambda p: torch.optim.Adam(p, lr=RATE, betas=(MOMENTUM, 0.999)),
        epochs=settings["epochs"],
        batch_size=BATCH,
        seed=seed,
        clip_norm=CLIP,
        progress=f"{prior}, seed {seed}",
    )
    trained = time.perf_counter()
    vae = vae.double()
    halves = completion(vae, documents.first, documents.second, settings["completion_samples"])
    lengths = documents.second.sum(-1).double()
    result = {
        "prior": prior,
        "seed": seed,
        "steps": history.steps,
        "training_elbo_of_last_steps": float(history.bound[-50:].mean()),
        "milliseconds_per_step": round(1000 * history.seconds[-1] / history.steps, 2),
        "training_seconds": round(trained - start, 1),
        "perplexity": {
            "predictive": perplexity(halves["predictive"], lengths, halves["error"]),
            "posterior": perplexity(halves["posterior"], lengths),
            "plug-in": perplexity(halves["plug-in"], lengths),
            "documents": document_perplexity(halves["plug-in"], lengths),
        },
        "share_of_pareto_k_above_0.7": float((halves["pareto_k"] > 0.7).double().mean()),
        "effective_sample_size_median": float(halves["effective_sample_size"].median()),
        "whole_documents": whole_documents(vae, documents, settings),
        **describe_topics(vae, documents),
    }
    result["evaluation_seconds"] = round(time.perf_counter() - trained, 1)
    report(result)
    return result


def whole_documents(vae: VAE, documents: Documents, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns log p(x|n) of whole test documents, with the coefficient, and the perplexity without it."""
    x = documents.test[: settings["log_p_documents"]].double()
    log_p = log_marginal(vae, x, settings["log_p_samples"], seed=EVALUATION_SEED, progress=True)
    coefficient = log_coefficient(x)
    error = log_p.diagnostics["pointwise_error"]
    return {
        "documents": len(x),
        "log_p": log_p.value,
        "standard_error": log_p.standard_error,
        "sampling_error": log_p.sampling_error,
        "log_coefficient": float(coefficient.mean()),
        "perplexity": perplexity(log_p.pointwise - coefficient, x.sum(-1), error),
        "share_of_pareto_k_above_0.7": float((log_p.diagnostics["pareto_k"] > 0.7).double().mean()),
    }


def report(result: dict[str, Any]) -> None:
    values = ", ".join(f"{kind} {result['perplexity'][kind]['value']:.0f}" for kind in KINDS)
    print(f"  perplexity: {values}; NPMI {result['coherence_npmi']:.3f}, diversity {result['diversity']:.2f}")
    for topic in result["topics"][:12]:
        print(f"  {100 * topic['share']:5.1f} %  {topic['words']}", flush=True)


# ---------------------------------------------------------------------- all runs


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Returns means over seeds for each prior, and the paired differences between the two."""
    by_prior = {name: {run["seed"]: run for run in runs.values() if run["prior"] == name} for name in PRIORS}
    summary: dict[str, Any] = {}
    for name, mine in by_prior.items():
        if mine:
            summary[name] = {
                kind: over_seeds(run["perplexity"][kind]["value"] for run in mine.values()) for kind in KINDS
            }
            for what in ("coherence_npmi", "diversity", "effective_number", "milliseconds_per_step"):
                summary[name][what] = over_seeds(run[what] for run in mine.values())
    dirichlet, normal = (by_prior[name] for name in PRIORS)
    both = [seed for seed in dirichlet if seed in normal]
    if both:
        summary["dirichlet minus logistic-normal"] = {
            kind: over_seeds(
                dirichlet[seed]["perplexity"][kind]["value"] - normal[seed]["perplexity"][kind]["value"]
                for seed in both
            )
            for kind in KINDS
        }
    return summary


def show(summary: dict[str, Any], without: dict[str, Any], console: Console) -> None:
    table = Table(title="perplexity per word of second halves, ± 95 % over seeds")
    for column in ("model", *KINDS, "NPMI", "diversity", "topics in use"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in without.items():
        values = [f"{row['predictive']['value']:.0f}", "", "", f"{row['documents']['value']:.0f}"]
        table.add_row(name, *values, "", "", "")
    for name, row in summary.items():
        quality = [
            cell(row.get("coherence_npmi"), 3),
            cell(row.get("diversity"), 2),
            cell(row.get("effective_number"), 1),
        ]
        table.add_row(name, *(cell(row[kind], 0) for kind in KINDS), *quality)
    console.print(table)


def cell(value: dict[str, Any] | None, digits: int) -> str:
    if value is None:
        return ""
    width = value["half_width"]
    return f"{value['mean']:.{digits}f}" + (f" ± {width:.{digits}f}" if width == width else "")


def draw(runs: dict[str, Any], path: Path) -> None:
    """Draws the most used topics of the first seed of each prior, with their words."""
    shown = {name: next((run for run in runs.values() if run["prior"] == name), None) for name in PRIORS}
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, run) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        axes.set_axis_off()
        if run is None:
            continue
        value = run["perplexity"]["predictive"]["value"]
        axes.set_title(f"{name}, seed {run['seed']}: perplexity {value:.0f}", fontsize=10, loc="left")
        topics = run["topics"][:20]
        widest = topics[0]["share"]
        for i, topic in enumerate(topics):
            axes.barh(-i, 0.1 * topic["share"] / widest, left=-0.1, height=0.7, color="#0072B2")
            axes.text(-0.105, -i, f"{100 * topic['share']:.1f} %", ha="right", va="center", fontsize=7)
            axes.text(0.01, -i, topic["words"], va="center", fontsize=7)
        axes.set(xlim=(-0.17, 1), ylim=(-len(topics) + 0.4, 0.6))
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--samples", type=int, default=100, help="draws for each document completed")
    parser.add_argument("--data", type=int, default=200, help="test documents that log p(x|n) is estimated on")
    given = parser.parse_args()
    given.log_p_samples = 500
    if given.quick:
        given.epochs, given.samples, given.data, given.log_p_samples = 2, 10, 10, 20
    return given


def main() -> None:
    """Does the runs that are missing, prints the table, writes the result and draws it."""
    given = parse()
    torch.set_num_threads(given.threads)
    documents = Documents.load(given.quick)
    settings = settings_of(given, documents)
    runs, without = Runs("counts", settings, given), baselines(documents)

    def one(key: str) -> dict[str, Any]:
        prior, _, seed = key.rpartition("-")
        return run(prior, int(seed), documents, settings, given.device)

    keys = [f"{name}-{seed}" for seed in range(given.seeds) for name in PRIORS]
    runs.complete(keys, one, lambda found: {"without_topics": without, "summary": summarise(found)})
    console = Console(width=150)
    show(summarise(runs.by_key), without, console)
    draw(runs.by_key, runs.path.with_suffix(".png"))
    console.print(runs.path)


if __name__ == "__main__":
    main()
