"""CompiledSVI over twenty or fifty steps of each of many Pyro programs, op by op and compiled for the machine."""

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro_programs import PROGRAMS, annealed, deep_exponential_family
from svi_runs import adam, assert_same, fresh, run, sparing
from z_test import assert_mean

from pyro_vae import CompiledSVI

_fresh = pytest.fixture(autouse=True)(fresh)


# Each of another kind; the rest are variations.
FAST = (
    *("regression", "low_rank", "relaxed_mixture", "deep_exponential_family", "state_space", "gaussian_process"),
    *("annealed", "masked", "modules", "discrete", "correlated", "complete_cases"),
)


@pytest.mark.parametrize("program", sparing(PROGRAMS, FAST))
def test_equals_svi_over_twenty_steps(program):
    assert_same(run(program, [SVI] * 20), run(program, [CompiledSVI] * 20))


@pytest.mark.slow
def test_a_float32_program_equals_svi_to_rounding():
    torch.set_default_dtype(torch.float32)
    assert_same(run(annealed, [SVI] * 50), run(annealed, [CompiledSVI] * 50), 1e-5)


@pytest.fixture
def really_compiled():
    """Real compilation, in place of the graphs that all other tests run op by op."""
    from pyro_vae.engine.compilation import backend

    before, backend._interpreted = backend._interpreted, False
    yield
    backend._interpreted = before


def test_compiled_for_the_machine_it_equals_svi(really_compiled):
    assert_same(run(annealed, [SVI] * 50), run(annealed, [CompiledSVI] * 50))


@pytest.mark.slow
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p is not deep_exponential_family], ids=lambda p: p.__name__)
def test_every_program_compiled_for_the_machine_equals_svi(program, really_compiled):
    assert_same(run(program, [SVI] * 50), run(program, [CompiledSVI] * 50), 1e-8)


@pytest.mark.slow
def test_gamma_draws_compiled_for_the_machine_have_their_law(really_compiled):
    """They come in another order than Pyro's: so no two losses are equal, but their ranks among all are alike."""
    draws, losses = 500, {}
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(5)
        made = deep_exponential_family()
        svi = kind(made.model, made.guide, adam(), made.loss)
        losses[kind] = torch.tensor([svi.evaluate_loss(*made.arguments(0)) for _ in range(draws)])
        assert kind is SVI or svi.execution.startswith("compiled in ")
        before = losses[kind].median()
        losses[kind, "trained"] = torch.tensor([svi.step(*made.arguments(0)) for _ in range(draws)])
        assert losses[kind, "trained"][-draws // 10 :].median() < before
    both = torch.cat([losses[SVI], losses[CompiledSVI]])
    ranks = both.argsort().argsort().double()
    for score in (ranks, (ranks - ranks.mean()).abs()):  # location and spread (Wilcoxon; Ansari and Bradley)
        assert_mean(score[:draws].mean(), score.mean(), score.std() / (2 * draws) ** 0.5)
