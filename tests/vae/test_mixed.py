"""A likelihood whose columns have families of their own: its density, its draws, its gradients and its words."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from fitting import fit_with
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Fixed, Hierarchy, Learned, Network, Reads, Training, fit, mlp
from pyro_vae.distributions.moments import centre
from pyro_vae.errors import InputError
from pyro_vae.evaluation import elbo
from pyro_vae.experiment.mixed import ColumnSpec, MixedSpec
from pyro_vae.inference import AEVB
from pyro_vae.vae.data_check import check_values
from pyro_vae.vae.mixed import Column, Mixed

LEVELS = Column(dist.Categorical, logits=Network((4,)))
COLUMNS = {
    "age": Column(dist.Normal, scale=Learned(0.5)),
    "visits": dist.Poisson,
    "smoker": dist.Bernoulli,
    "region": LEVELS,
    "height": Column(dist.Normal, scale=Learned(0.5)),
    "share": dist.Beta,
    "claims": Column(dist.NegativeBinomial, total_count=Learned(2.0)),
}


def mixed(columns=None, latent=2):
    torch.manual_seed(3)
    return Mixed(COLUMNS if columns is None else columns, given=mlp(latent, 6)).double()


@pytest.fixture
def z():
    return torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rows(likelihood, z, seed=0):
    torch.manual_seed(seed)
    return likelihood(z).sample()


# ---------------------------------------------------------------------- density and draws


@torch.no_grad()
def test_the_density_sums_and_integrates_to_one(z):
    likelihood = mixed({"a": dist.Normal, "b": LEVELS, "c": dist.Bernoulli, "d": dist.Beta})
    x_given_z = likelihood(z[:1])
    nodes, weights = np.polynomial.legendre.leggauss(80)
    reals, real_weights = torch.tensor(nodes * 30), torch.tensor(weights * 30)
    # A Beta has corners of any sharpness: the nodes u of the unit interval are crowded towards its ends.
    u, unit_weights = torch.tensor(nodes + 1) / 2, torch.tensor(weights / 2)
    units, jacobian = 3 * u**2 - 2 * u**3, 6 * u * (1 - u)
    total = 0.0
    for level, bit in itertools.product(range(4), range(2)):
        a, d = torch.meshgrid(reals, units, indexing="ij")
        x = torch.stack([a, torch.full_like(a, level), torch.full_like(a, bit), d], dim=-1)
        weight = real_weights[:, None] * (unit_weights * jacobian)
        total += float((x_given_z.log_prob(x).exp() * weight).sum())
    assert total == pytest.approx(1.0, abs=1e-3)


def test_the_density_is_the_product_of_the_columns(z):
    likelihood = mixed()
    x = rows(likelihood, z)
    x_given_z = likelihood(z)
    assert x_given_z.event_shape == (7,)
    assert x_given_z.batch_shape == (5,)
    cells = x_given_z.log_prob_cells(x)
    torch.testing.assert_close(cells.sum(-1), x_given_z.log_prob(x), rtol=1e-12, atol=1e-12)
    features = likelihood.given(z)
    for i, name in enumerate(COLUMNS):
        # The column by itself, with its slice of its group's layer.
        group = next(g for g, names in enumerate(likelihood._members) if name in names)
        alone = likelihood.groups[group](features).base_dist
        position = likelihood._members[group].index(name)
        at = x[:, i].unsqueeze(-1).expand(-1, len(likelihood._members[group]))
        torch.testing.assert_close(cells[:, i], alone.log_prob(at)[:, position])


def test_columns_that_are_declared_alike_share_a_layer_and_nothing_else(z):
    likelihood = mixed()
    assert [len(names) for names in likelihood._members] == [2, 1, 1, 1, 1, 1]
    assert len(Mixed([dist.Normal] * 100, given=mlp(2, 5)).groups) == 1
    (scales,) = [p for name, p in likelihood.named_parameters() if name == "groups.0.learned_scale"]
    assert scales.shape == (2,)  # one for each column, though each is declared by one number
    assert len({id(p) for p in likelihood.parameters()}) == len(list(likelihood.parameters()))
    restored = mixed()
    restored.load_state_dict(likelihood.state_dict())
    x = rows(likelihood, z)
    assert torch.equal(restored(z).log_prob(x), likelihood(z).log_prob(x))


def test_draws_have_the_columns_means_and_variances():
    likelihood = mixed({**COLUMNS, "region": Column(dist.Binomial, total_count=Fixed(3), logits=Network())})
    x_given_z = likelihood(torch.zeros(1, 2).double())
    torch.manual_seed(0)
    draws = x_given_z.sample((20_000,)).squeeze(1)
    mean, variance = x_given_z.mean.squeeze(0), x_given_z.variance.squeeze(0)
    assert_mean(draws, mean)
    assert_mean((draws - mean).square(), variance)


def test_the_mean_of_a_column_without_one_is_its_mode(z):
    x_given_z = mixed()(z)
    region = x_given_z.parts[list(x_given_z.parts)[3]]
    assert torch.equal(centre(x_given_z)[:, 3], region.logits.argmax(-1).squeeze(-1).double())
    assert bool(x_given_z.variance[:, 3].isnan().all())
    assert not bool(x_given_z.mean.isnan().any())


def test_expanded_and_broadcast(z):
    likelihood = mixed()
    x = rows(likelihood, z)
    wide = likelihood(z).expand((3, 5))
    assert wide.batch_shape == (3, 5)
    assert torch.equal(wide.log_prob(x), likelihood(z).log_prob(x).expand(3, 5))
    assert wide.sample((2,)).shape == (2, 3, 5, 7)
    deep = likelihood(z.expand(3, 5, 2))
    torch.testing.assert_close(deep.log_prob(x), likelihood(z).log_prob(x).expand(3, 5))
    assert not deep.has_rsample
    normal = Mixed({"a": dist.Normal, "b": Column(dist.Laplace)}, given=mlp(2, 4))(z.float())
    assert normal.has_rsample
    assert normal.rsample((2,)).requires_grad
    with pytest.raises(NotImplementedError, match="some columns"):
        deep.rsample()


def test_in_pyro_programs(z):
    likelihood = mixed()
    x = rows(likelihood, z)
    with pyro.poutine.trace() as trace, pyro.plate("data", 5, dim=-1):
        pyro.sample("x", likelihood(z), obs=x)
    torch.testing.assert_close(trace.trace.log_prob_sum(), likelihood(z).log_prob(x).sum())


# ---------------------------------------------------------------------- hidden cells


def test_hidden_cells_contribute_nothing_whatever_they_hold(z):
    likelihood = mixed()
    x, mask = rows(likelihood, z), torch.rand(5, 7) < 0.6
    mask[0] = False
    cells = likelihood(z).log_prob_cells(x)
    for hidden in (math.nan, math.inf, -7.5):
        z_ = z.clone().requires_grad_()
        seen, inside = likelihood(z_).observing(torch.where(mask, x, hidden), mask)
        assert bool(seen.support.check(inside).all())
        log_prob = seen.log_prob(inside)
        torch.testing.assert_close(log_prob, (cells * mask).sum(-1), rtol=1e-12, atol=1e-12)
        assert torch.equal(seen.log_prob_cells(inside) != 0, mask)
        gradients = torch.autograd.grad(log_prob.sum(), [z_, *likelihood.parameters()], allow_unused=True)
        assert all(bool(g.isfinite().all()) for g in gradients if g is not None)
        assert bool((gradients[0][0] == 0).all())
        likelihood.zero_grad()


def test_a_vae_trains_on_hidden_cells():
    likelihood = mixed().float()
    x = rows(likelihood, torch.randn(60, 2, generator=torch.Generator().manual_seed(2)))
    mask = torch.rand(60, 7) < 0.7
    vae = VAE(Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)), likelihood)
    batch = Batch(torch.where(mask, x, math.nan), mask=mask)
    before = vae.log_likelihood(torch.zeros(60, 2), batch)
    history = fit(vae, batch, AEVB(), Training(optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), epochs=2))
    assert bool(np.isfinite(history.bound).all())
    assert not torch.equal(before, vae.log_likelihood(torch.zeros(60, 2), batch))
    assert vae.reconstruct(batch).shape == (60, 7)


# ---------------------------------------------------------------------- offset


def test_an_offset_reaches_the_columns_that_ask_for_it(z):
    rate = Network(offset=True)
    columns = {"a": dist.Normal, "b": Column(dist.Poisson, rate=rate), "c": Column(dist.Poisson, rate=rate)}
    likelihood = mixed(columns)
    plain = likelihood(z).mean
    shared = likelihood(z, torch.full((5, 1), 0.7)).mean
    torch.testing.assert_close(shared / plain, torch.tensor([1.0, math.exp(0.7), math.exp(0.7)]).expand(5, 3).double())
    own = likelihood(z, torch.tensor([5.0, 0.1, 0.2]).expand(5, 3)).mean
    torch.testing.assert_close(own / plain, torch.tensor([1.0, math.exp(0.1), math.exp(0.2)]).expand(5, 3).double())
    with pytest.raises(InputError, match="offset=True"):
        mixed()(z, torch.zeros(5, 1))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "at least one column"),
        ({"a": dist.Dirichlet}, "column `a`: `Dirichlet` has events of several cells"),
        ({"a": Column(dist.Normal, scael=Learned())}, "column `a`: .*did you mean `scale`"),
        ({"a": dist.Categorical}, r"column `a`: .*declare"),
        ({"a": Column(dist.Normal, loc=Fixed([0.0, 1.0])), "b": dist.Poisson}, "column `a`"),
    ],
)
def test_declarations_that_cannot_be(columns, message):
    with pytest.raises(InputError, match=message):
        Mixed(columns, given=mlp(2, 4))


def test_without_a_network():
    likelihood = Mixed({"a": Column(dist.Normal, loc=Learned(1.0), scale=Fixed(2.0)), "b": dist.Poisson})
    assert likelihood(torch.zeros(3, 2)).batch_shape == (3,)
    assert likelihood().mean.tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="needs a context"):
        mixed()()


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("visits", -1.0, "visits"), ("visits", 0.5, "visits"), ("smoker", 2.0, "smoker"), ("region", 4.0, "region")],
)
def test_cells_outside_their_columns_support_are_named(column, value, said):
    likelihood = mixed().float()
    vae = VAE(Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)), likelihood)
    x, index = rows(likelihood, torch.zeros(6, 2)), list(COLUMNS).index(column)
    x[4, index] = value
    with pytest.raises(InputError, match=f"row 4, column {index} .*of column `{said}`"):
        check_values(vae, Batch(x), True)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[4, index] = False
    check_values(vae, Batch(x, mask=mask), True)


# ---------------------------------------------------------------------- in the words of an experiment file


def test_says_what_the_file_says_and_comes_back(z):
    spec = MixedSpec.model_validate(mixed().to_spec())
    assert spec.model_dump(mode="json", exclude_none=True) == mixed().to_spec()
    assert MixedSpec.model_validate(spec.model_dump(mode="json")) == spec
    again = Mixed({name: each.column() for name, each in spec.columns.items()}, given=mlp(2, 6)).double()
    again.load_state_dict(mixed().state_dict())
    x = rows(mixed(), z)
    assert torch.equal(again(z).log_prob(x), mixed()(z).log_prob(x))


def test_the_shorthand_for_levels():
    spec = ColumnSpec.model_validate({"Categorical": 4})
    assert spec == ColumnSpec.model_validate({"family": "Categorical", "logits": {"network": [4]}})
    assert (spec.column_support().lower_bound, int(spec.column_support().upper_bound)) == (0, 3)
    for wrong in ({"Categorical": 1}, {"Normal": 3}, {"Categorical": "x"}):
        with pytest.raises(ValueError, match="expected a family such as"):
            ColumnSpec.model_validate(wrong)


# ---------------------------------------------------------------------- data frames


def vae_of(likelihood, cells):
    prior = Hierarchy(z2=Conditional(dist.Normal, (1,)), z1=Conditional(dist.Normal, (2,), given=mlp(1, 3)))
    return VAE(prior.double(), likelihood, Conditional(dist.Normal, (3,), given=mlp(cells, 4)).double())


@pytest.mark.parametrize("reads", [(), ("z1",)], ids=str)
def test_the_columns_of_a_data_frame_are_found_by_their_names(reads):
    columns = {"age": dist.Normal, "visits": dist.Poisson, "smoker": dist.Bernoulli}
    vae = vae_of(Reads(mixed(columns), *reads) if reads else mixed(columns, latent=3), 3)
    frame = pd.DataFrame({"age": [0.5, -1.0], "visits": [3.0, 40.0], "smoker": [1.0, 0.0]})
    other = frame[["smoker", "age", "visits"]]
    expected = elbo(vae, torch.tensor(frame.to_numpy()), 5).pointwise
    for given in (frame, other, Batch(other)):
        assert torch.equal(elbo(vae, given, 5).pointwise, expected)
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3), "steps": 1, "compile": False}
    states = []
    for given in (frame, other):
        own = copy.deepcopy(vae)
        states.append((own, fit_with(own, given, AEVB(), validation=given, **options).validation_bound))
    assert states[0][1] == states[1][1]
    assert all(torch.equal(a, b) for a, b in zip(*(own.parameters() for own, _ in states), strict=True))
    message = r"`validation` has the columns `age`, `bmi`, `smoker`, and the likelihood `age`, `visits`, `smoker`"
    with pytest.raises(InputError, match=message):
        fit_with(vae, frame, AEVB(), validation=frame.rename(columns={"visits": "bmi"}), **options)
    with pytest.raises(InputError, match=r"VAE: `x` has the columns `age`, `smoker`, and the likelihood"):
        vae.reconstruct(frame[["age", "smoker"]])


def test_columns_without_names_are_taken_in_their_order():
    vae = vae_of(mixed([dist.Normal, dist.Poisson], latent=3), 2)
    frame = pd.DataFrame({"b": [0.5], "a": [3.0]})
    assert torch.equal(vae.check(frame).x, torch.tensor([[0.5, 3.0]], dtype=torch.float64))


def test_a_data_frame_is_refused_where_the_models_data_are_transformed():
    likelihood, frame = mixed([dist.Normal], latent=3), pd.DataFrame({"a": [1.0, 2.0]})
    vae = VAE(vae_of(likelihood, 1).prior, likelihood, transformed_data=True).double()
    for caller, call in (
        ("elbo", lambda x: elbo(vae, x)),
        ("VAE", vae.encode),
        ("fit", lambda x: fit(vae, x, AEVB(), Training(optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), epochs=1))),
    ):
        for data in (frame, Batch(frame)):
            with pytest.raises(InputError, match=rf"^{caller}: .*pass read_rows\(frame\) .*to_model_units\(frame\)"):
                call(data)
        call(frame.to_numpy())  # whose columns have no names: model units, as everywhere
