"""fit(): its data, its random streams, its options, and how it stops."""

import copy
import math
import random
import warnings
from itertools import chain

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from fitting import fit_with
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, Training, fit, mlp
from pyro_vae.engine import interpreted
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.evaluation import elbo
from pyro_vae.inference import AEVB, ALGORITHMS, AnalyticKL, BetaVAE, Inference, Loss, Phase, WakeSleep
from pyro_vae.training import eager_step
from pyro_vae.training.schedules import cosine

# Row i holds i in binary, so that every datum can be told from its x.
ROWS = ((torch.arange(12)[:, None] >> torch.arange(6)) & 1).float()
algorithms = pytest.mark.parametrize("inference", [AEVB(), AEVB(3), AnalyticKL(), WakeSleep()], ids=str)


def rows_of(x):
    return (x.int() @ 2 ** torch.arange(6, dtype=torch.int32)).tolist()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def run(vae, data=ROWS, inference=None, **options):
    if "epochs" not in options:
        options = {"steps": 5, **options}
    return fit_with(vae, data, inference or AEVB(), **{"optimizer": adam, "batch_size": 5, **options})


def trained(vae, *arguments, **options):
    """The state after a run of a copy."""
    vae = copy.deepcopy(vae)
    run(vae, *arguments, **options)
    return vae.state_dict()


def same(first, second):
    return all(torch.equal(t, second[name]) for name, t in first.items())


class Seen:
    """A transform that records the rows of each minibatch and its own draws."""

    def __init__(self):
        self.rows, self.draws = [], []

    def __call__(self, x, generator):
        self.rows.append(rows_of(x))
        self.draws.append(torch.rand(3, generator=generator).tolist())
        return x


class Breaking(nn.Module):
    """A part of a VAE whose distribution is turned into nan once it is broken."""

    def __init__(self, part):
        super().__init__()
        self.part, self.broken = part, False

    def forward(self, *context):
        d = self.part(*context)
        if not self.broken:
            return d
        name = next(name for name in ("loc", "logits") if name in d.base_dist.arg_constraints)
        bad = {name: getattr(d.base_dist, name) * math.nan}
        others = {"scale": d.base_dist.scale} if name == "loc" else {}
        return type(d.base_dist)(**bad, **others).to_event(1)


# ---------------------------------------------------------------------- data

