"""ArviZ 0.23 and 1.x behind one function."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Network, mlp
from pyro_vae.datasets import DataTransform
from pyro_vae.errors import InputError
from pyro_vae.evaluation import arviz_export as diagnostics
from pyro_vae.evaluation import pareto_k
from pyro_vae.evaluation.arviz_export import to_arviz, write_netcdf

GROUPS = {
    "posterior": {"z": ("chain", "draw", "datum", "latent")},
    "posterior_predictive": {"x": ("chain", "draw", "datum", "cell")},
    "prior": {"z": ("chain", "draw", "datum", "latent")},
    "prior_predictive": {"x": ("chain", "draw", "datum", "cell")},
    "log_likelihood": {"x": ("chain", "draw", "datum")},
    "sample_stats": {"log_weight": ("chain", "draw", "datum"), "pareto_k": ("chain", "datum")},
    "observed_data": {"x": ("datum", "cell")},
}


@pytest.fixture(scope="module")
def az():
    import matplotlib

    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    return arviz


@pytest.fixture
def vaes(make_vae):
    return [make_vae() for _ in range(2)]


def _group(groups, name):
    return groups[name].to_dataset() if hasattr(groups[name], "to_dataset") else groups[name]


def _tensor(groups, name, variable):
    return torch.tensor(_group(groups, name)[variable].values)


def _linear_gaussian(units=None, num_samples=400, n=3):
    """The oracle, its data, and the export of two chains of it at the exact posterior."""
    oracle = LinearGaussian.random(4, 2, diagonal=False)
    x = oracle.sample(n)
    return oracle, x, to_arviz([oracle.vae()] * 2, x, num_samples=num_samples, units=units)


# ------------------------------------------------------------------ models of every kind, and ArviZ's functions


def _normal(latent):
    return Conditional(dist.Normal, (latent,), loc=Fixed(0.0), scale=Fixed(1.0))


def _plain():
    return VAE(_normal(2), Conditional(dist.Normal, (6,), given=mlp(2, 7))), torch.randn(5, 6)


def _binary():
    return VAE(_normal(2), Conditional(dist.Bernoulli, (6,), given=mlp(2, 7))), (torch.rand(5, 6) < 0.4).float()


def _discrete_latents():
    prior = Conditional(dist.Bernoulli, (3,), probs=Fixed(0.5))
    likelihood = Conditional(dist.Normal, (6,), given=mlp(3, 7))
    return VAE(prior, likelihood, Conditional(dist.Bernoulli, (3,), given=mlp(6, 7))), torch.randn(5, 6)


def _scalar_latent_and_counts():
    prior = Conditional(dist.Categorical, (), probs=Fixed(torch.tensor([0.2, 0.3, 0.5])))
    posterior = Conditional(dist.Categorical, (), given=mlp(6, 7), logits=Network(shape=(3,)))
    likelihood = Conditional(dist.Poisson, (6,), given=mlp(1, 7))
    return VAE(prior, likelihood, posterior), torch.poisson(torch.full((5, 6), 2.0))


def _bounded_image():
    prior = Conditional(dist.Beta, (2, 2), concentration1=Fixed(2.0), concentration0=Fixed(3.0))
    return VAE(prior, Conditional(dist.Beta, (1, 2, 3), given=mlp(4, 7)), mlp(6, 7)), torch.rand(5, 1, 2, 3)


def _masked():
    vae, x = _plain()
    mask = torch.rand(5, 6) < 0.7
    return vae, Batch(torch.where(mask, x, torch.nan), mask=mask)


def _in_context():
    prior = Conditional(dist.Normal, (2,), given=mlp(3, 4))
    vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(5, 7)), context_features=3)
    return vae, Batch((torch.rand(5, 6) < 0.4).float(), context=torch.randn(5, 3))


MODELS = {
    "plain": _plain,
    "binary": _binary,
    "discrete latents": _discrete_latents,
    "scalar latent and counts": _scalar_latent_and_counts,
    "bounded image": _bounded_image,
    "masked": _masked,
    "context": _in_context,
}
models = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))


def quiet(test):
    """Ignores what ArviZ says of its own calls of Matplotlib, and its advice on binary data."""
    own = pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
    return own(pytest.mark.filterwarnings("ignore:.*look binary")(test))


@models
def test_groups_and_dimensions_come_back_from_netcdf(az, model, tmp_path):
    vae, data = model()
    groups = to_arviz([vae] * 2, data, num_samples=30, attributes={"seeds": [3, 4]})
    write_netcdf(groups, tmp_path / "draws.nc")
    read = az.from_netcdf(tmp_path / "draws.nc")
    x = Batch.of(data).x
    sizes = {"chain": 2, "draw": 30, "datum": 5, "latent": max(1, vae.latent_shape.numel()), "cell": x[0].numel()}
    for name, variables in GROUPS.items():
        dataset = _group(groups, name)
        assert {v: dataset[v].dims for v in dataset.data_vars} == variables
        assert dict(dataset.sizes) == {dim: sizes[dim] for dims in variables.values() for dim in dims}
        assert dataset.identical(_group(read, name))
    assert list(_group(read, "posterior").attrs["seeds"]) == [3, 4]
    np.testing.assert_array_equal(_group(groups, "observed_data")["x"], x.reshape(5, -1))


def _loo(az, groups, leaving_out):
    """`az.loo`; by the weights p(z) / q(z|x) where ``leaving_out``, which ArviZ 1.x alone can."""
    if not leaving_out:
        return az.loo(groups, pointwise=True)
    log_weight, log_likelihood = groups["sample_stats"]["log_weight"], groups["log_likelihood"]["x"]
    log_weights = log_weight - log_likelihood - math.log(log_weight.chain.size * log_weight.draw.size)
    k = groups["sample_stats"]["pareto_k"].max("chain").clip(0.0, 0.5)  # it only warns of others
    return az.loo(groups, log_weights=log_weights, pareto_k=k, pointwise=True)


@models
@quiet
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # of log p(x|z), as the docstring warns
def test_arviz_works_on_it(az, model):
    from matplotlib import pyplot

    vae, data = model()
    groups = to_arviz([vae] * 2, data, num_samples=40)
    latents = 5 * max(1, vae.latent_shape.numel())
    assert len(az.summary(groups, var_names=["z"])) == latents
    # With few discrete z the tail of log p(x|z) is one value, which ArviZ 1.x refuses.
    elpd = _loo(az, groups, az.__version__ >= "1" and _group(groups, "posterior")["z"].dtype == "int32")
    assert elpd.n_data_points == 5
    assert math.isfinite(elpd.elpd_loo if az.__version__ < "1" else elpd.elpd)
    try:
        if az.__version__ < "1":
            az.plot_forest(groups, var_names=["z"])
            for group in ("posterior", "prior"):
                az.plot_ppc(groups, group=group, num_pp_samples=5, random_seed=0)
        else:
            kind = "ecdf" if _group(groups, "observed_data")["x"].dtype == "int32" else "kde"
            az.plot_forest(groups, var_names=["z"], backend="matplotlib")
            for group in ("posterior_predictive", "prior_predictive"):
                az.plot_ppc_dist(groups, group=group, num_samples=5, kind=kind, backend="matplotlib")
        assert len(pyplot.get_fignums()) == 3
        for number in pyplot.get_fignums():
            pyplot.figure(number).canvas.draw()
    finally:
        pyplot.close("all")


@quiet
def test_arviz_compares_prior_and_posterior(az, vaes, x):
    from matplotlib import pyplot

    groups = to_arviz(vaes, x[:2], num_samples=40)
    try:
        if az.__version__ < "1":
            az.plot_dist_comparison(groups, var_names=["z"])
        else:
            az.plot_prior_posterior(groups, var_names=["z"], backend="matplotlib")
    finally:
        pyplot.close("all")


def test_loo_with_the_weights_that_leave_a_datum_out_is_log_p_x(az, vaes, x):
    if az.__version__ < "1":
        pytest.skip("ArviZ 0.23 has no loo(log_weights=)")
    groups = to_arviz(vaes, x, num_samples=50)
    elpd = _loo(az, groups, leaving_out=True)
    of_the_draws = _tensor(groups, "sample_stats", "log_weight").flatten(0, 1).logsumexp(0) - math.log(100)
    np.testing.assert_allclose(elpd.elpd_i, of_the_draws, atol=1e-10)


# ------------------------------------------------------------------ what the numbers are


@pytest.mark.parametrize("rows", [20_000, 1], ids=["at once", "datum by datum"])
def test_at_the_exact_posterior_every_log_weight_is_log_p_x(monkeypatch, rows):
    monkeypatch.setattr(diagnostics, "_ROWS", rows)
    oracle, x, groups = _linear_gaussian()
    expected = oracle.log_marginal(x).expand(2, 400, 3)
    torch.testing.assert_close(_tensor(groups, "sample_stats", "log_weight"), expected, rtol=0, atol=1e-10)
    assert (_tensor(groups, "sample_stats", "pareto_k") == -math.inf).all()  # constant weights have no tail


def test_log_likelihood_is_of_the_posterior_draws():
    oracle, x, groups = _linear_gaussian()
    z = _tensor(groups, "posterior", "z").double()
    expected = dist.Normal(z @ oracle.W.T + oracle.b, oracle.s).log_prob(x).sum(-1)
    torch.testing.assert_close(_tensor(groups, "log_likelihood", "x"), expected, rtol=0, atol=1e-4)  # z is float32


@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_draws_have_the_moments_of_their_distribution(group):
    oracle, x, groups = _linear_gaussian(num_samples=2000)
    p = oracle.posterior(x)
    if group == "prior":
        p = torch.distributions.MultivariateNormal(torch.zeros(3, 2).double(), torch.eye(2).double())
    z, drawn = (_tensor(groups, *of).flatten(0, 1).double() for of in ((group, "z"), (f"{group}_predictive", "x")))
    mean, second = p.mean, p.covariance_matrix + p.mean.unsqueeze(-1) * p.mean.unsqueeze(-2)
    assert_mean(z, mean)
    assert_mean(z.unsqueeze(-1) * z.unsqueeze(-2), second)
    assert_mean(drawn, mean @ oracle.W.T + oracle.b)
    noise = drawn - z @ oracle.W.T - oracle.b  # of x given its own z
    assert_mean(noise.square(), oracle.s.square().expand(3, 4))
    assert_mean(noise.unsqueeze(-1) * z.unsqueeze(-2), torch.zeros(3, 4, 2))


def test_prior_draws_follow_the_context_of_their_datum():
    vae, data = _in_context()
    groups = to_arviz(vae, data, num_samples=2000)
    expected = vae.prior(data.context)
    z = _tensor(groups, "prior", "z")[0]
    assert_mean(z, expected.mean)
    assert_mean((z - expected.mean).square(), expected.variance)
    np.testing.assert_array_equal(_group(groups, "constant_data")["context"], data.context)


def test_prior_and_posterior_draws_are_of_streams_of_their_own():
    vae = LinearGaussian.random(4, 2).vae()
    vae.posterior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)).double()
    groups = to_arviz([vae] * 2, torch.zeros(3, 4), num_samples=50)
    posterior, prior = (_tensor(groups, name, "z") for name in ("posterior", "prior"))
    assert len(torch.cat([posterior, prior]).unique()) == 2 * posterior.numel()


def test_pareto_k_is_of_the_log_weights_of_each_chain(x):
    oracle = LinearGaussian.random(6, 2)
    vaes = [oracle.vae(oracle.exact_encoder(wider)) for wider in (0.6, 1.6)]
    groups = to_arviz(vaes, x, num_samples=100)
    expected = torch.stack([pareto_k(log_w) for log_w in _tensor(groups, "sample_stats", "log_weight")])
    torch.testing.assert_close(_tensor(groups, "sample_stats", "pareto_k"), expected, rtol=0, atol=1e-10)
    assert expected.isfinite().all()
    few = to_arviz(vaes, x, num_samples=29)
    assert _tensor(few, "sample_stats", "pareto_k").isnan().all()


def test_whole_numbers_are_integers_and_others_float32(x):
    kinds = {}
    for name, model in MODELS.items():
        groups = to_arviz(*model(), num_samples=20)
        kinds[name] = {_group(groups, group)["x"].dtype for group in ("posterior_predictive", "prior_predictive")}
        kinds[name] |= {_group(groups, "observed_data")["x"].dtype}
    whole = {"binary", "scalar latent and counts", "context"}
    assert kinds == {name: {np.dtype("int32" if name in whole else "float32")} for name in MODELS}
    z = _group(to_arviz(*_discrete_latents(), num_samples=20), "posterior")["z"]
    assert z.dtype == "int32"
    assert set(np.unique(z)) == {0, 1}


def test_grey_data_of_a_binary_likelihood_are_not_truncated(make_vae):
    grey = torch.full((3, 6), 0.25)
    with pyro.validation_enabled(False):
        groups = to_arviz(make_vae(), grey, num_samples=5)
    np.testing.assert_array_equal(_group(groups, "observed_data")["x"], grey)


def test_hidden_cells_do_not_matter_and_are_imputed():
    vae, data = _masked()
    first, second = (
        to_arviz(vae, data._replace(x=torch.where(data.mask, data.x, hidden)), num_samples=40) for hidden in (-9.0, 9.0)
    )
    for name in GROUPS:
        assert _group(first, name).identical(_group(second, name)), name
    np.testing.assert_array_equal(np.isnan(_group(first, "observed_data")["x"]), ~data.mask)
    assert _tensor(first, "posterior_predictive", "x").isfinite().all()


def test_draws_are_in_evaluation_mode_and_the_modes_come_back(make_vae, x):
    torch.manual_seed(0)
    vae = make_vae(likelihood=Conditional(dist.Bernoulli, (6,), given=torch.nn.Dropout(0.5), features=2)).train()
    groups = to_arviz(vae, x, num_samples=3)
    assert vae.likelihood.given.training
    expected = vae.eval().log_likelihood(_tensor(groups, "posterior", "z")[0], x).double()
    torch.testing.assert_close(_tensor(groups, "log_likelihood", "x")[0], expected)


def test_leaves_the_random_state_alone_and_repeats(vaes, x):
    state = torch.get_rng_state()
    first, second, other = (to_arviz(vaes, x, num_samples=3, seed=seed) for seed in (1, 1, 7))
    for name in GROUPS:
        assert _group(first, name).identical(_group(second, name)), name
    assert not torch.equal(_tensor(first, "prior", "z"), _tensor(other, "prior", "z"))
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------ units and bad input

SCALE = torch.tensor([0.5, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)


def _units(centre=1.0):
    jacobian = -float(SCALE.log().sum())
    return DataTransform(
        "rows", 6, "none", "standardise", None, tuple("abcdef"), torch.full((6,), centre).double(), SCALE, jacobian
    )


def test_units_are_the_datas_own(az, tmp_path):
    vae, x = _plain()
    plain, own = (to_arviz(vae, x, num_samples=3, units=u) for u in (None, _units()))
    write_netcdf(own, tmp_path / "draws.nc")
    for groups in (own, az.from_netcdf(tmp_path / "draws.nc")):
        for name in ("observed_data", "posterior_predictive", "prior_predictive"):
            expected = _group(plain, name)["x"].values * SCALE.numpy() + 1.0
            np.testing.assert_allclose(_group(groups, name)["x"], expected, rtol=1e-5, atol=1e-5)
            assert list(_group(groups, name)["cell"].values) == list("abcdef")
        for name, variable in (("log_likelihood", "x"), ("sample_stats", "log_weight")):
            expected = _group(plain, name)[variable].values + _units().log_jacobian
            np.testing.assert_allclose(_group(groups, name)[variable], expected, rtol=0, atol=1e-10)
        assert _group(groups, "posterior").attrs["units"] == "the data's own units"


def test_the_jacobian_is_of_the_observed_cells():
    vae, data = _masked()
    plain, own = (to_arviz(vae, data, num_samples=3, units=u) for u in (None, _units()))
    gained = _tensor(own, "log_likelihood", "x") - _tensor(plain, "log_likelihood", "x")
    expected = -(data.mask * SCALE.log()).sum(-1)
    torch.testing.assert_close(gained, expected.expand(1, 3, 5), rtol=0, atol=1e-10)


def test_bad_input_is_an_error(make_vae, x):
    with pytest.raises(InputError, match="at least one VAE, got none"):
        to_arviz([], x)
    with pytest.raises(InputError, match="`num_samples` is a positive integer, got `0`"):
        to_arviz(make_vae(), x, num_samples=0)
    with pytest.raises(InputError, match=r"one structure, got latents of shapes \(2,\), \(3,\)"):
        to_arviz([make_vae(), VAE(_normal(3), Conditional(dist.Bernoulli, (6,), given=mlp(3, 7)))], x)
    with pytest.raises(InputError, match="expected data of shape"):
        to_arviz(make_vae(), x[:, :5])


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, xarray
from pyro_vae.errors import WriteError
from pyro_vae.evaluation.arviz_export import write_netcdf
z = np.random.default_rng(0).normal(size=9999)
tree = xarray.DataTree.from_dict({"posterior": xarray.Dataset({"z": ("draw", z)})})
for limit in (0, 3000, 40_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_netcdf(tree, Path(sys.argv[1]))
    except WriteError as error:
        print(error)
"""


def test_a_full_disk_is_an_error_and_no_crash_of_the_process(tmp_path):
    """HDF5 crashes where it writes to a full disk itself."""
    path = tmp_path / "draws.nc"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (said,) = set(done.stdout.splitlines())
    assert said.startswith(f"`{path}` is not written: File too large; raise the limit of a file's size")
    assert list(tmp_path.iterdir()) == []
