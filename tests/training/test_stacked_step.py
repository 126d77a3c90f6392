"""R VAEs in one program: each becomes what a run of its own would have made of it."""

from __future__ import annotations

import copy
import functools

import pyro.distributions as dist
import pytest
import torch
from algorithm_cases import data, made, small_vae, tiny_vae
from fitting import fit_with
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed, Training, fit, mlp
from pyro_vae.engine import CaptureError, Lifted, interpreted
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference import AEVB, ALGORITHMS, IWAE, BetaVAE, Renyi
from pyro_vae.training import eager_step
from pyro_vae.training.schedules import linear

DOUBLE = torch.float64


def adam(**options):
    return lambda parameters: torch.optim.Adam(parameters, **({"lr": 1e-2} | options))


def sgd(**options):
    return lambda parameters: torch.optim.SGD(parameters, **({"lr": 1e-2} | options))


@pytest.fixture
def lifted(monkeypatch):
    """Uncompiled steps make their draws of the same noise as captured ones."""
    take = eager_step.take_step

    def at_noise(*arguments):
        with Lifted():
            return take(*arguments)

    monkeypatch.setattr(eager_step, "take_step", at_noise)


def both(name, algorithms, optimizers, *, tiny=False, dtype=DOUBLE, seeds=None, x=None, **options):
    """Replicates, and the same VAEs trained apart: VAEs with their algorithms, and histories."""
    options = {"steps": 6, "batch_size": 5} | options
    seeds = list(range(len(algorithms)) if seeds is None else seeds)
    make = tiny_vae if tiny else functools.partial(small_vae, name)
    together = [(make(seed, dtype), algorithm) for seed, algorithm in enumerate(algorithms)]
    apart = copy.deepcopy(together)
    x = data(name, dtype) if x is None else x
    with interpreted():
        vaes = [vae for vae, _ in together]
        histories = fit_with(vaes, x, algorithms, optimizer=optimizers, seed=seeds, compile=True, **options)
    separate = [
        fit_with(*(vae, x, algorithm), optimizer=optimizer, seed=seed, compile=False, **options)
        for (vae, algorithm), optimizer, seed in zip(apart, optimizers, seeds, strict=True)
    ]
    return together, apart, histories, separate