readonly = ROWS.numpy().copy()
readonly.flags.writeable = False
FORMS = {
    "ndarray": ROWS.numpy(),
    "integers": ROWS.numpy().astype(np.uint8),
    "float64": ROWS.numpy().astype(np.float64),
    "read-only": readonly,
    "big-endian": ROWS.numpy().astype(">f4"),
    "DataFrame": pd.DataFrame(ROWS.numpy()),
    "Batch": Batch(ROWS),
    "Dataset": TensorDataset(ROWS, torch.arange(12)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_data_trains_alike(make_vae, form):
    vae = make_vae()
    assert same(trained(vae, FORMS[form]), trained(vae, ROWS))


def test_data_loader_keeps_its_order_and_batches(make_vae):
    vae, seen = make_vae(), Seen()
    before = copy.deepcopy(vae.state_dict())
    history = run(vae, DataLoader(TensorDataset(ROWS, torch.arange(12)), batch_size=7), epochs=2, transform=seen)
    assert seen.rows == [list(range(7)), list(range(7, 12))] * 2
    assert history.samples.tolist() == [7, 12, 19, 24]
    assert not same(vae.state_dict(), before)


def test_large_data_set_is_streamed_with_a_warning(make_vae, monkeypatch):
    monkeypatch.setattr("pyro_vae.training.minibatches._fits", lambda *_: False)
    orders = []
    for _ in range(2):
        seen = Seen()
        with pytest.warns(UserWarning, match="does not fit the device's memory, so it is streamed"):
            run(make_vae(), TensorDataset(ROWS), epochs=2, transform=seen)
        orders.append(seen.rows)
    assert [sorted(chain(*orders[0][i : i + 3])) for i in (0, 3)] == [list(range(12))] * 2
    assert orders[0] == orders[1]
    assert orders[0][:3] != orders[0][3:]


def test_double_precision_vae_is_trained_in_double(make_vae):
    state = trained(make_vae().double())
    assert {t.dtype for t in state.values()} == {torch.float64}


def test_masked_cells_may_hold_anything(make_vae):
    vae, mask = make_vae(), torch.ones(12, 6, dtype=torch.bool)
    mask[3, 2] = mask[0] = False
    junk = torch.where(mask, ROWS, math.nan)
    assert same(trained(vae, Batch(junk, mask=mask)), trained(vae, Batch(ROWS, mask=mask)))


# ---------------------------------------------------------------------- random streams


@algorithms
def test_seed_decides_everything(make_vae, inference):
    vae = make_vae()
    first = trained(vae, inference=inference)
    torch.rand(7)
    assert same(first, trained(vae, inference=inference))
    assert not same(first, trained(vae, inference=inference, seed=1))


@pytest.mark.parametrize("data", [ROWS, DataLoader(TensorDataset(ROWS), 5, shuffle=True)], ids=["Tensor", "DataLoader"])
@pytest.mark.parametrize("dropout", [False, True])
def test_global_state_is_left_as_it_is(make_vae, data, dropout):
    encoder = nn.Sequential(nn.Linear(6, 7), *([nn.Dropout()] if dropout else []))
    vae, other = make_vae(posterior=Conditional(dist.Normal, (2,), given=encoder, features=7)), make_vae()
    SVI(other.model, other.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(ROWS)
    pyro.param("own", torch.ones(3))

    def state():
        streams = torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002
        store = {name: value.tolist() for name, value in pyro.get_param_store().items()}
        return *streams, store, torch.distributions.Distribution._validate_args, torch.is_grad_enabled()

    before = state()
    run(vae, data, validation=ROWS, transform=Seen() if data is ROWS else None)
    after = state()
    pyro.get_param_store().__delitem__("own")
    assert before == after


@pytest.mark.parametrize("form", ["Tensor", "streamed", "DataLoader"])
def test_all_algorithms_see_the_same_minibatches(make_vae, monkeypatch, form):
    monkeypatch.setattr("pyro_vae.training.minibatches._fits", lambda *_: False)
    seen = []
    for inference in (AEVB(), AEVB(3), AnalyticKL(), WakeSleep()):
        data = {
            "Tensor": ROWS,
            "streamed": TensorDataset(ROWS),
            "DataLoader": DataLoader(TensorDataset(ROWS), 5, shuffle=True),
        }[form]
        seen.append(Seen())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*it is streamed")
            run(make_vae(), data, inference, epochs=3, transform=seen[-1])
    assert all(s.rows == seen[0].rows for s in seen)
    assert all(s.draws == seen[0].draws for s in seen)


# ---------------------------------------------------------------------- steps


def test_epochs_visit_every_datum_once(make_vae):
    seen = Seen()
    history = run(make_vae(), epochs=2, transform=seen)
    assert [len(rows) for rows in seen.rows] == [5, 5, 2] * 2
    epochs = [list(chain(*seen.rows[i : i + 3])) for i in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert history.steps == 6
    assert history.samples.tolist() == [5, 10, 12, 17, 22, 24]
    assert history.stopped == "completed"


def test_steps_count_minibatches(make_vae):
    assert run(make_vae(), steps=4).samples.tolist() == [5, 10, 12, 17]
    assert run(make_vae(), steps=2, batch_size=100).samples.tolist() == [12, 24]


def test_bound_is_the_elbo_of_the_minibatch_before_its_update(make_vae):
    deterministic = Conditional(dist.Normal, (2,), given=mlp(6, 7), scale=Fixed(1e-30))
    vae = make_vae(posterior=deterministic).double()
    expected = float(vae.log_weights(ROWS.double()).mean().detach())
    for inference in (AEVB(), WakeSleep()):
        history = run(copy.deepcopy(vae), inference=inference, steps=2, batch_size=12, start_at_data=False)
        assert history.bound[0] == pytest.approx(expected, rel=1e-12)
        assert history.bound[1] != pytest.approx(expected, rel=1e-6)


def test_schedule_multiplies_the_learning_rate(make_vae):
    made, rates = [], []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.1))
        return made[0]

    run(
        make_vae(),
        optimizer=optimizer,
        schedule=lambda step: 1 / (1 + step),
        callback=lambda step, metrics: rates.append(made[0].param_groups[0]["lr"]),
        steps=4,
    )
    assert rates == pytest.approx([0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4])


@pytest.mark.parametrize("clip_norm", [0.01, 1e6])
def test_clip_norm_bounds_the_joint_gradient(make_vae, clip_norm):
    vae = make_vae().double()
    before = nn.utils.parameters_to_vector(vae.parameters()).detach()
    steps = []
    for options in ({}, {"clip_norm": clip_norm}):
        each = copy.deepcopy(vae)
        run(each, optimizer=sgd, steps=1, start_at_data=False, **options)
        steps.append(nn.utils.parameters_to_vector(each.parameters()).detach() - before)
    factor = min(1.0, clip_norm / float(steps[0].norm()))
    torch.testing.assert_close(steps[1], steps[0] * factor, rtol=1e-4, atol=0)  # clipping adds 1e-6 to the norm
    assert steps[1].norm() <= clip_norm


def test_it_trains_in_training_mode_and_leaves_evaluation_mode(make_vae):
    vae = make_vae()
    vae.eval()
    vae.prior.train()
    seen = []
    run(vae, callback=lambda step, metrics: seen.append(vae.likelihood.training), steps=2, validation=ROWS)
    assert seen == [True, True]
    with pytest.raises(ZeroDivisionError):
        run(vae, callback=lambda step, metrics: 1 / 0)
    assert not any(module.training for module in vae.modules())


@pytest.mark.parametrize("part", ["likelihood", "posterior"])
def test_batch_norm_statistics_are_those_of_the_training_batches(make_vae, part):
    size, family, event = {"likelihood": (2, dist.Bernoulli, (6,)), "posterior": (6, dist.Normal, (2,))}[part]
    given = nn.Sequential(nn.Linear(size, 7), nn.BatchNorm1d(7), nn.Tanh())
    vae = make_vae(**{part: Conditional(family, event, given=given, features=7)})
    before = copy.deepcopy(vae.state_dict())
    run(vae, steps=4, batch_size=6, **({"validation": ROWS, "validation_every": 1} if part == "posterior" else {}))
    assert not any(torch.equal(p, before[name]) for name, p in vae.named_parameters())
    assert given[1].num_batches_tracked == 4


# ---------------------------------------------------------------------- validation and callback


def test_callback_and_history_agree(make_vae):
    vae, calls = make_vae(), []
    history = run(vae, validation=ROWS, validation_every=2, callback=lambda step, m: calls.append((step, dict(m))))
    assert [step for step, _ in calls] == [1, 2, 3, 4, 5]
    for key, values in (("bound", history.bound), ("samples", history.samples), ("seconds", history.seconds)):
        assert [m[key] for _, m in calls] == values.tolist()
    assert history.validation_step.tolist() == [2, 4, 5]
    curve = {step: m["validation_bound"] for step, m in calls if "validation_bound" in m}
    assert list(curve.items()) == list(zip((2, 4, 5), history.validation_bound.tolist(), strict=True))
    assert history.validation_bound[-1] == elbo(vae, ROWS, num_samples=1).value
    assert (np.diff(history.seconds) > 0).all()


def test_validation_does_not_touch_the_training(make_vae):
    vae = make_vae()
    assert same(trained(vae), trained(vae, validation=ROWS, validation_every=1))


def test_validation_is_once_an_epoch_by_default(make_vae):
    assert run(make_vae(), validation=ROWS, epochs=2).validation_step.tolist() == [3, 6]


@pytest.mark.parametrize("form", FORMS)
def test_validation_data_come_in_every_form(make_vae, form):
    vae = make_vae()
    curves = [run(copy.deepcopy(vae), validation=data).validation_bound.tolist() for data in (FORMS[form], ROWS)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_early_stopping(make_vae, keep):
    vae = make_vae()
    history = run(
        vae,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.5),
        steps=200,
        validation=ROWS,
        validation_every=2,
        early_stopping=3,
        keep=keep,
    )
    best = int(np.argmax(history.validation_bound))
    assert history.stopped == "early stopping"
    assert len(history.validation_bound) == best + 4
    assert history.best_step == history.validation_step[best] == 2 * (best + 1)
    assert history.steps == history.best_step + 6
    kept = {"best": best, "last": -1}[keep]
    assert elbo(vae, ROWS, num_samples=1).value == history.validation_bound[kept]


@pytest.mark.parametrize("compile", [False, True])
def test_stopping_and_keeping_the_best_wait_for_the_end_of_a_warm_up(make_vae, compile):
    """The bound falls while the weight of the KL is small, and rises after."""
    vae = make_vae()
    options = {"steps": 300, "validation": ROWS, "validation_every": 1, "early_stopping": 3, "keep": "best"}
    with interpreted():
        history = run(
            vae,
            optimizer=lambda p: torch.optim.Adam(p, lr=0.1),
            inference=BetaVAE(beta=1.0, warmup=60),
            compile=compile,
            **options,
        )
    values = history.validation_bound
    stops = [n for n in range(1, 60) if n - 1 - int(np.argmax(values[:n])) >= 3]
    assert stops  # it would have stopped in the warm-up
    assert history.steps > 60
    assert history.best_step == 60 + int(np.argmax(values[59:]))
    assert elbo(vae, ROWS, num_samples=1).value == values[history.best_step - 1]
    if history.stopped == "early stopping":
        assert history.steps == history.best_step + 3


def test_a_run_that_ends_in_its_warm_up_keeps_its_last_parameters(make_vae):
    vae, options = make_vae(), {"validation": ROWS, "validation_every": 1, "early_stopping": 1, "keep": "best"}
    history = run(vae, inference=BetaVAE(warmup=60), steps=20, **options)
    assert (history.steps, history.best_step, history.stopped) == (20, None, "completed")
    assert elbo(vae, ROWS, num_samples=1).value == history.validation_bound[-1]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_keyboard_interrupt_returns_the_history_so_far(make_vae, keep):
    def interrupt(step, metrics):
        if step == 3:
            raise KeyboardInterrupt

    vae = make_vae()
    expected = trained(vae, steps=3)
    options = {} if keep == "last" else {"validation": ROWS, "validation_every": 2}
    history = run(vae, callback=interrupt, keep=keep, **options)
    assert (history.stopped, history.steps) == ("interrupted", 3)
    if keep == "last":
        assert same(vae.state_dict(), expected)
    else:
        assert elbo(vae, ROWS, num_samples=1).value == history.validation_bound[0]


# ---------------------------------------------------------------------- what is not finite


@algorithms
@pytest.mark.parametrize("part", ["prior", "likelihood", "posterior"])
def test_non_finite_term_is_named_and_the_last_good_parameters_kept(make_vae, inference, part):
    vae = make_vae(prior=Conditional(dist.Normal, (2,), loc=Learned(), scale=Learned()))
    setattr(vae, part, Breaking(getattr(vae, part)))
    options = {"inference": inference, "batch_size": 4}
    good = trained(vae, steps=1, transform=Seen(), **options)
    seen = Seen()

    def callback(step, metrics):
        getattr(vae, part).broken = step == 2

    with pytest.raises(NonFiniteError, match=rf"the {part}, is not finite at step 3, batch of rows") as caught:
        run(vae, transform=seen, callback=callback, **options)
    assert f"rows {seen.rows[2]}." in str(caught.value)
    assert same(vae.state_dict(), good)  # step 2 was the last whose losses were finite


@algorithms
@pytest.mark.parametrize("steps", [3, 6], ids=["the last step", "a step before"])
def test_exploding_update_is_undone(make_vae, inference, steps):
    vae = make_vae()
    good = trained(vae, inference=inference, steps=2)
    with pytest.raises(NonFiniteError, match=r"at step [34]|update of step 3"):
        run(vae, inference=inference, steps=steps, schedule=lambda step: math.nan if step == 2 else 1.0)
    assert all(p.isfinite().all() for p in vae.parameters())
    assert same(vae.theta, {name: good[name] for name in vae.theta})


def test_non_finite_gradient_is_named(make_vae):
    class Kinked(Conditional):
        def forward(self, z):
            kink = (self.kink - self.kink.detach()).abs().sqrt()  # 0, with a slope of nan
            return dist.Bernoulli(logits=super().forward(z).base_dist.logits + kink).to_event(1)

    likelihood = Kinked(dist.Bernoulli, (6,), given=mlp(2, 7))
    likelihood.kink = nn.Parameter(torch.zeros(()))
    vae = make_vae(likelihood=likelihood)
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(NonFiniteError, match=r"the gradient of `likelihood.kink` is not finite at step 1"):
        run(vae, start_at_data=False)
    assert same(vae.state_dict(), before)


# ---------------------------------------------------------------------- which parameters move


def test_parameter_without_gradient_is_refused_by_name(make_vae):
    vae = make_vae()
    vae.likelihood.unused = nn.Parameter(torch.zeros(3))
    with pytest.raises(
        InputError, match=r"`aevb` moves own, phi, theta, but.*depend on `likelihood.unused`.*requires_grad_"
    ):
        run(vae)
    vae.likelihood.unused.requires_grad_(False)
    assert run(vae).stopped == "completed"


@algorithms
@pytest.mark.parametrize("frozen", ["likelihood.given", "likelihood", "posterior"])
def test_frozen_parameters_stay(make_vae, inference, frozen):
    vae = make_vae()
    vae.get_submodule(frozen).requires_grad_(False)
    state = trained(vae, inference=inference)
    for name, parameter in vae.named_parameters():
        assert torch.equal(state[name], parameter) == name.startswith(frozen + "."), name


def test_wake_moves_theta_and_sleep_moves_phi(make_vae):
    vae = make_vae(prior=Conditional(dist.Normal, (2,), loc=Learned(), scale=Fixed(1.0)))
    losses = WakeSleep().losses(vae, ROWS)

    def moved(loss):
        vae.zero_grad()
        loss.value.backward()
        return {name for name, p in vae.named_parameters() if p.grad is not None}

    assert moved(next(losses)) == set(vae.theta)
    with torch.no_grad():
        vae.prior.learned_loc += 1e4  # the sleep phase must dream from the moved prior
    sleep = next(losses)
    assert sleep.value > 1e6
    assert sleep.bound is None
    assert moved(sleep) == set(vae.phi)
    assert next(losses, None) is None


# ---------------------------------------------------------------------- weights


@algorithms
def test_datum_of_weight_zero_is_left_out(make_vae, inference):
    # With a posterior of no width the bound and the gradient of theta are free of noise.
    vae = make_vae(posterior=Conditional(dist.Normal, (2,), given=mlp(6, 7), scale=Fixed(1e-30))).double()
    weights = torch.arange(12.0)
    runs = []
    for data, each in ((ROWS, weights), (ROWS[1:], 7 * weights[1:]), (ROWS, None)):
        copied = copy.deepcopy(vae)
        history = run(copied, data, inference, optimizer=sgd, steps=1, batch_size=12, weights=each)
        runs.append((history.bound[0], nn.utils.parameters_to_vector(copied.theta.values())))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-7)  # the weights are float32
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-6, atol=1e-7)
    assert runs[0][0] != pytest.approx(runs[2][0], rel=1e-6)


