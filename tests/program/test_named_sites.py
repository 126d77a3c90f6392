"""The sites of a program as ArviZ's variables, against densities by hand and against the VAE of the same model."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from programs import linear_gaussian, state_space
from torch import Tensor
from z_test import assert_mean

from pyro_vae import to_arviz
from pyro_vae.datasets import DataTransform
from pyro_vae.errors import InputError
from pyro_vae.evaluation.arviz_export import write_netcdf
from pyro_vae.program import Program
from pyro_vae.runtime.random_streams import isolated

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(6)
N = 6
LENGTHS = torch.tensor([3, 1, 2, 3, 3, 2])
GENERATOR = torch.Generator().manual_seed(7)
DATA = {
    "x": torch.randn(N, 3, generator=GENERATOR).double(),
    "length": LENGTHS,
    "count": torch.poisson(torch.full((N, 2), 3.0), generator=GENERATOR).double(),
}


@pytest.fixture(scope="module")
def az() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    return arviz


def everything(batch: dict[str, Tensor]) -> None:
    """Globals with and without a plate; locals with an inner plate, an event of two dimensions, and whole numbers."""
    x, like = batch["x"], batch["x"].new_tensor(0.0)
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(like, 1.0))
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(3), 2.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        matrix = pyro.sample("matrix", dist.Normal(x.new_zeros(2, 3), 1.0).to_event(2))
        kind = pyro.sample("kind", dist.Categorical(x.new_tensor([0.3, 0.7])))
        with pyro.plate("cells", 3, dim=-2):
            w = pyro.sample("w", dist.Normal(loc[..., 0] + kind, 1.0))
            seen = torch.arange(3).unsqueeze(-1) < batch["length"]
            pyro.sample("x", dist.Normal(w, 0.5).mask(seen), obs=x.T)
        rate = (mu.sum(-1) + matrix.sum((-1, -2))).exp().unsqueeze(-1).expand(*matrix.shape[:-2], 2)
        pyro.sample("count", dist.Poisson(rate).to_event(1), obs=batch["count"])
        pyro.factor("tilt", -w[..., :1, :].square())


def guide_of_everything(batch: dict[str, Tensor]) -> None:
    x = batch["x"]
    with pyro.plate("components", 2):
        pyro.sample("loc", dist.Normal(x.new_tensor([1.0, -1.0]), 0.1))
    pyro.sample("mu", dist.Normal(x.new_tensor([0.1, 0.2, 0.3]), 0.1).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("matrix", dist.Normal(0.1 * torch.arange(6).double().reshape(2, 3), 0.1).to_event(2))
        pyro.sample("kind", dist.Categorical(x.new_tensor([0.5, 0.5])))
        with pyro.plate("cells", 3, dim=-2):
            pyro.sample("w", dist.Normal(x.T, 1e-3))


DIMS = {
    "posterior": {
        "loc": ("chain", "draw", "components"),
        "mu": ("chain", "draw", "mu_dim_0"),
        "matrix": ("chain", "draw", "datum", "matrix_dim_0", "matrix_dim_1"),
        "kind": ("chain", "draw", "datum"),
        "w": ("chain", "draw", "datum", "cells"),
    },
    "posterior_predictive": {
        "x": ("chain", "draw", "datum", "cells"),
        "count": ("chain", "draw", "datum", "count_dim_0"),
    },
    "log_likelihood": {name: ("chain", "draw", "datum") for name in ("x", "count", "tilt")},
    "sample_stats": {"log_weight": ("chain", "draw", "datum"), "pareto_k": ("chain", "datum")},
    "observed_data": {"x": ("datum", "cells"), "count": ("datum", "count_dim_0")},
}
DIMS["prior"], DIMS["prior_predictive"] = DIMS["posterior"], DIMS["posterior_predictive"]


@pytest.fixture(scope="module")
def groups() -> dict[str, Any]:
    program = Program(everything, guide_of_everything, {k: v[:2] for k, v in DATA.items()}, size=N)
    found = to_arviz([program, copy.deepcopy(program)], DATA, num_samples=32, attributes={"seeds": [3, 4]})
    return {"all": found, **{name: found[name] for name in DIMS}}


def tensors(groups: Any, group: str) -> dict[str, Tensor]:
    return {name: torch.tensor(values.values) for name, values in groups[group].items()}


def test_sites_are_variables_with_the_dimensions_of_their_plates_and_events(groups, az, tmp_path) -> None:
    for group, variables in DIMS.items():
        assert {name: groups[group][name].dims for name in groups[group].data_vars} == variables, group
    assert dict(groups["posterior"].sizes) == {
        **{"chain": 2, "draw": 32, "components": 2, "mu_dim_0": 3, "datum": N},
        **{"matrix_dim_0": 2, "matrix_dim_1": 3, "cells": 3},
    }
    write_netcdf(groups["all"], tmp_path / "draws.nc")
    read = az.from_netcdf(tmp_path / "draws.nc")
    for group in DIMS:
        mine, its = (g.to_dataset() if hasattr(g, "to_dataset") else g for g in (groups[group], read[group]))
        assert mine.identical(its)
    assert groups["posterior"]["kind"].dtype == "int32"
    assert {groups[group]["count"].dtype for group in DIMS if "count" in DIMS[group]} == {np.dtype("int32")} | {
        groups["log_likelihood"]["count"].dtype
    }


def test_arviz_summarises_and_scores_each_site(groups, az) -> None:
    summary = az.summary(groups["all"])
    assert len(summary) == 2 + 3 + N * (6 + 1 + 3)
    assert "w[0, 2]" in summary.index
    assert "loc[1]" in summary.index
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert az.loo(groups["all"], var_name="count").n_data_points == N


def test_each_value_has_its_own_place(groups) -> None:
    """The guide draws w near x, and matrix near ascending numbers."""
    drawn = tensors(groups, "posterior")
    assert float((drawn["w"] - DATA["x"]).abs().max()) < 6e-3
    assert_mean(drawn["matrix"].flatten(0, 2), 0.1 * torch.arange(6.0).reshape(2, 3))
    assert_mean(drawn["loc"].flatten(0, 1), torch.tensor([1.0, -1.0]))
    seen = tensors(groups, "observed_data")
    hidden = torch.arange(3) >= LENGTHS.unsqueeze(-1)
    torch.testing.assert_close(seen["x"].isnan(), hidden)
    torch.testing.assert_close(seen["x"][~hidden].double(), DATA["x"][~hidden], rtol=1e-6, atol=0)
    torch.testing.assert_close(seen["count"].double(), DATA["count"], rtol=0, atol=0)
    assert bool(tensors(groups, "posterior_predictive")["x"].isfinite().all())  # hidden cells too


def test_densities_are_those_by_hand_given_the_draws_globals(groups) -> None:
    z = {name: value.double() for name, value in tensors(groups, "posterior").items()}
    terms, stats = tensors(groups, "log_likelihood"), tensors(groups, "sample_stats")
    seen = torch.arange(3) < LENGTHS.unsqueeze(-1)
    rate = (z["mu"].sum(-1)[..., None] + z["matrix"].sum((-1, -2))).exp()
    exact = {
        "x": (dist.Normal(z["w"], 0.5).log_prob(DATA["x"]) * seen).sum(-1),
        "count": dist.Poisson(rate[..., None]).log_prob(DATA["count"]).sum(-1),
        "tilt": -z["w"][..., 0].square(),
    }
    close = {"rtol": 1e-4, "atol": 1e-4}  # the draws are exported in float32
    for name, term in exact.items():
        torch.testing.assert_close(terms[name], term, **close)
    kind = z["kind"]
    log_prior = dist.Normal(0.0, 1.0).log_prob(z["matrix"]).sum((-1, -2)) + torch.where(
        kind == 1, math.log(0.7), math.log(0.3)
    )
    log_prior = log_prior + dist.Normal(z["loc"][..., 0, None] + kind, 1.0).log_prob(z["w"].movedim(-1, 0)).sum(0)
    weight = stats["log_weight"] - sum(exact.values()) - log_prior
    log_q = dist.Normal(0.1 * torch.arange(6).double().reshape(2, 3), 0.1).log_prob(z["matrix"]).sum((-1, -2))
    # In float32 the narrow q(w) keeps too few digits, so its part is what the weights leave over; it has a known mean.
    rest = weight + log_q - math.log(2)
    assert_mean(
        -rest.flatten(0, 1), torch.full((N,), 3 * (-0.5 - 0.5 * math.log(2 * math.pi) + math.log(1e3))).double()
    )


def test_prior_draws_follow_the_model(groups) -> None:
    prior = tensors(groups, "prior")
    assert_mean(prior["mu"].flatten(0, 1).square(), torch.full((3,), 4.0))
    noise = prior["w"] - prior["loc"][..., :1, None] - prior["kind"].unsqueeze(-1)
    assert_mean(noise.flatten(0, 2), torch.zeros(3))
    assert_mean(noise.flatten(0, 2).square(), torch.ones(3))
    predicted = tensors(groups, "prior_predictive")["x"] - prior["w"]
    assert_mean(predicted.flatten(0, 2).square(), torch.full((3,), 0.25))
    globals_of = torch.cat([tensors(groups, group)["loc"].flatten() for group in ("prior", "posterior")])
    assert len(globals_of.unique()) == 2 * 2 * 32 * 2  # each draw has its own


def test_a_program_has_the_draws_and_densities_of_the_vae() -> None:
    encoder = MODEL.exact_encoder(1.3)
    vae, program = MODEL.vae(encoder), linear_gaussian(MODEL, encoder)
    its, mine = (to_arviz([each] * 2, X, num_samples=30, seed=5) for each in (vae, program))
    renamed = {"z_dim_0": "latent", "x_dim_0": "cell"}
    for group in DIMS:
        for name, values in its[group].items():
            own = mine[group][name]
            assert tuple(renamed.get(dim, dim) for dim in own.dims) == values.dims
            np.testing.assert_allclose(own.values, values.values, rtol=1e-6, atol=1e-6)


def test_units_of_one_observed_vector() -> None:
    scale = torch.tensor([0.5, 2.0, 3.0, 4.0, 5.0]).double()
    units = DataTransform(
        *("rows", 5, "none", "standardise", None, tuple("abcde"), torch.ones(5).double(), scale),
        -float(scale.log().sum()),
    )
    program = linear_gaussian(MODEL, MODEL.exact_encoder())
    plain, own = (to_arviz(program, X, num_samples=3, units=u) for u in (None, units))
    assert list(own["observed_data"]["x_dim_0"].values) == list("abcde")
    np.testing.assert_allclose(own["observed_data"]["x"], plain["observed_data"]["x"] * scale.numpy() + 1, rtol=1e-5)
    gained = own["sample_stats"]["log_weight"] - plain["sample_stats"]["log_weight"]
    np.testing.assert_allclose(gained, units.log_jacobian, rtol=1e-10)
    _, model = state_space(5)
    with pytest.raises(InputError, match=r"of 5 columns, and the model observes `x_0` of shape \(\), `x_1`.*leave"):
        to_arviz(Program(model, smoothing, X[:2]), X, units=units)


def smoothing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        for t in range(x.shape[1]):
            pyro.sample(f"z_{t}", dist.Normal(x[:, t] / 2, 1.0))


def test_particles_one_after_the_other() -> None:
    """With the exact guide, every log weight is log p(x)."""
    log_marginal, model = state_space(2)
    encode, calls = exact_two_states(), []

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            first = pyro.sample("z_0", encode(x))
            (rows,) = first.shape
            calls.append(rows)
            pyro.sample("z_1", encode(x, first))

    with pytest.warns(UserWarning, match="particles do not run at once"):
        program = Program(model, guide, X[:2, :2])
    found = to_arviz(program, X[:, :2], num_samples=4)
    assert found["posterior"]["z_1"].dims == ("chain", "draw", "datum")
    exact = np.broadcast_to(log_marginal(X[:, :2]).numpy(), (1, 4, N))
    np.testing.assert_allclose(found["sample_stats"]["log_weight"], exact, rtol=0, atol=1e-10)


def exact_two_states() -> Any:
    """The exact posterior of two states, z_0 and then z_1 given z_0."""
    variance, gain = torch.tensor([1.0, 1.0, 0.36, 0.25, 0.25], dtype=torch.float64), 0.8

    def encode(x: Tensor, first: Tensor | None = None) -> dist.Normal:
        if first is None:
            # x_1 tells of z_0 through z_1: N(x_1; gain z_0, 0.36 + 0.25).
            precision = 1 / variance[0] + 1 / variance[3] + gain**2 / (variance[2] + variance[4])
            mean = (x[:, 0] / variance[3] + gain * x[:, 1] / (variance[2] + variance[4])) / precision
            return dist.Normal(mean, precision.rsqrt())
        precision = 1 / variance[2] + 1 / variance[4]
        return dist.Normal((gain * first / variance[2] + x[:, 1] / variance[4]) / precision, precision.rsqrt())

    return encode


def test_names_of_dimensions_are_refused_as_names_of_sites_and_of_plates() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("chain", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("chain", dist.Normal(x, 1.0))

    with pytest.raises(InputError, match=r"the variable `chain` has the dimensions chain, draw, datum; .*rename it"):
        to_arviz(Program(model, guide, X[:, 0]), X[:, 0], num_samples=2)

    def in_plate(x: Tensor, half: str) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("draw", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            if half == "model":
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, -1))

    program = Program(lambda x: in_plate(x, "model"), lambda x: in_plate(x, "guide"), X[:, 0])
    with pytest.raises(InputError, match="`z` has the dimensions chain, draw, datum, draw; neither a site nor a plate"):
        to_arviz(program, X[:, 0], num_samples=2)


def test_chains_of_different_programs_are_refused() -> None:
    def model(x: Tensor, name: str) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(name, dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, name: str) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(name, dist.Normal(x, 1.0))

    x = X[:, 0]
    programs = [Program(lambda x, n=n: model(x, n), lambda x, n=n: guide(x, n), x) for n in ("a", "b")]
    with pytest.raises(InputError, match=r"models of one structure, but `[ab]` is not the same in all; export each"):
        to_arviz(programs, x, num_samples=2)
    with pytest.raises(InputError, match="to_arviz: needs a VAE, got `Linear`"):
        to_arviz(torch.nn.Linear(2, 2), x)


def test_enumerated_sites_are_drawn_given_the_latents_for_predictions() -> None:
    """y ~ Bernoulli(0.3), z ~ N(4y - 2, 1), x ~ N(10y + z, 1): at z = 0, p(y = 1 | z) is 0.3."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(4 * y - 2, 1.0))
            pyro.sample("x", dist.Normal(10 * y + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 10, 1.0))

    x = torch.zeros(3).double()
    program = Program(model, guide, x)
    batch = program.check(x)
    z = torch.tensor([0.0, 0.5, -0.5]).double().expand(4000, 3).unsqueeze(-1)
    with isolated(1):
        drawn = program.named_draws(z, batch)["x"].values
    share = torch.sigmoid(math.log(3 / 7) + 4 * z[0, :, 0])
    assert_mean((drawn > 5).double(), share)
    terms = program.log_likelihoods_of(z[:2], batch)
    assert list(terms) == ["x"]
    assert torch.equal(terms["x"], program.log_likelihood_of(z[:2], batch))
