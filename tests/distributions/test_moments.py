"""Means and standard deviations by quadrature and from draws, in float32, against closed forms."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch.distributions import ExpTransform, SigmoidTransform

from pyro_vae.distributions.moments import centre, centre_and_error, spread


class NoMoments(dist.Normal):
    """A Normal that implements neither mean nor mode, so that they come from draws."""

    @property
    def mean(self) -> torch.Tensor:
        raise NotImplementedError

    mode = stddev = mean


def test_quadrature_keeps_a_small_spread_about_a_large_mean() -> None:
    """exp(N(5, 1e-4²)): the squares, 2.2e4, have no digits for a variance of 2.2e-4."""
    pushed = dist.TransformedDistribution(dist.Normal(5.0, 1e-4), [ExpTransform()])
    torch.testing.assert_close(centre(pushed), torch.tensor(5.0).exp(), rtol=1e-6, atol=0)
    torch.testing.assert_close(spread(pushed), 1e-4 * torch.tensor(5.0).exp(), rtol=1e-2, atol=0)
    assert centre_and_error(pushed)[1] is None


def test_draws_keep_a_small_spread_about_a_large_mean() -> None:
    drawn = NoMoments(torch.tensor([0.0, 1e3]), torch.tensor([1.0, 1e-2]))
    mean, error = centre_and_error(drawn)
    torch.testing.assert_close(spread(drawn), torch.tensor([1.0, 1e-2]), rtol=0.1, atol=0)
    torch.testing.assert_close(error, torch.tensor([1e-3, 1e-7]), rtol=0.2, atol=0)
    assert ((mean - drawn.loc).abs() < 5 * error.sqrt() + torch.tensor([0.0, 1e-4])).all()
    assert torch.equal(centre(drawn), mean)


def test_an_implemented_mean_has_no_error() -> None:
    mean, error = centre_and_error(dist.Gamma(2.0, 4.0))
    assert (float(mean), error) == (0.5, None)
    half = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [SigmoidTransform()])
    torch.testing.assert_close(centre(half), torch.tensor(0.5))