@pytest.mark.parametrize(
    ("data", "weights", "message"),
    [
        (ROWS, torch.ones(11), r"`weights` has shape \(11,\); expected \(12,\), one for each datum"),
        (ROWS, [-1.0, *[1.0] * 11], r"`weights` must be finite, none negative, and not all zero"),
        (ROWS, [math.nan, *[1.0] * 11], r"`weights` must be finite"),
        (ROWS, np.zeros(12), r"`weights` must be finite, none negative, and not all zero"),
        (DataLoader(TensorDataset(ROWS)), torch.ones(12), r"let a DataLoader yield Batch\(x, weight="),
    ],
)
def test_weights_are_checked(make_vae, data, weights, message):
    with pytest.raises(InputError, match=message):
        run(make_vae(), data, weights=weights)


def test_data_loader_may_yield_weights(make_vae):
    weight = torch.arange(12.0)

    def collate(rows):
        return Batch(ROWS[rows], weight=weight[rows] / weight.mean())

    vae = make_vae()
    loaded = trained(vae, DataLoader(range(12), 12, collate_fn=collate), inference=AnalyticKL(), steps=1)
    plain = trained(vae, DataLoader(TensorDataset(ROWS), 12), inference=AnalyticKL(), steps=1)
    assert not same(loaded, plain)


