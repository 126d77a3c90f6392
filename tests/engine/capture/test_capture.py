"""A captured program is the program: values, gradients and buffers; and what cannot be captured is refused by line."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from algorithm_cases import data, made, small_vae
from captures import assert_captured
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from pyro_vae import VAE, Batch, Conditional, Fixed, Learned, mlp
from pyro_vae.engine import CaptureError
from pyro_vae.engine.capture.capture import capture
from pyro_vae.inference import AEVB, ScoreFunction

# ------------------------------------------------------------------ what is captured


@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("name", ["dreg", "piwae", "wake-sleep", "m2", "score-function", "rws"])
def test_phases_of_algorithms_at_other_parameters_data_and_noise(name, dtype):
    vae, inference = small_vae(name, dtype=dtype), made(name).to(dtype)
    inference.check(vae)
    batch = data(name, dtype)
    carry = None
    for phase in inference.phases:
        frozen = set(map(id, (*vae.parameters(), *inference.parameters()))) - set(
            map(id, inference.moved(vae, phase).values())
        )
        for p in (*vae.parameters(), *inference.parameters()):
            p.requires_grad_(id(p) not in frozen)
        other = batch.map(lambda field: field.flip(1) if field is batch.x else field)
        assert_captured(
            lambda b, phase=phase: phase.compute(vae, b, carry)[0], {"vae": vae, "own": inference}, [batch], [other]
        )
        for p in (*vae.parameters(), *inference.parameters()):
            p.requires_grad_(True)


def test_batches_with_every_field_and_a_prior_over_parameters():
    torch.manual_seed(0)
    likelihood = Conditional(dist.Normal, (6,), given=mlp(2 + 3, 5), scale=Learned(0.5))
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae = VAE(
        prior, likelihood, mlp(6 + 3, 5), size=50, context_features=3, parameter_prior=dist.Normal(0.0, 1.0)
    ).double()

    def batch(seed):
        torch.manual_seed(seed)
        x = torch.randn(7, 6).double()
        return Batch(x, torch.randn(7, 3).double(), torch.rand(7, 6) < 0.7, None, torch.rand(7).double())

    assert_captured(lambda b: AEVB(3).loss(vae, b), {"vae": vae}, [batch(0)], [batch(1)])


def test_an_offset_enters():
    torch.manual_seed(0)
    from pyro_vae import Network

    likelihood = Conditional(dist.Poisson, (6,), given=mlp(2, 5), rate=Network(offset=True))
    vae = VAE(Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)), likelihood, mlp(6, 5)).double()
    batches = [Batch(torch.full((7, 6), 2.0).double(), offset=torch.full((7, 1), o).double()) for o in (0.0, 1.5)]
    assert_captured(lambda b: AEVB().loss(vae, b), {"vae": vae}, batches[:1], batches[1:])


@pytest.mark.parametrize("training", [True, False])
def test_batch_statistics_are_among_what_is_returned(training):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Linear(4, 2)).double().train(training)
    captured = assert_captured(
        lambda x: net(x).square().mean(), {"n": net}, [torch.randn(5, 3).double()], [torch.randn(5, 3).double()]
    )
    names = {f"n.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(captured.changed) == (names if training else set())
    assert len(captured.draws) == training


def test_a_buffer_that_is_assigned_anew():
    inference, vae = ScoreFunction("running", 3), small_vae("aevb")
    for b in (torch.randn(()), torch.randn(())):
        inference.running_sum.copy_(b)

    class Assigning(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x):
            value = (self.w * x).sum()
            self.mean = 0.9 * self.mean + 0.1 * value.detach()
            self.mean.add_(1.0)
            return value - self.mean

    module = Assigning()
    captured = assert_captured(lambda x: module(x), {"m": module}, [torch.ones(3)], [torch.randn(3)])
    assert captured.changed == ("m.mean",)
    captured = assert_captured(lambda b: inference.loss(vae, b), {"vae": vae, "own": inference}, [data("aevb")])
    assert captured.changed == ("own.running_sum", "own.running_weight")


def test_tied_and_frozen_parameters():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    tied[2].weight = tied[0].weight
    tied[3].requires_grad_(False)
    captured = assert_captured(lambda x: tied(x).square().sum(), {"t": tied}, [torch.randn(4, 3).double()])
    assert captured.parameters == ("t.0.weight", "t.0.bias", "t.2.bias", "t.3.weight", "t.3.bias")
    assert captured.differentiated == ("t.0.weight", "t.0.bias", "t.2.bias")


def test_gradients_hooks_functional_calls_and_checkpoints_within():
    net = nn.Linear(3, 2).double()

    def program(x):
        inner = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(net(inner).tanh().sum(), inner, create_graph=True)
        y = net(x)
        y.register_hook(lambda gradient: gradient * 2)
        detached = functional_call(net, {n: p.detach() for n, p in net.named_parameters()}, (x,))
        again = checkpoint(lambda a: net(a).exp(), x, use_reentrant=False)
        return slope.square().sum() + y.sum() + (detached * net(x)).sum() + again.sum()

    assert_captured(program, {"n": net}, [torch.randn(4, 3).double()], [torch.randn(4, 3).double()])


def test_outputs_of_any_structure():
    net = nn.Linear(3, 2).double()

    def program(x, options):
        y = net(x)
        return (
            y.sum(),
            {"x": x, "weight": net.weight, "positive": y > 0, "whole": y.long(), "n": 3, "none": None},
            options,
        )

    x = torch.randn(4, 3).double()
    assert_captured(program, {"n": net}, [x, {"a": [1, "b"]}], [x + 1, {"a": [1, "b"]}])


def test_inputs_of_another_layout():
    net = nn.Linear(3, 2).double()
    captured = capture(lambda x: net(x.reshape(-1, 3)).sum(), {"n": net}, [torch.randn(4, 3).double()], ["n.weight"])
    x = torch.randn(3, 4).double().T
    state = ({f"n.{name}": p for name, p in net.named_parameters()}, {})
    torch.testing.assert_close(captured(*state, [x]).result, net(x).sum().detach())


def test_constants_that_a_program_holds():
    net, held = nn.Linear(3, 2).double(), torch.tensor([2.0, 3.0]).double()
    number = torch.tensor(3.0)
    captured = assert_captured(
        lambda x: (net(x) * held).sum() * number.item() * torch.tensor(3.0).item(),
        {"n": net},
        [torch.randn(4, 3).double()],
    )
    assert any(constant is held or torch.equal(constant, held) for constant in captured.constants)


def test_one_hot_vectors():
    net = nn.Linear(3, 4).double()
    assert_captured(
        lambda x: (net(x) * nn.functional.one_hot(x.argmax(1), 4)).sum(),
        {"n": net},
        [torch.randn(4, 3).double()],
        [torch.randn(4, 3).double()],
    )


# ------------------------------------------------------------------ what is refused

NET = nn.Linear(3, 2)


def _prints(x):
    print(NET(x))  # noqa: T201
    return NET(x).sum()


def _loops(x):
    y = NET(x).sum()
    while y > 1:
        y = y / 2
    return y


def _branches(x):
    y = NET(x).sum()
    return y if y > 0 else -y


READS = {
    "item": (lambda x: NET(x).sum() * x.sum().item(), "a value decides"),
    "float": (lambda x: NET(x).sum() * float(x.sum()), "a value decides"),
    "int": (lambda x: NET(x).sum() * int(x.sum()), "a value decides"),
    "branch": (_branches, "a value decides"),
    "while": (_loops, "a value decides"),
    "any": (lambda x: NET(x).sum() * any(x.sum(0) > 0), "a value decides"),
    "equal": (lambda x: NET(x).sum() * torch.equal(x, x), "a value decides"),
    "print": (_prints, "values are read"),
    "format": (lambda x: NET(x).sum() * len(f"{x.sum():.3f}"), "values are read"),
    "tolist": (lambda x: NET(x).sum() * x.tolist()[0][0], "values are read"),
    "numpy": (lambda x: NET(x).sum() * x.numpy().sum(), "values are read"),
    "asarray": (lambda x: NET(x).sum() * float(np.asarray(x.detach()).sum()), "values are read"),
    "dlpack": (lambda x: NET(x).sum() * torch.from_dlpack(x).sum(), "values are read"),
    "tensor of tensors": (lambda x: NET(x).sum() * torch.tensor([x.sum(), 1.0]).sum(), "values are read"),
    "mask": (lambda x: NET(x).sum() * x[x > 0].sum(), "a shape depends"),
    "nonzero": (lambda x: NET(x).sum() * x.nonzero().sum(), "a shape depends"),
    "unique": (lambda x: NET(x).sum() * torch.unique(x).sum(), "a shape depends"),
    "masked_select": (lambda x: NET(x).sum() * x.masked_select(x > 0).sum(), "a shape depends"),
    "repeat": (lambda x: NET(x).sum() * torch.arange(5).repeat_interleave(x[:, 0].long()).sum(), "a shape depends"),
    "cond": (
        lambda x: torch.cond(x.sum() > 0, lambda a: a.sum(), lambda a: -a.sum(), (NET(x),)),
        "runs programs of its",
    ),
}


@pytest.mark.parametrize("name", READS)
def test_what_depends_on_values_is_refused_with_its_line(name):
    program, reason = READS[name]
    with pytest.raises(CaptureError, match=reason) as refusal:
        capture(program, {"n": NET}, [torch.rand(5, 3)], ["n.weight"])
    source = {"print": "print(NET(x))", "while": "while y > 1:", "branch": "return y if y > 0 else -y"}.get(
        name, "lambda x:"
    )
    assert "test_capture.py, line " in str(refusal.value)
    assert source in str(refusal.value)
    assert "compile=False" in str(refusal.value)


class Picky(dist.Normal):
    def rsample(self, sample_shape=()):
        z = super().rsample(sample_shape)
        return z if z.sum() > 0 else -z


def test_within_a_sample_statement_the_site_and_the_family_are_named():
    def program(x):
        return pyro.sample("z1", Picky(NET(x), 1.0).to_event(1)).sum()

    with pytest.raises(CaptureError, match=r"`return z if z.sum\(\) > 0 else -z` \(site `z1`, Picky\)"):
        capture(program, {"n": NET}, [torch.rand(5, 3)])

    def rejecting(x):
        return pyro.sample("z2", dist.VonMises(NET(x), 1.0).to_event(1)).sum()

    with pytest.raises(CaptureError, match=r"line \d+: `return pyro.sample.*\(site `z2`, VonMises\)"):
        capture(rejecting, {"n": NET}, [torch.rand(5, 3)])


class Counter(nn.Module):
    """What it does to itself is said by name."""

    def __init__(self, what):
        super().__init__()
        self.what, self.calls, self.seen = what, 0, None
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x):
        self.calls += 1
        self.seen = self.w * x
        if self.what == "counts":
            return self.seen.sum() * self.calls
        if self.what == "draws less":
            return self.seen.sum() + (torch.randn(()) if self.calls < 2 else 0)
        if self.what == "draws more":
            return self.seen.sum() + (torch.randn(()) if self.calls > 1 else 0)
        if self.what == "numpy":
            return self.seen.sum() * np.random.rand() * random.random()  # noqa: NPY002
        if self.what == "parameter":
            with torch.no_grad():
                self.w.clamp_(max=0.5)
        if self.what == "input":
            x.mul_(2)
        if self.what == "store":
            return self.seen.sum() * pyro.param("foreign", torch.tensor(2.0))
        return self.seen.sum()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("counts", "output 0 of the captured program differs from that of the program itself"),
        ("numpy", "output 0 of the captured program differs from that of the program itself"),
        ("draws less", "draws less in its second run"),
        ("draws more", "there is none left"),
        ("parameter", "changes the parameter `m.w` in place"),
        ("input", "changes one of its inputs in place"),
        ("store", "a trainable tensor of shape \\(\\) that is no parameter of its modules"),
        ("nothing", None),
    ],
)
def test_what_changes_from_run_to_run_is_refused_and_nothing_is_left_behind(what, reason):
    module, x = Counter(what).requires_grad_(True), torch.rand(3)
    before = (x.clone(), module.w.clone(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    validated = (pyro.infer.is_validation_enabled(), torch.distributions.Distribution._validate_args)
    store = set(pyro.get_param_store().keys())
    if reason is None:
        capture(lambda x: module(x), {"m": module}, [x], ["m.w"])
    else:
        with pytest.raises(CaptureError, match=reason):
            capture(lambda x: module(x), {"m": module}, [x], ["m.w"])
    assert (module.calls, module.seen, module.training) == (0, None, True)
    assert module.w.requires_grad
    assert module.w.grad is None
    assert torch.equal(x, before[0])
    assert torch.equal(module.w, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert random.getstate() == before[3]
    assert (np.random.get_state()[1] == before[4]).all()  # noqa: NPY002
    assert (pyro.infer.is_validation_enabled(), torch.distributions.Distribution._validate_args) == validated
    assert set(pyro.get_param_store().keys()) == store


def test_what_has_no_gradient_is_refused():
    free = torch.ones(2, requires_grad=True)
    x, spare = torch.rand(5, 3), nn.Linear(1, 1)
    for program, wanted, reason in (
        (lambda x: (NET(x) * free).sum(), ["n.weight"], r"a trainable tensor of shape \(2,\)"),
        (lambda x: NET(x).sum(), ["n.weight", "s.bias"], "the loss does not depend on `s.bias`"),
        (lambda x: x.sum(), ["n.weight", "n.bias"], "does not depend on `n.weight`, `n.bias`"),
        (lambda x: NET(x), ["n.weight"], r"a tensor of shape \(5, 2\)"),
        (lambda x: 3, ["n.weight"], "it is no tensor"),
        (lambda x: NET(x).sum(), ["n.wait"], "`n.wait` is no trainable parameter; there are"),
    ):
        with pytest.raises(CaptureError, match=reason):
            capture(program, {"n": NET, "s": spare}, [x], wanted)


def test_errors_of_the_program_itself_come_through():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        capture(lambda x: NET(x).sum(), {"n": NET}, [torch.rand(5, 4)])


@pytest.mark.parametrize("coin", [lambda: random.random() < 2, lambda: np.random.rand() < 2], ids=["python", "numpy"])  # noqa: NPY002
def test_other_random_numbers_than_torchs_are_refused(coin):
    with pytest.raises(CaptureError, match="draws by Python's or NumPy's random numbers"):
        capture(lambda x: x * (2.0 if coin() else 1.0), {}, [torch.ones(3)])


def test_a_refusal_does_not_carry_what_pyro_appends():
    error = CaptureError("capture: a value decides.\nTrace Shapes:\n Param Sites:")
    assert str(error) == "capture: a value decides."
