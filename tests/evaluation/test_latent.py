"""The use of the latent dimensions against the closed forms of the linear-Gaussian oracle."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import Encoder, LinearGaussian
from torch.distributions import Normal
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed, Hierarchy, Mixture, Network, mlp
from pyro_vae.errors import InputError
from pyro_vae.evaluation import active_units, aggregate_posterior, kl_per_dimension, latent_kl, posterior_means

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(25)


def collapsing() -> tuple[LinearGaussian, Encoder]:
    """Three latent dimensions, of which the second is not used: its posterior is the prior."""
    gains = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    model = LinearGaussian(LinearGaussian.random(5, 3).W * gains, MODEL.b, LinearGaussian.random(5, 3).s)
    return model, model.exact_encoder()


def test_active_units_and_kl_per_dimension_are_the_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = collapsing()
    vae, x = model.vae(encoder), model.sample(30)
    loc, scale = encoder(x)
    torch.testing.assert_close(posterior_means(vae, x), loc, rtol=0, atol=1e-12)
    assert active_units(vae, x).tolist() == [True, False, True]
    variance = loc.var(0)
    assert active_units(vae, x, float(variance[0]) - 1e-9).tolist() == [True, False, bool(variance[2] > variance[0])]
    assert active_units(vae, x, float(variance[0]) + 1e-9).tolist() == [False, False, bool(variance[2] > variance[0])]
    exact = ((loc.square() + scale.square() - 1) / 2 - scale.log()).mean(0)
    torch.testing.assert_close(kl_per_dimension(vae, x), exact, rtol=0, atol=1e-12)
    assert abs(float(exact[1])) < 1e-12
    monkeypatch.setattr("pyro_vae.evaluation.latent._CHUNK", 7)  # 30 data are then five chunks
    torch.testing.assert_close(kl_per_dimension(vae, x), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(posterior_means(vae, x), loc, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match=r"active_units.* at least two"):
        active_units(vae, x[:1])


def test_active_units_of_categorical_latents_are_those_whose_most_probable_value_varies() -> None:
    encoder = torch.nn.Linear(5, 6)  # two latents of three values each: the first follows x_0, the second nothing
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight[:3, 0] = torch.tensor([-1.0, 0.0, 1.0])
        encoder.bias.copy_(torch.tensor([0.0, -9.0, 0.0, 0.0, 1.0, 0.0]))
    vae = VAE(
        Conditional(dist.Categorical, (2,), logits=Fixed([0.0, 0.0, 0.0])),
        Conditional(dist.Normal, (5,), given=mlp(2, 4)),
        Conditional(dist.Categorical, (2,), given=encoder, head=None, logits=Network((3,))),
    )
    x = torch.tensor([[-1.0], [1.0]]).expand(2, 5)
    with torch.no_grad():
        modes = vae.encode(x).base_dist.logits.argmax(-1)
    torch.testing.assert_close(posterior_means(vae, x), modes.float())
    assert active_units(vae, x).tolist() == (modes[0] != modes[1]).tolist()
    assert active_units(vae, x).any()


def collapsed_hierarchy(shift: float = 0.0) -> VAE:
    """A Hierarchy of two layers with q = p = N(0, 4²), but for the shift of the first by x_0."""
    encoder = torch.nn.Linear(5, 1)
    with torch.no_grad():
        encoder.weight.zero_()[0, 0] = shift
        encoder.bias.zero_()
    wide = {"loc": Fixed(0.0), "scale": Fixed(4.0)}
    return VAE(
        Hierarchy(z2=Conditional(dist.Normal, (1,), **wide), z1=Conditional(dist.Normal, (1,), **wide)),
        Conditional(dist.Normal, (5,), given=mlp(2, 4)),
        Hierarchy(
            z1=Conditional(dist.Normal, (1,), given=encoder, head=None, loc=Network(), scale=Fixed(4.0)),
            z2=Conditional(dist.Normal, (1,), **wide),
        ),
    )


def test_means_from_draws_do_not_make_a_collapsed_dimension_active() -> None:
    """1,000 draws of variance 16 give means of variance 0.016 over data, above the threshold of 0.01."""
    x = torch.linspace(-1, 1, 200).unsqueeze(1).expand(200, 5)
    assert (posterior_means(collapsed_hierarchy(), x).var(0) > 0.01).all()
    assert active_units(collapsed_hierarchy(), x).tolist() == [False, False]
    assert active_units(collapsed_hierarchy(0.3), x).tolist() == [True, False]  # variance 0.3² / 3
    share = aggregate_posterior(collapsed_hierarchy(), x[:100], 1).active_share
    assert float(share.max()) < 4e-4  # without the correction about 1e-3


def test_kl_per_dimension_without_closed_form_is_unbiased() -> None:
    """A Normal posterior and a Student prior; mean and variance of the log ratio by numerical integration."""
    encoder, x = MODEL.exact_encoder(1.6), MODEL.sample(500)
    prior = Conditional(dist.StudentT, (2,), df=Fixed(5.0), loc=Fixed(0.0), scale=Fixed(1.0)).double()
    base = MODEL.vae(encoder)
    loc, scale = encoder(x)
    z = torch.arange(-20, 20, 0.05, dtype=torch.float64).reshape(-1, 1, 1)
    log_q = Normal(loc, scale).log_prob(z)
    ratio = log_q - dist.StudentT(5.0).log_prob(z)
    mean, square = ((log_q.exp() * 0.05 * moment).sum(0) for moment in (ratio, ratio.square()))
    error = ((square - mean.square()).sum(0) / 3).sqrt() / 500
    result = kl_per_dimension(VAE(prior, base.likelihood, base.posterior), x, num_samples=3)
    assert_mean(result, mean.mean(0), error)


def test_kl_per_dimension_is_none_where_a_distribution_does_not_factorise() -> None:
    assert kl_per_dimension(MODEL.vae(), X) is None
    prior = Conditional(dist.MultivariateNormal, (2,), loc=Fixed([0.0, 0.0]), scale_tril=Fixed(torch.eye(2))).double()
    base = MODEL.vae(MODEL.exact_encoder())
    assert kl_per_dimension(VAE(prior, base.likelihood, base.posterior), X) is None


def full_posterior() -> tuple[VAE, torch.Tensor]:
    """A VAE whose posterior has a full covariance, and the exact KL of each datum of X."""
    vae = MODEL.vae()
    q = vae.encode(X)
    trace = q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return vae, (trace + q.mean.square().sum(-1) - 2 - q.covariance_matrix.logdet()) / 2


def test_latent_kl_of_independent_dimensions_is_the_closed_form_of_each() -> None:
    model, encoder = collapsing()
    vae, x = model.vae(encoder), model.sample(30)
    result = latent_kl(vae, x)
    assert result.names == ("z0", "z1", "z2")
    assert result.analytic == (True, True, True)
    torch.testing.assert_close(result.value, kl_per_dimension(vae, x), rtol=1e-12, atol=1e-12)
    assert torch.equal(result.standard_error, torch.zeros(3).double())
    assert "z1: " in repr(result)
    assert "(closed form)" in repr(result)


def test_latent_kl_of_a_full_covariance_is_the_closed_form_of_the_whole() -> None:
    vae, exact = full_posterior()
    result = latent_kl(vae, X)
    assert result.names == ("z",)
    assert result.analytic == (True,)
    torch.testing.assert_close(result.value, exact.mean().detach().reshape(1), rtol=1e-10, atol=1e-10)
    assert float(result.standard_error) == 0


def student(vae: VAE) -> VAE:
    """The same with a Student prior, of which no KL has a closed form."""
    prior = Conditional(dist.StudentT, (2,), df=Fixed(5.0), loc=Fixed(0.0), scale=Fixed(1.0)).double()
    return VAE(prior, vae.likelihood, vae.posterior)


def test_latent_kl_from_draws_is_unbiased_with_a_calibrated_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over seeds its deviations from the exact value, by quadrature, have the variance that it states."""
    encoder = MODEL.exact_encoder(1.6)
    vae = student(MODEL.vae(encoder))
    loc, scale = encoder(X)
    z = torch.arange(-20, 20, 0.02, dtype=torch.float64).reshape(-1, 1, 1)
    log_q = Normal(loc, scale).log_prob(z)
    exact = (log_q.exp() * (log_q - dist.StudentT(5.0).log_prob(z))).sum(0).mul(0.02).mean(0)
    monkeypatch.setattr("pyro_vae.evaluation.latent._CHUNK", 700)  # 25 data are then four chunks
    results = [latent_kl(vae, X, 100, seed=seed) for seed in range(300)]
    assert results[0].names == ("z0", "z1")
    assert results[0].analytic == (False, False)
    assert "Monte Carlo" in repr(results[0])
    deviations = torch.stack([r.value - exact for r in results]) / torch.stack([r.standard_error for r in results])
    assert_mean(deviations, torch.zeros(2))
    assert_mean(deviations.square(), torch.ones(2))


def test_latent_kl_of_dependent_dimensions_from_draws() -> None:
    """The whole alone; by a prior that is N(0, I) in disguise, a mixture of two equal Normals."""
    vae, exact = full_posterior()
    prior = Mixture(dist.Normal, (2,), 2, loc=Fixed(0.0), scale=Fixed([[1.0, 1.0], [1.0, 1.0 + 1e-6]])).double()
    result = latent_kl(VAE(prior, vae.likelihood, vae.posterior), X, 2000)
    assert result.names == ("z",)
    assert result.analytic == (False,)
    assert_mean(result.value, exact.mean().reshape(1), result.standard_error)
    again = latent_kl(VAE(prior, vae.likelihood, vae.posterior), X, 2000)
    assert torch.equal(again.value, result.value)


@pytest.mark.parametrize("num_samples", [1, 0, True, 2.0])
def test_latent_kl_needs_two_draws(num_samples: object) -> None:
    with pytest.raises(InputError, match="at least 2"):
        latent_kl(MODEL.vae(), X, num_samples)
