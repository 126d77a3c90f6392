"""ArviZ 0.23 and 1.x behind one function."""

from __future__ import annotations

import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, Conditional, Fixed, mlp
from pyro_vae.diagnostics import to_arviz, write_netcdf
from pyro_vae.errors import InputError


@pytest.fixture
def vaes():
    torch.manual_seed(0)
    prior = Conditional(dist.Normal, (3,), loc=Fixed(0.0), scale=Fixed(1.0))
    return [VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(3, 10))) for _ in range(2)]


def _group(result, name):
    return result[name].to_dataset() if hasattr(result[name], "to_dataset") else result[name]


def test_groups_dimensions_and_netcdf(vaes, tmp_path):
    x = torch.ones(5, 6)
    result = to_arviz(vaes, x, num_samples=7, attributes={"seeds": [3, 4]})
    path = tmp_path / "draws.nc"
    write_netcdf(result, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        read = arviz.from_netcdf(path)
    for groups in (result, read):
        assert dict(_group(groups, "posterior").sizes) == {"chain": 2, "draw": 7, "datum": 5, "latent": 3}
        assert dict(_group(groups, "posterior_predictive").sizes) == {"chain": 2, "draw": 7, "datum": 5, "cell": 6}
        assert _group(groups, "log_likelihood")["x"].dims == ("chain", "draw", "datum")
        assert _group(groups, "sample_stats")["log_weight"].dims == ("chain", "draw", "datum")
        np.testing.assert_array_equal(_group(groups, "observed_data")["x"], x)
        assert list(_group(groups, "posterior").attrs["seeds"]) == [3, 4]


def test_log_weights_are_those_of_the_draws(vaes):
    x = torch.zeros(4, 6)
    result = to_arviz(vaes[0], x, num_samples=3)
    z = torch.tensor(_group(result, "posterior")["z"].values[0])
    expected = vaes[0].prior().log_prob(z) + vaes[0].log_likelihood(z, x) - vaes[0].encode(x).log_prob(z)
    got = torch.tensor(_group(result, "sample_stats")["log_weight"].values[0])
    torch.testing.assert_close(got, expected.detach())


def test_leaves_the_random_state_alone_and_repeats(vaes):
    state = torch.get_rng_state()
    first, second = (to_arviz(vaes, torch.zeros(4, 6), num_samples=3, seed=1) for _ in range(2))
    np.testing.assert_array_equal(_group(first, "posterior")["z"], _group(second, "posterior")["z"])
    assert torch.equal(torch.get_rng_state(), state)


def test_no_vae_is_an_error():
    with pytest.raises(InputError, match="at least one"):
        to_arviz([], torch.zeros(4, 6))


def test_units_are_the_datas_own(vaes):
    import math

    from pyro_vae.datasets import DataTransform

    scale = torch.full((6,), 2.0, dtype=torch.float64)
    names = tuple("abcdef")
    jacobian = -6 * math.log(2)
    units = DataTransform("rows", 6, "none", "standardise", None, names, torch.ones(6).double(), scale, jacobian)
    x = torch.ones(5, 6)
    plain, own = (to_arviz(vaes, x, num_samples=3, units=u) for u in (None, units))
    np.testing.assert_allclose(_group(own, "observed_data")["x"], 3.0)
    assert list(_group(own, "observed_data")["cell"].values) == list(names)
    for group, name in (("log_likelihood", "x"), ("sample_stats", "log_weight")):
        np.testing.assert_allclose(_group(own, group)[name], _group(plain, group)[name] + jacobian, rtol=1e-5)
    assert _group(own, "posterior").attrs["units"] == "the data's own units"