def assert_same(together, apart, histories, separate, tolerance=1e-10):
    for (vae, algorithm), (other, its) in zip(together, apart, strict=True):
        for a, b in zip((vae, algorithm), (other, its), strict=True):
            for name, value in a.state_dict().items():
                torch.testing.assert_close(value, b.state_dict()[name], rtol=tolerance, atol=tolerance, msg=name)
    for ours, theirs in zip(histories, separate, strict=True):
        assert "in one program" in ours.execution
        assert (ours.stopped, ours.remark) == (theirs.stopped, theirs.remark)
        assert ours.samples.tolist() == theirs.samples.tolist()
        torch.testing.assert_close(*map(torch.as_tensor, (ours.bound, theirs.bound)), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(*map(torch.as_tensor, (ours.validation_bound, theirs.validation_bound)))


# ------------------------------------------------------------------ replicates are separate runs


@pytest.mark.slow
def test_betas_with_warm_up_clipping_and_a_schedule():
    algorithms = [BetaVAE(beta, warmup) for beta, warmup in ((0.5, 3), (4.0, 30))]
    assert_same(*both("beta-vae", algorithms, [adam()] * 2, clip_norm=0.5, schedule=linear(6, warmup=2)))


@pytest.mark.slow
def test_a_short_last_batch_and_replicates_that_go_through_the_program_in_parts(monkeypatch):
    monkeypatch.setattr("pyro_vae.engine.step.replicated_step._MOST_AT_A_TIME", 2)
    assert_same(*both("aevb", [AEVB() for _ in range(4)], [sgd(lr=lr / 20) for lr in (1, 2, 3, 4)], batch_size=4))


def test_two_phases_with_momentum_and_draws_of_the_data(lifted):
    optimizers = [sgd(momentum=0.9, lr=0.02)] * 3
    assert_same(*both("wake-sleep", [made("wake-sleep") for _ in range(3)], optimizers, tiny=True))


def test_learning_rates_and_options_of_the_optimizer_and_of_the_algorithm_differ():
    numbers = ((0.1, 0.8, 0.01, 0.2), (0.03, 0.95, 0.03, 0.7))
    optimizers = [adam(lr=lr, betas=(b, 1 - b / 50), weight_decay=w, eps=w / 1e4) for lr, b, w, _ in numbers]
    algorithms = [Renyi(alpha, num_particles=3) for *_, alpha in numbers]
    assert_same(*both("renyi", algorithms, optimizers, tiny=True, clip_norm=0.5, schedule=linear(6, warmup=2)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "mcem"])
def test_every_algorithm(name, dtype, lifted):
    tolerance = 1e-10 if dtype == DOUBLE else 1e-5
    options = {"steps": 20, "dtype": dtype, "clip_norm": 1.0, "schedule": linear(20)}
    result = both(name, [made(name) for _ in range(3)], [adam()] * 3, **options)
    for history in (*result[2], *result[3]):
        history.bound[history.bound != history.bound] = 0.0  # nan where there is none
    assert_same(*result, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizers",
    [
        [sgd(momentum=m, dampening=m / 9, weight_decay=m / 90) for m in (0.5, 0.8, 0.9)],
        [sgd(momentum=m, nesterov=True) for m in (0.5, 0.8, 0.9)],
        [lambda p, w=w: torch.optim.AdamW(p, weight_decay=w) for w in (0.1, 0.2, 0.3)],
        [lambda p, w=w: torch.optim.Adagrad(p, lr=w, lr_decay=w, initial_accumulator_value=w) for w in (0.1, 0.2, 0.3)],
        [adam(amsgrad=True, maximize=True, lr=lr) for lr in (1e-4, 1e-3, 1e-2)],
    ],
)
def test_every_rule(optimizers):
    assert_same(*both("aevb", [AEVB() for _ in range(3)], optimizers))


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [False, True])
def test_a_transform_and_a_loader_serve_each_replicate_by_its_own_seed(loaded):
    x = data("aevb", DOUBLE).x

    def noisy(batch, generator):
        return (batch + torch.rand(batch.shape, generator=generator, dtype=DOUBLE) > 0.7).to(DOUBLE)

    source = DataLoader(TensorDataset(x), batch_size=5, shuffle=True) if loaded else x
    result = both("aevb", [AEVB() for _ in range(2)], [adam()] * 2, seeds=(3, 8), x=source, transform=noisy)
    assert_same(*result)
    assert result[2][0].bound[0] != result[2][1].bound[0]


def test_common_random_numbers():
    vae, x = tiny_vae(), data("aevb", DOUBLE)
    betas = (1.0, 1.0, 3.0)
    vaes, apart = ([copy.deepcopy(vae) for _ in betas] for _ in range(2))
    options = {"optimizer": sgd(), "steps": 5, "batch_size": 5}
    with interpreted():
        algorithms = [BetaVAE(beta, warmup=3) for beta in betas]
        same, again, other = fit_with(vaes, x, algorithms, seed=7, common_noise=True, compile=True, **options)
    separate = [
        fit_with(vae, x, BetaVAE(beta, warmup=3), seed=7, compile=False, **options)
        for vae, beta in zip(apart, betas, strict=True)
    ]
    assert (same.bound == again.bound).all()
    assert all(torch.equal(a, b) for a, b in zip(vaes[0].parameters(), vaes[1].parameters(), strict=True))
    assert (same.bound[:2] == other.bound[:2]).all()  # at the first step the weight is 0 for all
    assert same.bound[-1] != other.bound[-1]
    assert_same(*([(v, AEVB()) for v in group] for group in (vaes, apart)), [same, again, other], separate)


