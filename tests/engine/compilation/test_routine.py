"""Routines: at whose parameters they run, for which inputs they are compiled, when that pays, what is refused."""

from __future__ import annotations

import copy
import gc
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.engine import CaptureError, interpreted
from pyro_vae.engine.compilation import backend
from pyro_vae.engine.compilation import routine as function
from pyro_vae.engine.compilation.cost import CAPTURE, WARM
from pyro_vae.engine.compilation.routine import Routine, enabled, repeated, routine
from pyro_vae.errors import InputError

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ELU(), nn.Linear(5, 2))


def applied(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return module(x), module(x).sum()


def noisy(module: nn.Module, x: Tensor, scale: float = 1.0) -> Tensor:
    return module(x) + scale * torch.randn(len(x), 2) + torch.rand(())


@contextmanager
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of inputs of each capture in the block."""
    seen: list[int] = []
    true = function.capture
    with monkeypatch.context() as patched:
        patched.setattr(function, "capture", lambda f, m, inputs: (seen.append(len(inputs)), true(f, m, inputs))[1])
        yield seen


def equal(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert not one.requires_grad


# ------------------------------------------------------------------ at which parameters


def added(module: nn.Module) -> None:
    with torch.no_grad():
        module[0].weight += 1.0


def assigned(module: nn.Module) -> None:
    module[0].weight = nn.Parameter(torch.ones(5, 3))


def filled(module: nn.Module) -> None:
    module[0].weight.data = torch.ones(5, 3)


def replaced(module: nn.Module) -> None:
    module[1] = nn.ReLU()


def renewed(module: nn.Module) -> None:
    module[2] = nn.Linear(5, 2)


def doubled(module: nn.Module) -> None:
    module.double().float()


def sloped(module: nn.Module) -> None:
    module[1].alpha = 3.0


def patched(module: nn.Module) -> None:
    module[1].forward = torch.sin


def hooked(module: nn.Module) -> None:
    module[2].register_forward_hook(lambda part, given, result: result + 1)


@pytest.mark.parametrize(
    "change", [added, assigned, filled, replaced, renewed, doubled, sloped, patched, hooked], ids=lambda f: f.__name__
)
def test_each_call_is_of_the_module_as_it_is_then(change: Callable[[nn.Module], None]) -> None:
    module = network()
    run = routine(applied, module)
    with interpreted(), enabled(True):
        before = run(X)
        equal(before, applied(module, X))
        change(module)
        after = run(X)
        equal(after, applied(module, X))
        equal(run(X), applied(module, X))
    assert torch.equal(before[0], after[0]) is (change is doubled)


def test_another_type_is_another_program() -> None:
    module = network()
    run = routine(lambda module: module[0].weight.exp(), module)
    with interpreted(), enabled(True):
        assert run().dtype == torch.float32
        module.double()
        torch.testing.assert_close(run(), module[0].weight.exp().detach(), rtol=0, atol=1e-15)


class Centred(nn.Module):
    """Subtracts the mean; a running one in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
            self.count = self.count + 1  # assigned
        return x - (x.mean(0) if self.training else self.mean)


def test_modes_of_parts_are_heeded_and_changed_buffers_are_kept() -> None:
    module, other = (nn.Sequential(nn.Linear(3, 2), Centred()) for _ in range(2))
    other.load_state_dict(module.state_dict())
    run = routine(applied, module)
    with interpreted(), enabled(True):
        for training in (True, False, True):
            module.train(training)
            other.train(training)
            equal(run(X), applied(other, X))
            for name, buffer in module.named_buffers():
                torch.testing.assert_close(buffer, other.get_buffer(name))
    assert int(module[1].count) == 4  # each of the two applies the network twice


def test_noise_is_that_of_the_function_and_capturing_draws_none() -> None:
    module = network()
    run = routine(noisy, module)
    torch.manual_seed(1)
    expected = [noisy(module, X).detach() for _ in range(3)]
    torch.manual_seed(1)
    with interpreted(), enabled(True):
        got = [run(X) for _ in range(3)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ kinds of inputs


def test_a_program_for_each_kind_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    run = routine(noisy, module)
    with interpreted(), enabled(True), captures(monkeypatch) as seen:
        for _ in range(2):
            for n, scale in ((4, 1.0), (3, 1.0), (4, 0.0)):
                torch.manual_seed(2)
                got = run(X[:n], scale)
                torch.manual_seed(2)
                torch.testing.assert_close(got, noisy(module, X[:n], scale).detach(), rtol=0, atol=1e-6)
    assert len(seen) == 3


def test_nested_inputs_and_results_and_any_strides() -> None:
    def nested(module: nn.Module, pair: tuple[Tensor, Tensor | None], more: list[Tensor]) -> dict[str, Any]:
        return {"sum": module(pair[0]) + sum(more), "none": pair[1], "two": (2, more[0])}

    module = network()
    run = Routine(nested, module)
    inputs = (X.T.contiguous().T, None), [torch.ones(1, 2).expand(4, 2), torch.ones(4, 1)]
    with interpreted(), enabled(True):
        for given in (inputs, ((X, None), [t.contiguous() for t in inputs[1]])):
            got = run(*given)
            assert got["none"] is None
            assert got["two"][0] == 2
            torch.testing.assert_close(got["sum"], module(X).detach() + 2, rtol=0, atol=1e-6)
            torch.testing.assert_close(got["two"][1], torch.ones(4, 2))
    assert len(run.kinds) == 1


def test_the_number_of_programs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "MOST", 2)
    run = routine(applied, module := network())
    with interpreted(), enabled(True):
        run(X)
        run(X[:2])
        with pytest.raises(CaptureError, match="inputs of more than 2 kinds"):
            run(X[:3])
        run(X)
    with interpreted(), enabled("auto", calls=10**9):
        for _ in range(3):
            run(X[:1])
        with pytest.warns(UserWarning, match="`applied` runs uncompiled"):
            run(X[:1])
        run(X[:1])
    monkeypatch.setattr(function, "_KINDS", 4)
    with enabled("auto"):
        for n in range(2, 30):
            run(X[:1].expand(n, 3))
    assert len(run.kinds) <= 4
    del module


def test_a_ready_program_takes_the_tensors_alone() -> None:
    module = network()
    run = routine(noisy, module)
    assert run.ready(X, 0.0) is None
    with interpreted(), enabled(True):
        program = run.ready(X, 0.0)
        assert program is not None
        torch.manual_seed(3)
        got = program([X + 1])
        torch.manual_seed(3)
        torch.testing.assert_close(got, noisy(module, X + 1, 0.0).detach(), rtol=0, atol=1e-6)


# ------------------------------------------------------------------ when


def test_outside_of_a_block_the_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    run = routine(applied, module)
    with captures(monkeypatch) as seen:
        equal(run(X), applied(module, X))
        with enabled(False):
            assert run(X, otherwise=lambda: "other") == "other"
        with interpreted(), enabled(True):
            with enabled(False):
                run(X)
            assert not seen
            assert run(X, otherwise=lambda: "other") != "other"
    assert seen == [1]


def test_auto_compiles_what_is_called_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a millisecond, of which a share of 0.3 is saved, against the cost of capturing and loading."""
    clock = iter(range(10**6))
    monkeypatch.setattr(function.time, "perf_counter", lambda: next(clock) * 1e-3)
    costs = {"": 15.0, "disk": 3.0, "process": 0.0}
    monkeypatch.setattr(function, "compile_cost", costs.__getitem__)
    for calls, where, expected in (
        (100, "process", None),  # not even captured
        (13_000, "", None),
        (20_000, "disk", 3),
        (20_000, "", None),
        (60_000, "", 3),
        (20_000, "process", 3),
    ):
        monkeypatch.setattr(function, "known", lambda *_, where=where: where)
        run = Routine(applied, module := network())
        with interpreted(), enabled("auto", calls):
            compiled = [run(X, otherwise=lambda: None) is not None for _ in range(10)]
        assert compiled.count(False) == (10 if expected is None else expected), (calls, where)
        assert [kind.cost for kind in run.kinds.values()] in ([WARM + CAPTURE], [costs[where]])
        del module


def test_what_was_done_often_is_expected_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any word of how many calls there will be."""
    clock = iter(range(10**6))
    monkeypatch.setattr(function.time, "perf_counter", lambda: next(clock) * 1.0)
    monkeypatch.setattr(function, "known", lambda *_: "")
    module = network()
    run = Routine(applied, module)
    with interpreted(), enabled("auto"):
        done = [run(X, otherwise=lambda: None) is None for _ in range(100)]
    assert done == [True] * 67 + [False] * 33  # 20 s at 0.3 s for each


def test_expectations_multiply_and_a_short_part_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    with enabled(True, 3) as terms:
        with repeated(4), repeated(5):
            assert (function._terms.get().calls, function._terms.get().mode) == (60, True)
            with repeated(2, optional=True):
                assert (function._terms.get().calls, function._terms.get().mode) == (120, "auto")
        assert function._terms.get() is terms
    with enabled(False), repeated(2, optional=True):
        assert function._terms.get().mode is False
    with pytest.raises(InputError, match="`compile` is \"auto\", True or False, got `'maybe'`"), enabled("maybe"):  # type: ignore[arg-type]
        pass


def test_what_takes_long_is_shown_and_told() -> None:
    titles: list[str] = []

    @contextmanager
    def busy(title: str) -> Iterator[None]:
        titles.append(title)
        yield

    run = routine(applied, module := network())
    with interpreted(), enabled(True, busy=busy) as terms:
        with repeated(7):
            run(X)
        first = terms.seconds
        run(X)
    assert titles == ["compiling"]
    assert terms.seconds == first > 0
    del module


# ------------------------------------------------------------------ refusals


def branching(module: nn.Module, x: Tensor) -> Tensor:
    return module(x) if bool(x.sum() > 0) else x


def test_what_cannot_be_captured_is_an_error_or_runs_as_it_is_with_one_warning() -> None:
    run = routine(branching, module := network())
    with enabled("auto", 10**9):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            results = [run(X) for _ in range(10)]
            results += [run(X[:4].clone(), otherwise=lambda: branching(module, X).detach()) for _ in range(10)]
            for _ in range(10):
                run(X[:2])
        (warning,) = told
        assert re.search(r"`branching` runs uncompiled: .*line \d+: .*bool\(x.sum\(\) > 0\)", str(warning.message))
    for result in results:
        torch.testing.assert_close(result, branching(module, X).detach())
    with enabled(True):
        for _ in range(2):
            with pytest.raises(CaptureError, match="a value decides"):
                run(X)
    torch.testing.assert_close(run(X), branching(module, X).detach())


# ------------------------------------------------------------------ whose


def test_a_module_has_its_routines_as_long_as_it_lives_and_a_copy_its_own() -> None:
    module = network()
    assert routine(applied, module) is routine(applied, module)
    assert routine(applied, module) is not routine(noisy, module)
    with interpreted(), enabled(True):
        routine(applied, module)(X)
        copied = copy.deepcopy(module)
        assert not routine(applied, copied).kinds
        added(copied)
        equal(routine(applied, copied)(X), applied(copied, X))
        equal(routine(applied, module)(X), applied(module, X))
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@pytest.mark.machine_code
def test_machine_code_gives_the_same() -> None:
    """And loads no second time what the process has."""
    module, other = network(), network()
    with enabled(True) as terms:
        for _ in range(2):
            torch.manual_seed(4)
            got = routine(noisy, module)(X)
            torch.manual_seed(4)
            torch.testing.assert_close(got, noisy(module, X).detach(), rtol=0, atol=1e-6)
            added(module)
        known = len(backend._compiled)
        routine(noisy, other)(X)
    assert len(backend._compiled) == known
    assert len(terms.costs) == 2
