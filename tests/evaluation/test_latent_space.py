"""Maps, traversals and interpolations against the closed forms of the linear-Gaussian oracle."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from programs import linear_gaussian
from torch import Tensor
from torch.distributions import Normal, biject_to, constraints

from pyro_vae import (
    VAE,
    Batch,
    Conditional,
    Fixed,
    Hierarchy,
    Learned,
    Network,
    SphericalUniform,
    VonMisesFisher,
    conv_decoder,
    mlp,
)
from pyro_vae.errors import InputError
from pyro_vae.evaluation import active_units, interpolate, latent_map, posterior_means, traverse

MODEL = LinearGaussian.random(5, 3)
ENCODER = MODEL.exact_encoder()
X = MODEL.sample(30)


def oracle() -> VAE:
    return MODEL.vae(ENCODER)


def coordinates(frame: pd.DataFrame) -> Tensor:
    return torch.from_numpy(frame[frame.attrs["coordinates"]].to_numpy(copy=True))


def simplex() -> VAE:
    """A Dirichlet prior over three cells."""
    prior = Conditional(dist.Dirichlet, (3,), concentration=Fixed([2.0, 2.0, 2.0]))
    return VAE(prior, Conditional(dist.Normal, (5,), given=mlp(3, 4), scale=Learned(0.5)))


def positive() -> VAE:
    prior = Conditional(dist.LogNormal, (2,), loc=Fixed([0.5, -1.0]), scale=Fixed([1.0, 2.0]))
    return VAE(prior, Conditional(dist.Normal, (5,), given=mlp(2, 4), scale=Learned(0.5)))


def categorical() -> VAE:
    """Two latents of nine values each; the first follows x_0, the second is always 4."""
    encoder = torch.nn.Linear(5, 18)
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight.view(9, 2, 5)[:, 0, 0] = torch.arange(-4.0, 5.0)
        encoder.bias.view(9, 2)[:, 0] = -torch.arange(-4.0, 5.0).square() / 2
        encoder.bias.view(9, 2)[:, 1] = (torch.arange(9) == 4) * 9.0
    return VAE(
        Conditional(dist.Categorical, (2,), logits=Fixed([0.0] * 9)),
        Conditional(dist.Normal, (5,), given=mlp(2, 4)),
        Conditional(dist.Categorical, (2,), given=encoder, head=None, logits=Network((9,))),
    )


def sphere(*blocks: int) -> VAE:
    return VAE(
        Conditional(SphericalUniform, (*blocks, 3)),
        Conditional(dist.Normal, (5,), given=mlp(3 * math.prod(blocks), 4)),
        Conditional(VonMisesFisher, (*blocks, 3), given=mlp(5, 4)),
    )


# ---------------------------------------------------------------------- latent_map


def test_the_map_is_the_pca_of_the_exact_posterior_means() -> None:
    frame = latent_map(oracle(), X)
    means = MODEL.posterior(X).mean.numpy()
    centred = means - means.mean(0)
    eigenvalues, vectors = np.linalg.eigh(np.cov(means.T))
    leading = vectors[:, [2, 1]]
    leading = leading * np.sign(leading[np.abs(leading).argmax(0), [0, 1]])
    np.testing.assert_allclose(frame[["pc1", "pc2"]].to_numpy(), centred @ leading, rtol=0, atol=1e-10)
    np.testing.assert_allclose(frame.attrs["explained_variance"], eigenvalues[[2, 1]], rtol=1e-10)
    np.testing.assert_allclose(frame.attrs["explained_share"], eigenvalues[[2, 1]] / eigenvalues.sum(), rtol=1e-10)
    np.testing.assert_allclose(frame.attrs["mean"], means.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.array(frame.attrs["directions"]), leading.T, rtol=0, atol=1e-10)
    assert frame.attrs["method"] == "pca"
    assert frame["datum"].tolist() == list(range(30))
    variance = means.var(0, ddof=1)
    assert frame.attrs["latents"] == [f"z{i}" for i in np.argsort(-variance)]
    np.testing.assert_allclose(frame.attrs["activity"], sorted(variance, reverse=True), rtol=1e-10)


def test_data_in_parts_have_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = latent_map(oracle(), X)
    monkeypatch.setattr("pyro_vae.evaluation.latent_coordinates._CHUNK", 7)
    pd.testing.assert_frame_equal(latent_map(oracle(), X), whole)


def test_the_map_of_latents_has_the_chosen_or_the_most_active_ones() -> None:
    gains = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    model = LinearGaussian(MODEL.W * gains, MODEL.b, MODEL.s)
    vae, x = model.vae(model.exact_encoder()), model.sample(30)
    means = model.posterior(x).mean
    frame = latent_map(vae, x, method="latents")
    torch.testing.assert_close(coordinates(frame), means[:, [0, 2]], rtol=0, atol=1e-12)
    assert frame.attrs["latents"][-1] == "z1"
    frame = latent_map(vae, x, dims=(2, 1))
    assert frame.attrs["coordinates"] == ["z2", "z1"]
    torch.testing.assert_close(coordinates(frame), means[:, [2, 1]], rtol=0, atol=1e-12)
    assert frame.attrs["explained_share"][1] == pytest.approx(0, abs=1e-20)
    assert list(latent_map(vae, x, dims=[1]).columns) == ["datum", "z1"]
    small = LinearGaussian.random(5, 2)
    assert latent_map(small.vae(small.exact_encoder()), X).attrs["method"] == "latents"


def test_labels_are_columns() -> None:
    vae = oracle()
    assert latent_map(vae, X, labels=torch.arange(30))["label"].tolist() == list(range(30))
    table = {"kind": ["a", "b"] * 15, "age": np.linspace(0, 1, 30)}
    for labels in (table, pd.DataFrame(table)):
        frame = latent_map(vae, X, labels=labels)
        assert list(frame.columns) == ["datum", "pc1", "pc2", "kind", "age"]
        assert frame["kind"].tolist() == table["kind"]
    with pytest.raises(InputError, match=r"latent_map: `labels` are 30 values.*`label` has shape \(2,\)"):
        latent_map(vae, X, labels=[0, 1])
    with pytest.raises(InputError, match="`pc1` is a column of the map itself"):
        latent_map(vae, X, labels={"pc1": np.zeros(30)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (0, 3)}, r"`dims` are different positions of latents, whole numbers from 0 to 2; got \[0, 3\]"),
        ({"dims": (1, 1)}, "`dims` are different positions"),
        ({"dims": (0, 1, 2)}, "one or two latents, got 3"),
        ({"dims": (0, 1), "method": "pca"}, '`dims` are the axes of method="latents"'),
        ({"method": "tsne"}, '`method` is "pca" or "latents", got `\'tsne\'`'),
    ],
)
def test_what_a_map_cannot_show_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        latent_map(oracle(), X, **options)  # type: ignore[arg-type]


def test_a_map_needs_two_data() -> None:
    with pytest.raises(InputError, match="at least two"):
        latent_map(oracle(), X[:1])


def test_positive_latents_are_mapped_by_their_logarithms() -> None:
    vae = positive().double()
    frame = latent_map(vae, X)
    torch.testing.assert_close(coordinates(frame), posterior_means(vae, X).log(), rtol=0, atol=1e-12)
    assert frame.attrs["unconstrained"]
    assert frame.attrs["coordinates"] == ["z0", "z1"]


def test_a_simplex_has_a_coordinate_less() -> None:
    vae = simplex()
    frame = latent_map(vae, X.float())
    assert sorted(frame.attrs["latents"]) == ["u0", "u1"]
    u = coordinates(frame).float()
    torch.testing.assert_close(biject_to(constraints.simplex)(u), posterior_means(vae, X.float()))


def test_categorical_latents_are_mapped_by_their_most_probable_values() -> None:
    vae, x = categorical(), torch.linspace(-4, 4, 9).unsqueeze(1).expand(9, 5)
    frame = latent_map(vae, x)
    assert frame["z0"].tolist() == list(range(9))
    assert frame["z1"].tolist() == [4] * 9
    assert not frame.attrs["unconstrained"]


def test_a_program_has_the_map_of_the_same_vae() -> None:
    frame, expected = latent_map(linear_gaussian(MODEL, ENCODER), X), latent_map(oracle(), X)
    pd.testing.assert_frame_equal(frame, expected, rtol=1e-10, atol=1e-10)
    assert frame.attrs["latents"] == expected.attrs["latents"]


def test_the_noise_of_means_from_draws_is_no_activity() -> None:
    """q = p = N(0, 4²) for both layers: 1,000 draws give means of variance 0.016 over data."""
    wide = {"loc": Fixed(0.0), "scale": Fixed(4.0)}
    layers = {name: Conditional(dist.Normal, (1,), **wide) for name in ("z2", "z1")}
    vae = VAE(
        Hierarchy(**layers),
        Conditional(dist.Normal, (5,), given=mlp(2, 4)),
        Hierarchy(z1=Conditional(dist.Normal, (1,), **wide), z2=Conditional(dist.Normal, (1,), **wide)),
    )
    x = MODEL.sample(200).float()
    assert not active_units(vae, x).any()
    assert max(latent_map(vae, x).attrs["activity"]) < 0.01


# ---------------------------------------------------------------------- traverse


def test_a_traversal_decodes_w_z_plus_b_at_the_stated_latents() -> None:
    moved = traverse(oracle(), X, start=4, dims=[2, 0], steps=5, span=2.0)
    t = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).double()
    torch.testing.assert_close(moved.values, t.expand(2, 5), rtol=0, atol=1e-9)
    z = MODEL.posterior(X).mean[4].expand(2, 5, 3).clone()
    z[0, :, 2], z[1, :, 0] = t, t
    torch.testing.assert_close(moved.z, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved.x, moved.z @ MODEL.W.T + MODEL.b, rtol=0, atol=1e-12)
    assert (moved.dims, moved.names, moved.unconstrained) == ((2, 0), ("z2", "z0"), False)


def test_a_traversal_moves_the_most_active_latents_first() -> None:
    moved = traverse(oracle(), X)
    assert moved.dims == tuple(MODEL.posterior(X).mean.var(0).argsort(descending=True).tolist())
    assert traverse(oracle(), X[:1]).dims == (0, 1, 2)
    wide = Encoder(torch.randn(12, 5).double(), torch.zeros(12).double(), torch.ones(12).double())
    vae = LinearGaussian(torch.randn(5, 12).double(), MODEL.b, MODEL.s).vae(wide)
    order = wide(X)[0].var(0).argsort(descending=True).tolist()
    assert traverse(vae, X).dims == tuple(order[:10])
    with pytest.raises(InputError, match=r"the most active of 12 latents.*dims=\[0, 1\]"):
        traverse(vae, X[:1])


def test_a_traversal_starts_at_a_given_z_too() -> None:
    z = torch.tensor([0.3, -1.0, 2.0]).double()
    moved = traverse(oracle(), start=z, dims=[1], steps=3)
    expected = torch.stack([torch.tensor([0.3, t, 2.0]) for t in (-3.0, 0.0, 3.0)]).double()
    expected[:, 0] = 0.3
    torch.testing.assert_close(moved.z[0], expected, rtol=0, atol=1e-7)
    assert torch.equal(traverse(oracle(), X, start=z, dims=[1], steps=3).x, moved.x)


def test_positive_latents_move_through_their_priors_quantiles() -> None:
    moved = traverse(positive().double(), X, dims=[0, 1], steps=3, span=1.5)
    t = torch.tensor([-1.5, 0.0, 1.5]).double()
    torch.testing.assert_close(moved.values, torch.stack([0.5 + t, -1.0 + 2 * t]), rtol=0, atol=1e-9)
    torch.testing.assert_close(moved.z[0, :, 0], (0.5 + t).exp(), rtol=1e-9, atol=0)
    assert moved.unconstrained


def test_quantiles_of_draws_are_near_the_exact_ones() -> None:
    """A Gamma has no closed form of its quantiles here; of shape 1 it is an Exponential, which has one."""
    prior = Conditional(dist.Gamma, (1,), concentration=Fixed(1.0), rate=Fixed(1.0))
    vae = VAE(prior, Conditional(dist.Normal, (5,), given=mlp(1, 4))).double()
    moved = traverse(vae, X, steps=5, span=2.0)
    p = Normal(0.0, 1.0).cdf(torch.linspace(-2, 2, 5, dtype=torch.float64))
    exact = -(-p).log1p()
    # A quantile of n draws has the standard error sqrt(p (1 - p) / n) / density; here of log z.
    error = (p * (1 - p) / 20_000).sqrt() / (exact * (-exact).exp())
    assert bool(((moved.values[0] - exact.log()).abs() < 4.5 * error).all())
    again, other = (traverse(vae, X, steps=5, span=2.0, seed=seed).values for seed in (0, 1))
    assert torch.equal(again, moved.values)
    assert not torch.equal(other, moved.values)


def test_a_simplex_stays_a_simplex() -> None:
    moved = traverse(simplex(), X.float(), steps=9)
    assert moved.z.shape == (2, 9, 3)
    assert moved.names == ("u0", "u1") or moved.names == ("u1", "u0")
    torch.testing.assert_close(moved.z.sum(-1), torch.ones(2, 9))
    assert bool((moved.z > 0).all())
    row = moved.names.index("u1")  # moves the second cell against the third; the first stays
    torch.testing.assert_close(moved.z[row, :, 0], moved.z[row, :1, 0].expand(9), rtol=1e-5, atol=0)


def test_discrete_latents_take_their_values() -> None:
    vae, x = categorical(), torch.linspace(-4, 4, 9).unsqueeze(1).expand(9, 5)
    assert traverse(vae, x, steps=20, dims=[0]).values.tolist() == [list(range(9))]
    assert traverse(vae, x, steps=5, dims=[0, 1]).values.tolist() == [[0, 2, 4, 6, 8]] * 2
    assert traverse(vae, x, steps=3, start=2, dims=[0]).z[0].tolist() == [[0, 4], [4, 4], [8, 4]]


def test_a_sphere_has_no_latent_that_moves_alone() -> None:
    with pytest.raises(InputError, match=r'traverse: one latent cannot move alone.*path="spherical"'):
        traverse(sphere(), X.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "`steps` is a whole number of at least 2, got `1`"),
        ({"span": 0.0}, "`span` is a positive number"),
        ({"span": math.nan}, "`span` is a positive number"),
        ({"start": 30}, "`start` is the position of a datum, from 0 to 29"),
        ({"start": torch.zeros(2)}, r"`start` has shape \(2,\), and z has \(3,\)"),
        ({"dims": [3]}, "`dims` are different positions"),
    ],
)
def test_what_a_traversal_cannot_do_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        traverse(oracle(), X, **options)  # type: ignore[arg-type]


def test_a_traversal_without_data_needs_z() -> None:
    with pytest.raises(InputError, match="`start` lies outside the support"):
        traverse(positive(), start=torch.tensor([1.0, -1.0]))
    with pytest.raises(InputError, match="without data, `start` is a tensor z"):
        traverse(oracle())


# ---------------------------------------------------------------------- interpolate


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_the_ends_of_a_path_are_the_reconstructions(path: str) -> None:
    for vae, x in ((oracle(), X), (simplex(), X.float()), (positive(), X.float()), (sphere(), X.float())):
        if path == "linear" and vae.prior.family is SphericalUniform:
            continue
        way = interpolate(vae, x[:4], x[4:8], steps=5, path=path)  # type: ignore[arg-type]
        assert way.x.shape == (4, 5, 5)
        torch.testing.assert_close(way.x[:, 0], vae.reconstruct(x[:4]), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(way.x[:, -1], vae.reconstruct(x[4:8]), rtol=1e-6, atol=1e-6)


def test_a_linear_path_is_straight_and_is_decoded_exactly() -> None:
    way = interpolate(oracle(), X[:4], X[4:8], steps=5)
    means, t = MODEL.posterior(X).mean, torch.linspace(0, 1, 5, dtype=torch.float64).reshape(1, 5, 1)
    z = (1 - t) * means[:4].unsqueeze(1) + t * means[4:8].unsqueeze(1)
    torch.testing.assert_close(way.z, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(way.x, z @ MODEL.W.T + MODEL.b, rtol=0, atol=1e-12)
    assert way.position.tolist() == [0, 0.25, 0.5, 0.75, 1]


def identity() -> VAE:
    """A VAE of three cells with E[z|x] = x and E[x|z] = z."""
    one, zero = torch.eye(3).double(), torch.zeros(3).double()
    return LinearGaussian(one, zero, torch.ones(3).double()).vae(Encoder(one, zero, zero + 1))


def test_a_spherical_path_keeps_the_norm_and_turns_evenly() -> None:
    first = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]).double()
    second = torch.tensor([[0.0, 2.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 4.0], [2.0, 4.0, 4.0], [0.0] * 3]).double()
    way = interpolate(identity(), first, second, steps=4, path="spherical")
    norms = way.z.norm(dim=-1)
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(norms[0], torch.full((4,), 2.0).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(norms[1], 1 + 2 * t, rtol=0, atol=1e-12)
    angles = torch.atan2(way.z[0, :, 1], way.z[0, :, 0])
    torch.testing.assert_close(angles, t * math.pi / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(way.z[2], t.unsqueeze(1) * second[2], rtol=0, atol=1e-12)  # from the origin
    torch.testing.assert_close(way.z[3], (1 + t).unsqueeze(1) * first[3], rtol=0, atol=1e-12)  # one direction
    assert torch.equal(way.z[4], torch.zeros(4, 3).double())
    with pytest.raises(InputError, match=r"opposite directions.*path=\"linear\""):
        interpolate(identity(), first[:1], -first[:1], path="spherical")


def test_a_path_on_a_simplex_or_a_sphere_stays_there() -> None:
    way = interpolate(simplex(), X[:4].float(), X[4:8].float(), steps=9)
    torch.testing.assert_close(way.z.sum(-1), torch.ones(4, 9))
    assert bool((way.z > 0).all())
    vae = sphere()
    for each, shape in ((vae, (4, 8)), (sphere(2), (4, 8, 2))):
        way = interpolate(each, X[:4].float(), X[4:8].float(), path="spherical")
        torch.testing.assert_close(way.z.norm(dim=-1), torch.ones(shape))
    with pytest.raises(InputError, match=r"the linear path leaves the support"):
        interpolate(vae, X[:4].float(), X[4:8].float())


def test_discrete_latents_have_no_values_between_two() -> None:
    x = torch.linspace(-4, 4, 9).unsqueeze(1).expand(9, 5)
    with pytest.raises(InputError, match="Discrete latents have no values between two"):
        interpolate(categorical(), x[:1], x[1:2])
    assert interpolate(categorical(), x[:1], x[1:2], steps=2).z[0].tolist() == [[0, 4], [1, 4]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": True}, "`steps` is a whole number of at least 2"),
        ({"path": "circular"}, '`path` is "linear" or "spherical", got `\'circular\'`'),
    ],
)
def test_what_is_no_path_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        interpolate(oracle(), X[:1], X[1:2], **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`first` has 1 data and `second` 2"):
        interpolate(oracle(), X[:1], X[:2])


# ---------------------------------------------------------------------- contexts, masks, images, programs


def conditional() -> VAE:
    """p(z|c) = N(c, 1) and x = z + 10 c in the mean, with two covariates."""
    prior = Conditional(dist.Normal, (2,), given=torch.nn.Identity(), head=None, loc=Network(), scale=Fixed(1.0))
    decoder = torch.nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        decoder.weight.copy_(torch.cat([torch.eye(2), 10 * torch.eye(2)], dim=1))
    likelihood = Conditional(dist.Normal, (2,), given=decoder, head=None, loc=Network(), scale=Fixed(1.0))
    return VAE(prior, likelihood, mlp(4, 3), context_features=2)


def test_the_context_of_the_start_or_of_both_ends_is_used() -> None:
    vae, x = conditional(), torch.randn(6, 2)
    context = torch.randn(6, 2)
    batch = Batch(x, context)
    moved = traverse(vae, batch, start=3, dims=[0, 1], steps=3, span=1.0)
    expected = context[3].unsqueeze(1) + torch.tensor([-1.0, 0.0, 1.0])  # quantiles of p(z|c)
    torch.testing.assert_close(moved.values, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.x, moved.z + 10 * context[3], rtol=0, atol=1e-5)
    halves = batch.select(slice(0, 3)), batch.select(slice(3, 6))
    way = interpolate(vae, *halves, steps=3)
    middle = (halves[0].context + halves[1].context) / 2  # type: ignore[operator]
    torch.testing.assert_close(way.x[:, 1], way.z[:, 1] + 10 * middle, rtol=0, atol=1e-5)
    torch.testing.assert_close(way.x[:, 2], vae.reconstruct(halves[1]), rtol=0, atol=1e-5)
    assert len(latent_map(vae, batch)) == 6
    with pytest.raises(InputError, match="the model has no context; pass data"):
        traverse(vae, start=torch.zeros(2))


def test_masked_cells_do_not_enter() -> None:
    mask = torch.rand(30, 5, generator=torch.Generator().manual_seed(3)) < 0.6
    hidden = Batch(X, mask=mask), Batch(torch.where(mask, X, 9.0), mask=mask)
    maps = [latent_map(oracle(), batch) for batch in hidden]
    pd.testing.assert_frame_equal(*maps)
    parts = [batch.select(slice(0, 2)) for batch in hidden]
    torch.testing.assert_close(interpolate(oracle(), *parts).x[:, 0], oracle().reconstruct(parts[0]))
    assert torch.equal(traverse(oracle(), hidden[0]).x, traverse(oracle(), hidden[1]).x)


def test_images_keep_their_shape() -> None:
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    decoder = conv_decoder(2, (1, 8, 8), 4)
    likelihood = Conditional(dist.Bernoulli, (1, 8, 8), given=decoder, head=None)
    vae, x = VAE(prior, likelihood, mlp(64, 8)), torch.rand(4, 1, 8, 8).round()
    moved, way = traverse(vae, x, steps=3), interpolate(vae, x[:2], x[2:], steps=3)
    assert moved.x.shape == way.x.shape == (2, 3, 1, 8, 8)
    torch.testing.assert_close(way.x[:, 0], vae.reconstruct(x[:2]))
    torch.testing.assert_close(moved.x, vae.decode(moved.z).mean)


def test_a_program_has_no_traversal_and_says_what_to_do() -> None:
    program = linear_gaussian(MODEL, ENCODER)
    for call in (lambda: traverse(program, X), lambda: interpolate(program, X[:1], X[1:2])):
        with pytest.raises(InputError, match=r"`Program` has none; latent_map shows its latents, and .* named_draws"):
            call()