@pytest.mark.slow
def test_validation_early_stopping_and_the_best_parameters_are_each_replicates_own():
    options = {"steps": 30, "validation": data("aevb", DOUBLE), "validation_every": 2, "early_stopping": 2}
    optimizers = [sgd(lr=lr) for lr in (0.01, 0.1, 0.5)]
    result = both("aevb", [AEVB() for _ in range(3)], optimizers, keep="best", **options)
    assert_same(*result)
    for ours, theirs in zip(*result[2:], strict=True):
        assert ours.validation_step.tolist() == theirs.validation_step.tolist()
        assert ours.best_step == theirs.best_step
    assert len({history.steps for history in result[2]}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Gamma", "Dirichlet"])
def test_draws_that_are_not_made_of_noise_have_the_same_distribution(family):
    torch.manual_seed(0)
    parameters = {
        "Gamma": {"concentration": Fixed(2.0), "rate": Fixed(1.0)},
        "Dirichlet": {"concentration": Fixed(1.0)},
    }
    part = getattr(dist, family)
    vae = VAE(
        Conditional(part, (3,), **parameters[family]),
        Conditional(dist.Bernoulli, (6,), given=mlp(3, 4)),
        Conditional(part, (3,), given=mlp(6, 4)),
    ).to(DOUBLE)
    count, x = 100, data("aevb", DOUBLE).x
    options = {"optimizer": sgd(lr=0.1), "steps": 3, "batch_size": len(x)}
    together, apart = ([copy.deepcopy(vae) for _ in range(count)] for _ in range(2))
    with interpreted():
        fit_with(together, x, AEVB(), seed=100, compile=True, **options)
    for seed, other in enumerate(apart):
        fit_with(other, x, AEVB(), seed=seed, compile=False, **options)
    ours, theirs = (
        torch.stack([torch.nn.utils.parameters_to_vector(v.parameters()).detach() for v in vaes])
        for vaes in (together, apart)
    )
    assert (ours.std(0) > 0).all()
    error = ((ours.var(0) + theirs.var(0)) / count).sqrt()
    assert_mean(ours.mean(0), theirs.mean(0), error)


# ------------------------------------------------------------------ one that diverges


def test_a_replicate_that_diverges_is_named_and_does_not_touch_the_others():
    rates, x = [0.01, 1e30, 0.02], data("aevb", DOUBLE)
    vaes = [tiny_vae(seed) for seed in range(3)]
    apart = copy.deepcopy(vaes)
    options = {"steps": 6, "batch_size": 5, "divergence": "stop"}
    with interpreted():
        optimizers = [sgd(lr=rate) for rate in rates]
        histories = fit_with(vaes, x, AEVB(), optimizer=optimizers, compile=True, **options)
    assert [history.stopped for history in histories] == ["completed", "diverged", "completed"]
    assert histories[1].remark.startswith("replicate 1: log ")
    assert f"at step {histories[1].steps + 1}, batch of rows [" in histories[1].remark
    assert 0 < histories[1].steps < 6
    assert all(bool(p.isfinite().all()) for p in vaes[1].parameters())
    for r in (0, 2):
        history = fit_with(apart[r], x, AEVB(), optimizer=optimizers[r], seed=r, compile=False, **options)
        torch.testing.assert_close(*map(torch.as_tensor, (histories[r].bound, history.bound)), rtol=1e-10, atol=0)
        for a, b in zip(vaes[r].parameters(), apart[r].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("last", [float("inf"), 1e200], ids=["in the last update", "in a loss"])
def test_one_that_diverges_has_the_parameters_back_that_a_run_of_its_own_has(last):
    vaes = [tiny_vae(seed) for seed in range(2)]
    apart = copy.deepcopy(vaes)
    options = {"optimizer": sgd(momentum=0.5), "steps": 5, "batch_size": 5, "divergence": "stop"}
    options["schedule"] = lambda step: last if step == (4 if last == float("inf") else 2) else 1.0
    x = data("aevb", DOUBLE)
    with interpreted():
        histories = fit_with(vaes, x, AEVB(), compile=True, **options)
    for r, vae in enumerate(apart):
        history = fit_with(vae, x, AEVB(), seed=r, compile=False, **options)
        assert (history.stopped, history.steps) == (histories[r].stopped, histories[r].steps)
        assert histories[r].stopped == "diverged"
        assert histories[r].remark == f"replicate {r}: {history.remark}"
        for a, b in zip(vaes[r].parameters(), vae.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_optimizers_know_how_many_steps_were_taken():
    made_by = []

    def optimizer(parameters):
        made_by.append(torch.optim.Adam(parameters))
        return made_by[-1]

    vaes = [tiny_vae(seed, torch.float32) for seed in range(2)]
    with interpreted():
        fit(vaes, data("aevb"), AEVB(), Training(optimizer=optimizer, steps=4, batch_size=5, compile=True))
    assert [{float(state["step"]) for state in each.state.values()} for each in made_by] == [{4.0}, {4.0}]


@pytest.mark.slow
def test_one_that_diverges_at_the_first_step_leaves_the_others_to_train():
    vaes = [small_vae("aevb", seed) for seed in range(2)]
    with torch.no_grad():  # z so large that its log density is infinite
        for parameter in vaes[1].posterior.parameters():
            parameter.fill_(1e25)
    before = [p.clone() for p in vaes[0].parameters()]
    options = {"optimizer": adam(), "steps": 3, "batch_size": 5, "check_support": False, "divergence": "stop"}
    with interpreted():
        second, first = fit_with(vaes, data("aevb"), AEVB(), compile=True, **options)
    assert (first.stopped, first.steps, second.stopped, second.steps) == ("diverged", 0, "completed", 3)
    assert "at step 1" in first.remark
    assert not any(torch.equal(a, b) for a, b in zip(before, vaes[0].parameters(), strict=True))
    with pytest.raises(NonFiniteError, match=r"replicate 1: .* at step 1"):
        fit_with(vaes, data("aevb"), AEVB(), compile=False, **options | {"divergence": "raise"})


# ------------------------------------------------------------------ where the results lie


def test_after_an_interrupt_results_lie_in_the_same_objects_and_in_memory_of_their_own():
    vaes = [tiny_vae(seed, torch.float32) for seed in range(2)]
    algorithms = [BetaVAE(warmup=4) for _ in range(2)]
    modules = [*vaes, *algorithms]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    places = [(id(t), t.data_ptr(), t.untyped_storage().nbytes()) for t in tensors]

    def interrupting(step):
        if step == 3:
            raise KeyboardInterrupt
        return 1.0

    with interpreted():
        options = {"optimizer": sgd(), "steps": 9, "batch_size": 5, "compile": True}
        histories = fit_with(vaes, data("beta-vae"), algorithms, schedule=interrupting, **options)
    assert [(history.stopped, history.steps) for history in histories] == [("interrupted", 3)] * 2
    assert [float(algorithm.steps) for algorithm in algorithms] == [3.0, 3.0]
    after = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    assert [(id(t), t.data_ptr(), t.untyped_storage().nbytes()) for t in after] == places
    assert all(p.grad is None and p.requires_grad for vae in vaes for p in vae.parameters())


# ------------------------------------------------------------------ what changes in mid-run and between runs


def with_dropout(seed):
    """A VAE with dropout in its encoder, whose mode decides which program its step is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Tanh(), nn.Dropout(0.5))
        prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2))
        return VAE(prior, likelihood, Conditional(dist.Normal, (2,), given=encoder, features=6)).to(DOUBLE)


@pytest.mark.parametrize("stretch", [pytest.param(1, marks=pytest.mark.slow), 64])
def test_what_a_program_holds_as_a_constant_may_change_in_mid_run_and_between_runs(lifted, monkeypatch, stretch):
    """A schedule changes the weight decay and the dropout's mode; a parameter is frozen between two runs."""
    monkeypatch.setattr("pyro_vae.training.stepper._MOST", stretch)

    def run(vaes, **options):
        optimizers, given = [], {"steps": 9, "batch_size": 5, "seed": 0, **options}
        several = isinstance(vaes, list)

        def make(parameters):
            optimizers.append(torch.optim.SGD(parameters, lr=0.05, weight_decay=0.1))
            return optimizers[-1]

        def schedule(step):
            if step == 6:
                for optimizer in optimizers:
                    optimizer.param_groups[0]["weight_decay"] = 5.0
            for vae in vaes if several else [vaes]:
                vae.posterior.given[1].train(step not in (4, 5))
            return 1.0

        return fit_with(vaes, data("aevb", DOUBLE), AEVB(), optimizer=make, schedule=schedule, **given)

    together = [with_dropout(seed) for seed in range(2)]
    apart = copy.deepcopy(together)
    for frozen in (False, True):
        for vae in (*together, *apart):
            vae.likelihood.requires_grad_(not frozen)
        steps = 4 if frozen else 9  # only the first run comes to the steps at which the schedule changes things
        with interpreted():
            histories = run(together, compile=True, steps=steps)
        assert all("in one program, compiled" in history.execution for history in histories)
        for seed, vae in enumerate(apart):
            alone = run(vae, compile=False, seed=seed, steps=steps)
            torch.testing.assert_close(*map(torch.as_tensor, (histories[seed].bound, alone.bound)), rtol=1e-10, atol=0)
        for vae, other in zip(together, apart, strict=True):
            for (name, a), b in zip(vae.named_parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)


# ------------------------------------------------------------------ callbacks and checkpoints


@pytest.mark.parametrize("compile", [False, True])
def test_a_callback_is_told_of_every_vae(compile):
    vaes, called = [tiny_vae(seed, torch.float32) for seed in range(3)], []
    options = {"optimizer": sgd(), "steps": 6, "batch_size": 5, "validation": data("aevb"), "validation_every": 3}
    with interpreted():
        histories = fit_with(
            *(vaes, data("aevb"), AEVB()),
            compile=compile,
            callback=lambda step, metrics: called.append((step, metrics)),
            callback_steps={2, 3, 6},
            **options,
        )
    assert [step for step, _ in called] == [2, 3, 6]
    for step, metrics in called:
        assert [each["bound"] for each in metrics] == [history.bound[step - 1] for history in histories]
        assert [each["samples"] for each in metrics] == [5 * step] * 3
        assert all(("validation_bound" in each) == (step in (3, 6)) for each in metrics)
    assert [each["validation_bound"] for each in called[1][1]] == [history.validation_bound[0] for history in histories]


class Stop(Exception):
    """What a callback raises in place of a kill."""


def resumable(path, stop=None, *, rates=(0.01, 0.05, 0.1), **options):
    """Three VAEs with a checkpoint, which die after a step."""
    vaes = [tiny_vae(seed, torch.float32) for seed in range(len(rates))]

    def callback(step, metrics):
        if step == stop:
            raise Stop

    given = {
        "optimizer": [adam(lr=rate) for rate in rates],
        "steps": 8,
        "batch_size": 5,
        "schedule": lambda step: 1 / (1 + step),
        "transform": lambda x, generator: torch.where(torch.rand(x.shape, generator=generator) < 0.1, 1 - x, x),
        "checkpoint": path,
        "checkpoint_seconds": 0.0,
        "callback": callback,
        "callback_steps": {stop},
        "divergence": "stop",
    }
    algorithms = [BetaVAE(warmup=8) for _ in rates]
    try:
        with interpreted():
            return vaes, algorithms, fit_with(vaes, data("beta-vae"), algorithms, **(given | options))
    except Stop:
        return None


def assert_same_run(one, other):
    for mine, its in zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True):
        for (name, value), same in zip(mine.state_dict().items(), its.state_dict().values(), strict=True):
            assert torch.equal(value, same), name
    for mine, its in zip(one[2], other[2], strict=True):
        assert mine.bound.tolist() == its.bound.tolist()
        assert mine.validation_bound.tolist() == its.validation_bound.tolist()
        assert (mine.stopped, mine.remark, mine.best_step) == (its.stopped, its.remark, its.best_step)


RATES = (0.01, 1e30, 0.05)  # at the second one, training diverges
SHORT_LAST = {"batch_size": 4, "steps": 5}
VALIDATED = {"validation": data("beta-vae"), "validation_every": 2, "keep": "best"}


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (5, {"compile": False}),
        (2, {"compile": True, "rates": (0.01, 0.05), "optimizer": [sgd(momentum=0.9)] * 2, **SHORT_LAST}),
        (6, {"compile": True, "common_noise": True, "rates": RATES, **VALIDATED}),
        *(
            pytest.param(stop, {"compile": True, **options}, marks=pytest.mark.slow)
            for stop, options in [
                (7, {"common_noise": True}),
                (6, VALIDATED),
                (4, {"rates": RATES, "transform": None}),
            ]
        ),
    ],
    ids=["uncompiled", "the first compiled step", "all at once", "common noise", "validation", "one that diverged"],
)
def test_several_that_die_go_on_together(tmp_path, monkeypatch, stop, options):
    monkeypatch.setattr("pyro_vae.training.checkpoint._SHARE", 0)
    whole = resumable(None, **options)
    place = tmp_path / "run.checkpoint"
    assert resumable(place, stop, **options) is None
    assert place.exists()
    assert_same_run(resumable(place, **options), whole)
    assert_same_run(resumable(place, **options), whole)  # it is over
    if options.get("rates") is RATES:
        assert [history.stopped for history in whole[2]] == ["completed", "diverged", "completed"]


