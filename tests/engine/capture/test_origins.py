"""What a captured program may read: values that depend on nothing it is given, as long as they stay as they are."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from captures import assert_captured
from pyro import poutine
from torch import nn
from torch.distributions.utils import vec_to_tril_matrix

from pyro_vae.engine import CaptureError, Ledger, Step, interpreted
from pyro_vae.engine.capture.capture import capture
from pyro_vae.engine.compilation.routine import enabled, routine

NET = nn.Linear(3, 4).double()
ROWS = torch.tensor([True, False, True, True, False])
CELLS = torch.arange(20).reshape(5, 4) % 3 > 0
COUNTS = torch.tensor([2, 0, 1])


def data(seed=0):
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).double()


def put(x, **options):
    return torch.zeros(5, 4).double().index_put((ROWS,), NET(x)[:3], **options)


def assigned(x):
    full = NET(x).clone()
    full[CELLS] = 2 * full[CELLS] ** 2
    full[~ROWS] = 1.0
    return full


READ = {
    "rows": lambda x: NET(x)[ROWS],
    "cells": lambda x: NET(x)[CELLS],
    "rows and a column": lambda x: NET(x)[ROWS, 1],
    "columns": lambda x: NET(x)[:, CELLS[0]],
    "rows and columns": lambda x: NET(x)[ROWS, torch.tensor([0, 2, 3])],
    "rows after a new dimension": lambda x: NET(x)[None, ROWS],
    "none": lambda x: NET(x)[ROWS & ~ROWS].sum() + NET(x),
    "a list": lambda x: NET(x)[[True, False, False, False, True]],
    "made within": lambda x: NET(x)[torch.arange(5) < 3],
    "of shapes": lambda x: NET(x)[torch.ones(x.shape[0], dtype=torch.bool)],
    "masked_select": lambda x: NET(x).masked_select(CELLS),
    "masked_select of columns": lambda x: NET(x).masked_select(CELLS[:1]),
    "masked_select of one": lambda x: NET(x).sum().masked_select(torch.tensor(True)),
    "index_put": put,
    "index_put twice": lambda x: put(x, accumulate=True),
    "assignment": assigned,
    "nonzero": lambda x: NET(x)[ROWS.nonzero()[:, 0]],
    "where": lambda x: NET(x)[torch.where(ROWS)],
    "unique": lambda x: NET(x)[:, torch.unique(COUNTS)],
    "repeat": lambda x: NET(x)[:3].repeat_interleave(COUNTS, 0),
    "triangle": lambda x: vec_to_tril_matrix(NET(x)[:, :3]),
    "number": lambda x: NET(x) * (COUNTS + 1).sum().item(),
    "branch": lambda x: NET(x) if COUNTS.sum() == 3 else -NET(x),
    "equal": lambda x: NET(x) if torch.equal(COUNTS, COUNTS + 0) else -NET(x),
    "changed within": lambda x: NET(x) * torch.tensor([1.0, 2.0]).add_(1.0).double()[1].item(),
}


@pytest.mark.parametrize("name", READ)
def test_what_depends_on_nothing_given_may_be_read(name):
    assert_captured(lambda x: READ[name](x).square().sum(), {"n": NET}, [data()], [data(1)])


def by_a_view(x):
    mask = torch.zeros(5, dtype=torch.bool)
    mask[1:4].copy_(x[1:4, 0] > 0)
    return mask


def into_an_output(x):
    mask = torch.zeros(5, dtype=torch.bool)
    torch.gt(x[:, 0], 0, out=mask)
    return mask


def from_a_buffer(x):
    return STATEFUL.seen > 0


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.ones(5))


STATEFUL = Stateful()
DEPENDENT = {
    "input": lambda x: x[:, 0] > 0,
    "detached input": lambda x: x.data[:, 0] > 0,
    "noise": lambda x: torch.rand(5) > 0.5,
    "a Bernoulli draw": lambda x: torch.bernoulli(torch.full((5,), 0.5)).bool(),
    "a Gamma draw": lambda x: torch._standard_gamma(torch.ones(5)) > 1,
    "a permutation": lambda x: torch.randperm(5) > 2,
    "parameter": lambda x: NET.weight.new_tensor([0.0]).expand(5) < NET.bias[0],
    "buffer": from_a_buffer,
    "view": by_a_view,
    "out": into_an_output,
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_masks_that_depend_on_anything_given_are_refused(name):
    with pytest.raises(CaptureError, match=r"a shape depends on values at test_origins.py, line"):
        capture(lambda x: NET(x)[DEPENDENT[name](x)].sum(), {"n": NET, "s": STATEFUL}, [data()], ["n.weight"])


def test_what_was_read_must_stay_as_it_is():
    held, other = torch.tensor([True, False, True, True, False]), torch.tensor(2.0).double()
    captured = capture(lambda x: NET(x)[held].sum() * other, {"n": NET}, [data()])
    state = ({f"n.{name}": p.detach() for name, p in NET.named_parameters()}, {}, [data()])
    before = captured(*state).result
    other.fill_(3.0)  # not read: part of the program's arguments
    torch.testing.assert_close(captured(*state).result, before / 2 * 3)
    held[1] = True
    with pytest.raises(
        CaptureError, match=r"shape \(5,\) was changed in place.*test_origins.py, line \d+: `captured = cap"
    ):
        captured(*state)
    held[1] = False
    torch.testing.assert_close(captured(*state).result, before / 2 * 3)


def test_a_step_does_not_go_on_where_what_was_read_has_changed():
    net, held = nn.Linear(3, 2), torch.tensor(2.0)
    ledger = Ledger(torch.optim.SGD(net.parameters(), lr=0.1), [list(net.parameters())], torch.device("cpu"))
    wanted = ["n.weight", "n.bias"]
    step = Step(lambda x: net(x).square().sum() * held.item(), {"n": net}, [torch.ones(3)], wanted, ledger)
    step([torch.ones(3)])
    before = net.weight.detach().clone()
    held.fill_(3.0)
    with pytest.raises(CaptureError, match="was changed in place"):
        step([torch.ones(3)])
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("mode", [True, "auto"])
def test_a_routine_does_not_go_on_where_what_was_read_has_changed(mode):
    net, held = nn.Linear(3, 2), torch.tensor(2.0)
    run = routine(lambda module, x: module(x) * held.item(), net)
    with interpreted(), enabled(True):
        torch.testing.assert_close(run(torch.ones(3)), net(torch.ones(3)).detach() * 2)
    held.fill_(5.0)
    if mode is True:
        with interpreted(), enabled(mode), pytest.raises(CaptureError, match="was changed in place"):
            run(torch.ones(3))
    else:
        said = pytest.warns(UserWarning, match="runs uncompiled: .* was changed in place")
        with interpreted(), enabled(mode), said:
            torch.testing.assert_close(run(torch.ones(3)), net(torch.ones(3)).detach() * 5)


def test_distributions_made_beforehand_with_validation_do_not_validate_within():
    prior = dist.Normal(torch.zeros(4).double(), 1.0, validate_args=True).to_event(1)
    lower = dist.LKJCholesky(3, torch.tensor(1.5).double(), validate_args=True)
    own = dist.LowRankMultivariateNormal(torch.zeros(4), torch.ones(4, 1), torch.ones(4), validate_args=True)

    def program(x):
        y = NET(x)
        chol = torch.linalg.cholesky(torch.eye(3).double() + 0.1 * y[0, 0] ** 2)
        chol = chol / chol.norm(dim=-1, keepdim=True)
        return prior.log_prob(y).sum() + lower.log_prob(chol) + own.log_prob(y.float()).sum()

    assert_captured(program, {"n": NET}, [data()], [data(1)])


# ------------------------------------------------------------------ what would go wrong in silence


def test_a_tensor_from_elsewhere_is_not_changed_in_place():
    held = torch.zeros(3).double()

    def program(x, change):
        change(held)
        return (NET(x)[:, :3] + held).sum()

    for change in (lambda t: t.add_(1), lambda t: t[0].fill_(2), lambda t: torch.add(t, 1, out=t)):
        with pytest.raises(
            CaptureError, match=r"shape \(\d?,?\) that belongs to none of the program.*make it a buffer"
        ):
            capture(lambda x, change=change: program(x, change), {"n": NET}, [data()])
    assert torch.equal(held, torch.zeros(3).double())
    assert_captured(lambda x: program(x, lambda t: t.clone().add_(1)), {"n": NET}, [data()], [data(1)])


def seeded(x):
    torch.manual_seed(3)
    return NET(x).sum() * torch.randn(())


def seeded_for_a_part(x):
    with poutine.seed(rng_seed=3):
        return NET(x).sum() * pyro.sample("z", dist.Gamma(2.0, 1.0))


@pytest.mark.parametrize("program", [seeded, seeded_for_a_part])
def test_a_program_that_seeds_itself_is_refused(program):
    for seed in range(2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with pytest.raises(
            CaptureError, match=r"test_origins.py, line .* draws from a seed that the program itself sets"
        ):
            capture(program, {"n": NET}, [data()])
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.initial_seed() == seed


def test_a_view_of_what_a_step_moves_is_refused():
    view, frozen = NET.bias.detach()[:1], NET.weight.detach()
    with pytest.raises(CaptureError, match=r"shape \(1,\) that shares its memory with `n.bias`.*\.clone\(\)"):
        capture(lambda x: (NET(x) * view).sum(), {"n": NET}, [data()], ["n.bias"])
    capture(lambda x: (NET(x) * frozen.sum()).sum(), {"n": NET}, [data()], ["n.bias"])


def test_a_refusal_within_a_density_is_one_of_capture_and_names_the_site():
    def program(x):
        def model():
            pyro.sample("y", dist.NanMaskedNormal(NET(x), 1.0).to_event(2), obs=torch.ones(5, 4).double() / x[:, :1])

        return poutine.trace(model).get_trace().log_prob_sum()

    with pytest.raises(CaptureError, match=r"\(site `y`, NanMaskedNormal\); use Normal") as refused:
        capture(program, {"n": NET}, [data()])
    assert "Trace Shapes" not in str(refused.value)
