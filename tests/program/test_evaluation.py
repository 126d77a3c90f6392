"""Every estimate of a program: that of the VAE of the same model, at the same noise."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluations import EVALUATIONS, numbers
from linear_gaussian import LinearGaussian
from programs import exact_state_guide, linear_gaussian, state_space
from torch import Tensor

from pyro_vae.evaluation import inference_gap, kl_per_dimension, latent_kl, posterior_means
from pyro_vae.program import Program

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(25)
ENCODER = MODEL.exact_encoder(1.3)


def both() -> list:
    return [MODEL.vae(ENCODER), linear_gaussian(MODEL, ENCODER, size=25)]


# The KL of a program is that of each site, its gap has other local parameters, and it has no decoder.
OTHERS = {"kl_per_dimension", "latent_kl", "inference_gap", "traverse", "interpolate"}


@pytest.mark.parametrize("name", sorted(set(EVALUATIONS) - OTHERS))
def test_it_is_that_of_the_vae(name: str) -> None:
    models = both()
    state = torch.get_rng_state()
    of_vae, of_program = (numbers(EVALUATIONS[name](model, X, 3)) for model in models)
    torch.testing.assert_close(of_program, of_vae, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_kl_of_a_site_is_the_sum_over_its_dimensions_in_closed_form() -> None:
    vae, program = both()
    of_vae, of_program = (latent_kl(model, X) for model in (vae, program))
    torch.testing.assert_close(of_program.value.sum(), of_vae.value.sum(), rtol=1e-12, atol=0)
    assert of_program.analytic == (True,)
    assert of_program.standard_error.item() == 0
    assert kl_per_dimension(program, X) is None


def test_the_gap_is_that_of_the_vae_after_convergence() -> None:
    of_vae, of_program = (inference_gap(model, X[:8], num_samples=200, steps=100) for model in both())
    assert of_program.total.value == pytest.approx(of_vae.total.value, abs=0.02)


def test_means_and_kl_that_depend_on_draws_are_estimates() -> None:
    """The smoother draws each state given earlier ones; a guide of independent states has exact means."""
    _, model = state_space(3)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()

    def independent(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for t in range(3):
                pyro.sample(f"z_{t}", dist.Normal(0.5 * x[:, t], x.new_tensor(0.4 + t)))

    mean_field, smoother = (Program(model, guide, x[:2]) for guide in (independent, exact_state_guide(3)))
    assert torch.equal(posterior_means(mean_field, x), 0.5 * x)
    q = mean_field.posterior_given(mean_field.check(x))
    torch.testing.assert_close(q.stddev, (0.4 + torch.arange(3.0)).double().expand(5, 3))
    assert not torch.equal(posterior_means(smoother, x), 0.5 * x)
    with pytest.raises(NotImplementedError, match="draws of other sites"):
        _ = smoother.posterior_given(smoother.check(x)).mean
    assert latent_kl(mean_field, x).analytic == (True, False, False)
    assert latent_kl(smoother, x).analytic == (True, False, False)