# ---------------------------------------------------------------------- what is refused


def changed_cell(value):
    x = ROWS.clone()
    x[3, 2] = value
    return x


class Endless(IterableDataset):
    def __iter__(self):
        yield from ROWS


class Items(list, Dataset):
    """A data set of these items."""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed_cell(math.nan), r"value nan in row 3, column 2 \(from 0\) is not finite.*mask="),
        (changed_cell(-math.inf), r"value -inf in row 3, column 2 \(from 0\) is not finite"),
        (changed_cell(0.5), r"value 0.5 in row 3, column 2 \(from 0\) lies outside .* `Bernoulli`.*binarise"),
        (ROWS[:, :5], r"expected data of shape \(B, 6\) with B >= 1, got \(12, 5\)"),
        (ROWS[:0], r"zero rows \(shape \(0, 6\)\)"),
        (torch.tensor(1.0), r"zero rows \(shape \(\)\)"),
        (np.array([["a", 1]], dtype=object), r"data must be numeric, got an array of dtype `object`"),
        (pd.DataFrame({"a": ["x", "y"]}), r"data must be numeric"),
        (ROWS.tolist(), r"is a Tensor, an ndarray.*got `list`"),
        (
            Items([object()]),
            r"items of a data set.* are tensors, arrays or numbers of one shape; got `object`; convert",
        ),
        (Items([ROWS[0], ROWS[0, :5]]), r"items of a data set.*got `Tensor` of shapes \(5,\), \(6,\)"),
        (DataLoader(Endless()), r"IterableDataset has no length; give it a map-style data set"),
        (Endless(), r"IterableDataset has no length|map-style"),
        (
            DataLoader(TensorDataset(changed_cell(0.5)), 12),
            r"a minibatch of the training data: the value 0.5 in row 3, column 2",
        ),
    ],
    ids=lambda case: case if isinstance(case, str) else type(case).__name__,
)
@pytest.mark.parametrize("inference", [AEVB(), AnalyticKL()], ids=str)
def test_unusable_data_are_refused(make_vae, data, message, inference):
    vae = make_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(InputError, match=message):
        run(vae, data, inference)
    assert same(vae.state_dict(), before)


