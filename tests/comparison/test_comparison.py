"""Algorithm x seed on one data set."""

from __future__ import annotations

import json
import math

import pytest
import torch
from counted_checks import counted
from small_comparisons import SMALL, few_digits, small

from pyro_vae.comparison.compare import check, compare
from pyro_vae.comparison.report.tables import difference_text, seeds_text, summary_text
from pyro_vae.comparison.run import METRICS
from pyro_vae.engine import Lifted, interpreted
from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_marginal
from pyro_vae.experiment import Experiment
from pyro_vae.training.stepper import Stepper

QUICK = {**SMALL, "latent": 3}


def quick(checkpoints=None, **changes):
    return small(few_digits(), checkpoints, **{"latent": 3, "seeds": [4], "inference": ["aevb"], **changes})


@pytest.fixture(scope="module")
def comparison(digits):
    return digits


def test_every_algorithm_under_every_seed(comparison):
    got = [(run.algorithm, run.seed) for run in comparison.runs]
    assert got == [(label, seed) for seed in (4, 7) for label in ("aevb", "analytic-kl", "wake-sleep")]


def test_runs_of_a_seed_start_alike_and_seeds_differ():
    from pyro_vae.runtime.random_streams import isolated

    experiment = Experiment.parse(QUICK)
    data = experiment.load_data()

    def built(seed):
        with isolated(seed):
            return torch.cat([p.flatten() for p in experiment.build(data).parameters()])

    assert torch.equal(built(4), built(4))
    assert not torch.equal(built(4), built(7))


def test_the_same_command_gives_the_same_numbers(comparison):
    again = quick()
    first = comparison.runs_of("aevb")[0]
    assert again.runs[0].metrics()["elbo"] == first.metrics()["elbo"]
    assert again.runs[0].metrics()["log_marginal"] == first.metrics()["log_marginal"]


def test_a_stopped_comparison_goes_on(monkeypatch, tmp_path, comparison):
    whole = {"seeds": [4, 7], "inference": comparison.labels}
    steps, take = [], Stepper.take

    def stop_at(last):
        def counted(self, *arguments):
            if len(steps) == last:
                raise KeyboardInterrupt
            steps.append(self.members[0].inference.name)
            return take(self, *arguments)

        monkeypatch.setattr(Stepper, "take", counted)

    stop_at(8)  # in the third run
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "kept", **whole)
    stop_at(None)
    again = quick(tmp_path / "kept", **whole)
    assert len(steps) == sum(run.history.steps for run in comparison.runs)  # each was taken once
    assert "last part" in again.environment["resumed"]
    for mine, its in zip(again.runs, comparison.runs, strict=True):
        for metric in ("elbo", "log_marginal", "active_units"):
            assert mine.metrics()[metric] == its.metrics()[metric]
        assert (mine.history.bound == its.history.bound).all()


def test_a_stopped_comparison_does_not_go_on_as_another(tmp_path):
    quick(tmp_path / "kept")
    with pytest.raises(InputError, match=r"kept` holds .* another comparison \(different training\); remove it"):
        quick(tmp_path / "kept", training={"epochs": 2})


def test_seeds_that_were_trained_together_are_not_trained_again(tmp_path, monkeypatch):
    training = {"epochs": 1, "together": True, "compile": False}
    both = {"training": training, "seeds": [4, 7], "inference": ["aevb", "vb"]}
    whole = quick(tmp_path, **both)
    (tmp_path / "vb-seed4-7.checkpoint").unlink()
    trained, take = set(), Stepper.take
    monkeypatch.setattr(
        *(Stepper, "take"), lambda self, *given: trained.add(self.members[0].inference.name) or take(self, *given)
    )
    again = quick(tmp_path, **both)
    assert trained == {"vb"}
    for mine, its in zip(again.runs, whole.runs, strict=True):
        assert mine.metrics()["elbo"] == its.metrics()["elbo"]
        assert (mine.history.bound == its.history.bound).all()
        assert mine.history.execution == its.history.execution
    (tmp_path / "aevb-seed4-7.checkpoint").write_bytes(b"half")
    with pytest.raises(InputError, match=r"aevb-seed4-7.checkpoint` is no checkpoint of this version; remove it"):
        quick(tmp_path, **both)


def test_a_comparison_takes_up_one_more_algorithm(tmp_path, monkeypatch):
    quick(tmp_path)
    steps, take = [], Stepper.take
    monkeypatch.setattr(Stepper, "take", lambda self, *arguments: steps.append(self) or take(self, *arguments))
    both = quick(tmp_path, inference=["aevb", "stl"])
    assert [run.algorithm for run in both.runs] == ["aevb", "stl"]
    assert len(steps) == both.runs[1].history.steps


def test_numbers_are_those_of_the_models(comparison):
    run = comparison.runs_of("wake-sleep")[1]
    expected = log_marginal(run.vae, comparison.data.test, 50, seed=7)
    assert run.log_marginal.value == expected.value
    assert run.elbo.value < run.log_marginal.value  # Jensen, by far more than the errors here


