"""Importance-sampled log p(x) and the ELBO against the exact answers of the linear-Gaussian oracle."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from scipy.stats import chi2
from torch import Tensor
from z_test import FAILURE_RATE, assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, VampPrior, mlp
from pyro_vae.engine import Lifted, interpreted
from pyro_vae.engine.compilation import routine as function
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, elbo, importance, log_marginal

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(25)
EXACT = MODEL.log_marginal(X)


def widened(wider: float) -> VAE:
    return MODEL.vae(MODEL.exact_encoder(wider))


@pytest.mark.parametrize("diagonal", [True, False])
def test_log_marginal_is_exact_at_the_exact_posterior(diagonal: bool) -> None:
    model = LinearGaussian.random(5, 2, diagonal=diagonal)
    vae = model.vae(model.exact_encoder() if diagonal else None, size=1000)  # whose N/M must not enter the weights
    weight = torch.linspace(0, 2, 25)  # of each datum in the mean, not in its own weights
    result = log_marginal(vae, Batch(X, weight=weight), num_samples=50)
    torch.testing.assert_close(result.pointwise, model.log_marginal(X), rtol=0, atol=1e-10)
    assert result.value == pytest.approx(float((weight * model.log_marginal(X)).sum() / weight.sum()), abs=1e-6)
    assert result.standard_error < 1e-10
    assert result.diagnostics["pareto_k"].tolist() == [-math.inf] * 25
    torch.testing.assert_close(result.diagnostics["effective_sample_size"], torch.full((25,), 50.0).double())


@pytest.mark.parametrize("rows", [50_000, 4000, 700], ids=lambda rows: f"chunks of {rows}")
def test_estimates_hit_the_exact_values_within_their_errors_whatever_the_chunks(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many rows are decoded at once, and every datum gets exactly S samples in the order of the data."""
    monkeypatch.setitem(importance._ROWS, "cpu", rows)
    vae, encoder, num_samples = widened(1.6), MODEL.exact_encoder(1.6), 2000
    drawn: list[tuple[int, int]] = []
    encoded: list[int] = []

    def counting_likelihood(z: Tensor, part: Batch) -> Tensor:
        drawn.append((len(z), part.size))
        return VAE.log_likelihood_of(vae, z, part)

    def counting_encode(part: Batch) -> dist.TorchDistribution:
        encoded.append(part.size)
        return VAE.posterior_given(vae, part)

    vae.log_likelihood_of, vae.posterior_given = counting_likelihood, counting_encode
    for estimate, exact in ((log_marginal, EXACT), (elbo, MODEL.elbo(X, *encoder(X)))):
        drawn.clear()
        encoded.clear()
        result = estimate(vae, X, num_samples)
        assert sum(encoded) == 25  # each datum once
        assert sum(k * size for k, size in drawn) == num_samples * 25
        assert max(k * size for k, size in drawn) <= rows
        assert (len(drawn) == 1) is (rows >= num_samples * 25)
        error = result.diagnostics["pointwise_error"]
        bias = -(error.square()) / 2 if estimate is log_marginal else torch.zeros_like(error)  # of log of a mean
        assert_mean(result.pointwise - bias, exact, error)
        mean = torch.tensor([result.value, result.standard_error]).double()
        assert_mean(mean[:1] - bias.mean(), exact.mean().reshape(1), mean[1:])


@pytest.mark.parametrize("estimate", [log_marginal, elbo])
def test_the_standard_error_is_the_spread_over_independent_copies(estimate: Callable[..., Estimate]) -> None:
    """By a chi-square test over copies of four data, each with its own draws: for each datum, and for their mean."""
    copies = 200
    result = estimate(widened(1.6), X[:4].repeat(copies, 1), 1000)
    values, errors = (t.reshape(copies, 4) for t in (result.pointwise, result.diagnostics["pointwise_error"]))
    assert result.value == pytest.approx(float(values.mean()), rel=1e-12)
    assert result.standard_error == pytest.approx(float(errors.square().sum().sqrt()) / errors.numel(), rel=1e-9)
    values = torch.cat([values, values.mean(1, keepdim=True)], 1)
    errors = torch.cat([errors, errors.square().sum(1, keepdim=True).sqrt() / 4], 1)
    statistic = ((values - values.mean(0)) / errors).square().sum(0)
    tail = FAILURE_RATE / 2 / statistic.numel()
    assert float(statistic.min()) > chi2.ppf(tail, copies - 1)
    assert float(statistic.max()) < chi2.isf(tail, copies - 1)