def test_cell_of_an_image_is_named_by_its_place(make_vae):
    vae = make_vae(likelihood=Conditional(dist.Bernoulli, (1, 2, 3), given=mlp(2, 7)))
    x = changed_cell(7.0).reshape(12, 1, 2, 3)
    with pytest.raises(InputError, match=r"value 7 in row 3, column \(0, 0, 2\) \(from 0\) lies outside"):
        run(vae, x)


def test_vector_outside_its_support_is_refused(make_vae):
    vae = make_vae(likelihood=Conditional(dist.OneHotCategorical, (6,), given=mlp(2, 7)))
    x = torch.eye(6)
    x[4, 0] = 1.0
    with pytest.raises(InputError, match=r"row 4.*lies outside the support"):
        run(vae, x)


def test_grey_levels_pass_without_the_check_of_the_support(make_vae):
    assert run(make_vae(), ROWS * 0.5, check_support=False).stopped == "completed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1, "steps": 1}, r"give `epochs` or `steps`, not both"),
        ({"steps": 0}, r"`steps` is a positive integer, got `0`"),
        ({"epochs": 1.5}, r"`epochs` is a positive integer, got `1.5`"),
        ({"batch_size": 0}, r"`batch_size` is a positive integer, got `0`"),
        ({"batch_size": True}, r"`batch_size` is a positive integer, got `True`"),
        ({"batch_size": None}, r"`batch_size` is a positive integer, got `None`"),
        ({"seed": None}, r"fit: `seed` is an integer, one for one VAE; got `None`"),
        ({"seed": [1, 2]}, r"fit: `seed` is an integer, one for one VAE; got `\[1, 2\]`"),
        ({"clip_norm": -1.0}, r"`clip_norm` is a positive number, or None for no clipping; got `-1.0`"),
        ({"clip_norm": 0.0}, r"`clip_norm` is a positive number.*got `0.0`"),
        ({"clip_norm": math.nan}, r"`clip_norm` is a positive number.*got `nan`"),
        ({"clip_norm": "1"}, r"`clip_norm` is a positive number.*got `'1'`"),
        ({"schedule": "cosine"}, r"`schedule` is a function from the step.*schedules.cosine\(1000\); got `'cosine'`"),
        ({"schedule": StepLR}, r"`schedule` is a function .*; `StepLR` fails at step 0: .*missing"),
        ({"schedule": cosine}, r"`schedule` is a function .*; `cosine` fails at step 0: .*total of 0"),
        ({"schedule": lambda step: -1.0}, r"`schedule` .* finite and not negative; at step 0 `<lambda>` says `-1.0`"),
        ({"transform": lambda x: x}, r"`transform` is a function of x and a torch.Generator.*; got `<lambda>`"),
        ({"transform": "binarise"}, r"`transform` is a function of x and a torch.Generator.*; got `'binarise'`"),
        ({"early_stopping": 3}, r'`early_stopping` and keep="best" need `validation` data'),
        ({"keep": "best"}, r'`early_stopping` and keep="best" need `validation` data'),
        ({"keep": "first"}, r'`keep` is "best" or "last", got `\'first\'`'),
        ({"optimizer": lambda p: None}, r"`optimizer` makes a torch.optim.Optimizer.*it made a `NoneType`"),
        ({"validation": ROWS[:, :5]}, r"expected data of shape \(B, 6\)"),
        ({"validation": changed_cell(math.nan)}, r"value nan in row 3, column 2"),
        ({"validation": DataLoader(ROWS)}, r"`validation`.*got `DataLoader`"),
        ({"validation": ROWS, "validation_every": -1}, r"`validation_every` is a positive integer"),
    ],
    ids=lambda case: ",".join(case) if isinstance(case, dict) else "",
)
def test_unusable_options_are_refused(make_vae, options, message):
    with pytest.raises(InputError, match=message):
        run(make_vae(), **options)