def test_summary_and_paired_differences(comparison):
    values = {label: [run.elbo.value for run in comparison.runs_of(label)] for label in ("aevb", "wake-sleep")}
    assert comparison.summary("aevb")["elbo"].mean == pytest.approx(sum(values["aevb"]) / 2)
    difference = comparison.difference("wake-sleep", "aevb")["elbo"]
    pairs = [its - mine for mine, its in zip(values["aevb"], values["wake-sleep"], strict=True)]
    assert difference.mean == pytest.approx(sum(pairs) / 2)
    assert difference.half_width == pytest.approx(12.7062 * abs(pairs[0] - pairs[1]) / 2, rel=1e-4)  # t(0.975, 1)


def test_the_record_is_whole(comparison):
    record = comparison.record()
    assert record["environment"]["command"] == "pyro-vae compare small.yaml"
    assert set(record["environment"]["versions"]) >= {"torch", "pyro-ppl", "arviz", "numpy"}
    assert record["data"]["binarisation"] == "dynamic"
    assert record["quantity"] == "log p(x)"
    assert len(record["runs"]) == 6
    assert set(record["summary"]["aevb"]) == set(METRICS)


def test_grey_levels_under_bernoulli_are_called_what_they_are():
    data = {"name": "digits", "binarisation": "none"}
    comparison = small(few_digits(binarisation="none"), data=data, latent=3, seeds=[0], inference=["aevb"])
    (run,) = comparison.runs
    assert comparison.quantity == "cross-entropy, not a log-likelihood"
    assert run.log_marginal is None
    assert math.isfinite(run.elbo.value)
    assert comparison.record()["runs"][0]["log_marginal"] is None