def test_effective_sample_size_is_that_of_the_weights() -> None:
    """S / E[w^2] for weights of mean 1, which has a closed form in each dimension and is the same for all data.

    So has the bias, their relative variance E[w^2] - 1 over 2S.
    """
    result = log_marginal(widened(1.6), MODEL.sample(100), num_samples=20_000)
    fraction = (math.sqrt(2 * 1.6**2 - 1) / 1.6**2) ** 2
    assert_mean(result.diagnostics["effective_sample_size"] / 20_000, torch.tensor(fraction).double())
    assert_mean(result.diagnostics["bias"] * 40_000, torch.tensor(1 / fraction - 1).double())
    torch.testing.assert_close(result.diagnostics["bias"], result.diagnostics["pointwise_error"].square() / 2)
    assert result.diagnostics["method"] == "importance sampling"


def test_log_marginal_of_partly_observed_data_is_that_of_the_observed_cells() -> None:
    """Here q is the prior, so that a datum without any observed cell has weights 1."""
    mask = torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[0] = False
    exact = torch.zeros(25, dtype=torch.float64)
    for i, (x, seen) in enumerate(zip(X, mask, strict=True)):
        if bool(seen.any()):
            exact[i] = LinearGaussian(MODEL.W[seen], MODEL.b[seen], MODEL.s[seen]).log_marginal(x[seen])
    prior = Encoder(torch.zeros(2, 5).double(), torch.zeros(2).double(), torch.ones(2).double())
    result = log_marginal(MODEL.vae(prior), Batch(X.masked_fill(~mask, math.nan), mask=mask), num_samples=20_000)
    error = result.diagnostics["pointwise_error"]
    assert_mean(result.pointwise + error.square() / 2, exact, error)
    assert result.diagnostics["pareto_k"][0] == -math.inf


def test_one_sample_gives_an_elbo_without_a_standard_error() -> None:
    result = elbo(widened(1.6), X, num_samples=1)
    assert math.isfinite(result.value)
    assert math.isnan(result.standard_error)


@pytest.mark.parametrize(("estimate", "bad"), [(log_marginal, 1), (log_marginal, 2.0), (elbo, 0), (elbo, 1.5)])
def test_too_few_samples_are_refused(estimate: Callable[..., Estimate], bad: float) -> None:
    with pytest.raises(InputError, match=rf"{estimate.__name__}: `num_samples` is .*got `{bad}`"):
        estimate(widened(1.0), X, num_samples=bad)


def test_k_hat_tells_a_wide_posterior_from_a_narrow_one() -> None:
    wide, narrow = (log_marginal(widened(w), X, 5000).diagnostics["pareto_k"] for w in (1.6, 0.1))
    assert float(wide.max()) < 0.5
    assert float(narrow.median()) > 0.7


@pytest.mark.parametrize("estimate", [log_marginal, elbo])
def test_another_seed_gives_other_draws(estimate: Callable[..., Estimate]) -> None:
    first, second = (estimate(widened(1.6), X, 30, seed=seed).pointwise for seed in (0, 1))
    assert not bool((first == second).any())


def test_a_float32_model_is_evaluated_on_float64_data_and_summed_in_float64() -> None:
    single = widened(1.6).float()
    result = log_marginal(single, X, num_samples=500)
    assert result.pointwise.dtype == torch.float64
    error = result.diagnostics["pointwise_error"]
    assert_mean(result.pointwise + error.square() / 2, EXACT, error)


def test_log_marginal_takes_5000_samples_unless_told() -> None:
    assert log_marginal(widened(1.6), X[:1]).diagnostics["num_samples"] == 5000
    assert inspect.signature(log_marginal).parameters["num_samples"].default == 5000