def test_declared_size_must_be_the_datas(make_vae):
    with pytest.raises(InputError, match=r"declared with size=100, but there are 12 data"):
        run(make_vae(size=100))


# ---------------------------------------------------------------------- what an algorithm brings


class Own(Inference):
    """An algorithm with a parameter and a counter of its own."""

    name = "own"

    def __init__(self, moves=("theta", "phi", "own")):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))
        self._moves = frozenset(moves)

    @property
    def phases(self):
        return (Phase(lambda vae, batch, carry: (self.loss(vae, batch), carry), self._moves),)

    def loss(self, vae, batch):
        self.steps = self.steps + 1  # a new tensor
        bound = vae.log_weights(batch).mean()
        return Loss(-bound + (self.scale - 1).square(), bound.detach())


def test_an_algorithms_own_parameters_train_and_come_back_with_the_best(make_vae):
    inference = Own()
    run(make_vae(), inference=inference, steps=50)
    assert inference.scale.item() > 0
    assert float(inference.steps) == 50
    inference = Own()

    def schedule(step):
        return 1.0 if step < 4 else -1e2  # from step 4 on the bound falls

    history = run(
        make_vae(), inference=inference, steps=6, schedule=schedule, validation=ROWS, validation_every=1, keep="best"
    )
    assert float(inference.steps) == history.best_step == 4


