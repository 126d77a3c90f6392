"""Draws made of explicit noise: their law, their stream, and which families are programs of them."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from scipy.stats import kstest
from torch.nn import functional
from z_test import FAILURE_RATE, assert_mean

from pyro_vae.engine import CaptureError, Draw, Lifted
from pyro_vae.engine.capture.capture import capture
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.families import classifications, python_example

N = 200_000
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def lifted(draw):
    """What a function draws, made of noise; and the kinds of noise."""
    kinds = []

    def source(noise: Draw):
        kinds.append(noise.kind)
        return noise.sample()

    with Lifted(source):
        return draw(), kinds


# ------------------------------------------------------------------ the stream

STREAMS = {
    "randn": lambda dtype: torch.randn(33, dtype=dtype),
    "rand": lambda dtype: torch.rand(33, dtype=dtype),
    "randn_like": lambda dtype: torch.randn_like(torch.ones(3, 11, dtype=dtype)),
    "rand_like": lambda dtype: torch.rand_like(torch.ones(3, 11, dtype=dtype)),
    "normal_": lambda dtype: torch.empty(33, dtype=dtype).normal_(),
    "uniform_": lambda dtype: torch.empty(33, dtype=dtype).uniform_(),
    "exponential_": lambda dtype: torch.empty(33, dtype=dtype).exponential_(),
    "normal(loc, scale)": lambda dtype: torch.normal(torch.ones(33, dtype=dtype), torch.full((33,), 2.0, dtype=dtype)),
    "pyro's Normal": lambda dtype: pyro.distributions.Normal(torch.ones(33, dtype=dtype), 2.0).sample(),
    "pyro's Exponential": lambda dtype: pyro.distributions.Exponential(torch.full((33,), 2.0, dtype=dtype)).sample(),
}


@DTYPES
@pytest.mark.parametrize("name", STREAMS)
def test_standard_draws_are_those_of_torch_at_the_same_seed_bit_for_bit(name, dtype):
    torch.manual_seed(3)
    expected = STREAMS[name](dtype)
    torch.manual_seed(3)
    got, _ = lifted(lambda: STREAMS[name](dtype))
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@DTYPES
def test_shifted_and_scaled_draws_are_those_of_torch_but_for_rounding(dtype):
    for draw in (
        lambda: torch.empty(40, dtype=dtype).normal_(3.0, 0.5),
        lambda: torch.empty(40, dtype=dtype).uniform_(-1.0, 4.0),
        lambda: torch.empty(40, dtype=dtype).exponential_(2.5),
    ):
        torch.manual_seed(3)
        expected = draw()
        torch.manual_seed(3)
        torch.testing.assert_close(lifted(draw)[0], expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


# ------------------------------------------------------------------ the law


@DTYPES
def test_what_is_drawn_is_a_stated_function_of_the_noise(dtype):
    u = torch.tensor([0.0, 0.23, 0.51, 0.92], dtype=dtype)

    def at(draw, *noise):
        with Lifted.at(noise):
            return draw()

    ones = torch.ones(4, dtype=dtype)
    probabilities = torch.tensor([0.0, 0.2, 0.6, 1.0], dtype=dtype)
    assert at(lambda: torch.bernoulli(probabilities), u).tolist() == [0, 0, 1, 1]
    assert at(lambda: torch.bernoulli(ones, 0.5), u).tolist() == [1, 1, 0, 0]
    assert at(lambda: torch.empty(4, dtype=dtype).bernoulli_(0.5), u).tolist() == [1, 1, 0, 0]
    assert at(lambda: torch.empty(4, dtype=dtype).bernoulli_(probabilities), u).tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(at(lambda: functional.dropout(ones, 0.5), u), 2 * ones * (u < 0.5))
    torch.testing.assert_close(at(lambda: torch.normal(ones, 2.0), u), 1 + 2 * u)
    torch.testing.assert_close(at(lambda: torch.normal(1.0, 2 * ones), u), 1 + 2 * u)
    torch.testing.assert_close(at(lambda: torch.normal(1.0, 2.0, (4,), dtype=dtype), u), 1 + 2 * u)
    torch.testing.assert_close(
        at(lambda: torch.empty(4, dtype=dtype).cauchy_(1.0, 2.0), u)[1:], 1 + 2 * torch.tan(math.pi * (u - 0.5))[1:]
    )
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 0.0], dtype=dtype)
    assert at(lambda: torch.multinomial(weights, 4, replacement=True), u).tolist() == [1, 1, 2, 4]
    v = u.double()
    assert at(lambda: torch.randint(3, 7, (4,)), v).tolist() == [3, 3, 5, 6]
    assert at(lambda: torch.randint(10, (4,)), v).tolist() == [0, 2, 5, 9]
    assert at(lambda: torch.randint_like(ones, 10), v).tolist() == [0, 2, 5, 9]
    assert at(lambda: torch.empty(4, dtype=dtype).random_(3, 7), v).tolist() == [3, 3, 5, 6]
    assert at(lambda: torch.randperm(4), v.flip(0)).tolist() == [3, 2, 1, 0]


@DTYPES
def test_probabilities_of_0_and_1_and_categories_of_probability_0(dtype):
    smallest, largest = (
        torch.zeros(7, dtype=dtype),
        torch.full((7,), 1.0, dtype=dtype).nextafter(torch.zeros((), dtype=dtype)),
    )
    for u in (smallest, largest, torch.rand(7, dtype=dtype)):
        with Lifted(lambda draw, u=u: u[: draw.shape[-1]].expand(draw.shape).clone()):
            assert not torch.bernoulli(torch.zeros(7, dtype=dtype)).any()
            assert torch.bernoulli(torch.ones(7, dtype=dtype)).all()
            assert not functional.dropout(torch.ones(7, dtype=dtype), 1.0).any()
            assert torch.equal(functional.dropout(torch.ones(7, dtype=dtype), 0.0), torch.ones(7, dtype=dtype))
            for weights in ([0.0, 0.0, 0.3, 0.7, 0.0], [1e-30, 3.0, 7e5, 0.1, 0.0], [0.1] * 3 + [0.0] * 2):
                given = torch.tensor(weights, dtype=dtype).expand(2, 5)
                drawn = torch.multinomial(given, 7, replacement=True)
                assert bool((given.gather(1, drawn) > 0).all())
            assert torch.empty(7, dtype=dtype).geometric_(1.0).tolist() == [1.0] * 7


def test_weights_that_are_no_weights_have_an_index_that_exists():
    with Lifted():
        for weights in ([math.nan] * 3, [0.0] * 3, [1.0, math.nan, 1.0]):
            assert 0 <= int(torch.multinomial(torch.tensor(weights), 1)) < 3


@DTYPES
def test_categories_have_their_probabilities(dtype):
    weights = torch.tensor([[0.0, 1.0, 2.0, 5.0, 0.0], [3.0, 0.0, 1.0, 1.0, 5.0]], dtype=dtype)
    drawn, kinds = lifted(lambda: torch.multinomial(weights, N, replacement=True))
    assert kinds == ["uniform"]
    one_hot = functional.one_hot(drawn, 5).transpose(0, 1)
    assert_mean(one_hot, weights / weights.sum(1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_bernoulli_draws_have_their_probability_in_low_precision_too(dtype):
    p = torch.tensor([0.001, 0.3, 0.998], dtype=dtype)
    drawn, _ = lifted(lambda: torch.bernoulli(p.expand(N, 3)))
    assert drawn.dtype == dtype
    assert_mean(drawn, p)
    kept, _ = lifted(lambda: functional.dropout(torch.ones(N, dtype=dtype), 0.3) != 0)
    assert_mean(kept, 0.7)
    first, _ = lifted(lambda: torch.multinomial(p, N, replacement=True) == 0)
    assert_mean(first, p[0] / p.double().sum())


@pytest.mark.parametrize(
    ("name", "draw", "cdf"),
    [
        ("uniform", lambda: torch.empty(N).uniform_(-1, 3), lambda x: (x + 1) / 4),
        ("exponential", lambda: torch.empty(N).exponential_(2.0), lambda x: 1 - (-2 * x).exp()),
        ("cauchy", lambda: torch.empty(N).cauchy_(1.0, 2.0), lambda x: 0.5 + ((x - 1) / 2).atan() / math.pi),
        ("lognormal", lambda: torch.empty(N).log_normal_(1.0, 0.5), lambda x: torch.special.ndtr((x.log() - 1) / 0.5)),
    ],
)
def test_continuous_laws(name, draw, cdf):
    drawn, kinds = lifted(draw)
    assert len(kinds) == 1
    assert kstest(cdf(drawn.double()).numpy(), "uniform").pvalue > FAILURE_RATE


def test_discrete_laws():
    waited, _ = lifted(lambda: torch.empty(N).geometric_(0.3))
    assert_mean(torch.stack([waited == k for k in (1, 2, 3, 8)], 1), 0.3 * 0.7 ** torch.tensor([0.0, 1.0, 2.0, 7.0]))
    whole, _ = lifted(lambda: torch.randint(-2, 3, (N,)))
    assert_mean(functional.one_hot(whole + 2, 5), [0.2] * 5)
    order, _ = lifted(lambda: torch.stack([torch.randperm(3) for _ in range(3000)]))
    assert_mean(functional.one_hot(order, 3), torch.full((3, 3), 1 / 3))


def test_draws_without_replacement_stay_torchs_own():
    torch.manual_seed(0)
    expected = torch.multinomial(torch.ones(9), 5)
    torch.manual_seed(0)
    drawn, kinds = lifted(lambda: torch.multinomial(torch.ones(9), 5))
    assert kinds == []
    assert torch.equal(drawn, expected)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: torch.randn(3, generator=g),
        lambda g: torch.rand(3, generator=g),
        lambda g: torch.empty(3).normal_(generator=g),
        lambda g: torch.empty(3).exponential_(generator=g),
        lambda g: torch.bernoulli(torch.ones(3), generator=g),
        lambda g: torch.multinomial(torch.ones(3), 2, True, generator=g),
        lambda g: torch.randint(3, (2,), generator=g),
        lambda g: torch.randperm(3, generator=g),
    ],
)
def test_a_generator_of_its_own_is_refused_in_a_program_and_left_alone_outside(draw):
    message = r"test_noise.py, line \d+: `.*` draws from a generator of its own"
    with pytest.raises(CaptureError, match=message):
        capture(lambda: draw(torch.Generator()), {}, [])
    with Lifted.at([]):
        assert torch.equal(draw(torch.Generator().manual_seed(3)), draw(torch.Generator().manual_seed(3)))


def test_given_noise_that_does_not_fit_is_refused():
    with Lifted.at([torch.zeros(2)]), pytest.raises(CaptureError, match=r"normal noise of shape \(3,\), but it has"):
        torch.randn(3)
    with Lifted.at([torch.zeros(3)]), pytest.raises(CaptureError, match="there is none left"):
        torch.randn(3), torch.randn(3)


def test_a_program_that_changes_its_draws_in_place_leaves_the_noise_alone():
    noise = torch.ones(3)
    with Lifted.at([noise]):
        assert torch.randn(3).mul_(5).tolist() == [5.0] * 3
    captured = capture(lambda: torch.randn(3).mul_(5), {}, [])
    captured({}, {}, [], [noise])
    assert noise.tolist() == [1.0] * 3


# ------------------------------------------------------------------ families

# What no program of a fixed list of operations draws or scores: by rejection, by a branch on values.
REFUSED = {
    "NanMaskedMultivariateNormal": "a value decides",
    "NanMaskedNormal": "a value decides",
    "VonMises": "a value decides",
    "VonMisesFisher": "a shape depends on values",
    "Wishart": "a value decides",
}
USABLE = [name for name, entry in classifications().items() if entry.usable]
# One for each kind of draw, and what is refused.
TYPICAL = [
    *("Normal", "Uniform", "Exponential", "Bernoulli", "OneHotCategorical", "Cauchy", "Gamma", "Dirichlet", "Poisson"),
    *("Binomial", "MixtureOfDiagNormals", "LKJCholesky", "Weibull"),
    *REFUSED,
]


def _draws_and_scores(name, role):
    """A family's sample statement and its log density, as a program; the modules and inputs."""
    namespace = {}
    exec(python_example(classifications()[name]), namespace)
    part = namespace[role]

    def program(*context):
        family = part(*context)
        z = pyro.sample("z", family)
        return family.log_prob(z).mean(), z

    context = [] if role == "prior" else [torch.randn(5, 2)]
    return program, part, context