@pytest.mark.parametrize("estimate", [log_marginal, elbo])
def test_the_number_of_threads_changes_rounding_only(estimate: Callable[..., Estimate]) -> None:
    model, threads = LinearGaussian.random(64, 2), torch.get_num_threads()
    vae, x = model.vae(model.exact_encoder(1.6)), model.sample(25)
    one = estimate(vae, x, 800).pointwise
    torch.set_num_threads(2)
    try:
        two = estimate(vae, x, 800).pointwise
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimate", [log_marginal, elbo])
def test_every_datum_is_checked_and_its_samples_after_the_first_are_not(
    estimate: Callable[..., Estimate], make_vae: Callable[..., VAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The datum outside the support is the last of the last chunk; whoever switches the checks off is not checked."""
    monkeypatch.setitem(importance._ROWS, "cpu", 20)
    vae, x = make_vae(), torch.zeros(7, 6)
    checked = []
    vae.log_likelihood_of = lambda z, part: (
        checked.append(dist.is_validation_enabled()),
        VAE.log_likelihood_of(vae, z, part),
    )[1]
    estimate(vae, x, 30)
    assert checked == [True, False] * 7
    assert dist.is_validation_enabled()
    x[-1, -1] = 0.5
    with pytest.raises(ValueError, match="support"):
        estimate(vae, x, 30)
    with pyro.validation_enabled(False):
        checked.clear()
        estimate(vae, x, 30)
        assert not any(checked)


@pytest.mark.parametrize("estimate", [log_marginal, elbo])
def test_compiled_it_is_the_same_at_the_same_seed(
    estimate: Callable[..., Estimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whole blocks of 10 samples of 10 data; what is left of data and of samples runs uncompiled."""
    monkeypatch.setitem(importance._ROWS, "cpu", 100)
    monkeypatch.setattr(importance, "_BLOCK", 10)
    capture, shapes = function.capture, []
    monkeypatch.setattr(
        function, "capture", lambda f, m, given: shapes.append((given[0][0].shape[0], given[1])) or capture(f, m, given)
    )
    vae = widened(1.6)
    with interpreted():
        plain, compiled = (estimate(vae, X, 35, compile=compile) for compile in (False, True))
    assert shapes == [(10, 10)]
    torch.testing.assert_close(plain.pointwise, compiled.pointwise, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_as_machine_code_it_is_the_same(make_vae: Callable[..., VAE]) -> None:
    """In float32 and float64, after the parameters have moved, and by the program that is there already."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        vae, x = make_vae().to(dtype), torch.eye(6, dtype=dtype)
        for _ in range(2):
            plain, compiled = (log_marginal(vae, x, 700, compile=compile) for compile in (False, True))
            torch.testing.assert_close(plain.pointwise, compiled.pointwise, rtol=0, atol=tolerance)
            with torch.no_grad():
                vae.likelihood.head.bias += 0.5
                vae.posterior.head.weight.mul_(1.5)


@pytest.mark.parametrize("fields", ["mask", "context"])
def test_compiled_it_heeds_mask_and_context(fields: str) -> None:
    torch.manual_seed(2)
    vae = VAE(
        Conditional(dist.Normal, (2,), given=mlp(1), scale=Fixed(1.0)),
        Conditional(dist.Normal, (5,), given=mlp(3), scale=Fixed(1.0)),
        context_features=1,
    ).double()
    batch = Batch(X, torch.randn(25, 1).double(), torch.rand(25, 5) < 0.7 if fields == "mask" else None)
    with interpreted():
        plain, compiled = (log_marginal(vae, batch, 20, compile=compile) for compile in (False, True))
    torch.testing.assert_close(plain.pointwise, compiled.pointwise, rtol=0, atol=1e-11)


def test_compiled_draws_of_discrete_latents_are_those_of_the_same_noise() -> None:
    prior = Conditional(dist.Bernoulli, (3,), logits=Fixed(0.3))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(3)), Conditional(dist.Bernoulli, (3,), given=mlp(6)))
    with interpreted(), Lifted():
        plain, compiled = (log_marginal(vae, torch.eye(6), 20, compile=compile) for compile in (False, True))
    torch.testing.assert_close(plain.pointwise, compiled.pointwise, rtol=0, atol=1e-5)


def test_a_prior_made_of_the_posterior_is_made_once_for_each_chunk_of_the_data() -> None:
    torch.manual_seed(3)
    posterior = Conditional(dist.Normal, (2,), given=mlp(5))
    vae = VAE(VampPrior(5, 7), Conditional(dist.Normal, (5,), given=mlp(2), scale=Fixed(1.0)), posterior).double()
    encoded: list[int] = []
    vae.posterior.register_forward_hook(lambda module, given, output: encoded.append(given[0].shape[0]))
    log_marginal(vae, X, 100)
    expected, encoded[:] = list(encoded), []
    result = log_marginal(vae, X, 1000)  # in ten times as many blocks
    assert encoded == expected
    with interpreted():
        compiled = log_marginal(vae, X, 1000, compile=True)
    torch.testing.assert_close(result.pointwise, compiled.pointwise, rtol=0, atol=1e-10)


def test_auto_compiles_where_there_is_much_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged by the first three blocks, of a second each."""
    clock = iter(range(10**6))
    monkeypatch.setattr(function.time, "perf_counter", lambda: float(next(clock)))
    compile_graph, compiled = function.compile_graph, []
    monkeypatch.setattr(function, "compile_graph", lambda *given: compiled.append(True) or compile_graph(*given))
    monkeypatch.setattr(function, "known", lambda *_: "")
    with interpreted():
        log_marginal(widened(1.6), X[:20], 3000)  # 30 blocks
        assert not compiled
        log_marginal(widened(1.6), X[:20], 8000)
    assert len(compiled) == 1


_MEMORY = """
import sys, torch, pyro.distributions as dist
from pathlib import Path
from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.evaluation import log_marginal

def peak():  # of this process alone: getrusage's is never below that of the process it was forked from
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10

prior = Conditional(dist.Normal, (20,), loc=Fixed(0.0), scale=Fixed(1.0))
vae = VAE(prior, Conditional(dist.Bernoulli, (784,), given=mlp(20, 500)), mlp(784, 500))
x = (torch.rand(int(sys.argv[1]), 784) < 0.3).float()
log_marginal(vae, x[:1], 50)
before = peak()
log_marginal(vae, x, int(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from Linux's /proc")
@pytest.mark.parametrize(
    ("data", "num_samples", "limit"), [(100, 200, 100), pytest.param(1000, 5000, 2048, marks=pytest.mark.slow)]
)
def test_peak_memory_is_bounded(data: int, num_samples: int, limit: float) -> None:
    """In MiB above what is there before; 20,000 rows at once would take 200."""
    command = [sys.executable, "-c", _MEMORY, str(data), str(num_samples)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert 0 < float(run.stdout) < limit


def wide(cells: int) -> VAE:
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    return VAE(prior, Conditional(dist.Bernoulli, (cells,), given=mlp(2, 5)))


def test_few_rows_of_wide_data_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 8 MiB of x, or one sample of each datum; every sample of every datum is decoded once."""
    vae, decoded = wide(5000), list[int]()
    likelihood = vae.log_likelihood_of

    def counted(z: Tensor, batch: Batch) -> Tensor:
        decoded.append(z.shape[:2].numel())
        return likelihood(z, batch)

    monkeypatch.setattr(vae, "log_likelihood_of", counted)
    log_marginal(vae, torch.zeros(20, 5000), 100, compile=False)
    assert max(decoded) * 5000 * 4 <= 2**23
    assert sum(decoded) == 20 * 100


@pytest.mark.parametrize("compiled", [False, True])
def test_estimates_do_not_depend_on_how_many_rows_are_decoded_at_once(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, x = wide(30), (torch.rand(45, 30, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    found = []
    for budget in (2**30, 30 * 4 * 20 * 7, 1):
        monkeypatch.setitem(importance._BYTES, "cpu", budget)
        with interpreted():
            found.append(log_marginal(vae, x, 230, seed=3, compile=compiled).pointwise)
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=1e-6, atol=1e-5)