def test_a_parameter_in_no_phase_is_refused(make_vae):
    with pytest.raises(InputError, match=r"no phase of `own` moves `inference.scale`"):
        run(make_vae(), inference=Own(moves=("theta", "phi")))


def test_a_divergence_before_a_validation_is_one_error_and_undone(make_vae):
    vae = make_vae()
    with pytest.raises(NonFiniteError, match="update of step 3"):
        run(vae, schedule=lambda s: math.nan if s == 2 else 1.0, validation=ROWS, validation_every=1)
    assert all(p.isfinite().all() for p in vae.parameters())


def test_every_streamed_batch_is_checked(make_vae):
    loader = DataLoader(TensorDataset(torch.cat([ROWS, changed_cell(0.5)])), 12)
    with pytest.raises(InputError, match=r"a minibatch of the training data: the value 0.5 in row 3, column 2"):
        run(make_vae(), loader)


def test_data_sets_that_draw_leave_the_global_stream_alone(make_vae):
    class Noisy(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return (torch.rand(6) < 0.5).float()

    vae = make_vae()
    state = torch.get_rng_state()
    run(vae, Noisy())
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_a_batch_are_ratios_too(make_vae):
    weights = torch.linspace(0.5, 2, 12)
    vae = make_vae()
    state = [trained(vae, Batch(ROWS, weight=c * weights), steps=3) for c in (1, 4)]
    assert same(*state)


def test_data_that_do_not_fit_the_device_are_copied_by_the_minibatch(make_vae, monkeypatch):
    from pyro_vae.training import minibatches

    vae = make_vae()
    expected = trained(vae, steps=3)
    monkeypatch.setattr(minibatches, "_fits", lambda needed, device: False)
    assert same(trained(vae, steps=3), expected)  # on one device there is nothing to copy, and nothing to say


@pytest.mark.parametrize("returned", [torch.zeros(()), Loss(torch.zeros(3))], ids=["a tensor", "a vector"])
def test_what_a_phase_must_return_is_said(make_vae, returned):
    class Wrong(Inference):
        def loss(self, vae, batch):
            return returned

    with pytest.raises(InputError, match=r"Wrong: a phase must return Loss\(value, bound\) with a scalar value"):
        run(make_vae(), inference=Wrong())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "inference",
            AEVB,
            r"`inference` is an algorithm such as AEVB\(\).*; got the class `AEVB`, which",
        ),
        ("inference", "aevb", r"`inference` is an algorithm such as AEVB\(\).*; got `'aevb'`"),
        ("optimizer", "Adam", r"`optimizer` is a function .*lambda p: .*; got `'Adam'`"),
    ],
)
def test_what_cannot_be_called_or_was_not_is_named(make_vae, option, value, message):
    with pytest.raises(InputError, match=message):
        run(make_vae(), **{option: value})
    with pytest.raises(InputError, match=r"`inference`|" + message):
        run([make_vae(), make_vae()], **{option: value})