def _family_is_the_same_captured(name):
    role = next(role for role in ("posterior", "likelihood", "prior") if role in classifications()[name].roles)
    program, part, context = _draws_and_scores(name, role)
    wanted = [f"p.{n}" for n, parameter in part.named_parameters() if parameter.requires_grad]
    captured = capture(program, {"p": part}, context, wanted)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    context, noise = [torch.randn_like(c) for c in context], captured.noise()
    torch.manual_seed(7)
    state = ({f"p.{n}": p for n, p in part.named_parameters()}, {f"p.{n}": b for n, b in part.named_buffers()})
    got = captured(*state, context, noise)
    torch.manual_seed(7)
    with Lifted.at(noise), pyro.validation_enabled(False):
        value, z = program(*context)
    gradients = torch.autograd.grad(value, [p for p in part.parameters() if p.requires_grad]) if wanted else []
    torch.testing.assert_close(got.result[1], z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(list(got.gradients.values()), list(gradients), rtol=1e-5, atol=1e-5)


def _is_refused_by_name(name):
    role = next(role for role in ("posterior", "likelihood", "prior") if role in classifications()[name].roles)
    program, part, context = _draws_and_scores(name, role)
    with pytest.raises(CaptureError, match=REFUSED[name]) as refusal:
        capture(program, {"p": part}, context)
    assert ".py, line " in str(refusal.value)
    if name.startswith("VonMises"):
        assert f"(site `z`, {name})" in str(refusal.value)
    elif name != "Wishart":  # whose constructor looks
        assert f"({name})" in str(refusal.value)


@pytest.mark.filterwarnings("ignore:Low df values", "ignore:Singular sample", "ignore:.*LKJCorrCholesky")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in TYPICAL else pytest.mark.slow) for n in USABLE])
def test_a_family_is_the_same_captured_or_refused_by_name(name):
    (_is_refused_by_name if name in REFUSED else _family_is_the_same_captured)(name)


def test_the_counts():
    assert (len(USABLE), len(REFUSED)) == (65, 5)
    assert set(REFUSED) <= set(USABLE)


def test_what_is_drawn_aside_is_the_same_each_time():
    """Such a draw finds out a support, say, and takes nothing from the stream of the program's own draws."""

    def program():
        first = torch.randn(2)
        with isolated(3):
            aside = torch.randn(2)
        return first, aside, torch.randn(2)

    torch.manual_seed(0)
    first, aside, last = program()
    with isolated(3):
        expected = torch.randn(2)
    torch.testing.assert_close(aside, expected)
    noise = [torch.ones(2), 2 * torch.ones(2)]
    with Lifted.at(noise):
        assert [value.tolist() for value in program()] == [[1.0, 1.0], aside.tolist(), [2.0, 2.0]]
    captured = capture(program, {}, [])
    assert len(captured.draws) == 2
    result = captured({}, {}, [], noise).result
    assert [value.tolist() for value in result] == [[1.0, 1.0], aside.tolist(), [2.0, 2.0]]
    torch.manual_seed(0)
    for got, wanted in zip(captured({}, {}, []).result, (first, aside, last), strict=True):
        torch.testing.assert_close(got, wanted)
