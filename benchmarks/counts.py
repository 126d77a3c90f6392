r"""Topic models of 20 Newsgroups: a Multinomial likelihood with a Dirichlet and with a logistic-normal prior.

    python -m benchmarks.counts

Words of a document are drawn from p(w|theta) = softmax(W theta + b), log-linear in the topic proportions theta
(ProdLDA; Srivastava and Sutton, "Autoencoding variational inference for topic models", 2017). The priors:

* ``dirichlet``: theta ~ Dirichlet(0.1), with a Dirichlet posterior;
* ``logistic-normal``: theta = softmax(z), z ~ N(0, s^2 I) with one dimension for each topic, with a Normal posterior.
  As in the paper, s^2 = (1 - 1/K) / 0.1 is from the Laplace approximation of the Dirichlet in these dimensions.

Both KL divergences are in closed form. If topics are similar at the start, most of them stay so (component collapse);
the paper's remedy is batch normalisation. Here, the mapping of a document must not depend on other documents, so the
remedies are a high learning rate, a warm-up of the KL, and the initial standard deviation of W. Of 0.1 and 1, the one
with the better ELBO was chosen: 1 for the Dirichlet and 0.1 for the logistic-normal. Pilot runs of 12 epochs chose
these settings on 500 of the test documents, so results of both models are slightly optimistic. b starts at the words'
log frequencies. Topics are shown by the words of greatest relevance, W_k + 0.3 b up to a constant (Sievert and Shirley,
"LDAvis", 2014), since the words of a newsgroup's headers are likely in every topic.

Perplexity is that of document completion: of the second half h2 of a test document given the first, h1.

.. math:: \exp\Big(-\frac{\sum_d \log p(h_{2,d} | h_{1,d})}{\sum_d n_{2,d}}\Big), \qquad
    p(h_2 | h_1) = E_{q(\theta | h_1)} p(h_2 | \theta)

``predictive`` estimates this by draws from q; its logarithm is low in expectation, so the perplexity is too high.
``weighted`` replaces q by the exact posterior p(theta|h1), by self-normalised importance sampling; it is reliable only
if its Pareto k-hat is low. ``plug-in`` uses theta at the mean of q (of z for the logistic-normal). ``documents`` is the
plug-in with equal weights of all documents, as in Dieng, Ruiz and Blei, "Topic modeling in embedding spaces", 2020,
section 5. Here h1 and h2 are sequences of words: perplexities leave out the multinomial coefficient, which log p(x|n)
contains.

The baselines have closed forms: the unigram model, and the Dirichlet-multinomial whose base measure is the unigram
model, p(w|h1) = (n_w + c p_w) / (n + c). The latter has no topics; it only models that words repeat. Its ``predictive``
also learns from the words of h2 one by one, which a multinomial with 50 topics cannot do; its ``plug-in`` does not. c
maximises the likelihood of the training documents.
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
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, ComposeTransform, SoftplusTransform

from benchmarks.perplexity import completion, document_perplexity, log_coefficient, perplexity, without_topics
from benchmarks.runs import Runs, add_arguments, over_seeds
from benchmarks.topics import described
from pyro_vae import VAE, Conditional, Fixed, Network, Training, fit
from pyro_vae.datasets import load, newsgroups_halves
from pyro_vae.evaluation import log_marginal
from pyro_vae.inference import BetaVAE
from pyro_vae.networks import Preprocess, mlp
from pyro_vae.runtime.random_streams import isolated

TOPICS, HIDDEN = 50, 300
CONCENTRATION = 0.1
SMALLEST = 0.01  # least concentration of a posterior
WEIGHT_STD = {"dirichlet": 1.0, "logistic-normal": 0.1}  # initial standard deviation of W
RELEVANCE = 0.3  # weight of b, a word's overall log probability, in its relevance
RATE, BATCH, EPOCHS, WARMUP, CLIP = 1e-2, 200, 20, 0.3, 20.0  # the warm-up is a share of the steps
PRIORS = ("dirichlet", "logistic-normal")
KINDS = ("predictive", "weighted", "plug-in", "documents")
EVALUATION_SEED = 777


@dataclass(frozen=True)
class Documents:
    """20 Newsgroups, preprocessed as for the embedded topic model: counts, float32.

    Attributes:
        train: Training documents, shape ``(11214, 3072)``.
        test: Test documents, a sample of 7,531.
        first: First halves of the test documents.
        second: Second halves of the test documents.
        words: Vocabulary.
        record: Record of the data set.
    """

    train: Tensor
    test: Tensor
    first: Tensor
    second: Tensor
    words: tuple[str, ...]
    record: dict[str, Any]

    @classmethod
    def load(cls, train: int | None, test: int) -> Documents:
        """Returns the first ``train`` training documents (None: all) and ``test`` random test documents."""
        data = load("20newsgroups", support=constraints.nonnegative_integer)
        if data.test is None or data.columns is None:
            raise RuntimeError("20newsgroups has test documents and words")
        first, second = newsgroups_halves()
        with isolated(EVALUATION_SEED, "test documents"):
            rows = torch.randperm(len(data.test))[:test].sort().values
        parts = data.test[rows], first[rows], second[rows]
        record = {name: value for name, value in data.record().items() if name != "columns"}
        return cls(data.train[:train], *parts, tuple(data.columns), record)

    @property
    def frequencies(self) -> Tensor:
        """Relative frequencies of the words in the training documents; no frequency is 0."""
        counts = self.train.double().sum(0).clamp_min(1e-3)
        return counts / counts.sum()


def make_vae(prior: str, seed: int, documents: Documents) -> VAE:
    """Returns the topic model of a prior; one seed gives the same initial networks with both priors."""
    cells, shape = len(documents.words), (TOPICS,)
    longest = int(torch.cat([documents.train, documents.test]).sum(-1).max())
    proportions = nn.Identity() if prior == "dirichlet" else nn.Softmax(dim=-1)
    with isolated(seed, "networks"):
        likelihood = Conditional(
            dist.Multinomial, (cells,), given=proportions, features=TOPICS, total_count=Fixed(longest), logits=Network()
        )
        encoder = Preprocess("log1p", mlp(cells, HIDDEN, activation=nn.Softplus))
        if prior == "dirichlet":
            positive = ComposeTransform([SoftplusTransform(), AffineTransform(SMALLEST, 1.0)])
            p = Conditional(dist.Dirichlet, shape, concentration=Fixed(torch.full(shape, CONCENTRATION)))
            q = Conditional(dist.Dirichlet, shape, given=encoder, concentration=Network(transform=positive))
        else:
            scale = math.sqrt((1 - 1 / TOPICS) / CONCENTRATION)
            p = Conditional(dist.Normal, shape, loc=Fixed(0.0), scale=Fixed(scale))
            q = Conditional(dist.Normal, shape, given=encoder, scale=Network(transform=constraints.softplus_positive))
        likelihood.head.weight.data.normal_(0.0, WEIGHT_STD[prior])
    likelihood.head.bias.data.copy_(documents.frequencies.log())
    return VAE(p, likelihood, q)


def settings_of(given: argparse.Namespace, documents: Documents) -> dict[str, Any]:
    """Returns all settings that determine the numbers of a run, except its prior and seed."""
    steps = given.epochs * -(-len(documents.train) // BATCH)
    return {
        "data": documents.record,
        "training_documents": len(documents.train),
        "test_documents": len(documents.test),
        "topics": TOPICS,
        "encoder": f"log(1 + counts), {HIDDEN} softplus units",
        "optimizer": f"Adam, {RATE:g}, gradient norm at most {CLIP:g}",
        "dirichlet_concentration": CONCENTRATION,
        "weight_std": WEIGHT_STD,
        "relevance": RELEVANCE,
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
        Training(
            optimizer=lambda p: torch.optim.Adam(p, lr=RATE),
            epochs=settings["epochs"],
            batch_size=BATCH,
            start_at_data=False,  # the initial values are those that the module states
            clip_norm=CLIP,
        ),
        seed=seed,
        progress=f"{prior}, seed {seed}",
    )
    trained = time.perf_counter()
    vae = vae.double()
    halves = completion(vae, documents.first, documents.second, settings["completion_samples"], EVALUATION_SEED)
    lengths = documents.second.sum(-1).double()
    result = {
        "prior": prior,
        "seed": seed,
        "steps": history.steps,
        "training_elbo_of_last_steps": float(history.bound[-50:].mean()),
        "milliseconds_per_step": round(1000 * history.seconds[-1] / history.steps, 2),
        "training_seconds": round(trained - start, 1),
        "perplexity": {
            "predictive": perplexity(halves["predictive"], lengths, halves["predictive_error"]),
            "weighted": perplexity(halves["weighted"], lengths, halves["weighted_error"]),
            "plug-in": perplexity(halves["plug-in"], lengths),
            "documents": document_perplexity(halves["plug-in"], lengths),
        },
        "share_of_pareto_k_above_0.7": float((halves["pareto_k"] > 0.7).double().mean()),
        "effective_sample_size_median": float(halves["effective_sample_size"].median()),
        "whole_documents": whole_documents(vae, documents, settings),
        **described(vae, documents.test, documents.words, RELEVANCE),
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


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Returns means over seeds for each prior, and the paired differences between the two."""
    by_prior = {name: {run["seed"]: run for run in runs.values() if run["prior"] == name} for name in PRIORS}
    summary: dict[str, Any] = {}
    for name, mine in by_prior.items():
        if mine:
            summary[name] = {
                kind: over_seeds(run["perplexity"][kind]["value"] for run in mine.values()) for kind in KINDS
            }
            for what in ("coherence_npmi", "diversity", "topics_above_one_percent"):
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
    for column in ("model", *KINDS, "NPMI", "diversity", "topics > 1 %"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in without.items():
        values = [f"{row[kind]['value']:.0f}" if kind in row else "" for kind in KINDS]
        table.add_row(name, *values, "", "", "")
    for name, row in summary.items():
        quality = [
            cell(row.get("coherence_npmi"), 3),
            cell(row.get("diversity"), 2),
            cell(row.get("topics_above_one_percent"), 0),
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
    parser.add_argument("--documents", type=int, default=2000, help="test documents, of 7,531")
    parser.add_argument("--data", type=int, default=100, help="number of these for log p(x|n)")
    given = parser.parse_args()
    given.train, given.log_p_samples = None, 500
    if given.quick:
        given.epochs, given.samples, given.data, given.log_p_samples = 2, 10, 10, 20
        given.train, given.documents = 1000, 40
    return given


def main() -> None:
    """Runs what is missing, prints the table, writes the result and draws it."""
    given = parse()
    torch.set_num_threads(given.threads)
    documents = Documents.load(given.train, given.documents)
    settings = settings_of(given, documents)
    runs = Runs("counts", settings, given)
    without = without_topics(documents.train, documents.first, documents.second, documents.frequencies)

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