def test_integers_of_any_kind_are_counts_and_seeds(make_vae):
    vae = make_vae()
    options = {"steps": np.int64(3), "batch_size": np.int32(5), "seed": np.int64(2)}
    assert same(trained(vae, **options), trained(vae, steps=3, batch_size=5, seed=2))


def test_a_finite_loss_whose_gradient_overflows_is_not_called_not_finite():
    """The norm of the gradient overflows, and the loss is finite."""
    loss = Loss(torch.tensor(6.8e20))
    assert eager_step.not_finite(loss, {}, ()) == "the norm of the gradient, at a loss of 6.8e+20,"
    assert eager_step.not_finite(Loss(torch.tensor(math.inf)), {}, ()) == "the loss (inf)"


# ---------------------------------------------------------------------- a short last minibatch


def normalised():
    encoder = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7))
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(2, 7))
    return VAE(prior, likelihood, Conditional(dist.Normal, (2,), given=encoder, features=7))


@pytest.mark.parametrize("compile", ["auto", True, False])
def test_a_last_minibatch_of_one_row_is_refused_where_it_has_no_statistics(compile):
    x = ROWS[:11]
    with pytest.raises(
        InputError, match=r"has one row \(11 data in batches of 5\).*`posterior.given.1`.*batch_size=6, or drop_last"
    ):
        fit(normalised(), x, AEVB(), Training(steps=5, batch_size=5, compile=compile))
    for options in ({"batch_size": 6}, {"batch_size": 5, "drop_last": True}, {"batch_size": 11}, {"batch_size": 20}):
        with interpreted():
            fit(normalised(), x, AEVB(), Training(steps=5, compile=compile, **options))


@pytest.mark.parametrize("replicates", [1, 2])
def test_a_short_last_minibatch_may_be_left_out(make_vae, replicates):
    vaes = [make_vae() for _ in range(replicates)]
    for history in fit(vaes, ROWS[:11], AEVB(), Training(epochs=2, batch_size=5, drop_last=True)):
        assert history.samples.tolist() == [5, 10, 15, 20]
    (history, *_) = fit(vaes, ROWS[:11], AEVB(), Training(epochs=2, batch_size=5))
    assert history.samples.tolist() == [5, 10, 11, 16, 21, 22]
    (history, *_) = fit(vaes, ROWS[:4], AEVB(), Training(epochs=2, batch_size=5, drop_last=True))
    assert history.samples.tolist() == [4, 8]  # fewer data than a minibatch has


class Failing(nn.Module):
    """A network whose output is nan from a call on."""

    def __init__(self, inputs):
        super().__init__()
        self.linear, self.out_features, self.calls = nn.Linear(inputs, 7), 7, 10**9

    def forward(self, x):
        self.calls -= 1
        return self.linear(x) * (math.nan if self.calls < 0 else 1.0)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"m2", "enumeration", "mcem"}))
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_nan_is_named_in_every_algorithm_also_where_it_is_drawn_from(name, part):
    """torch refuses to draw from it: "normal expects all elements of std >= 0.0"."""
    encoder, decoder = Failing(6), Failing(2)
    prior = Conditional(dist.Normal, (2,), loc=Learned(0.0, shape=(2,)), scale=Fixed(1.0))
    likelihood = Conditional(dist.Normal, (6,), given=decoder)
    vae = VAE(prior, likelihood, Conditional(dist.Normal, (2,), given=encoder), size=12)
    algorithm = ALGORITHMS[name]()
    for steps, divergence in ((30, "stop"), (30, "raise")):
        (encoder if part == "encoder" else decoder).calls = 25
        training = Training(steps=steps, batch_size=5, compile=False, divergence=divergence)
        if divergence == "stop":
            history = fit(vae, ROWS, algorithm, training)
            assert history.stopped == "diverged"
            assert "is not finite at step" in history.remark
        else:
            says = "the posterior, is not finite" if part == "encoder" else "the likelihood, is not finite"
            with pytest.raises(NonFiniteError, match=says):
                fit(vae, ROWS, algorithm, training)
    assert all(bool(parameter.isfinite().all()) for parameter in vae.parameters())