def test_a_checkpoint_of_other_vaes_is_refused(tmp_path):
    place = tmp_path / "run.checkpoint"
    resumable(place)
    with pytest.raises(InputError, match="of another run: VAEs 3, not 2"):
        resumable(place, rates=(0.01, 0.05))
    with pytest.raises(InputError, match="of another run: optimizer of replicate 1"):
        resumable(place, rates=(0.01, 0.06, 0.1))


# ------------------------------------------------------------------ what cannot be replicated


@pytest.mark.slow
def test_programs_of_another_structure_are_refused_by_index_or_trained_one_by_one(monkeypatch):
    monkeypatch.setattr("pyro_vae.training.when_to_compile.CAPTURE", 0.0)

    def run(compile):
        vaes = [small_vae("iwae", seed, DOUBLE) for seed in range(2)]
        options = {"optimizer": sgd(), "steps": 8, "batch_size": 5, "compile": compile}
        return vaes, fit_with(vaes, data("iwae", DOUBLE), [IWAE(2), IWAE(3)], **options)

    with pytest.warns(UserWarning, match=r"one by one: replicates: replicate 1 is of another .* shape \(3, 5, 2\)"):
        vaes, histories = run("auto")
    assert histories[0].execution.startswith("one by one")
    expected, _ = run(False)
    for vae, other in zip(vaes, expected, strict=True):
        for a, b in zip(vae.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_few_steps_do_not_repay_the_capture_and_run_as_they_would_apart():
    vaes = [tiny_vae(seed) for seed in range(2)]
    apart = copy.deepcopy(vaes)
    options = {"optimizer": adam(), "steps": 4, "batch_size": 5}
    histories = fit_with(vaes, data("aevb", DOUBLE), AEVB(), **options)
    assert histories[0].execution == "uncompiled, one by one: 4 steps would not repay the capture"
    for seed, vae in enumerate(apart):
        fit_with(vae, data("aevb", DOUBLE), AEVB(), seed=seed, compile=False, **options)
    for vae, other in zip(vaes, apart, strict=True):
        for a, b in zip(vae.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_refusals():
    a, b = tiny_vae(0, torch.float32), tiny_vae(1, torch.float32)
    x, given = data("aevb"), {"optimizer": adam(), "steps": 2, "batch_size": 5}
    with pytest.raises(InputError, match="expected a list of VAEs"):
        fit_with([a, "b"], x, AEVB(), **given)
    with pytest.raises(InputError, match="VAEs 0 and 1 of the list share the parameter"):
        fit_with([a, a], x, AEVB(), **given)
    with pytest.raises(InputError, match=r"`prior.learned_loc` is torch.float64 .* in replicate 1 and torch.float32"):
        fit_with([a, copy.deepcopy(b).double()], x, AEVB(), **given)
    with pytest.raises(InputError, match="`seed` is an integer, or one for each of the 2 VAEs"):
        fit_with([a, b], x, AEVB(), seed=[1], **given)
    with pytest.raises(InputError, match="with common_noise=True all VAEs have one seed"):
        fit_with([a, b], x, AEVB(), seed=[1, 2], common_noise=True, **given)
    with pytest.raises(InputError, match="a list of 2 algorithms, one for each VAE"):
        fit_with([a, b], x, [AEVB()] * 2, **given)
    with pytest.raises(InputError, match="a list of 2 functions, one for each VAE"):
        fit_with([a, b], x, AEVB(), **given | {"optimizer": [adam()]})
    with pytest.raises(CaptureError, match="optimizer of replicate 0, `RMSprop`, has no rule"):
        fit_with([a, b], x, AEVB(), compile=True, **given | {"optimizer": lambda p: torch.optim.RMSprop(p)})
    with pytest.raises(CaptureError, match="optimizer of replicate 1 is `SGD`, that of replicate 0 `Adam`"):
        fit_with([a, b], x, AEVB(), compile=True, **given | {"optimizer": [adam(), sgd()]})


# ------------------------------------------------------------------ machine code


@pytest.mark.machine_code
def test_compiled():
    vaes = [tiny_vae(seed) for seed in range(3)]
    apart = copy.deepcopy(vaes)
    options = {"steps": 4, "batch_size": 5}
    optimizers = [sgd(lr=lr) for lr in (0.01, 0.1, 0.3)]
    histories = fit_with(vaes, data("aevb", DOUBLE), AEVB(), optimizer=optimizers, compile=True, **options)
    assert "3 replicates in one program, compiled in" in histories[0].execution
    for seed, (vae, optimizer) in enumerate(zip(apart, optimizers, strict=True)):
        history = fit_with(vae, data("aevb", DOUBLE), AEVB(), optimizer=optimizer, seed=seed, compile=False, **options)
        torch.testing.assert_close(*map(torch.as_tensor, (histories[seed].bound, history.bound)), rtol=1e-10, atol=0)
    for vae, other in zip(vaes, apart, strict=True):
        for p, q in zip(vae.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