def test_numbers_are_in_the_datas_own_units(tmp_path):
    rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0])
    lines = [f"{a:.6f},{b:.6f}" for a, b in rows.tolist()]
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "\n".join(lines))
    experiment = Experiment.parse(
        {**QUICK, "seeds": [0], "inference": ["aevb"], "likelihood": {"family": "Normal"}, "data": {"name": str(path)}}
    )
    comparison = compare(experiment)
    (run,) = comparison.runs
    in_model_units = log_marginal(run.vae, comparison.data.test, 50, seed=0).value
    jacobian = -float(comparison.data.scale.log().sum())
    assert run.log_marginal.value == pytest.approx(in_model_units + jacobian)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "digits", "split": [0.9, 0.1, 0.0]}}, "at least two test data"),
        ({"prior": {"family": "Gamma"}}, "AnalyticKL: KL.* has no closed form; use aevb"),
        (
            {"prior": {"family": "Bernoulli", "logits": 0}, "posterior": {"family": "Bernoulli"}},
            "needs a reparameterizable posterior.*wake-sleep",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_run(changes, message):
    experiment = Experiment.parse({**QUICK, **changes})
    with pytest.raises(InputError, match=message):
        check(experiment, experiment.load_data())


def test_an_experiment_is_checked_once(monkeypatch):
    work = counted(monkeypatch)
    compare(Experiment.parse({**QUICK, "inference": ["aevb"], "seeds": [4]}))
    of_the_timing, of_the_run = "a VAE is built", "a VAE is built"
    checks = ["a VAE is built", *["values are checked"] * 3]
    assert work == ["data are loaded", *checks, of_the_timing, of_the_run]


def test_discrete_latents_are_compared():
    prior, posterior = {"family": "Bernoulli", "logits": 0}, {"family": "Bernoulli"}
    (run,) = quick(seeds=[0], inference=["wake-sleep"], prior=prior, posterior=posterior).runs
    assert run.kl.value.shape == (3,)
    assert all(run.kl.analytic)
    assert math.isfinite(run.elbo.value)


def test_what_is_not_finite_is_null_in_the_record(comparison):
    from dataclasses import replace

    run = comparison.runs[0]
    constant = {**run.log_marginal.diagnostics, "pareto_k": torch.full((20,), -math.inf)}
    changed = replace(run, log_marginal=replace(run.log_marginal, value=-math.inf, diagnostics=constant))
    record = replace(comparison, runs=[changed, *comparison.runs[1:]]).record()
    json.dumps(record, allow_nan=False)
    assert record["runs"][0]["log_marginal"] is None
    unknown = {"mean": None, "low": None, "high": None, "half_width": None, "n": 2, "trusted": True}
    assert record["summary"]["aevb"]["log_marginal"] == unknown


def test_the_record_has_no_impossible_interval_and_says_what_is_not_to_be_trusted(comparison):
    """At active units of 0 and all, a Student-t interval over two seeds goes far beyond both."""
    from dataclasses import replace

    runs = []
    for run in comparison.runs:
        k = torch.full((20,), 0.9 if (run.algorithm, run.seed) == ("aevb", comparison.runs[0].seed) else 0.1)
        about = {**run.log_marginal.diagnostics, "pareto_k": k}
        active = torch.full_like(run.active, run.seed == comparison.runs[0].seed)
        runs.append(
            replace(
                run,
                active=active,
                log_marginal=replace(run.log_marginal, diagnostics=about),
                seconds_per_epoch=0.1 + run.seed,
            )
        )
    changed = replace(comparison, runs=runs)
    record, units = changed.record(), runs[0].active.numel()
    for label, row in record["summary"].items():
        active, seconds = row["active_units"], row["seconds_per_epoch"]
        assert active == {"mean": units / 2, "low": 0.0, "high": units, "n": 2}
        assert seconds["low"] == 0.0 < seconds["mean"] < seconds["high"]
        assert row["log_marginal"]["trusted"] is (label != "aevb")
        mean, half = row["elbo"]["mean"], row["elbo"]["half_width"]
        assert (row["elbo"]["low"], row["elbo"]["high"]) == pytest.approx((mean - half, mean + half))
    difference = record["differences"][0]
    assert difference["log_marginal"]["trusted"] is False
    assert difference["active_units"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 2}


def test_estimates_say_which_data_they_are_of(comparison):
    diagnostics = comparison.runs[0].elbo.diagnostics
    assert (diagnostics["data"], diagnostics["part"], diagnostics["binarisation"]) == ("digits", "test", "dynamic")


def test_seeds_in_one_program_give_what_they_give_one_by_one():
    apart = {"steps": 4, "batch_size": 20, "compile": False}
    with Lifted(), interpreted():
        apart, together = (
            quick(seeds=[4, 7], training=training) for training in (apart, {**apart, "compile": True, "together": True})
        )
    assert [(run.algorithm, run.seed) for run in together.runs] == [(run.algorithm, run.seed) for run in apart.runs]
    assert together.execution.said == "All runs took their steps compiled: the experiment says `compile: true`."
    for one, other in zip(together.runs, apart.runs, strict=True):
        assert one.history.execution.startswith("2 replicates in one program")
        assert one.elbo is not None
        assert other.elbo is not None
        assert one.elbo.value == pytest.approx(other.elbo.value, abs=1e-3)
        of_both = one.history.seconds[-1] * len(apart.data.train) / one.history.samples[-1]
        assert one.seconds_per_epoch == pytest.approx(of_both / 2)


def test_remarks_say_how_steps_ran_where_they_were_compiled(comparison):
    assert not any("compil" in text for text in comparison.remarks)


NOTES = {
    "no json": ("{", "cannot be read as the notes of a comparison"),
    "a list": ("[]", "holds a list, not a mapping"),
    "nothing": ("", "it is empty"),
    "another": ("{}", "holds checkpoints of another comparison"),
}


@pytest.mark.parametrize(("content", "says"), NOTES.values(), ids=NOTES)
def test_damaged_notes_beside_the_checkpoints_are_named(tmp_path, content, says):
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(InputError, match=says):
        quick(tmp_path)


@pytest.mark.parametrize(
    "execution",
    [1, [], {}, {"compiled": 1, "reason": "", "seconds": 0}, {"compiled": True, "reason": "", "seconds": "1"}],
)
def test_a_damaged_note_of_the_execution_is_named(tmp_path, execution):
    quick(tmp_path)
    noted = tmp_path / "comparison.json"
    noted.write_text(json.dumps({**json.loads(noted.read_text()), "execution": execution}))
    with pytest.raises(InputError, match=r"comparison.json` cannot be read as the notes of a comparison"):
        quick(tmp_path)


# ------------------------------------------------------------------ on at most so many test data


def test_models_are_judged_on_one_sample_of_many_test_data():
    """The same data for all numbers of all runs, and the result says how many of how many they are."""
    data = few_digits()
    evaluation = {**SMALL["evaluation"], "num_data": 7, "ais_data": 5}
    result = small(data, latent=3, seeds=[4, 5], inference=["aevb", "stl", "mcem"], evaluation=evaluation)
    seven = data.batch("test", 7)
    for run in result.runs_of("aevb") + result.runs_of("stl"):
        again = log_marginal(run.vae, seven, 50, seed=run.seed)
        assert torch.equal(run.log_marginal.pointwise - again.pointwise, torch.zeros(7).double())
        assert run.log_marginal.sampling_error == pytest.approx(again.sampling_error)
        assert len(run.elbo.pointwise) == 7
        assert run.record()["elbo_num_data"] == run.record()["log_marginal_num_data"] == 7
    assert [len(run.log_marginal.pointwise) for run in result.runs_of("mcem")] == [5, 5]
    assert result.record()["evaluated"] == {"part": "test", "num_data": 7, "of": 20}
    for text in (summary_text(result).caption, difference_text(result).caption, seeds_text(result).caption):
        assert "on 7 of 20 test data, drawn once for all runs (evaluation.num_data)" in text
    assert "of 5 of 20 test data, drawn at random" in summary_text(result).caption


def test_few_test_data_are_all_used(comparison):
    assert comparison.num_evaluated == comparison.num_test == 20
    assert "evaluation.num_data" not in summary_text(comparison).caption
    assert comparison.record()["evaluated"] == {"part": "test", "num_data": 20, "of": 20}


def test_ten_thousand_test_data_by_default():
    assert Experiment().evaluation.num_data == 10_000
    with pytest.raises(InputError, match=r"evaluation\.num_data"):
        Experiment.parse({"evaluation": {"num_data": 1}})
