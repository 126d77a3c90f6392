"""The README's examples run, and its numbers are what they print."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest
import yaml
from annealing import short_pilot
from small_comparisons import checked_hardly

from benchmarks.step_tables import measured
from pyro_vae.engine import interpreted
from pyro_vae.experiment import Experiment
from pyro_vae.inference import ALGORITHMS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_python_examples_run_and_print_what_they_say(capsys):
    names = {}
    exec(PYTHON[0], names)
    printed, promised = (
        re.findall(r"-?\d+\.\d+", text) for text in (capsys.readouterr().out, PYTHON[0].split("\n# ")[1])
    )
    # The last digits of a training run differ between processors; the Monte Carlo and the data's error do not.
    assert [float(x) for x in printed] == pytest.approx([float(x) for x in promised], abs=0.02)
    # What the others print is not compared, so that little annealing is enough.
    with interpreted(), short_pilot(), checked_hardly():
        for example in PYTHON[1:]:
            short = re.sub(r"\bepochs=20\b", "epochs=1", example)
            short = short.replace('"epochs": 20', '"epochs": 1')
            exec(re.sub(r"\b(temperatures|steps)=100\b", r"\1=5", short), names)


def test_the_experiment_file_is_valid_and_builds():
    texts = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    experiment, *_ = [Experiment.parse(yaml.safe_load(text)) for text in texts]
    assert experiment.build().latent_shape == (8,)


def test_the_mnist_table_is_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "mnist.json").read_text())
    seconds = {(run["algorithm"], run["seed"]): run["seconds_per_epoch"] for run in result["runs"]}
    seeds = result["experiment"]["seeds"]
    for label, summary in result["summary"].items():
        cells = [f"{summary[m]['mean']:.2f} ± {summary[m]['half_width']:.2f}" for m in ("elbo", "log_marginal")]
        ratios = [seconds[label, seed] / seconds["analytic-kl", seed] for seed in seeds]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        assert f"| `{label}` | {' | '.join(cells)} |" in README


@pytest.mark.parametrize("epochs", [50, 200])
def test_the_estimators_differences_are_the_committed_results(epochs):
    result = json.loads((ROOT / "benchmarks" / "results" / f"digits_{epochs}_epochs.json").read_text())
    difference = result["differences"][0]["elbo"]
    row = f"digits_{epochs}_epochs.json)) | {difference['mean']:+.3f} ± {difference['half_width']:.3f} |"
    assert row in README


def test_the_nine_algorithms_are_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "digits_nine_algorithms.json").read_text())
    assert result["environment"]["command"] in README.replace("\n", " ")
    checks = result["posterior_checks"]
    for run in result["runs"]:
        name, annealed = run["algorithm"], run["log_marginal_method"] == "annealed importance sampling"
        gap, phi = checks["gaps"].get(name), checks["gradients"][name].get("phi")
        cells = [
            "-" if run["elbo"] is None else f"{run['elbo']:.2f}",
            f"{run['log_marginal']:.2f}" + (" (AIS)" if annealed else ""),
            "-" if gap is None else f"{gap['approximation']['mean']:.2f} + {gap['amortization']['mean']:.2f}",
            "-" if phi is None else f"{phi['signal_to_noise']['mean']:.2f}",
        ]
        assert f"| `{name}` | {' | '.join(cells)} |" in README


def test_the_gradients_noise_is_the_committed_result():
    phi = json.loads((ROOT / "benchmarks" / "results" / "gradient_noise.json").read_text())["phi"]
    rows = re.findall(
        r"^\| ([a-z][\w-]*(?:, [^|]*)?) \| (\S+(?: \(\S+\))?) \| (\S+(?: \(\S+\))?) \| (\S+ \(\S+\)) \|$", README, re.M
    )
    assert len(rows) == 12
    for label, *cells in rows:
        for cell, noise in zip(cells, phi[label].values(), strict=True):
            variance, ratio = noise["variance"], noise["signal_to_noise"]
            assert cell == ("0" if variance < 1e-20 else f"{variance:.2g} ({ratio:.2f})")


def test_the_sandwich_is_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "sandwich.json").read_text())
    for label, row in result["estimates"].items():
        below = "-" if "upper" in label else f"{row['below_upper']:.4f} ± {row['below_upper_error']:.4f}"
        assert f"| {label} | {row['value']:.4f} ± {row['standard_error']:.4f} | {below} |" in README


def test_the_table_lists_every_algorithm():
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", README, flags=re.MULTILINE)
    assert dict(rows) == {name: algorithm.__name__ for name, algorithm in ALGORITHMS.items()}


@pytest.mark.parametrize("command", sorted(set(re.findall(r"pyro-vae ([a-z]+)", README))))
def test_commands_exist(command):
    from pyro_vae.cli import app

    names = {info.name or info.callback.__name__ for info in app.registered_commands}
    assert command in names


def test_the_swap_matrix_is_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "swap_matrix.json").read_text())
    text = README.replace("\n", " ")
    sizes = "{priors} priors x {likelihoods} likelihoods x {posteriors} posteriors".format(**result)
    assert sizes in text
    total = result["priors"] * result["likelihoods"] * result["posteriors"]
    assert f"{result['trained']} of the {total} combinations train, and {result['refused']} are refused" in text
    assert result["trained"] + result["refused"] == total


def test_the_families_are_those_of_the_classification():
    from pyro_vae.vae.families import counts

    text = "{families} distributions of Pyro's and this package's: {usable} can be used, {prior} of them as prior, "
    text += "{likelihood} as likelihood, {posterior} as posterior"
    assert text.format(**counts()) in README.replace("\n", " ")


def test_the_priors_on_static_mnist_are_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "priors.json").read_text())
    for name, row in result["summary"].items():
        log_p, bound = (f"{row[key]['mean']:.2f} ± {row[key]['half_width']:.2f}" for key in ("log_p", "elbo"))
        difference = "-"
        if name != "standard":
            paired = row["minus_standard"]["log_p"]
            difference = f"{paired['mean']:+.2f} ± {paired['half_width']:.2f}"
        assert f"| `{name}` | {bound} | {log_p} | {difference} |" in README


def test_the_topics_are_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "counts.json").read_text())
    rows = {"dirichlet": "Dirichlet(0.1) prior", "logistic-normal": "logistic-normal prior"}
    for name, label in rows.items():
        row = result["summary"][name]
        cells = [
            f"{row[key]['mean']:.0f} ± {row[key]['half_width']:.0f}"
            for key in ("predictive", "topics_above_one_percent")
        ]
        npmi = row["coherence_npmi"]
        cells.append(f"{npmi['mean']:.2f} ± {npmi['half_width']:.2f}")
        assert re.search(rf"^\| {re.escape(label)}[^|]* \| {cells[0]} \| {cells[1]} \| {cells[2]} \|$", README, re.M)
    for name, label in {"unigram": "unigram", "dirichlet-multinomial": "Dirichlet-multinomial without topics"}.items():
        value = result["without_topics"][name]["predictive"]["value"]
        assert f"| {label}, closed form | {value:.0f} | - | - |" in README


def test_the_step_times_are_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "step_time.json").read_text())
    assert measured(result) in README
