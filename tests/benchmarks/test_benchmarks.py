"""The benchmarks run in miniature, continue where they stopped, and score as they say."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import os
import sys
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PYRO_VAE_DATA", ROOT / "nowhere"))


def needs(file):
    return pytest.mark.skipif(not (DATA / file).exists(), reason=f"{file} is not in the folder PYRO_VAE_DATA")


@pytest.fixture
def module(monkeypatch):
    """Imports a benchmark."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def quick(module, monkeypatch, tmp_path):
    """Runs a benchmark in miniature and returns its result and what it wrote beside it."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--output", str(tmp_path), *arguments])
        benchmark = module(name)
        if name == "priors" and not hasattr(benchmark.load, "cache_info"):  # which takes longer than its runs
            monkeypatch.setattr(benchmark, "load", functools.cache(benchmark.load))
        benchmark.main()
        return json.loads((tmp_path / f"{name}.json").read_text()), sorted(path.name for path in tmp_path.iterdir())

    return run


@needs("static_mnist/binarized_mnist.npz")
def test_priors(quick, capsys):
    result, files = quick("priors", "--seeds", "1", "--priors", "standard,vamp")
    assert files == ["priors.json", "priors.png"]
    assert set(result["runs"]) == {"standard-0", "vamp-0"}
    assert result["environment"]["command"] == "python -m benchmarks.priors --quick --seeds 1 --priors standard,vamp"
    kept = result["runs"]["vamp-0"]
    capsys.readouterr()
    result, _ = quick("priors", "--seeds", "1")
    started = [line.split("] ")[1].split(":")[0] for line in capsys.readouterr().out.splitlines() if " of 4" in line]
    assert started == ["mixture-0", "flow-0"]  # the other two are there
    assert result["runs"]["vamp-0"] == kept
    for name in ("mixture", "vamp", "flow"):
        mine, standard = (result["runs"][f"{key}-0"]["log_p"] for key in (name, "standard"))
        difference = result["summary"][name]["minus_standard"]["log_p"]
        assert difference["mean"] == pytest.approx(mine["value"] - standard["value"])
        pairs = torch.tensor(mine["pointwise"]) - torch.tensor(standard["pointwise"])
        assert float(pairs.mean()) == pytest.approx(difference["mean"], abs=1e-3)
        assert difference["sampling_error"] == pytest.approx(float(pairs.std()) / len(pairs) ** 0.5)


@needs("20newsgroups/20news_etm_bow.npz")
def test_counts(quick):
    result, files = quick("counts", "--seeds", "1")
    assert files == ["counts.json", "counts.png"]
    for run in result["runs"].values():
        assert len(run["topics"]) == 50
        assert sum(topic["share"] for topic in run["topics"]) == pytest.approx(1.0, abs=0.01)
        whole = run["whole_documents"]
        assert whole["log_p"] > -math.inf


def test_runs_are_kept_unless_the_settings_differ(module, tmp_path):
    runs = module("runs")
    given = argparse.Namespace(device="cpu", output=str(tmp_path), restart=False)
    first = runs.Runs("trial", {"steps": 3, "pair": (1, 2)}, given)
    first.complete(["a", "b"], lambda key: {"key": key, "nothing": math.nan}, lambda found: {"n": len(found)})
    again = runs.Runs("trial", {"pair": (1, 2), "steps": 3}, given)
    done = []
    again.complete(["a", "b", "c"], lambda key: done.append(key) or {"key": key}, lambda found: {"n": len(found)})
    assert done == ["c"]
    written = json.loads((tmp_path / "trial.json").read_text())
    assert written["n"] == 3
    assert written["runs"]["a"]["nothing"] is None
    with pytest.raises(SystemExit, match=r"other settings \(more, steps\)"):
        runs.Runs("trial", {"pair": (1, 2), "steps": 4, "more": 1}, given)
    assert runs.Runs("trial", {}, argparse.Namespace(device="cpu", output=str(tmp_path), restart=True)).by_key == {}
    assert [path.name for path in tmp_path.iterdir()] == ["trial.json.before"]


def test_networks_of_one_seed_are_the_same_under_every_prior(module):
    priors = module("priors")
    first, *others = (dict(priors.make_vae(name, 1, 5).named_parameters()) for name in priors.PRIORS)
    shared = [name for name in first if name.startswith(("likelihood.", "posterior."))]
    assert len(shared) == 12
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in shared)


def test_the_scale_of_q_is_bounded(module):
    scale = module("priors").bounded_scale()(torch.tensor([-1e3, 0.0, 1e3]))
    assert scale.log().tolist() == pytest.approx([-3.0, -1.0, 1.0])


@pytest.fixture
def topic_model():
    """One latent, three words; logits linear in z; q is too wide by half."""
    vae = VAE(
        prior=Conditional(dist.Normal, (1,), loc=Fixed(0.3), scale=Fixed(0.8)),
        likelihood=Conditional(dist.Multinomial, (3,), given=torch.nn.Identity(), features=1, total_count=Fixed(20)),
        posterior=Conditional(dist.Normal, (1,), given=torch.nn.Linear(3, 2)),
    ).double()
    with torch.no_grad():
        vae.likelihood.head.weight.copy_(torch.tensor([[1.0], [-0.5], [0.2]]))
        for parameter in vae.posterior.parameters():
            parameter.mul_(0.1)
    return vae


HALVES = torch.tensor([[3.0, 1, 0], [0, 2, 2], [5, 0, 1]]), torch.tensor([[2.0, 0, 1], [1, 3, 0], [1, 1, 1]])


def test_completion_is_the_posterior_predictive(module, topic_model):
    first, second = (half.double() for half in HALVES)
    z = torch.linspace(-9, 9, 4001).double()
    log_words = topic_model.decode(z[:, None]).logits
    log_joint = dist.Normal(0.3, 0.8).log_prob(z)[:, None] + log_words @ first.T
    q = topic_model.encode(first)
    log_q = q.log_prob(z[:, None, None].expand(-1, 3, 1))
    found = module("perplexity").completion(topic_model, first, second, 4000, seed=0)
    for kind, density in (("predictive", log_q), ("weighted", log_joint)):
        exact = (density + log_words @ second.T).logsumexp(0) - density.logsumexp(0)
        assert bool((found[f"{kind}_error"] < 0.05).all())
        assert_mean(found[kind], exact, found[f"{kind}_error"])
    assert torch.allclose(found["plug-in"], (topic_model.decode(q.mean).logits * second).sum(-1))


def test_the_coefficient_is_what_the_likelihood_adds(module, topic_model):
    x = HALVES[0].double()
    with torch.no_grad():
        p = topic_model.decode(torch.zeros(3, 1).double())
        words = (p.logits * x).sum(-1)
        assert torch.allclose(p.log_prob(x) - words, module("perplexity").log_coefficient(x))


def test_perplexity_of_a_fair_die_is_its_number_of_sides(module):
    scores = module("perplexity")
    lengths = torch.tensor([3.0, 10.0, 1.0])
    value = scores.perplexity(-lengths * math.log(6), lengths, torch.tensor([0.3, 0.4, 0.0]))
    assert value["value"] == pytest.approx(6.0)
    assert value["sampling_error"] == pytest.approx(0.0, abs=1e-6)
    assert value["standard_error"] == pytest.approx(6 * 0.5 / 14)
    assert scores.document_perplexity(-lengths * math.log(6), lengths)["value"] == pytest.approx(6.0)


def test_coherence_of_words_that_always_and_never_meet(module):
    x = torch.tensor([[1.0, 2, 0, 0], [3, 1, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    always, never = module("topics").coherence(torch.tensor([[0, 1], [0, 2]]), x).tolist()
    assert always == pytest.approx(1.0)
    assert never == pytest.approx(-1.0)


def test_without_topics_words_are_drawn_from_an_urn(module):
    train, p = torch.tensor([[8.0, 0, 0], [0, 6, 0], [1, 0, 7]]).repeat(10, 1), torch.tensor([0.4, 0.3, 0.3]).double()
    first, second = torch.tensor([[2.0, 1, 0], [0, 0, 4]]), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    found = module("perplexity").without_topics(train, first, second, p)
    assert found["unigram"]["predictive"]["value"] == pytest.approx((0.4 * 0.3) ** -0.5)
    c = found["dirichlet-multinomial"]["concentration"]
    exact = ((2 + 0.4 * c) / (3 + c) * (0 + 0.3 * c) / (4 + c)) ** -0.5
    for kind in ("predictive", "plug-in", "documents"):  # the same where the second half is one word
        assert found["dirichlet-multinomial"][kind]["value"] == pytest.approx(exact)
