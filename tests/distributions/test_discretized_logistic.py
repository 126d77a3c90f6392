"""The discretized mixture of logistics against 50 digits, sums over all levels, and draws."""

from functools import partial

import mpmath
import pyro.distributions as dist
import pytest
import torch
from z_test import assert_mean

from pyro_vae import VAE, Conditional, Fixed, Learned, Training, fit, mlp
from pyro_vae.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyro_vae.errors import InputError
from pyro_vae.experiment.distribution import DistributionSpec
from pyro_vae.inference import AEVB

ADAM = partial(torch.optim.Adam, lr=0.02)
LOCS = (-3.0, -1.0, -0.2, 0.5, 1.0, 40.0)
SCALES = (1e-4, 0.003, 0.1, 1.0, 30.0)


def log_mass(x, loc, scale, levels=256):
    """The log mass of a level, on the side of the logistic where nothing cancels."""

    def sigmoid(u):
        return mpmath.exp(u) / (1 + mpmath.exp(u))

    u, half = mpmath.mpf(2 * x) / (levels - 1) - 1, mpmath.mpf(1) / (levels - 1)
    upper, lower = (u + half - loc) / scale, (u - half - loc) / scale
    if x == 0:
        return mpmath.log(sigmoid(upper))
    if x == levels - 1:
        return mpmath.log(sigmoid(-lower))
    if lower > 0:
        upper, lower = -lower, -upper
    return mpmath.log(sigmoid(upper) - sigmoid(lower))


@pytest.mark.parametrize("loc", LOCS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
def test_log_prob_of_one_component(loc, scale, dtype, tolerance):
    loc, scale = (torch.tensor([value], dtype=dtype) for value in (loc, scale))
    levels = torch.tensor([0.0, 1.0, 3.0, 100.0, 128.0, 254.0, 255.0], dtype=dtype)
    actual = DiscretizedLogisticMixture(torch.zeros_like(loc), loc, scale).log_prob(levels)
    with mpmath.workdps(60):
        m, s = mpmath.mpf(loc.item()), mpmath.mpf(scale.item())
        exact = torch.tensor([float(log_mass(int(x), m, s)) for x in levels], dtype=torch.float64)
    # The rounding of u - loc, of the order of eps, is divided by the scale.
    eps = torch.finfo(dtype).eps
    atol = 4 * eps * (1 + loc.abs().item()) / scale.item() + tolerance
    torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("levels", [2, 16, 256])
def test_masses_sum_to_one(scale, levels):
    d = DiscretizedLogisticMixture(torch.randn(3, 5), torch.randn(3, 5), torch.full((3, 5), scale), levels)
    x = d.enumerate_support()
    assert x.shape == (levels, 3)
    torch.testing.assert_close(d.log_prob(x).exp().sum(0), torch.ones(3), rtol=2e-5, atol=0)


def test_moments_are_the_sums_over_levels():
    args = [torch.randn(3, 4, dtype=torch.float64) for _ in range(3)]
    d = DiscretizedLogisticMixture(args[0], args[1] / 2, args[2].exp() / 5)
    x = d.enumerate_support()
    masses = d.log_prob(x).exp()
    mean = (masses * x).sum(0)
    torch.testing.assert_close(d.mean, mean)
    torch.testing.assert_close(d.variance, (masses * (x - mean).square()).sum(0))


def test_draws_have_the_moments_and_are_levels():
    d = DiscretizedLogisticMixture(torch.zeros(3), torch.tensor([-1.1, 0.0, 0.9]), torch.tensor([0.3, 0.02, 0.1]))
    x = d.sample((40_000,))
    assert torch.equal(x, x.round())
    assert x.min() >= 0
    assert x.max() <= 255
    assert_mean(x, d.mean)
    busy = [0, 127, 128, 255]
    assert_mean((x.unsqueeze(-1) == torch.tensor(busy)).double(), d.log_prob(torch.tensor(busy)).exp())


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
def test_gradients_are_finite_at_every_level(scale):
    parameters = [
        torch.zeros(2, requires_grad=True),
        torch.tensor([-5.0, 0.3], requires_grad=True),
        torch.full((2,), scale, requires_grad=True),
    ]
    d = DiscretizedLogisticMixture(*parameters)
    d.log_prob(torch.arange(256.0)).sum().backward()
    for parameter in parameters:
        assert parameter.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    parameters = [torch.randn(3, dtype=torch.float64) for _ in range(3)]
    parameters[2] = parameters[2].exp()
    x = torch.tensor([0.0, 3.0, 200.0, 255.0], dtype=torch.float64)

    def log_prob(*parameters):
        return DiscretizedLogisticMixture(*parameters).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, [p.requires_grad_() for p in parameters])


def test_a_network_that_puts_out_zeros_says_grey_and_broad():
    likelihood = Conditional(DiscretizedLogisticMixture, (4,), given=torch.nn.Identity(), head=None)
    d = likelihood.distribution(torch.zeros(1, sum(likelihood.network_sizes.values())))
    torch.testing.assert_close(d.mean, torch.full((1, 4), 127.5))
    assert likelihood.network_sizes == {"logits": 40, "locs": 40, "scales": 40}


def test_components_and_levels_are_declared():
    spec = {"family": "DiscretizedLogisticMixture", "components": 3, "levels": 16}
    likelihood = DistributionSpec.model_validate(spec).build((4,), mlp(2, 5))
    d = likelihood(torch.randn(7, 2))
    assert (d.base_dist.components, d.base_dist.levels) == (3, 16)
    assert d.base_dist.locs.shape == (7, 4, 3)
    assert likelihood.to_spec() == {**spec, "logits": "network", "locs": "network", "scales": "network"}
    sizes = {name: Learned(shape=(3,)) for name in ("logits", "locs", "scales")}
    with pytest.raises(InputError, match="`components` is 5, but the parameters have 3"):
        Conditional(DiscretizedLogisticMixture, (4,), components=Fixed(5), **sizes)
    with pytest.raises(InputError, match="`levels` must be an integer of at least 2"):
        Conditional(DiscretizedLogisticMixture, (4,), levels=Fixed(1))


def test_a_vae_trains_on_grey_levels_and_refuses_others():
    vae = VAE(
        Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(DiscretizedLogisticMixture, (6,), given=mlp(2, 7)),
    )
    x = DiscretizedLogisticMixture(torch.zeros(1), torch.tensor([0.4]), torch.tensor([0.05])).sample((60, 6))
    before = vae.log_weights(x, 20).mean().item()
    fit(vae, x, AEVB(), Training(optimizer=ADAM, epochs=40, batch_size=20))
    assert vae.log_weights(x, 20).mean().item() > before
    assert vae.generate(3).shape == (3, 6)
    with pytest.raises(InputError, match="`DiscretizedLogisticMixture`"):
        fit(vae, x + 0.5, AEVB(), Training(optimizer=ADAM, epochs=1))
